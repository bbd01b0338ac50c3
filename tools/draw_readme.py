"""Write what the README shows from recorded results, so that no number in it is typed.

    python tools/draw_readme.py            # the boards, between lines like <!-- board --> and <!-- end of board -->
    python tools/draw_readme.py --check    # writes nothing, exits 1 if the README differs from results/
    python tools/draw_readme.py --picture  # docs/images/found.png, from the samples stored with the results
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs/images/found.png"
COLUMNS = ("row", "seeds", "CPU-s", "steps", "R@1", "Twemoji", "OpenMoji", "new nouns", "relation", "group", "pointing",
           "captions", "re-ranked")
SHOWN = 4      # captions in the picture


def board() -> str:
    """The quick board as a Markdown table, chance at the end."""
    from vlp_course import lab
    lines = lab.table(lab.read_results(ROOT / "results", budget="quick"))
    keep = [lines[0].index(name) for name in COLUMNS]
    rows = [[line[i] for i in keep] for line in lines]
    chance = lab.chance()
    rows.append(["Chance", "", "", "", *(lab.cell([chance[lab.COLUMNS[c]]]) for c in COLUMNS[4:])])
    rows.insert(1, ["---"] + ["--:"] * (len(COLUMNS) - 1))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def emoji() -> str:
    """The emoji board as a Markdown table, and its paired comparison."""
    from vlp_course import emoji_board, lab
    results = lab.read_results(ROOT / "results", "emoji", "quick")
    columns = {"R@1": "seen/r1", "R@5": "seen/r5", "R@1, unseen style": "unseen/r1", "R@5, unseen style": "unseen/r5"}
    lines = ["| row | " + " | ".join(columns) + " |", "| --- |" + " --: |" * len(columns)]
    for row in emoji_board.ROWS:
        runs = [r for r in results if r["row"] == row.name]
        cells = [lab.cell([r["metrics"][c] for r in runs]) for c in columns.values()]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    parts = (emoji_board.SEEN, (emoji_board.UNSEEN,))
    gains = [emoji_board.compare(results, "clip", "linear", styles) for styles in parts]
    said = ["{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * v for v in gain)) for gain in gains]
    return "\n".join(lines) + ("\n\nR@1 of the CLIP heads with memory against the linear baseline, paired bootstrap: "
                               f"{said[0]}; in the unseen style {said[1]}.")


def answers() -> str:
    """Questions and statements after fine-tuning as a Markdown table; rows stand beside untrained and blind twins."""
    from vlp_course import lab
    results = lab.read_results(ROOT / "results", "downstream", "quick")
    columns = {"questions": "vqa/mean", "statements": "entailment/all", "pairs": "nlvr/all"}
    twins = {"": "", "-untrained": ", not pretrained", "-blind": ", blind"}

    def mark(line: str, metric: str) -> str:
        runs = [r["metrics"] for r in results if r["config"]["line"] == line]
        return lab.cell([marks[metric] for marks in runs if metric in marks])

    rows = [[row.title + said, *(mark(row.name + twin, metric) for metric in columns.values())]
            for row in lab.board_rows() for twin, said in twins.items()]
    rows = [row for row in rows if set(row[1:]) != {"-"}]
    chance = ["Most frequent answer, or a coin", lab.cell([lab.blind_answers()]), "50.0", "50.0"]
    lines = [["row", *columns], ["---", *["--:"] * len(columns)], *rows, chance]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def needs() -> str:
    """Which row for which need, in short, for both budgets."""
    from vlp_course.needs import advice
    quick, full = (advice(ROOT / "results", budget) for budget in ("quick", "full"))
    told = [f"{a.best} {a.score}" if a.best != "-" else "-" for a in full] or ["-"] * len(quick)
    lines = [["you want to", "so take", "best row", "runner-up", "beyond seeds", "best, full budget"], ["---"] * 6]
    lines += [[a.need, a.words, f"{a.best} {a.score}", f"{a.second} {a.second_score}", a.apart, best]
              for a, best in zip(quick, told)]
    return "\n".join("| " + " | ".join(cell.replace("- -", "-") for cell in line) + " |" for line in lines)


def readme() -> str:
    """The README with the boards of today's results."""
    text = README.read_text()
    for name, made in (("board", board()), ("needs", needs()), ("answers", answers()), ("emoji", emoji())):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- end of {name} -->")
        text = f"{before}<!-- {name} -->\n{made}\n<!-- end of {name} -->{after}"
    return text


def picture() -> None:
    """Some captions, and what two rows found for them with seed 0; the right picture is framed."""
    from PIL import Image, ImageDraw, ImageFont
    from vlp_course import lab
    from vlp_course.evaluate import test_set
    scenes, font = test_set("seen", pixels=True), ImageFont.load_default(15)
    runs = {r["row"]: r["samples"] for r in lab.read_results(ROOT / "results", budget="quick") if r["seed"] == 0}
    models = (("families in the batch", runs["clip"]), ("random batches", runs["clip-random-batches"]))
    canvas = Image.new("RGB", (1010, SHOWN * 320), "white")
    draw = ImageDraw.Draw(canvas)
    for k, query in enumerate(lab.QUERIES[:SHOWN]):
        top = 320 * k
        draw.text((10, top + 6), scenes.captions[query], fill="black", font=font)
        for m, (title, rows) in enumerate(models):
            draw.text((10, top + 32 + 144 * m + 56), title, fill=(90, 90, 90), font=font)
            for j, i in enumerate(rows[k]):
                x, y = 220 + 156 * j, top + 32 + 144 * m
                draw.rectangle((x - 5, y - 5, x + 132, y + 132), fill=(42, 157, 92) if i == query else (225, 225, 225))
                canvas.paste(Image.fromarray(scenes.image(i)), (x, y))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128).save(PICTURE, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--picture", action="store_true")
    options = parser.parse_args()
    if options.picture:
        picture()
    elif options.check:
        same = readme() == README.read_text()
        sys.exit(0 if same else "README.md: its boards are not those of results/: run tools/draw_readme.py")
    else:
        README.write_text(readme())


if __name__ == "__main__":
    main()
