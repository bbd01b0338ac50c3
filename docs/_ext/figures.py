"""The figures of the leaderboard page, drawn from results/ in the course's style, for light and for dark pages."""
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

DOCS = Path(__file__).resolve().parents[1]
SHOWN = ("R@1", "OpenMoji", "new nouns", "relation", "group", "pointing")
DARK = {"text.color": "d8e0e7", "axes.labelcolor": "d8e0e7", "xtick.color": "aab6c0", "ytick.color": "d8e0e7",
        "axes.edgecolor": "6c7a86", "grid.color": "35414b", "figure.facecolor": "none", "axes.facecolor": "none",
        "axes.prop_cycle": plt.cycler(color=["#6bb1e3", "#ee8b72", "#6fcf97", "#efc15d", "#b795d3", "#aab6c0"])}


def both(name: str, alt: str, draw) -> str:
    """Draws a figure twice and returns the Markdown that shows the one that suits the page."""
    folder = DOCS / "_build/figures"
    folder.mkdir(parents=True, exist_ok=True)
    text = []
    for mode, extra in (("light", {"figure.facecolor": "none", "axes.facecolor": "none"}), ("dark", DARK)):
        with plt.style.context(["vlp_course.figures", {"axes.grid": True, **extra, "svg.hashsalt": name}]):
            figure = draw()
            figure.savefig(folder / f"{name}-{mode}.svg", metadata={"Date": None})
            plt.close(figure)
        text.append(f"```{{image}} _build/figures/{name}-{mode}.svg\n:class: only-{mode}\n:alt: {alt}\n```")
    return "\n\n".join(text)


def titles(results: list[dict], lab) -> dict[str, str]:
    """Row -> title, in the order of the board, for rows with results."""
    known = {row.name: row.title for row in lab.board_rows()}
    names = dict.fromkeys([*known, *(r["row"] for r in results)])
    return {name: known.get(name, name) for name in names if any(r["row"] == name for r in results)}


def draw_board(results: list[dict], lab, chance: dict[str, float]) -> str:
    """One panel a column: means with 95 % intervals, chance as a dotted line."""
    rows = titles(results, lab)

    def draw():
        figure, axes = plt.subplots(1, len(SHOWN), figsize=(10, 0.9 + 0.34 * len(rows)), sharey=True,
                                    layout="constrained")
        for ax, column in zip(axes, SHOWN):
            key = lab.COLUMNS[column]
            for y, name in enumerate(rows):
                values = [100 * r["metrics"][key] for r in results if r["row"] == name and key in r["metrics"]]
                if values:
                    mean, half = lab.summary(values)
                    ax.errorbar(mean, y, xerr=np.nan_to_num(half), fmt="o", capsize=3, color="C0")
            if key in chance:
                ax.axvline(100 * chance[key], color="C1", ls=":")
            ax.set(title=column, xlim=(-3, 104), xticks=(0, 50, 100))
        axes[0].set_yticks(range(len(rows)), rows.values())
        axes[0].invert_yaxis()
        return figure
    words = [f"{title}: R@1 {lab.cell([r['metrics'][lab.COLUMNS['R@1']] for r in results if r['row'] == name])}"
             for name, title in rows.items()]
    alt = f"Six panels, one a column of the table; a dot with its 95 percent interval for each row. {', '.join(words)}"
    return both("board", alt, draw) + "\n\n*Means with 95 % intervals over seeds; the dotted line is chance. Percent.*"


def leaders(found: dict, most: int = 5) -> list[str]:
    """Rows that are best in most columns of `lab.scaled`, those first."""
    best = [max((row for row in found if title in found[row]), key=lambda row: found[row][title][0])
            for title in dict.fromkeys(title for columns in found.values() for title in columns)]
    return sorted(dict.fromkeys(best), key=lambda row: -best.count(row))[:most]


