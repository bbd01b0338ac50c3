"""Generated from nbs/2_transfer/08b_four_regimes.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import io
import json
import numpy as np
import pytest
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock
from vlp_course import regimes_board
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.regimes import LITTLE
from vlp_course.regimes import MUCH
from vlp_course.regimes import STRATEGIES
from vlp_course.regimes import TASKS
from vlp_course.regimes import task_data
from vlp_course.regimes_board import Advice, RATES, accuracy, best, difference, leaders, recommend, similarity


@pytest.fixture(scope="module")
def setup_ab3200ab():
    def toy_results(seeds=(0, 1, 2)):
        """A board on which each strategy is right on a fixed share of 200 pictures."""
        share = {s: 0.9 - 0.1 * k for k, s in enumerate(STRATEGIES)}
        results = []
        for task in TASKS:
            for n in (LITTLE, MUCH):
                for strategy, p in share.items():
                    for seed in seeds:
                        p = 0.3 if task == "treatments" and strategy == "probe" else share[strategy]
                        hits = np.roll(np.arange(200) < 200 * p, 7 * seed).astype(int)
                        results.append(
                            {
                                "row": f"{strategy}-{task}-{n}",
                                "seed": seed,
                                "budget": "quick",
                                "hits": {"test": "".join(map(str, hits))},
                                "metrics": {"test/accuracy": float(hits.mean())},
                            }
                        )
        return results

    return toy_results


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "2b04a690")
def test_a_difference_needs_every_seed(setup_ab3200ab):
    toy_results = setup_ab3200ab
    results = toy_results()
    found = difference(results, "probe", "lora", "kinds", LITTLE)
    assert found.word == "better" and found.mean == pytest.approx(60) and found.pairs == 200
    assert difference(results, "lora", "probe", "kinds", LITTLE).word == "worse"
    odd = next(r for r in results if r["row"] == f"lora-kinds-{LITTLE}" and r["seed"] == 1)
    odd["hits"]["test"] = "1" * 200  # one seed the other way round
    assert difference(results, "probe", "lora", "kinds", LITTLE).word == "open"
    assert leaders(toy_results(), "kinds", MUCH) == ["probe"]
    with pytest.raises(
        ValueError, match="no run of probe on kinds with 7 pictures: run python -m vlp_course.regimes_board"
    ):
        accuracy(results, "probe", "kinds", 7)


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "5c3e6ab5")
def test_advice_from_a_board(setup_ab3200ab):
    toy_results = setup_ab3200ab
    results = toy_results()
    assert similarity(results, "kinds") == pytest.approx(1) and similarity(results, "treatments") == pytest.approx(
        (0.3 - 0.1) / (0.8 - 0.1)
    )
    with tempfile.TemporaryDirectory() as folder:
        for r in results:
            save_json(result_path(Path(folder), "finetune", r), r)
        few, many = recommend(50, 0.9, Path(folder)), recommend(5000, 0.2, Path(folder))
        assert few == Advice("little data, similar", "head only", "head only", ["head only"])
        assert many == Advice("much data, dissimilar", "from scratch", "fine-tune all", ["head on an early layer"])
        for n, s in ((0, 0.5), (5, 1.5), (5, -0.1)):
            with pytest.raises(
                ValueError, match=f"n_train={n}, similar={s:g}: needs at least 1 picture and a similarity from 0 to 1"
            ):
                recommend(n, s, Path(folder))
        with pytest.raises(ValueError, match="no complete tuning of kinds with 100 pictures"):
            best(Path(folder), "kinds", 100)
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ValueError, match="no run of"):
        recommend(50, 0.9, Path(folder))


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "4a31f3a6")
def test_a_small_board_from_nothing():
    def small(task, split, n, seed, *styles):
        pictures, labels = task_data(task, split, 20, seed, *styles)
        return pictures[..., 32:64, 32:64], labels

    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()) as said,
        mock.patch.dict("vlp_course.regimes.STEPS", {20: 1}),
        mock.patch.object(regimes_board, "task_data", small),
        mock.patch.object(regimes_board, "RATES", {s: (1e-3,) for s in RATES}),
        mock.patch.object(regimes_board, "LITTLE", 20),
        mock.patch.object(regimes_board, "MUCH", 20),
        mock.patch.object(regimes_board, "EXTRA", {20: ("scratch-long",)}),
        mock.patch.object(regimes_board, "LONG", 2),
    ):
        argv = ["--results", folder, "--tasks", "kinds"]
        regimes_board.main([*argv, "--tune"])
        regimes_board.main([*argv, "--seeds", "3"])
        files = sorted(p.name for p in Path(folder, "finetune").iterdir())
        assert files == sorted(f"{s}-kinds-20-quick-s3.json" for s in ("untrained", "scratch-long", *STRATEGIES))
        long = json.loads(Path(folder, "finetune", "scratch-long-kinds-20-quick-s3.json").read_text())
        assert (long["config"]["steps"], long["config"]["lr"]) == (2, 1e-3)
        rates = sorted(p.name for p in Path(folder, "finetune-rates").iterdir())
        assert rates == sorted(
            [
                *(f"{s}-kinds-20@0.001-quick-s10.json" for s in RATES),
                "probe-kinds-20-quick-s10.json",
                *(f"{s}-kinds-20@0.001-quick-s{seed}.json" for s in ("finetune", "scratch") for seed in (11, 12)),
            ]
        )
        one = json.loads(Path(folder, "finetune", files[0]).read_text())
        assert len(one["hits"]["test"]) == 20 and one["metrics"]["test/accuracy"] == one["hits"]["test"].count("1") / 20
        stamp = [p.stat().st_mtime_ns for p in Path(folder, "finetune").iterdir()]
        before = len(said.getvalue())
        regimes_board.main([*argv, "--seeds", "3"])  # nothing is missing: nothing is done
        assert [p.stat().st_mtime_ns for p in Path(folder, "finetune").iterdir()] == stamp and len(
            said.getvalue()
        ) == before


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "533abf8e")
def test_similar_share():
    def similar_share(probe, best, classes):
        return (probe - 1 / classes) / (best - 1 / classes)

    assert similar_share(0.46, 0.82, 10) == pytest.approx(0.5) and similar_share(0.25, 0.9, 4) == 0


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "533abf8e")
def test_similar_share_starter_fails():
    def similar_share(probe, best, classes):
        return probe / best

    with pytest.raises(Exception):
        assert similar_share(0.46, 0.82, 10) == pytest.approx(0.5) and similar_share(0.25, 0.9, 4) == 0


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "993ffee6")
def test_two_levels():
    def two_levels(a, b, draws=2000, seed=0):
        rng, d = np.random.default_rng(seed), a - b
        pick = lambda n: rng.integers(n, size=n)
        return np.quantile([d[pick(len(d))][:, pick(d.shape[1])].mean() for _ in range(draws)], (0.025, 0.975))

    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, (3, 400))
    seeds = np.array([[-1.0], [0.0], [1.0]])  # seeds differ, pictures do not
    low, high = two_levels(seeds + noise, np.zeros((3, 400)))
    assert low < -0.5 and high > 0.5
    low, high = two_levels(1 + noise, np.zeros((3, 400)))
    assert 0.99 < low < high < 1.01


@pytest.mark.nb("nbs/2_transfer/08b_four_regimes.ipynb", "993ffee6")
def test_two_levels_starter_fails():
    def two_levels(a, b, draws=2000, seed=0):
        rng, d = np.random.default_rng(seed), (a - b).mean(0)
        return np.quantile([d[rng.integers(len(d), size=len(d))].mean() for _ in range(draws)], (0.025, 0.975))

    with pytest.raises(Exception):
        rng = np.random.default_rng(1)
        noise = rng.normal(0, 0.01, (3, 400))
        seeds = np.array([[-1.0], [0.0], [1.0]])  # seeds differ, pictures do not
        low, high = two_levels(seeds + noise, np.zeros((3, 400)))
        assert low < -0.5 and high > 0.5
        low, high = two_levels(1 + noise, np.zeros((3, 400)))
        assert 0.99 < low < high < 1.01
