"""Write what the README shows from recorded results and trained models, so that no number in it is typed.

    python tools/draw_readme.py            # the board between the <!-- board --> lines, from results/
    python tools/draw_readme.py --check    # writes nothing, exits 1 if the README differs from results/
    python tools/draw_readme.py --picture runs/clip-s0 runs/clip-random-batches-s0   # docs/images/found.png
"""
import argparse, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, PICTURE = ROOT / "README.md", ROOT / "docs/images/found.png"
COLUMNS = ("row", "seeds", "CPU-s", "steps", "R@1", "Twemoji", "OpenMoji", "new nouns", "relation", "group", "pointing")
QUERIES = (0, 13, 24, 37)


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


def readme() -> str:
    """The README with the board of today's results."""
    before, _, rest = README.read_text().partition("<!-- board -->\n")
    _, _, after = rest.partition("<!-- end of board -->")
    return f"{before}<!-- board -->\n{board()}\n<!-- end of board -->{after}"


def picture(families: Path, random: Path) -> None:
    """Some captions, and what the two models find for them; the right picture is framed."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont
    from vlp_course import course, lab
    from vlp_course.evaluate import test_set
    scenes, font = test_set("seen"), ImageFont.load_default(15)
    models = (("families in the batch", "clip", families), ("random batches", "clip-random-batches", random))
    found = [(title, course.found_pictures(lab.load_row(name, folder), list(QUERIES))) for title, name, folder in models]  # noqa: E501
    canvas = Image.new("RGB", (1010, len(QUERIES) * 320), "white")
    draw = ImageDraw.Draw(canvas)
    for k, query in enumerate(QUERIES):
        top = 320 * k
        draw.text((10, top + 6), scenes.captions[query], fill="black", font=font)
        for m, (title, rows) in enumerate(found):
            draw.text((10, top + 32 + 144 * m + 56), title, fill=(90, 90, 90), font=font)
            for j, i in enumerate(rows[k]):
                x, y = 220 + 156 * j, top + 32 + 144 * m
                colour = (42, 157, 92) if i == query else (225, 225, 225)
                draw.rectangle((x - 5, y - 5, x + 132, y + 132), fill=colour)
                canvas.paste(Image.fromarray(np.asarray(scenes.image(i))), (x, y))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    canvas.quantize(128).save(PICTURE, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--picture", nargs=2, type=Path, metavar=("FAMILIES", "RANDOM"))
    options = parser.parse_args()
    if options.picture:
        picture(*options.picture)
    elif options.check:
        same = readme() == README.read_text()
        sys.exit(0 if same else "README.md: its board is not that of results/: run tools/draw_readme.py")
    else:
        README.write_text(readme())


if __name__ == "__main__":
    main()
