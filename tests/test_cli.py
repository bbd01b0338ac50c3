"""The command line in real processes: exit statuses, what goes to stderr, and how little `--help` loads."""
import os, subprocess, sys
from pathlib import Path

PROBE = """
import sys
from vlp_course import cli
try:
    cli.main(["--help"])
except SystemExit as done:
    assert done.code == 0
print("LOADED", *(m for m in ("torch", "numpy", "timm", "transformers", "PIL") if m in sys.modules))
"""


def process(folder: Path, *args: str) -> subprocess.CompletedProcess:
    env = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def test_help_loads_no_torch(tmp_path):
    done = process(tmp_path, "-c", PROBE)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout and done.stdout.splitlines()[-1].strip() == "LOADED"


def test_an_expected_error_is_one_line_on_stderr(tmp_path):
    done = process(tmp_path, "-m", "vlp_course.cli", "pretrain", "clip", "--device", "tpu")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("vlp: ") and "device='tpu'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_wrong_usage_is_status_two(tmp_path):
    done = process(tmp_path, "-m", "vlp_course.cli", "pretrain")
    assert done.returncode == 2 and done.stdout == "" and "Missing argument" in done.stderr
