"""Faults of the asset store with real processes: a stand-in for pip, two fetchers at once, kill -9, no network."""
import hashlib, os, subprocess, sys, time, zipfile

import pytest

# Stands in for pip (`python -m pip` finds it first): writes the archive slowly, piece by piece.
FAKE_PIP = """
import os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--dest") + 1]) / "tiny-1.0-py3-none-any.whl"
data = Path(os.environ["SHOP"]).read_bytes()
with open(os.environ["LOG"], "a") as log:
    log.write("called\\n")
with open(out, "wb", buffering=0) as file:
    for start in range(0, len(data), len(data) // 20):
        file.write(data[start:start + len(data) // 20])
        time.sleep(0.02)
"""
FETCH = """
import os
from vlp_course.data.assets import ASSETS, Asset, AssetError, fetch
ASSETS["tiny"] = Asset("tiny", "tiny==1.0", "tiny-1.0-py3-none-any.whl", os.environ["SHA"], 0.02, "none", "tests")
try:
    print(fetch("tiny"))
except AssetError as error:
    print("AssetError:", error)
"""


@pytest.fixture
def shop(tmp_path):
    """The environment of a process that fetches `tiny` from the stand-in."""
    wheel = tmp_path / "shop.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("noise", os.urandom(20_000))
    (tmp_path / "fake/pip").mkdir(parents=True)
    (tmp_path / "fake/pip/__init__.py").touch()
    (tmp_path / "fake/pip/__main__.py").write_text(FAKE_PIP)
    path = os.pathsep.join(filter(None, [str(tmp_path / "fake"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "SHOP": str(wheel), "LOG": str(tmp_path / "log"),
            "VLP_OFFLINE": "0", "VLP_CACHE": str(tmp_path / "cache"), "VLP_ASSETS": "",
            "SHA": hashlib.sha256(wheel.read_bytes()).hexdigest()}


def start(env) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", FETCH], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process) -> tuple[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip(), err


def shelf(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/assets").iterdir())


def test_two_processes_at_once_get_the_same_whole_file(shop, tmp_path):
    processes = [start(shop), start(shop), start(shop)]
    paths = {said(process)[0] for process in processes}
    assert len(paths) == 1
    data = open(paths.pop(), "rb").read()
    assert hashlib.sha256(data).hexdigest() == shop["SHA"]
    assert shelf(tmp_path) == ["tiny-1.0-py3-none-any.whl"]          # no partial folder is left
    assert (tmp_path / "log").read_text().count("called") >= 1


def test_a_killed_download_leaves_no_file_and_the_next_run_succeeds(shop, tmp_path):
    process = start(shop)
    while not (tmp_path / "log").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "tiny-1.0-py3-none-any.whl" not in shelf(tmp_path)
    out, _ = said(start(shop))
    assert hashlib.sha256(open(out, "rb").read()).hexdigest() == shop["SHA"]


def test_a_changed_upload_is_refused_in_one_line(shop, tmp_path):
    out, err = said(start({**shop, "SHA": "0" * 64}))
    assert out.startswith("AssetError:") and "NOT used" in out and "000000000000" in out and shop["SHA"][:12] in out
    assert "\n" not in out and "Traceback" not in err and shelf(tmp_path) == []


def test_a_torn_cache_is_mended(shop, tmp_path):
    path = tmp_path / "cache/assets/tiny-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    out, err = said(start(shop))
    assert out == str(path) and err.count("\n") == 1 and "set aside" in err
    assert shelf(tmp_path) == [path.name, path.name + ".bad"]


def test_offline_with_an_empty_cache_says_what_to_do(shop, tmp_path):
    out, err = said(start({**shop, "VLP_OFFLINE": "1"}))
    assert "VLP_OFFLINE=1" in out and "VLP_ASSETS" in out and "0.02 MB" in out and not (tmp_path / "log").exists()


def test_real_pip_without_a_network_fails_in_one_line(shop):
    """The real pip, pointed at a port where nobody listens."""
    env = {**shop, "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
           "PIP_EXTRA_INDEX_URL": "", "PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    out, err = said(start(env))
    assert out.startswith("AssetError: cannot download tiny") and "VLP_ASSETS" in out
    assert "\n" not in out and "Traceback" not in err


def test_an_unknown_name_is_one_line(shop):
    script = "from vlp_course.data.assets import *\ntry: fetch('dragons')\nexcept AssetError as e: print(e)"
    out = subprocess.run([sys.executable, "-c", script], env=shop, text=True, capture_output=True).stdout
    assert out.startswith("unknown asset 'dragons'; known: emoji-pictures")
