"""Cached features: two processes at once, and a process that is killed while it computes them."""
import os, subprocess, sys, time

import numpy as np
import pytest
from vlp_course.data.assets import fetch
from vlp_course.data.pairs import SceneSet
from vlp_course.nn.backbone import WIDTH, feature_file, scene_features

COMPUTE = """
from vlp_course.data.pairs import SceneSet
from vlp_course.nn.backbone import scene_features
scene_features(SceneSet("val", {count}))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_ASSETS", str(fetch("vision-weights").parent))     # archives are found where they are
    monkeypatch.setenv("VLP_CACHE", str(tmp_path))
    return tmp_path / "features"


def start(count: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", COMPUTE.format(count=count)], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error


@pytest.mark.slow
def test_two_processes_write_one_file(cache):
    both = [start(40), start(40)]
    for process in both:
        finish(process)
    scenes = SceneSet("val", 40)
    path = feature_file(scenes)
    assert [p.name for p in cache.iterdir()] == [path.name]                   # one file, no temporary folder
    theirs = path.read_bytes()
    path.unlink()
    assert scene_features(scenes, workers=1).shape == (40, WIDTH)
    assert path.read_bytes() == theirs


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_while_computing_leaves_no_file(cache):
    process, scenes = start(480), SceneSet("val", 480)
    waited = time.monotonic() + 200
    while not list(cache.glob("partial-*")):
        assert process.poll() is None and time.monotonic() < waited, "it never began to write"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not feature_file(scenes).exists()
    small = SceneSet("val", 6)                                                # what was left behind is in nobody's way
    assert np.isfinite(scene_features(small)).all()


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(cache, monkeypatch):
    """Two jobs in two processes equal two jobs in this one; the job size is 500 scenes."""
    scenes = SceneSet("val", 510)
    path = feature_file(scenes)
    scene_features(scenes, workers=2)
    first = path.read_bytes()
    os.remove(path)
    scene_features(scenes, workers=1)
    assert path.read_bytes() == first
