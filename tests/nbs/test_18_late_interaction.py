"""Generated from nbs/4_pretraining/18_late_interaction.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
import weakref
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from vlp_course.objectives import itc_loss
from vlp_course.nn.late_interaction import max_sim, select_tokens, token_scores, token_similarities


@pytest.fixture(scope="module")
def setup_ce6cc4b0():
    def slow(image, text, image_mask, text_mask):
        """FILIP's two tables in loops, one pair after the other, padding thrown away."""
        tables = torch.zeros(2, len(image), len(text), dtype=image.dtype)
        for i in range(len(image)):
            for j in range(len(text)):
                patches, words = image[i][image_mask[i]], text[j][text_mask[j]]
                tables[0, i, j] = sum(max(patch @ word for word in words) for patch in patches) / len(patches)
                tables[1, i, j] = sum(max(patch @ word for patch in patches) for word in words) / len(words)
        return tables[0], tables[1]

    def plain(image, text, image_mask, text_mask):
        """The same as one writes it in PyTorch: all cosines at once."""
        cosine = torch.einsum("ikd,jrd->ikjr", image, text)
        to_text = cosine.masked_fill(~text_mask, -torch.inf).max(3).values  # i k j
        to_image = cosine.masked_fill(~image_mask[..., None, None], -torch.inf).max(1).values  # i j r
        return (
            (to_text * image_mask[..., None]).sum(1) / image_mask.sum(1)[:, None],
            (to_image * text_mask).sum(2) / text_mask.sum(1),
        )

    def draw(batch=3, texts=4, patches=7, words=5, dim=12, dtype=torch.float64, seed=0):
        """Unit vectors and masks with padding at random places."""
        g = torch.Generator().manual_seed(seed)
        vectors = [
            F.normalize(torch.randn(*size, dim, dtype=dtype, generator=g), dim=-1)
            for size in ((batch, patches), (texts, words))
        ]
        masks = [torch.rand(*size, generator=g) < 0.7 for size in ((batch, patches), (texts, words))]
        masks[0][:, 2] = masks[1][:, 1] = True
        return *vectors, *masks

    return draw, plain, slow


