"""Run notebooks in real kernels, two at a time with one thread each, in the notebook's folder.

    python tools/run_notebooks.py                   # only run them: does every cell work?
    python tools/run_notebooks.py --write           # store the outputs, cleaned, and results/notebook_times.json
    python tools/run_notebooks.py --check           # compare new outputs with the stored ones
    python tools/run_notebooks.py --write NOTEBOOK  # any of these for some notebooks

--check wants the same number and kind of outputs, the same text but for numbers, numbers within 2e-2
(relative) or 1e-2 (absolute), and compares images by their type. Numbers in cells with `#| varies` may be
anything. What goes to stderr (progress bars, warnings) is neither stored nor compared.
"""
import argparse, json, math, os, platform, re, sys, time, traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import nbformat

from nbcells import ROOT, notebooks, relative

TIMES = ROOT / "results/notebook_times.json"
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+\.?\d*(?:[eE][-+]?\d+)?")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
               "PYTHONHASHSEED": "0", "JUPYTER_PREFER_ENV_PATH": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def tidy(outputs: list) -> list:
    """Outputs without stderr, counts, metadata and addresses, and with neighbouring prints joined."""
    kept = []
    for out in outputs:
        if out.output_type == "stream":
            if out.name == "stderr":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += out.text
                continue
        for key in {"metadata", "execution_count"} & out.keys():
            out[key] = {} if key == "metadata" else None
        kept.append(out)
    for out in kept:
        for holder, key in [(out, "text")] if "text" in out else [(out.get("data", {}), "text/plain")]:
            if key in holder:
                holder[key] = re.sub(r" at 0x[0-9a-f]+", "", holder[key])
    return kept


def execute(path: Path, timeout: int):
    """(notebook with new outputs, seconds), run in a kernel of this environment."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    os.environ.update(ENVIRONMENT, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    nb, start, at = nbformat.read(path, 4), time.perf_counter(), [0]
    client = NotebookClient(nb, timeout=timeout, startup_timeout=120, kernel_name="python3", record_timing=False,
                            extra_arguments=["--log-level=CRITICAL"],           # no warning about local sockets
                            resources={"metadata": {"path": str(path.parent)}},
                            on_cell_execute=lambda cell, cell_index: at.__setitem__(0, cell_index))
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
        if isinstance(error, CellTimeoutError):
            reason = f"ran for over {timeout} s"
        raise RuntimeError(f"{relative(path)}, cell {nb.cells[at[0]].id}: {reason[-3000:]}") from None
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy(cell.outputs)
    return nb, time.perf_counter() - start


def close(a: str, b: str) -> bool:
    x, y = float(a), float(b)
    return math.isclose(x, y, rel_tol=2e-2, abs_tol=1e-2)


def text_difference(old: str, new: str, varies: bool) -> str | None:
    """The first line in which two texts differ beyond the tolerance."""
    olds, news = ([" ".join(line.split()) for line in text.strip().split("\n")] for text in (old, new))
    if len(olds) != len(news):
        return f"{len(olds)} lines stored, {len(news)} now; the last now is {news[-1][:200]!r}"
    for a, b in zip(olds, news):
        words = [re.sub(r"\s+", "", NUMBER.sub("#", line)) for line in (a, b)]
        numbers = zip(NUMBER.findall(a), NUMBER.findall(b))
        if words[0] != words[1] or not varies and not all(close(x, y) for x, y in numbers):
            return f"stored {a[:200]!r}, now {b[:200]!r}"
    return None


def output_difference(old, new, varies: bool) -> str | None:
    kinds = [(out.output_type, out.get("name"), *sorted(out.get("data", {}))) for out in (old, new)]
    if kinds[0] != kinds[1]:
        return f"kind stored {kinds[0]}, now {kinds[1]}"
    if old.output_type == "stream":
        return text_difference(old.text, new.text, varies)
    if any(kind.startswith("image/") for kind in old.get("data", {})):
        return None
    pairs = [(old.data[kind], new.data[kind]) for kind in old.get("data", {}) if isinstance(old.data[kind], str)]
    return next(filter(None, (text_difference(a, b, varies) for a, b in pairs)), None)


def difference(path: Path, old, new) -> str | None:
    """The first difference between two runs of a notebook, with its cell; None where they agree."""
    for a, b in zip(old.cells, new.cells):
        if a.cell_type != "code":
            continue
        varies, stored = bool(re.search(r"^#\|\s*varies", a.source, re.M)), tidy(a.outputs)
        found = f"{len(stored)} outputs stored, {len(b.outputs)} now" if len(stored) != len(b.outputs) else next(
            filter(None, (output_difference(x, y, varies) for x, y in zip(stored, b.outputs))), None)
        if found:
            return f"{relative(path)}, cell {a.id}: {found}\n  If the new output is right, store it: make notebooks"
    return None


def store(path: Path, nb) -> str | None:
    from nbdev.clean import nbdev_clean
    if [c.source for c in nbformat.read(path, 4).cells] != [c.source for c in nb.cells]:
        return f"{relative(path)}: was edited while it ran; not stored"
    nbformat.write(nb, path)
    nbdev_clean(fname=str(path))
    return None


def one(path: Path, action: str, timeout: int) -> tuple[float, str | None]:
    """Seconds and what went wrong, if anything."""
    try:
        old = nbformat.read(path, 4)
        new, seconds = execute(path, timeout)
        found = {"write": lambda: store(path, new), "check": lambda: difference(path, old, new), "run": lambda: None}
        return seconds, found[action]()
    except RuntimeError as error:
        return 0.0, str(error)
    except Exception:
        return 0.0, f"{relative(path)}: {traceback.format_exc()}"


def write_times(seconds: dict[str, float]) -> None:
    """Merge new times into the table; notebooks that are gone leave it."""
    import torch
    known = json.loads(TIMES.read_text())["seconds"] if TIMES.exists() else {}
    merged = {name: s for name, s in sorted({**known, **seconds}.items()) if (ROOT / name).exists()}
    machine = {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.machine(),
               "cores": os.cpu_count(), "at_once": 2, "threads_each": 1}
    TIMES.parent.mkdir(exist_ok=True)
    TIMES.write_text(json.dumps({"machine": machine, "seconds": merged}, indent=1) + "\n")


def main(args=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", dest="action", action="store_const", const="write", default="run")
    action.add_argument("--check", dest="action", action="store_const", const="check")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    args = parser.parse_args(args)
    known = json.loads(TIMES.read_text())["seconds"] if TIMES.exists() else {}
    paths = [path.resolve() for path in args.notebooks or notebooks(ROOT / "nbs")]
    paths.sort(key=lambda path: -known.get(relative(path), math.inf))             # the longest first
    start, seconds, problems = time.perf_counter(), {}, []
    print(f"{len(paths)} notebooks, two at a time ({args.action})", flush=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(one, path, args.action, args.timeout): path for path in paths}
        for n, job in enumerate(as_completed(jobs), 1):
            spent, problem = job.result()
            name = relative(jobs[job])
            print(f"[{n}/{len(jobs)}] {spent:6.1f} s  {name}{'  FAILED' if problem else ''}", flush=True)
            if problem:
                problems.append(problem)
            elif jobs[job].is_relative_to(ROOT):
                seconds[name] = round(spent, 1)
    if args.action == "write":
        write_times(seconds)
    print(*problems, f"{len(paths) - len(problems)} of {len(paths)} notebooks passed ({args.action}) "
          f"in {time.perf_counter() - start:.0f} s", sep="\n\n" if problems else "\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
