"""Generated from nbs/6_lab/29_leaderboard.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import tempfile
from inspect import unwrap
from pathlib import Path
from unittest.mock import patch
from vlp_course.evaluate import board_texts
from vlp_course.rows import ROWS
from vlp_course.rows import Row
from vlp_course.rows import build_model
from vlp_course.rows import row_of
from vlp_course.verdicts import band
from vlp_course.verdicts import summary
from vlp_course.lab import (
    COLUMNS,
    FOILS,
    TABLES,
    cell,
    chance,
    check,
    compare,
    costs,
    html_table,
    read_results,
    record_board,
    record_tuned,
    result_path,
    save_json,
    scaled,
    show,
    table,
    way,
)


@pytest.fixture(scope="module")
def setup_c24f0f81():
    def made_up(row="clip", seed=0, budget="quick", value=0.5, without=(), **metrics):
        """A result as run_row writes it, with invented numbers."""
        scores = {c: value for c in COLUMNS.values() if c not in without} | metrics
        return {
            "row": row,
            "seed": seed,
            "budget": budget,
            "steps": 960,
            "cpu_s": 60.0 + seed,
            "peak_mb": 900.0,
            "params": 1_300_000,
            "metrics": scores,
            "config": {"title": {r.name: r.title for r in ROWS}.get(row, row)},
            "checkpoint_sha": f"sha of {row} {seed}",
        }

    return made_up


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "fe950cfa")
def test_trials_have_a_board_and_seeds_of_their_own():
    with tempfile.TemporaryDirectory() as folder:
        made, run = [], lambda row, seed, runs, results: made.append((row, seed, results)) or {"metrics": {}}
        command = lambda *words: record_tuned(
            "toy",
            ("a", "d"),
            ("a@1", "a@2"),
            run,
            [*words, "--results", folder],
            seeds=(0, 1),
            tuning=(9,),
            once=("d",),
        )
        command("--tune"), command("--rows", "a"), command()
        assert [unit[:2] for unit in made] == [("a@1", 9), ("a@2", 9), ("a", 0), ("a", 1), ("d", 0)] and {
            unit[2] for unit in made
        } == {Path(folder)}
        assert {p.parent.name for p in Path(folder).glob("*/a@*")} == {"toy-rates"} and len(
            list(Path(folder, "toy").iterdir())
        ) == 3
        with pytest.raises(SystemExit):
            command("--tune", "--rows", "a")  # a row is no trial


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "9d849fc3")
def test_a_board_records_once():
    with tempfile.TemporaryDirectory() as folder:
        made, run = [], lambda row, seed, runs: made.append((row, seed, runs)) or {"metrics": {"x": seed}}
        record_board("toy", ("a", "b"), run, ["--results", folder, "--seeds", "3", "--runs", "there"], also=("c",))
        record_board(
            "toy", ("a", "b"), run, ["--results", folder, "--seeds", "3", "4", "--rows", "b", "c"], also=("c",)
        )
        assert [unit[:2] for unit in made] == [("a", 3), ("b", 3), ("c", 3), ("b", 4), ("c", 4)]
        assert made[0][2] == Path("there") and made[-1][2] == Path("runs")
        assert json.loads((Path(folder) / "toy" / "b-quick-s4.json").read_text()) == {"metrics": {"x": 4}}
        with pytest.raises(SystemExit):
            record_board("toy", ("a", "b"), run, ["--rows", "d"])
        made.clear()
        record_board("toy", ("a", "d"), run, ["--results", folder], seeds=(5, 6), once=("d",))
        assert [unit[:2] for unit in made] == [("a", 5), ("d", 5), ("a", 6)]


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "07022d51")
def test_marks_of_questions_join_their_row():
    with tempfile.TemporaryDirectory() as folder:
        for seed, budget in ((0, "quick"), (1, "quick"), (0, "full")):
            r = {"row": "clip", "budget": budget, "seed": seed, "metrics": {"seen/r1": 0.5}}
            save_json(result_path(Path(folder), "scenes", r), r)
        for task, value in (("vqa", 0.6), ("nlvr", 0.7)):
            r = {
                "row": f"clip-{task}",
                "budget": "quick",
                "seed": 0,
                "metrics": {f"{task}/all": value},
                "config": {"line": "clip"},
            }
            save_json(result_path(Path(folder), "downstream", r), r)
        shown = {"row": "clip", "budget": "full", "seed": 0, "metrics": {"caption/f1": 0.8}}
        save_json(result_path(Path(folder), "showcase", shown), shown)
        found = {(r["budget"], r["seed"]): r["metrics"] for r in read_results(Path(folder))}
        assert found["quick", 0] == {"seen/r1": 0.5, "vqa/all": 0.6, "nlvr/all": 0.7}
        assert found["quick", 1] == {"seen/r1": 0.5} and found["full", 0] == {"seen/r1": 0.5, "caption/f1": 0.8}


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
def test_table_from_files(setup_c24f0f81):
    made_up = setup_c24f0f81
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
    assert linear[0] == "Linear baseline" and linear[header.index("pointing")] == "-" and linear[5] == "50.0"
    assert mine[0] == "mine"  # a row of yours


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "7a07cc33")
def test_every_table_has_its_columns(setup_c24f0f81):
    made_up = setup_c24f0f81
    runs = [made_up(seed=s, value=0.9, **{"foil/size": 0.7 + 0.1 * s}) for s in range(3)]
    header, clip = table(runs, TABLES["The true caption against one that is wrong in one place"])
    assert (
        header[5:] == list(FOILS)
        and clip[5 + FOILS.index("size")] == "80.0 ± 24.8"
        and clip[5 + FOILS.index("count")] == "-"
    )
    keys = [key for columns in TABLES.values() for key in columns.values()]
    assert len(keys) == len(set(keys)) and {f"openmoji/i2t_r{k}" for k in (1, 5, 10)} | {
        "caption/f1",
        "vqa/neighbour",
        "nlvr/all",
    } <= set(keys)


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "c2297a12")
def test_costs_of_rows(setup_c24f0f81):
    made_up = setup_c24f0f81
    header, clip, linear = costs(
        [made_up(seed=s) | {"wall_s": 100.0 + 10 * s} for s in (0, 1)]
        + [made_up("linear", budget="untrained") | {"steps": 0, "wall_s": 2.0}]
    )
    assert header == ["row", "seeds", "CPU-s", "steps", "params", "seconds", "peak MB", "ms a step"]
    assert clip == ["CLIP", "2", "60", "960", "1.30 M", "105", "900", "63"] and linear[3:] == [
        "0",
        "1.30 M",
        "2",
        "900",
        "60000",
    ]


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "17192fe9")
def test_from_chance_to_best(setup_c24f0f81):
    made_up = setup_c24f0f81
    runs = [made_up("a", s, value=0.8 + 0.1 * (s - 1)) for s in range(3)] + [made_up("b", value=0.5)]
    floor = {c: 0.2 for c in COLUMNS.values()} | {"nlvr/all": 0.95}
    found = scaled(runs, floor)
    assert found["a"]["R@1"] == pytest.approx((1, summary([0.7, 0.8, 0.9])[1] / 0.6)) and found["b"]["R@1"][
        0
    ] == pytest.approx(0.5)
    assert np.isnan(found["b"]["R@1"][1]) and "pairs" not in found["a"]  # none is above that chance


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "0799e783")
def test_way_through_the_budgets(setup_c24f0f81):
    made_up = setup_c24f0f81
    runs = [made_up("a", s, "full", 0.9) | {"steps": 4800, "cpu_s": 300.0} for s in range(2)] + [
        made_up("a", 0, "quick", 0.6),
        made_up("b"),
    ]
    runs += [
        made_up("a", 0, "untrained", 0.1) | {"steps": 0, "cpu_s": 0.0},
        made_up("a", 1, "untrained", without=["seen/r1"]),
    ]
    points = way(runs, "a", "seen/r1")
    assert (
        [p[:3] for p in points] == [(0, 0, 0.1), (960, 60, 0.6), (4800, 300, 0.9)]
        and points[2][3] == 0
        and np.isnan(points[1][3])
    )
    assert way(runs, "c", "seen/r1") == []


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "d71e908b")
def test_printed_table(setup_c24f0f81):
    made_up = setup_c24f0f81
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as text:
        show(table([made_up(seed=0), made_up(seed=1)]), "a board")
    assert "a board" in text.getvalue() and "CLIP" in text.getvalue() and "50.0 ± 0.0" in text.getvalue()
    page = html_table([["row", "R@1"], ["A < B", "1"], ["C", "2"]], "a & b")
    assert page.count("<tr>") == 3 and page.count("</td>") == 4 and "A &lt; B" in page and "a &amp; b" in page


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "b52b377a")
def test_compare_pairs_by_seed(setup_c24f0f81):
    made_up = setup_c24f0f81
    runs = [made_up("a", s, value=0.5 + 0.1 * s) for s in (4, 0, 2, 1, 3)] + [
        made_up("b", s, value=0.4 + 0.1 * s) for s in range(6)
    ]
    found = compare(runs, "a", "b", "seen/r1")
    assert (round(found.mean, 6), found.pairs, found.word) == (
        10.0,
        5,
        "better",
    )  # splits differ more than rows: paired
    assert (
        compare(runs, "b", "a", "seen/r1").word == "worse"
        and compare(runs, "a", "b", "seen/r1", margin=20).word == "open"
    )
    with pytest.raises(ValueError, match="4 pairs: a paired verdict needs at least 5"):
        compare(runs[:4] + runs[5:], "a", "b", "seen/r1")
    unmarked = made_up("b", 5, without=["vqa/mean"])  # a seed that was not asked questions is no pair
    assert compare([*runs[:-1], unmarked, made_up("a", 5)], "a", "b", "vqa/mean").pairs == 5


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "a4d9fa31")
def test_check_against_the_band(setup_c24f0f81):
    made_up = setup_c24f0f81
    recorded = [made_up(seed=s, value=v) for s, v in enumerate((0.90, 0.92, 0.94, 0.91))] + [
        made_up("linear", value=0.1)
    ]
    lines, inside = check(made_up(seed=9, value=0.93), recorded)
    assert inside and lines[1][1] == "93.0" and lines[1][-1] == "inside" and lines[-1][1] == "this seed is not recorded"
    lines, inside = check(made_up(seed=2, value=0.93, **{"pointing": 0.2}), recorded)
    assert (
        not inside
        and [line[0] for line in lines if line[-1] == "OUTSIDE"] == ["pointing"]
        and "bit for bit" in lines[-1][1]
    )
    low, high = band([90, 92, 94, 91], 0.05 / len(COLUMNS))
    assert lines[1][2] == f"{low:.1f} to {high:.1f}" and lines[1][3] == cell([0.90, 0.92, 0.94, 0.91])
    assert "other bits" in check(made_up(seed=2, value=0.93) | {"checkpoint_sha": "other"}, recorded)[0][-1][1]
    with pytest.raises(ValueError, match="1 runs: a band needs at least 3"):
        check(made_up("linear", value=0.1), recorded)


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "8aa8ed37")
def test_per_second(setup_c24f0f81):
    made_up = setup_c24f0f81

    def best(results, metric):
        """The row that scores most per CPU-second."""
        rows = {r["row"] for r in results}
        return max(
            rows, key=lambda row: np.mean([r["metrics"][metric] / r["cpu_s"] for r in results if r["row"] == row])
        )

    slow = [made_up("slow", s, value=0.9) | {"cpu_s": 90.0} for s in range(3)]
    fast = [made_up("fast", s, value=0.8) | {"cpu_s": 40.0} for s in range(3)]
    assert best(slow + fast, "seen/r1") == "fast" and best(slow, "seen/r1") == "slow"


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "8aa8ed37")
def test_per_second_starter_fails(setup_c24f0f81):
    made_up = setup_c24f0f81

    def best(results, metric):
        """The row that scores most per CPU-second."""
        rows = {r["row"] for r in results}
        return max(rows, key=lambda row: np.mean([r["metrics"][metric] for r in results if r["row"] == row]))

    with pytest.raises(Exception):
        slow = [made_up("slow", s, value=0.9) | {"cpu_s": 90.0} for s in range(3)]
        fast = [made_up("fast", s, value=0.8) | {"cpu_s": 40.0} for s in range(3)]
        assert best(slow + fast, "seen/r1") == "fast" and best(slow, "seen/r1") == "slow"


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "16b50877")
def test_my_row():
    def my_row(folder):
        """Writes bag.py and returns its row."""
        path = Path(folder) / "bag.py"
        path.write_text(
            "from vlp_course.models.controls import build_linear as build\nROW = {'title': 'Bag of words', 'quick': 50}\n"
        )
        return row_of(str(path))

    with tempfile.TemporaryDirectory() as folder:
        row = my_row(folder)
        assert (
            (row.title, row.quick) == ("Bag of words", 50)
            and Path(folder, "bag.py").exists()
            and "bag.py" in row.builder
        )
        assert sum(p.numel() for p in build_model(row.builder, 0).parameters()) > 0


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "16b50877")
def test_my_row_starter_fails():
    def my_row(folder):
        """Writes bag.py and returns its row."""
        return (*ROWS, Row("bag", "Bag of words", "controls:build_linear", 50))[-1]

    with pytest.raises(Exception):
        with tempfile.TemporaryDirectory() as folder:
            row = my_row(folder)
            assert (
                (row.title, row.quick) == ("Bag of words", 50)
                and Path(folder, "bag.py").exists()
                and "bag.py" in row.builder
            )
            assert sum(p.numel() for p in build_model(row.builder, 0).parameters()) > 0


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "c8197d52")
def test_agreement(setup_c24f0f81):
    made_up = setup_c24f0f81

    def agreement(results, a, b):
        """Spearman's rank correlation of two metrics over rows."""
        both = [r for r in results if {a, b} <= r["metrics"].keys()]
        rows = sorted({r["row"] for r in both})
        x, y = ([np.mean([r["metrics"][m] for r in both if r["row"] == row]) for row in rows] for m in (a, b))
        return np.corrcoef(np.argsort(np.argsort(x)), np.argsort(np.argsort(y)))[0, 1]

    runs = [
        made_up(name, **{"seen/r1": x, "group/group": y})
        for name, x, y in (("a", 0.1, 0.0), ("b", 0.2, 0.01), ("c", 0.3, 0.9), ("d", 0.9, 1.0))
    ]
    assert agreement(runs, "seen/r1", "group/group") == pytest.approx(1.0)
    assert (
        agreement(runs + [made_up("a", without=["pointing"])], "pointing", "seen/r1") is not None
    )  # of row a one run has both


@pytest.mark.nb("nbs/6_lab/29_leaderboard.ipynb", "c8197d52")
def test_agreement_starter_fails(setup_c24f0f81):
    made_up = setup_c24f0f81

    def agreement(results, a, b):
        """Spearman's rank correlation of two metrics over rows."""
        both = [r for r in results if {a, b} <= r["metrics"].keys()]
        rows = sorted({r["row"] for r in both})
        x, y = ([np.mean([r["metrics"][m] for r in both if r["row"] == row]) for row in rows] for m in (a, b))
        return np.corrcoef(x, y)[0, 1]

    with pytest.raises(Exception):
        runs = [
            made_up(name, **{"seen/r1": x, "group/group": y})
            for name, x, y in (("a", 0.1, 0.0), ("b", 0.2, 0.01), ("c", 0.3, 0.9), ("d", 0.9, 1.0))
        ]
        assert agreement(runs, "seen/r1", "group/group") == pytest.approx(1.0)
        assert (
            agreement(runs + [made_up("a", without=["pointing"])], "pointing", "seen/r1") is not None
        )  # of row a one run has both
