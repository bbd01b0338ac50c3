"""Generated from nbs/1_foundations/04c_translation.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from dataclasses import asdict
from dataclasses import replace
from vlp_course.data.parallel import BOS
from vlp_course.data.parallel import Corpus
from vlp_course.data.parallel import EOS
from vlp_course.data.parallel import Pair
from vlp_course.data.parallel import hide
from vlp_course.data.parallel import likeness
from vlp_course.data.parallel import pad
from vlp_course.data.parallel import token_ids
from vlp_course.data.parallel import train_tokenizer
from vlp_course.decoding import greedy
from vlp_course.nn.transformer import smoothed_loss
from vlp_course.translation import (
    ROWS,
    Setting,
    Translator,
    ZH,
    looks,
    loss_of,
    main,
    nearest,
    scores,
    shown_looks,
    train,
    translate,
)


@pytest.fixture(scope="module")
def setup_d8debe9c():
    SMALL = Setting(dim=12, heads=3, layers=2, hidden=20, steps=3, batch=4, warmup=2, dropout=0.1)
    WORDS = [
        Pair("Delete the %(what)s", "删除 %(what)s"),
        Pair("Edit it", "编辑"),
        Pair("Edit the volume", "编辑卷"),
        Pair("Delete it now", "现在删除"),
        Pair("Volume", "卷"),
        Pair("Now", "现在"),
        Pair("Delete", "删除"),
    ]

    def words_and_tokenizer():
        return WORDS, train_tokenizer([hide(text)[0] for pair in WORDS for text in pair], 90)

    return SMALL, WORDS, words_and_tokenizer


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "2a355af9")
def test_training_repeats_itself(setup_d8debe9c):
    SMALL, _, words_and_tokenizer = setup_d8debe9c
    pairs, tokenizer = words_and_tokenizer()
    before = torch.get_rng_state()
    (one, losses), (two, again), (_, other) = (train(SMALL, pairs, tokenizer, seed) for seed in (1, 1, 2))
    assert losses == again != other and len(losses) == 3 and not one.training
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters())) and torch.get_rng_state().equal(before)
    assert all(
        p.grad is not None and (p.grad != 0).any() for name, p in one.named_parameters() if "key.bias" not in name
    )


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "1f3a9f29")
def test_it_learns_seven_pairs(setup_d8debe9c):
    SMALL, _, words_and_tokenizer = setup_d8debe9c
    pairs, tokenizer = words_and_tokenizer()
    setting = replace(SMALL, dim=24, hidden=48, steps=120, batch=7, warmup=40, rate=0.6, dropout=0.0, smoothing=0.0)
    model, losses = train(setting, pairs, tokenizer)
    assert losses[-1] < 0.2 < 2 < losses[0] and loss_of(model, pairs, tokenizer) < 0.2
    assert translate(model, [p.source for p in pairs], tokenizer) == [
        p.target for p in pairs
    ]  # the placeholder came back
    assert translate(model, ["Delete the %(other)s"], tokenizer, beams=1) == ["删除 %(other)s"]  # under whatever name
    batch = torch.tensor([[BOS], [BOS]])
    ids = pad([token_ids(tokenizer, p)[0] for p in pairs[:2]])
    assert greedy(model.state(ids), batch, EOS, 9) == [token_ids(tokenizer, p)[1][1:-1] for p in pairs[:2]]


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "4332e586")
def test_the_control_is_blind(setup_d8debe9c):
    SMALL, _, words_and_tokenizer = setup_d8debe9c
    pairs, tokenizer = words_and_tokenizer()
    for look in (True, False):
        torch.manual_seed(0)
        model = Translator(replace(SMALL, look=look), tokenizer.get_vocab_size()).eval()
        a, b, target = torch.tensor([[7, 8, 9, EOS]]), torch.tensor([[9, 9, 7, EOS]]), torch.tensor([[BOS, 7, 8]])
        assert model(a, target).equal(model(b, target)) == (not look)
        assert model.state(a).logits(target).equal(model.state(b).logits(target)) == (not look)


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "f89c1f33")
def test_looks_are_the_weights(setup_d8debe9c):
    SMALL, _, words_and_tokenizer = setup_d8debe9c
    pairs, tokenizer = words_and_tokenizer()
    torch.manual_seed(0)
    model = Translator(SMALL, tokenizer.get_vocab_size()).eval()
    source, target = token_ids(tokenizer, pairs[2])
    found = looks(model, source, target)
    assert found.shape == (2, 3, len(target), len(source))
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    context, mask = model.encode(torch.tensor([source]))
    x, layer = model.embed(torch.tensor([target])), model.writer.decoder.layers[0]
    x = x + layer.attention(layer.norm1(x), mask=torch.ones(1, len(target), len(target), dtype=torch.bool).tril())
    torch.testing.assert_close(found[0], layer.cross.weights(layer.norm_cross(x), context, mask)[0])
    assert not any(layer.cross._forward_pre_hooks for layer in model.writer.decoder.layers)  # no hook is left behind


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "ca869569")
def test_only_right_ones_are_shown(setup_d8debe9c):
    SMALL, WORDS, _ = setup_d8debe9c
    pairs, tokenizer = (
        WORDS,
        train_tokenizer([hide(text)[0] for pair in WORDS for text in pair], 40),
    )  # few tokens: short pieces
    model = Translator(SMALL, tokenizer.get_vocab_size()).eval()
    right = [p.target for p in pairs]
    fit = [token_ids(tokenizer, p) for p in pairs if 7 <= len(token_ids(tokenizer, p)[0]) <= 12]
    shown = shown_looks(model, Corpus([], [], pairs, tokenizer), right)
    assert len(fit) >= 2 and len(shown) == min(3, len(fit))
    for one, (source, target) in zip(shown, fit):
        assert len(one["source"]) == len(source) and len(one["target"]) == len(target) - 1 == len(one["weights"])
        assert all(sum(row) == pytest.approx(1, abs=0.01) for row in one["weights"])
    assert shown_looks(model, Corpus([], [], pairs, tokenizer), ["wrong"] * len(pairs)) == []


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "97cb7c54")
def test_nearest_by_hand():
    pairs = [Pair("Delete the %(what)s", "删除 %(what)s"), Pair("Edit the volume", "编辑卷")]
    assert nearest(["Delete this %s", "Edit volumes"], pairs) == ["删除 %s", "编辑卷"]  # it gets the placeholder right


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "cf6399f8")
def test_scores_by_hand():
    pairs = [Pair("Delete %s", "删除 %s"), Pair("Edit", "编辑")]
    best = scores(["删除 %s", "编辑"], pairs, "zh")
    assert best["chrf"] == pytest.approx(100) and best["exact"] == best["placeholders"] == 1.0
    half = scores(["删除 %s", "删除"], pairs, "zh")
    assert half["exact"] == 0.5 and half["placeholders"] == 1.0 and 0 < half["chrf"] < 100
    assert scores(["删除", "编辑"], pairs, "zh")["placeholders"] == 0.0
    long = [Pair("a", "无法删除该卷，请再试。")]
    assert scores(["无法删除该卷，请再试。"], long, "zh")["bleu"] == pytest.approx(100)
    assert (
        scores(["无法删除此卷，请再试。"], long, "zh")["bleu"]
        > 40
        > scores(["无法删除此卷，请再试。"], long, "de")["bleu"]
    )  # zh cuts into characters


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "c692506b")
def test_unknown_rows():
    for row in ("transformer-en-fr", "bert"):
        with pytest.raises(SystemExit):
            main(["--rows", row])
    assert len({setting.row for setting in ROWS}) == len(ROWS) and ZH.steps == ROWS[1].steps
    assert {k for k, v in asdict(ROWS[1]).items() if v != asdict(ZH)[k]} == {
        "row",
        "title",
        "look",
    }  # the control differs in nothing else


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "78c21123")
def test_floor():
    def floor(p, smoothing, vocab):
        right, other = np.log(p), np.log((1 - p) / (vocab - 1))
        return -(1 - smoothing) * right - smoothing / vocab * (right + (vocab - 1) * other)

    logits = torch.full((1, 1, 2000), float(np.log(0.1 / 1999)))
    logits[..., 5] = float(np.log(0.9))
    assert floor(0.9, 0.1, 2000) == pytest.approx(smoothed_loss(logits, torch.tensor([[5]])).item(), rel=1e-4)


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "78c21123")
def test_floor_starter_fails():
    def floor(p, smoothing, vocab):
        return -(1 - smoothing) * np.log(p)

    with pytest.raises(Exception):
        logits = torch.full((1, 1, 2000), float(np.log(0.1 / 1999)))
        logits[..., 5] = float(np.log(0.9))
        assert floor(0.9, 0.1, 2000) == pytest.approx(smoothed_loss(logits, torch.tensor([[5]])).item(), rel=1e-4)


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "5bbe3726")
def test_consensus():
    def consensus(source, pairs, k=5):
        order = likeness([source], [p.source for p in pairs]).toarray()[0].argsort()[::-1][:k]
        targets = [pairs[i].target for i in order]
        return targets[likeness(targets, targets).toarray().sum(1).argmax()]

    pairs = [
        Pair("Delete this disk", "abcdef"),
        Pair("Delete a disk", "uvwxyz"),
        Pair("Delete the disks", "uvwxyy"),
        Pair("Delete disk", "uvwxzz"),
        Pair("Quite another thing", "abcdef"),
    ]
    assert consensus("Delete this disk now", pairs, 4).startswith("uvwx") and nearest(
        ["Delete this disk now"], pairs
    ) == ["abcdef"]


@pytest.mark.nb("nbs/1_foundations/04c_translation.ipynb", "5bbe3726")
def test_consensus_starter_fails():
    def consensus(source, pairs, k=5):
        return nearest([source], pairs)[0]

    with pytest.raises(Exception):
        pairs = [
            Pair("Delete this disk", "abcdef"),
            Pair("Delete a disk", "uvwxyz"),
            Pair("Delete the disks", "uvwxyy"),
            Pair("Delete disk", "uvwxzz"),
            Pair("Quite another thing", "abcdef"),
        ]
        assert consensus("Delete this disk now", pairs, 4).startswith("uvwx") and nearest(
            ["Delete this disk now"], pairs
        ) == ["abcdef"]
