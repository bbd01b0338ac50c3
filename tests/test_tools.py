"""The tools that turn notebook cells into tests and compare notebook outputs."""
import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import make_tests  # noqa: E402
import nbtext  # noqa: E402
import run_notebooks  # noqa: E402

EXERCISE = ["#| starter: third\ndef third(a): ...", "#| solution: third\ndef third(a): return a / 3",
            "#| test: third\nassert third(6) == 2"]


def save(folder: Path, *cells: str, name: str = "01_trial.ipynb") -> Path:
    made = [nbformat.v4.new_code_cell(source, id=f"cell{n}") for n, source in enumerate(cells)]
    path = folder / "nbs" / name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)
    return path


def generate(folder: Path, *options: str) -> int:
    return make_tests.main(["--nbs", str(folder / "nbs"), "--out", str(folder / "out"), *options])


def generated(folder: Path, *cells: str) -> dict:
    """The functions of the test file made from `cells`."""
    save(folder, *cells)
    assert generate(folder) == 0
    return run(folder)


def run(folder: Path) -> dict:
    space = {}
    exec((folder / "out/test_01_trial.py").read_text(), space)
    return space


def test_a_test_cell_becomes_a_marked_function(tmp_path):
    space = generated(tmp_path, "import math", "#| test: root\nassert math.sqrt(9) == 3")
    space["test_root"]()
    assert space["test_root"].pytestmark[0].args == ("01_trial.ipynb", "cell1")


def test_exported_names_are_imported_not_copied(tmp_path):
    save(tmp_path, "#| default_exp data.trial", "#| export\ndef f(): return 1", "#| test: f\nassert f() == 1")
    assert generate(tmp_path) == 0
    text = (tmp_path / "out/test_01_trial.py").read_text()
    assert "from vlp_course.data.trial import f\n" in text and "def f(" not in text


def test_setup_cells_become_fixtures_with_the_names_in_use(tmp_path):
    save(tmp_path, "#| setup\nx, y = 1, 2", "#| setup\nx = y + 1", "#| setup\nx = 9", "#| test: last\nassert x == 9",
         "#| setup\nother = [n for n in range(y)]", "#| test: chain\nassert other == [0, 1] and x == 9")
    assert generate(tmp_path) == 0
    text = (tmp_path / "out/test_01_trial.py").read_text()
    assert "def test_chain(setup_cell4, setup_cell2)" in text
    assert "def setup_cell1" not in text                    # nothing uses that value of x


def test_strings_over_several_lines_keep_their_text(tmp_path):
    generated(tmp_path, '#| test: text\ntext = """a\n  b\n"""\nassert text == "a\\n  b\\n"')["test_text"]()


@pytest.mark.parametrize("cell, name", [
    ("#| test: a\nassert hidden == 3", "hidden"),                              # of a cell that is no setup cell
    ("#| test: a\ndef f(): return nowhere\nf()", "nowhere"),
    ("#| setup\nx = nowhere + 1", "nowhere"),
    ("#| test: a\nassert later", "later"),                                     # of a setup cell below
])
def test_an_undefined_name_is_an_error(tmp_path, capsys, cell, name):
    save(tmp_path, "hidden = 3", cell, "#| setup\nlater = 1", "#| test: b\nassert later")
    assert generate(tmp_path) == 1
    assert f"01_trial.ipynb, cell cell1: `{name}` is undefined" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_one_bad_notebook_does_not_stop_the_others(tmp_path):
    save(tmp_path, "#| test: a\nassert nowhere", name="02_bad.ipynb")
    save(tmp_path, "#| test: a\nassert True")
    assert generate(tmp_path) == 1 and (tmp_path / "out/test_01_trial.py").exists()


@pytest.mark.parametrize("cells, reason", [
    (EXERCISE[:2], "`starter: third` is followed by no cell `test: third`"),
    (EXERCISE[1:], "needs a starter and a solution"),
    (["#| test: a\n1", "#| test: a\n2"], "needs a name of its own"),
    (["#| test: a\n%timeit 1"], "not plain Python"),
    (["import math", "#| test: a\nmath = math.pi"], "`math` is read and then assigned"),
])
def test_other_mistakes_name_their_cell(tmp_path, capsys, cells, reason):
    save(tmp_path, *cells)
    assert generate(tmp_path) == 1
    said = capsys.readouterr().out
    assert reason in said and "01_trial.ipynb, cell cell" in said


