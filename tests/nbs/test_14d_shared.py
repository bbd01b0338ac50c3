"""Generated from nbs/3_fusion/14d_shared.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import torch
from pathlib import Path
from torch import nn
from vlp_course.data.grammar import Spec
from vlp_course.data.grammar import Thing
from vlp_course.data.grammar import describe
from vlp_course.lab import result_path
from vlp_course.lab import verdict
from vlp_course.nn.encoders import Tokens
from vlp_course.blip_board import record, reranked, slot_f1, wins


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "810addd3")
def test_slot_f1_by_hand():
    truth = Spec("horizontal", (Thing("cat", None, "small"), Thing("star", "red", "big")), "grey")
    assert slot_f1(describe(truth, 3), truth) == 1.0
    swapped = Spec("horizontal", truth.things[::-1], "grey")
    assert slot_f1(describe(swapped), truth) == pytest.approx(
        2 * 6 / 14
    )  # seven statements each, one (the order) wrong
    wrong = Spec("horizontal", (Thing("dog", None, "small"), truth.things[1]), "white")
    assert slot_f1(describe(wrong), truth) == pytest.approx(2 * 3 / 14)  # star, big, red remain
    assert slot_f1("cat cat left of", truth) == 0.0


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "968bc286")
def test_ties_do_not_win():
    right = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    assert wins(torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.0, 1.0], [3.0, 0.0, 2.0]]), right) == [True, False, False]


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "8cf2689f")
def test_reranking_asks_the_right_pairs():
    class Oracle(nn.Module):
        """Knows that picture i and text i belong together; `match` gets one number of each."""

        def match(self, image, text):
            return -(image.pooled - text.pooled)[:, 0].abs()

    items = lambda n: Tokens(torch.arange(float(n))[:, None], torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))
    similarity, right = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)), torch.eye(9, dtype=torch.bool)
    found = reranked(Oracle(), items(9), items(9), similarity, right, top=4)
    near = [(s.topk(4, 1).indices == torch.arange(9)[:, None]).any(1).tolist() for s in (similarity, similarity.T)]
    assert found == near[0] + near[1] and 0 < sum(found) < 18  # right wherever the right one is among the four


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "a2450904")
def test_a_run_is_recorded_once():
    import json, tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = record(Path(folder), "blip-shared", 7, steps=1, count=48)
        stored = json.loads(result_path(Path(folder), "blip", result).read_text())
        assert stored["steps"] == 1 and {k: len(v) for k, v in stored["items"].items()} == {
            "r1": 96,
            "rerank": 96,
            "relation": 48,
            "exact": 48,
            "slots": 48,
        }
        assert record(Path(folder), "blip-shared", 7) is None


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "5284c298")
def test_width():
    def width(n: int) -> float:
        return 1.96 * 100 * math.sqrt(0.25 + 0.25) / math.sqrt(n)  # a difference of two independent coins

    rng = np.random.default_rng(0)
    halves = [
        (v.high - v.low) / 2
        for v in (verdict(100 * rng.integers(2, size=1000), 100 * rng.integers(2, size=1000)) for _ in range(8))
    ]
    assert width(1000) == pytest.approx(np.mean(halves), rel=0.05)


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "5284c298")
def test_width_starter_fails():
    def width(n: int) -> float:
        return 1.96 * 50 / math.sqrt(n)

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        halves = [
            (v.high - v.low) / 2
            for v in (verdict(100 * rng.integers(2, size=1000), 100 * rng.integers(2, size=1000)) for _ in range(8))
        ]
        assert width(1000) == pytest.approx(np.mean(halves), rel=0.05)


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "da58fff6")
def test_agreement():
    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        p, q = a.mean(), b.mean()
        return float(np.mean(a == b) - (p * q + (1 - p) * (1 - q)))

    rng = np.random.default_rng(0)
    a, b = rng.random(20_000) < 0.3, rng.random(20_000) < 0.8
    assert abs(agreement(a, b)) < 0.02 and agreement(a, a) == pytest.approx(1 - 0.3**2 - 0.7**2, abs=0.02)


@pytest.mark.nb("nbs/3_fusion/14d_shared.ipynb", "da58fff6")
def test_agreement_starter_fails():
    def agreement(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean(a == b))

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        a, b = rng.random(20_000) < 0.3, rng.random(20_000) < 0.8
        assert abs(agreement(a, b)) < 0.02 and agreement(a, a) == pytest.approx(1 - 0.3**2 - 0.7**2, abs=0.02)
