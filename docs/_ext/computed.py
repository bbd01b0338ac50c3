"""What pages show of results/ and of the library, computed when the site is built, for `{{ name }}` in a page."""
import json
from pathlib import Path

from boards import INDEX_COLUMNS, RESULTS, boards, needs_page, results, scenes_table, table
from ledger import claims, own_verdicts, title_of

ROOT = Path(__file__).resolve().parents[2]


def times() -> str:
    """How long each notebook ran, from the file that tools/run_notebooks.py writes."""
    path = RESULTS / "notebook_times.json"
    if not path.exists():
        return ":::{note}\nNo times are recorded: `make notebooks` runs all notebooks and writes them.\n:::"
    stored = json.loads(path.read_text())
    known, machine = stored["seconds"], stored["machine"]
    lines, total = [["notebook", "seconds"]], 0
    for nb in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        name = nb.relative_to(ROOT).as_posix()
        total += known.get(name, 0)
        lines.append([f"[{title_of(nb)}]({name})", f"{known[name]:.0f}" if name in known else "not recorded"])
    lines.append(["**All that are recorded, one after the other**", f"**{total:.0f}**"])
    where = (f"Recorded on {machine['cores']} cores ({machine['processor']}), {machine['at_once']} notebooks at once "
             f"with {machine['threads_each']} thread each, Python {machine['python']}, torch {machine['torch']}.")
    return f"{where}\n\n{table(lines)}"


def assets() -> str:
    """The pinned files that the library fetches."""
    from vlp_course.data.assets import ASSETS
    rows = [[a.use, f"`{a.spec}`", a.licence, f"{a.mb:g}"] for a in ASSETS.values()]
    return table([["what", "package", "licence", "MB"], *rows], 3)


def parts() -> str:
    """The navigation: a list of notebooks for each part that is written, in the order of their names."""
    text = []
    for folder in sorted(p for p in (ROOT / "nbs").glob("[0-9]_*") if any(p.glob("*.ipynb"))):
        number, name = folder.name.split("_", 1)
        entries = [f"nbs/{folder.name}/{nb.stem}" for nb in sorted(folder.glob("*.ipynb"))]
        head = ["```{toctree}", ":hidden:", f":caption: {number} · {name.capitalize()}", ""]
        text.append("\n".join([*head, *entries, "```"]))
    return "\n\n".join(text)


def glossary() -> str:
    """The lines `English | Chinese | meaning` of docs/glossary.txt as a glossary that search and links know."""
    lines = (ROOT / "docs/glossary.txt").read_text(encoding="utf-8").splitlines()
    entries = ("{}\n{}\n  {}\n".format(*line.split(" | ")) for line in lines)
    return "\n".join(["```{glossary}", *entries, "```"])


def colab(repository: str) -> str:
    """What a reader on Colab runs first, where the repository is known."""
    if not repository:
        return "To open notebooks on Colab or Binder, build this site with `REPOSITORY=https://...` in the environment."
    return ("The rocket above a notebook opens it on Colab or Binder. On Colab, run this in a first cell: "
            f"`%pip install 'vlp_course[dev] @ git+{repository}'`.")


def fill(app, config) -> None:
    """Gives the pages their values."""
    config.myst_substitutions |= {
        "index_board": scenes_table(results("scenes", "quick"), INDEX_COLUMNS), "boards": boards(),
        "needs": needs_page(),
        "times": times(), "assets": assets(), "colab": colab(config.html_theme_options["repository_url"]),
        "parts": parts(), "glossary": glossary(), "claims": claims(), "own_verdicts": own_verdicts()}


def setup(app) -> dict:
    app.connect("config-inited", fill)
    return {"parallel_read_safe": True}
