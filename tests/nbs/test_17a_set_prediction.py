"""Generated from nbs/4_pretraining/17a_set_prediction.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import itertools
import pytest
import torch
import torch.distributed as dist
from torch import nn
from unittest.mock import patch
from vlp_course.data.objects import corners
from vlp_course.nn.set_prediction import (
    SlotHeads,
    Slots,
    detections,
    giou,
    layered_losses,
    match,
    padded,
    pair_costs,
    set_losses,
)


@pytest.fixture(scope="module")
def setup_8e1205b1():
    def guess(batch=3, slots=5, kinds=7, colours=4, seed=0):
        """Random slots in float64; boxes well inside."""
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
        return Slots(2 * draw(batch, slots, kinds), draw(batch, slots, colours), draw(batch, slots, 4).sigmoid())

    def truth(counts=(2, 0, 4), kinds=7, colours=4, seed=1):
        """Random objects in float64: about half of them without a colour."""
        g = torch.Generator().manual_seed(seed)
        objects = []
        for n in counts:
            size = 0.1 + 0.3 * torch.rand(n, 2, generator=g, dtype=torch.float64)
            centre = size / 2 + (1 - size) * torch.rand(n, 2, generator=g, dtype=torch.float64)
            objects.append(
                {
                    "boxes": torch.cat([centre, size], 1),
                    "labels": torch.randint(kinds - 1, (n,), generator=g),
                    "colours": torch.randint(-1, colours, (n,), generator=g),
                }
            )
        return objects

    def slow_match(found, objects):
        """All ways to give each object a slot of its own; the cheapest, one pair at a time."""
        best = []
        for i, one in enumerate(objects):

            def price(slot, n):
                a, b = found.boxes[i, slot].tolist(), one["boxes"][n].tolist()
                p = found.classes[i, slot].softmax(0)[one["labels"][n]].item()
                (ax, ay, aw, ah), (bx, by, bw, bh) = a, b
                wide = max(0, min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2))
                high = max(0, min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2))
                hull = (max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)) * (
                    max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
                )
                union = aw * ah + bw * bh - wide * high
                return (
                    -p + 5 * sum(abs(x - y) for x, y in zip(a, b)) - 2 * (wide * high / union - (hull - union) / hull)
                )

            ways = itertools.permutations(range(found.boxes.shape[1]), len(one["labels"]))
            best.append(min(ways, key=lambda way: sum(price(slot, n) for n, slot in enumerate(way))))
        return best

    return guess, slow_match, truth


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "9e382a71")
def test_matching_by_hand():
    boxes = torch.tensor([[[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]]])
    found = Slots(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), boxes)
    objects = [{"boxes": boxes[0, [1, 0]], "labels": torch.tensor([2, 0]), "colours": torch.tensor([1, -1])}]
    assert match(found, padded(objects)).tolist() == [[1, 0]]
    losses = set_losses(found, padded(objects))
    assert losses["l1"] == 0 and abs(losses["giou"]) < 1e-6  # exact boxes
    torch.testing.assert_close(losses["class"], torch.tensor(4.0).log())  # all alike: ln 4 whatever the weights
    torch.testing.assert_close(losses["colour"], torch.tensor(2.0).log())  # one colour is known


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "1c16fc32")
def test_matching_equals_all_ways(setup_8e1205b1):
    guess, slow_match, truth = setup_8e1205b1
    for seed in range(12):
        found, objects = guess(seed=seed), truth((2, 0, 4), seed=seed + 50)
        fast = match(found, padded(objects))
        assert [tuple(row[: len(o["labels"])].tolist()) for row, o in zip(fast, objects)] == slow_match(found, objects)
        assert (fast[~padded(objects).real] == -1).all()


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "22436fe4")
def test_overlap_by_hand_and_against_torchvision(setup_8e1205b1):
    guess, _, _ = setup_8e1205b1
    from torchvision.ops import generalized_box_iou

    one = lambda *box: torch.tensor(box, dtype=torch.float64)
    assert giou(one(0.5, 0.5, 0.2, 0.4), one(0.5, 0.5, 0.2, 0.4)) == 1
    assert giou(one(0.1, 0.5, 0.2, 1), one(0.9, 0.5, 0.2, 1)) == pytest.approx(
        -0.6
    )  # apart: minus the gap's share of the hull
    a, b = guess().boxes[0], guess(slots=3, seed=4).boxes[0]
    torch.testing.assert_close(giou(a[:, None], b[None]), generalized_box_iou(corners(a), corners(b)))


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "366d5c6b")
def test_matcher_and_losses_equal_transformers(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    theirs = ImageLoss(matcher, num_classes=6, eos_coef=0.1, losses=["labels", "boxes"]).double()
    for seed in range(5):
        layers, objects = [guess(seed=seed), guess(seed=seed + 10)], truth((2, 0, 4), seed=seed + 20)
        for slots in layers:
            slots.classes.requires_grad_(True), slots.boxes.requires_grad_(True)
        named = [{"logits": s.classes, "pred_boxes": s.boxes} for s in layers]
        targets = [{"class_labels": o["labels"], "boxes": o["boxes"]} for o in objects]
        true = padded(objects)
        for row, (slot, thing) in zip(match(layers[1], true), matcher(named[1], targets)):
            assert torch.equal(row[thing], slot)
        reference = theirs(named[1] | {"auxiliary_outputs": named[:1]}, targets)
        mine = layered_losses(layers, true)
        torch.testing.assert_close(mine["class"], reference["loss_ce"] + reference["loss_ce_0"])
        torch.testing.assert_close(mine["l1"], 5 * (reference["loss_bbox"] + reference["loss_bbox_0"]))
        torch.testing.assert_close(mine["giou"], 2 * (reference["loss_giou"] + reference["loss_giou_0"]))
        inputs = [t for s in layers for t in (s.classes, s.boxes)]
        grads = torch.autograd.grad(mine["class"] + mine["l1"] + mine["giou"], inputs)
        other = torch.autograd.grad(
            sum(
                w * reference[k + end]
                for k, w in (("loss_ce", 1), ("loss_bbox", 5), ("loss_giou", 2))
                for end in ("", "_0")
            ),
            inputs,
        )
        for g, o in zip(grads, other):
            torch.testing.assert_close(g, o)


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "1a580ef8")
def test_order_does_not_matter(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    found, objects = guess(), truth()
    turned = [{k: v.flip(0) for k, v in one.items()} for one in objects]
    other = Slots(*(x[:, torch.tensor([3, 0, 4, 1, 2])] for x in found))
    for name, value in set_losses(found, padded(objects)).items():
        torch.testing.assert_close(value, set_losses(found, padded(turned))[name])
        torch.testing.assert_close(value, set_losses(other, padded(objects))[name])


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "b47141f3")
def test_unknown_colours_teach_nothing(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    found, objects = guess(), truth()
    found.colours.requires_grad_(True)
    nobody = [one | {"colours": torch.full_like(one["colours"], -1)} for one in objects]
    (gradient,) = torch.autograd.grad(set_losses(found, padded(nobody))["colour"], found.colours)
    assert gradient.abs().sum() == 0
    one = [objects[0] | {"colours": torch.tensor([2, -1])}, *nobody[1:]]
    (gradient,) = torch.autograd.grad(set_losses(found, padded(one))["colour"], found.colours)
    slot = match(found, padded(one))[0, 0]
    assert gradient[0, slot].abs().sum() > 0 and gradient.abs().sum() == gradient[0, slot].abs().sum()


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "6a568762")
def test_gradients_by_slot(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    found, objects = guess(), truth()
    for x in found:
        x.requires_grad_(True)
    losses, slot = set_losses(found, padded(objects)), match(found, padded(objects))
    taken = torch.zeros(3, 5, dtype=torch.bool)
    for i, row in enumerate(slot):
        taken[i, row[row >= 0]] = True
    (boxes,) = torch.autograd.grad(losses["l1"] + losses["giou"], found.boxes, retain_graph=True)
    (classes,) = torch.autograd.grad(losses["class"], found.classes)
    assert torch.equal(boxes.abs().sum(-1) > 0, taken) and (classes.abs().sum(-1) > 0).all() and taken.sum() == 6


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "3efeff11")
def test_counts_are_shared_by_processes(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    found, objects = guess(batch=2), truth((1, 4))
    whole = set_losses(found, padded(objects))
    halves = []
    for i in range(2):
        add = lambda count, i=i: count.add_(len(objects[1 - i]["labels"]))  # what the other process brings
        with (
            patch.object(dist, "is_initialized", lambda: True),
            patch.object(dist, "get_world_size", lambda: 2),
            patch.object(dist, "all_reduce", add),
        ):
            halves.append(set_losses(Slots(*(x[i : i + 1] for x in found)), padded(objects[i : i + 1])))
    for name in ("l1", "giou"):  # processes' gradients are averaged
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, whole[name])


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "0f5fa153")
def test_wrong_inputs(setup_8e1205b1):
    guess, _, truth = setup_8e1205b1
    with pytest.raises(ValueError, match="a picture with 6 objects: this decoder has 5 slots"):
        match(guess(), padded(truth((2, 6, 1))))
    with pytest.raises(
        ValueError, match="picture 1: boxes .* must lie inside 0..1, as cx, cy, w, h with w and h above 0"
    ):
        padded([truth((1,))[0], truth((1,))[0] | {"boxes": torch.tensor([[0.1, 0.5, 0.4, 0.2]])}])
    empty = set_losses(guess(), padded(truth((0, 0, 0))))  # pictures of nothing
    assert empty["l1"] == empty["giou"] == empty["colour"] == 0 and empty["class"] > 0
    broken = guess()
    broken.boxes[0, 0, 0] = torch.nan
    assert (match(broken, padded(truth()))[0] != 0).all()  # matched last, here not at all


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "b3b7ab85")
def test_heads_and_detections():
    torch.manual_seed(0)
    heads = SlotHeads(12, 5, nn.Linear(12, 7), nn.Linear(12, 4))
    found = heads(torch.randn(2, 5, 12))
    assert found.classes.shape == (2, 5, 7) and found.colours.shape == (2, 5, 4) and found.boxes.shape == (2, 5, 4)
    one = detections(found)[1]
    p = found.classes[1].softmax(-1)[:, :6]
    assert (
        torch.equal(one["labels"], p.argmax(-1))
        and torch.equal(one["scores"], p.amax(-1))
        and len(detections(found)) == 2
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert heads(torch.randn(2, 5, 12)).boxes.dtype == torch.float32


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "16948340")
def test_greedy_is_not_enough(setup_8e1205b1):
    _, slow_match, _ = setup_8e1205b1
    boxes = torch.tensor([[[0.10, 0.62, 0.18, 0.18], [0.44, 0.50, 0.18, 0.18], [0.86, 0.28, 0.18, 0.18]]])
    objects = padded(
        [
            {
                "boxes": torch.tensor([[0.30, 0.50, 0.18, 0.18], [0.58, 0.50, 0.18, 0.18]]),
                "labels": torch.tensor([0, 0]),
                "colours": torch.tensor([-1, -1]),
            }
        ]
    )
    found = Slots(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), boxes)
    cost = pair_costs(found, objects)[0]
    assert cost.argmin(0).tolist() == [1, 1] and match(found, objects).tolist() == [
        [0, 1]
    ]  # two objects, one slot; or a slot each
    assert slow_match(found, [{"boxes": objects.boxes[0], "labels": objects.labels[0]}]) == [(0, 1)]


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "e1ebc93f")
def test_empty_share():
    def empty_share(slots, objects, weight):
        empty = weight * (slots - objects)
        return empty / (empty + objects)

    p = torch.linspace(0.001, 0.999, 9999)
    best = p[(0.1 * 18 * -p.log() + 2 * -(1 - p).log()).argmin()]
    assert abs(empty_share(20, 2, 0.1) - float(best)) < 1e-3 and empty_share(20, 2, 1) == 0.9


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "e1ebc93f")
def test_empty_share_starter_fails():
    def empty_share(slots, objects, weight):
        return (slots - objects) / slots

    with pytest.raises(Exception):
        p = torch.linspace(0.001, 0.999, 9999)
        best = p[(0.1 * 18 * -p.log() + 2 * -(1 - p).log()).argmin()]
        assert abs(empty_share(20, 2, 0.1) - float(best)) < 1e-3 and empty_share(20, 2, 1) == 0.9


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "27adcc52")
def test_class_weights():
    def class_weights(counts, nothing):
        weight = 1 / counts.clamp(min=1).float()
        return torch.cat([weight / weight.mean(), torch.tensor([nothing])])

    found = class_weights(torch.tensor([10, 40, 0]), 0.1)
    assert (
        found[0] == pytest.approx(4 * float(found[1]))
        and found[:3].mean() == pytest.approx(1)
        and found[3] == pytest.approx(0.1)
    )


@pytest.mark.nb("nbs/4_pretraining/17a_set_prediction.ipynb", "27adcc52")
def test_class_weights_starter_fails():
    def class_weights(counts, nothing):
        return torch.cat([torch.ones(len(counts)), torch.tensor([nothing])])

    with pytest.raises(Exception):
        found = class_weights(torch.tensor([10, 40, 0]), 0.1)
        assert (
            found[0] == pytest.approx(4 * float(found[1]))
            and found[:3].mean() == pytest.approx(1)
            and found[3] == pytest.approx(0.1)
        )
