"""Generated from nbs/3_fusion/10b_objectives.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from vlp_course.objectives import _need_square, itc_health, itc_loss, same_caption, siglip_loss


@pytest.fixture(scope="module")
def setup_a580fb12():
    def slow_itc(image_to_text, text_to_image, same):
        batch, total = len(same), 0.0
        for i in range(batch):  # a quiz for picture i, one for caption i
            texts = [image_to_text[i, j] for j in range(batch) if i == j or not same[i, j]]
            images = [text_to_image[i, j] for j in range(batch) if i == j or not same[j, i]]
            total -= (image_to_text[i, i].exp() / sum(x.exp() for x in texts)).log()
            total -= (text_to_image[i, i].exp() / sum(x.exp() for x in images)).log()
        return total / (2 * batch)

    def slow_siglip(logits, same):
        batch, total = len(same), 0.0
        for i in range(batch):
            for j in range(batch):
                if i == j or not same[i, j]:
                    z = 1 if i == j else -1
                    total -= (1 / (1 + (-z * logits[i, j]).exp())).log()
        return total / batch

    return slow_itc, slow_siglip


@pytest.fixture(scope="module")
def setup_cdd7bd01():
    def floors(same):
        """The least ITC and sigmoid loss with these twins, mean over the batch."""
        copies = same.sum(dim=1).double()  # n_i
        again = (copies - 1) * (copies / (copies - 1).clamp(min=1)).log()
        return copies.log().mean().item(), (copies.log() + again).mean().item()

    return floors


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "31f97eb7")
def test_same_caption_by_hand():
    found = same_caption(["a cat", "a dog", "a cat", "A cat"])
    expected = torch.eye(4, dtype=torch.bool)
    expected[0, 2] = expected[2, 0] = True  # "A cat" is another string
    assert found.equal(expected)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "e9eefd19")
def test_same_caption_against_loop():
    words = [str(n % 5) for n in range(13)]
    found = same_caption(words)
    assert all(found[i, j] == (a == b) for i, a in enumerate(words) for j, b in enumerate(words))
    assert found.equal(found.T) and found.dtype == torch.bool


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "3fa1c2ec")
def test_not_square_is_refused():
    with pytest.raises(ValueError, match=r"itc_loss: text_to_image has shape \(4, 5\); it must be \(batch, batch\)"):
        _need_square("itc_loss", image_to_text=torch.zeros(4, 4), text_to_image=torch.zeros(4, 5))
    assert F.cross_entropy(torch.zeros(4, 5), torch.arange(4)) > 0  # torch says nothing


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "4d768924")
def test_itc_by_hand():
    two = torch.eye(2, dtype=torch.float64)
    assert itc_loss(3 * two, 3 * two).item() == pytest.approx(math.log(1 + math.exp(-3)))
    assert itc_loss(3 * two, 1 * two).item() == pytest.approx(
        (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1))) / 2
    )
    for batch in (2, 7, 63):
        equal = torch.full((batch, batch), 5.0, dtype=torch.float64)
        assert itc_loss(equal, equal).item() == pytest.approx(math.log(batch))


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "5e4cafbd")
def test_itc_axis_by_hand():
    popular = torch.tensor([[0.0, 9.0], [0.0, 9.0]], dtype=torch.float64)  # both pictures prefer text 1 by 9
    rows, columns = (math.log(1 + math.exp(9)) + math.log(1 + math.exp(-9))) / 2, math.log(2)
    assert itc_loss(popular, popular.T).item() == pytest.approx((rows + columns) / 2)  # the columns are blind guesses
    assert itc_loss(popular, popular).item() == pytest.approx(rows)  # both arguments are read by rows


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "df7818e9")
def test_itc_equals_loops(setup_a580fb12):
    slow_itc, _ = setup_a580fb12
    same = same_caption(list("abcabcd"))
    one_way, other_way = torch.randn(2, 7, 7, dtype=torch.float64)  # two matrices, as in FILIP
    lopsided = torch.rand(7, 7) < 0.3  # a mask that is not symmetric
    for mask in (same, lopsided):
        torch.testing.assert_close(
            itc_loss(one_way, other_way, mask), slow_itc(one_way, other_way, mask), rtol=0, atol=1e-12
        )
    nothing = torch.eye(7, dtype=torch.bool)
    torch.testing.assert_close(itc_loss(one_way, other_way), slow_itc(one_way, other_way, nothing), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "ea8d3fb8")
def test_itc_equals_libraries():
    from open_clip.loss import ClipLoss
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    image, text = F.normalize(torch.randn(2, 6, 11, dtype=torch.float64), dim=-1)
    logits = 14.3 * image @ text.T
    torch.testing.assert_close(itc_loss(logits, logits.T), image_text_contrastive_loss(logits.T), rtol=0, atol=1e-10)
    torch.testing.assert_close(itc_loss(logits, logits.T), ClipLoss()(image, text, 14.3), rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "46964826")
def test_itc_gradient_by_hand():
    one_way, other_way = torch.randn(2, 5, 5, dtype=torch.float64).requires_grad_().unbind()
    found = torch.autograd.grad(itc_loss(one_way, other_way), (one_way, other_way))
    for gradient, logits in zip(found, (one_way, other_way)):
        torch.testing.assert_close(gradient, (logits.softmax(dim=1) - torch.eye(5)) / (2 * 5), rtol=0, atol=1e-12)
        assert gradient.sum(dim=1).abs().max() < 1e-15


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "1f2f7933")
def test_itc_gradcheck():
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: itc_loss(x, x.T), logits)
    assert torch.autograd.gradcheck(lambda x: itc_loss(x, x.T, same_caption(list("abca"))), logits)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "a9a409f7")
def test_itc_properties():
    logits, order = torch.randn(6, 6, dtype=torch.float64), torch.randperm(6)
    loss = itc_loss(logits, logits.T)
    torch.testing.assert_close(
        itc_loss(logits[order][:, order], logits[order][:, order].T), loss
    )  # pairs in another order
    torch.testing.assert_close(itc_loss(logits.T, logits), loss)  # picture and text swapped
    torch.testing.assert_close(itc_loss(logits + torch.randn(6, 1), logits.T), loss)  # a row's constant cancels
    assert not torch.allclose(itc_loss(logits + torch.randn(1, 6), logits.T), loss)  # a column's does not


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "bafa7f67")
def test_itc_mask():
    same = same_caption(list("abcab"))
    one_way, other_way = torch.randn(2, 5, 5, dtype=torch.float64).requires_grad_().unbind()
    loss = itc_loss(one_way, other_way, same)
    twins = [(0, 3), (3, 0), (1, 4), (4, 1)]
    for gradient in torch.autograd.grad(loss, (one_way, other_way)):
        assert all(gradient[cell] == 0 for cell in twins) and (gradient != 0).sum() == 25 - len(twins)
    noisy = one_way + 100 * (same & ~torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(itc_loss(noisy, other_way, same), loss)  # masked cells may hold anything
    assert itc_loss(one_way, other_way) > loss  # without the mask there are more rivals


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "e901bc07")
def test_itc_needs_two():
    with pytest.raises(ValueError, match="a batch of 1 has no negatives"):
        itc_loss(torch.zeros(1, 1), torch.zeros(1, 1))


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "b29d1418")
def test_siglip_by_hand():
    for batch in (1, 3, 63):
        zero = torch.zeros(batch, batch, dtype=torch.float64)
        assert siglip_loss(zero).item() == pytest.approx(batch * math.log(2))
        start = math.log(1 + math.exp(10)) + (batch - 1) * math.log(1 + math.exp(-10))
        assert siglip_loss(zero - 10).item() == pytest.approx(start)
    assert siglip_loss(torch.tensor([[2.0, -1.0], [-3.0, 4.0]])).item() == pytest.approx(
        sum(math.log(1 + math.exp(-x)) for x in (2, 1, 3, 4)) / 2
    )
    assert siglip_loss(torch.full((2, 2), -200.0)).item() == pytest.approx(200)  # large logits stay finite


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "60c9f94f")
def test_siglip_equals_loops(setup_a580fb12):
    _, slow_siglip = setup_a580fb12
    logits = torch.randn(7, 7, dtype=torch.float64)
    for mask in (same_caption(list("abcabcd")), torch.rand(7, 7) < 0.3):
        torch.testing.assert_close(siglip_loss(logits, mask), slow_siglip(logits, mask), rtol=0, atol=1e-12)
    torch.testing.assert_close(siglip_loss(logits), slow_siglip(logits, torch.eye(7).bool()), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "4800c1e4")
def test_siglip_equals_open_clip():
    from open_clip.loss import SigLipLoss

    image, text = F.normalize(torch.randn(2, 6, 11, dtype=torch.float64), dim=-1)
    expected = SigLipLoss()(image, text, 10.0, logit_bias=-10.0)
    torch.testing.assert_close(siglip_loss(10 * image @ text.T - 10), expected, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "ad9e305c")
def test_siglip_gradient_by_hand():
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(siglip_loss(logits), logits)
    torch.testing.assert_close(
        found, (logits.sigmoid() - torch.eye(5)) / 5, rtol=0, atol=1e-12
    )  # again probability - target
    assert torch.autograd.gradcheck(siglip_loss, logits)
    assert torch.autograd.gradcheck(lambda x: siglip_loss(x, same_caption(list("abcab"))), logits)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "70fe8553")
def test_siglip_properties():
    same, order = same_caption(list("abcab")), torch.randperm(5)
    logits = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(siglip_loss(logits[order][:, order]), siglip_loss(logits))
    torch.testing.assert_close(siglip_loss(logits.T, same), siglip_loss(logits, same))
    (found,) = torch.autograd.grad(siglip_loss(logits, same), logits)
    assert found[same & ~torch.eye(5, dtype=torch.bool)].abs().max() == 0  # twins get no gradient
    assert (found.diagonal() < 0).all()  # pairs do


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "64225cec")
def test_losses_refuse_wrong_shapes():
    for wrong in (torch.zeros(4, 5), torch.zeros(4)):
        with pytest.raises((ValueError, TypeError)):  # TypeError: while tests run, jaxtyping is first
            itc_loss(wrong, wrong)
        with pytest.raises((ValueError, TypeError)):
            siglip_loss(wrong)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "788c683d")
def test_only_softmax_couples_cells():
    logits = torch.randn(9, dtype=torch.float64)
    coupled = {}
    for name, loss in {"sigmoid": siglip_loss, "softmax": lambda x: itc_loss(x, x.T)}.items():
        second = torch.autograd.functional.hessian(lambda x: loss(x.view(3, 3)), logits)  # (9, 9)
        coupled[name] = (second - second.diag().diag()).abs().max().item()
    assert coupled["sigmoid"] == 0 and coupled["softmax"] > 1e-3


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "5934f1c0")
def test_health_by_hand():
    perfect = itc_health(torch.eye(7), torch.eye(7), 100.0)  # seven pairs at right angles
    assert perfect["accuracy"] == 1 and perfect["alignment"] == 0 and perfect["loss_over_log_batch"] < 1e-6
    assert perfect["uniformity"] == pytest.approx(-4) and perfect["norm"] == 1  # squared distance 2
    point = torch.eye(7)[:1].expand(7, 7)
    collapsed = itc_health(point, point, 100.0)  # everything in one point
    assert collapsed["loss_over_log_batch"] == pytest.approx(1) and collapsed["accuracy"] == pytest.approx(1 / 7)
    assert collapsed["uniformity"] == 0 and itc_health(3 * point, point, 1.0)["norm"] == 2


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "d1b2da64")
def test_health_on_a_circle():
    def on_circle(angles):
        return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])

    def spread(angles):  # squared chord: 2 - 2 cos
        near = [math.exp(-2 * (2 - 2 * math.cos(math.radians(a - b)))) for a in angles for b in angles if a < b]
        return math.log(sum(near) / len(near))

    found = itc_health(on_circle((0, 40, 90)), on_circle((0, 10, 90)), 1.0)
    assert found["accuracy"] == pytest.approx(5 / 6)  # only the text at 10 picks the wrong image, at 0
    assert found["alignment"] == pytest.approx((2 - 2 * math.cos(math.radians(30))) / 3)
    assert found["uniformity"] == pytest.approx((spread((0, 40, 90)) + spread((0, 10, 90))) / 2)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "92fdeb6d")
def test_floor_is_reached(setup_cdd7bd01):
    floors = setup_cdd7bd01
    same = same_caption(list("abbcccdddd"))
    copies = same.sum(dim=1, keepdim=True).double()
    best = torch.where(same, 0.0, -60.0).double()  # twins tie, strangers are far away
    assert itc_loss(best, best.T).item() == pytest.approx(floors(same)[0])
    best = torch.where(same, -(copies - 1 + 1e-30).log(), -60.0).double()  # sigmoid = 1 / n
    assert siglip_loss(best).item() == pytest.approx(floors(same)[1])
    assert floors(same_caption(list("aabb"))) == pytest.approx((math.log(2), 2 * math.log(2)))


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "6dd0912f")
def test_first_line():
    def first_line(batch, dim, scale):
        return math.log(batch) + scale**2 / (2 * dim)  # E exp(s x) = exp(s^2 / 2D); the right cosine is 0 on average

    found = []
    for _ in range(30):
        image, text = F.normalize(torch.randn(2, 200, 384), dim=-1)
        found.append(itc_loss(14.3 * image @ text.T, 14.3 * text @ image.T).item())
    assert abs(sum(found) / 30 - first_line(200, 384, 14.3)) < 0.05
    assert first_line(200, 384, 0.0) == pytest.approx(math.log(200))


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "6dd0912f")
def test_first_line_starter_fails():
    def first_line(batch, dim, scale):
        return math.log(batch)

    with pytest.raises(Exception):
        found = []
        for _ in range(30):
            image, text = F.normalize(torch.randn(2, 200, 384), dim=-1)
            found.append(itc_loss(14.3 * image @ text.T, 14.3 * text @ image.T).item())
        assert abs(sum(found) / 30 - first_line(200, 384, 14.3)) < 0.05
        assert first_line(200, 384, 0.0) == pytest.approx(math.log(200))


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "cbba0d27")
def test_prior_bias():
    def prior_bias(batch):
        return -math.log(batch - 1)  # sigmoid(b) = 1 / B, the share of right cells in a row

    for batch in (8, 63, 1000):
        bias = torch.tensor(prior_bias(batch), dtype=torch.float64, requires_grad=True)
        siglip_loss(torch.zeros(batch, batch, dtype=torch.float64) + bias).backward()
        assert abs(bias.grad) < 1e-9
    assert prior_bias(22_027) == pytest.approx(-10, abs=1e-3)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "cbba0d27")
def test_prior_bias_starter_fails():
    def prior_bias(batch):
        return -10.0

    with pytest.raises(Exception):
        for batch in (8, 63, 1000):
            bias = torch.tensor(prior_bias(batch), dtype=torch.float64, requires_grad=True)
            siglip_loss(torch.zeros(batch, batch, dtype=torch.float64) + bias).backward()
            assert abs(bias.grad) < 1e-9
        assert prior_bias(22_027) == pytest.approx(-10, abs=1e-3)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "9859046e")
def test_chunked_itc():
    def chunked_itc(image, text, scale, chunk):
        def quizzes(asking, answers, start):
            logits = scale * asking @ answers.T  # (chunk, batch)
            target = torch.arange(start, start + len(asking), device=logits.device)
            return F.cross_entropy(logits, target, reduction="sum")

        total = 0.0
        for start in range(0, len(image), chunk):
            part = slice(start, start + chunk)
            total = total + checkpoint(quizzes, image[part], text, start, use_reentrant=False)
            total = total + checkpoint(quizzes, text[part], image, start, use_reentrant=False)
        return total / (2 * len(image))

    image, text = F.normalize(torch.randn(2, 13, 6, dtype=torch.float64), dim=-1)
    inputs = [x.requires_grad_() for x in (image, text, torch.tensor(14.3, dtype=torch.float64))]
    whole = itc_loss(inputs[2] * image @ text.T, inputs[2] * text @ image.T)
    for chunk in (1, 5, 13, 50):  # 5 does not divide 13
        parts = chunked_itc(*inputs, chunk)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
        for a, b in zip(torch.autograd.grad(parts, inputs), torch.autograd.grad(whole, inputs, retain_graph=True)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "9859046e")
def test_chunked_itc_starter_fails():
    def chunked_itc(image, text, scale, chunk):
        losses = [itc_loss(scale * i @ t.T, scale * t @ i.T) for i, t in zip(image.split(chunk), text.split(chunk))]
        return sum(losses) / len(losses)

    with pytest.raises(Exception):
        image, text = F.normalize(torch.randn(2, 13, 6, dtype=torch.float64), dim=-1)
        inputs = [x.requires_grad_() for x in (image, text, torch.tensor(14.3, dtype=torch.float64))]
        whole = itc_loss(inputs[2] * image @ text.T, inputs[2] * text @ image.T)
        for chunk in (1, 5, 13, 50):  # 5 does not divide 13
            parts = chunked_itc(*inputs, chunk)
            torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
            for a, b in zip(torch.autograd.grad(parts, inputs), torch.autograd.grad(whole, inputs, retain_graph=True)):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "4451039d")
def test_shared_itc(setup_cdd7bd01):
    floors = setup_cdd7bd01

    def shared_itc(image_to_text, text_to_image, same):
        shares = [same / same.sum(dim=1, keepdim=True), same.T / same.T.sum(dim=1, keepdim=True)]  # rows sum to 1
        pairs = zip((image_to_text, text_to_image), shares)
        return sum(-(share * logits.log_softmax(dim=1)).sum(dim=1).mean() for logits, share in pairs) / 2

    logits, alone = torch.randn(6, 6, dtype=torch.float64), torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(shared_itc(logits, logits.T, alone), itc_loss(logits, logits.T))
    same = same_caption(list("abbccc"))
    best_logits = torch.where(same, 0.0, -60.0).double().requires_grad_()
    loss = shared_itc(best_logits, best_logits.T, same)
    assert loss.item() == pytest.approx(floors(same)[0])  # the floor stays, but at the bottom
    assert torch.autograd.grad(loss, best_logits)[0].abs().max() < 1e-12  # nothing pulls any more
    pulled = torch.randn(6, 6, dtype=torch.float64).requires_grad_()
    shared_itc(pulled, pulled.detach(), same).backward()
    torch.testing.assert_close(
        pulled.grad, (pulled.detach().softmax(dim=1) - same / same.sum(dim=1, keepdim=True)) / 12
    )


@pytest.mark.nb("nbs/3_fusion/10b_objectives.ipynb", "4451039d")
def test_shared_itc_starter_fails(setup_cdd7bd01):
    floors = setup_cdd7bd01

    def shared_itc(image_to_text, text_to_image, same):
        return itc_loss(image_to_text, text_to_image, same)

    with pytest.raises(Exception):
        logits, alone = torch.randn(6, 6, dtype=torch.float64), torch.eye(6, dtype=torch.bool)
        torch.testing.assert_close(shared_itc(logits, logits.T, alone), itc_loss(logits, logits.T))
        same = same_caption(list("abbccc"))
        best_logits = torch.where(same, 0.0, -60.0).double().requires_grad_()
        loss = shared_itc(best_logits, best_logits.T, same)
        assert loss.item() == pytest.approx(floors(same)[0])  # the floor stays, but at the bottom
        assert torch.autograd.grad(loss, best_logits)[0].abs().max() < 1e-12  # nothing pulls any more
        pulled = torch.randn(6, 6, dtype=torch.float64).requires_grad_()
        shared_itc(pulled, pulled.detach(), same).backward()
        torch.testing.assert_close(
            pulled.grad, (pulled.detach().softmax(dim=1) - same / same.sum(dim=1, keepdim=True)) / 12
        )
