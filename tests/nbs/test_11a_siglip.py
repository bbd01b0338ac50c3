"""Generated from nbs/3_fusion/11a_siglip.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import torch
from torch import nn
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Vocabulary
from vlp_course.lab import build_model
from vlp_course.models.clip import CLIP
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.objectives import siglip_loss
from vlp_course.train import Recipe
from vlp_course.train import fit
from vlp_course.models.siglip import SigLIP, build


@pytest.fixture(scope="module")
def setup_a593ff1c():
    def slow_sigmoid(cosine, scale, bias, same):
        """Slip by slip."""
        total = 0.0
        for i, j in np.ndindex(*cosine.shape):
            if i == j:
                total += math.log1p(math.exp(-(scale * cosine[i][j] + bias)))
            elif not same[i][j]:
                total += math.log1p(math.exp(scale * cosine[i][j] + bias))
        return total / len(cosine)

    return slow_sigmoid


@pytest.fixture(scope="module")
def setup_251e505a():
    def tiny(seed=0):
        """A SigLIP of width 16 with the words of some training captions."""
        vocabulary = Vocabulary(" ".join(SceneSet("train", 90).captions).split())
        torch.manual_seed(seed)
        return SigLIP(ImageEncoder(16, 2), TextEncoder(torch.randn(len(vocabulary), 16), 2, 1), vocabulary, 16)

    made_up = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
    return made_up, tiny


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "3c42310a")
def test_equals_the_slow_twin(setup_a593ff1c, setup_251e505a):
    slow_sigmoid = setup_a593ff1c
    _, tiny = setup_251e505a
    model, cosine = tiny(), torch.rand(5, 5) * 2 - 1
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    assert model.loss(cosine, same).item() == pytest.approx(slow_sigmoid(cosine.double(), 10, -10, same), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "a2c6598f")
def test_first_loss_by_hand(setup_251e505a):
    _, tiny = setup_251e505a
    model, apart = tiny(), torch.eye(63, dtype=torch.bool)
    assert model.loss(torch.zeros(63, 63), apart).item() == pytest.approx(
        math.log1p(math.exp(10)) + 62 * math.log1p(math.exp(-10)), rel=1e-5
    )
    model.logit_bias.data.zero_()
    assert model.loss(torch.zeros(63, 63), apart).item() == pytest.approx(63 * math.log(2), rel=1e-5)


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "d56fb4bc")
def test_a_pair_is_judged_on_its_own(setup_251e505a):
    _, tiny = setup_251e505a
    model, cosine, alone = tiny(), torch.rand(4, 4), torch.eye(4, dtype=torch.bool)
    for kind, coupled in ((model, False), (CLIP(*[nn.Identity()] * 2, model.vocabulary, 16), True)):
        slopes = []
        for rival in (-1.0, 1.0):
            cells = cosine.clone()
            cells[0, 2] = rival
            cells.requires_grad_(True)
            kind.loss(cells, alone).backward()
            slopes.append(cells.grad[0, 1].item())
        assert (abs(slopes[0] - slopes[1]) > 1e-6) == coupled  # softmax: a rival changes the others' gradient


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "71b577b4")
def test_towers_exchanged_and_equal_captions(setup_251e505a):
    _, tiny = setup_251e505a
    model, cosine, same = tiny(), torch.rand(5, 5), torch.eye(5, dtype=torch.bool)
    same[1, 4] = same[4, 1] = True
    assert torch.allclose(model.loss(cosine, same), model.loss(cosine.T, same.T))
    other = cosine.clone()
    other[1, 4] = -1
    assert torch.equal(model.loss(cosine, same), model.loss(other, same))


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "14fea410")
def test_gradient_reaches_everything_and_the_scale_is_limited(setup_251e505a):
    made_up, tiny = setup_251e505a
    model = tiny()
    batch = SceneSet("train", 90, features=made_up).batch(np.array([0, 1, 2, 6, 9]), model.tokenize)
    out = model(batch, step=0, generator=torch.Generator())
    out.losses["itc"].backward()
    for name in ("image_encoder.", "text_encoder.", "logit_scale", "logit_bias"):
        assert sum(p.grad.abs().sum() for n, p in model.named_parameters() if n.startswith(name)) > 0, name
    model.logit_scale.data.fill_(9.0)
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(100) and model.logit_bias.item() == -10


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "19893bab")
def test_loss_falls(setup_251e505a):
    made_up, tiny = setup_251e505a
    run = fit(
        tiny(), SceneSet("train", 90, features=made_up), Recipe(25, batch_size=30, lr=5e-3, warmup=5), progress=False
    )
    assert np.mean(run.losses["itc"][-5:]) < 0.6 * run.losses["itc"][0]


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "aa2ac8b1")
def test_same_towers_as_clip():
    a, b = build(seed=2).state_dict(), build_model("clip:build", 2).state_dict()
    assert set(a) - set(b) == {"logit_bias"} and all(torch.equal(a[k], b[k]) for k in b if k != "logit_scale")
    with pytest.raises(ValueError, match="unknown size 'huge': models.siglip has 'small'"):
        build("huge")


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "73378462")
def test_best_bias():
    def best_bias(batch):
        """The bias at which knowing nothing costs least: sigmoid(bias) is the share of right pairs, 1 / batch."""
        return -math.log(batch - 1)

    for size in (5, 63):
        biases = torch.linspace(-8, 2, 2001)
        costs = [siglip_loss(torch.full((size, size), float(b))).item() for b in biases]
        assert best_bias(size) == pytest.approx(biases[int(np.argmin(costs))].item(), abs=6e-3)


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "73378462")
def test_best_bias_starter_fails():
    def best_bias(batch):
        """The bias at which knowing nothing costs least."""
        return -10.0

    with pytest.raises(Exception):
        for size in (5, 63):
            biases = torch.linspace(-8, 2, 2001)
            costs = [siglip_loss(torch.full((size, size), float(b))).item() for b in biases]
            assert best_bias(size) == pytest.approx(biases[int(np.argmin(costs))].item(), abs=6e-3)


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "6cf2d308")
def test_in_blocks():
    def in_blocks(image, text, scale, bias, size):
        """The sigmoid loss, a few captions at a time."""
        total = 0.0
        for start in range(0, len(text), size):
            logits = scale * image @ text[start : start + size].T + bias  # B, size
            right = torch.arange(len(image))[:, None] == start + torch.arange(logits.shape[1])[None]
            total = total - nn.functional.logsigmoid(torch.where(right, logits, -logits)).sum()
        return total / len(image)

    image, text = nn.functional.normalize(torch.randn(7, 3), dim=1), nn.functional.normalize(torch.randn(7, 3), dim=1)
    whole = siglip_loss(10 * image @ text.T - 10)
    assert all(torch.allclose(in_blocks(image, text, 10, -10, size), whole, rtol=1e-5) for size in (1, 2, 3, 7))


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "6cf2d308")
def test_in_blocks_starter_fails():
    def in_blocks(image, text, scale, bias, size):
        """The sigmoid loss, a few captions at a time."""
        return sum(
            siglip_loss(scale * image[i : i + size] @ text[i : i + size].T + bias) for i in range(0, len(text), size)
        )

    with pytest.raises(Exception):
        image, text = (
            nn.functional.normalize(torch.randn(7, 3), dim=1),
            nn.functional.normalize(torch.randn(7, 3), dim=1),
        )
        whole = siglip_loss(10 * image @ text.T - 10)
        assert all(torch.allclose(in_blocks(image, text, 10, -10, size), whole, rtol=1e-5) for size in (1, 2, 3, 7))


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "43ee6535")
def test_at_even_odds():
    def at_even_odds(logit, batch):
        """Probability of a match when half of all pairs match: the prior's log odds, -log(batch - 1), are taken off."""
        return torch.sigmoid(logit + math.log(batch - 1))

    assert at_even_odds(torch.tensor(-math.log(62)), 63).item() == pytest.approx(0.5)  # no evidence: a coin
    assert at_even_odds(torch.tensor(0.0), 2).item() == pytest.approx(0.5)


@pytest.mark.nb("nbs/3_fusion/11a_siglip.ipynb", "43ee6535")
def test_at_even_odds_starter_fails():
    def at_even_odds(logit, batch):
        """Probability of a match when half of all pairs match."""
        return torch.sigmoid(logit)

    with pytest.raises(Exception):
        assert at_even_odds(torch.tensor(-math.log(62)), 63).item() == pytest.approx(0.5)  # no evidence: a coin
        assert at_even_odds(torch.tensor(0.0), 2).item() == pytest.approx(0.5)
