"""Generated from nbs/3_fusion/14a_capfilt.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from collections import Counter
from vlp_course.data.grammar import grammar_words
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Vocabulary
from vlp_course.evaluate import encode_images
from vlp_course.evaluate import encode_texts
from vlp_course.models.blip import BLIP
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.med import MED
from vlp_course.train import Recipe
from vlp_course.capfilt import Caption, CaptionSet, filter_scores, found_captions, judge, true_captions, tuned, write


@pytest.fixture(scope="module")
def setup_7e43ac6d():
    def tiny_blip(seed=0):
        """A BLIP of width 16 and scenes with made-up features."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary(grammar_words())
        scenes = SceneSet(
            "train", 90, features=np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
        )
        return BLIP(
            ImageEncoder(16, 2), MED(torch.randn(len(vocabulary), 16), 2), vocabulary, len(vocabulary), 16, 2, queue=70
        ), scenes

    return tiny_blip


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "bbba4172")
def test_a_set_of_any_captions():
    scenes = SceneSet("train", 90, features=np.zeros((90, WIDTH), np.float16))
    items = [
        Caption(4, "a small cat", "swap"),
        Caption(4, "a big cat", "synthetic"),
        Caption(5, "a dog", "clean"),
        Caption(3, "an owl", "clean"),
    ]
    data = CaptionSet(scenes, items)
    batch = data.batch([0, 3], lambda texts: None)
    assert batch.caption == ["a small cat", "an owl"] and batch.family.tolist() == [1, 1] and len(data) == 4
    assert data.groups[0] == data.groups[2] == data.groups[3] != data.groups[1]  # the synthetic one elsewhere
    assert len(set(CaptionSet(scenes, items, families=0).groups)) == 4
    assert data.digest() != CaptionSet(scenes, items[::-1]).digest()


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "99dc60bd")
def test_found_captions_are_half_noise():
    found = found_captions(SceneSet("train", 900), 900)
    count = Counter(c.kind for c in found)
    assert (
        abs(count["clean"] - 450) < 75
        and abs(count["swap"] - 225) < 65
        and set(count) == {"clean", "swap", "other", "truncated"}
    )
    assert [c for c in found if c.kind == "clean"] == true_captions(
        SceneSet("train", 900), [c.scene for c in found if c.kind == "clean"]
    )


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "ab79a507")
def test_filter_scores_by_hand():
    scenes = SceneSet("train", 90)
    text = [scenes.captions[i] for i in range(6)]
    items = [
        Caption(0, text[0], "clean"),
        Caption(1, text[1], "clean"),
        Caption(2, "x", "swap"),
        Caption(3, "x", "swap"),
        Caption(4, "x", "other"),
        Caption(0, text[0], "synthetic"),
        Caption(1, text[5], "synthetic"),
    ]
    scores = filter_scores(items, np.array([True, False, False, True, False, True, True]), scenes)
    assert (
        scores["kept/clean"] == 0.5
        and scores["kept/swap"] == 0.5
        and scores["kept/other"] == 0
        and scores["kept/right"] == scores["kept/wrong"] == 1
    )
    assert scores["precision"] == pytest.approx(2 / 3) and scores["recall"] == pytest.approx(2 / 3)
    assert scores["noise/before"] == 0.6 and scores["noise/after"] == 0.5  # kept: a clean, a swap, a right, a wrong one


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "d75d69a5")
def test_a_loss_alone_moves_its_part_alone(setup_7e43ac6d):
    tiny_blip = setup_7e43ac6d
    model, scenes = tiny_blip()
    data, recipe = (
        CaptionSet(scenes, true_captions(scenes, range(90))),
        Recipe(2, batch_size=15, lr=1e-2, warmup=1, weight_decay=0.0),
    )
    for losses, still in (
        (("lm",), ("match_head", "text_project", "towers.med.layers.0.attention.")),
        (("itc", "itm"), ("word_head", "causal")),
    ):
        other = dict(tuned(model, data, recipe, *losses).named_parameters())
        changed = {n for n, p in model.named_parameters() if not torch.equal(p, other[n]) and not n.startswith("slow")}
        assert changed and not any(n.startswith(still) or still[-1] in n for n in changed)
    assert torch.equal(model.queue.place, torch.zeros(1, dtype=torch.long))  # the model itself is not touched


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "88020193")
def test_written_and_judged(setup_7e43ac6d):
    tiny_blip = setup_7e43ac6d
    model, scenes = tiny_blip()
    model.word_head.bias.data[EOS] = 4.0  # an untrained model seldom comes to an end
    items = write(model.eval(), scenes, range(7), seed=1)
    assert (
        items == write(model, scenes, range(7), seed=1)
        and {c.scene for c in items} <= set(range(7))
        and {c.kind for c in items} == {"synthetic"}
    )
    both = [Caption(3, "a small cat", "clean"), Caption(8, "a big dog", "clean"), Caption(5, "an owl", "swap")]
    images, texts = encode_images(model, scenes, [3, 8, 5]), encode_texts(model, [c.text for c in both])
    np.testing.assert_allclose(judge(model, scenes, both), model.match(images, texts).detach().numpy(), atol=1e-6)


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "6fc530e0")
def test_blind():
    def blind(k: float, noise: float) -> tuple[float, float]:
        return noise, 1 - k

    scenes, rng = SceneSet("train", 3000), np.random.default_rng(0)
    captions = found_captions(scenes, 3000)
    scores = filter_scores(captions, rng.random(3000) < 0.7, scenes)
    assert blind(0.7, 0.5) == (pytest.approx(scores["precision"], abs=0.05), pytest.approx(scores["recall"], abs=0.05))


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "6fc530e0")
def test_blind_starter_fails():
    def blind(k: float, noise: float) -> tuple[float, float]:
        return 1 - k, noise

    with pytest.raises(Exception):
        scenes, rng = SceneSet("train", 3000), np.random.default_rng(0)
        captions = found_captions(scenes, 3000)
        scores = filter_scores(captions, rng.random(3000) < 0.7, scenes)
        assert blind(0.7, 0.5) == (
            pytest.approx(scores["precision"], abs=0.05),
            pytest.approx(scores["recall"], abs=0.05),
        )


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "3c2c9a1c")
def test_threshold():
    def threshold_for(logits: np.ndarray, kinds: np.ndarray, precision: float) -> float:
        order = np.argsort(logits)
        share = np.cumsum(kinds[order] != "clean") / np.arange(1, len(order) + 1)
        good = np.flatnonzero(share >= precision)
        return float(logits[order][good[-1]]) if len(good) else -np.inf

    logits, kinds = np.array([-3.0, -2, -1, 0, 1, 2]), np.array(["swap", "clean", "swap", "other", "clean", "clean"])
    assert threshold_for(logits, kinds, 0.75) == 0 and threshold_for(logits, kinds, 0.9) == -3
    assert threshold_for(logits, np.full(6, "clean"), 0.1) == -np.inf and threshold_for(logits, kinds, 0.5) == 2


@pytest.mark.nb("nbs/3_fusion/14a_capfilt.ipynb", "3c2c9a1c")
def test_threshold_starter_fails():
    def threshold_for(logits: np.ndarray, kinds: np.ndarray, precision: float) -> float:
        return 0.0

    with pytest.raises(Exception):
        logits, kinds = (
            np.array([-3.0, -2, -1, 0, 1, 2]),
            np.array(["swap", "clean", "swap", "other", "clean", "clean"]),
        )
        assert threshold_for(logits, kinds, 0.75) == 0 and threshold_for(logits, kinds, 0.9) == -3
        assert threshold_for(logits, np.full(6, "clean"), 0.1) == -np.inf and threshold_for(logits, kinds, 0.5) == 2
