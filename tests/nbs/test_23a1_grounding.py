"""Generated from nbs/5_prompting/23a1_grounding.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vlp_course.data.grammar import COLOURS
from vlp_course.data.pairs import Vocabulary
from vlp_course.data.referring import KINDS
from vlp_course.data.referring import propose
from vlp_course.models.fusion import OneTower
from vlp_course.nn.backbone import Backbone
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.prompts.cpt import CPT
from vlp_course.prompts.cpt import Cue
from vlp_course.prompts.cpt import Regions
from vlp_course.prompts.cpt import TEMPLATES
from vlp_course.prompts.cpt import paint
from vlp_course.prompts.cpt import see
from vlp_course.prompts.grounding import (
    Head,
    LookingHead,
    cells,
    choice_loss,
    features,
    fit,
    hits,
    items,
    regions,
    rows,
)


@pytest.fixture(scope="module")
def setup_a8201e34():
    def toy(dim=16, seed=0):
        """A small single stream in float64."""
        vocabulary = Vocabulary(
            "a an small big red blue pink zero owl star circle on the left of above in top white ground one".split()
        )
        torch.manual_seed(seed)
        return (
            OneTower(
                ImageEncoder(dim),
                TextEncoder(torch.randn(len(vocabulary), dim)),
                MergedEncoder(dim, 2),
                vocabulary,
                len(vocabulary),
                dim,
            )
            .double()
            .eval()
        )

    def toy_regions(count=4, boxes=5, seed=0):
        g = torch.Generator().manual_seed(seed)
        right = torch.zeros(count, boxes, dtype=torch.bool)
        right[torch.arange(count), torch.randint(boxes, (count,), generator=g)] = True
        draw = lambda *shape: torch.rand(*shape, generator=g).double()
        low = 80 * draw(count, boxes, 2)
        texts = ["a small owl", "a big star left of a small owl", "a circle", "an owl on the left"][:count]
        return Regions(
            texts,
            ["noun", "relation", "noun", "side"][:count],
            torch.cat([low, low + 10 + 36 * draw(count, boxes, 2)], -1),
            right,
            draw(count, 12288),
            draw(count, boxes, 12288),
        )

    return toy, toy_regions


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "fb5e3ff7")
def test_what_items_and_regions_hold():
    chosen = items("val", 5, 4)
    assert [i[1:] for i in chosen] == [i[1:] for i in items("val", 5, 6)[:4]]  # more shots keep the first
    assert all(len(i.scene.objects) > 1 and (i.text, i.number) in i.scene.referring for i in chosen)
    assert {i.kind for i in items("val", 5, 60)} == set(KINDS)
    net, cue = Backbone(False), Cue("red", COLOURS["red"], 0.5, TEMPLATES[0])
    found, item = regions(chosen[:2], cue, net), chosen[1]
    assert (
        found.boxes.shape == (2, 6, 4)
        and found.right.sum(1).tolist() == [1, 1]
        and found.painted.shape == (2, 6, 12288)
    )
    by_hand = features([paint(item.scene.image, propose(item.scene)[3], cue.rgb, 0.5)], net)[0]
    torch.testing.assert_close(found.painted[1, 3], by_hand, atol=1e-4, rtol=1e-4)
    assert (
        regions(chosen[:1], cue._replace(alpha=0), net).painted[0] - found.plain[0]
    ).abs().max() < 1e-4  # opacity 0: the plain picture
    assert rows(found, [1]).texts == found.texts[1:] and torch.equal(rows(found, [1, 0]).boxes[1], found.boxes[0])


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "79d43a7f")
def test_cells_by_hand():
    boxes = torch.tensor([[[0.0, 0.0, 32.0, 32.0], [16.0, 32.0, 48.0, 64.0], [0.0, 0.0, 128.0, 128.0]]])
    found = cells(boxes)[0]
    assert found[0].tolist() == [1.0] + [0.0] * 15 and found[1, 4:6].tolist() == [0.5, 0.5]
    torch.testing.assert_close(found[2], torch.full((16,), 1 / 16))
    box = torch.tensor([[[10.0, 50.0, 77.0, 101.0]]])
    painted = torch.zeros(128, 128)
    painted[50:101, 10:77] = 1  # the slow way: count pixels
    torch.testing.assert_close(
        cells(box)[0, 0], painted.unflatten(0, (4, 32)).unflatten(2, (4, 32)).sum((1, 3)).flatten() / painted.sum()
    )


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "85dd61c3")
def test_heads_one_region_at_a_time(setup_a8201e34):
    toy, toy_regions = setup_a8201e34
    for kind in (Head, LookingHead):
        learner, some = kind(toy(), 16), toy_regions()
        found = learner(some)
        for k, text in enumerate(some.texts):  # slowly: one item, one box, no padding
            one = rows(some, [k])
            image, words = see(learner.model, one.plain), learner.model.encode_text(learner.model.tokenize([text]))
            for n in range(5):
                share = cells(one.boxes[:, n : n + 1])
                keep = share[0, 0] > 0.05
                cut = image._replace(
                    tokens=image.tokens[:, keep], mask=image.mask[:, keep]
                )  # cells left out, not masked
                state = learner.model.fuse(cut, words).pooled[0]
                if kind is LookingHead:
                    whole, region = (
                        learner.model.fuse(image, words).pooled[0],
                        sum(share[0, 0, c] * image.tokens[0, c] for c in range(16)),
                    )
                    state = torch.cat([state, whole, region, whole * region])
                torch.testing.assert_close(found[k, n], learner.score(torch.cat([state, one.boxes[0, n] / 128]))[0])


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "28987a0d")
def test_choice_by_hand():
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [np.log(3.0), 0.0, 0.0, 0.0]])
    right = torch.tensor([[True, False, False, False], [True, False, False, True]])
    assert choice_loss(scores, right).item() == pytest.approx((np.log(4) + np.log(6 / 4)) / 2)
    some = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    only = torch.eye(5, dtype=torch.bool)[[2, 0, 4]]
    assert choice_loss(some, only).item() == pytest.approx(
        F.cross_entropy(some, torch.tensor([2, 0, 4])).item(), rel=1e-5
    )


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "26cd7102")
def test_a_seed_is_a_start_and_painted_pictures_do_not_count(setup_a8201e34):
    toy, toy_regions = setup_a8201e34
    some = toy_regions()
    first, again, other = (Head(toy(), 16, seed)(some) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, Head(toy(), 16)(some._replace(painted=0 * some.painted)))
    torch.testing.assert_close(
        first[:, [3, 1, 0, 4, 2]], Head(toy(), 16)(some._replace(boxes=some.boxes[:, [3, 1, 0, 4, 2]]))
    )


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "8e754a5a")
def test_training_fits_and_leaves_word_vectors_alone(setup_a8201e34):
    toy, toy_regions = setup_a8201e34
    model, some = toy(), toy_regions()
    before = copy.deepcopy(model.state_dict())
    for learner in (CPT(model, Cue("red", (255, 0, 0), 0.5, TEMPLATES[4])), Head(model, 16), LookingHead(model, 16)):
        embed = learner.model.text_encoder.embed.weight
        assert fit(learner, some, 40, 3e-3) is learner and hits(learner, some, 3).all() and not learner.training
        after = learner.model.state_dict()
        assert (
            torch.equal(after["text_encoder.embed.weight"], before["text_encoder.embed.weight"])
            and not embed.requires_grad
        )
        assert not torch.equal(after["fusion.kind"], before["fusion.kind"])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # the given model is not touched


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "16a9487e")
def test_hits_by_hand(setup_a8201e34):
    _, toy_regions = setup_a8201e34

    class Fixed(nn.Module):
        def forward(self, regions):
            return regions.boxes[..., 0]  # scores by the left edge

    some = toy_regions()
    some.boxes[..., 0] = some.right.double()
    assert hits(Fixed(), some, 3).tolist() == [True] * 4
    some.boxes[..., 0] = 0  # a tie: the first box
    assert hits(Fixed(), some).tolist() == some.right[:, 0].tolist()


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "11b2e262")
def test_objectness():
    def objectness(counts):
        return float(np.mean([1 / n for n in counts]))

    assert objectness([2, 2, 2]) == 0.5 and objectness([1, 4]) == pytest.approx(0.625)


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "11b2e262")
def test_objectness_starter_fails():
    def objectness(counts):
        return 1 / np.mean(counts)

    with pytest.raises(Exception):
        assert objectness([2, 2, 2]) == 0.5 and objectness([1, 4]) == pytest.approx(0.625)


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "a7d0d7c0")
def test_each_loss():
    def each_loss(scores, right):
        return -((scores.log_softmax(1) * right).sum(1) / right.sum(1)).mean()

    scores, right = torch.zeros(2, 4), torch.tensor([[True, False, False, False], [True, True, False, False]])
    assert each_loss(scores, right).item() == pytest.approx(np.log(4))


@pytest.mark.nb("nbs/5_prompting/23a1_grounding.ipynb", "a7d0d7c0")
def test_each_loss_starter_fails():
    def each_loss(scores, right):
        return -(scores.log_softmax(1) * right).sum(1).mean()

    with pytest.raises(Exception):
        scores, right = torch.zeros(2, 4), torch.tensor([[True, False, False, False], [True, True, False, False]])
        assert each_loss(scores, right).item() == pytest.approx(np.log(4))
