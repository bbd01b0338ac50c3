"""The claims ledger: the claims of docs/claims.toml, and the verdicts in the stored outputs of the notebooks."""
import json, re, tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"^#{1,3} .*$", re.M)


def notebooks() -> list[Path]:
    return sorted((ROOT / "nbs").glob("*/*.ipynb"))


def link(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells_of(path: Path) -> list[tuple[str, str, str]]:
    """(kind, source, printed text) of every cell."""
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        streams = (out for out in cell.get("outputs", []) if out["output_type"] == "stream")
        printed = "".join("".join(out["text"]) for out in streams)
        found.append((cell["cell_type"], "".join(cell["source"]), printed))
    return found


def title_of(path: Path) -> str:
    """The title with the notebook's number in front."""
    number, title = path.name.split("_")[0], cells_of(path)[0][1].split("\n")[0].removeprefix("# ")
    return title if title[0].isdigit() else f"{number} · {title}"


def verdict_of(path: Path) -> tuple[str, list[str]]:
    """What a notebook puts to the test, if it says so in emphasis, and the lines that it prints under "Verdict"."""
    claim, lines, inside = "", [], False
    for kind, source, printed in cells_of(path):
        headings = HEADING.findall(source) if kind == "markdown" else []
        if headings:
            inside = "erdict" in headings[-1]
            if inside:
                found = re.search(r"\*(?![*\s])(.+?)\*", source[source.rindex(headings[-1]):], re.S)
                claim = found[1] if found else claim
        elif inside:
            lines += printed.strip().split("\n") if printed.strip() else []
        else:
            lines += [line for line in printed.split("\n") if line.lower().startswith("verdict")]
        if goal := re.search(r"[Pp]ut to the test: \*(.+?)\*", source):
            claim = claim or goal[1]
    return claim.strip(), lines


def printed_for(number: int) -> list[tuple[Path, str]]:
    """Lines such as `CLAIM 8: does not hold here (...)` in the stored outputs of any notebook."""
    rule = re.compile(rf"^CLAIM {number}\b\D.*$", re.M)
    return [(path, line) for path in notebooks() for *_, printed in cells_of(path) for line in rule.findall(printed)]


def status(claim: dict) -> str:
    """Where a claim stands: what notebooks print about it, and which of its notebooks are not written."""
    said = printed_for(claim["number"])
    parts, missing = [], []
    for number in claim["notebooks"]:
        paths = [path for path in notebooks() if path.name.split("_")[0] == number]
        for path in paths:
            lines = [line.split(":", 1)[-1] for p, line in said if p == path] or \
                    [line.split(":", 1)[-1] for line in verdict_of(path)[1] if line.lower().startswith("verdict")]
            where = f"[{title_of(path)}]({link(path)})"
            parts += [f"**{line.strip()}** ({where})" for line in lines or ["see the notebook"]]
        missing += [number] * (not paths)
    if not parts:
        return "not yet tested"
    return "; ".join(parts) + (f"; not yet tested in {', '.join(missing)}" if missing else "")


def claims() -> str:
    """The source notes' claims and where each stands."""
    stored = tomllib.loads((ROOT / "docs/claims.toml").read_text(encoding="utf-8"))["claim"]
    rows = [f"| {c['number']} | {c['part']} | {c['text']} | {status(c)} |" for c in stored]
    done = sum(status(claim) != "not yet tested" for claim in stored)
    said = f"{done} of {len(stored)} have been put to the test so far."
    return "\n".join([said, "", "| | part | claim | status |", "|--:|---|---|---|", *rows])


def own_verdicts() -> str:
    """For each notebook what it tests and what it prints as its verdict."""
    text = []
    for path in notebooks():
        claim, lines = verdict_of(path)
        if lines:
            about = [f"*{claim}*"] if claim else []
            text += [f"### [{title_of(path)}]({link(path)})", *about, "\n".join(["```text", *lines, "```"])]
    return "\n\n".join(text)
