"""Generated from nbs/5_prompting/28a1_regions.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unittest import mock
from vlp_course.data.clip_sets import ClipSet
from vlp_course.data.pairs import course_vocabulary
from vlp_course.nn.encoders import Tokens
from vlp_course.regions import clips_of, four_of, overlaps, own_of_two, pointing, things, without_nouns


@pytest.fixture(scope="module")
def setup_10574962():
    def slow_overlaps(box, side=128, cells=4):
        """Pixels that each cell shares with a box, one pixel at a time."""
        found = [0.0] * cells**2
        for y in range(box[1], box[3]):
            for x in range(box[0], box[2]):
                found[y * cells // side * cells + x * cells // side] += 1
        return found

    return slow_overlaps


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


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "af3c54af")
def test_a_box_and_its_cells(setup_10574962):
    slow_overlaps = setup_10574962
    assert overlaps(np.array([0, 0, 32, 32])).tolist() == [1024.0] + [0] * 15
    assert (
        overlaps(np.array([16, 40, 48, 56]))[[4, 5]].tolist() == [256.0, 256.0]
        and overlaps(np.array([16, 40, 48, 56])).sum() == 32 * 16
    )
    assert overlaps(np.array([0, 0, 128, 128])).tolist() == [1024.0] * 16
    g = np.random.default_rng(0)
    for _ in range(20):
        x, y = g.integers(0, 100, 2)
        box = np.array([x, y, x + g.integers(1, 29), y + g.integers(1, 29)])
        assert overlaps(box).tolist() == slow_overlaps(box)


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "fafc35f7")
def test_frames_are_taken_in_order():
    x = torch.arange(8.0)[None, :, None].expand(3, 8, 2)
    assert four_of(x)[0, :, 0].tolist() == [0, 2, 4, 6]
    drawn = four_of(x, torch.Generator().manual_seed(0))
    assert (
        drawn.shape == (3, 4, 2)
        and all((row // 2).tolist() == [0, 1, 2, 3] for row in drawn[..., 0])
        and len({tuple(r.tolist()) for r in drawn[..., 0]}) > 1
    )


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "e275e9d5")
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


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "496a7c11")
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


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "c004b4db")
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


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "077ada58")
def test_right_share():
    def right_share(shared):
        return sum(s >= max(shared) / 2 for s in shared) / 16

    assert right_share([1024] + [0] * 15) == 1 / 16 and right_share([500, 260, 240] + [0] * 13) == 2 / 16


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "077ada58")
def test_right_share_starter_fails():
    def right_share(shared):
        return sum(s > 0 for s in shared) / 16

    with pytest.raises(Exception):
        assert right_share([1024] + [0] * 15) == 1 / 16 and right_share([500, 260, 240] + [0] * 13) == 2 / 16


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "0ced9e9c")
def test_on_time():
    def on_time(heat):
        return heat.amax(2).argmax(1)

    dark = torch.zeros(2, 4, 16)
    dark[0, 2, 5], dark[1, 1, 0] = 1.0, 2.0
    assert on_time(dark).tolist() == [2, 1]


@pytest.mark.nb("nbs/5_prompting/28a1_regions.ipynb", "0ced9e9c")
def test_on_time_starter_fails():
    def on_time(heat):
        return heat.amax(2)

    with pytest.raises(Exception):
        dark = torch.zeros(2, 4, 16)
        dark[0, 2, 5], dark[1, 1, 0] = 1.0, 2.0
        assert on_time(dark).tolist() == [2, 1]
