"""Generated from nbs/5_prompting/28b_alpro_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from unittest import mock
from vlp_course.data.clip_sets import ClipSet
from vlp_course.data.pairs import course_vocabulary
from vlp_course.lab import read_results
from vlp_course.models.alpro import Prompter
from vlp_course.models.clip import CLIP
from vlp_course.models.fusion import SingleStream
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.regions import things
from vlp_course.alpro_board import Swapped, main, run_unit, student, train


@pytest.fixture(scope="module")
def setup_73097df7():
    HERE = student.__module__

    def few(part):
        """Twelve clips with random features."""
        return ClipSet(
            {"train": "train", "val": "val"}.get(part, "test"),
            12,
            features=np.random.default_rng(len(part)).normal(size=(6, 8, 12288)).astype(np.float16),
        )

    return HERE, few


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "f33224b3")
def test_another_clips_labels():
    prompter = Swapped(None, None, None)
    with mock.patch.object(Prompter, "labels", lambda self, features, cells: torch.arange(3.0)[:, None]):
        assert prompter.labels(torch.zeros(3, 4, 2), torch.ones(3, 16, dtype=torch.bool))[:, 0].tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="unknown row 'nothing': choose one of full, no-pem"):
        student("nothing", 0, 1e-3)


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "1e33ff13")
def test_a_unit_of_the_board(setup_73097df7):
    HERE, few = setup_73097df7

    def small_base(name):
        torch.manual_seed(1)
        vocabulary = course_vocabulary()
        towers = (ImageEncoder(16, 2), TextEncoder(torch.randn(len(vocabulary), 16), 2))
        return (
            CLIP(*towers, vocabulary, 16)
            if name == "clip"
            else SingleStream(*towers, MergedEncoder(16, 2, 1), vocabulary, 40, dim=16)
        )

    things.cache_clear()
    regions_are = mock.patch("vlp_course.regions.clips_of", few)
    patches = dict(clips_of=few, load_base=small_base, STEPS=2, PROMPTER_STEPS=1, BATCH=6)
    with (
        tempfile.TemporaryDirectory() as name,
        regions_are,
        mock.patch.multiple(HERE, **patches),
        mock.patch(
            f"{HERE}.train",
            lambda model, clips, steps, lr, seed, batch=4, real=train: real(model, clips, 2, lr, seed, 6),
        ),
    ):
        with pytest.raises(
            ValueError, match="no rate of full is tuned in .*: run python -m vlp_course.alpro_board --tune"
        ):
            run_unit("full", 0, Path(name))
        main(["--tune", "--results", name])
        main(["--rows", "full", "swapped", "no-pem", "untrained", "--seeds", "0", "--results", name])
        runs = {r["row"]: r for r in read_results(Path(name), "alpro")}
    assert (
        set(runs) == {"full", "swapped", "no-pem", "untrained"}
        and np.array(runs["full"]["maps"]).shape[1:] == (4, 16)
        and len(read_results(Path(name), "alpro-rates")) == 0
    )  # the folder is gone
    assert (
        set(runs["full"]["curves"]) == {"prompter", "vtc", "vtm", "mlm", "pem"}
        and set(runs["no-pem"]["curves"]) == {"vtc", "vtm", "mlm"}
        and not runs["untrained"]["curves"]
    )
    assert (
        all(0 <= v <= 1 for r in runs.values() for v in r["metrics"].values())
        and "sure" in runs["full"]["metrics"]
        and runs["full"]["params"] == runs["no-pem"]["params"]
    )
    things.cache_clear()


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "077ada58")
def test_regional_gain():
    def regional_gain(named, elsewhere, named_without, elsewhere_without):
        return 100 * (named - named_without), 100 * ((named - elsewhere) - (named_without - elsewhere_without))

    assert regional_gain(0.44, 0.17, 0.37, 0.07) == (pytest.approx(7), pytest.approx(-3))


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "077ada58")
def test_regional_gain_starter_fails():
    def regional_gain(named, elsewhere, named_without, elsewhere_without):
        return 100 * (named - named_without), 100 * (named - elsewhere)

    with pytest.raises(Exception):
        assert regional_gain(0.44, 0.17, 0.37, 0.07) == (pytest.approx(7), pytest.approx(-3))


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "fcfc0bc7")
def test_sharpened():
    def sharpened(labels, power):
        raised = labels**power
        return raised / raised.sum(1, keepdim=True)

    labels = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    assert (
        torch.allclose(sharpened(labels, 1), labels)
        and torch.allclose(sharpened(labels, 2).sum(1), torch.ones(2))
        and (sharpened(labels, 3).amax(1) > labels.amax(1)).all()
    )


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "fcfc0bc7")
def test_sharpened_starter_fails():
    def sharpened(labels, power):
        return labels**power

    with pytest.raises(Exception):
        labels = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
        assert (
            torch.allclose(sharpened(labels, 1), labels)
            and torch.allclose(sharpened(labels, 2).sum(1), torch.ones(2))
            and (sharpened(labels, 3).amax(1) > labels.amax(1)).all()
        )
