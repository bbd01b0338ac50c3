"""Generated from nbs/3_fusion/10d_evaluation.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import inspect
import math
import numpy as np
import pytest
import sys
import torch
import torch.nn.functional as F
from contextlib import contextmanager
from dataclasses import replace
from torch import nn
from torchmetrics.retrieval import RetrievalHitRate
from torchmetrics.retrieval import RetrievalMRR
from types import SimpleNamespace
from unittest.mock import patch
from vlp_course.data.grammar import words_of
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Tokenized
from vlp_course.data.scenes import SIDE
from vlp_course.models.clip import build
from vlp_course.nn.backbone import pack
from vlp_course.nn.backbone import unpack
from vlp_course.nn.encoders import Tokens
from vlp_course.evaluate import (
    GALLERY,
    SETS,
    board_texts,
    encode_images,
    encode_texts,
    evaluate,
    gallery_scores,
    grad_cam,
    matches,
    noun_phrase,
    pairwise,
    part,
    points_into,
    recall,
    reranked_scores,
    retrieval,
    test_set,
    winoground,
)


@pytest.fixture(scope="module")
def setup_0d21dee5():
    def slow_recall(score, relevant, k):
        """Sort each query's items by hand; among equals the irrelevant ones come first."""
        hits = 0
        for row, right in zip(score.tolist(), relevant.tolist()):
            order = sorted(range(len(row)), key=lambda j: (-row[j], right[j]))
            hits += any(right[j] for j in order[:k])
        return hits / len(score)

    return slow_recall


@pytest.fixture(scope="module")
def setup_35bf799f():
    class Reader(nn.Module):
        """A cheat with perfect eyes: it looks at the caption that comes with the picture. Integers, so that ties are exact."""

        def __init__(self, ordered=True):
            super().__init__()
            self.ordered, self.words, self.dummy = ordered, {}, nn.Parameter(torch.zeros(1))

        def tokenize(self, texts):
            rows = [[self.words.setdefault(w, len(self.words) + 1) for w in words_of(t)] for t in texts]
            ids = torch.tensor([r + [0] * (24 - len(r)) for r in rows])
            return Tokenized(ids, ids > 0)

        def encode_text(self, text):
            ids = text.ids if self.ordered else text.ids.sort(1).values  # sorted: a bag of words
            return Tokens(ids.float(), ids[..., None].float(), text.mask)

        def encode_image(self, batch):
            return self.encode_text(self.tokenize(batch.caption))

        def similarity(self, image, text):
            return -(image.pooled[:, None] - text.pooled).abs().sum(-1)

    class Constant(Reader):
        """Gives every pair the same score."""

        def similarity(self, image, text):
            return super().similarity(image, text) * 0

    class Blind(nn.Module):
        """A model whose picture is always the same vector: all that is left is its taste in captions."""

        def __init__(self, model):
            super().__init__()
            self.model, self.tokenize, self.encode_text, self.similarity = (
                model,
                model.tokenize,
                model.encode_text,
                model.similarity,
            )

        def encode_image(self, batch):
            draw = torch.Generator().manual_seed(0)
            one = F.normalize(torch.randn(1, 128, generator=draw), dim=-1).expand(len(batch.caption), 128)
            return Tokens(one, one[:, None], torch.ones(len(batch.caption), 1, dtype=torch.bool))

    return Constant, Reader


@pytest.fixture(scope="module")
def setup_5a445485():
    @contextmanager
    def small_board(scenes, gallery):
        """The board on the first scenes of each set, in galleries of another size."""
        module, first = sys.modules[inspect.unwrap(gallery_scores).__module__], board_texts
        with patch.dict(SETS, {n: (*SETS[n][:2], scenes) for n in SETS}), patch.object(module, "GALLERY", gallery):
            first.cache_clear()
            with patch.object(module, "board_texts", lambda count=None: first(min(count or scenes, scenes))):
                yield
        first.cache_clear()

    return small_board


@pytest.fixture(scope="module")
def setup_a830f761():
    class Judge(nn.Module):
        """Towers and a judge whose opinions are given tables."""

        def __init__(self, towers, judge):
            super().__init__()
            self.towers, self.judge, self.asked = towers, judge, 0

        def similarity(self, image, text):
            return self.towers

        def match(self, image, text):
            self.asked += len(image.pooled)
            return self.judge[image.pooled[:, 0].long(), text.pooled[:, 0].long()]

    return Judge


