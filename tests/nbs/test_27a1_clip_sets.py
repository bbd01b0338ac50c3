"""Generated from nbs/5_prompting/27a1_clip_sets.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from vlp_course.data.clips import ACTIONS
from vlp_course.data.clips import FRAMES
from vlp_course.data.clips import HELD_OUT_ACTIONS
from vlp_course.data.pairs import course_vocabulary
from vlp_course.data.scenes import SIDE
from vlp_course.nn.backbone import Backbone
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.backbone import native_bf16
from vlp_course.nn.backbone import pack
from vlp_course.data.clip_sets import ClipSet, clip_features


@pytest.fixture(scope="module")
def setup_2f77180d():
    fake = np.random.default_rng(0).normal(size=(5, FRAMES, 7)).astype(np.float16)
    return fake


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "170f99b6")
def test_batches_play_odd_clips_backwards(setup_2f77180d):
    fake = setup_2f77180d
    clips = ClipSet("test", 10, features=fake)
    batch = clips.batch([4, 5, 9], course_vocabulary().tokenize)
    assert batch.features.shape == (3, FRAMES, 7) and torch.equal(batch.features[0], batch.features[1].flip(0))
    assert torch.equal(batch.features[2], torch.from_numpy(fake[4]).float().flip(0))
    assert batch.family.tolist() == [2, 2, 4] and batch.caption == [clips.clip(i).caption for i in (4, 5, 9)]
    assert [(ACTIONS + HELD_OUT_ACTIONS)[a] for a in batch.action] == [clips.clip(i).action for i in (4, 5, 9)]
    assert batch.noun == [clips.clip(i).objects[0].noun for i in (4, 5, 9)]
    assert (
        batch.text.ids.shape == batch.text.mask.shape and len(clips) == 10 and not (batch.text.ids == 1).any()
    )  # no [UNK]
    images = clips.images([4, 5])
    assert (
        images.shape == (2, FRAMES, 3, SIDE, SIDE) and torch.equal(images[0], images[1].flip(0)) and images.max() <= 1
    )


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "4a24482e")
def test_clip_sets_refuse(setup_2f77180d):
    fake = setup_2f77180d
    with pytest.raises(ValueError, match="7 clips of 'test': clips come in twins, ask for an even number"):
        ClipSet("test", 7)
    with pytest.raises(ValueError, match="5 rows of features for 12 clips: expected one for each two, 6"):
        ClipSet("test", 12, features=fake)
    with pytest.raises(ValueError, match="unknown style 'crayon'"):
        ClipSet("test", 4, style="crayon")
    with pytest.raises(ValueError, match="unknown split 'tets'"):
        ClipSet("tets", 4)
    with pytest.raises(IndexError, match="no clip 10 in a set of 10: indices go from 0 to 9"):
        ClipSet("test", 10).batch([10])


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "aa149f2d")
def test_features_are_those_of_the_frames():
    with tempfile.TemporaryDirectory() as folder:
        where = {"pretrained": False, "folder": Path(folder)}
        rows, again, other = (clip_features(split, 4, **where) for split in ("test", "test", "val"))
        assert len(list(Path(folder).glob("clips-*.npy"))) == 2
    clips, dtype = ClipSet("test", 4), torch.bfloat16 if native_bf16() else torch.float32
    net = Backbone(pretrained=False).to(dtype)
    with torch.no_grad():
        expected = pack(*net(clips.images([2])[0].to(dtype))).half().numpy()
    assert (
        rows.shape == (2, FRAMES, WIDTH)
        and (rows[1] == expected).all()
        and (rows == again).all()
        and (rows != other).any()
    )


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "67baec16")
def test_megabytes():
    def megabytes(n):
        return n // 2 * 8 * 12288 * 2 / 1e6

    rows = np.zeros((6, FRAMES, WIDTH), np.float16)
    assert megabytes(12) == pytest.approx(rows.nbytes / 1e6) and megabytes(4032) == pytest.approx(396.36, abs=0.01)


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "67baec16")
def test_megabytes_starter_fails():
    def megabytes(n):
        return n * 8 * 12288 * 2 / 1e6

    with pytest.raises(Exception):
        rows = np.zeros((6, FRAMES, WIDTH), np.float16)
        assert megabytes(12) == pytest.approx(rows.nbytes / 1e6) and megabytes(4032) == pytest.approx(396.36, abs=0.01)


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "6a7ce4be")
def test_every_other(setup_2f77180d):
    fake = setup_2f77180d

    def every_other(clips, indices):
        return clips.batch(indices).features[:, ::2]

    clips = ClipSet("test", 10, features=fake)
    found = every_other(clips, [6, 7])
    assert torch.equal(found[0], torch.from_numpy(fake[3, ::2]).float()) and torch.equal(
        found[1], torch.from_numpy(fake[3, ::-1][::2].copy()).float()
    )
    assert not torch.equal(found[0], found[1].flip(0))  # frames 1 3 5 7 of the twin are 8 6 4 2 of the clip


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "6a7ce4be")
def test_every_other_starter_fails(setup_2f77180d):
    fake = setup_2f77180d

    def every_other(clips, indices):
        return clips.batch(indices).features

    with pytest.raises(Exception):
        clips = ClipSet("test", 10, features=fake)
        found = every_other(clips, [6, 7])
        assert torch.equal(found[0], torch.from_numpy(fake[3, ::2]).float()) and torch.equal(
            found[1], torch.from_numpy(fake[3, ::-1][::2].copy()).float()
        )
        assert not torch.equal(found[0], found[1].flip(0))  # frames 1 3 5 7 of the twin are 8 6 4 2 of the clip


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "eed751b1")
def test_apart():
    def apart(count, batch, rng):
        return 2 * rng.choice(count // 2, batch, replace=False) + rng.integers(2, size=batch)

    rng = np.random.default_rng(0)
    drawn = [apart(12, 6, rng) for _ in range(200)]
    assert all(sorted(d // 2) == list(range(6)) for d in drawn) and 0.4 < np.mean(np.concatenate(drawn) % 2) < 0.6


@pytest.mark.nb("nbs/5_prompting/27a1_clip_sets.ipynb", "eed751b1")
def test_apart_starter_fails():
    def apart(count, batch, rng):
        return rng.choice(count, batch, replace=False)

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        drawn = [apart(12, 6, rng) for _ in range(200)]
        assert all(sorted(d // 2) == list(range(6)) for d in drawn) and 0.4 < np.mean(np.concatenate(drawn) % 2) < 0.6
