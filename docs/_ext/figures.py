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
