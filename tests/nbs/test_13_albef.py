"""Generated from nbs/3_fusion/13_albef.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import itertools
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from dataclasses import replace
from torch import Tensor
from torch import nn
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as clip_build
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.fusion import CrossEncoder
from vlp_course.objectives_fused import hard_negatives
from vlp_course.objectives_fused import mask_words
from vlp_course.train import Recipe
from vlp_course.train import fit
from vlp_course.train import param_groups
from vlp_course.models.albef import ALBEF, Config, Trunk, build, caption_keys


@pytest.fixture(scope="module")
def setup_caae73b9():
    class Toy:
        """Random features and captions of three words; captions repeat."""

        def __init__(self, count=24):
            draw = torch.Generator().manual_seed(5)
            self.features, self.groups = torch.randn(count, WIDTH, generator=draw), np.arange(count)
            self.captions = [
                f"{a} on {b}" for a, b in itertools.product(("fox", "owl", "cat"), ("sand", "snow", "grass", "stone"))
            ] * 2

        def batch(self, indices, tokenize=None):
            captions = [self.captions[i] for i in indices]
            return Pairs(None, captions, tokenize(captions), torch.as_tensor(indices), self.features[indices])

    def toy(seed=0, **changes):
        """ALBEF of width 12 with 3 heads, 5 words covered in ten, a queue of 11."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary("fox owl cat on sand snow grass stone lies".split())
        trunk = Trunk(
            ImageEncoder(12, 3),
            TextEncoder(torch.randn(len(vocabulary), 12), 3),
            vocabulary,
            CrossEncoder(12, 3),
            len(vocabulary),
            12,
        )
        model = ALBEF(trunk, Config(queue=11, ramp=4, **changes), 12)
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                nn.init.normal_(p, std=0.4)  # default weights are so small that they hide errors
        with torch.no_grad():
            for slow in model.slow.parameters():
                slow.add_(0.1 * torch.randn_like(slow))
        return model

    def draw(seed=0):
        return torch.Generator().manual_seed(seed)

    return Toy, draw, toy


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "6969237b")
def test_every_loss_equals_its_slow_twin(setup_caae73b9):
    Toy, draw, toy = setup_caae73b9
    model, data = toy(matched=5).double(), Toy()
    batch = replace(
        b := data.batch([0, 1, 2, 3, 4, 12, 5], model.tokenize), features=b.features.double()
    )  # 0 and 12: the same caption
    with torch.no_grad():
        model.key_queue[4] = caption_keys([batch.caption[1]])[0]  # ... and one in the queue
    losses = model(batch, step=2, generator=(g := draw())).losses
    image, text = model.encode_image(batch), model.encode_text(batch.text)
    slow_image, slow_text = model.slow.encode_image(batch).pooled, model.slow.encode_text(batch.text).pooled
    scale, total, alpha = model.fast.logit_scale.exp(), 0, 0.2  # half of the ramp
    for mine, slow, keys, queue in (
        (image.pooled, slow_image, slow_text, model.text_queue),
        (text.pooled, slow_text, slow_image, model.image_queue),
    ):
        for i in range(7):
            candidates = [*keys, *queue]
            right = [c == batch.caption[i] for c in batch.caption] + [
                bool(k == caption_keys([batch.caption[i]])[0]) for k in model.key_queue
            ]
            mine_p = torch.stack([scale * mine[i] @ c for c in candidates]).softmax(0)
            slow_p = torch.stack([scale * slow[i] @ c for c in candidates]).softmax(0)
            for r, p, q in zip(right, mine_p, slow_p):
                total -= ((1 - alpha) * r / sum(right) + alpha * q) * p.log() / 14
    torch.testing.assert_close(losses["itc"], total, rtol=0, atol=1e-6)  # targets are made in 32 bits

    g = draw()
    wrong = hard_negatives(
        scale * image.pooled @ text.pooled.T, caption_keys(batch.caption)[:, None] == caption_keys(batch.caption), g
    )
    one = lambda tokens, i: Tokens(*(x[i : i + 1] for x in tokens))
    questions = (
        [(i, i, 1) for i in range(5)]
        + [(wrong.image[i], i, 0) for i in range(5)]
        + [(i, wrong.text[i], 0) for i in range(5)]
    )
    logits = torch.cat([model.itm_head(model.fuse(one(image, i), one(text, t)).pooled) for i, t, _ in questions])
    torch.testing.assert_close(
        losses["itm"], F.cross_entropy(logits, torch.tensor([yes for *_, yes in questions])), rtol=0, atol=1e-10
    )

    masked, chosen = mask_words(batch.text, 14, 0.5, g)
    total = 0
    for i, place in chosen.nonzero():
        scores = [
            m.words(m.fuse(one(m.encode_image(batch), i), one(m.encode_text(masked), i)).tokens[0, place][None])[0]
            for m in (model.fast, model.slow)
        ]
        target = (1 - alpha) * F.one_hot(batch.text.ids[i, place], 14).double() + alpha * scores[1].softmax(0)
        total -= (target * scores[0].log_softmax(0)).sum() / chosen.sum()
    torch.testing.assert_close(losses["mlm"], total, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "e54248a9")
