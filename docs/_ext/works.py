"""Names works that a notebook's "Further reading" cites with a year and docs/references.bib lacks; nothing fails."""
import json, re
from pathlib import Path

from pybtex.database import parse_file
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
logger = logging.getLogger(__name__)


def plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def missing() -> list[tuple[str, str]]:
    """(notebook, title) of each cited work without an entry."""
    known = [plain(entry.fields["title"]) for entry in parse_file(ROOT / "docs/references.bib").entries.values()]
    found = []
    for path in sorted((ROOT / "nbs").glob("*/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            _, _, text = "".join(cell["source"]).partition("## Further reading")
            for line in (line for line in text.split("\n") if re.search(r"\b(19|20)\d\d\b", line)):
                found += [(path.name, title) for title in re.findall(r"(?<!\*)\*(?![*\s])([^*]+)\*", line)[:1]
                          if not any(plain(title) in k for k in known)]
    return found


def report(app) -> None:
    for name, title in missing():
        logger.info("docs/references.bib has no entry for %r, which %s cites", title, name)


def setup(app) -> dict:
    app.connect("builder-inited", report)
    return {"parallel_read_safe": True}