@pytest.fixture(scope="module")
def setup_fdba9ab6(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0

    class Held(TorchDispatchMode):
        """Bytes of the tensors that are made and alive inside `with`: now, and at most."""

        now = most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            out, known = (
                function(*args, **kwargs),
                {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)},
            )
            for storage in (x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)):
                if storage._cdata not in known:  # neither a view nor written in place
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.forget, storage.nbytes())
            self.most = max(self.most, self.now)
            return out

        def forget(self, size):
            self.now -= size

    def step(function, image, text, *masks):
        """A whole pass; the gradient is left in the tokens."""
        image.grad = text.grad = None
        to_text, to_image = function(image, text, *masks)
        itc_loss(14 * to_text.float(), 14 * to_image.float().T).backward()

    def peak_mb(function, *inputs) -> float:
        """The most that a whole pass holds besides the tokens, in MB."""
        with Held() as held:
            step(function, *inputs)
        return held.most / 1e6

    def tokens(batch, patches=64, words=16, dim=128):
        """Random tokens without padding."""
        image, text, *_ = draw(batch, batch, patches, words, dim, torch.float32)
        return *(x.requires_grad_() for x in (image, text)), *(
            torch.ones(x.shape[:2], dtype=torch.bool) for x in (image, text)
        )

    return peak_mb, tokens


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "c4b1f82e")
def test_max_sim_by_hand():
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    documents = torch.tensor([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-0.6, -0.8], [0.0, 0.0]]])
    everything = torch.ones(1, 2, dtype=torch.bool)
    kept = torch.tensor([[True, True, False], [True, True, False]])
    torch.testing.assert_close(
        max_sim(query, documents, everything, kept), torch.tensor([[1.8, -0.6]])
    )  # 1 + 0.8; -0.6 + 0
    # with padding as zeros the second document would have its -0.6 lifted to 0: negative cosines lose against padding
    torch.testing.assert_close(
        max_sim(query, documents, everything, torch.ones(2, 3, dtype=torch.bool)), torch.tensor([[2.0, 0.0]])
    )


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "f551a8fa")
def test_a_sum_grows_with_the_query_a_mean_does_not(setup_ce6cc4b0):
    draw, plain, _ = setup_ce6cc4b0
    image, text, image_mask, text_mask = draw()
    long = torch.cat([text, text], 1), torch.cat([text_mask, text_mask], 1)
    torch.testing.assert_close(
        max_sim(long[0], image, long[1], image_mask), 2 * max_sim(text, image, text_mask, image_mask)
    )
    torch.testing.assert_close(
        plain(image, long[0], image_mask, long[1])[1], plain(image, text, image_mask, text_mask)[1]
    )


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "81ce6c0a")
def test_equals_the_slow_twin_whatever_the_block(setup_ce6cc4b0):
    draw, plain, slow = setup_ce6cc4b0
    inputs = draw()
    assert not torch.allclose(*slow(*inputs))  # two tables, not one
    for block in (1, 150, 10**6):
        for ours, theirs, ordinary in zip(token_similarities(*inputs, block), slow(*inputs), plain(*inputs)):
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(ours, ordinary)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "1c317ff7")
def test_gradient_is_right_in_64_bits(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0
    image, text, image_mask, text_mask = draw(3, 2, 5, 4, 3)
    image.requires_grad_(), text.requires_grad_()
    for block in (1, 90, 10**6):  # 90: two pictures, then one
        assert torch.autograd.gradcheck(
            lambda a, b: token_similarities(a, b, image_mask, text_mask, block), (image, text)
        )


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "1cc6632c")
def test_same_gradient_as_plain_through_the_loss(setup_ce6cc4b0):
    draw, plain, _ = setup_ce6cc4b0
    gradients = []
    for function in (token_similarities, plain):
        image, text, image_mask, text_mask = draw(4, 4)
        image.requires_grad_(), text.requires_grad_()
        to_text, to_image = function(image, text, image_mask, text_mask)
        itc_loss(9 * to_text, 9 * to_image.T).backward()
        gradients += [(image.grad, text.grad)]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours, theirs)
        assert ours.abs().max() > 1e-3


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "e36e4e13")
def test_padding_does_not_matter(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0
    image, text, image_mask, text_mask = draw()
    before = token_similarities(image, text, image_mask, text_mask)
    image, text = (
        torch.where(mask[..., None], x, 100.0).requires_grad_() for x, mask in ((image, image_mask), (text, text_mask))
    )
    after = token_similarities(image, text, image_mask, text_mask)  # 100: would win everywhere
    wide = [F.pad(x, (0, 0, 0, 3)) for x in (image, text)] + [F.pad(mask, (0, 3)) for mask in (image_mask, text_mask)]
    for a, b, c in zip(before, after, token_similarities(*wide)):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)
    sum(x.sum() for x in after).backward()
    for x, mask in ((image, image_mask), (text, text_mask)):
        assert (x.grad[~mask] == 0).all() and (x.grad[mask].abs().sum(1) > 0).any()


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "fbb20542")
def test_of_equals_the_first_takes_all():
    patch, word = (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]]),
    )  # the first two words tie
    for order in ([0, 1, 2], [2, 1, 0]):
        text = word[order][None].clone().requires_grad_()
        token_similarities(patch[None], text, torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))[
            0
        ].sum().backward()
        winner = [r for r in order if r != 2][0]
        assert text.grad[0].abs().sum(1).nonzero().flatten().tolist() == [order.index(winner)]
        torch.testing.assert_close(text.grad.sum(1), patch)  # nothing is lost, nothing counted twice
    same = F.normalize(torch.ones(2, 3, 4), dim=-1)  # all tokens equal: everything ties
    for table in token_similarities(same, same, *(torch.ones(2, 3, dtype=torch.bool),) * 2):
        torch.testing.assert_close(table, torch.ones(2, 2))


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "2f1cab62")
def test_the_softmax_runs_along_the_right_axis(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0
    to_text, to_image = token_similarities(*draw(4, 4))
    by_hand = (-to_text.log_softmax(1).diagonal().mean() - to_image.log_softmax(0).diagonal().mean()) / 2
    torch.testing.assert_close(itc_loss(to_text, to_image.T), by_hand)
    for wrong in (itc_loss(to_text, to_image), itc_loss(to_text, to_text.T), itc_loss(to_image, to_text.T)):
        assert (wrong - by_hand).abs() > 1e-4


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "aad01e6d")
def test_documented_failures(setup_ce6cc4b0):
    draw, plain, _ = setup_ce6cc4b0
    image, text, image_mask, text_mask = draw()
    with pytest.raises(ValueError, match="text 3 has no token that counts: its mean is of nothing"):
        token_similarities(image, text, image_mask, text_mask & (torch.arange(4) != 3)[:, None])
    with pytest.raises(ValueError, match="image has 257 tokens: winners are kept in one byte, so at most 256"):
        token_similarities(torch.ones(1, 257, 12), text.float(), torch.ones(1, 257, dtype=torch.bool), text_mask)
    many = draw(2, 3, 256, 4)  # 256 is the last that fits
    for ours, theirs in zip(token_similarities(*many), plain(*many)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "81b0cf05")
