"""Generated from nbs/5_prompting/23a_cpt_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from unittest import mock
from vlp_course.data.grammar import COLOURS
from vlp_course.data.pairs import Vocabulary
from vlp_course.data.referring import KINDS
from vlp_course.lab import read_results
from vlp_course.models.fusion import OneTower
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.prompts.cpt import CPT
from vlp_course.prompts.cpt import Cue
from vlp_course.prompts.cpt import Regions
from vlp_course.prompts.cpt import TEMPLATES
from vlp_course.prompts.cpt_board import (
    GRID,
    LEARNERS,
    SHOTS,
    best_cue,
    chosen,
    claim_19,
    cue_of,
    learner_of,
    main,
    marks,
    prepared,
    spread,
    with_word,
)


@pytest.fixture(scope="module")
def setup_e98503ce():
    HERE = best_cue.__module__

    def toy(dim=128, seed=0):
        """A small single stream of the course's width."""
        words = "a an small big red orange yellow green blue purple pink brown zero on the left right of above at in top bottom white ground one is color".split()
        vocabulary = Vocabulary(words)
        torch.manual_seed(seed)
        return OneTower(
            ImageEncoder(dim),
            TextEncoder(torch.randn(len(vocabulary), dim)),
            MergedEncoder(dim, 2),
            vocabulary,
            len(vocabulary),
            dim,
        ).eval()

    def toy_regions(count=6, boxes=4, seed=0):
        g = torch.Generator().manual_seed(seed)
        right = torch.zeros(count, boxes, dtype=torch.bool)
        right[torch.arange(count), torch.randint(boxes, (count,), generator=g)] = True
        low = 80 * torch.rand(count, boxes, 2, generator=g)
        texts = ["a small owl", "a big one", "a star", "a star on the left"]
        return Regions(
            [texts[k % 4] for k in range(count)],
            [KINDS[k % 6] for k in range(count)],
            torch.cat([low, low + 20], -1),
            right,
            torch.rand(count, 12288, generator=g),
            torch.rand(count, boxes, 12288, generator=g),
        )

    def fixed_regions(chosen, cue, net):
        return toy_regions(len(chosen), seed=len(chosen))

    return HERE, fixed_regions, toy, toy_regions


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "b32a50b5")
def test_confidence_by_hand(setup_e98503ce):
    _, _, toy, toy_regions = setup_e98503ce
    model, some = toy(), toy_regions(6)
    learner = CPT(model, cue_of("red", 0.5, 4))
    share, sure = with_word(learner, some, 4)
    logits = learner.logits(some.painted, some.texts).unflatten(0, (6, 4))
    expected = [logits[k, int(some.right[k].int().argmax())].softmax(-1)[learner.word].item() for k in range(6)]
    assert sure == pytest.approx(np.mean(expected), rel=1e-4)
    assert share == pytest.approx(
        np.mean([bool(some.right[k, int(logits[k, :, learner.word].argmax())]) for k in range(6)])
    )


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "46f5de4e")
def test_the_cue_comes_from_the_search():
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(
            ValueError, match="no search of 'single' in .*: run python -m vlp_course.prompts.cpt_board --search"
        ):
            best_cue("single", Path(folder))
        Path(folder, "cpt-search").mkdir()
        metrics = {
            "red/0.5/1/right": 0.3,
            "red/0.5/1/sure": 0.99,
            "pink/0.8/3/right": 0.5,
            "pink/0.8/3/sure": 0.1,
            "blue/0.8/0/right": 0.4,
        }
        Path(folder, "cpt-search", "single-quick-s0.json").write_text(
            json.dumps({"row": "single", "seed": 0, "budget": "quick", "metrics": metrics})
        )
        assert best_cue("single", Path(folder)) == Cue("pink", COLOURS["pink"], 0.8, TEMPLATES[3])


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "aab0fd7a")
def test_units_and_commands(setup_e98503ce):
    HERE, fixed_regions, toy, _ = setup_e98503ce
    model = toy()
    patches = [
        mock.patch(f"{HERE}.{name}", **how)
        for name, how in {
            "load_base": dict(return_value=model),
            "regions": dict(side_effect=fixed_regions),
            "backbone": dict(return_value=None),
            "STEPS": dict(new=2),
            "SEARCHED": dict(new=5),
            "TUNED": dict(new=7),
            "TESTED": dict(new=9),
            "TEMPLATES": dict(new=TEMPLATES[2:5]),
            "features": dict(side_effect=lambda images, net: torch.zeros(len(images), 12288)),
            "build": dict(return_value=model),
            "propose": dict(return_value=[(0, 0, 9, 9)] * 4),
            "items": dict(side_effect=lambda a, b, n: [mock.Mock()] * n),
        }.items()
    ]
    with tempfile.TemporaryDirectory() as folder:
        for p in patches:
            p.start()
        try:
            prepared.cache_clear()
            main(["--search", "--results", folder])
            assert len(read_results(Path(folder), "cpt-search")[0]["metrics"]) == 2 * 8 * 2 * 3
            with pytest.raises(
                ValueError, match="row 'cpt' is not tuned in .*: run python -m vlp_course.prompts.cpt_board --tune"
            ):
                main(["--rows", "cpt", "--seeds", "0", "--results", folder])
            for lr, mark in zip(GRID, (0.1, 0.2, 0.9, 0.3)):
                for row in LEARNERS:
                    Path(folder, "cpt-rates").mkdir(exist_ok=True)
                    Path(folder, "cpt-rates", f"{row}@{lr:g}-quick-s9.json").write_text(
                        json.dumps(
                            {
                                "row": f"{row}@{lr:g}",
                                "seed": 9,
                                "budget": "quick",
                                "metrics": {"1/right": 1 - mark, "4/right": mark, "16/right": lr},
                            }
                        )
                    )
            assert [chosen("head", Path(folder), k) for k in SHOTS] == [3e-5, 3e-5, 3e-4, 3e-4, 1e-3]
            main(["--tune", "--rows", "head@0.001", "--seeds", "100", "--results", folder])
            tuned = next(r for r in read_results(Path(folder), "cpt-rates") if r["seed"] == 100)
            assert {"1/right", "4/right", "16/right"} < set(tuned["metrics"]) and len(tuned["hits"]["4"]) == 7
            main(["--rows", "looking", "controls", "--seeds", "3", "--results", folder])
            control, run = read_results(Path(folder), "cpt")
            assert set(control["metrics"]) == {"unpainted", "blank", "other colour", "untrained", "blind", "single"}
            assert (
                run["hits"]["1"].count("1") / 9 == pytest.approx(run["metrics"]["1/right"])
                and run["config"]["lr"]["4"] == 3e-4
            )
        finally:
            prepared.cache_clear()
            for p in patches:
                p.stop()
    with pytest.raises(ValueError, match="unknown row 'tail': choose one of cpt, head, looking"):
        learner_of("tail", model, cue_of("red", 0.5, 0), 0)


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "9c2d6c88")
def test_marks_by_hand():
    found = marks(torch.tensor([True, False, True, True]), ["noun", "noun", "size", "size"], 4)
    assert found == {"4/right": 0.75, "4/noun": 0.5, "4/size": 1.0}


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "09bafcb1")
def test_the_rule_by_hand():
    def board(gains, ours, theirs, splits=6):
        wave = [(-1) ** s for s in range(splits)]
        make = lambda row, base, dev: [
            {
                "row": row,
                "seed": s,
                "metrics": {f"{k}/right": (base(k) + dev * w + 0.01 * (s == k)) / 100 for k in SHOTS},
            }
            for s, w in enumerate(wave)
        ]
        return (
            make("cpt", lambda k: 40 + gains[k], ours)
            + make("head", lambda k: 40, theirs)
            + make("looking", lambda k: 40, theirs)
        )

    falling = {1: 9, 2: 7, 4: 5, 8: 3, 16: 1}
    assert claim_19(board(falling, 1, 2)).startswith(
        "CLAIM 19: holds (most at one shot against 2 of 2 heads, varies less against 2 of 2; standard head: +9.0 ["
    )
    assert claim_19(board(falling | {4: 11}, 1, 2)).startswith(
        "CLAIM 19: does not hold here (most at one shot against 0 of 2 heads, varies less against 2 of 2"
    )
    assert claim_19(board(falling, 2, 1)).startswith(
        "CLAIM 19: does not hold here (most at one shot against 2 of 2 heads, varies less against 0 of 2"
    )
    assert "does not hold here (most at one shot against 0" in claim_19(
        board({k: -v for k, v in falling.items()}, 1, 2)
    )
    mixed = [r for r in board(falling, 1, 2) if r["row"] != "looking"] + [
        r | {"row": "looking"} for r in board({k: 20 for k in SHOTS}, 2, 2) if r["row"] == "cpt"
    ]
    assert claim_19(mixed).startswith("CLAIM 19: depends (most at one shot against 1 of 2 heads")
    assert (
        claim_19(board(falling, 1, 2, 4)) == "CLAIM 19: open here (fewer than five splits of CPT and the standard head)"
    )
    assert spread(board(falling, 1, 2, 6), "head", 16) == pytest.approx(2 * np.sqrt(6 / 5), rel=1e-2)


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "13772753")
def test_relative():
    def relative(values):
        return 100 * np.std(values, ddof=1) / np.mean(values)

    assert relative([30.0, 40.0, 50.0]) == pytest.approx(25.0) and relative([3.0, 4.0, 5.0]) == pytest.approx(
        relative([30.0, 40.0, 50.0])
    )


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "13772753")
def test_relative_starter_fails():
    def relative(values):
        return 100 * np.std(values, ddof=1) / np.std(values)

    with pytest.raises(Exception):
        assert relative([30.0, 40.0, 50.0]) == pytest.approx(25.0) and relative([3.0, 4.0, 5.0]) == pytest.approx(
            relative([30.0, 40.0, 50.0])
        )


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "0be12e17")
def test_ratio_of_variances():
    from scipy.stats import f as f_distribution

    def ratio_of_variances(a, b):
        ratio = np.var(a, ddof=1) / np.var(b, ddof=1)
        above = f_distribution.sf(ratio, len(a) - 1, len(b) - 1)
        return ratio, 2 * min(above, 1 - above)

    rng = np.random.default_rng(0)
    p = [ratio_of_variances(*rng.normal(size=(2, 10)))[1] for _ in range(2000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02) and np.mean(p) == pytest.approx(0.5, abs=0.03)
    a, b = rng.normal(size=8), rng.normal(size=6)
    assert ratio_of_variances(a, b)[1] == pytest.approx(ratio_of_variances(b, a)[1])


@pytest.mark.nb("nbs/5_prompting/23a_cpt_board.ipynb", "0be12e17")
def test_ratio_of_variances_starter_fails():
    from scipy.stats import f as f_distribution

    def ratio_of_variances(a, b):
        ratio = np.var(a, ddof=1) / np.var(b, ddof=1)
        return ratio, f_distribution.sf(ratio, len(a) - 1, len(b) - 1)

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        p = [ratio_of_variances(*rng.normal(size=(2, 10)))[1] for _ in range(2000)]
        assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.02) and np.mean(p) == pytest.approx(
            0.5, abs=0.03
        )
        a, b = rng.normal(size=8), rng.normal(size=6)
        assert ratio_of_variances(a, b)[1] == pytest.approx(ratio_of_variances(b, a)[1])
