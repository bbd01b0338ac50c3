"""Generated from nbs/3_fusion/11_clip.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from vlp_course.checkpoints import TrainError
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Vocabulary
from vlp_course.lab import load_row
from vlp_course.nn.backbone import Backbone
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.train import Recipe
from vlp_course.train import fit
from vlp_course.models.clip import CLIP, build, same_captions


@pytest.fixture(scope="module")
def setup_100ee367():
    def slow_loss(image, text, scale, captions):
        """CLIP's loss question by question; equal captions are no wrong answers to each other."""
        total, count = 0.0, len(captions)
        for one, other in ((image, text), (text, image)):
            for i in range(count):
                wrong = [j for j in range(count) if j != i and captions[j] != captions[i]]
                scores = [scale * one[i] @ other[j] for j in [i, *wrong]]
                total = total + torch.logsumexp(torch.stack(scores), 0) - scores[0]
        return total / (2 * count)

    return slow_loss


@pytest.fixture(scope="module")
def setup_2138f578():
    def tiny(kind=CLIP, seed=0):
        """A CLIP of width 16 with the words of the training captions."""
        words = " ".join(SceneSet("train", 90).captions).split()
        torch.manual_seed(seed)
        vocabulary = Vocabulary(words)
        return kind(ImageEncoder(16, 2), TextEncoder(torch.randn(len(vocabulary), 16), 2, 1), vocabulary, 16)

    def tiny_batch(model, indices=(0, 1, 2, 6, 9), captions=None):
        """Scenes with random features and the model's word ids."""
        features = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
        batch = SceneSet("train", 90, features=features).batch(np.array(indices), model.tokenize)
        if captions:
            batch.caption, batch.text = captions, model.tokenize(captions)
        return batch

    def step_of(model, batch):
        """The loss of one forward pass."""
        return model(batch, step=0, generator=torch.Generator()).losses["itc"]

    return step_of, tiny, tiny_batch


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "5f30d80d")
def test_equals_the_slow_twin(setup_100ee367, setup_2138f578):
    slow_loss = setup_100ee367
    step_of, tiny, tiny_batch = setup_2138f578
    model = tiny()
    for captions in (None, ["a small cat", "a dog", "a small cat", "a big dog", "a dog"]):
        twin_batch = tiny_batch(model, captions=captions)
        image, text = model.encode_image(twin_batch).pooled, model.encode_text(twin_batch.text).pooled
        expected = slow_loss(image, text, model.logit_scale.exp(), twin_batch.caption)
        assert torch.allclose(step_of(model, twin_batch), expected, atol=1e-5)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "06323589")
def test_loss_by_hand(setup_2138f578):
    _, tiny, _ = setup_2138f578
    model = tiny()
    none_same = torch.eye(4, dtype=torch.bool)
    assert model.loss(torch.zeros(4, 4), none_same).item() == pytest.approx(math.log(4))  # knows nothing
    sure = 2 * torch.eye(4) - 1  # +1 right, -1 wrong
    assert model.loss(sure, none_same).item() == pytest.approx(math.log1p(3 * math.exp(-2 / 0.07)), abs=1e-6)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "23dfa867")
