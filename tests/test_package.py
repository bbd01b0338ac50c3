"""What all modules and notebooks keep to: size, one-way and cheap imports, docstrings, no pickle, clean outputs."""
import ast, importlib.util, io, json, os, re, subprocess, sys, tokenize, warnings
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for p in (ROOT / "vlp_course").rglob("*.py") if p.name not in {"__init__.py", "_modidx.py"})
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
UPPER = {"models", "train", "evaluate", "lab", "cli"}
FORBIDDEN = {"data": UPPER, "nn": UPPER, "objectives": UPPER, "models": UPPER - {"models"},
             "train": {"evaluate", "lab", "cli"}, "evaluate": {"lab", "cli"}}
module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT / "vlp_course").as_posix())
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code: no blanks, comments or docstrings."""
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = {n for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in skip
             for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def imported(path: Path) -> set[str]:
    """Full names of the library modules that `path` imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name_of(path).split(".")[:-node.level] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
            found |= {".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names}
    return {name for name in found if name.startswith("vlp_course.")}


@module
def test_modules_come_from_a_notebook(path):
    source = re.search(r"File to edit: (\S+\.ipynb)", path.read_text())
    assert source, "not exported from a notebook"
    assert (path.parent / source.group(1)).exists(), f"its notebook {source.group(1)} is gone"


@module
def test_imports_go_one_way(path):
    layer = name_of(path).split(".")[1]
    wrong = [name for name in imported(path) if name.split(".")[1] in FORBIDDEN.get(layer, {"cli"})]
    assert not wrong, f"{path.name} ({layer}) imports {wrong}"


@module
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    lines = code_lines(text)
    long = {node.name: count for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)
            if (count := len(lines & set(range(node.lineno, node.end_lineno + 1)))) > 40}
    assert not long, f"functions of over 40 lines: {long}"
    assert len(lines) <= 200, f"{len(lines)} lines of code"
    if len(lines) > 150:
        warnings.warn(f"{path.name}: {len(lines)} lines of code, the house style asks for 150", stacklevel=1)


@module
def test_public_names_have_docstrings(path):
    public = [node for node in ast.parse(path.read_text()).body if isinstance(node, (*FUNCTIONS, ast.ClassDef))]
    public += [sub for node in public if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
               for sub in node.body if isinstance(sub, FUNCTIONS) and sub.name != "forward"]
    bare = [node.name for node in public if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not bare, f"no docstring: {bare}"


def unsafe(tree: ast.AST):
    """Uses of pickle below `tree`: imports, and calls that unpickle unless they are told not to."""
    picklers = {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in picklers)
        if isinstance(node, ast.Call):
            call, options = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if call == "torch.load" and options.get("weights_only") != "True" or options.get("allow_pickle") == "True":
                yield f"{call} in line {node.lineno}"


@module
def test_modules_do_not_unpickle(path):
    assert not list(unsafe(ast.parse(path.read_text())))


@notebook
def test_notebooks_are_clean(path):
    nb = nbformat.read(path, 4)
    ids, code = [c.id for c in nb.cells], [c for c in nb.cells if c.cell_type == "code"]
    assert len(ids) == len(set(ids)), "two cells have one id"
    for cell in code:
        where = f"{path.name}, cell {cell.id}"
        assert cell.execution_count is None, f"{where}: execution count, run nbdev-clean"
        for out in cell.outputs:
            assert out.output_type != "error", f"{where}: stored error {out.get('ename')}"
            assert out.get("name") != "stderr", f"{where}: stored stderr"
            text = out.get("text", "") + str(out.get("data", {}).get("text/plain", ""))
            assert not re.search(r"/(root|home|Users|work)/\w", text), f"{where}: path of one machine in the output"


@notebook
def test_notebooks_do_not_unpickle(path):
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and not re.search(r"^[%!]", cell.source, re.M):
            found = [name for name in unsafe(ast.parse(cell.source))]
            assert not found or cell.source.startswith("#| test"), f"{path.name}, cell {cell.id}: {found}"


@pytest.mark.skipif(not importlib.util.find_spec("vlp_course.cli"), reason="there is no vlp_course.cli yet")
def test_help_is_quick():
    """Processor time, which is the wall time on an idle machine and does not count the other worker's tests."""
    times, script = [], Path(sys.executable).with_name("vlp")
    for _ in range(5):
        before = os.times()
        done = subprocess.run([script, "--help"], capture_output=True, text=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert done.returncode == 0 and "course" in done.stdout
        if times[-1] < 1:
            return
    pytest.fail(f"vlp --help took {min(times):.2f} s at best")


IMPORT_TIMES = """
import json, os, sys, time, importlib, torch
def child(name):
    start = time.process_time()
    importlib.import_module(name)
    return time.process_time() - start
def forked(name):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(child(name)).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    return float(os.read(read, 100) or "nan")
def best(name):
    first = forked(name)
    return first if first < 0.3 else min(first, forked(name), forked(name))
print(json.dumps({name: best(name) for name in sys.argv[1:]}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_modules_import_within_half_a_second_of_torch():
    names = [name_of(path) for path in MODULES]
    done = subprocess.run([sys.executable, "-c", IMPORT_TIMES, *names], capture_output=True, text=True, cwd=ROOT)
    times = json.loads(done.stdout)
    slow = {name: round(times[name], 2) for name in names if not times[name] < 0.5}      # nan: the import failed
    assert not slow, f"seconds beyond torch: {slow}\n{done.stderr}"
