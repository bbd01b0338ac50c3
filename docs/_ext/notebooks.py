"""Notebooks as the site shows them: `#|` lines become marks, the words below a figure its alternative text."""
import json, re, shutil
from pathlib import Path, PurePosixPath

from sphinx.util import logging

NBS = Path(__file__).resolve().parents[2] / "nbs"
MARK = re.compile(r"#\|\s*(\w+):?\s*(.*?)\s*$")
DESCRIBED = re.compile(r"\*(?!\*)(.+?)(?<!\*)\*(?!\*)(?=\s|$)", re.S)     # emphasised text that starts a cell
LEAVE = re.compile(r"(```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[[^\]]*\]\([^)]*\))", re.S)
NUMBER = r"\d\d[a-z]?\d?\b"
MENTION = re.compile(rf"(?<=[Nn]otebook ){NUMBER}|(?<=[Nn]otebooks ){NUMBER}(?:(?:, | and | to ){NUMBER})*")
logger = logging.getLogger(__name__)


def numbered() -> dict[str, str]:
    """Number -> path below nbs/, for numbers that one notebook alone bears."""
    found: dict[str, list[str]] = {}
    for path in sorted(NBS.glob("*/*.ipynb")):
        found.setdefault(path.name.split("_")[0], []).append(path.relative_to(NBS).as_posix())
    return {number: paths[0] for number, paths in found.items() if len(paths) == 1}


def linked(text: str, known: dict[str, str], own: str) -> str:
    """Markdown in which `notebook 02b` leads there; code, mathematics and links stay as they are."""
    def link(number):
        path = known.get(number[0])
        return number[0] if path in (None, own) else f"[{number[0]}](../{path})"
    parts = LEAVE.split(text)
    parts[::2] = [MENTION.sub(lambda m: re.sub(NUMBER, link, m[0]), part) for part in parts[::2]]
    return "".join(parts)


def marks_of(cell: dict) -> dict[str, str]:
    """Takes the `#|` lines off a cell and returns them."""
    lines, marks = cell["source"].split("\n"), {}
    while lines and (found := MARK.match(lines[0])):
        marks[found[1]] = found[2]
        lines.pop(0)
    cell["source"] = "\n".join(lines).strip("\n")
    return marks


def imports_only(source: str) -> bool:
    return bool(source) and all(re.match(r"(import|from)\b|[\s)]|$", line) for line in source.split("\n"))


def dress(cell: dict, marks: dict[str, str], exercises: set[str]) -> None:
    """Tags of a code cell: what it is, what folds and what the fold is called."""
    tags, kind = [], next((k for k in ("export", "test", "solution", "starter", "setup") if k in marks), "")
    name = marks.get(kind, "")
    if kind == "test":
        cell["outputs"] = []                                    # a test that passes has nothing to show
    if marks.get("echo") == "false":
        tags.append("remove-input")
    if kind:
        tags.append(kind)
    fold = {"solution": "Solution", "test": "Its test" if name in exercises else f"Test: {name.replace('_', ' ')}"}
    fold = fold.get(kind)
    if not kind and imports_only(cell["source"]):
        fold = "Imports"
    if fold:
        tags += ["hide-input"] + ["closed"] * (kind != "test" or name in exercises)
        cell["metadata"]["mystnb"] = {"code_prompt_show": fold, "code_prompt_hide": fold}
    cell["metadata"]["tags"] = tags


def describe(cell: dict, after: dict | None, where: str) -> None:
    """Gives the figures of a cell the emphasised text that follows it as their alternative text."""
    if not any(kind.startswith("image/") for out in cell["outputs"] for kind in out.get("data", {})):
        return
    found = DESCRIBED.match(after["source"].strip()) if after and after["cell_type"] == "markdown" else None
    if not found:
        logger.warning("%s: the figure has no description: put one, in *asterisks*, at the top of the next cell", where)
        return
    alt = re.sub(r"[*`$\\]", "", " ".join(found[1].split()))
    cell["metadata"].setdefault("mystnb", {})["image"] = {"alt": alt, "align": "center"}


def prepare(app, docname: str, source: list[str]) -> None:
    """Rewrites a notebook's JSON just before it is parsed."""
    if not docname.startswith("nbs/"):
        return
    nb, own, known = json.loads(source[0]), f"{docname[4:]}.ipynb", numbered()
    cells = nb["cells"]
    for cell in cells:
        cell["source"] = "".join(cell["source"])
    number = PurePosixPath(docname).name.split("_")[0]
    if not re.match(r"# \d", cells[0]["source"]):
        cells[0]["source"] = cells[0]["source"].replace("# ", f"# {number} · ", 1)
    marked = [marks_of(cell) if cell["cell_type"] == "code" else {} for cell in cells]
    exercises = {marks["starter"] for marks in marked if "starter" in marks}
    for at, (cell, marks) in enumerate(zip(cells, marked)):
        if cell["cell_type"] == "markdown":
            cell["source"] = linked(cell["source"], known, own)
        elif cell["cell_type"] == "code":
            dress(cell, marks, exercises)
            describe(cell, cells[at + 1] if at + 1 < len(cells) else None, f"{docname}, cell {cell['id']}")
    hidden = [not cell["source"].strip() or marks.get("echo") == "false" and not cell["outputs"]
              for cell, marks in zip(cells, marked)]
    nb["cells"] = [cell for cell, hide in zip(cells, hidden) if not hide]
    source[0] = json.dumps(nb)


def copy(app, config) -> None:
    """Sphinx reads below docs/ alone, so the notebooks are copied there, into a folder that git ignores."""
    shutil.rmtree(Path(app.srcdir) / "nbs", ignore_errors=True)
    shutil.copytree(NBS, Path(app.srcdir) / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))


def setup(app) -> dict:
    app.connect("config-inited", copy)
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True}