def test_pictures_and_captions_play_the_same_part(setup_2138f578):
    _, tiny, _ = setup_2138f578
    cosine, same = torch.rand(5, 5) * 2 - 1, torch.eye(5, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    model = tiny()
    order = torch.tensor([3, 0, 4, 1, 2])
    value = model.loss(cosine, same)
    assert torch.allclose(value, model.loss(cosine.T, same.T))  # towers exchanged
    assert torch.allclose(value, model.loss(cosine[order][:, order], same[order][:, order]))  # batch in another order


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "937a0c25")
def test_equal_captions_are_no_negatives(setup_2138f578):
    _, tiny, tiny_batch = setup_2138f578
    model = tiny()
    captions = ["a small cat", "a dog", "a small cat", "a big dog", "a bus"]
    same = same_captions(tiny_batch(model, captions=captions))
    assert same.nonzero().tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2], [3, 3], [4, 4]]
    cosine = torch.rand(5, 5)
    other = cosine.clone()
    other[0, 2] = other[2, 0] = -1
    assert torch.equal(model.loss(cosine, same), model.loss(other, same))  # the cell does not count ...
    other[0, 1] = -1
    assert not torch.equal(model.loss(cosine, same), model.loss(other, same))  # ... its neighbour does


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "2fb8eb68")
def test_gradient_reaches_both_towers_and_no_backbone(setup_2138f578):
    step_of, tiny, tiny_batch = setup_2138f578
    model = tiny()
    grad_batch = tiny_batch(model)
    step_of(model, grad_batch).backward()
    for name in ("image_encoder.", "text_encoder.", "image_project.", "text_project.", "logit_scale"):
        gradients = [p.grad for n, p in model.named_parameters() if n.startswith(name)]
        assert all(g is not None for g in gradients) and sum(g.abs().sum() for g in gradients) > 0, name
    assert grad_batch.features.grad_fn is None and not grad_batch.features.requires_grad
    assert not any(isinstance(module, Backbone) for module in model.modules())


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "d96dbe79")
def test_cosines_lie_between_minus_one_and_one(setup_2138f578):
    _, tiny, tiny_batch = setup_2138f578
    model = tiny()
    image, text = (
        model.encode_image(tiny_batch(model)),
        model.encode_text(model.tokenize(["a small cat", "a dog", "a big bus"])),
    )
    cosine = model.similarity(image, text)
    assert cosine.shape == (5, 3) and image.tokens.shape == (5, 16, 16) and text.tokens.shape[::2] == (3, 16)
    assert cosine.abs().max() <= 1 + 1e-6
    assert torch.allclose(image.pooled.norm(dim=1), torch.ones(5)) and torch.allclose(
        text.pooled.norm(dim=1), torch.ones(3)
    )


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "2b945890")
def test_cosines_and_loss_keep_32_bits_under_autocast(setup_2138f578):
    step_of, tiny, tiny_batch = setup_2138f578
    model, batch = tiny(), tiny_batch(tiny())
    with torch.autocast("cpu", torch.bfloat16):
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        loss = step_of(model, batch)
    assert image.pooled.dtype == text.pooled.dtype == loss.dtype == torch.float32
    assert torch.allclose(image.pooled.norm(dim=1), torch.ones(5), atol=1e-6)  # rounded to 8 bits they would not be
    cosine = image.pooled @ text.pooled.T
    assert torch.equal(loss, model.loss(cosine, same_captions(batch)))  # and no rounding afterwards
    assert torch.allclose(loss, step_of(model, batch), rtol=0.05)
    assert tiny().double().encode_text(batch.text).pooled.dtype == torch.float64


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "92dc9c9f")
def test_padding_changes_nothing(setup_2138f578):
    _, tiny, _ = setup_2138f578
    model = tiny().eval()
    short, long = (
        "a small cat on a white ground",
        "a big dog on the left and a small cat on the right of a white ground",
    )
    alone, together = model.encode_text(model.tokenize([short])), model.encode_text(model.tokenize([short, long]))
    assert together.mask[0].sum() == alone.mask[0].sum() < together.mask.shape[1]
    assert torch.allclose(alone.pooled[0], together.pooled[0], atol=1e-6)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "4cf06c47")
def test_temperature_is_limited_after_the_step_only(setup_2138f578):
    step_of, tiny, tiny_batch = setup_2138f578
    model = tiny()
    model.logit_scale.data.fill_(math.log(1000))
    before = checkpoint_sha(model)
    step_of(model, tiny_batch(model))
    assert checkpoint_sha(model) == before  # forward changes nothing
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(100)
    model.logit_scale.data.fill_(math.log(1 / 0.07))
    model.after_step({}, 1)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)  # below the limit it is free


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "f2f95d0a")
def test_loss_falls(setup_2138f578):
    _, tiny, _ = setup_2138f578
    features = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
    run = fit(
        tiny(), SceneSet("train", 90, features=features), Recipe(25, batch_size=30, lr=5e-3, warmup=5), progress=False
    )
    assert np.mean(run.losses["itc"][-5:]) < 0.5 * run.losses["itc"][0]


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "92172598")
def test_a_seed_fixes_the_model():
    model = build(seed=3)
    assert checkpoint_sha(model) == checkpoint_sha(build(seed=3)) != checkpoint_sha(build(seed=4))
    assert 1.0e6 < sum(p.numel() for p in model.parameters() if p.requires_grad) < 1.4e6
    with pytest.raises(ValueError, match="unknown size 'huge': models.clip has 'small'"):
        build("huge")


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "f9fefcb8")
def test_refuses_the_checkpoint_of_another_model(setup_2138f578):
    _, tiny, _ = setup_2138f578

    class Cousin(CLIP):
        pass

    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(TrainError, match="holds no checkpoint"):
            load_row("clip", Path(folder))
        features = np.zeros((90, WIDTH), np.float16)
        fit(tiny(Cousin), SceneSet("train", 90, features=features), Recipe(1, batch_size=6), folder, progress=False)
        with pytest.raises(TrainError, match="'model' is Cousin there and CLIP here"):
            load_row("clip", Path(folder))


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "2f880d4a")
def test_family_loss(setup_2138f578):
    _, tiny, _ = setup_2138f578

    def family_loss(families, k, scale):
        """Loss of a model that knows families, not members."""
        inside, outside = k * math.exp(scale), (families - 1) * k * math.exp(-scale)
        return math.log(inside + outside) - scale

    block = torch.block_diag(*[torch.ones(3, 3)] * 7) * 2 - 1
    expected = tiny().loss(block, torch.eye(21, dtype=torch.bool)).item()
    assert family_loss(7, 3, 1 / 0.07) == pytest.approx(expected, rel=1e-5)
    assert family_loss(21, 3, 50.0) == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "2f880d4a")
