"""Generated from nbs/5_prompting/27_actionclip.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import math
import pytest
import torch
import torch.nn.functional as F
from vlp_course.data.clip_sets import Clips
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import CLIP
from vlp_course.models.frames import Frames
from vlp_course.models.frames import Transf
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.models.actionclip import ActionCLIP, ENSEMBLES, TEMPLATES, action_loss, ensemble


@pytest.fixture(scope="module")
def setup_9b0dec31():
    def toy(dim=16, seed=0):
        """A small CLIP whose words are those of the templates and of four actions."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary(
            " ".join([*TEMPLATES, "moving left right growing big small"]).replace("{}", " ").split()
        )
        return CLIP(ImageEncoder(dim, 2), TextEncoder(torch.randn(len(vocabulary), dim), 2), vocabulary, dim)

    return toy


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "30bb22ef")
def test_loss_by_hand_and_by_loops():
    g = torch.Generator().manual_seed(0)
    logits, labels = 3 * torch.randn(5, 5, generator=g, dtype=torch.double), [0, 1, 0, 2, 1]
    same = torch.tensor([[a == b for b in labels] for a in labels])
    loops = 0.0
    for matrix in (logits, logits.T):
        for i in range(5):
            target, said = (
                [math.exp(10.0 * (labels[j] == labels[i])) for j in range(5)],
                [math.exp(float(x)) for x in matrix[i]],
            )
            loops += (
                sum(q / sum(target) * math.log(q / sum(target) / (p / sum(said))) for q, p in zip(target, said)) / 10
            )
    assert action_loss(logits, same).item() == pytest.approx(loops)
    assert action_loss((10.0 * same).double(), same).item() == pytest.approx(0, abs=1e-12)  # the target itself
    assert (10 * F.one_hot(torch.tensor(0), 128).double()).softmax(0)[0].item() == pytest.approx(0.994, abs=5e-4)
    assert len(set(TEMPLATES)) == 16 and all(t.count("{}") == 1 for t in TEMPLATES)
    with pytest.raises(ValueError, match="row 1 has no right sentence"):
        action_loss(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "269debee")
def test_three_ensembles():
    g = torch.Generator().manual_seed(5)
    video, prompts = (
        F.normalize(torch.randn(4, 6, generator=g), dim=1),
        F.normalize(torch.randn(3, 5, 6, generator=g), dim=2),
    )
    found = {how: ensemble(video, prompts, 20.0, how) for how in ENSEMBLES}
    slow = torch.stack(
        [torch.stack([(20.0 * video[b] @ prompts[:, t].T).softmax(0) for t in range(5)]).mean(0) for b in range(4)]
    )
    torch.testing.assert_close(found["probability"].exp(), slow)
    assert all(torch.allclose(x.exp().sum(1), torch.ones(4), atol=1e-5) for x in found.values())
    assert not torch.allclose(found["probability"], found["similarity"], atol=1e-2) and not torch.allclose(
        found["embedding"], found["similarity"], atol=1e-2
    )
    one = [ensemble(video, prompts[:, :1], 20.0, how) for how in ENSEMBLES]
    assert all(torch.allclose(one[0], x, atol=1e-5) for x in one)  # with one template they are one thing
    with pytest.raises(ValueError, match="unknown ensemble 'vote': choose one of probability, embedding, similarity"):
        ensemble(video, prompts, 1.0, "vote")


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "665b8888")
def test_both_towers_learn_and_the_base_stays(setup_9b0dec31):
    toy = setup_9b0dec31
    clip = toy()
    kept = copy.deepcopy(clip.state_dict())
    names = ("moving left", "moving right", "growing big", "growing small")
    model = ActionCLIP(clip, Frames(clip.image_encoder, Transf(16, 2, 1, 5)), names)
    g = torch.Generator().manual_seed(6)
    features, action = torch.randn(6, 5, 12288, generator=g), torch.tensor([0, 1, 2, 3, 0, 1])
    batch = Clips(features, [""] * 6, None, action, torch.arange(6), [""] * 6)
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for step in range(40):
        loss = model(batch, step=step, generator=g).losses["action"]
        optimiser.zero_grad(), loss.backward(), optimiser.step(), model.after_step({}, step)
        losses.append(loss.item())
    assert (
        losses[-1] < losses[0] / 4
        and model.text_encoder.embed.weight.grad.abs().sum() > 0
        and model.video.tower.project.weight.grad.abs().sum() > 0
    )
    assert all(torch.equal(p, kept[n]) for n, p in clip.state_dict().items())
    with torch.no_grad():
        assert (
            ensemble(model.encode_video(features), model.prompts(names), model.logit_scale.exp().item()).argmax(1)
            == action
        ).all()
    model.logit_scale.data.fill_(9.0)
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "a82c3acd")
def test_floor():
    def floor(motions):
        return 0.5, math.log(2)

    p = torch.tensor([0.5, 0.5] + [1e-12] * 16)
    assert floor(9)[0] == 0.5 and floor(9)[1] == pytest.approx(float(-p.log()[0]), rel=1e-4)


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "a82c3acd")
def test_floor_starter_fails():
    def floor(motions):
        return 1 / motions, math.log(motions)

    with pytest.raises(Exception):
        p = torch.tensor([0.5, 0.5] + [1e-12] * 16)
        assert floor(9)[0] == 0.5 and floor(9)[1] == pytest.approx(float(-p.log()[0]), rel=1e-4)


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "48356bc8")
def test_single_positive():
    def single_positive(logits):
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = (10.0 * same).double()
    assert action_loss(logits, same).item() == pytest.approx(0, abs=1e-12) and single_positive(
        logits
    ).item() == pytest.approx(2 * math.log(2) / 3, abs=1e-3)


@pytest.mark.nb("nbs/5_prompting/27_actionclip.ipynb", "48356bc8")
def test_single_positive_starter_fails():
    def single_positive(logits):
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    with pytest.raises(Exception):
        same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
        logits = (10.0 * same).double()
        assert action_loss(logits, same).item() == pytest.approx(0, abs=1e-12) and single_positive(
            logits
        ).item() == pytest.approx(2 * math.log(2) / 3, abs=1e-3)