def test_matching_reads_the_pair_and_no_padding(setup_caae73b9):
    Toy, _, toy = setup_caae73b9
    model = toy()
    batch = Toy().batch([0, 1, 5], model.tokenize)
    image, text = model.encode_image(batch), model.encode_text(batch.text)
    assert model.similarity(image, text).shape == (3, 3) and model.match(image, text).shape == (3,)
    turned = torch.tensor([2, 0, 1])
    part = lambda tokens: Tokens(*(x[turned] for x in tokens))
    torch.testing.assert_close(model.match(part(image), part(text)), model.match(image, text)[turned])
    assert (
        model.match(part(image), text) - model.match(image, text)
    ).abs().min() > 1e-3  # another picture, another answer
    longer = Tokenized(F.pad(batch.text.ids, (0, 4)), F.pad(batch.text.mask, (0, 4)))
    torch.testing.assert_close(model.match(image, model.encode_text(longer)), model.match(image, text))


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "47914185")
def test_forward_changes_nothing_and_no_gradient_reaches_the_slow_copy(setup_caae73b9):
    Toy, draw, toy = setup_caae73b9
    model = toy()
    batch = Toy().batch([0, 1, 2, 5], model.tokenize)
    before = checkpoint_sha(model)
    out = model(batch, step=3, generator=draw())
    sum(out.losses.values()).backward()
    assert checkpoint_sha(model) == before and not any(x.requires_grad for x in out.state.values())
    assert all(p.grad is None and not p.requires_grad for p in model.slow.parameters())
    assert all(p.grad is not None for p in [*model.fast.parameters(), *model.itm_head.parameters()])
    optimised = {id(p) for group in param_groups(model, 0.1) for p in group["params"]}
    assert not optimised & {id(p) for p in model.slow.parameters()}


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "81c017c2")
def test_after_step_moves_average_queue_and_temperature(setup_caae73b9):
    _, _, toy = setup_caae73b9
    model = toy(momentum=0.75)
    fast, slow = (p.fusion.layers[0].cross.query.weight for p in (model.fast, model.slow))
    expected, image, text, old = (
        0.75 * slow + 0.25 * fast,
        *(F.normalize(torch.randn(4, 12), dim=1) for _ in range(2)),
        model.image_queue.clone(),
    )
    model.fast.logit_scale.data.fill_(50.0)
    model.after_step({"image": image, "text": text, "key": caption_keys(["a", "b", "c", "d"])}, 0)
    torch.testing.assert_close(slow, expected)
    torch.testing.assert_close(
        model.image_queue, torch.cat([image, old[:7]])
    )  # new ones in front, the oldest four gone
    torch.testing.assert_close(model.text_queue[:4], text)
    assert model.key_queue.tolist() == [*caption_keys(["a", "b", "c", "d"]).tolist(), *[-1] * 7]
    assert model.fast.logit_scale.exp().item() == pytest.approx(1000)  # temperature 0.001
    model.fast.logit_scale.data.fill_(-50.0)
    model.after_step({}, 0)
    assert model.fast.logit_scale.exp().item() == pytest.approx(2)  # temperature 0.5


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "e4f941be")
def test_alpha_and_hardness_grow_and_then_stay(setup_caae73b9):
    _, _, toy = setup_caae73b9
    model = toy()
    assert [model.alpha(step) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    assert [model.hardness(step) for step in (0, 9)] == [1, 1]
    assert [toy(hardness=0.5, harden=10).hardness(step) for step in (0, 5, 10, 20)] == [0, 0.25, 0.5, 0.5]


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "2bba4bdb")
def test_a_weight_of_zero_leaves_the_loss_out(setup_caae73b9):
    Toy, draw, toy = setup_caae73b9
    data = Toy()
    for left_out in ("itc", "itm", "mlm"):
        model = toy(**{left_out: 0})
        losses = model(data.batch([0, 1, 2, 5], model.tokenize), step=3, generator=draw()).losses
        assert set(losses) == {"itc", "itm", "mlm"} - {left_out}
    model = toy(itm=0, mlm=0)
    model(data.batch([0, 1, 2], model.tokenize), step=3, generator=draw()).losses["itc"].backward()
    assert all(p.grad is None for p in model.fast.fusion.parameters())  # aligned, and nothing fused


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "5c7e25d0")
def test_moved_before_or_after_is_the_same(setup_caae73b9):
    Toy, draw, toy = setup_caae73b9

    def train(as_the_paper):
        """Losses of five steps; the paper moves the slow copy before the forward pass, and fills the queue after it."""
        model, data, g, losses = toy(), Toy(), draw(), []
        model.slow.load_state_dict(model.fast.state_dict())  # as when training begins
        sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for step in range(5):
            if as_the_paper:
                model.after_step({}, step)
            out = model(data.batch(np.arange(4) + 4 * step, model.tokenize), step=step, generator=g)
            sgd.zero_grad(), sum(out.losses.values()).backward(), sgd.step()
            if as_the_paper:
                for name, new in out.state.items():
                    queue = getattr(model, f"{name}_queue")
                    queue.copy_(torch.cat([new, queue])[: len(queue)])
            else:
                model.after_step(out.state, step)
            losses.append({k: v.item() for k, v in out.losses.items()})
        return losses

    assert train(True) == train(False)


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "53ddcc6f")
def test_killed_and_resumed_gives_the_same_bits(setup_caae73b9):
    Toy, _, toy = setup_caae73b9

    class Kill(Exception):
        pass

    class Mortal(Toy):
        def __init__(self, life=99):
            super().__init__()
            self.life = life

        def batch(self, *args, **kwargs):
            self.life -= 1
            if self.life < 0:
                raise Kill
            return super().batch(*args, **kwargs)

    recipe = Recipe(9, batch_size=6, seed=3, warmup=2)
    whole = fit(toy(), Mortal(), recipe, progress=False)
    with tempfile.TemporaryDirectory() as out:
        with pytest.raises(Kill):
            fit(toy(), Mortal(5), recipe, out, save_every=2, progress=False)
        resumed = fit(
            toy(seed=8), Mortal(), recipe, out, save_every=2, progress=False
        )  # other weights, other queues: all come from the file
    assert resumed.losses == whole.losses and checkpoint_sha(resumed.model) == checkpoint_sha(whole.model)
    assert not torch.equal(resumed.model.image_queue, toy().image_queue)


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "5b139c42")
def test_clip_weights_fit_the_fast_towers():
    model, clip = build(seed=1), clip_build(seed=2)
    left = model.fast.load_state_dict(clip.state_dict(), strict=False)
    assert not left.unexpected_keys and {k.split(".")[0] for k in left.missing_keys} == {"fusion", "head"}
    with pytest.raises(ValueError, match="unknown size 'whole': models.albef has 'small'"):
        build("whole")


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "ddfed714")
def test_age(setup_caae73b9):
    _, _, toy = setup_caae73b9

    def age(queue: int, batch: int) -> int:
        """After how many steps a vector has left the queue."""
        return -(-queue // batch)  # rounded up: the last batch may be cut

    model = toy()
    for steps in range(1, 4):  # a queue of 11, batches of 4: the first is gone after three more
        model.after_step({"key": torch.full((4,), steps)}, 0)
    assert (model.key_queue == 1).sum() == 3 and age(11, 4) == 3
    model.after_step({"key": torch.full((4,), 4)}, 0)
    assert not (model.key_queue == 1).any() and age(630, 63) == 10


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "ddfed714")
def test_age_starter_fails(setup_caae73b9):
    _, _, toy = setup_caae73b9

    def age(queue: int, batch: int) -> int:
        """After how many steps a vector has left the queue."""
        return queue

    with pytest.raises(Exception):
        model = toy()
        for steps in range(1, 4):  # a queue of 11, batches of 4: the first is gone after three more
            model.after_step({"key": torch.full((4,), steps)}, 0)
        assert (model.key_queue == 1).sum() == 3 and age(11, 4) == 3
        model.after_step({"key": torch.full((4,), 4)}, 0)
        assert not (model.key_queue == 1).any() and age(630, 63) == 10


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "9e34334b")
def test_bias_free():
    def bias_free(slow: Tensor, start: Tensor, momentum: float, steps: int) -> Tensor:
        """The average of the weights since the start, without the start."""
        return (slow - momentum**steps * start) / (1 - momentum**steps)

    slow = start = torch.randn(5)
    weights = torch.randn(7, 5)
    for w in weights:
        slow = 0.9 * slow + 0.1 * w
    share = 0.1 * 0.9 ** torch.arange(6, -1, -1.0)
    torch.testing.assert_close(bias_free(slow, start, 0.9, 7), (share[:, None] * weights).sum(0) / share.sum())


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "9e34334b")
def test_bias_free_starter_fails():
    def bias_free(slow: Tensor, start: Tensor, momentum: float, steps: int) -> Tensor:
        """The average of the weights since the start, without the start."""
        return slow

    with pytest.raises(Exception):
        slow = start = torch.randn(5)
        weights = torch.randn(7, 5)
        for w in weights:
            slow = 0.9 * slow + 0.1 * w
        share = 0.1 * 0.9 ** torch.arange(6, -1, -1.0)
        torch.testing.assert_close(bias_free(slow, start, 0.9, 7), (share[:, None] * weights).sum(0) / share.sum())
