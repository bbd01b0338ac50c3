"""The leaderboard page and the board of the first page, from results/."""
import functools, sys
from pathlib import Path

import numpy as np
from figures import draw_board, draw_curves, draw_parallel, draw_ways

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
INDEX_COLUMNS = ("row", "seeds", "CPU-s", "R@1", "Twemoji", "OpenMoji", "new nouns", "relation", "group",
                 "pointing", "captions")
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


def scenes_table(found: list[dict], columns) -> str:
    """Columns of the scenes board as lab.table makes it, with what guessing scores at the end."""
    from vlp_course import lab
    if not found:
        return ":::{note}\nNo results of this budget are recorded: `vlp pretrain clip --seed 0` makes the first.\n:::"
    lines = lab.table(found)
    guess = {name: lab.cell([chance()[key]]) for name, key in lab.COLUMNS.items() if chance()}
    if any(name in guess for name in columns):
        lines.append(["Chance", *(guess.get(name, "") for name in lines[0][1:])])
    keep = [lines[0].index(name) for name in columns]
    return table([[line[i] for i in keep] for line in lines])


def scenes_board(found: list[dict]) -> str:
    """All columns in some tables, so that each fits on a page; the finer ones are folded."""
    from vlp_course import lab
    sets = [name for name, key in lab.COLUMNS.items() if key.endswith("/r1") and key != "rerank/r1"]
    tasks = [name for name, key in lab.COLUMNS.items() if key.split("/")[0] in ("vqa", "entailment", "nlvr")]
    rest = [name for name, key in lab.COLUMNS.items() if name not in sets + tasks and key != "rerank/r1"]    # folded
    tried = [r for r in found if any(lab.COLUMNS[name] in r["metrics"] for name in tasks)]
    return "\n\n".join([
        "**Retrieval**: R@1 both ways, also in drawing styles, with nouns, combinations and templates never trained",
        scenes_table(found, ["row", "seeds", *sets]),
        "**Understanding**: the true caption against one that is wrong in one place, the group score, pointing",
        scenes_table(found, ["row", *rest]),
        *(["**After fine-tuning**: questions, true and false statements about one picture, and about two",
           scenes_table(tried, ["row", *tasks])] if tried else []),
        *finer_tables(found), "**Cost** of training, mean over seeds, on one thread", table(lab.costs(found))])


def finer_tables(found: list[dict]) -> list[str]:
    """Every other recorded column, a folded table for each group; rows and tables without a value are left out."""
    from vlp_course import lab
    text = []
    for title, columns in lab.TABLES.items():
        runs = [r for r in found if any(key in r["metrics"] for key in columns.values())]
        if runs:
            lines = [[line[0], line[1], *line[5:]] for line in lab.table(runs, columns)]
            guess = [[chance()[key]] if key in chance() else [] for key in columns.values()]
            lines += [["Chance", "", *map(lab.cell, guess)]] if any(guess) else []
            text.append(f":::{{dropdown}} {title}\n\n{table(lines)}\n:::")
    return text


def other_board(board: str) -> str:
    """Any other board: one line a row, and the metrics with names of two words (`seen/r1`), best row first."""
    from vlp_course import lab
    found = results(board, "quick")
    if set(lab.COLUMNS.values()) <= found[0]["metrics"].keys():
        return scenes_board(found)
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


def probes(budget: str) -> str:
    """The board `probes`: a task a column, its linear probe; in brackets the same with mismatched pictures."""
    from vlp_course import lab
    found, known = results("probes", budget), {row.name: row.title for row in lab.board_rows()}
    tasks = sorted({name.split("/")[0] for r in found for name in r["metrics"] if "." not in name})

    def mark(runs, task):
        of = {shown: [r["metrics"][key] for r in runs if (key := f"{task}/linear/{shown}") in r["metrics"]]
              for shown in ("matched", "image", "text", "mismatched")}
        other = f" ({100 * np.mean(of['mismatched']):.0f})" if of["mismatched"] else ""
        return lab.cell(of["matched"] or of["image"] or of["text"]) + other

    lines = [["row", "seeds", *tasks]]
    for row in dict.fromkeys(r["row"] for r in found):
        runs = [r for r in found if r["row"] == row]
        lines.append([known.get(row, row), str(len(runs)), *(mark(runs, task) for task in tasks)])
    return table(lines)


def boards() -> str:
    """All boards that hold results."""
    from vlp_course import lab
    text = ["## Scenes", "The columns are explained in {doc}`nbs/3_fusion/10d_evaluation`; what separates the rows "
            "stands in {doc}`nbs/3_fusion/11c_controls`."]
    quick = results("scenes", "quick")
    text += [f"### {BUDGETS['quick']}", scenes_board(quick) if quick else scenes_table([], [])]
    if quick:
        text += [draw_board(quick, lab, chance())]
        text += [draw_parallel(quick, lab, chance(), "quick")] if chance() else []
        text += ["### The way there", draw_ways(results("scenes"), lab, chance()), draw_curves(quick, lab)]
    for budget in [b for b in BUDGETS if b != "quick" and results("scenes", b)]:
        found = results("scenes", budget)
        text += [f"### {BUDGETS[budget]}", scenes_board(found)]
        text += [draw_parallel(found, lab, chance(), budget)] if budget == "full" and chance() else []
    for budget in [b for b in BUDGETS if results("probes", b)]:
        text += [f"## Linear probes, {budget} budget", "What a linear probe reads from frozen representations; in "
                 "brackets what is left of it with another picture in place of the right one.", probes(budget)]
    others = (RESULTS / name for name in ("emoji", "rates"))                # the rest stands in its notebooks
    for folder in sorted(p for p in others if results(p.name, "quick")):
        books = [f"Made and explained in {{doc}}`{nb.relative_to(ROOT).with_suffix('').as_posix()}`."
                 for nb in (ROOT / "nbs").glob(f"*/*_{folder.name.replace('-', '_')}_board.ipynb")]
        text += [f"## {folder.name.replace('-', ' ').capitalize()}", *books, other_board(folder.name)]
    return "\n\n".join(text)


def advice(budget: str) -> list[list[str]]:
    """Which row for which need, header first; nothing where no result or no data is there."""
    from vlp_course import needs
    head = ["you want to", "best row", "score", "runner-up", "its score", "beyond seeds", "a query costs", "so take"]
    found = needs.advice(RESULTS, budget) if chance() else []
    return [head, *(list(a) for a in found)] if found else []


def needs_page() -> str:
    """The advice and the targets of both budgets."""
    from vlp_course import needs
    text = []
    for budget in ("quick", "full"):
        lines = advice(budget)
        text += [f"## {BUDGETS[budget]}"]
        if lines:
            text += ["**So take**", table([[line[0], line[-1]] for line in lines], 2),
                     "**Because**", table([line[:-1] for line in lines], 7)]
        else:
            text += [f":::{{note}}\nNothing is recorded: `vlp pretrain ROW --budget {budget}` makes results.\n:::"]
        text += ["**Targets**, set before the board was recorded", table(needs.target_table(RESULTS, budget))]
    return "\n\n".join(text)
