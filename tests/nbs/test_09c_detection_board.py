"""Generated from nbs/2_transfer/09c_detection_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import tempfile
import torch
from inspect import unwrap
from pathlib import Path
from unittest.mock import patch
from vlp_course.data.scenes import SIDE
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.models.detection import Detector
from vlp_course.models.detection import check_targets
from vlp_course.nn.detection_vit import DetectionViT
from vlp_course.detection_board import (
    CLASSES,
    DetectionScenes,
    Row,
    SPLITS,
    average_precision,
    kept_vit,
    main,
    member,
    new_vit,
    picture_of,
    run_row,
    starting_vit,
)


@pytest.fixture(scope="module")
def setup_f041b092():
    def slow_ap(detections, objects, least):
        """AP at one overlap. detections: (score, picture, box), objects: (picture, box), all of one class."""

        def overlap(a, b):
            wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            both = max(wide, 0) * max(high, 0)
            return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

        found, right, points = set(), 0, []
        for k, (_, picture, box) in enumerate(sorted(detections, reverse=True), 1):
            open_ones = [(overlap(box, b), n) for n, (p, b) in enumerate(objects) if p == picture and n not in found]
            if open_ones and max(open_ones)[0] >= least:
                found.add(max(open_ones)[1])
                right += 1
            points.append((right / len(objects), right / k))
        return (
            sum(
                max((precision for recall, precision in points if recall >= j / 100 - 1e-9), default=0)
                for j in range(101)
            )
            / 101
        )

    def mask_of(code):
        """The mask that `picture_of` packed."""
        from faster_coco_eval.core.mask import decode

        return decode({"size": [SIDE, SIDE], "counts": code.encode()})

    def as_found(boxes, scores, labels):
        """Detections of one picture in the detector's form; the mask is the box."""
        masks = torch.zeros(len(boxes), 1, 128, 128)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes):
            mask[0, y0:y1, x0:x1] = 1
        return {
            "boxes": torch.tensor(boxes).float(),
            "scores": torch.tensor(scores),
            "labels": torch.tensor(labels),
            "masks": masks,
        }

    return as_found, mask_of, slow_ap


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "b3722fe8")
def test_scenes_and_targets():
    scenes = DetectionScenes("labelled", 40, seed=3)
    batch = scenes.batch([1, 38])
    assert batch.image.shape == (2, 3, 128, 128) and batch.image.min() >= 0 and batch.image.max() <= 1
    counts = set()
    for n in range(40):
        one = scenes.target(n)
        counts.add(len(one["labels"]))
        check_targets([torch.zeros(3, 128, 128)], [one], len(CLASSES) + 1)
        for (x0, y0, x1, y1), mask in zip(one["boxes"].int(), one["masks"]):
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum() > 100  # the box holds the mask ...
            assert (
                inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            )  # ... and is tight
        assert (one["masks"].sum(0) <= 1).all()  # sprites do not overlap
    assert counts == {1, 2, 3, 4}


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "f6e9b415")
def test_splits_are_apart_and_fixed():
    assert member("test", 2, 5) == member("test", 2, 5)
    made = {split: {str(member(split, seed, n)) for seed in (0, 1) for n in range(50)} for split in SPLITS}
    assert (
        all(len(v) == 100 for v in made.values())
        and not made["labelled"] & made["test"]
        and not made["pretraining"] & made["test"]
    )
    kinds = [member("labelled", 0, n).spec.kind for n in range(4)]
    assert kinds == ["horizontal", "vertical", "place", "count"]
    with pytest.raises(ValueError, match="unknown split 'train': choose one of labelled, pretraining, test"):
        member("train", 0, 0)


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "7f1f97c7")
def test_ap_by_hand(setup_f041b092):
    as_found, _, slow_ap = setup_f041b092
    objects = [[(10, 10, 50, 50), (60, 60, 100, 100)], [(20, 20, 70, 80)]]
    found = [
        as_found([(10, 10, 50, 50), (60, 10, 100, 50)], [0.9, 0.8], [2, 2]),
        as_found([(20, 20, 70, 60)], [0.7], [2]),
    ]
    targets = [
        {k: v for k, v in as_found(boxes, [1.0] * len(boxes), [2] * len(boxes)).items() if k != "scores"}
        for boxes in objects
    ]
    targets = [t | {"masks": t["masks"][:, 0].to(torch.uint8)} for t in targets]
    scores = average_precision(found, targets)
    listed = [(float(s), p, b) for p, one in enumerate(found) for s, b in zip(one["scores"], one["boxes"].tolist())]
    truth = [(p, b) for p, boxes in enumerate(objects) for b in boxes]
    each = [slow_ap(listed, truth, 0.5 + 0.05 * n) for n in range(10)]
    assert (
        scores["box/ap50"] == pytest.approx(each[0]) == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
    )  # right, wrong, right; one never found
    assert scores["box/ap"] == pytest.approx(np.mean(each)) and scores["mask/ap"] == pytest.approx(scores["box/ap"])


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "5e722c8c")
def test_perfect_and_empty():
    scenes = DetectionScenes("test", 12)
    targets = [scenes.target(n) for n in range(12)]
    right = [t | {"scores": torch.ones(len(t["labels"])), "masks": t["masks"][:, None].float()} for t in targets]
    assert set(average_precision(right, targets).values()) == {1.0}
    wrong = [t | {"labels": t["labels"] % 20 + 1} for t in right]  # perfect boxes, every class wrong
    nothing = [
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "scores": torch.zeros(0),
            "masks": torch.zeros(0, 1, 128, 128),
        }
    ] * 12
    assert set(average_precision(wrong, targets).values()) == set(average_precision(nothing, targets).values()) == {0.0}


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "1def3892")
def test_starts_share_all_but_weights():
    with torch.random.fork_rng():
        random, cost = starting_vit("random", 3)
        assert cost["steps"] == 0 and random.positions[1:].std() > 0.2
        for start, before in (("mae", "patch.project.weight"), ("clip", "layers.7.feed_forward.down.weight")):
            vit, cost = starting_vit(start, 3, steps=1, pictures=64)
            assert cost["steps"] == 1 and len(cost["losses"]) == 1 and cost["cpu_s"] > 0
            assert vit.state_dict().keys() == random.state_dict().keys()
            change = (vit.state_dict()[before] - random.state_dict()[before]).abs().max()
            assert 0 < change < 0.01  # the same fresh weights, one small step away
    with pytest.raises(ValueError, match="unknown start 'imagenet': choose one of random, clip, mae"):
        starting_vit("imagenet", 0)


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "bd5d1c22")
def test_pretrained_weights_are_kept():
    calls, module = [], unwrap(kept_vit).__module__
    with (
        tempfile.TemporaryDirectory() as folder,
        patch(f"{module}.cache_dir", lambda: Path(folder)),
        patch(
            f"{module}.starting_vit",
            lambda start, seed: calls.append(start) or (new_vit(7), {"seed": seed, "losses": [1.5]}),
        ),
    ):
        first, again = kept_vit("mae", 3), kept_vit("mae", 3)
    assert calls == ["mae"] and first[1] == again[1] == {"seed": 3, "losses": [1.5]}
    for vit, _ in (first, again):
        assert all(torch.equal(v, new_vit(7).state_dict()[k]) for k, v in vit.state_dict().items())


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "b8476437")
def test_a_row_from_start_to_record():
    with torch.random.fork_rng():
        row = Row("tiny", "tiny", pyramid="taps", steps=2, pictures=8)
        result = run_row(row, 1, *starting_vit("random", 1), test=4)
    assert result["steps"] == 2 and set(result["metrics"]) == {"box/ap", "box/ap50", "mask/ap", "mask/ap50"}
    assert set(result["losses"]) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    assert json.loads(json.dumps(result))["config"]["recipe"]["lr"] == 2e-3 and len(result["pictures"]) == 4


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "f66b9731")
def test_recorded_rows_are_skipped():
    with tempfile.TemporaryDirectory() as folder:
        path = result_path(Path(folder), "detection", {"row": "clip", "budget": "quick", "seed": 3})
        save_json(path, {"kept": True})
        main(["--results", folder, "--seeds", "3", "--rows", "clip"])  # would take minutes if it ran
        assert json.loads(path.read_text()) == {"kept": True} and len(list(Path(folder).rglob("*.json"))) == 1


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "661bb07e")
def test_masks_are_packed_and_unpacked(setup_f041b092):
    _, mask_of, _ = setup_f041b092
    masks = torch.rand(3, 1, 128, 128) * (torch.rand(3, 1, 128, 128) < 0.7)
    masks[1] = 0
    found = {
        "boxes": torch.rand(3, 4),
        "labels": torch.tensor([1, 5, 20]),
        "scores": torch.tensor([0.9, 0.8, 0.05]),
        "masks": masks,
    }
    kept = picture_of(found)
    assert [one["noun"] for one in kept] == ["cat", "frog"] and json.loads(json.dumps(kept)) == kept
    assert picture_of({k: v[:0] for k, v in found.items()}) == []
    for one, mask in zip(kept, masks):
        assert (mask_of(one["mask"]) == (mask[0] > 0.5).numpy()).all()


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "3d77423d")
def test_false_alarm(setup_f041b092):
    _, _, slow_ap = setup_f041b092

    def false_alarm():
        return 0.75, 1.0  # first: 1/2, 2/3 and 3/4, and the best precision to the right counts; last: after full recall

    objects = [(0, (10, 10, 50, 50)), (1, (10, 10, 50, 50)), (2, (10, 10, 50, 50))]
    found = [(0.9 - n / 10, n, (10, 10, 50, 50)) for n in range(3)]
    for score, answer in zip((0.95, 0.1), false_alarm()):
        assert slow_ap([*found, (score, 0, (80, 80, 120, 120))], objects, 0.5) == pytest.approx(answer)


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "3d77423d")
def test_false_alarm_starter_fails(setup_f041b092):
    _, _, slow_ap = setup_f041b092

    def false_alarm():
        return 0.75, 0.75  # (first, last)

    with pytest.raises(Exception):
        objects = [(0, (10, 10, 50, 50)), (1, (10, 10, 50, 50)), (2, (10, 10, 50, 50))]
        found = [(0.9 - n / 10, n, (10, 10, 50, 50)) for n in range(3)]
        for score, answer in zip((0.95, 0.1), false_alarm()):
            assert slow_ap([*found, (score, 0, (80, 80, 120, 120))], objects, 0.5) == pytest.approx(answer)


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "59073758")
def test_rate_factor():
    def rate_factor(name, layers=8, decay=0.7):
        if ".body." not in name:
            return 1.0
        layer = int(name.split(".layers.")[1].split(".")[0]) + 1 if ".layers." in name else 0
        return decay ** (layers + 1 - layer)

    names = [name for name, _ in Detector(DetectionViT.from_vit(new_vit(0)), 21).named_parameters()]
    factors = {name: rate_factor(name) for name in names}
    assert (
        factors["net.backbone.body.patch.project.weight"]
        == pytest.approx(0.7**9)
        == factors["net.backbone.body.positions"]
    )
    assert factors["net.backbone.body.layers.7.norm1.weight"] == pytest.approx(0.7)
    assert factors["net.backbone.body.layers.0.attention.row_table"] == pytest.approx(0.7**8)
    assert all(factors[name] == 1 for name in names if ".body." not in name) and any(
        ".pyramid." in name for name in names
    )


@pytest.mark.nb("nbs/2_transfer/09c_detection_board.ipynb", "59073758")
def test_rate_factor_starter_fails():
    def rate_factor(name, layers=8, decay=0.7):
        return decay if ".body." in name else 1.0

    with pytest.raises(Exception):
        names = [name for name, _ in Detector(DetectionViT.from_vit(new_vit(0)), 21).named_parameters()]
        factors = {name: rate_factor(name) for name in names}
        assert (
            factors["net.backbone.body.patch.project.weight"]
            == pytest.approx(0.7**9)
            == factors["net.backbone.body.positions"]
        )
        assert factors["net.backbone.body.layers.7.norm1.weight"] == pytest.approx(0.7)
        assert factors["net.backbone.body.layers.0.attention.row_table"] == pytest.approx(0.7**8)
        assert all(factors[name] == 1 for name in names if ".body." not in name) and any(
            ".pyramid." in name for name in names
        )
