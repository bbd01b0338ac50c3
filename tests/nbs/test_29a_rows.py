"""Generated from nbs/6_lab/29a_rows.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import sys
import tempfile
import torch
from inspect import unwrap
from pathlib import Path
from torch import nn
from unittest.mock import patch
from vlp_course.checkpoints import TrainError
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Tokenized
from vlp_course.evaluate import SETS
from vlp_course.evaluate import feature_scenes
from vlp_course.nn.encoders import Tokens
from vlp_course.rows import (
    ROWS,
    Row,
    TRAIN,
    board_rows,
    build_model,
    found_pictures,
    is_finished,
    load_row,
    prepare,
    row_of,
    run_folder,
    run_row,
    train_set,
    versions,
)


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "46b01364")
def test_rows():
    assert len({r.name for r in ROWS}) == len(ROWS) and all(r.quick > 0 and ":" in r.builder for r in ROWS)
    row = Row("mine", "Mine", "clip:build", 100)
    assert [row.steps(b) for b in ("quick", "full", "untrained")] == [100, 500, 0]
    assert Row("mine", "Mine", "clip:build", 100, full=460).steps("full") == 460
    assert row_of("clip-random-batches").families == 0 and row_of("clip").families > 0
    assert row_of("clip").quick == row_of("clip-random-batches").quick  # the control differs in one thing alone


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "48a8b9c4")
def test_unknown_names():
    with pytest.raises(ValueError, match="unknown row 'clipp': choose one of clip, siglip, .*linear"):
        row_of("clipp")
    with pytest.raises(ValueError, match="unknown budget 'long': choose quick, full or untrained"):
        row_of("clip").steps("long")
    with pytest.raises(AttributeError):
        row_of("clip").quick = 10  # frozen: a row is a record


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "7565d016")
def test_builders():
    model, again, other = (build_model("controls:build_linear", seed) for seed in (0, 0, 1))
    assert checkpoint_sha(model) == checkpoint_sha(again) != checkpoint_sha(other)
    with pytest.raises(ValueError, match="no module 'nosuch' below vlp_course.models"):
        build_model("nosuch:build", 0)


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "75e9788a")
def test_prepared_once_for_all_rows():
    asked = []
    with patch.multiple(unwrap(prepare).__module__, compute_features=lambda sets, workers: asked.extend(sets)):
        prepare()
    assert len(asked) == 1 + len(SETS) + 2  # training and test sets; both again for the untrained trunk
    assert {(s.split, s.style, len(s)) for s, pretrained in asked if pretrained} == {
        ("train", "noto", TRAIN),
        *SETS.values(),
    }
    assert {(s.split, len(s)) for s, pretrained in asked if not pretrained} == {
        ("train", 6000),
        ("test", SETS["seen"][2]),
    }
    asked.clear()
    nothing_cached = patch.object(
        sys.modules[unwrap(feature_scenes).__module__], "feature_file", lambda *a: Path("nosuch")
    )
    with (
        patch.multiple(unwrap(prepare).__module__, compute_features=lambda sets, workers: asked.extend(sets)),
        nothing_cached,
    ):
        prepare((row_of("clip"), row_of("lm")), sets=("seen", "nouns"), count=1002)
    assert [(s.split, s.style, len(s)) for s, _ in asked] == [
        ("train", "noto", TRAIN),
        ("test", "noto", 1002),
        ("nouns", "noto", 1002),
    ]


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "df88a127")
def test_pixel_rows_see_pixels():
    data = train_set(Row("x", "X", "clip:build", 1, families=1.0, pixels=True, scenes=9))
    assert data.features is None and data.batch([0, 5]).image.shape == (2, 3, 128, 128)
    assert data.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len(set(train_set(Row("x", "X", "clip:build", 1, families=0.0, pixels=True, scenes=9)).groups)) == 9


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "abaf36dc")
def test_one_file_is_a_row():
    with tempfile.TemporaryDirectory() as folder:
        mine = Path(folder) / "mine.py"
        mine.write_text(
            "from vlp_course.models.controls import build_pixels as build\n"
            "ROW = {'title': 'Mine', 'quick': 7, 'pixels': True, 'scenes': 66}\n"
        )
        row = row_of(str(mine))
        assert (row.name, row.title, row.quick) == ("mine", "Mine", 7)
        result = run_row(
            str(mine), seed=1, steps=2, progress=False, score=False
        )  # trained, and nothing else was changed
        assert (
            result["row"] == "mine"
            and result["steps"] == 2
            and result["checkpoint_sha"] != checkpoint_sha(build_model(row.builder, 1))
        )
        mine.write_text("ROW = {'title': 'Mine', 'quick': 7, 'colour': 'red'}")
        with pytest.raises(TypeError, match="colour"):  # a misspelt entry is not passed over
            row_of(str(mine))
    with pytest.raises(FileNotFoundError):
        row_of("nosuch/file.py")
    assert board_rows()[: len(ROWS)] == ROWS and all(row_of(row.name) == row for row in board_rows())


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "76de909a")
def test_versions_say_what_counts():
    assert versions().keys() == {"vlp_course", "torch", "timm", "numpy", "python", "cpu", "threads"}
    assert all(isinstance(v, str) and v for v in versions().values())


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "43e53c43")
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
    with small:
        faster = run_row("clip-from-scratch", seed=3, steps=2, progress=False, score=False, lr=0.004)
    assert faster["row"] == "clip-from-scratch@0.004" and faster["config"]["recipe"]["lr"] == 0.004
    assert faster["checkpoint_sha"] != first["checkpoint_sha"] and first["row"] == "clip-from-scratch"
    assert first["config"]["recipe"]["seed"] == 3 and first["config"]["builder"] == row_of("clip-from-scratch").builder
    assert json.loads(json.dumps(first)).keys() == second.keys()  # all of it is JSON
    for native, precision in ((True, "bf16"), (False, "no")):
        with small, patch.multiple(unwrap(run_row).__module__, native_bf16=lambda device: native):
            kept = run_row("clip-from-scratch", steps=1, progress=False, score=False)["config"]["recipe"]["precision"]
        assert kept == precision


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "0db04192")
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


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "653bfdd8")
def test_no_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(TrainError, match="holds no checkpoint: train one with `vlp pretrain linear --out"):
            load_row("linear", Path(folder))


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "87283813")
def test_where_runs_lie():
    row = row_of("linear")
    for budget, name in (("quick", "linear-s3"), ("full", "linear-full-s3")):
        assert run_folder(Path("runs"), "linear", budget, 3) == Path("runs", name)
        for steps, finished in ((row.steps(budget), True), (7, False)):
            with patch.multiple(
                unwrap(is_finished).__module__, latest_checkpoint=lambda folder: Path(folder, f"step-{steps:08d}")
            ):
                assert is_finished(row, budget, Path("anywhere")) is finished
    assert not is_finished(row, "quick", Path("nosuch"))


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "69a3f8dd")
def test_found_pictures_are_the_best():
    class Oracle(nn.Module):
        """Knows the number of each scene: caption i finds picture i first, then i + 1, i + 2, ..."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def encode_image(self, batch):
            return Tokens(
                torch.arange(len(batch.caption)).float()[:, None],
                torch.zeros(len(batch.caption), 1, 1),
                torch.ones(len(batch.caption), 1) > 0,
            )

        def tokenize(self, texts):
            return Tokenized(torch.tensor([[captions.index(t)] for t in texts]), torch.ones(len(texts), 1) > 0)

        def encode_text(self, text):
            return Tokens(text.ids.float(), torch.zeros(len(text.ids), 1, 1), text.mask)

        def similarity(self, image, text):
            return -((image.pooled - text.pooled.T) % 9)

    scenes = SceneSet("test", 9)
    captions = scenes.captions
    with patch.multiple(unwrap(found_pictures).__module__, test_set=lambda *a: scenes):
        assert found_pictures(Oracle(), (3, 7), count=4) == [[3, 4, 5, 6], [7, 8, 0, 1]]


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "16b50877")
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


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "16b50877")
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


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "8ef6a677")
def test_same_run():
    def same_run(a, b):
        """What two receipts have in common."""
        if a["data_sha"] != b["data_sha"]:
            return "other scenes"
        return "same bits" if a["checkpoint_sha"] == b["checkpoint_sha"] else "same scenes, other weights"

    first = {"row": "clip", "seed": 0, "data_sha": "d1", "checkpoint_sha": "c1"}
    assert same_run(first, dict(first)) == "same bits"
    assert same_run(first, first | {"checkpoint_sha": "c2"}) == "same scenes, other weights"
    assert same_run(first, first | {"data_sha": "d2"}) == "other scenes"


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "8ef6a677")
def test_same_run_starter_fails():
    def same_run(a, b):
        """What two receipts have in common."""
        return "same bits" if (a["row"], a["seed"]) == (b["row"], b["seed"]) else "other scenes"

    with pytest.raises(Exception):
        first = {"row": "clip", "seed": 0, "data_sha": "d1", "checkpoint_sha": "c1"}
        assert same_run(first, dict(first)) == "same bits"
        assert same_run(first, first | {"checkpoint_sha": "c2"}) == "same scenes, other weights"
        assert same_run(first, first | {"data_sha": "d2"}) == "other scenes"


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "ecbc589a")
def test_ready():
    def ready(module):
        """Is this module a row of the board?"""
        if not (hasattr(module, "build") and {"title", "quick"} <= getattr(module, "ROW", {}).keys()):
            return False
        needs = ("forward", "tokenize", "encode_image", "encode_text", "similarity")
        return all(callable(getattr(module.build(seed=0), name, None)) for name in needs)

    from types import SimpleNamespace

    good = SimpleNamespace(
        ROW={"title": "Mine", "quick": 3000}, build=lambda seed: build_model("controls:build_linear", seed)
    )
    assert ready(good) and not ready(SimpleNamespace(ROW=good.ROW)) and not ready(SimpleNamespace(build=good.build))
    assert not ready(SimpleNamespace(ROW={"title": "Mine"}, build=good.build))
    assert not ready(SimpleNamespace(ROW=good.ROW, build=lambda seed: nn.Linear(2, 2)))


@pytest.mark.nb("nbs/6_lab/29a_rows.ipynb", "ecbc589a")
def test_ready_starter_fails():
    def ready(module):
        """Is this module a row of the board?"""
        return hasattr(module, "ROW")

    with pytest.raises(Exception):
        from types import SimpleNamespace

        good = SimpleNamespace(
            ROW={"title": "Mine", "quick": 3000}, build=lambda seed: build_model("controls:build_linear", seed)
        )
        assert ready(good) and not ready(SimpleNamespace(ROW=good.ROW)) and not ready(SimpleNamespace(build=good.build))
        assert not ready(SimpleNamespace(ROW={"title": "Mine"}, build=good.build))
        assert not ready(SimpleNamespace(ROW=good.ROW, build=lambda seed: nn.Linear(2, 2)))
