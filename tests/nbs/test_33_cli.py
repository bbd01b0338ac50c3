"""Generated from nbs/6_lab/33_cli.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import ast
import inspect
import json
import numpy as np
import pytest
import tempfile
from PIL import Image
from typer.testing import CliRunner
from unittest.mock import patch
from vlp_course.cli import Path, app, main, typer


@pytest.fixture(scope="module")
def setup_e5b47357():
    def vlp(*args):
        """What a command prints; raises what it raises."""
        with patch("rich.console._is_jupyter", lambda: False):  # plain text in a notebook too
            result = CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def refused(*args):
        """The line with which main refuses (exit status 1), or the exit status of wrong usage."""
        with pytest.raises(SystemExit) as error:
            main([str(a) for a in args])
        return error.value.code

    COMMANDS = ("data", "pretrain", "evaluate", "leaderboard", "doctor", "course")
    return COMMANDS, refused, vlp


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "92708447")
def test_every_command_helps(setup_e5b47357):
    COMMANDS, _, vlp = setup_e5b47357
    for path in ((), *((c,) for c in COMMANDS), ("data", "fetch"), ("data", "prepare"), ("data", "show")):
        text = vlp(*path, "--help")
        assert "Usage:" in text and len(text.splitlines()) > 4, path
    assert all(command in vlp("--help") for command in COMMANDS)


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "e471158c")
def test_no_torch_before_a_command():
    tree = (
        ast.parse(Path(inspect.getfile(inspect.unwrap(main))).read_text())
        if "vlp_course" in inspect.getmodule(main).__name__
        else ast.parse("")
    )
    top = {n.name for s in tree.body if isinstance(s, ast.Import) for n in s.names} | {
        s.module for s in tree.body if isinstance(s, ast.ImportFrom)
    }
    assert top <= {"os", "sys", "pathlib", "typing", "typer"}, top


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "9d828de9")
def test_doctor_looks_at_a_run(setup_e5b47357):
    _, refused, vlp = setup_e5b47357
    with tempfile.TemporaryDirectory() as folder:
        path, curve = Path(folder) / "run.json", [4.14] * 20
        for curve, sick in ((curve, 1), ([4.14 - 0.1 * i for i in range(20)], 0)):
            path.write_text(
                json.dumps({"steps": 200, "curves": {"itc": curve}, "config": {"recipe": {"batch_size": 63}}})
            )
            assert CliRunner().invoke(app, ["doctor", str(path)]).exit_code == sick
        assert vlp("doctor", path).endswith("run.json: healthy\n")
        assert "is no recorded run" in refused("doctor", Path(folder) / "none.json")


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "4424c7e5")
def test_show_draws(setup_e5b47357):
    _, _, vlp = setup_e5b47357
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.png"
        text = vlp("data", "show", "--out", out, "--families", 2, "--split", "test")
        assert np.asarray(Image.open(out)).shape == (2 * 128, 3 * 128, 3)
        assert len(text.splitlines()) >= 7 and "wrote" in text and "0  " in text
        again = Path(folder) / "b.png"
        vlp("data", "show", "--out", again, "--families", 2, "--split", "test")
        assert out.read_bytes() == again.read_bytes()
        vlp("data", "show", "--out", again, "--families", 2, "--split", "test", "--seed", 1)
        assert out.read_bytes() != again.read_bytes()


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "16356590")
def test_one_line_and_nothing_written(setup_e5b47357):
    _, refused, _ = setup_e5b47357
    from vlp_course.data.assets import ASSETS

    with tempfile.TemporaryDirectory() as folder:
        results, out = ("--results", Path(folder) / "r"), ("--out", Path(folder) / "x.png")
        with patch("torch.cuda.is_available", lambda: False):
            for args, words in (
                (("pretrain", "clipp", *results), ("unknown row 'clipp'", "clip-random-batches")),
                (("pretrain", "clip", "--budget", "long", *results), ("unknown budget 'long'", "quick")),
                (("pretrain", "clip", "--budget", "long", "--steps", 5, *results), ("unknown budget 'long'",)),
                (("pretrain", "clip", "--steps", 0, *results), ("steps=0",)),
                (("pretrain", "clip", "--device", "tpu", *results), ("device='tpu'", "cpu, cuda")),
                (("pretrain", "clip", "--device", "cuda", *results), ("no GPU", "--device cpu")),
                (("pretrain", "clip", "--precision", "fp8", *results), ("precision='fp8'", "bf16")),
                (("data", "show", "--style", "blob", *out), ("unknown style 'blob'", "openmoji")),
                (("data", "show", "--split", "nosuch", *out), ("unknown split 'nosuch'", "train")),
                (("data", "show", "--out", Path(folder) / "none" / "x.png"), ("none",)),
                (("data", "fetch", "photo"), ("unknown asset 'photo'", next(iter(ASSETS)))),
                (("leaderboard", *results), ("no results", "vlp pretrain")),
                (("leaderboard", "--budget", "long", *results), ("unknown budget 'long'",)),
                (
                    ("leaderboard", "--run", "--budget", "full", *results),
                    ("--run records the quick budget", "vlp pretrain ROW --budget full"),
                ),
                (("evaluate", folder), ("holds no checkpoint", "vlp pretrain clip --out")),
            ):
                line = refused(*args)
                assert isinstance(line, str) and line.startswith("vlp: ") and "\n" not in line, (args, line)
                assert all(word in line for word in words), (args, line)
        assert list(Path(folder).iterdir()) == []  # nothing, not even a folder


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "b74a2428")
def test_run_fills_the_board_first(setup_e5b47357):
    _, _, vlp = setup_e5b47357
    from vlp_course import lab

    with tempfile.TemporaryDirectory() as folder:
        done = []
        made = {
            "row": "clip",
            "seed": 0,
            "budget": "quick",
            "steps": 9,
            "cpu_s": 1.0,
            "params": 10,
            "metrics": {"seen/r1": 0.5},
            "config": {"title": "CLIP"},
        }
        with patch(
            "vlp_course.course.fill_board",
            lambda results, runs: (
                done.append((results, runs)) or lab.save_json(lab.result_path(results, "scenes", made), made)
            ),
        ):
            assert "CLIP" in vlp("leaderboard", "--run", "--results", folder, "--runs", "elsewhere")
        assert done == [(Path(folder), Path("elsewhere"))]


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "a61c302e")
def test_wrong_usage_is_status_two(setup_e5b47357):
    _, refused, _ = setup_e5b47357
    for args in (
        ("pretrain",),
        ("nosuch",),
        ("course", "--sed", "1"),
        ("data", "show", "--families", "0"),
        ("pretrain", "clip", "--seed", "x"),
    ):
        assert refused(*args) == 2, args
    assert refused("leaderboard", "--help") == 0


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "5468977d")
def test_bugs_keep_their_traceback():
    with patch("vlp_course.lab.read_results", side_effect=KeyError("a bug")), pytest.raises(KeyError):
        main(["leaderboard"])


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "1bde8b8e")
def test_a_row_is_checked_against_its_record(setup_e5b47357):
    _, refused, _ = setup_e5b47357
    columns = ("seen/r1", "pointing")

    def run(value, row="linear", seed=0):
        return {
            "row": row,
            "budget": "quick",
            "seed": seed,
            "metrics": dict.fromkeys(columns, value),
            "checkpoint_sha": f"{seed}",
        }

    with tempfile.TemporaryDirectory() as folder:
        for seed, value in enumerate((0.70, 0.71, 0.69, 0.72)):
            path = Path(folder) / "scenes" / f"linear-quick-s{seed}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(run(value, seed=seed)))
        for value, status, word in ((0.70, 0, "inside the band"), (0.20, 1, "OUTSIDE the band")):
            with patch("vlp_course.lab.run_row", lambda name, budget, seed: run(value, name, seed)):
                result = CliRunner().invoke(
                    app, ["leaderboard", "--check", "linear", "--results", folder, "--seed", "9"]
                )
            assert result.exit_code == status and word in result.output and "seed 9" in result.output
        with patch("vlp_course.lab.run_row", None):  # refused before anything is trained
            assert "0 runs: a band needs at least 3" in refused("leaderboard", "--check", "clip", "--results", folder)


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "f2c1e6ab")
def test_pretrain_records_once(setup_e5b47357):
    _, _, vlp = setup_e5b47357
    calls = []
    made = lambda *args, **keys: (
        calls.append((args, keys)) or {"row": "linear", "budget": "quick", "seed": 4, "checkpoint_sha": "abc"}
    )
    with tempfile.TemporaryDirectory() as folder, patch("vlp_course.lab.run_row", made):
        path = Path(folder) / "scenes" / "linear-quick-s4.json"
        options = ("pretrain", "linear", "--seed", 4, "--results", folder)
        assert "abc" in vlp(*options, "--steps", 3) and not path.exists()  # another number of steps is no result
        assert "abc" in vlp(*options) and json.loads(path.read_text())["seed"] == 4 and len(calls) == 2
        path.write_text("mine")
        assert "nothing to do" in vlp(*options) and len(calls) == 2
        vlp(*options, "--out", Path(folder) / "run")  # the checkpoint is still missing
        assert len(calls) == 3 and calls[-1][1]["score"] is False and path.read_text() == "mine"


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "d8583a69")
def test_exit_status():
    def status(error):
        """Exit status of an exception; None: a traceback."""
        if isinstance(error, typer.BadParameter):  # is a RuntimeError's heir too: ask for it first
            return 2
        return 1 if isinstance(error, (ValueError, RuntimeError, OSError)) else None

    assert status(typer.BadParameter("x")) == 2 and status(FileNotFoundError("x")) == 1 and status(ValueError("x")) == 1
    assert status(KeyError("x")) is None and status(AttributeError("x")) is None


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "d8583a69")
def test_exit_status_starter_fails():
    def status(error):
        """Exit status of an exception; None: a traceback."""
        return 1

    with pytest.raises(Exception):
        assert (
            status(typer.BadParameter("x")) == 2
            and status(FileNotFoundError("x")) == 1
            and status(ValueError("x")) == 1
        )
        assert status(KeyError("x")) is None and status(AttributeError("x")) is None


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "9ecd05ed")
def test_suggestion():
    def suggestion(name, known):
        """The nearest known name, or None."""
        import difflib

        return next(iter(difflib.get_close_matches(name, known, n=1)), None)

    rows = ["linear", "clip", "siglip"]
    assert (
        suggestion("clipp", rows) == "clip"
        and suggestion("sigclip", rows) == "siglip"
        and suggestion("xyz", rows) is None
    )


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "9ecd05ed")
def test_suggestion_starter_fails():
    def suggestion(name, known):
        """The nearest known name, or None."""
        return known[0]

    with pytest.raises(Exception):
        rows = ["linear", "clip", "siglip"]
        assert (
            suggestion("clipp", rows) == "clip"
            and suggestion("sigclip", rows) == "siglip"
            and suggestion("xyz", rows) is None
        )


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "d25f270b")
def test_prefixes():
    def complete(prefix, commands):
        """The command that the prefix stands for."""
        found = [c for c in commands if c.startswith(prefix)]
        if prefix in found:
            return prefix
        if len(found) != 1:
            raise ValueError(
                f"{prefix!r} could be {', '.join(found) or 'nothing'}: choose one of {', '.join(commands)}"
            )
        return found[0]

    # A new command can make yesterday's prefix ambiguous: scripts that used it break. So this course has no prefixes.
    assert (
        complete("pre", ["pretrain", "pre"]) == "pre"
        and complete("p", ["pretrain", "data"]) == "pretrain"
        and complete("data", ["data", "dataset"]) == "data"
    )
    for prefix in ("d", "x"):
        with pytest.raises(ValueError, match="could be"):
            complete(prefix, ["data", "doctor"])


@pytest.mark.nb("nbs/6_lab/33_cli.ipynb", "d25f270b")
def test_prefixes_starter_fails():
    def complete(prefix, commands):
        """The command that the prefix stands for."""
        return next(c for c in commands if c.startswith(prefix))  # takes the first of several

    with pytest.raises(Exception):
        assert (
            complete("pre", ["pretrain", "pre"]) == "pre"
            and complete("p", ["pretrain", "data"]) == "pretrain"
            and complete("data", ["data", "dataset"]) == "data"
        )
        for prefix in ("d", "x"):
            with pytest.raises(ValueError, match="could be"):
                complete(prefix, ["data", "doctor"])
