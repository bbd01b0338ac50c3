"""The API pages: comments behind arguments become their descriptions, and every module names its notebook."""
import ast, inspect, re, shutil
from dataclasses import is_dataclass
from pathlib import Path

from fastcore.docments import docments
from ledger import title_of

ROOT = Path(__file__).resolve().parents[2]
LONG = re.compile(r"\b(?:jaxtyping|torch|numpy|pathlib|collections\.abc|typing)\.(?=[A-Za-z])")
SOURCE = re.compile(r"^# %% (?:\.\./)+(nbs/\S+)\.ipynb", re.M)


def modules() -> list[tuple[str, str, str]]:
    """(name, notebook, first line of the docstring) of every exported module, in the order of the notebooks."""
    found = []
    for path in (ROOT / "vlp_course").rglob("[!_]*.py"):
        text = path.read_text(encoding="utf-8")
        if source := SOURCE.search(text):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            doc = ast.get_docstring(ast.parse(text)) or title_of(ROOT / f"{source[1]}.ipynb").split(" · ")[1]
            found.append((name, source[1], doc.split("\n")[0]))
    return sorted(found, key=lambda module: module[1])


def write(app, config) -> None:
    """A page for each module, and the list of them for api.md."""
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = ["| module | | notebook |", "|---|---|---|"]
    for name, notebook, doc in modules():
        short, number = name.removeprefix("vlp_course."), notebook.split("/")[-1].split("_")[0]
        text = f"{short}\n{'=' * len(short)}\n\n.. automodule:: {name}\n"
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
        rows.append(f"| [`{short}`](api/{name}.rst) | {doc} | [{number}]({notebook}.ipynb) |")
    rows += ["", "```{toctree}", ":hidden:", "", *(f"api/{name}" for name, *_ in modules()), "```"]
    config.myst_substitutions = {**config.myst_substitutions, "modules": "\n".join(rows)}


def plain(lines: list[str]) -> list[str]:
    """Docstrings are plain text with `code`: nothing in them is reStructuredText. Indented lines keep their breaks."""
    found = []
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        parts = re.split(r"`+([^`]+)`+", block)
        parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
        parts[1::2] = [f"``{part}``" for part in parts[1::2]]
        text = "".join(parts).split("\n")
        broken = any(re.match(r"\s|[-+\d]", line) for line in text)
        found += [("| " if broken else "") + line for line in text] + [""]
    return found


def describe(app, what, name, obj, options, lines) -> None:
    """Adds a field for each argument with a comment; to a module, the notebook that it is written in."""
    lines[:] = [] if lines and lines[0].startswith("Alias for field number") else plain(lines)
    if what == "module" and (file := getattr(obj, "__file__", "")):
        found = SOURCE.search(Path(file).read_text(encoding="utf-8"))
        lines += ["", f"Written in the notebook :doc:`/{found[1]}`."] if found else []
    if is_dataclass(obj) or what in ("function", "method") and inspect.isfunction(inspect.unwrap(obj)):
        try:
            found = docments(inspect.unwrap(obj)).items()
            comments = {k: v for k, v in found if isinstance(v, str) and k not in ("self", "return")}
        except (OSError, TypeError, SyntaxError):
            return
        lines += [""] * bool(comments) + [f":param {key}: {plain([text])[0]}" for key, text in comments.items()]


def shorten(app, what, name, obj, options, signature, returned):
    """Shapes as the code writes them: Float[Tensor, "batch dim"], without the names of their libraries."""
    return tuple(text and LONG.sub("", text) for text in (signature, returned))


def setup(app) -> dict:
    app.connect("config-inited", write)
    app.connect("autodoc-process-docstring", describe)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