@pytest.fixture(scope="module")
def setup_0cd40e87():
    class Channels(nn.Module):
        """A model whose answer is known: text k reads channel k, by mean over all cells, or in one cell only."""

        def __init__(self, cell=None):
            super().__init__()
            self.cell, self.dummy = cell, nn.Parameter(torch.zeros(1))

        def encode_image(self, batch):
            fine, _ = unpack(batch.features)
            read = fine.mean((2, 3)) if self.cell is None else fine[:, :, self.cell[0], self.cell[1]]
            return Tokens(read, read[:, None], torch.ones(len(read), 1, dtype=torch.bool))

        def similarity(self, image, text):
            return image.pooled @ text.pooled.T

    def channel_case():
        """Two pictures: channel 3 fires at (2, 5), channel 7 at (6, 1); and the texts that ask for 3 and 7."""
        fine = torch.full((2, 112, 8, 8), 0.5)
        fine[:, 3, 2, 5], fine[:, 7, 6, 1] = 2.5, 1.5
        batch = Pairs(None, ["a", "b"], None, torch.zeros(2, dtype=torch.long), pack(fine, torch.rand(2, 320, 4, 4)))
        wants = F.one_hot(torch.tensor([3, 7]), 112).float()
        return batch, Tokens(wants, wants[:, None], torch.ones(2, 1, dtype=torch.bool))

    def slow_grad_cam(model, batch, texts):
        """The formula with loops, gradients by finite differences."""
        fine, coarse = unpack(batch.features)
        score = lambda x: model.similarity(
            model.encode_image(replace(batch, features=pack(x, coarse))), texts
        ).diagonal()
        maps = torch.zeros(len(fine), 8, 8)
        for b in range(len(fine)):
            for k in (3, 7, 8):  # others do not fire
                weight = 0.0
                for u in range(64):
                    moved = fine.clone()
                    moved[b, k, u // 8, u % 8] += 0.5
                    weight += float(score(moved)[b] - score(fine)[b]) / 0.5 / 64
                for u in range(64):
                    deviation = float(fine[b, k, u // 8, u % 8] - fine[b, k].flatten().median())
                    maps[b, u // 8, u % 8] += max(0.0, weight * deviation)
        blurred = torch.zeros_like(maps)
        for r in range(8):
            for c in range(8):
                blurred[:, r, c] = (
                    sum(
                        maps[:, y, x]
                        for y in range(r - 1, r + 2)
                        for x in range(c - 1, c + 2)
                        if 0 <= y < 8 and 0 <= x < 8
                    )
                    / 9
                )
        return blurred

    return Channels, channel_case, slow_grad_cam


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "b721dbb3")
def test_nan_is_no_hit():
    score = torch.full((2, 3), torch.nan)
    assert recall(score, torch.eye(3, dtype=torch.bool)[:2], ks=(1,)) == {"r1": 0.0}


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "a8045ccd")
def test_recall_by_hand():
    score = torch.tensor([[0.9, 0.1, 0.3, 0.2], [0.8, 0.7, 0.9, 0.1], [0.5, 0.5, 0.5, 0.5]])
    relevant = torch.tensor([[True, False, False, False], [False, True, False, False], [False, False, True, False]])
    found = recall(score, relevant, ks=(1, 2, 3, 4))
    assert found == pytest.approx(
        {"r1": 1 / 3, "r2": 1 / 3, "r3": 2 / 3, "r4": 1}
    )  # ranks 1, 3, and 4: a tie ranks last


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "1e88d396")
def test_constant_model_scores_nothing():
    constant, relevant = torch.zeros(13, 13), torch.eye(13, dtype=torch.bool)
    assert recall(constant, relevant) == {"r1": 0, "r5": 0, "r10": 0}
    assert recall(constant, relevant, ks=(12, 13)) == {"r12": 0, "r13": 1}  # twelve ahead of the right one
    assert winoground(torch.zeros(5, 2, 2)) == {"text": 0, "image": 0, "group": 0}


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "c4366595")
def test_duplicates_are_relevant():
    captions = ["an owl", "a fox", "an owl"]
    score = torch.tensor([[0.1, 0.2, 0.9], [0.3, 0.8, 0.1], [0.9, 0.2, 0.1]])  # rows 0 and 2 choose their twin
    assert retrieval(score, captions)["r1"] == 1
    apart = retrieval(score, ["an owl", "a fox", "another owl"])
    assert apart["i2t_r1"] == apart["t2i_r1"] == pytest.approx(1 / 3)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "d5d8bfd4")