def test_holds_a_twentieth_of_the_memory(setup_fdba9ab6, setup_ce6cc4b0):
    peak_mb, tokens = setup_fdba9ab6
    _, plain, _ = setup_ce6cc4b0
    inputs = tokens(64, dim=32)
    assert peak_mb(plain, *inputs) > 64 * 64 * 64 * 16 * 4 / 1e6  # at least the table itself
    small = lambda *x: token_similarities(*x, 1 << 15)
    assert 20 * peak_mb(small, *inputs) < peak_mb(plain, *inputs)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "1db0ebe1")
def test_selection_by_hand():
    tokens_, mask = torch.arange(10.0).view(2, 5, 1), torch.tensor([[True] * 5, [True, True, False, False, False]])
    chosen, kept = select_tokens(
        tokens_, mask, torch.tensor([[0.1, 0.9, 0.3, 0.8, 0.2], [0.2, 0.4, 0.9, 0.9, 0.9]]), 0.5
    )
    assert (
        chosen[0, :, 0].tolist() == [1, 3, 2]
        and kept.tolist() == [[True] * 3, [True, False, False]]
        and chosen[1, 0, 0] == 6
    )
    with pytest.raises(ValueError, match="share is 1.5: the part of the tokens that is kept lies above 0"):
        select_tokens(tokens_, mask, torch.zeros(2, 5), 1.5)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "db2788aa")
def test_keeping_all_changes_nothing_and_gradients_pass(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0
    image, text, image_mask, text_mask = draw()
    scores = token_scores(image, text, text_mask)
    for i in range(len(image)):
        for k in range(image.shape[1]):
            assert scores[i, k].item() == pytest.approx(
                max((image[i, k] @ word).item() for t, m in zip(text, text_mask) for word in t[m])
            )
    everything = select_tokens(image, image_mask, scores, 1.0)
    for a, b in zip(
        token_similarities(everything[0], text, everything[1], text_mask),
        token_similarities(image, text, image_mask, text_mask),
    ):
        torch.testing.assert_close(a, b)  # in another order, with more padding
    image.requires_grad_()
    chosen, kept = select_tokens(image, image_mask, scores, 0.25)
    token_similarities(chosen, text, kept, text_mask)[0].sum().backward()
    assert ((image.grad.abs().sum(2) > 0).sum(1) == kept.sum(1)).all()


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "9ed4c97b")
def test_sixteen_bits_are_close(setup_ce6cc4b0):
    draw, _, _ = setup_ce6cc4b0
    image, text, *masks = draw(6, 5, 7, 4, 64, torch.float32)
    exact = token_similarities(image, text, *masks)
    rough = [x.bfloat16().requires_grad_() for x in (image, text)]
    tables = token_similarities(*rough, *masks)
    for a, b in zip(exact, tables):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=8e-3, rtol=0)
    sum(x.sum() for x in tables).backward()
    assert rough[0].grad.dtype == rough[1].grad.dtype == torch.bfloat16


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "e0bfadef")
def test_flat_loss():
    def flat_loss(batch: int) -> float:
        """FILIP's loss in nats when all tokens are equal."""
        return math.log(batch)  # every cell is 1, whatever the scale: a guess among all

    same = F.normalize(torch.ones(5, 3, 4), dim=-1)
    to_text, to_image = token_similarities(same, same, *(torch.ones(5, 3, dtype=torch.bool),) * 2)
    assert itc_loss(14 * to_text, 14 * to_image.T).item() == pytest.approx(flat_loss(5), abs=1e-5)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "e0bfadef")
