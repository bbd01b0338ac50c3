"""Generated from nbs/6_lab/29c_showcase.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from contextlib import redirect_stdout
from inspect import unwrap
from io import StringIO
from pathlib import Path
from torch import nn
from types import SimpleNamespace
from unittest.mock import patch
from vlp_course.caption_scores import parse
from vlp_course.checkpoints import TrainError
from vlp_course.data.grammar import Spec
from vlp_course.data.grammar import Thing
from vlp_course.data.objects import CLASSES
from vlp_course.data.objects import scene_objects
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Tokenized
from vlp_course.data.questions import ANSWERS
from vlp_course.data.questions import questions
from vlp_course.data.scenes import SIDE
from vlp_course.nn.encoders import Tokens
from vlp_course.rows import QUERIES
from vlp_course.rows import row_of
from vlp_course.showcase import (
    PICTURES,
    answered,
    asked,
    boxed,
    facts,
    folder_of,
    found_captions,
    main,
    show_row,
    slot_f1,
    whole,
    word_to_patch,
    written,
)


@pytest.fixture(scope="module")
def setup_70929009():
    class Oracle(nn.Module):
        """Ranks by number: picture i likes caption i best, then i + 1, ...; knows where things are: at the brightest cell."""

        def __init__(self, captions):
            super().__init__()
            self.captions, self.weight = list(captions), nn.Parameter(torch.ones(1))

        def encode_image(self, batch):
            number = torch.tensor([self.captions.index(c) for c in batch.caption]).float()[:, None]
            fine = number[:, None] if batch.features is None else batch.features[:, :64, None]
            return Tokens(number, fine, torch.ones(fine.shape[:2]) > 0)

        def tokenize(self, texts):
            return Tokenized(
                torch.tensor([[self.captions.index(t) if t in self.captions else 0] for t in texts]),
                torch.ones(len(texts), 1) > 0,
            )

        def encode_text(self, text):
            return Tokens(text.ids.float(), torch.zeros(len(text.ids), 1, 1), text.mask)

        def similarity(self, image, text):
            return -((text.pooled.T - image.pooled) % 9) + 0 * self.weight

    class Able(nn.Module):
        """A model with nothing but the given methods."""

        def __init__(self, **methods):
            super().__init__()
            vars(self).update(methods)

    return Able, Oracle


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "c7071849")
def test_captions_of_a_picture(setup_70929009):
    _, Oracle = setup_70929009
    few = SceneSet("test", 9)
    assert found_captions(Oracle(few.captions), few, (3, 7), count=4) == [[3, 4, 5, 6], [7, 8, 0, 1]]
    assert found_captions(Oracle(few.captions), few, (0,), count=2) == [[0, 1]]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "933f84c3")
def test_whole_maps():
    assert whole(torch.tensor([[1.0, 2.0], [3.0, 5.0]])) == [
        [0, 25],
        [50, 99],
    ]  # by hand: 99 * (0, 1, 2, 4) / 4, rounded
    assert whole(torch.full((2, 2), 7.0)) == [[0, 0], [0, 0]]
    assert whole(-torch.tensor([[1.0, 2.0], [3.0, 5.0]])) == [[99, 74], [50, 0]]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "d8eaca32")
def test_maps_know_their_phrases_and_boxes(setup_70929009):
    Able, _ = setup_70929009
    known = (
        (),
        tuple(
            (i, phrase, (64 * k, 0, 64 * k + 64, 128)) for i in (13, 24) for k, phrase in enumerate(("left", "right"))
        ),
    )
    left = torch.zeros(4, 8, 8)
    left[:, 2, 1] = 1.0  # always the left half
    parts = dict(
        board_texts=lambda: known,
        grad_cam=lambda model, batch, texts: left[: len(texts)],
        encode_texts=lambda model, texts: texts,
        phrase_maps=lambda model, image, texts: {"words": left[: len(texts)].flip(2)},
    )
    with patch.multiple(unwrap(word_to_patch).__module__, **parts):
        few = SceneSet("test", 66)
        plain, own = (
            word_to_patch(Able(), few, (24, 13)),
            word_to_patch(Able(tables=0, encode_image=lambda batch: batch), few, (13,)),
        )
    assert [(p["picture"], p["phrase"], p["map_hit"]) for p in plain] == [
        (24, "left", True),
        (24, "right", False),
        (13, "left", True),
        (13, "right", False),
    ]
    assert plain[0]["map"][2][1] == 99 and sum(map(sum, plain[0]["map"])) == 99 and "tokens" not in plain[0]
    assert [p["tokens_hit"] for p in own] == [False, True] and own[0]["box"] == [0, 0, 64, 128]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "98375efc")
def test_f1_by_hand():
    pair = Spec("horizontal", (Thing("star", "purple", "big"), Thing("dumpling", None, "small")), "striped")
    one = Spec("count", (Thing("dinosaur", None, "small"),), "grey", "middle", 3)
    assert facts(pair).total() == 2 + 2 + 1 + 1 + 1 and facts(one).total() == 4 and facts(None).total() == 0
    true, small = (
        "a big purple star on the left and a small dumpling on the right of a striped ground",
        "three small dinosaurs on a grey ground",
    )
    assert parse(true) == pair and parse(small) == one
    assert slot_f1([true, small], [pair, one]) == 1
    swapped = "a small dumpling on the left and a big purple star on the right of a striped ground"
    assert slot_f1([swapped], [pair]) == pytest.approx(6 / 7)  # one of seven facts is wrong on either side
    assert slot_f1([true, "nothing that can be read"], [pair, one]) == pytest.approx(2 * 7 / (7 + 7 + 4))
    assert slot_f1(["two small dinosaurs on a white ground"], [one]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="1 captions for 2 scenes"):
        slot_f1([true], [pair, one])


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "b09ae7cb")
def test_own_captions_are_right(setup_70929009):
    Able, _ = setup_70929009
    few = SceneSet("test", 66)
    truthful = Able(generate=lambda images: [few.captions[i] for i in images])
    with patch.multiple(
        unwrap(written).__module__,
        encode_images=lambda model, scenes, rows: list(rows),
        cider=lambda c, t: float(len(c)),
    ):
        told, marks = written(truthful, few, 66)
    assert (
        told == [few.captions[i] for i in PICTURES]
        and marks["caption/f1"] == marks["caption/exact"] == 1
        and marks["caption/cider"] == 66
    )


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "5bfedd14")
def test_true_boxes_are_perfect(setup_70929009):
    Able, _ = setup_70929009
    few = SceneSet("test", 66)
    objects = scene_objects(few)
    perfect = [o | {"scores": torch.ones(len(o["labels"]))} for o in objects]
    renamed = [p | {"labels": (p["labels"] + 1) % len(CLASSES)} for p in perfect]
    with patch.multiple(unwrap(boxed).__module__, encode_images=lambda model, scenes, rows: list(rows)):
        boxes, marks = boxed(Able(detect=lambda rows: perfect), few, 66)
        _, wrong = boxed(Able(detect=lambda rows: renamed), few, 66)
        none, _ = boxed(Able(detect=lambda rows: perfect), few, 66, least=1.1)
    assert marks == {"box/ap50": 1.0, "box/any50": 1.0} and wrong["box/any50"] == 1 and wrong["box/ap50"] < 0.1
    assert [len(b) for b in boxes] == [len(few.scene(i).objects) for i in PICTURES] and none == [[]] * 6
    names = {o.noun for o in few.scene(13).objects}
    assert {b[4] for b in boxes[0]} == names and all(
        0 <= min(b[:4]) and max(b[:4]) <= SIDE for row in boxes for b in row
    )


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "04eef430")
def test_two_questions_a_picture():
    few = SceneSet("test", 66, features=np.zeros((66, 4), np.float16))
    data = asked(few)
    assert data.scenes[:, 0].tolist() == [i for i in PICTURES for _ in "ab"] and data.features is few.features
    assert data.slots[:2] == ["relation", "neighbour"] and data.slots[8:] == ["place", "what", "count", "what"]
    true = {(i, text): answer for i in PICTURES for _, text, answer in questions("test", 0, i)}
    assert all(true[int(i), text] == ANSWERS[a] for i, text, a in zip(data.scenes[:, 0], data.texts, data.answers))


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "c14a8d03")
def test_answers_are_recorded():
    few, yes = SceneSet("test", 66, features=np.zeros((66, 4), np.float16)), ANSWERS.index("yes")

    class Yes(nn.Module):
        """Says yes to everything."""

        tokenize = staticmethod(
            lambda texts: Tokenized(torch.ones(len(texts), 2, dtype=torch.long), torch.ones(len(texts), 2) > 0)
        )
        scores = staticmethod(lambda batch: torch.eye(len(ANSWERS))[[yes] * len(batch.caption)])

    told = []
    with patch.multiple(
        unwrap(answered).__module__,
        finetune=lambda *a: told.append(a) or SimpleNamespace(model=Yes(), cpu_s=1.5, steps=a[2]),
    ):
        said = answered(nn.Identity(), few, 0.002, 7, seed=3)
    assert told[0][1:] == ("vqa", 7, 0.002, 3) and said["cpu_s"] == 1.5 and said["steps"] == 7
    assert (
        len(said["asked"]) == 12
        and {q["answer"] for q in said["asked"]} == {"yes"}
        and {q["truth"] for q in said["asked"]} >= {"dumpling", "three"}
    )


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "99a12b94")
def test_only_finished_runs():
    with tempfile.TemporaryDirectory() as runs:
        row = row_of("linear")
        with pytest.raises(
            TrainError,
            match="no finished run of linear in .*linear-full-s3: `vlp pretrain linear --budget full --seed 3 --out",
        ):
            folder_of(row, "full", 3, Path(runs))
        for budget, name, steps in (("quick", "linear-s3", row.quick), ("full", "linear-full-s3", row.steps("full"))):
            Path(runs, name, "step-00000007").mkdir(parents=True)
            with pytest.raises(TrainError):
                folder_of(row, budget, 3, Path(runs))  # still training
            Path(runs, name, f"step-{steps:08d}").mkdir()
            assert folder_of(row, budget, 3, Path(runs)) == Path(runs, name)


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "c46411af")
def test_rows_are_asked_for_what_they_can(setup_70929009):
    Able, _ = setup_70929009
    quiet = dict(
        test_set=lambda *a: SceneSet("test", 3),
        found_pictures=lambda *a, **k: [[1]],
        found_captions=lambda *a: [[2]],
        word_to_patch=lambda *a: ["map"],
        written=lambda *a: (["text"], {"caption/f1": 0.5}),
        boxed=lambda *a: ([["box"]], {"box/ap50": 0.25}),
    )
    with patch.multiple(unwrap(show_row).__module__, **quiet):
        assert show_row(row_of("clip"), Able()) == {"pictures": [[1]], "captions": [[2]], "maps": ["map"]}
        assert "maps" not in show_row(row_of("clip-from-scratch"), Able())
        whole_row = show_row(row_of("e2e-vlp"), Able(generate=0, detect=0))
    assert (
        whole_row["metrics"] == {"caption/f1": 0.5, "box/ap50": 0.25}
        and whole_row["written"] == ["text"]
        and whole_row["boxes"] == [["box"]]
    )


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "8c822857")
def test_what_is_there_is_kept():
    made, result = [], {"row": "linear", "budget": "quick", "seed": 0, "cpu_s": 1.0, "answers": {"cpu_s": 2.0}}
    with tempfile.TemporaryDirectory() as folder:
        run = ["--results", folder, "--budget", "quick", "--rows", "linear", "--runs", folder]
        with redirect_stdout(StringIO()) as said:
            main(run)
        assert (
            said.getvalue().startswith("skipped: no finished run of linear in ")
            and "vlp pretrain linear --budget quick" in said.getvalue()
        )
        stand_ins = dict(
            folder_of=lambda *a: Path("there"),
            record_row=lambda *a: made.append(a) or (result if a[-1] else {k: result[k] for k in ("row", "cpu_s")}),
        )
        with patch.multiple(unwrap(main).__module__, **stand_ins), redirect_stdout(StringIO()) as said:
            main(run), main(run), main([*run, "--answers", "linear"]), main([*run, "--answers", "linear"])
    assert [a[-1] for a in made] == [False, True] and made[0][1:4] == ("quick", 0, Path("there"))
    assert said.getvalue().count("is there already") == 2 and "answers 2" in said.getvalue()


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "a131de63")
def test_distance():
    def distance(a, b):
        """Pixels between the brightest cells of two maps."""
        (r, c), (s, d) = (divmod(int(np.argmax(m)), len(m)) for m in (a, b))
        return float(np.hypot(r - s, c - d)) * SIDE / len(a)

    left, right = np.zeros((8, 8), int), np.zeros((8, 8), int)
    left[3, 1], right[3, 6] = 99, 99
    assert distance(left.tolist(), right.tolist()) == 5 * 16 and distance(left.tolist(), left.tolist()) == 0
    assert distance(left[2:6, :4].tolist(), right[2:6, 4:].tolist()) == 32  # one cell of a 4 x 4 map


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "a131de63")
def test_distance_starter_fails():
    def distance(a, b):
        """Pixels between the brightest cells of two maps."""
        (r, c), (s, d) = (divmod(int(np.argmax(m)), len(m)) for m in (a, b))
        return float(np.hypot(r - s, c - d))

    with pytest.raises(Exception):
        left, right = np.zeros((8, 8), int), np.zeros((8, 8), int)
        left[3, 1], right[3, 6] = 99, 99
        assert distance(left.tolist(), right.tolist()) == 5 * 16 and distance(left.tolist(), left.tolist()) == 0
        assert distance(left[2:6, :4].tolist(), right[2:6, 4:].tolist()) == 32  # one cell of a 4 x 4 map


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "2a316a96")
def test_blame():
    def blame(truth, told):
        """Kinds of fact that are missing or invented in a caption."""
        if parse(told) is None:
            return ["unreadable"]
        a, b = facts(truth), facts(parse(told))
        return sorted({fact[0] for fact in (a - b) + (b - a)})

    truth = parse("a big purple star on the left and a small dumpling on the right of a striped ground")
    assert blame(truth, "a big purple star on the left and a small dumpling on the right of a striped ground") == []
    assert blame(truth, "a small dumpling on the left and a big purple star on the right of a striped ground") == [
        "horizontal"
    ]
    assert blame(truth, "a big red star on the left and a big dumpling on the right of a white ground") == [
        "colour",
        "ground",
        "size",
    ]
    assert blame(truth, "star star star") == ["unreadable"]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "2a316a96")
def test_blame_starter_fails():
    def blame(truth, told):
        """Kinds of fact that are missing or invented in a caption."""
        return [] if parse(told) == truth else ["caption"]

    with pytest.raises(Exception):
        truth = parse("a big purple star on the left and a small dumpling on the right of a striped ground")
        assert blame(truth, "a big purple star on the left and a small dumpling on the right of a striped ground") == []
        assert blame(truth, "a small dumpling on the left and a big purple star on the right of a striped ground") == [
            "horizontal"
        ]
        assert blame(truth, "a big red star on the left and a big dumpling on the right of a white ground") == [
            "colour",
            "ground",
            "size",
        ]
        assert blame(truth, "star star star") == ["unreadable"]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "622a4104")
def test_hard():
    def hard(recorded, captions):
        """How many rows are wrong about each query."""
        return [
            sum(captions[r["captions"][k][0]] != captions[q] for r in recorded.values()) for k, q in enumerate(QUERIES)
        ]

    captions = {i: f"caption {i}" for i in range(100)} | {99: f"caption {QUERIES[0]}"}
    rows = {"a": {"captions": [[q] for q in QUERIES]}, "b": {"captions": [[99], *([7] for _ in QUERIES[1:])]}}
    assert hard(rows, captions) == [0, 1, 1, 1, 1, 1]


@pytest.mark.nb("nbs/6_lab/29c_showcase.ipynb", "622a4104")
def test_hard_starter_fails():
    def hard(recorded, captions):
        """How many rows are wrong about each query."""
        return [sum(r["captions"][k][0] != q for r in recorded.values()) for k, q in enumerate(QUERIES)]

    with pytest.raises(Exception):
        captions = {i: f"caption {i}" for i in range(100)} | {99: f"caption {QUERIES[0]}"}
        rows = {"a": {"captions": [[q] for q in QUERIES]}, "b": {"captions": [[99], *([7] for _ in QUERIES[1:])]}}
        assert hard(rows, captions) == [0, 1, 1, 1, 1, 1]
