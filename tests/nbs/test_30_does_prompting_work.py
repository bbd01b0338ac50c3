"""Generated from nbs/6_lab/30_does_prompting_work.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
from vlp_course.verdicts import summary
from vlp_course.prompts.answer import (
    FILM,
    FORM,
    FULL,
    HAND,
    LEARNED,
    Point,
    SMALL,
    cpt_points,
    duel,
    fuse_points,
    tally,
    text_points,
    vision_kept,
    vision_points,
    word_of,
)


@pytest.fixture(scope="module")
def setup_8895f970():
    def paired(results, a, b, value):
        """value(run) of row a minus row b in points, by seed, as (mean, half of the 95 % interval, pairs); None without two pairs."""
        runs = [{r["seed"]: value(r) for r in results if r["row"] == row} for row in (a, b)]
        common = sorted(runs[0].keys() & runs[1].keys())
        return (*summary([100 * (runs[0][s] - runs[1][s]) for s in common]), len(common)) if len(common) > 1 else None

    def said(found):
        """A difference as text, with a word."""
        if found is None:
            return "not recorded"
        mean, half, pairs = found
        return f"{mean:+.1f} ± {half:.1f} ({'few: ' if pairs < 5 else ''}{pairs} pairs): {'yes' if mean > half and pairs > 4 else 'no, the reverse' if mean < -half and pairs > 4 else 'open'}"

    return paired, said


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "393314df")
def test_points_of_text_and_vision():
    config = {"method": "prefix", "labels": 16, "causal": False, "init": "labels", "length": None}
    made = {"config": config, "seed": 2, "metrics": {"film": 0.75}, "kept": 18432, "cpu_s": 14.0}
    hand = {**made, "config": config | {"method": "calibrated", "labels": 0, "causal": True}, "kept": 0}
    swept, everything = (
        {**made, "config": config | {"length": 3}},
        {**made, "config": config | {"method": "full", "labels": 0}},
    )
    assert text_points([made, hand, swept, everything]) == [
        Point("film, MiniLM", "prefix", LEARNED, 8, 2, 75.0, 18432, 14.0),
        Point("film, SmolLM2", "calibrated", HAND, 0, 2, 75.0, 0, 14.0),
        Point("film, MiniLM", "full", FULL, FILM, 2, 75.0, 18432, 14.0),
    ]
    cells = {f"three/{n}/noto": n / 10 for n in (1, 2, 4, 8)} | {"scenes/16/noto": 0.9}
    size = {"classes": 11, "joint": 128, "model": 1000}
    found = vision_points([{"row": row, "seed": 1, "metrics": cells, "size": size} for row in ("coop", "zero")])
    assert [(p.method, p.shots, round(p.score)) for p in found] == [
        ("coop", 1, 10),
        ("coop", 2, 20),
        ("coop", 4, 40),
        ("coop", 8, 80),
        ("coop", 16, 90),
        ("zero", 0, 80),
        ("zero", 0, 90),
    ]
    assert (
        found[0].kept == 384
        and found[-1].kept == 0
        and vision_kept("tip", size, 4) == 11 * 4 * 128
        and vision_kept("finetune", size, 4) == 1000
    )


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "fdb66b80")
def test_numbers_kept_are_those_of_the_learners():
    import torch
    from torch import nn
    from vlp_course.data.pairs import Vocabulary
    from vlp_course.prompts.coop import CoCoOp, CoOp, TextTower

    vocabulary = Vocabulary("a picture of cat dog owl".split())
    tower = TextTower(nn.Embedding(len(vocabulary), 32), lambda x, ids, mask: x.mean(1), vocabulary.tokenize, 12)
    size = {"classes": 3, "joint": 32, "model": 7}
    count = lambda module: sum(p.numel() for p in module.parameters())
    for row, learner in {
        "coop": CoOp(tower, 1.0, ["cat", "dog", "owl"], words="a picture of"),
        "cocoop": CoCoOp(tower, 1.0, ["cat", "dog", "owl"], words="a picture of"),
        "coop-class": CoOp(tower, 1.0, ["cat", "dog", "owl"], words="a picture of", per_class=True),
        "probe": nn.Linear(32, 3),
    }.items():
        assert vision_kept(row, size, 4) == count(learner)


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "dcd4e064")
def test_points_of_grounding_and_questions():
    marks = {f"{n}/right": n / 20 for n in (0, 1, 2, 4, 8, 16)}
    found = cpt_points([{"row": row, "seed": 3, "metrics": marks} for row in ("cpt", "head", "controls")])
    assert [(p.method, p.kind, p.shots, p.score) for p in found[:2]] == [
        ("cpt-zero", HAND, 0, 0.0),
        ("cpt", FORM, 1, 5.0),
    ] and len(found) == 6 + 5
    run = lambda method, examples, part="test": {
        "config": {"method": method, "examples": examples, "part": part},
        "seed": 1,
        "metrics": {"all": 0.3},
        "params": 7,
        "cpu_s": 2.0,
    }
    found = fuse_points([run("frozen", 128), run("black", 128), run("zero", 0), run("frozen", 128, "val")])
    assert [(p.method, p.kind, p.shots, p.kept) for p in found] == [("frozen", SMALL, 6, 7), ("zero", HAND, 0, 7)]


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "3f47b80d")
def test_duels_by_hand():
    def line(task, method, kind, scores):
        return [Point(task, method, kind, n, s, v + s, 1, 1.0) for n, v in scores.items() for s in range(5)]

    toy = (
        line("t", "a", LEARNED, {1: 10.0, 4: 30.0, 16: 50.0})
        + line("t", "b", FULL, {1: 5.0, 4: 20.0, 16: 60.0})
        + [Point("t", "h", HAND, 0, 0, 20.0, 0, 1.0)]
    )
    few, many = duel(toy, "t", "a", "b", True), duel(toy, "t", "a", "b", False)
    assert (few.mean, few.pairs, few.word) == (7.5, 10, "better") and (many.mean, many.pairs, many.word) == (
        -10.0,
        5,
        "worse",
    )
    assert (
        duel(toy, "t", "a", "h", True).mean == 2.0 and duel(toy, "t", "a", "h", False).mean == 32.0
    )  # seeds add 0 to 4, 2 on average
    assert duel(toy[:4], "t", "a", "b", True) is None and duel(toy, "t", "a", "nobody", True) is None
    assert (
        duel(line("t", "h", HAND, {0: 1.0}) + toy[:15], "t", "a", "h", True).mean == 19.0
    )  # paired by seed where each has its own
    assert tally([few, many, None, few]) == (2, 1, 0)
    assert [word_of(*t) for t in ((2, 0, 2), (2, 1, 0), (1, 0, 3), (0, 0, 4), (0, 0, 0))] == [
        "holds",
        "depends",
        "depends",
        "does not hold here",
        "open here",
    ]


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "e44b5ddc")
def test_differences_by_hand(setup_8895f970):
    paired, said = setup_8895f970
    runs = [
        {"row": row, "seed": s, "metrics": {"x": v + 0.01 * s}} for row, v in (("a", 0.5), ("b", 0.3)) for s in range(5)
    ]
    found = paired(runs, "a", "b", lambda r: r["metrics"]["x"])
    assert (
        found[0] == pytest.approx(20)
        and found[2] == 5
        and said(found).endswith("(5 pairs): yes")
        and said(found[:2] + (4,)).endswith("(few: 4 pairs): open")
    )
    assert (
        said((-3.0, 1.0, 5)).endswith("no, the reverse")
        and said(None) == "not recorded"
        and paired(runs, "a", "c", len) is None
    )


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "36b06e03")
def test_by_luck():
    def by_luck(duels):
        return 0.025 * duels, 0.975**duels

    won, none_lost = by_luck(40)
    assert won == 1.0 and none_lost == pytest.approx(0.363, abs=1e-3) and by_luck(0) == (0, 1)


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "36b06e03")
def test_by_luck_starter_fails():
    def by_luck(duels):
        return 0.05 * duels, 0.95**duels

    with pytest.raises(Exception):
        won, none_lost = by_luck(40)
        assert won == 1.0 and none_lost == pytest.approx(0.363, abs=1e-3) and by_luck(0) == (0, 1)


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "4ed14a5e")
def test_crossing():
    def crossing(shots, first, second):
        below = [i for i, (a, b) in enumerate(zip(first, second)) if b < a]
        start = below[-1] + 1 if below else 0
        return shots[start] if start < len(shots) else None

    assert (
        crossing([1, 2, 4, 8], [5, 5, 5, 5], [4, 6, 4, 6]) == 8
        and crossing([1, 2], [3, 3], [4, 4]) == 1
        and crossing([1, 2], [3, 3], [4, 2]) is None
    )


@pytest.mark.nb("nbs/6_lab/30_does_prompting_work.ipynb", "4ed14a5e")
def test_crossing_starter_fails():
    def crossing(shots, first, second):
        return next((n for n, a, b in zip(shots, first, second) if b >= a), None)

    with pytest.raises(Exception):
        assert (
            crossing([1, 2, 4, 8], [5, 5, 5, 5], [4, 6, 4, 6]) == 8
            and crossing([1, 2], [3, 3], [4, 4]) == 1
            and crossing([1, 2], [3, 3], [4, 2]) is None
        )
