"""The API pages: comments behind arguments become their descriptions, and every module names its notebook."""
import ast, inspect, re, shutil
from dataclasses import is_dataclass
from pathlib import Path

from fastcore.docments import docments

ROOT = Path(__file__).resolve().parents[2]
LONG = re.compile(r"\b(?:jaxtyping|torch|numpy|pathlib|collections\.abc|typing)\.(?=[A-Za-z])")
SOURCE = re.compile(r"^# %% (?:\.\./)+(nbs/\S+)\.ipynb", re.M)


def modules() -> list[tuple[str, str, str]]:
    """(name, notebook, first line of the docstring) of every exported module, in the order of the notebooks."""
    found = []
    for path in (ROOT / "vlp_course").rglob("[!_]*.py"):
        text = path.read_text(encoding="utf-8")
        if source := SOURCE.search(text):
            doc = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
            found.append((".".join(path.relative_to(ROOT).with_suffix("").parts), source[1], doc))
    return sorted(found, key=lambda module: module[1])


def write(app, config) -> None:
    """A page for each module, and the list of them for api.md."""
    folder = Path(app.srcdir) / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = ["| module | | notebook |", "|---|---|---|"]
    for name, notebook, doc in modules():
        short = name.removeprefix("vlp_course.")
        (folder / f"{name}.rst").write_text(f"{short}\n{'=' * len(short)}\n\n.. automodule:: {name}\n", encoding="utf-8")
        rows.append(f"| [`{short}`](api/{name}.rst) | {doc} | [{notebook.split('/')[-1].split('_')[0]}]({notebook}.ipynb) |")
    entries = "\n".join(f"api/{name}" for name, *_ in modules())
    config.myst_substitutions = {**config.myst_substitutions, "modules": "\n".join(rows) + f"\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```"}


def describe(app, what, name, obj, options, lines) -> None:
    """Adds a field for each argument with a comment; to a module, the notebook that it is written in."""
    if what == "module" and (file := getattr(obj, "__file__", "")):
        found = SOURCE.search(Path(file).read_text(encoding="utf-8"))
        lines += ["", f"Written in the notebook :doc:`/{found[1]}`."] if found else []
    if is_dataclass(obj) or what in ("function", "method") and inspect.isfunction(inspect.unwrap(obj)):
        try:
            comments = {k: v for k, v in docments(inspect.unwrap(obj)).items() if isinstance(v, str) and k not in ("self", "return")}
        except (OSError, TypeError, SyntaxError):
            return
        lines += [""] * bool(comments) + [f":param {key}: {text}" for key, text in comments.items()]


def shorten(app, what, name, obj, options, signature, returned):
    """Shapes as the code writes them: Float[Tensor, "batch dim"], without the names of their libraries."""
    return tuple(text and LONG.sub("", text) for text in (signature, returned))


def setup(app) -> dict:
    app.connect("config-inited", write)
    app.connect("autodoc-process-docstring", describe)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
