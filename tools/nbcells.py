"""Code cells of a notebook: their directives, and the names they define, import and read."""
import ast, json, re, subprocess, sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
CLOSED = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
USED = {"test", "setup", "starter", "solution", "export"}


class CellError(Exception):
    """A cell that cannot be used; the message names notebook, cell and reason."""


def ruff(*args: str, text: str) -> str:
    """What the pinned ruff prints for `text`."""
    done = subprocess.run([sys.executable, "-m", "ruff", *args, "-"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ruff {args[0]}: {done.stderr.strip()}")
    return done.stdout


def bound(node: ast.AST):
    """Names that the statements below `node` bind in their own scope."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS):
            yield child.name
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in child.names)
        elif not isinstance(child, CLOSED):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                yield child.id
            yield from bound(child)


def indent(source: str, depth: int) -> str:
    """`source` moved right by `depth` levels, but for the insides of strings over several lines."""
    tree, tabs = ast.parse(source), "    " * depth
    strings = [node for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
    fixed = {n for node in strings for n in range(node.lineno + 1, node.end_lineno + 1)}
    lines = [line if n in fixed else tabs + line for n, line in enumerate(source.splitlines(), 1)]
    return "\n".join(lines if tree.body else [*lines, tabs + "pass"])


def undefined(sources: list[str]) -> list[set[str]]:
    """For each source the names that it reads and does not define, as ruff's rule F821 sees them."""
    text, names = [], [set() for _ in sources]
    for n, source in enumerate(sources):
        text += [(n, line) for line in f"def _source_{n}_():\n{indent(source, 1)}".split("\n")]
    options = "--isolated --select=F821 --ignore-noqa --exit-zero --output-format=json".split()
    for found in json.loads(ruff("check", *options, text="\n".join(line for _, line in text) + "\n")):
        owner, line = text[found["location"]["row"] - 1]
        if line[found["location"]["column"] - 2] not in "'\"":       # not a shape such as Float[Tensor, "batch"]
            names[owner].add(found["message"].split("`")[1])
    return names


class Cell:
    """A code cell: `marks` holds its `#|` lines, `source` is the rest."""

    def __init__(self, path: str, at: int, cell):
        lines = cell.source.split("\n")
        head = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#|")), len(lines))
        marks = [re.match(r"#\|\s*(\w*):?\s*(.*?)\s*$", line) for line in lines[:head] if line.strip()]
        self.path, self.at, self.id = path, at, cell.id
        self.marks = dict(mark.groups() for mark in marks)
        self.source = "\n".join(lines[head:])
        try:
            self.tree = ast.parse(self.source)
        except SyntaxError as error:                                 # a magic; fine in a cell that no test uses
            self.tree = ast.Module([], [])
            if self.marks.keys() & USED:
                raise self.error(f"not plain Python: {error}") from None
        self.bound = set(bound(self.tree))
        self.imports = bool(self.tree.body) and all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in self.tree.body)

    def error(self, reason: str) -> CellError:
        return CellError(f"{self.path}, cell {self.id}: {reason}")


def relative(path: Path) -> str:
    """The notebook's path as messages show it."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def code_cells(path: Path) -> list[Cell]:
    cells = nbformat.read(path, 4).cells
    return [Cell(relative(path), at, cell) for at, cell in enumerate(cells) if cell.cell_type == "code"]


def notebooks(folder: Path) -> list[Path]:
    """All notebooks below `folder` in reading order, without Jupyter's own copies."""
    return sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
