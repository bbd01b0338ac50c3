"""What pages show of results/ and of the library, computed when the site is built, for `{{ name }}` in a page."""
import functools, json, sys
from pathlib import Path

import numpy as np

from figures import draw_board, draw_curves
from ledger import claims, own_verdicts, title_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
INDEX_COLUMNS = ("row", "seeds", "CPU-s", "steps", "R@1", "Twemoji", "OpenMoji", "new nouns", "relation", "group",
                 "pointing")
BUDGETS = {"quick": "Quick budget: about a minute of one CPU core",
           "full": "Full budget: about five minutes of one core", "untrained": "Without training"}


def table(lines: list[list[str]], left: int = 1) -> str:
    """Rows of cells as a Markdown table; the first `left` columns are words, the others numbers."""
    rule = ["---"] * left + ["--:"] * (len(lines[0]) - left)
    rows = ([str(cell).replace("|", "\\|") for cell in line] for line in [lines[0], rule, *lines[1:]])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@functools.cache
def chance() -> dict[str, float]:
    """What guessing scores on the scenes; nothing where the data for it cannot be had."""
    from vlp_course import lab
    from vlp_course.data.assets import AssetError
    try:
        return lab.chance()
    except AssetError as error:
        print(f"site: no row of chance levels: {error}", file=sys.stderr)
        return {}


def results(board: str, budget: str | None = None) -> list[dict]:
    from vlp_course import lab
    return lab.read_results(RESULTS, board, budget)


def scenes_board(budget: str, columns: tuple[str, ...] = ()) -> str:
    """The scenes board as lab.table makes it, with what guessing scores at the end."""
    from vlp_course import lab
    found = results("scenes", budget)
    if not found:
        return ":::{note}\nNo results of this budget are recorded: `vlp pretrain clip --seed 0` makes the first.\n:::"
    lines = lab.table(found)
    if chance():
        lines.append(["Chance", "", "", "", "", *(lab.cell([chance()[key]]) for key in lab.COLUMNS.values())])
    keep = [lines[0].index(name) for name in columns or lines[0]]
    return table([[line[i] for i in keep] for line in lines])


def other_board(board: str) -> str:
    """Any other board: one line a row, and the metrics with names of two words (`seen/r1`), best row first."""
    from vlp_course import lab
    found = results(board, "quick")
    names = [name for name in found[0]["metrics"] if name.count("/") <= 1]
    lines = []
    for row in dict.fromkeys(r["row"] for r in found):
        runs = [r for r in found if r["row"] == row]
        cells = [lab.cell([r["metrics"][n] for r in runs if n in r["metrics"]]) for n in names]
        cost = [str(len(runs)), f"{np.mean([r['cpu_s'] for r in runs]):.1f}", f"{runs[0]['params'] / 1e6:.2f} M"]
        lines.append([runs[0]["config"].get("title", row), *cost, *cells])
    lines.sort(key=lambda line: -float(line[4].split()[0].replace("-", "0")))
    heads = [n.replace("/r", " R@").replace("/mrr", " MRR").replace("/", " ") for n in names]
    return table([["row", "splits", "CPU-s", "params", *heads], *lines])


def boards() -> str:
    """All boards that hold results."""
    from vlp_course import lab
    text = ["## Scenes", "The columns are explained in {doc}`nbs/3_fusion/10d_evaluation`; what separates the rows "
            "stands in {doc}`nbs/3_fusion/11c_controls`."]
    quick = results("scenes", "quick")
    text += [f"### {BUDGETS['quick']}", scenes_board("quick")]
    text += [draw_board(quick, lab, chance()), "### The way there", draw_curves(quick, lab)] if quick else []
    for budget in [b for b in BUDGETS if b != "quick" and results("scenes", b)]:
        text += [f"### {BUDGETS[budget]}", scenes_board(budget)]
    for folder in sorted(p for p in RESULTS.glob("*/") if p.name != "scenes" and results(p.name, "quick")):
        books = [f"Made and explained in {{doc}}`{nb.relative_to(ROOT).with_suffix('').as_posix()}`."
                 for nb in (ROOT / "nbs").glob(f"*/*_{folder.name.replace('-', '_')}_board.ipynb")]
        text += [f"## {folder.name.replace('-', ' ').capitalize()}", *books, other_board(folder.name)]
    return "\n\n".join(text)


def times() -> str:
    """How long each notebook ran, from the file that tools/run_notebooks.py writes."""
    path = RESULTS / "notebook_times.json"
    if not path.exists():
        return ":::{note}\nNo times are recorded: `make notebooks` runs all notebooks and writes them.\n:::"
    stored = json.loads(path.read_text())
    known, machine = stored["seconds"], stored["machine"]
    lines = [["notebook", "seconds"]]
    for nb in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        name = nb.relative_to(ROOT).as_posix()
        lines.append([f"[{title_of(nb)}]({name})", f"{known[name]:.0f}" if name in known else "not recorded"])
    lines.append(["**All that are recorded, one after the other**", f"**{sum(known.values()):.0f}**"])
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


def fill(app, config) -> None:
    """Gives the pages their values."""
    config.myst_substitutions |= {
        "index_board": scenes_board("quick", INDEX_COLUMNS), "boards": boards(), "times": times(), "assets": assets(),
        "parts": parts(), "glossary": glossary(), "claims": claims(), "own_verdicts": own_verdicts()}


def setup(app) -> dict:
    app.connect("config-inited", fill)
    return {"parallel_read_safe": True}
