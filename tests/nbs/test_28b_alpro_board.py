"""Generated from nbs/5_prompting/28b_alpro_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from torch import nn
from unittest import mock
from vlp_course.data.clip_sets import ClipSet
from vlp_course.data.pairs import course_vocabulary
from vlp_course.lab import read_results
from vlp_course.models.alpro import Prompter
from vlp_course.models.clip import CLIP
from vlp_course.models.fusion import SingleStream
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.alpro_board import (
    Swapped,
    clips_of,
    four_of,
    main,
    overlaps,
    own_of_two,
    pointing,
    run_unit,
    student,
    things,
    train,
    without_nouns,
)


@pytest.fixture(scope="module")
def setup_73097df7():
    HERE = overlaps.__module__

    def few(part):
        """Twelve clips with random features."""
        return ClipSet(
            {"train": "train", "val": "val"}.get(part, "test"),
            12,
            features=np.random.default_rng(len(part)).normal(size=(6, 8, 12288)).astype(np.float16),
        )

    return HERE, few


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "f33224b3")
def test_frames_are_taken_in_order():
    x = torch.arange(8.0)[None, :, None].expand(3, 8, 2)
    assert four_of(x)[0, :, 0].tolist() == [0, 2, 4, 6]
    drawn = four_of(x, torch.Generator().manual_seed(0))
    assert (
        drawn.shape == (3, 4, 2)
        and all((row // 2).tolist() == [0, 1, 2, 3] for row in drawn[..., 0])
        and len({tuple(r.tolist()) for r in drawn[..., 0]}) > 1
    )
    with pytest.raises(ValueError, match="unknown row 'nothing': choose one of full, no-pem"):
        student("nothing", 0, 1e-3)


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "5cc6a554")
def test_a_box_and_its_cells():
    assert overlaps(np.array([0, 0, 32, 32])).tolist() == [1024.0] + [0] * 15
    assert (
        overlaps(np.array([16, 40, 48, 56]))[[4, 5]].tolist() == [256.0, 256.0]
        and overlaps(np.array([16, 40, 48, 56])).sum() == 32 * 16
    )
    assert overlaps(np.array([0, 0, 128, 128])).tolist() == [1024.0] * 16


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "1e33ff13")
def test_a_model_that_knows_where_things_are(setup_73097df7):
    HERE, few = setup_73097df7

    class Knower(nn.Module):
        """Its cells are a noun's vector where the noun stands, and another vector elsewhere."""

        def __init__(self, part, right=True):
            super().__init__()
            at, nouns, cells, _ = things(part)
            self.names, self.table = sorted(set(nouns)), torch.eye(len(set(nouns)))
            self.cells = torch.zeros(len(clips_of(part)), 4, 16, len(self.names))
            for i, noun, where in zip(at, nouns, cells):
                self.cells[i, where if right else ~where] += self.table[self.names.index(noun)]

        def entities(self, names):
            return self.table[[self.names.index(n) for n in names]]

    things.cache_clear()
    with mock.patch(f"{HERE}.clips_of", few):
        for right, share in ((True, 1.0), (False, 0.0)):
            knower = Knower("test", right)
            with mock.patch(f"{HERE}.seen_of", lambda model, part: Tokens(None, model.cells.flatten(1, 2), None)):
                assert pointing(knower) == share
        known = things("test")
        assert (
            len(known.at) == sum(len(few("test").clip(i).objects) for i in range(12))
            and known.cells.any(2).all()
            and known.free.any(2).any(1).all()
            and not (known.cells & known.free).any()
        )
    things.cache_clear()


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "2ac98efd")
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
    patches = dict(clips_of=few, load_base=small_base, STEPS=2, PROMPTER_STEPS=1, BATCH=6)
    with (
        tempfile.TemporaryDirectory() as name,
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


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "7e1cece7")
def test_own_noun_and_neighbours():
    at, labels = np.array([0, 1, 1, 2, 3, 3]), torch.tensor([4, 0, 1, 2, 3, 0])
    assert own_of_two(F.one_hot(labels, 5).float(), labels, at) == 1.0
    assert (
        own_of_two(F.one_hot(torch.tensor([4, 1, 0, 2, 3, 0]), 5).float(), labels, at) == 0.5
    )  # the second clip's two are exchanged
    spread = torch.zeros(6, 5)
    for i, clip in enumerate(at):
        spread[i, labels[at == clip]] = 1.0  # both nouns everywhere in their clip
    assert own_of_two(spread, labels, at) == 0.0  # a tie is no preference
    prompter = Swapped(None, None, None)
    with mock.patch.object(Prompter, "labels", lambda self, features, cells: torch.arange(3.0)[:, None]):
        assert prompter.labels(torch.zeros(3, 4, 2), torch.ones(3, 16, dtype=torch.bool))[:, 0].tolist() == [2, 0, 1]


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "c763b94f")
def test_nouns_are_covered():
    class Texts(nn.Module):
        """A tokenizer, and no more."""

        vocabulary = course_vocabulary()

        def tokenize(self, texts):
            return self.vocabulary.tokenize(texts)

    v = Texts.vocabulary
    text = without_nouns(
        Texts(), ["a cat rolling right on a white ground", "a tent growing big beside a dog on a grey ground"]
    )
    shown = [
        " ".join(v.words[i] for i, real in zip(ids, mask) if real)
        for ids, mask in zip(text.ids.tolist(), text.mask.tolist())
    ]
    assert shown == [
        "[CLS] a [MASK] rolling right on a white ground [EOS]",
        "[CLS] a [MASK] growing big beside a [MASK] on a grey ground [EOS]",
    ]


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "077ada58")
def test_right_share():
    def right_share(shared):
        return sum(s >= max(shared) / 2 for s in shared) / 16

    assert right_share([1024] + [0] * 15) == 1 / 16 and right_share([500, 260, 240] + [0] * 13) == 2 / 16


@pytest.mark.nb("nbs/5_prompting/28b_alpro_board.ipynb", "077ada58")
def test_right_share_starter_fails():
    def right_share(shared):
        return sum(s > 0 for s in shared) / 16

    with pytest.raises(Exception):
        assert right_share([1024] + [0] * 15) == 1 / 16 and right_share([500, 260, 240] + [0] * 13) == 2 / 16


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