def test_flat_loss_starter_fails():
    def flat_loss(batch: int) -> float:
        """FILIP's loss in nats when all tokens are equal."""
        return 0.0

    with pytest.raises(Exception):
        same = F.normalize(torch.ones(5, 3, 4), dim=-1)
        to_text, to_image = token_similarities(same, same, *(torch.ones(5, 3, dtype=torch.bool),) * 2)
        assert itc_loss(14 * to_text, 14 * to_image.T).item() == pytest.approx(flat_loss(5), abs=1e-5)


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "a063ccd0")
def test_soft_max_sim():
    def soft_max_sim(cosine: Tensor, sharpness: float) -> Tensor:
        """A smooth maximum of the last axis."""
        return (cosine * (sharpness * cosine).softmax(-1)).sum(-1)

    cosine = torch.rand(3, 5, requires_grad=True)
    assert (soft_max_sim(cosine, 5.0) <= cosine.amax(-1)).all()  # logsumexp is above the maximum
    torch.testing.assert_close(soft_max_sim(cosine, 1e5), cosine.amax(-1))
    torch.testing.assert_close(soft_max_sim(cosine, 0.0), cosine.mean(-1))
    soft_max_sim(cosine, 5.0).sum().backward()
    assert (cosine.grad != 0).all()


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "a063ccd0")
def test_soft_max_sim_starter_fails():
    def soft_max_sim(cosine: Tensor, sharpness: float) -> Tensor:
        """A smooth maximum of the last axis."""
        return cosine.logsumexp(-1)

    with pytest.raises(Exception):
        cosine = torch.rand(3, 5, requires_grad=True)
        assert (soft_max_sim(cosine, 5.0) <= cosine.amax(-1)).all()  # logsumexp is above the maximum
        torch.testing.assert_close(soft_max_sim(cosine, 1e5), cosine.amax(-1))
        torch.testing.assert_close(soft_max_sim(cosine, 0.0), cosine.mean(-1))
        soft_max_sim(cosine, 5.0).sum().backward()
        assert (cosine.grad != 0).all()


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "55114d33")
def test_exchange_kib():
    def exchange_kib(tokens: int, dim: int, share: float, bits: int) -> float:
        """What a sample's tokens weigh, in KiB."""
        return math.ceil(share * tokens) * dim * bits / 8 / 1024

    assert exchange_kib(64, 128, 1, 32) == 32 and exchange_kib(50, 256, 0.25, 16) == 13 * 0.5


@pytest.mark.nb("nbs/4_pretraining/18_late_interaction.ipynb", "55114d33")
def test_exchange_kib_starter_fails():
    def exchange_kib(tokens: int, dim: int, share: float, bits: int) -> float:
        """What a sample's tokens weigh, in KiB."""
        return tokens * dim

    with pytest.raises(Exception):
        assert exchange_kib(64, 128, 1, 32) == 32 and exchange_kib(50, 256, 0.25, 16) == 13 * 0.5
