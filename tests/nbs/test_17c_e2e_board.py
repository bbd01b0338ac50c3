"""Generated from nbs/4_pretraining/17c_e2e_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import tempfile
import torch
from dataclasses import replace
from pathlib import Path
from torch import nn
from unittest.mock import patch
from vlp_course.data.pairs import SceneSet
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.models.e2e_vlp import Weights
from vlp_course.models.e2e_vlp import build
from vlp_course.nn.backbone import Backbone
from vlp_course.nn.backbone import unpack
from vlp_course.nn.encoders import Tokens
from vlp_course.e2e_board import Regions, TRIALS, Trunk, WITHOUT, found_objects, main, searched, stopwatch


@pytest.fixture(scope="module")
def setup_2b9d6b58():
    def slow_found(found, objects, least=0.5):
        """Object by object: is there a slot with its class and enough overlap?"""
        edges = lambda b: (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2)

        def overlap(a, b):
            a, b = edges(a), edges(b)
            both = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
            return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

        return [
            any(
                label == l and overlap(box, b) >= least for label, box in zip(f["labels"].tolist(), f["boxes"].tolist())
            )
            for f, o in zip(found, objects)
            for l, b in zip(o["labels"].tolist(), o["boxes"].tolist())
        ]

    return slow_found


@pytest.fixture(scope="module")
def setup_13985155():
    def detector(seed=0):
        """The real one, in small numbers: untrained."""
        return build(seed=seed, weights=Weights(0, 0, 1, 0))

    return detector


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "631898ba")
def test_regions_are_the_surest_slots_and_learn_nothing(setup_13985155):
    detector = setup_13985155
    torch.manual_seed(0)
    first = detector()
    regions, features = Regions(first, keep=3), torch.randn(2, 12288)
    states, boxes = regions.regions(features)
    found = first.slots(first.image_encoder(features))
    with torch.no_grad():
        exact = first.heads(first.decoder.objects(first.fusion.alone(first.image_encoder(features)))[-1])
    sure = exact.classes.softmax(-1)[..., :-1].amax(-1)
    for i in range(2):
        torch.testing.assert_close(boxes[i], exact.boxes[i, sure[i].argsort(descending=True)[:3]])
    tokens = regions(features)
    assert tokens.tokens.shape == (2, 3, 128) and tokens.pooled.shape == (2, 128) and tokens.mask.all()
    tokens.tokens.square().sum().backward()
    assert all(p.grad is None for p in first.parameters()) and regions.state[0].weight.grad.abs().sum() > 0
    model = build(weights=Weights(1, 1, 0, 1))
    model.image_encoder = regions
    assert len(model.fusion.alone(model.image_encoder(features))[0]) == 3


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "f30c82ae")
def test_found_objects_by_hand_and_slowly(setup_2b9d6b58):
    slow_found = setup_2b9d6b58
    objects = [
        {"boxes": torch.tensor([[0.25, 0.25, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2]]), "labels": torch.tensor([3, 5])},
        {"boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]), "labels": torch.tensor([1])},
    ]
    found = [
        {"boxes": torch.tensor([[0.25, 0.28, 0.2, 0.2], [0.75, 0.75, 0.2, 0.2]]), "labels": torch.tensor([3, 4])},
        {"boxes": torch.tensor([[0.5, 0.7, 0.4, 0.4]]), "labels": torch.tensor([1])},
    ]
    assert (
        found_objects(found, objects).tolist() == slow_found(found, objects) == [True, False, False]
    )  # found; wrong class; overlap 1/3
    g = torch.Generator().manual_seed(0)
    many = lambda n: [
        {"boxes": 0.3 + 0.3 * torch.rand(n, 4, generator=g), "labels": torch.randint(3, (n,), generator=g)}
        for _ in range(5)
    ]
    a, b = many(7), many(4)
    assert found_objects(a, b, 0.3).tolist() == slow_found(a, b, 0.3) and 0 < found_objects(a, b, 0.3).mean() < 1


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "0a06696a")
def test_the_trunk_is_the_backbone(setup_13985155):
    detector = setup_13985155
    pictures = SceneSet("test", 3).images(range(3))
    packed = Trunk().eval()(pictures)
    with torch.no_grad():
        fine, coarse = Backbone()(pictures)
        torch.testing.assert_close(unpack(packed)[0], fine, rtol=0, atol=1e-4)
        top = unpack(detector().image_encoder[0](packed))[1]
        torch.testing.assert_close(top, coarse, rtol=0, atol=1e-3)  # untrained top blocks: as the frozen ones
    assert unpack(packed)[1].abs().sum() == 0


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "aee0b027")
def test_rows_differ_in_one_thing():
    full = TRIALS["full"]
    for loss in WITHOUT:
        assert TRIALS[f"no-{loss}"] == replace(
            full, title=f"without {loss.upper()}", weights=replace(full.weights, **{loss: 0})
        )
        assert (
            TRIALS[f"no-{loss}-longer"].steps > full.steps
            and TRIALS[f"no-{loss}-longer"].weights == TRIALS[f"no-{loss}"].weights
        )
    assert TRIALS["two-step"].weights == replace(full.weights, od=0) and TRIALS["two-step"].detector > 0


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "2f839e3a")
def test_the_right_pair_first():
    class Oracle(nn.Module):
        """Knows which scenes are which by their numbers."""

        def similarity(self, images, texts):
            return -(images.pooled - texts.pooled.T).abs()

    tokens = Tokens(torch.arange(297.0)[:, None], torch.zeros(297, 1, 1), torch.ones(297, 1, dtype=torch.bool))
    captions = [f"caption {i}" for i in range(297)]
    assert searched(Oracle(), tokens, tokens, captions).tolist() == [True] * 594
    blank = tokens._replace(pooled=0 * tokens.pooled)
    assert not searched(Oracle(), blank, blank, captions).any()  # ties are misses


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "ec8cfe34")
def test_a_recorded_row_is_not_trained_again():
    with tempfile.TemporaryDirectory() as folder:
        save_json(result_path(Path(folder), "e2e", {"row": "full", "budget": "quick", "seed": 4}), {"kept": True})
        main(["--results", folder, "--seeds", "4", "--rows", "full"])  # would take minutes if it ran
        assert json.loads(Path(folder, "e2e", "full-quick-s4.json").read_text()) == {"kept": True}
        with pytest.raises(SystemExit):
            main(["--rows", "unknown"])


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "984b1a07")
def test_times_are_of_all_that_comes_before():
    clock = iter([float(n) for n in range(100)])
    with patch("time.process_time", lambda: next(clock)):
        assert stopwatch(lambda: next(clock), repeats=3) == 2000.0  # two ticks, in milliseconds


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "ff4cb43d")
def test_same_seconds():
    def same_seconds(steps, c, c_without):
        return round(steps * c / c_without)

    assert same_seconds(250, 340, 300) == 283 and same_seconds(100, 5, 5) == 100


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "ff4cb43d")
def test_same_seconds_starter_fails():
    def same_seconds(steps, c, c_without):
        return steps

    with pytest.raises(Exception):
        assert same_seconds(250, 340, 300) == 283 and same_seconds(100, 5, 5) == 100


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "7c491920")
def test_nothing_found():
    def nothing_found(bits, counts):
        parts = np.split(np.asarray(bits), np.cumsum(counts)[:-1])
        return float(np.mean([not part.any() for part in parts]))

    assert (
        nothing_found([True, False, False, False, True], [2, 2, 1]) == pytest.approx(1 / 3)
        and nothing_found([True], [1]) == 0
    )


@pytest.mark.nb("nbs/4_pretraining/17c_e2e_board.ipynb", "7c491920")
def test_nothing_found_starter_fails():
    def nothing_found(bits, counts):
        return 1 - np.mean(bits)

    with pytest.raises(Exception):
        assert (
            nothing_found([True, False, False, False, True], [2, 2, 1]) == pytest.approx(1 / 3)
            and nothing_found([True], [1]) == 0
        )
