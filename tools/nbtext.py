"""Edit a notebook as plain text, and back without losing cell ids or outputs.

    python tools/nbtext.py show nbs/0_start/02a_assets.ipynb > /tmp/a.txt
    python tools/nbtext.py save /tmp/a.txt nbs/0_start/02a_assets.ipynb

The text is the cells in order, each under a line `@@ md` or `@@ code`.
A cell whose source did not change keeps its id and its outputs.
"""
import difflib, hashlib, pathlib, re, sys
import nbformat

KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
KINDS = {"md": "markdown", "code": "code"}


def to_text(nb) -> str:
    kinds = {v: k for k, v in KINDS.items()}
    return "\n\n".join(f"@@ {kinds[c.cell_type]}\n{c.source}" for c in nb.cells) + "\n"


def cells_of(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^@@ (md|code)[ \t]*\n", text, flags=re.M)
    if parts[0].strip():
        sys.exit(f"text before the first @@ line: {parts[0].strip()[:60]!r}")
    return [(KINDS[kind], body.strip("\n")) for kind, body in zip(parts[1::2], parts[2::2])]


def fresh_id(source: str, taken: set[str]) -> str:
    for salt in range(1000):
        new = hashlib.sha256(f"{salt}{source}".encode()).hexdigest()[:8]
        if new not in taken:
            return new
    raise AssertionError("no free cell id")


def to_notebook(text: str, old=None):
    """The notebook of `text`; cells that match `old` keep id, outputs and metadata."""
    old_cells = list(old.cells) if old else []
    new = cells_of(text)
    match = difflib.SequenceMatcher(None, [(c.cell_type, c.source) for c in old_cells], new, autojunk=False)
    kept, ids = {}, {}
    for tag, i1, i2, j1, j2 in match.get_opcodes():
        for i, j in zip(range(i1, i2), range(j1, j2)):
            if tag == "equal":
                kept[j] = old_cells[i]
            elif tag == "replace" and old_cells[i].cell_type == new[j][0]:
                ids[j] = old_cells[i].id          # an edited cell stays the same cell
    taken = {c.id for c in kept.values()} | set(ids.values())
    cells = []
    for j, (kind, source) in enumerate(new):
        if j not in kept:
            cell_id = ids.get(j) or fresh_id(source, taken)
            taken.add(cell_id)
            make = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
            kept[j] = make(source, id=cell_id)
        cells.append(kept[j])
    return nbformat.v4.new_notebook(cells=cells, metadata=KERNEL)


def main(action: str, source: str, target: str = "-") -> None:
    if action == "show":
        print(to_text(nbformat.read(source, 4)), end="")
    elif action == "save":
        path = pathlib.Path(target)
        old = nbformat.read(path, 4) if path.exists() else None
        nb = to_notebook(pathlib.Path(source).read_text(), old)
        nbformat.validate(nb)
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit(__doc__)