def test_both_ways_are_not_the_same():
    score = torch.tensor([[0.5, 0.1, 0.2], [0.9, 0.6, 0.1], [0.8, 0.2, 0.7]])  # picture 0's column attracts all
    both = retrieval(score, ["a", "b", "c"])
    assert both["i2t_r1"] == pytest.approx(1 / 3) and both["t2i_r1"] == pytest.approx(2 / 3)
    assert both["r1"] == pytest.approx(1 / 2) and both["i2t_r5"] == both["t2i_r10"] == 1
    swapped = retrieval(score.T.contiguous(), ["a", "b", "c"])
    assert swapped["i2t_r1"] == both["t2i_r1"] and swapped["r1"] == both["r1"]


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "20731c8b")
def test_recall_equals_the_slow_version(setup_0d21dee5):
    slow_recall = setup_0d21dee5
    draw = torch.Generator().manual_seed(3)
    for _ in range(20):
        score = torch.randint(0, 6, (7, 11), generator=draw).float()  # many ties
        relevant = torch.rand(7, 11, generator=draw) < 0.2
        relevant[:, 4] = True  # no query without an answer
        fast = recall(score, relevant, ks=(1, 3, 5))
        assert fast == pytest.approx({f"r{k}": slow_recall(score, relevant, k) for k in (1, 3, 5)})


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "38a262ac")
def test_recall_equals_torchmetrics():
    draw = torch.Generator().manual_seed(4)
    score = torch.rand(23, 17, generator=draw)  # no ties: there the rules differ
    relevant = torch.rand(23, 17, generator=draw) < 0.15
    relevant[torch.arange(23), torch.arange(23) % 17] = True
    query = torch.arange(23)[:, None].expand(23, 17).flatten()
    for k in (1, 5, 10):
        reference = RetrievalHitRate(top_k=k)(score.flatten(), relevant.flatten(), indexes=query)
        assert recall(score, relevant)[f"r{k}"] == pytest.approx(reference.item(), abs=1e-6)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "56f3752f")
def test_winoground_by_hand():
    pairs = torch.tensor(
        [
            [[0.9, 0.1], [0.2, 0.8]],  # all right
            [[0.5, 0.4], [0.8, 0.9]],  # each picture finds its caption, caption A prefers picture b
            [[0.5, 0.8], [0.4, 0.9]],  # each caption finds its picture, picture a prefers caption B
            [[0.1, 0.9], [0.9, 0.1]],  # all wrong
            [[0.7, 0.7], [0.1, 0.8]],
        ]
    )  # a tie in picture a: no text score
    assert winoground(pairs) == pytest.approx({"text": 2 / 5, "image": 3 / 5, "group": 1 / 5})
    assert winoground(pairs[1:2]) == {"text": 1, "image": 0, "group": 0}
    assert winoground(pairs[2:3]) == {"text": 0, "image": 1, "group": 0}


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "9608f362")
def test_chance_levels_simulated():
    draw = torch.Generator().manual_seed(5)
    guess = winoground(torch.rand(60_000, 2, 2, generator=draw))
    assert guess["group"] == pytest.approx(1 / 6, abs=0.006)  # four standard errors
    assert guess["text"] == pytest.approx(1 / 4, abs=0.008) and guess["image"] == pytest.approx(1 / 4, abs=0.008)
    found = recall(torch.rand(6_000, 50, generator=draw), torch.eye(50, dtype=torch.bool).repeat(120, 1))
    assert found == pytest.approx({"r1": 1 / 50, "r5": 5 / 50, "r10": 10 / 50}, abs=0.02)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "527a3b2b")