def test_solution_passes_and_starter_fails(tmp_path):
    space = generated(tmp_path, *EXERCISE)
    space["test_third"](), space["test_third_starter_fails"]()


def test_a_starter_that_solves_the_exercise_is_caught(tmp_path):
    space = generated(tmp_path, EXERCISE[0].replace("...", "return a / 3"), *EXERCISE[1:])
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        space["test_third_starter_fails"]()


def test_check_reports_drift_and_stale_files(tmp_path, capsys):
    path = save(tmp_path, "#| test: a\nassert True")
    assert generate(tmp_path, "--check") == 1 and not (tmp_path / "out").exists()
    assert generate(tmp_path) == 0 and generate(tmp_path, "--check") == 0
    target = tmp_path / "out/test_01_trial.py"
    target.write_text(target.read_text() + "# edited\n")
    assert generate(tmp_path, "--check") == 1 and "not what its notebook says" in capsys.readouterr().out
    path.unlink()
    assert generate(tmp_path, "--check") == 1 and "stale" in capsys.readouterr().out
    assert generate(tmp_path) == 0 and not target.exists()


def test_saving_text_keeps_ids_and_outputs_of_unchanged_cells():
    old = nbtext.to_notebook("@@ md\n# A\n\n@@ code\nprint(1)\n\n@@ code\nx = 2\n")
    old.cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    new = nbtext.to_notebook("@@ md\n# A\n\n@@ code\nprint(1)\n\n@@ code\nx = 3\n\n@@ code\ny = 1\n", old)
    assert [c.id for c in new.cells[:3]] == [c.id for c in old.cells] and new.cells[1].outputs
    assert new.cells[2].source == "x = 3" and len({c.id for c in new.cells}) == 4


@pytest.mark.parametrize("old, new, varies, same", [
    ("loss 0.5000", "loss 0.5050", False, True),            # 1 %
    ("loss 0.500", "loss 0.600", False, False),
    ("loss 0.001", "loss 0.009", False, True),              # below the absolute tolerance
    ("step 100 of 200", "step 150 of 200", False, False),
    ("took 1.5 s", "took 12.75 s", True, True),
    ("took 1.5 s", "took 12.75 min", True, False),
    ("a  1.0\nb 10.0", "a 1.001\nb    10.02", False, True),   # columns may move
    ("a\nb", "a", True, False),
    ("-0.3", "0.3", False, False),
    ("nan", "0.3", True, False),
    ("clip_v2 on 1e-3", "clip_v2 on 1.005e-3", False, True),
])
def test_texts_are_equal_up_to_the_tolerance_of_their_numbers(old, new, varies, same):
    assert (run_notebooks.text_difference(old, new, varies) is None) == same


def test_outputs_are_stored_without_stderr_counts_and_addresses():
    output = nbformat.v4.new_output
    made = run_notebooks.tidy([
        output("stream", name="stdout", text="a\n"), output("stream", name="stderr", text="50%|##"),
        output("stream", name="stdout", text="b\n"),
        output("execute_result", {"text/plain": "<object at 0x7f00>"}, execution_count=3)])
    assert [out.output_type for out in made] == ["stream", "execute_result"]
    assert made[0].text == "a\nb\n" and made[1].data["text/plain"] == "<object>" and made[1].execution_count is None


def test_the_first_difference_names_notebook_and_cell():
    def book(text):
        cell = nbformat.v4.new_code_cell("f()", id="abc", outputs=[nbformat.v4.new_output("stream", text=text)])
        return nbformat.v4.new_notebook(cells=[cell])
    assert run_notebooks.difference(Path("01_a.ipynb"), book("acc 0.50"), book("acc 0.50")) is None
    said = run_notebooks.difference(Path("01_a.ipynb"), book("acc 0.50"), book("acc 0.90"))
    assert said.startswith("01_a.ipynb, cell abc: stored 'acc 0.50', now 'acc 0.90'")


def test_a_cell_that_fails_is_named(tmp_path):
    seconds, problem = run_notebooks.one(save(tmp_path, "x = 1", "x / 0"), "run", timeout=60)
    assert "01_trial.ipynb, cell cell1: " in problem and "ZeroDivisionError" in problem
