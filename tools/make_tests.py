"""Write the pytest files of tests/nbs/ from the test cells of the notebooks.

    python tools/make_tests.py            # all notebooks; removes files whose notebook is gone
    python tools/make_tests.py NOTEBOOK   # only this one
    python tools/make_tests.py --check    # writes nothing, exits 1 if a file would change

A `#| test: name` cell becomes `test_name`. It may use what its notebook exports (imported from the
library, not copied), names of its import-only cells, and names of the `#| setup` cells above it
(run once a file, and only where a test needs them). `#| starter: name` and `#| solution: name` above
a test make two of it: the solution must pass, the starter must fail.
"""
import argparse, ast, re, sys
from pathlib import Path

from nbcells import ROOT, Cell, CellError, code_cells, indent, notebooks, relative, ruff, undefined

NOWHERE = "is undefined: not exported, not in an import-only cell, not in a `#| setup` cell above"


class TestFile:
    """The cells that a notebook's tests need, and where each name they use comes from."""

    def __init__(self, path: Path):
        self.path, cells = relative(path), code_cells(path)
        self.setups = [c for c in cells if "setup" in c.marks]
        self.units = [*([c] for c in self.setups), *tests(cells)]
        module = next((c.marks["default_exp"] for c in cells if "default_exp" in c.marks), None)
        self.exported = {name: c.marks["export"] or module
                         for c in cells if "export" in c.marks and not c.imports for name in c.bound}
        self.imported = {alias.asname or alias.name.split(".")[0]: type(s)(**{**vars(s), "names": [alias]})
                         for c in cells if c.imports for s in c.tree.body for alias in s.names}
        self.imports, self.library, self.returns = set(), {}, {}
        free = undefined(["\n\n".join(c.source for c in unit) for unit in self.units])
        self.uses = [self.resolve(unit, names) for unit, names in zip(self.units, free)]

    def resolve(self, unit: list[Cell], names: set[str]) -> dict[str, list[str]]:
        """The setup cells that `unit` uses, each with the names taken from it."""
        uses = {}
        for name in sorted(names):
            cell = next(c for c in unit if re.search(rf"\b{name}\b", c.source))
            setup = next((s for s in reversed(self.setups) if s.at < unit[-1].at and name in s.bound), None)
            if setup:
                uses.setdefault(setup.id, []).append(name)
                self.returns.setdefault(setup.id, set()).add(name)
            elif name not in {*self.exported, *self.imported}:
                raise cell.error(f"`{name}` {NOWHERE}")
            elif any(name in c.bound for c in unit):
                raise cell.error(f"`{name}` is read and then assigned: give the new value another name")
            elif name in self.exported:
                self.library.setdefault(self.exported[name], set()).add(name)
            else:
                self.imports.add(ast.unparse(self.imported[name]))
        return uses

    def function(self, unit: list[Cell], uses: dict[str, list[str]]) -> str:
        """A fixture for a setup cell, a test function for the others."""
        cell, given = unit[-1], ", ".join(map(fixture, uses))
        names = {s: ", ".join(n if n in uses[s] else "_" for n in sorted(self.returns[s])) for s in uses}
        body = [f"    {names[s]} = {fixture(s)}" for s in uses]
        body += [indent(c.source, 1) for c in unit[:-1]]
        if cell in self.setups:
            body += [indent(cell.source, 1), f"    return {', '.join(sorted(self.returns[cell.id]))}"]
            return "\n".join(['@pytest.fixture(scope="module")', f"def {fixture(cell.id)}({given}):", *body])
        fails = "starter" in unit[0].marks
        body += ["    with pytest.raises(Exception):", indent(cell.source, 2)] if fails else [indent(cell.source, 1)]
        marks = [f'@pytest.mark.nb("{self.path}", "{cell.id}")'] + ["@pytest.mark.slow"] * ("slow" in cell.marks)
        return "\n".join([*marks, f"def test_{cell.marks['test']}{'_starter_fails' * fails}({given}):", *body])

    def text(self) -> str | None:
        """The test file's text; None for a notebook without tests."""
        if len(self.units) == len(self.setups):
            return None
        doc = f'"""Generated from {self.path} by tools/make_tests.py: edit the notebook, not this file."""'
        imports = sorted(self.imports | {"import pytest"}, key=lambda line: (line.startswith("from"), line))
        library = [f"from vlp_course.{m} import {', '.join(sorted(self.library[m]))}" for m in sorted(self.library)]
        wanted = [(u, s) for u, s in zip(self.units, self.uses) if u[-1] not in self.setups or u[-1].id in self.returns]
        parts = ["\n".join([doc, *imports, *library]), *(self.function(*pair) for pair in wanted)]
        return ruff("format", "--isolated", "--line-length=120", text="\n\n".join(parts))


def fixture(cell_id: str) -> str:
    return "setup_" + re.sub(r"\W", "_", cell_id)


def tests(cells: list[Cell]):
    """The cells of each test: [test], or [solution, test] and [starter, test] for an exercise."""
    seen, parts = set(), {}
    for cell in cells:
        parts.update({(kind, cell.marks[kind]): cell for kind in ("starter", "solution") if kind in cell.marks})
        if "test" not in cell.marks:
            continue
        name = cell.marks["test"]
        if not name.isidentifier() or name in seen:
            raise cell.error(f"`test: {name}` needs a name of its own, made of letters, digits and _")
        seen.add(name)
        solution, starter = parts.pop(("solution", name), None), parts.pop(("starter", name), None)
        if bool(solution) != bool(starter):
            raise cell.error(f"exercise `{name}` needs a starter and a solution cell above its test")
        yield from ([solution, cell], [starter, cell]) if solution else ([cell],)
    for (kind, name), cell in parts.items():
        raise cell.error(f"`{kind}: {name}` is followed by no cell `test: {name}`")


def main(args=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file would change")
    parser.add_argument("--nbs", type=Path, default=ROOT / "nbs", help="folder of the notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "tests/nbs", help="folder of the test files")
    args = parser.parse_args(args)
    wanted, problems = {}, []
    for path in args.notebooks or notebooks(args.nbs):
        target = args.out / ("test_" + re.sub(r"\W", "_", path.stem) + ".py")
        try:
            if target in wanted:
                raise CellError(f"{path}: another notebook has the same file name")
            wanted[target] = ""                                      # keeps the old file if the next line fails
            wanted[target] = TestFile(path).text()
        except CellError as error:
            problems.append(str(error))
    for target in sorted({*wanted} if args.notebooks else {*wanted, *args.out.glob("test_*.py")}):
        new, old = wanted.get(target), target.read_text() if target.exists() else None
        if new in ("", old):
            continue
        if args.check:
            problems.append(f"{target}: {'stale' if new is None else 'not what its notebook says'}")
        elif new is None:
            target.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(new)
    print("\n".join(problems) or f"the tests of {len(wanted)} notebooks are up to date")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