def test_a_blind_model_has_no_group():
    draw = torch.Generator().manual_seed(6)
    blind = torch.rand(400, 1, 2, generator=draw).expand(400, 2, 2)  # the scores ignore the picture
    assert winoground(blind) == {"text": 0, "image": 0, "group": 0}
    additive = torch.rand(400, 2, 1, generator=draw, dtype=torch.float64) + blind  # "nice picture" + "nice caption"
    assert winoground(additive)["group"] == 0


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "13d5b3b4")
def test_points_by_hand():
    heat = torch.zeros(3, 8, 8)
    heat[0, 2, 5] = heat[1, 2, 5] = 1.0  # row 2, column 5: y 32-48, x 80-96
    heat[2] = 0.3  # constant: says nothing
    assert points_into(heat, [(80, 32, 96, 48), (32, 80, 48, 96), (20, 20, 100, 100)]) == [True, False, False]
    assert points_into(heat[:1], [(87, 39, 88, 40)]) == [True]  # the cell's middle
    assert points_into(heat[:1], [(80, 32, 87, 48)]) == [False]  # a box's end is not included


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "befbbc1c")
def test_unknown_set_is_one_clear_line():
    with pytest.raises(
        ValueError,
        match=r"^unknown test set 'noto': choose one of seen, twemoji, openmoji, nouns, combinations, templates$",
    ):
        test_set("noto")


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "18561875")
def test_chunks_do_not_change_an_encoding():
    scenes, model = SceneSet("test", 7), build().eval()
    scenes.features = torch.rand(7, 112 * 64 + 320 * 16, generator=torch.Generator().manual_seed(1)).numpy()
    texts = ["an owl", *scenes.captions]
    with torch.no_grad():
        whole, chunks = encode_texts(model, texts), encode_texts(model, texts, size=3)
        all_at_once, in_parts = encode_images(model, scenes), encode_images(model, scenes, size=2)
        two = encode_images(model, scenes, [6, 2])
    assert torch.equal(whole.mask, chunks.mask) and torch.allclose(whole.pooled, chunks.pooled, atol=1e-5)
    assert torch.allclose(whole.tokens[whole.mask], chunks.tokens[whole.mask], atol=1e-4)
    assert torch.allclose(all_at_once.pooled, in_parts.pooled, atol=1e-5) and in_parts.tokens.shape == (7, 16, 128)
    assert torch.allclose(two.pooled, part(all_at_once, [6, 2]).pooled, atol=1e-5)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "129d6c57")
def test_sets_differ_from_seen_in_one_thing(setup_5a445485):
    small_board = setup_5a445485
    with small_board(12, 6):
        sets = {name: test_set(name, pixels=True) for name in SETS}
    assert all(len(s) == 12 and s.features is None for s in sets.values()) and list(SETS)[0] == "seen"
    seen = sets["seen"]
    for name in ("twemoji", "openmoji"):
        assert sets[name].captions == seen.captions
        assert not all(np.array_equal(sets[name].image(i), seen.image(i)) for i in range(12))
    assert (
        np.array_equal(sets["templates"].image(5), seen.image(5)) and sets["templates"].captions[5] != seen.captions[5]
    )
    assert (
        {SETS[n][2] for n in SETS} == {6012, 1002} and all(SETS[n][2] % GALLERY == 0 for n in SETS) and GALLERY % 3 == 0
    )


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "a8c69ac2")
def test_phrases_take_their_article():
    assert noun_phrase("owl", None) == "an owl" and noun_phrase("fox", None) == "a fox"
    assert noun_phrase("star", "orange") == "an orange star" and noun_phrase("egg", "red") == "a red egg"


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "19c103c3")
def test_texts_of_the_board():
    foils, queries = board_texts(24)
    scenes = SceneSet("test", 24)
    assert {slot for _, slot, _ in foils} <= {"object", "colour", "size", "count", "place", "binding", "relation"}
    assert all(scenes.captions[i] != text for i, _, text in foils)  # a foil is never true
    assert {i for i, _, _ in queries} == {i for i in range(24) if i // 3 % 4 < 2} and len(queries) == 24
    for i, phrase, (x0, y0, x1, y1) in queries:
        assert phrase in scenes.captions[i].lower() or phrase.split()[-1] in scenes.captions[i]
        assert 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "3ba82c9f")
def test_matches_is_the_diagonal():
    draw = torch.Generator().manual_seed(2)
    rows = [F.normalize(torch.randn(70, 5, generator=draw), dim=-1) for _ in range(2)]  # more than one chunk of 64
    image, text = (Tokens(r, r[:, None], torch.ones(70, 1, dtype=torch.bool)) for r in rows)
    assert torch.allclose(matches(build(), image, text), (rows[0] * rows[1]).sum(1), atol=1e-6)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "9700018f")
