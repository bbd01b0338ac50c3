"""Generated from nbs/4_pretraining/17_objects.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import os
import pytest
import tempfile
import torch
from pathlib import Path
from unittest.mock import patch
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import SIZES
from vlp_course.data.pairs import SceneSet
from vlp_course.data.objects import ATTRIBUTES, CLASSES, box_precision, corners, object_file, scene_objects


@pytest.fixture(scope="module")
def setup_0089b8ae():
    def slow_objects(scenes, index):
        """Boxes, class names and colours of one scene, from its masks."""
        found = []
        for thing in scenes.scene(index).objects:
            y, x = np.nonzero(thing.mask)
            x0, y0, x1, y1 = x.min(), y.min(), x.max() + 1, y.max() + 1
            found.append(
                (
                    (x0 + x1) / 256,
                    (y0 + y1) / 256,
                    (x1 - x0) / 128,
                    (y1 - y0) / 128,
                    thing.noun,
                    thing.colour,
                    thing.size,
                )
            )
        return found

    return slow_objects


@pytest.fixture(scope="module")
def setup_f62a4c6a():
    empty_cache = lambda folder: patch.dict(os.environ, {"VLP_CACHE": folder})
    return empty_cache


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "c3dae3df")
def test_a_scene_by_hand(setup_f62a4c6a):
    empty_cache = setup_f62a4c6a
    with tempfile.TemporaryDirectory() as folder, empty_cache(folder):
        scenes = SceneSet("test", 36)
        objects = scene_objects(scenes)
    place = next(i for i in range(36) if scenes.scene(i).relation == "horizontal")
    left, right = scenes.scene(place).objects
    one = objects[place]
    assert [CLASSES[c] for c in one["labels"]] == [left.noun, right.noun] and one["boxes"][0, 0] < one["boxes"][1, 0]
    x0, y0, x1, y1 = left.box
    assert torch.allclose(
        one["boxes"][0], torch.tensor([(x0 + x1) / 256, (y0 + y1) / 256, (x1 - x0) / 128, (y1 - y0) / 128])
    )


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "dc3224fd")
def test_objects_equal_the_masks(setup_f62a4c6a, setup_0089b8ae):
    empty_cache = setup_f62a4c6a
    slow_objects = setup_0089b8ae
    with tempfile.TemporaryDirectory() as folder, empty_cache(folder):
        for split, style in (("train", "noto"), ("nouns", "twemoji")):
            scenes = SceneSet(split, 48, seed=1, style=style)
            for index, one in enumerate(scene_objects(scenes)):
                slow = slow_objects(scenes, index)
                assert one["boxes"].dtype == torch.float32 and one["boxes"].shape == (len(slow), 4)
                assert torch.allclose(one["boxes"], torch.tensor([s[:4] for s in slow]).float())
                assert [CLASSES[c] for c in one["labels"]] == [s[4] for s in slow] and [
                    SIZES[c] for c in one["sizes"]
                ] == [s[6] for s in slow]
                assert [ATTRIBUTES[c] if c >= 0 else None for c in one["colours"]] == [s[5] for s in slow]


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "f9b3513b")
def test_drawn_once_and_kept(setup_f62a4c6a):
    empty_cache = setup_f62a4c6a
    with tempfile.TemporaryDirectory() as folder, empty_cache(folder):
        scenes = SceneSet("test", 21)
        first = scene_objects(scenes)
        with patch(f"{scene_objects.__module__}.draw", side_effect=AssertionError("drawn again")):
            again = scene_objects(SceneSet("test", 21))
        assert all(
            torch.equal(a[k], b[k])
            for a, b in zip(first, again, strict=True)
            for k in ("boxes", *("labels", "colours", "sizes"))
        )
        others = {object_file(SceneSet(*args)) for args in (("test", 21), ("test", 24), ("val", 21), ("test", 21, 1))}
        assert len(others) == 4 and {p for p in Path(folder, "objects").iterdir()} == {object_file(scenes)}


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "d98c9e30")
def test_a_killed_run_leaves_no_half_file(setup_f62a4c6a):
    empty_cache = setup_f62a4c6a
    with tempfile.TemporaryDirectory() as folder, empty_cache(folder):
        with patch(
            "safetensors.torch.save_file", side_effect=lambda tensors, path: (Path(path).write_bytes(b"half"), 1 / 0)
        ):
            with pytest.raises(ZeroDivisionError):
                scene_objects(SceneSet("test", 9))
        assert not list(Path(folder).rglob("*.safetensors")) and len(scene_objects(SceneSet("test", 9))) == 9


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "69ef8a26")
def test_the_lists():
    assert (
        len(CLASSES) == len(set(CLASSES)) == len(NOUNS) + 4
        and CLASSES[:4] == ("circle", "square", "triangle", "star")
        and ATTRIBUTES[0] == "red"
    )


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "2b6e65cc")
def test_corners_by_hand():
    assert torch.equal(corners(torch.tensor([0.5, 0.25, 0.5, 0.25])), torch.tensor([0.25, 0.125, 0.75, 0.375]))
    from torchvision.ops import box_convert

    boxes = torch.rand(3, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(corners(boxes), box_convert(boxes, "cxcywh", "xyxy"))


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "b81def98")
def test_precision_by_hand():
    truth = [
        {"boxes": torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.75, 0.75, 0.25, 0.25]]), "labels": torch.tensor([5, 5])}
    ]
    surest_is_wrong = [
        {
            "boxes": torch.tensor([[0.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]),
            "labels": torch.tensor([5, 5]),
            "scores": torch.tensor([0.9, 0.8]),
        }
    ]
    right = [truth[0] | {"scores": torch.ones(2)}]
    assert box_precision(right, truth) == {"ap": 1.0, "ap50": 1.0}
    found = box_precision(
        surest_is_wrong, truth
    )  # one of two found, after one false alarm: precision 1/2 up to recall 1/2
    assert found["ap"] == pytest.approx(found["ap50"]) == pytest.approx(51 / 101 / 2)
    other = [right[0] | {"labels": torch.tensor([6, 6])}]
    assert box_precision(other, truth) == {"ap": 0.0, "ap50": 0.0}
    with pytest.raises(ValueError, match="detections of 1 pictures, objects of 2: they must be as many"):
        box_precision(right, 2 * truth)


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "13f2c1c9")
def test_centred():
    def centred(corners):
        low, high = corners[..., :2], corners[..., 2:]
        return torch.cat([(low + high) / 2, high - low], -1)

    boxes = torch.rand(5, 4, dtype=torch.float64)
    torch.testing.assert_close(centred(corners(boxes)), boxes)


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "13f2c1c9")
def test_centred_starter_fails():
    def centred(corners):
        return corners

    with pytest.raises(Exception):
        boxes = torch.rand(5, 4, dtype=torch.float64)
        torch.testing.assert_close(centred(corners(boxes)), boxes)


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "a0374648")
def test_mirrored():
    def mirrored(one):
        return one | {
            "boxes": torch.cat([1 - one["boxes"][:, :1], one["boxes"][:, 1:]], 1)
        }  # "left of" in the caption turns false

    one = {"boxes": torch.tensor([[0.2, 0.3, 0.1, 0.2], [0.7, 0.6, 0.2, 0.2]]), "labels": torch.tensor([1, 2])}
    assert torch.allclose(
        mirrored(one)["boxes"], torch.tensor([[0.8, 0.3, 0.1, 0.2], [0.3, 0.6, 0.2, 0.2]])
    ) and torch.equal(one["labels"], mirrored(one)["labels"])


@pytest.mark.nb("nbs/4_pretraining/17_objects.ipynb", "a0374648")
def test_mirrored_starter_fails():
    def mirrored(one):
        return one | {"boxes": one["boxes"].flip(0)}

    with pytest.raises(Exception):
        one = {"boxes": torch.tensor([[0.2, 0.3, 0.1, 0.2], [0.7, 0.6, 0.2, 0.2]]), "labels": torch.tensor([1, 2])}
        assert torch.allclose(
            mirrored(one)["boxes"], torch.tensor([[0.8, 0.3, 0.1, 0.2], [0.3, 0.6, 0.2, 0.2]])
        ) and torch.equal(one["labels"], mirrored(one)["labels"])
