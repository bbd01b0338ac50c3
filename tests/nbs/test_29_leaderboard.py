"""Generated from nbs/6_lab/29_leaderboard.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import statistics
import tempfile
from inspect import unwrap
from pathlib import Path
from scipy import stats
from unittest.mock import patch
from vlp_course.checkpoints import TrainError
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.pairs import SceneSet
from vlp_course.evaluate import board_texts
from vlp_course.lab import (
    COLUMNS,
    ROWS,
    Row,
    build_model,
    cell,
    chance,
    cpu_flags,
    load_row,
    paired_bootstrap,
    read_results,
    result_path,
    row_of,
    run_row,
    save_json,
    show,
    summary,
    table,
    train_set,
    versions,
)


@pytest.fixture(scope="module")
def setup_4d13d30f():
    T_975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # Student's t by degrees of freedom

    def slow_summary(values):
        """Mean and half-width of the 95 % interval, in loops."""
        n, mean = len(values), sum(values) / len(values)
        variance = 0.0
        for x in values:
            variance += (x - mean) ** 2 / (n - 1)
        return mean, T_975[n - 1] * variance**0.5 / n**0.5

    return slow_summary


@pytest.fixture(scope="module")
def setup_a81a1b5c():
    def made_up(row="clip", seed=0, budget="quick", value=0.5, without=(), **metrics):
        """A result as run_row writes it, with invented numbers."""
        scores = {c: value for c in COLUMNS.values() if c not in without} | metrics
        return {
            "row": row,
            "seed": seed,
            "budget": budget,
            "steps": 960,
            "cpu_s": 60.0 + seed,
            "params": 1_300_000,
            "metrics": scores,
        }

    return made_up


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "110388b9")
def test_rows():
    assert len({r.name for r in ROWS}) == len(ROWS) and all(r.quick > 0 and ":" in r.builder for r in ROWS)
    row = Row("mine", "Mine", "clip:build", 100)
    assert [row.steps(b) for b in ("quick", "full", "untrained")] == [100, 500, 0]
    assert Row("mine", "Mine", "clip:build", 100, full=460).steps("full") == 460
    assert row_of("clip-random-batches").families == 0 and row_of("clip").families > 0
    assert row_of("clip").quick == row_of("clip-random-batches").quick  # the control differs in one thing alone


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "6b1f23f2")
def test_unknown_names():
    with pytest.raises(ValueError, match="unknown row 'clipp': choose one of clip, siglip, .*linear$"):
        row_of("clipp")
    with pytest.raises(ValueError, match="unknown budget 'long': choose quick, full or untrained"):
        row_of("clip").steps("long")
    with pytest.raises(AttributeError):
        row_of("clip").quick = 10  # frozen: a row is a record


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "d06cf13c")
def test_builders():
    model, again, other = (build_model("controls:build_linear", seed) for seed in (0, 0, 1))
    assert checkpoint_sha(model) == checkpoint_sha(again) != checkpoint_sha(other)
    with pytest.raises(ModuleNotFoundError, match="nosuch"):
        build_model("nosuch:build", 0)


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "42c46ab1")
def test_pixel_rows_see_pixels():
    data = train_set(Row("x", "X", "clip:build", 1, families=1.0, pixels=True, scenes=9))
    assert data.features is None and data.batch([0, 5]).image.shape == (2, 3, 128, 128)
    assert data.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(train_set(Row("x", "X", "clip:build", 1, families=0.0, pixels=True, scenes=9)).groups)) == 9


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "76de909a")
def test_versions_say_what_counts():
    assert versions().keys() == {"vlp_course", "torch", "timm", "numpy", "python", "cpu", "threads"}
    assert all(isinstance(v, str) and v for v in versions().values()) and set(cpu_flags()) <= {
        "avx512_bf16",
        "amx_bf16",
    }


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "ca854b63")
def test_two_steps_twice():
    small = patch.multiple(
        unwrap(run_row).__module__, train_set=lambda row: SceneSet("train", 66, families=row.families)
    )
    seen = []
    with small:
        first, second = (
            run_row("clip-from-scratch", seed=3, steps=2, progress=False, score=False, watch=lambda: seen.append(1))
            for _ in range(2)
        )
    assert len(seen) == 4 and first["steps"] == 2 and first["metrics"] == {} and first["params"] > 500_000
    assert first["checkpoint_sha"] == second["checkpoint_sha"] and first["data_sha"] == second["data_sha"]
    assert first["curves"] == second["curves"] and all(
        len(v) == 1 for v in first["curves"].values()
    )  # steps 0, 10, ...
    assert first["config"]["recipe"]["seed"] == 3 and first["config"]["builder"] == row_of("clip-from-scratch").builder
    assert json.loads(json.dumps(first)).keys() == second.keys()  # all of it is JSON


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "34d4d296")
def test_refused_before_any_work():
    nothing = patch.multiple(
        unwrap(run_row).__module__, build_model=None, train_set=None
    )  # calling either would be a TypeError
    with nothing:
        for wrong, message in (
            (dict(budget="long"), "unknown budget"),
            (dict(device="tpu"), "device='tpu' must be one of cpu, cuda"),
            (dict(precision="fp8"), "precision='fp8'"),
            (dict(steps=0), "steps=0"),
            (dict(seed=-1), "seed=-1"),
        ):
            with pytest.raises(ValueError, match=message):
                run_row("clip", **wrong)
        with (
            patch("torch.cuda.is_available", lambda: False),
            pytest.raises(TrainError, match="no GPU here; use --device cpu"),
        ):
            run_row("clip", device="cuda")


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "653bfdd8")
def test_no_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(TrainError, match="holds no checkpoint: train one with `vlp pretrain linear --out"):
            load_row("linear", Path(folder))


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "215309df")
def test_interval(setup_4d13d30f):
    slow_summary = setup_4d13d30f
    assert summary([0.9, 0.92, 0.94]) == pytest.approx((0.92, 4.30265 * 0.02 / 3**0.5), rel=1e-4)  # by hand
    for values in ([1.0, 4.0], [0.5, 0.2, 0.9], [3.0, 3.5, 2.0, 8.0], [1.0, 1.1, 0.7, 0.9, 2.0]):
        mean, half = summary(values)
        assert (mean, half) == pytest.approx(slow_summary(values), rel=1e-4)
        low, high = stats.t.interval(0.95, len(values) - 1, statistics.mean(values), stats.sem(values))  # SciPy's own
        assert (mean - half, mean + half) == pytest.approx((low, high))
    mean, half = summary([0.7])
    assert mean == 0.7 and np.isnan(half)  # one seed: no interval


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "3f4ea942")
def test_paired_by_hand():
    assert paired_bootstrap([3.0] * 5, [1.0] * 5) == (2.0, 2.0, 2.0)  # every resample is the same
    base = np.array([10.0, 50.0, 20.0, 90.0, 60.0])  # splits differ by far more than the methods
    mean, low, high = paired_bootstrap(base + [1, 2, 1, 2, 1.5], base)
    assert mean == pytest.approx(1.5) and 1 <= low < mean < high <= 2
    assert paired_bootstrap(base, base + 1) == (-1, -1, -1)  # the other way round
    assert paired_bootstrap(base, base[::-1]) == paired_bootstrap(base, base[::-1])  # seeded
    reference = stats.bootstrap(([1, 2, 1, 2, 1.5],), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.1)  # SciPy's own


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "1f0d6939")
def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="4 pairs: a paired verdict needs at least 5"):
        paired_bootstrap([1, 2, 3, 4], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="6 values against 5: a pair needs one of each"):
        paired_bootstrap(range(6), range(5))


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "07cbfb07")
def test_whole_or_not_at_all():
    with tempfile.TemporaryDirectory() as folder:
        path = result_path(Path(folder), "scenes", {"row": "clip", "budget": "quick", "seed": 2})
        assert path == Path(folder, "scenes", "clip-quick-s2.json")
        save_json(path, {"b": 1, "a": [0.1, 1 / 3]})
        assert json.loads(path.read_text()) == {"a": [0.1, 1 / 3], "b": 1}  # floats come back to the last bit
        with pytest.raises(TypeError):
            save_json(path, {"a": object()})  # fails half-way
        assert json.loads(path.read_text())["b"] == 1 and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "cab5d8d2")
def test_chance_values():
    texts = board_texts(30)
    with patch.multiple(
        unwrap(chance).__module__, board_texts=lambda: texts
    ):  # a few of the scenes: the same arithmetic
        guess = chance()
    assert set(COLUMNS.values()) <= guess.keys()  # every column has its floor
    assert guess["seen/r1"] == 1 / 501 and guess["nouns/r10"] == 10 / 501 and guess["foil/relation"] == 0.5
    assert guess["pointing"] == pytest.approx(np.mean([(b[2] - b[0]) * (b[3] - b[1]) / 128**2 for *_, b in texts[1]]))


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "9ed837cd")
def test_group_chance_is_one_in_six():
    import itertools

    orders = [np.array(p, float).reshape(2, 2) for p in itertools.permutations(range(4))]  # score[image, text]
    right = [s[0, 0] > max(s[0, 1], s[1, 0]) and s[1, 1] > max(s[0, 1], s[1, 0]) for s in orders]
    with patch.multiple(unwrap(chance).__module__, board_texts=lambda: ((), ((0, "a cat", (0, 0, 64, 64)),))):
        assert chance()["group/group"] == pytest.approx(np.mean(right)) and chance()["pointing"] == 0.25
    assert cell([]) == "-" and cell([0.5]) == "50.0" and cell([0.90, 0.92, 0.94]) == "92.0 ± 5.0"


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "63ade493")
def test_table_from_files(setup_a81a1b5c):
    made_up = setup_a81a1b5c
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        assert read_results(folder) == []
        runs = [made_up(seed=s, value=v) for s, v in enumerate((0.90, 0.92, 0.94))]
        runs += [made_up("mine"), made_up("linear", without=["pointing"]), made_up(budget="full")]
        for result in runs:
            save_json(result_path(folder, "scenes", result), result)
        assert len(read_results(folder)) == 6 and len(read_results(folder, budget="full")) == 1
        header, clip, linear, mine = table(read_results(folder, budget="quick"))
    assert header[:5] == ["row", "seeds", "CPU-s", "steps", "params"] and all(
        len(x) == len(header) for x in (clip, linear, mine)
    )
    assert clip[:6] == ["CLIP", "3", "61", "960", "1.30 M", "92.0 ± 5.0"]  # mean seconds; in the order of ROWS
    assert linear[0] == "Linear baseline" and linear[-1] == "-" and linear[5] == "50.0"
    assert mine[0] == "mine"  # a row of yours that ROWS does not know


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "d71e908b")
def test_printed_table(setup_a81a1b5c):
    made_up = setup_a81a1b5c
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as text:
        show(table([made_up(seed=0), made_up(seed=1)]), "a board")
    assert "a board" in text.getvalue() and "CLIP" in text.getvalue() and "50.0 ± 0.0" in text.getvalue()


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "8aa8ed37")
def test_back_to_deviation():
    def deviation(half, seeds):
        """The standard deviation over seeds behind a half-width."""
        return half * seeds**0.5 / stats.t.ppf(0.975, seeds - 1)

    for values in ([0.90, 0.92, 0.94], [0.3, 0.5], [0.1, 0.4, 0.2, 0.3, 0.9]):
        assert deviation(summary(values)[1], len(values)) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "8aa8ed37")
def test_back_to_deviation_starter_fails():
    def deviation(half, seeds):
        """The standard deviation over seeds behind a half-width."""
        return half / 1.96  # neither the factor nor the root

    with pytest.raises(Exception):
        for values in ([0.90, 0.92, 0.94], [0.3, 0.5], [0.1, 0.4, 0.2, 0.3, 0.9]):
            assert deviation(summary(values)[1], len(values)) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "16b50877")
def test_one_line_row():
    def with_row(rows):
        """The rows and one more."""
        return (
            *rows,
            Row("clip-all-families", "CLIP, all families whole", "clip:build", row_of("clip").quick, families=1.0),
        )

    rows = with_row(ROWS)
    new = rows[-1]
    assert (
        rows[:-1] == ROWS
        and new.name == "clip-all-families"
        and new.families == 1
        and new.steps("quick") == row_of("clip").quick
    )
    groups = SceneSet("train", 30, families=new.families).groups
    assert (groups == np.arange(30) // 3).all()  # three scenes a group, everywhere


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "16b50877")
def test_one_line_row_starter_fails():
    def with_row(rows):
        """The rows and one more."""
        return rows

    with pytest.raises(Exception):
        rows = with_row(ROWS)
        new = rows[-1]
        assert (
            rows[:-1] == ROWS
            and new.name == "clip-all-families"
            and new.families == 1
            and new.steps("quick") == row_of("clip").quick
        )
        groups = SceneSet("train", 30, families=new.families).groups
        assert (groups == np.arange(30) // 3).all()  # three scenes a group, everywhere


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "c8197d52")
def test_verdict_in_words():
    def verdict(a, b):
        """better, worse, open or too few."""
        if len(a) < 5:
            return "too few"
        _, low, high = paired_bootstrap(a, b)
        return "better" if low > 0 else "worse" if high < 0 else "open"

    splits = np.array([40.0, 70.0, 55.0, 62.0, 80.0, 45.0])
    assert verdict(splits + [1, 2, 1, 2, 1, 2], splits) == "better" and verdict(splits - 1, splits) == "worse"
    assert verdict(splits + [3, -2, 1, -1, 0.5, -1], splits) == "open" and verdict([90], [10]) == "too few"


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "c8197d52")
def test_verdict_in_words_starter_fails():
    def verdict(a, b):
        """better, worse, open or too few."""
        return "better" if np.mean(a) > np.mean(b) else "worse"  # never in doubt

    with pytest.raises(Exception):
        splits = np.array([40.0, 70.0, 55.0, 62.0, 80.0, 45.0])
        assert verdict(splits + [1, 2, 1, 2, 1, 2], splits) == "better" and verdict(splits - 1, splits) == "worse"
        assert verdict(splits + [3, -2, 1, -1, 0.5, -1], splits) == "open" and verdict([90], [10]) == "too few"


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "f01cf971")
def test_seeds_needed():
    def seeds_needed(gap, sd):
        """Smallest number of seeds whose half-width lies below the gap."""
        n = 2
        while stats.t.ppf(0.975, n - 1) * sd / n**0.5 >= gap:
            n += 1
        return n

    # With gap = sd it takes 7 seeds, with gap = 3 sd three are enough: small boards can settle large differences only.
    assert [seeds_needed(gap, 1.0) for gap in (10, 3, 1)] == [2, 3, 7]
    assert seeds_needed(0.2, 1.0) > 90


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "f01cf971")
def test_seeds_needed_starter_fails():
    def seeds_needed(gap, sd):
        """Smallest number of seeds whose half-width lies below the gap."""
        return int((1.96 * sd / gap) ** 2) + 1  # the normal factor flatters few seeds

    with pytest.raises(Exception):
        assert [seeds_needed(gap, 1.0) for gap in (10, 3, 1)] == [2, 3, 7]
        assert seeds_needed(0.2, 1.0) > 90
