"""The site's own code: notebooks as pages, verdicts in the ledger, the bibliography."""
import json, re, sys
from pathlib import Path

from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs/_ext"))
import boards  # noqa: E402
import figures  # noqa: E402
import ledger  # noqa: E402
import notebooks  # noqa: E402

PICTURE = [{"output_type": "display_data", "data": {"image/png": "..."}, "metadata": {}}]
PRINTED = [{"output_type": "stream", "name": "stdout", "text": ["Verdict: holds (3 of 3)\n"]}]


def md(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "id": "m", "source": source.splitlines(True)}


def code(source: str, outputs=()) -> dict:
    return {"cell_type": "code", "metadata": {}, "id": "c", "outputs": list(outputs), "source": source.splitlines(True)}


def page(*cells: dict) -> list[dict]:
    source = [json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})]
    notebooks.prepare(None, "nbs/3_fusion/10b_trial", source)
    return json.loads(source[0])["cells"]


def test_directives_become_tags():
    title, export, test = page(md("# Title"), code("#| default_exp a.b"), code("#| export\ndef f(): ..."),
                               code("#| echo: false\nimport os"), code("#| test: by_hand\nassert f", PRINTED))
    assert title["source"] == "# 10b · Title"
    assert export["source"] == "def f(): ..." and export["metadata"]["tags"] == ["export"]
    assert test["source"] == "assert f" and test["metadata"]["tags"] == ["test", "hide-input"] and test["outputs"] == []
    assert test["metadata"]["mystnb"]["code_prompt_show"] == "Test: by hand"


def test_exercises_are_folded_with_their_tests():
    _, starter, solution, test = page(md("# 1"), code("#| starter: a\nx = 1"), code("#| solution: a\nx = 2"),
                                      code("#| test: a\nassert x == 2"))
    assert "hide-input" not in starter["metadata"]["tags"]
    assert all({"hide-input", "closed"} <= set(cell["metadata"]["tags"]) for cell in (solution, test))


def test_figures_take_their_description_or_complain(monkeypatch):
    said = []
    monkeypatch.setattr(notebooks.logger, "warning", lambda text, *args: said.append(text % args))
    _, figure, _ = page(md("# 1"), code("plot()", PICTURE), md("*A `line` that\nfalls.* More."))
    assert figure["metadata"]["mystnb"]["image"]["alt"] == "A line that falls." and not said
    page(md("# 1"), code("plot()", PICTURE), md("**Bold** is no description."))
    assert len(said) == 1 and "cell c: the figure has no description" in said[0]


def test_mentions_become_links_outside_code_and_maths():
    text = notebooks.linked("See notebook 02a, notebooks 02a and 02b, `notebook 02a`, $notebook 02a$, notebook 99.",
                            {"02a": "0_start/02a_x.ipynb", "02b": "0_start/02b_y.ipynb"}, "0_start/02b_y.ipynb")
    link = "[02a](../0_start/02a_x.ipynb)"
    assert text == f"See notebook {link}, notebooks {link} and 02b, `notebook 02a`, $notebook 02a$, notebook 99."


def test_verdicts_are_read_from_stored_outputs(tmp_path, monkeypatch):
    path = tmp_path / "nbs/3_fusion/13_albef.ipynb"
    path.parent.mkdir(parents=True)
    cells = [md("# ALBEF"), md("## Verdict\n\nThe claim: *order matters.*"), code("print(...)", PRINTED), md("## Cost")]
    path.write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    assert ledger.verdict_of(path) == ("order matters.", ["Verdict: holds (3 of 3)"])
    claim = {"number": 8, "notebooks": ["13", "14"]}
    where = "([13 · ALBEF](nbs/3_fusion/13_albef.ipynb)); not yet tested in 14"
    assert ledger.status(claim) == f"**holds (3 of 3)** {where}"
    assert ledger.status({"number": 9, "notebooks": ["14"]}) == "not yet tested"
    cells.append(code("print(...)", [PRINTED[0] | {"text": "CLAIM 8: depends (2 of 5)\n"}]))
    path.write_text(json.dumps({"cells": cells}))
    assert ledger.status(claim).startswith("**depends (2 of 5)** (")


def run(row: str, seed: int = 0, **metrics: float) -> dict:
    """A result with invented numbers; metrics by name with __ for the stroke."""
    marks = {name.replace("__", "/"): value for name, value in metrics.items()}
    cost = {"steps": 9, "cpu_s": 50.0, "params": 1_000_000}
    return cost | {"row": row, "seed": seed, "budget": "quick", "metrics": marks, "config": {"title": row}}


def test_finer_tables_leave_out_what_is_not_recorded(monkeypatch):
    monkeypatch.setattr(boards, "chance", lambda: {"foil/size": 0.5})
    runs = [run("clip", s, foil__size=0.8, seen__r1=0.9) for s in range(3)]
    text, = boards.finer_tables([*runs, run("lm", unknown=1.0)])
    assert text.startswith(":::{dropdown}") and "80.0 ± 0.0" in text and "| Chance |" in text and "50.0" in text
    assert "| lm |" not in text                                 # nothing of this table is recorded for it


def test_the_page_of_needs_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(boards, "RESULTS", tmp_path)
    monkeypatch.setattr(boards, "chance", lambda: {"foil/relation": 0.5})
    monkeypatch.setattr("vlp_course.needs.chance", lambda: {"foil/relation": 0.5})
    text = boards.needs_page()
    assert text.count("Nothing is recorded") == 2 and "not recorded" in text and "**Because**" not in text
    from vlp_course.lab import result_path, save_json
    for s in range(3):
        save_json(result_path(tmp_path, "scenes", made := run("clip", s, foil__relation=0.9)), made)
    text = boards.needs_page()
    assert text.count("Nothing is recorded") == 1 and "| tell who is where | clip, the only row" in text


def test_probes_stand_beside_mismatched_pictures(monkeypatch):
    marks = {"size/linear/matched": 0.9, "size/linear/mismatched": 0.5, "size/mlp/matched": 1.0}
    clip, trunk = run("clip") | {"metrics": marks | {"count/linear/image": 0.7}}, run("trunk") | {"metrics": {}}
    monkeypatch.setattr(boards, "results", lambda *a: [clip, trunk])
    assert boards.probes("full").splitlines()[2:] == ["| CLIP | 1 | 70.0 | 90.0 (50) |", "| trunk | 1 | - | - |"]


def test_leaders_are_the_rows_that_lead():
    best, other = (1.0, 0), (0.4, 0)
    found = {"a": {"x": best, "y": other}, "b": {"x": other, "y": best, "z": best}, "c": {"x": other}}
    assert figures.leaders(found) == ["b", "a"] and figures.leaders(found, 1) == ["b"]


def test_cited_works_stand_in_the_bibliography():
    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())
    known = [plain(entry.fields["title"]) for entry in parse_file(ROOT / "docs/references.bib").entries.values()]
    missing = []
    for path in ledger.notebooks():
        for _, source, _ in ledger.cells_of(path):
            lines = source.partition("## Further reading")[2].split("\n")
            dated = (line for line in lines if re.search(r"\b(19|20)\d\d\b", line))
            titles = [title for line in dated for title in re.findall(r"(?<!\*)\*(?![*\s])([^*]+)\*", line)[:1]]
            missing += [f"{path.name}: {title}" for title in titles if not any(plain(title) in name for name in known)]
    assert not missing, f"add to docs/references.bib: {missing}"
