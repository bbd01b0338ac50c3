"""Training in processes of its own: equal bits, kills, several processes, damaged checkpoints."""
import json, os, signal, subprocess, sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import Towers, Toy, train

from vlp_course.train import Recipe, TrainError, checkpoint_sha, fit, latest_checkpoint, load_checkpoint

HERE = Path(__file__).parent
TOY = [sys.executable, str(HERE / "toy_run.py")]
PAIR = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(HERE / "toy_run.py")]


def run(command: list, *args, fails: bool = False) -> str:
    """The last line of what the command prints: the hash."""
    done = subprocess.run([*command, *map(str, args)], capture_output=True, text=True, timeout=200)
    assert bool(done.returncode) == fails, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(out) / "model.safetensors")


def states(out: Path) -> dict[str, bytes]:
    """All that the newest checkpoint holds of model, optimiser and generators, byte for byte."""
    return {file.name: file.read_bytes() for file in latest_checkpoint(out).glob("*.safetensors")}


def distance(a: Path, b: Path) -> float:
    a, b = weights(a), weights(b)
    return max(float((a[name] - b[name]).abs().max()) for name in a if name != "queue")      # its rows have an order


@pytest.mark.slow
def test_equal_seeds_give_equal_bits_in_two_processes(tmp_path):
    # Both are started here: in this process beartype draws from Python's `random` whenever it checks a list.
    first, second = run(TOY, tmp_path / "first"), run(TOY, tmp_path / "second")
    assert first == second != checkpoint_sha(train(tmp_path / "other", seed=1))
    assert states(tmp_path / "first") == states(tmp_path / "second")


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    report = tmp_path / "kills.json"
    tool = [sys.executable, str(HERE.parent / "tools/kill_test.py"), "--kills", "3", "--json", str(report), "--"]
    run(tool, *TOY, "{out}", "--steps", 80)
    report = json.loads(report.read_text())
    assert report["equal"] and report["kills"] == 3 and set(report["finished"]) == {report["undisturbed"]}


@pytest.mark.slow
def test_two_processes_equal_one_with_gathered_negatives_only(tmp_path):
    train(tmp_path / "one", steps=20, double=True)
    run(PAIR, tmp_path / "gathered", tmp_path / "local", "--double", "--steps", 20, "--negatives", "gathered", "local")
    assert distance(tmp_path / "one", tmp_path / "gathered") <= 1e-10
    assert distance(tmp_path / "one", tmp_path / "local") > 1e-3


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(tmp_path):
    args = ("--steps", 20, "--save-every", 8, "--accumulation", 3)
    run(PAIR, tmp_path / "killed", *args, "--die-at", 13, fails=True)
    assert latest_checkpoint(tmp_path / "killed").name == "step-00000008"
    run(PAIR, tmp_path / "killed", tmp_path / "whole", *args)
    assert states(tmp_path / "killed") == states(tmp_path / "whole")


def short(out) -> Towers:
    return train(out, steps=6, save_every=2)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_file_is_refused_and_nothing_changes(tmp_path, file, fault):
    short(tmp_path)
    path = latest_checkpoint(tmp_path) / file
    payload = path.read_bytes()
    if fault == "flipped" and file == "state.json":
        payload = payload.replace(b'"sha256"', b'"sha257"')
    middle = len(payload) // 2
    path.write_bytes({"truncated": payload[:middle], "empty": b"", "gone": b"",
                      "flipped": payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1:]}[fault])
    if fault == "gone":
        path.unlink()
    if fault == "flipped" and file == "state.json":
        path.write_bytes(payload)
    model = Towers()
    before = checkpoint_sha(model)
    with pytest.raises(TrainError, match="damaged or missing") as error:
        load_checkpoint(latest_checkpoint(tmp_path), model)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert checkpoint_sha(model) == before
    with pytest.raises(TrainError, match="damaged or missing"):
        short(tmp_path)                                              # no silent fall-back to an older one or to none


def test_a_killed_save_is_ignored_and_swept_up(tmp_path):
    expected = checkpoint_sha(short(tmp_path / "whole"))
    half = tmp_path / "killed" / ".tmp-new-step-00000004"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half a file")
    assert checkpoint_sha(short(tmp_path / "killed")) == expected
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["step-00000006"]


def test_checkpoints_hold_json_and_safetensors_only(tmp_path):
    short(tmp_path)
    files = sorted(os.listdir(latest_checkpoint(tmp_path)))
    assert files == ["model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json"]
    source = "".join((HERE.parent / "vlp_course" / name).read_text() for name in ("train.py", "checkpoints.py"))
    assert "pickle" not in source and "torch.save" not in source and "torch.load" not in source


def test_an_interrupt_leaves_the_last_checkpoint(tmp_path):
    def interrupt(state, step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
    model = Towers()
    model.after_step = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)      # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(model, Toy(), Recipe(6, batch_size=12), tmp_path, save_every=2, progress=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert latest_checkpoint(tmp_path).name == "step-00000004"