def test_galleries_are_the_first_two(setup_35bf799f, setup_5a445485):
    _, Reader = setup_35bf799f
    small_board = setup_5a445485
    scenes, reader = SceneSet("test", 18), Reader()
    images, texts = encode_images(reader, scenes), encode_texts(reader, scenes.captions)
    with small_board(18, 6):
        assert gallery_scores(reader, scenes, images, texts)["r1"] == 1
        third = texts.pooled.clone()
        third[12:] = 0  # outside of both galleries
        assert gallery_scores(reader, scenes, images, texts._replace(pooled=third))["r1"] == 1
        second = texts.pooled.clone()
        second[6:12] = 0
        assert gallery_scores(reader, scenes, images, texts._replace(pooled=second))["i2t_r1"] == 0.5


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "2a2af28f")
def test_reranking_by_hand(setup_a830f761, setup_5a445485):
    Judge = setup_a830f761
    small_board = setup_5a445485
    numbers = Tokens(torch.arange(6.0)[:, None], torch.zeros(6, 1, 1), torch.ones(6, 1, dtype=torch.bool))
    scenes, right = SceneSet("test", 6), torch.eye(6)
    towers = right.roll(1, 1) + 0.5 * right  # a wrong one first, the right one second
    towers[4, 4] = -1  # picture 4: the right caption is last
    with small_board(6, 6):
        judge = Judge(towers, right)
        assert reranked_scores(judge, scenes, numbers, numbers, 1)["r1"] == 0  # the one candidate is wrong
        found = reranked_scores(judge, scenes, numbers, numbers, 2)
        assert (
            found["i2t_r1"] == found["t2i_r1"] == pytest.approx(5 / 6)
        )  # the judge is always right; 4 was never asked for
        assert reranked_scores(judge, scenes, numbers, numbers, 6)["r1"] == 1
        fool = Judge(right, -right)  # good towers, a judge who is always wrong
        assert reranked_scores(fool, scenes, numbers, numbers, 2)["r1"] == 0 and fool.asked <= 6 * 2 * 2
        assert reranked_scores(Judge(towers, towers), scenes, numbers, numbers, 3) == retrieval(
            towers, scenes.captions[:6]
        )


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "85dcb95e")
def test_grad_cam_finds_the_channel_that_was_asked_for(setup_0cd40e87):
    Channels, channel_case, _ = setup_0cd40e87
    batch, texts = channel_case()
    heat = grad_cam(Channels(), batch, texts)
    assert heat.shape == (2, 8, 8)
    for k, (r, c), height in ((0, (2, 5), 2.0), (1, (6, 1), 1.0)):
        expected = torch.zeros(8, 8)
        expected[r - 1 : r + 2, c - 1 : c + 2] = height / 64 / 9  # each cell has the gradient 1/64
        assert torch.allclose(heat[k], expected, atol=1e-7)
    other = grad_cam(Channels(), batch, part(texts, [1, 0]))  # the other question, the other place
    assert other[0].argmax() == heat[1].argmax() != heat[0].argmax()


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "266ffa2d")
def test_grad_cam_equals_the_slow_version(setup_0cd40e87):
    Channels, channel_case, slow_grad_cam = setup_0cd40e87
    batch, texts = channel_case()
    for model in (Channels(), Channels(cell=(2, 5))):
        assert torch.allclose(grad_cam(model, batch, texts), slow_grad_cam(model, batch, texts), atol=1e-6)


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "35473160")
def test_grad_cam_is_no_proof_of_where_a_model_looks(setup_0cd40e87):
    Channels, channel_case, _ = setup_0cd40e87
    batch, texts = channel_case()
    blind_there = Channels(cell=(0, 0))  # reads the upper left cell, nothing else
    heat = grad_cam(blind_there, batch, texts)[0]
    assert heat[2, 5] > 0 and heat[0, 0] == 0  # and yet the map lights the other cell
    ground = replace(batch, features=torch.full_like(batch.features, 0.5))
    assert grad_cam(Channels(), ground, texts).abs().max() == 0  # an empty picture: an empty map


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "b02ab7cb")
def test_grad_cam_leaves_no_gradient_behind(setup_0cd40e87):
    _, channel_case, _ = setup_0cd40e87
    batch, texts = channel_case()
    model = build().eval()
    with torch.no_grad():
        text = encode_texts(model, ["an owl", "a red star"])
        heat = grad_cam(model, batch, text)  # works under no_grad, as in evaluate
    assert heat.isfinite().all() and heat.min() >= 0 and heat.max() > 0
    assert all(p.grad is None for p in model.parameters()) and not batch.features.requires_grad


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "2db8ad97")
def test_readers_score_what_they_must(setup_35bf799f, setup_5a445485):
    Constant, Reader = setup_35bf799f
    small_board = setup_5a445485
    with small_board(24, 12):
        perfect, bag, constant = (
            evaluate(m, pixels=True, sets=("seen", "templates")) for m in (Reader(), Reader(ordered=False), Constant())
        )
    assert all(perfect[k] == 1 for k in perfect) and "pointing" not in perfect
    assert set(constant.values()) == {0.0} and set(constant) == set(perfect)
    assert bag["foil/relation"] == bag["foil/binding"] == bag["group/group"] == 0  # ties, and ties are errors
    assert all(bag[f"foil/{slot}"] == 1 for slot in ("object", "size", "count", "place"))
    assert 0 < bag["seen/r1"] < 1 == bag["seen/r5"]  # siblings tie in the gallery


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "9097d678")
def test_evaluate_names_every_metric(setup_5a445485):
    small_board = setup_5a445485
    with small_board(24, 12):
        found = evaluate(build(), sets=("seen", "nouns"))
        assert not {k.split("/")[0] for k in evaluate(build(), sets=("nouns",))} - {"nouns"}  # foils belong to `seen`
    recalls = {f"{way}r{k}" for way in ("", "i2t_", "t2i_") for k in (1, 5, 10)}
    slots = {k for k in found if k.startswith("foil/")}
    assert set(found) - slots == {f"{s}/{r}" for s in ("seen", "nouns") for r in recalls} | {
        "group/text",
        "group/image",
        "group/group",
        "pointing",
    }
    assert slots and all(0 <= v <= 1 for v in found.values())


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "427bec20")
def test_a_glance_is_the_board_of_the_first_scenes(setup_5a445485):
    small_board = setup_5a445485
    model = build()
    with small_board(12, 6):
        whole = evaluate(model, sets=("seen", "nouns"))
    with small_board(24, 6):
        assert evaluate(model, sets=("seen", "nouns"), count=12) == whole != evaluate(model, sets=("seen", "nouns"))

    class Writer(type(model)):
        """Needs a pass for each pair."""

        match = lambda self, image, text: self.similarity(image, text).diagonal()

    model.__class__ = Writer
    with small_board(12, 6):
        glance, careful = evaluate(model, sets=("seen",), count=12), evaluate(model, sets=("seen",))
        assert pairwise(model) and set(careful) - set(glance) == {k for k in careful if k.startswith("seen/")}
        assert all(careful[k] == v for k, v in glance.items())
        model.pairwise = False
        assert not pairwise(model) and evaluate(model, sets=("seen",), count=12) == careful
        del model.pairwise
        model.rerank = 2  # cosines choose: galleries are cheap again
        glance, careful = evaluate(model, sets=("seen",), count=12), evaluate(model, sets=("seen",))
        assert not pairwise(model) and {k.split("/")[0] for k in set(careful) - set(glance)} == {"rerank"}


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "363f44bd")
def test_a_part_of_a_cached_set_is_not_computed_again(setup_5a445485):
    small_board = setup_5a445485
    whole, computed = SceneSet("test", 12), []
    features = lambda scenes, pretrained: (
        computed.append(len(scenes)) or np.arange(2 * len(scenes)).reshape(len(scenes), 2)
    )
    for exists, wanted in ((True, 12), (False, 6)):
        file = lambda scenes, pretrained: SimpleNamespace(exists=lambda: exists)
        with (
            small_board(12, 6),
            patch.multiple(inspect.unwrap(test_set).__module__, feature_file=file, scene_features=features),
        ):
            scenes = test_set("seen", count=6)
        assert len(scenes) == len(scenes.features) == 6 and computed.pop() == wanted and not computed
        assert scenes.captions == whole.captions[:6]
    with small_board(12, 6):
        assert len(test_set("seen", pixels=True, count=99)) == 12  # never more than there are


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "f938af80")
def test_evaluating_changes_nothing(setup_5a445485):
    small_board = setup_5a445485
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with small_board(12, 6):
        first = evaluate(model, sets=("seen",))
        assert evaluate(model, sets=("seen",)) == first  # no dice in it
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "e53594b2")
def test_reciprocal_rank():
    def reciprocal_rank(score, relevant):
        best = score.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
        ahead = (~(score < best) & ~relevant).sum(1)  # not below: a NaN is ahead too
        return (1 / (1 + ahead)).double().mean().item()

    assert reciprocal_rank(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)) == pytest.approx(1 / 4)
    draw = torch.Generator().manual_seed(8)
    score, relevant = torch.rand(9, 6, generator=draw), torch.eye(9, dtype=torch.bool)[:, :6] | (torch.arange(6) == 2)
    query = torch.arange(9)[:, None].expand(9, 6).flatten()
    assert reciprocal_rank(score, relevant) == pytest.approx(
        RetrievalMRR()(score.flatten(), relevant.flatten(), indexes=query).item(), abs=1e-6
    )


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "e53594b2")
def test_reciprocal_rank_starter_fails():
    def reciprocal_rank(score, relevant):
        best = score.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
        return (1 / (score > best).sum(1)).double().mean().item()

    with pytest.raises(Exception):
        assert reciprocal_rank(torch.zeros(4, 4), torch.eye(4, dtype=torch.bool)) == pytest.approx(1 / 4)
        draw = torch.Generator().manual_seed(8)
        score, relevant = (
            torch.rand(9, 6, generator=draw),
            torch.eye(9, dtype=torch.bool)[:, :6] | (torch.arange(6) == 2),
        )
        query = torch.arange(9)[:, None].expand(9, 6).flatten()
        assert reciprocal_rank(score, relevant) == pytest.approx(
            RetrievalMRR()(score.flatten(), relevant.flatten(), indexes=query).item(), abs=1e-6
        )


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "49d75b2c")
def test_family_error():
    def family_error(hits):
        means = np.asarray(hits, float).reshape(-1, 3).mean(1)  # one value a family
        return float(means.std() / math.sqrt(len(means)))

    rng = np.random.default_rng(0)
    lucky = rng.random(334) < 0.5
    p = lucky.mean()
    binomial = math.sqrt(p * (1 - p) / 1002)
    assert family_error(np.repeat(lucky, 3)) == pytest.approx(math.sqrt(3) * binomial)  # siblings agree: at most
    assert family_error(rng.random(1002) < 0.5) == pytest.approx(binomial, rel=0.15)  # independent: the same
    assert family_error(np.tile([True, False, True], 334)) == pytest.approx(0, abs=1e-9)  # they compensate


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "49d75b2c")
def test_family_error_starter_fails():
    def family_error(hits):
        p = np.mean(hits)
        return math.sqrt(p * (1 - p) / len(hits))

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        lucky = rng.random(334) < 0.5
        p = lucky.mean()
        binomial = math.sqrt(p * (1 - p) / 1002)
        assert family_error(np.repeat(lucky, 3)) == pytest.approx(math.sqrt(3) * binomial)  # siblings agree: at most
        assert family_error(rng.random(1002) < 0.5) == pytest.approx(binomial, rel=0.15)  # independent: the same
        assert family_error(np.tile([True, False, True], 334)) == pytest.approx(0, abs=1e-9)  # they compensate


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "099e2e82")
def test_both_right():
    def both_right(hits):
        return float(np.mean([a and b for a, b in zip(hits[::2], hits[1::2])]))

    apart = [(0, 0, 60, 60), (64, 64, 128, 128)] * 20
    one_map = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(9)).repeat_interleave(
        2, 0
    )  # the same for both phrases
    hits = points_into(one_map, apart)
    assert sum(hits) > 5 and both_right(hits) == 0
    assert both_right([True, True, True, False]) == 0.5


@pytest.mark.nb("nbs/3_fusion/10d_evaluation.ipynb", "099e2e82")
def test_both_right_starter_fails():
    def both_right(hits):
        return float(np.mean(hits))

    with pytest.raises(Exception):
        apart = [(0, 0, 60, 60), (64, 64, 128, 128)] * 20
        one_map = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(9)).repeat_interleave(
            2, 0
        )  # the same for both phrases
        hits = points_into(one_map, apart)
        assert sum(hits) > 5 and both_right(hits) == 0
        assert both_right([True, True, True, False]) == 0.5
