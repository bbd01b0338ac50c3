"""Kill a training command again and again, resume it, and compare the end with that of an undisturbed run.

    python tools/kill_test.py --kills 20 --seed 0 -- vlp pretrain clip --steps 200 --save-every 5 --out {out}

COMMAND trains into the folder `{out}`, resumes from what it finds there, and prints the final hash as the last
line of its output. Kills are SIGKILL: every second one at a random time, the others when a save is seen to be under
way (`.tmp-*` in the folder). A run that finishes between two kills is compared and started anew in a fresh folder.
Prints a line for each kill, writes a report, and exits 1 if any hash differs or the command fails.
"""
import argparse, json, os, random, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Attempt:
    """One start of the command in its own process group, with its output in files beside `out`."""

    def __init__(self, command: list[str], out: Path):
        self.out, self.log = out, [open(out.with_suffix(end), "w+") for end in (".stdout", ".stderr")]
        command = [part.replace("{out}", str(out)) for part in command]
        self.process = subprocess.Popen(command, stdout=self.log[0], stderr=self.log[1], start_new_session=True)
        self.start = time.perf_counter()

    def text(self, which: int) -> str:
        self.log[which].seek(0)
        return self.log[which].read().strip()

    def wait(self, seconds: float) -> bool:
        """Wait so long or until the end; True if it still runs."""
        try:
            return self.process.wait(seconds) is None
        except subprocess.TimeoutExpired:
            return True

    def wait_for_save(self, number: int, before: dict) -> bool:
        """Wait until the `number`-th save is under way; True if the process still runs."""
        seen = set()
        while self.process.poll() is None:
            seen.update(text.split()[0] for made, text in leftovers(self.out).items() if made not in before)
            if len(seen) >= number:
                return True
            time.sleep(2e-4)
        return False

    def kill(self) -> float:
        """SIGKILL to the whole group; returns the seconds that it ran."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return time.perf_counter() - self.start

    def final_hash(self) -> str:
        if self.process.wait():
            sys.exit(f"the command failed with code {self.process.returncode}:\n{self.text(1)[-2000:]}")
        return self.text(0).splitlines()[-1].strip()


def leftovers(out: Path) -> dict[tuple, str]:
    """What killed saves left in `out`: a description of each temporary folder, by when and where it was made."""
    found = {}
    for path in sorted(out.glob(".tmp-*")):
        try:
            stat, files = path.stat(), sorted(p.name for p in path.iterdir())
        except FileNotFoundError:                    # the running command renamed or removed it meanwhile
            continue
        found[stat.st_ino, stat.st_ctime_ns] = f"{path.name} with {', '.join(files) or 'nothing'}"
    return found


def disturbed(command: list[str], kills: int, rng: random.Random, seconds: float, folder: Path):
    """Kill until `kills` landed, then let it finish: (one record for each kill, hashes of all finished runs)."""
    records, hashes, out = [], [], folder / "killed-0"
    while len(records) < kills:
        before, attempt, number = leftovers(out), Attempt(command, out), rng.randint(1, 3)
        if len(records) % 2:
            aim, alive = f"save {number}", attempt.wait_for_save(number, before)
            time.sleep(rng.uniform(0, 0.004) if alive else 0)
        else:
            aim, alive = "any time", attempt.wait(rng.uniform(0, seconds))
        if not (alive and attempt.process.poll() is None):
            hashes.append(attempt.final_hash())
            out = folder / f"killed-{len(hashes)}"
            if len(hashes) > 3 * kills + 10:
                sys.exit(f"only {len(records)} of {kills} kills landed: the command is too short, or saves too rarely")
            continue
        after = attempt.kill()
        kept = max((p.name for p in out.glob("step-*")), default="")
        left = "; ".join(text for made, text in leftovers(out).items() if made not in before)
        records.append({"aim": aim, "after_s": round(after, 3), "kept": kept, "inside_save": bool(left), "left": left})
        print(f"kill {len(records):2d}: {aim:8s} after {after:6.2f} s, kept {kept or 'nothing':13s} "
              f"{'inside a save: ' + left if left else 'between saves'}", flush=True)
    return records, [*hashes, Attempt(command, out).final_hash()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random kill times")
    parser.add_argument("--json", type=Path, default=ROOT / "results/robustness/kills.json", help="the report")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ... {out}")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not any("{out}" in part for part in command):
        parser.error("the command needs {out} where its folder goes")
    folder = Path(tempfile.mkdtemp(prefix="kill-test-"))
    try:
        undisturbed = Attempt(command, folder / "whole")
        expected = undisturbed.final_hash()
        seconds = time.perf_counter() - undisturbed.start
        records, hashes = disturbed(command, args.kills, random.Random(args.seed), seconds, folder)
    finally:
        shutil.rmtree(folder)
    equal, inside = set(hashes) == {expected}, sum(r["inside_save"] for r in records)
    report = {"command": command, "seed": args.seed, "kills": len(records), "inside_save": inside, "equal": equal,
              "undisturbed": expected, "undisturbed_s": round(seconds, 2), "finished": hashes, "each": records}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{len(records)} kills, {inside} of them inside a save; {len(hashes)} finished runs "
          f"{'all end in the hash of' if equal else 'do NOT all end in the hash of'} the undisturbed run: {expected}")
    return not equal


if __name__ == "__main__":
    sys.exit(main())
