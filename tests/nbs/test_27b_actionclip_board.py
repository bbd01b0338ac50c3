"""Generated from nbs/5_prompting/27b_actionclip_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from unittest import mock
from vlp_course.data.clip_sets import ClipSet
from vlp_course.data.clips import ACTIONS
from vlp_course.data.pairs import course_vocabulary
from vlp_course.lab import read_results
from vlp_course.models.clip import CLIP
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.action_board import ORDERS, TESTS, build, chosen, main, right, run_unit, trained


@pytest.fixture(scope="module")
def setup_70011ac8():
    HERE = right.__module__

    def few(part):
        """Thirty-six clips with random features."""
        split = "train" if part == "train" else TESTS[part][0]
        return ClipSet(
            split, 36, features=np.random.default_rng(len(part)).normal(size=(18, 8, 12288)).astype(np.float16)
        )

    def small_base(name):
        torch.manual_seed(1)
        vocabulary = course_vocabulary()
        return CLIP(ImageEncoder(16, 4), TextEncoder(torch.randn(len(vocabulary), 16), 4), vocabulary, 16)

    return HERE, few, small_base


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "99c99842")
def test_right_answers_and_right_motions(setup_70011ac8):
    HERE, few, _ = setup_70011ac8
    with mock.patch(f"{HERE}.clips_of", few):
        truth = torch.from_numpy(few("seen").actions)
        assert right(F.one_hot(truth, 18).float(), "seen") == (1.0, 1.0) and right(
            F.one_hot(truth ^ 1, 18).float(), "seen"
        ) == (0.0, 1.0)
        assert right(F.one_hot((truth + 2) % 18, 18).float(), "seen") == (0.0, 0.0)
        held = torch.from_numpy(few("actions").actions) - 18
        assert right(F.one_hot(held, 6).float(), "actions") == (1.0, 1.0)
    x = torch.arange(16.0).reshape(2, 8, 1)
    assert torch.equal(ORDERS["shuffled/"](x, torch.Generator().manual_seed(0)).sort(1).values, x)
    one = ORDERS["one frame/"](x.repeat(40, 1, 1), torch.Generator().manual_seed(0))
    assert (one == one[:, :1]).all() and len(one[::2].unique()) == 8  # each frame is drawn at times
    assert all(
        a.split()[0] == b.split()[0] or "hidden" in a for a, b in zip(ACTIONS[::2], ACTIONS[1::2])
    )  # twins stand side by side
    with pytest.raises(ValueError, match="unknown row 'lstm': choose one of transf, conv1d"):
        build("lstm", 0)


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "0a1f386c")
def test_what_is_new_learns_faster(setup_70011ac8):
    HERE, few, small_base = setup_70011ac8
    with mock.patch.multiple(HERE, clips_of=few, load_base=small_base), mock.patch(f"{HERE}.train_steps") as steps:
        for row, new in {
            "transf": {"after", "logit_scale"},
            "joint": {"time", "logit_scale"},
            "meanp": {"logit_scale"},
            "classifier": {"after", "head"},
        }.items():
            model, _ = trained(row, 0, 0.01)
            names = {p: name for name, p in model.named_parameters()}
            fast = {
                names[p].removeprefix("video.").split(".")[0]
                for g in steps.call_args[0][1]
                if g["lr"] == pytest.approx(0.05)
                for p in g["params"]
            }
            slow = {p for g in steps.call_args[0][1] if g["lr"] == pytest.approx(0.01) for p in g["params"]}
            assert fast == new and len(slow) + sum(
                len(g["params"]) for g in steps.call_args[0][1] if g["lr"] == pytest.approx(0.05)
            ) == len(names)


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "fc1838fa")
def test_units_and_command(setup_70011ac8):
    HERE, few, small_base = setup_70011ac8
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch.multiple(HERE, clips_of=few, load_base=small_base, STEPS=2, BATCH=6),
        mock.patch(f"{HERE}.trained", lambda row, seed, lr, real=trained: real(row, seed, lr, 2)),
    ):
        with pytest.raises(
            ValueError, match="no rate of meanp is tuned in .*: run python -m vlp_course.action_board --tune"
        ):
            run_unit("meanp", 0, Path(name))
        main(["--tune", "--results", name])
        tried = read_results(Path(name), "actions-rates")
        assert (
            len(tried) == 24
            and chosen(Path(name), "shift")
            == max((r for r in tried if r["row"].startswith("shift")), key=lambda r: r["metrics"]["val/right"])[
                "config"
            ]["lr"]
        )
        main(["--rows", "meanp", "shift", "joint", "classifier", "untrained", "--seeds", "0", "--results", name])
        runs = {r["row"]: r for r in read_results(Path(name), "actions")}
    assert (
        set(runs) == {"meanp", "shift", "joint", "classifier", "untrained"}
        and len(runs["meanp"]["curve"]) == 1
        and runs["untrained"]["curve"] == []
    )
    assert {
        "seen/right",
        "seen/shuffled/right",
        "seen/one frame/motion",
        "twemoji/right",
        "actions/right",
        "seen/similarity",
    } < set(runs["joint"]["metrics"])
    assert "actions/right" not in runs["classifier"]["metrics"] and sum(map(sum, runs["classifier"]["confusion"])) == 36
    assert runs["meanp"]["metrics"]["seen/right"] == pytest.approx(
        runs["meanp"]["metrics"]["seen/shuffled/right"], abs=0.06
    )  # no order: only rounding may differ


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "bcf85cdb")
def test_wrong_way():
    def wrong_way(table):
        n = np.arange(len(table))
        return table[n, n ^ 1].sum() / table.sum()

    assert wrong_way(np.array([[3, 1, 0, 0], [2, 2, 0, 0], [0, 1, 3, 0], [0, 0, 2, 2]])) == 5 / 16


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "bcf85cdb")
def test_wrong_way_starter_fails():
    def wrong_way(table):
        return 1 - np.trace(table) / table.sum()

    with pytest.raises(Exception):
        assert wrong_way(np.array([[3, 1, 0, 0], [2, 2, 0, 0], [0, 1, 3, 0], [0, 0, 2, 2]])) == 5 / 16


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "b23b0784")
def test_reversed_halves():
    def reversed_halves(x):
        half = x.shape[1] // 2
        return torch.cat([x[:, half:], x[:, :half]], 1)

    assert reversed_halves(torch.arange(8.0).reshape(1, 8, 1))[0, :, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


@pytest.mark.nb("nbs/5_prompting/27b_actionclip_board.ipynb", "b23b0784")
def test_reversed_halves_starter_fails():
    def reversed_halves(x):
        return x.flip(1)

    with pytest.raises(Exception):
        assert reversed_halves(torch.arange(8.0).reshape(1, 8, 1))[0, :, 0].tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