def test_family_loss_starter_fails(setup_2138f578):
    _, tiny, _ = setup_2138f578

    def family_loss(families, k, scale):
        """Loss of a model that knows families, not members."""
        return math.log(families * k)  # this one knows nothing at all

    with pytest.raises(Exception):
        block = torch.block_diag(*[torch.ones(3, 3)] * 7) * 2 - 1
        expected = tiny().loss(block, torch.eye(21, dtype=torch.bool)).item()
        assert family_loss(7, 3, 1 / 0.07) == pytest.approx(expected, rel=1e-5)
        assert family_loss(21, 3, 50.0) == pytest.approx(math.log(3), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "677efa2d")
def test_ensemble(setup_2138f578):
    _, tiny, _ = setup_2138f578

    def ensemble(model, things, templates):
        """One vector of length 1 for each thing: its sentences' mean. Shape (things, dim)."""
        each = [model.encode_text(model.tokenize([t.format(thing) for thing in things])).pooled for t in templates]
        return F.normalize(torch.stack(each).mean(0), dim=-1)

    model = tiny().eval()
    forms = ["a small {}", "a {} on a white ground"]
    got = ensemble(model, ["cat", "dog", "bus"], forms)
    one, two = (model.encode_text(model.tokenize([f.format("dog") for f in [form]])).pooled[0] for form in forms)
    assert torch.allclose(got.norm(dim=1), torch.ones(3)) and torch.allclose(
        got[1], F.normalize(one + two, dim=0), atol=1e-6
    )


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "677efa2d")
def test_ensemble_starter_fails(setup_2138f578):
    _, tiny, _ = setup_2138f578

    def ensemble(model, things, templates):
        """One vector of length 1 for each thing: its sentences' mean. Shape (things, dim)."""
        return model.encode_text(model.tokenize([templates[0].format(t) for t in things])).pooled

    with pytest.raises(Exception):
        model = tiny().eval()
        forms = ["a small {}", "a {} on a white ground"]
        got = ensemble(model, ["cat", "dog", "bus"], forms)
        one, two = (model.encode_text(model.tokenize([f.format("dog") for f in [form]])).pooled[0] for form in forms)
        assert torch.allclose(got.norm(dim=1), torch.ones(3)) and torch.allclose(
            got[1], F.normalize(one + two, dim=0), atol=1e-6
        )


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "485d10ac")
def test_scale_gradient():
    def scale_gradient(cosines, s):
        """d loss / d s of one question; the right answer comes first."""
        p = (math.exp(s) * cosines).softmax(0)
        return math.exp(s) * ((p * cosines).sum() - cosines[0])  # negative while the right one beats the mean: s grows

    cosines, s = torch.tensor([0.6, 0.1, -0.4, 0.55]), torch.tensor(1.3, requires_grad=True)
    loss = -(s.exp() * cosines).log_softmax(0)[0]
    loss.backward()
    assert scale_gradient(cosines, 1.3).item() == pytest.approx(s.grad.item(), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "485d10ac")
def test_scale_gradient_starter_fails():
    def scale_gradient(cosines, s):
        """d loss / d s of one question; the right answer comes first."""
        return -cosines[0]

    with pytest.raises(Exception):
        cosines, s = torch.tensor([0.6, 0.1, -0.4, 0.55]), torch.tensor(1.3, requires_grad=True)
        loss = -(s.exp() * cosines).log_softmax(0)[0]
        loss.backward()
        assert scale_gradient(cosines, 1.3).item() == pytest.approx(s.grad.item(), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "abc7d673")
def test_two_orders():
    def two_orders(a, b):
        """Canonical (true, false) and reversed (true, false) sentences of a scene with a left of b."""
        return (f"{a} to the left of {b}", f"{b} to the left of {a}"), (
            f"{b} to the right of {a}",
            f"{a} to the right of {b}",
        )

    (left_true, left_false), (right_true, right_false) = two_orders("a cat", "a dog")
    assert (left_true, left_false) == ("a cat to the left of a dog", "a dog to the left of a cat")
    assert (right_true, right_false) == ("a dog to the right of a cat", "a cat to the right of a dog")


@pytest.mark.nb("nbs/3_fusion/11_clip.ipynb", "abc7d673")
def test_two_orders_starter_fails():
    def two_orders(a, b):
        """Canonical (true, false) and reversed (true, false) sentences of a scene with a left of b."""
        return (f"{a} to the left of {b}", f"{b} to the left of {a}"), (
            f"{a} to the right of {b}",
            f"{b} to the right of {a}",
        )

    with pytest.raises(Exception):
        (left_true, left_false), (right_true, right_false) = two_orders("a cat", "a dog")
        assert (left_true, left_false) == ("a cat to the left of a dog", "a dog to the left of a cat")
        assert (right_true, right_false) == ("a dog to the right of a cat", "a cat to the right of a dog")
