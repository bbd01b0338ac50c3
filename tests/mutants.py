"""Seeded mistakes: does a module's own test file notice when one of its functions is wrong?

A mutant is one function of a library module with one piece of its source replaced. It is compiled in the
namespace of the module and takes the place of the function; then the tests that were generated from the
module's notebook run against it, in this process. A mutant that passes them all shows a hole in the tests.
"""
import ast, importlib, inspect
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import seed_all

TESTS = Path(__file__).parent / "nbs"


class Mutant(NamedTuple):
    function: str      # name of a function or class at the top level of the module
    find: str          # text that stands exactly once in its source
    put: str           # text that takes its place


def source_of(module, name: str) -> str:
    """Source of a top-level function or class, decorators included."""
    text = Path(module.__file__).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if getattr(node, "name", None) == name:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1:node.end_lineno]) + "\n"
    raise LookupError(f"{module.__name__} has no top-level function or class {name!r}")


@contextmanager
def seeded(module, mutant: Mutant):
    """The module with the mutant in the place of its function; the function is back afterwards.

    Other modules that imported the function before keep the right one."""
    source = source_of(module, mutant.function)
    if source.count(mutant.find) != 1:
        raise LookupError(f"{module.__name__}.{mutant.function}: {mutant.find!r} stands there "
                          f"{source.count(mutant.find)} times; a mutant needs it exactly once")
    right = getattr(module, mutant.function)
    exec(compile(source.replace(mutant.find, mutant.put), f"<mutant of {module.__name__}>", "exec"), vars(module))
    try:
        yield
    finally:
        setattr(module, mutant.function, right)


class Notebook:
    """The generated tests of one notebook as plain functions, run without pytest's machinery."""

    def __init__(self, name: str):
        self.tree = ast.parse((TESTS / f"test_{name}.py").read_text(encoding="utf-8"))
        functions = [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]
        slow = [f.name for f in functions if any("mark.slow" in ast.unparse(d) for d in f.decorator_list)]
        self.tests = [f.name for f in functions if f.name.startswith("test_") and f.name not in slow]
        for function in functions:
            function.decorator_list = []                   # fixtures and marked tests become plain functions
        self.code = compile(self.tree, f"test_{name}.py", "exec")

    def failures(self, stop: bool = False):
        """Names of the tests that fail on the library as it is now, each with its error."""
        names, values = {"__name__": "mutants"}, {}
        exec(self.code, names)                             # imports the functions anew, so also the mutant

        def call(name: str):
            arguments = inspect.signature(names[name]).parameters
            for setup in arguments:
                if setup not in values:
                    values[setup] = call(setup)
            seed_all()
            return names[name](*(values[setup] for setup in arguments))

        failed = {}
        for test in self.tests:
            try:
                call(test)
            except NameError:
                raise                                      # the mutant's text is broken, not wrong
            except (Exception, pytest.fail.Exception) as error:
                failed[test] = error
                if stop:
                    break
        return failed


def load(module: str):
    return importlib.import_module(f"vlp_course.{module}")