def draw_parallel(results: list[dict], lab, chance: dict[str, float], budget: str) -> str:
    """Parallel coordinates: each column from chance to the best row; the rows that lead somewhere in colour."""
    rows, found = titles(results, lab), lab.scaled(results, chance)
    columns = [c for c in lab.COLUMNS if any(c in marks for marks in found.values())]
    shown = leaders(found)

    def draw():
        figure, ax = plt.subplots(figsize=(10, 4.6), layout="constrained")
        for row in sorted(found, key=lambda row: row in shown):
            places = [x for x, c in enumerate(columns) if c in found[row]]
            means, halves = zip(*(found[row][columns[x]] for x in places))
            style = {"color": "0.6", "lw": 0.7, "alpha": 0.6, "ms": 2}
            if row in shown:
                style = {"color": f"C{shown.index(row)}", "lw": 1.8, "ms": 3, "label": rows[row]}
            for run in np.split(np.arange(len(places)), np.flatnonzero(np.diff(places) > 1) + 1):      # gaps stay open
                bars = np.nan_to_num([halves[k] for k in run]) if row in shown else None
                ax.errorbar([places[k] for k in run], [means[k] for k in run], bars, fmt="-o", capsize=2, **style)
                style.pop("label", None)
        ax.axhline(0, ls=":", color="0.5")
        best = [100 * max(lab.way(results, row, lab.COLUMNS[c])[0][2] for row in found if c in found[row])
                for c in columns]
        ax.set_xticks(range(len(columns)), [f"{c} {b:.0f}" for c, b in zip(columns, best)], rotation=25, ha="right")
        ax.set_yticks((0, 0.5, 1), ("chance", "half-way", "best"))
        ax.set(ylim=(-0.45, 1.12), xlim=(-0.3, len(columns) - 0.7))
        figure.legend(loc="outside lower center", ncols=len(shown))
        return figure
    alt = (f"Parallel coordinates of {len(found)} rows over {', '.join(columns)}, each from chance to the best row; "
           f"highlighted are {', '.join(rows[row] for row in shown)}")
    note = ("*Each column from chance to its best row, whose percent stands after the name. In colour the rows that "
            "lead somewhere, with 95 % intervals; the others in grey. A row that was not scored on a column has no "
            "point there.*")
    return f"{both(f'parallel-{budget}', alt, draw)}\n\n{note}"


WAYS = ("R@1", "relation", "group", "captions")


def draw_ways(results: list[dict], lab, chance: dict[str, float]) -> str:
    """Metrics of all budgets over steps and over CPU-seconds, for rows with two budgets or more."""
    rows = {row: title for row, title in titles(results, lab).items() if len(lab.way(results, row, "seen/r1")) > 1}
    most = [max((point[x] for row in rows for point in lab.way(results, row, "seen/r1")), default=1) for x in (0, 1)]

    def draw():
        figure, axes = plt.subplots(2, len(WAYS), figsize=(10, 5), sharey="col", layout="constrained")
        for column, pair in zip(WAYS, axes.T):
            for k, row in enumerate(rows):
                points = lab.way(results, row, lab.COLUMNS[column])
                for x, ax in enumerate(pair) if points else ():
                    cost, (mean, half) = [p[x] for p in points], 100 * np.nan_to_num([p[2:] for p in points]).T
                    ax.errorbar(cost, mean, half, fmt="o", ms=3, capsize=2, lw=1.2, label=rows[row], color=f"C{k % 6}",
                                ls=("-", "--", ":")[k // 6 % 3])
            for ax, unit, least, last in zip(pair, ("step", "CPU-seconds"), (100, 10), most):
                ax.axhline(100 * chance.get(lab.COLUMNS[column], 0), ls=":", color="0.5", lw=1)
                ax.set_xscale("symlog", linthresh=least)
                ax.set(xlabel=unit, ylim=(-4, 104), xlim=(-0.2 * least, 1.5 * last))
            pair[0].set_title(column)
        handles = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels())}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
        return figure
    alt = (f"Four columns of the board at each recorded budget, over steps above and over CPU-seconds below, for "
           f"{', '.join(rows.values())}")
    note = ("*Untrained, quick and full runs of each row that has two of them, means with 95 % intervals over seeds; "
            "the dotted line is chance. The horizontal axes are linear near zero and logarithmic from there.*")
    return f"{both('ways', alt, draw)}\n\n{note}" if rows else ""


def draw_curves(results: list[dict], lab) -> str:
    """Stored losses over steps and over CPU-seconds, one run a row."""
    rows = titles(results, lab)

    def draw():
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
        for k, (name, title) in enumerate(rows.items()):
            run = next(r for r in results if r["row"] == name)
            total = np.sum(list(run["curves"].values()), 0)
            smooth = np.convolve(total, np.ones(5) / 5, "valid") / total[0]
            step = 10 * np.arange(2, 2 + len(smooth))
            for ax, x in zip(axes, (step, step * run["cpu_s"] / run["steps"])):
                ax.plot(x, smooth, label=title, ls=("-", "--", ":")[k // 6 % 3])        # there are six colours
        axes[0].set(xlabel="step", xscale="log", yscale="log", ylabel="loss / first loss", title="per step")
        axes[1].set(xlabel="CPU-seconds", title="per second")
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
        return figure
    alt = f"Falling loss curves of {', '.join(rows.values())}, over steps on the left and over CPU-seconds on the right"
    note = ("*The loss of the first recorded seed of each row, divided by its first value. A lower curve is no better "
            "model where the batches differ: those with siblings are a harder quiz.*")
    return f"{both('curves', alt, draw)}\n\n{note}"
