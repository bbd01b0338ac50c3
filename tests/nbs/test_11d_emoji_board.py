"""Generated from nbs/3_fusion/11d_emoji_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import io
import json
import math
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock
from vlp_course.data.emoji import STYLES
from vlp_course.data.emoji import load_emoji
from vlp_course.emoji_vectors import Features
from vlp_course.emoji_vectors import SEEN
from vlp_course.emoji_vectors import UNSEEN
from vlp_course.emoji_board import (
    Heads,
    KEEP,
    ROWS,
    Row,
    Setting,
    all_ranks,
    compare,
    hits,
    inner_split,
    main,
    metrics_of,
    ranks,
    recall,
    run_row,
    seen_mrr,
    similarity,
    split,
    train_heads,
    tune,
)


@pytest.fixture(scope="module")
def setup_b0b1dad0():
    def slow_recall(query, keys, values, sharpness=20.0):
        out = []
        for q in query:
            weights = [math.exp(sharpness * float(q @ k)) for k in keys]
            said = sum(w * v for w, v in zip(weights, values)) / sum(weights)
            mixed = q + said / said.norm()
            out.append(mixed / mixed.norm())
        return torch.stack(out)

    return slow_recall


@pytest.fixture(scope="module")
def setup_644c9c76():
    def toy_features(n=48, noise=0.3):
        generator = torch.Generator().manual_seed(0)
        texts = F.normalize(
            torch.randn(n, 1, 384, generator=generator) + noise * torch.randn(n, 7, 384, generator=generator), dim=-1
        )
        mix = torch.randn(384, 1280, generator=generator)
        images = {
            style: texts.mean(1, keepdim=True) @ mix
            + noise * torch.randn(n, 2 if style == UNSEEN else 4, 1280, generator=generator)
            for style in STYLES
        }
        return Features(images, texts)

    return toy_features


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "db7e890c")
def test_recall_as_the_slow_version(setup_b0b1dad0):
    slow_recall = setup_b0b1dad0
    query, keys, values = (F.normalize(torch.randn(n, 6), dim=-1) for n in (3, 5, 5))
    torch.testing.assert_close(recall(query, keys, values), slow_recall(query, keys, values))
    order = torch.randperm(5)  # a memory is a set: its order does not matter
    torch.testing.assert_close(recall(query, keys[order], values[order]), recall(query, keys, values))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "dacfff50")
def test_a_sharp_memory_of_itself():
    pairs = torch.eye(4)  # the query is key 2; its value is direction 0
    out = recall(pairs[2:3], pairs, pairs.roll(-2, 0), sharpness=200.0)
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0, 1.0, 0.0]]) / math.sqrt(2))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "d1b89de0")
def test_heads_start_and_lengths():
    views, texts = torch.randn(2, 3, 1280), F.normalize(torch.randn(2, 5, 384), dim=-1)
    heads = Heads(aligned=True)
    torch.testing.assert_close(heads.encode_text(texts), F.normalize(texts.mean(1), dim=-1))  # the identity so far
    assert heads.logit_scale.exp().item() == pytest.approx(10)
    for heads in (heads, Heads(aligned=False)):
        torch.testing.assert_close(heads.encode_image(views).norm(dim=1), torch.ones(2))
        torch.testing.assert_close(heads.encode_image(views), heads.encode_image(views.flip(1)))  # views are a set, too
        torch.testing.assert_close(heads.encode_image(3 * views + 1), heads.encode_image(views), atol=1e-4, rtol=1e-3)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "fa8c2c7e")
def test_what_a_row_must_not_see(setup_644c9c76):
    toy_features = setup_644c9c76
    features, items = toy_features(), np.arange(40)
    plain, both = Row("a", ""), Row("b", "", views=True, memory=True)
    for row in (plain, both):
        clean = train_heads(features, items, row, Setting(steps=5), batch=20)
        spoiled = Features({s: x.clone() for s, x in features.images.items()}, features.texts.clone())
        spoiled.images[UNSEEN][:] = torch.nan  # the unseen style
        for x in (spoiled.images["noto"], spoiled.images["openmoji"], spoiled.texts):
            x[40:] = torch.nan  # held-out emoji
            if not row.views:
                x[:, 1:] = torch.nan  # views and wordings
        assert torch.equal(
            train_heads(spoiled, items, row, Setting(steps=5), batch=20).image_head.weight, clean.image_head.weight
        )


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "85f81750")
def test_training_pairs_what_it_sees(setup_644c9c76):
    toy_features = setup_644c9c76
    features, items = toy_features(), np.arange(40)
    for row in ROWS:
        heads = train_heads(features, items, row, Setting(steps=40, lr=3e-3), batch=20)
        found = all_ranks(heads, features, items, items, row)
        if row.trained:
            assert np.mean(found["noto/i2t"] == 1) > 0.9 and sum(p.numel() for p in heads.parameters()) == 639_745
        else:
            fresh = train_heads(features, items, row, Setting(steps=7), batch=20)
            assert torch.equal(fresh.image_head.weight, heads.image_head.weight)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "e01c8234")
def test_ranks_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.5, 0.6], [0.2, 0.4, 0.4]])
    image_to_text, text_to_image = ranks(scores)
    assert image_to_text.tolist() == [1, 3, 2]  # picture 2: a tie with text 1 counts against it
    assert text_to_image.tolist() == [1, 1, 2]
    assert ranks(torch.zeros(4, 4))[0].tolist() == [4] * 4


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "1ffc6362")
def test_a_score_does_not_depend_on_the_rest_of_the_test(setup_644c9c76):
    toy_features = setup_644c9c76
    features, known = toy_features(), np.arange(30)
    for row in ROWS:
        heads = train_heads(features, known, row, Setting(steps=3), batch=20)
        whole = similarity(heads, features, known, np.arange(30, 48), "twemoji", row)
        part = similarity(heads, features, known, np.array([31, 40]), "twemoji", row)
        torch.testing.assert_close(whole[[1, 10]][:, [1, 10]], part)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "7dad28bf")
def test_nothing_crosses_a_split():
    emoji = load_emoji()
    for seed in range(5):
        known, test = split(seed)
        fitting, validation = inner_split(known, seed)
        parts = [{emoji[i].concept for i in part} for part in (fitting, validation, test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(test) == 309 and not {emoji[i].char for i in np.concatenate([test, validation])} & KEEP
        assert sorted(np.concatenate([fitting, validation, test])) == list(range(len(emoji)))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "969c8646")
def test_metrics_by_hand():
    found = {f"{style}/{way}": np.array([1, 2, 4, 8]) for style in STYLES for way in ("i2t", "t2i")}
    found["twemoji/t2i"] = np.array([1, 1, 1, 1])
    scores = metrics_of(found)
    assert scores["noto/i2t/r1"] == 0.25 and scores["noto/i2t/r5"] == 0.75
    assert scores["seen/mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 8) / 4) == seen_mrr(found)
    assert scores["unseen/r1"] == pytest.approx((0.25 + 1) / 2)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "347dd42f")
def test_tuning_takes_the_best_of_the_grid(setup_644c9c76):
    toy_features = setup_644c9c76
    emoji, tried = load_emoji(), []

    def pretend(features, items, row, setting, seed):
        tried.append((setting, set(items)))
        return setting

    quality = {0.1: 3, 0.2: 1, 0.3: 2}
    grid = [Setting(lr=lr) for lr in quality]
    world = dict(
        train_heads=pretend,
        all_ranks=lambda heads, *_: {f"{s}/{w}": np.array([quality[heads.lr]]) for s in SEEN for w in ("i2t", "t2i")},
    )
    known, test = split(3)
    with mock.patch.multiple(tune.__module__, **world):
        best = tune(toy_features(), [Row("a", ""), Row("b", "", memory=True)], known, 3, grid)
    assert best == {"a": (Setting(lr=0.2), 1.0), "b": (Setting(lr=0.2), 1.0)}
    assert len(tried) == 3 and not any(items & set(test) for _, items in tried)  # both rows share three runs


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "27a6eb3f")
def test_hits_and_paired_difference_by_hand():
    def result(row, seed, bits):
        return {"row": row, "seed": seed, "hits": {f"{style}/{way}": bits for style in SEEN for way in ("i2t", "t2i")}}

    results = [result("a", 1, "110"), result("b", 1, "100"), result("b", 0, "000"), result("a", 0, "001")]
    results[0]["hits"]["noto/i2t"] = "010"
    assert hits(results, "a").tolist() == [0, 0, 1, 0.75, 1, 0]  # split 0 first, each emoji the mean of four
    middle, low, high = compare(results, "a", "b")
    assert middle == pytest.approx((1 + 1 - 0.25) / 6) and low <= middle <= high


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "2d4994d6")
def test_a_stored_row_counts_its_hits(setup_644c9c76):
    toy_features = setup_644c9c76
    features = toy_features()
    with mock.patch.multiple(run_row.__module__, split=lambda seed: (np.arange(30), np.arange(30, 48))):
        row = ROWS[-1]
        result = run_row(features, row, Setting(steps=2), 0, {"validation_mrr": 0.5})
        assert run_row(features, row, Setting(steps=2), 0)["hits"] == result["hits"]
    assert result["config"]["validation_mrr"] == 0.5 and result["steps"] == 2 and result["params"] == 639_745
    for name, bits in result["hits"].items():
        assert len(bits) == 18 and bits.count("1") / 18 == pytest.approx(result["metrics"][f"{name}/r1"])
    assert json.loads(json.dumps(result))["hits"] == result["hits"]  # all of it is JSON


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "2c43b2ad")
def test_one_command_writes_one_file_a_row_and_split():
    def fake(features, seed):
        return [
            {"row": row.name, "seed": seed, "budget": "quick", "metrics": {"seen/r1": 0.2, "unseen/r1": 0.1}}
            for row in ROWS
        ]

    threads = torch.get_num_threads()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()) as said,
        mock.patch.multiple(main.__module__, load_features=lambda: None, run_split=fake),
    ):
        main(["--results", folder, "--splits", "0", "3"])
        files = sorted(p.name for p in Path(folder, "emoji").iterdir())
    torch.set_num_threads(threads)
    assert (
        len(files) == 2 * len(ROWS) == len(said.getvalue().splitlines())
        and "clip-quick-s0.json" in files
        and "linear-quick-s3.json" in files
    )


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "570eaab3")
def test_chance_scores():
    def chance_scores(n, k):
        return k / n, sum(1 / place for place in range(1, n + 1)) / n

    n, rng = 309, np.random.default_rng(0)
    place = np.concatenate([rng.permutation(n) + 1 for _ in range(50)])
    recall_at_5, mrr = chance_scores(n, 5)
    assert recall_at_5 == pytest.approx(np.mean(place <= 5)) and mrr == pytest.approx(np.mean(1 / place))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "570eaab3")
def test_chance_scores_starter_fails():
    def chance_scores(n, k):
        return k / n, k / n

    with pytest.raises(Exception):
        n, rng = 309, np.random.default_rng(0)
        place = np.concatenate([rng.permutation(n) + 1 for _ in range(50)])
        recall_at_5, mrr = chance_scores(n, 5)
        assert recall_at_5 == pytest.approx(np.mean(place <= 5)) and mrr == pytest.approx(np.mean(1 / place))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "ce897dee")
def test_concept_bootstrap():
    def concept_bootstrap(difference, concept, draws=2000, seed=0):
        names, member = np.unique(concept, return_inverse=True)
        total, count = np.bincount(member, difference), np.bincount(member)
        picks = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
        means = total[picks].sum(1) / count[picks].sum(1)  # a ratio: drawn concepts differ in size
        return difference.mean(), *np.quantile(means, (0.025, 0.975))

    values = np.random.default_rng(1).normal(0.2, 1, 60)
    alone = concept_bootstrap(values, np.arange(60).astype(str))
    copies = concept_bootstrap(
        np.repeat(values, 9), np.repeat(np.arange(60), 9).astype(str)
    )  # nine copies teach nothing new
    assert alone[0] == pytest.approx(values.mean()) and copies[0] == pytest.approx(values.mean())
    assert copies[2] - copies[1] == pytest.approx(alone[2] - alone[1], rel=0.1)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "ce897dee")
def test_concept_bootstrap_starter_fails():
    def concept_bootstrap(difference, concept, draws=2000, seed=0):
        picks = np.random.default_rng(seed).integers(len(difference), size=(draws, len(difference)))
        return difference.mean(), *np.quantile(difference[picks].mean(1), (0.025, 0.975))

    with pytest.raises(Exception):
        values = np.random.default_rng(1).normal(0.2, 1, 60)
        alone = concept_bootstrap(values, np.arange(60).astype(str))
        copies = concept_bootstrap(
            np.repeat(values, 9), np.repeat(np.arange(60), 9).astype(str)
        )  # nine copies teach nothing new
        assert alone[0] == pytest.approx(values.mean()) and copies[0] == pytest.approx(values.mean())
        assert copies[2] - copies[1] == pytest.approx(alone[2] - alone[1], rel=0.1)


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "1250d989")
def test_recall_others():
    def recall_others(query, keys, values, owner_of_query, owner_of_key, sharpness=20.0):
        scores = sharpness * query @ keys.T
        scores = scores.masked_fill(owner_of_query[:, None] == owner_of_key[None], -math.inf)
        said = scores.softmax(-1) @ values
        return F.normalize(query + F.normalize(said, dim=-1), dim=-1)

    x, t = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    owner = torch.tensor([0, 1, 2, 0, 1, 2])  # two drawings of three emoji
    out = recall_others(x, x, t, owner, owner)
    for i in range(6):
        others = owner != owner[i]
        torch.testing.assert_close(out[i : i + 1], recall(x[i : i + 1], x[others], t[others]))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "1250d989")
def test_recall_others_starter_fails():
    def recall_others(query, keys, values, owner_of_query, owner_of_key, sharpness=20.0):
        scores = sharpness * query @ keys.T
        scores.fill_diagonal_(-math.inf)
        said = scores.softmax(-1) @ values
        return F.normalize(query + F.normalize(said, dim=-1), dim=-1)

    with pytest.raises(Exception):
        x, t = (F.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
        owner = torch.tensor([0, 1, 2, 0, 1, 2])  # two drawings of three emoji
        out = recall_others(x, x, t, owner, owner)
        for i in range(6):
            others = owner != owner[i]
            torch.testing.assert_close(out[i : i + 1], recall(x[i : i + 1], x[others], t[others]))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "327ed092")
def test_effective_pairs():
    def effective_pairs(query, keys, sharpness):
        p = (sharpness * query @ keys.T).log_softmax(-1)
        return (-(p.exp() * p).sum(-1)).exp()

    query, keys = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(7, 8), dim=-1)
    torch.testing.assert_close(effective_pairs(query, keys, 0.0), torch.full((3,), 7.0))
    torch.testing.assert_close(effective_pairs(keys[:2], keys, 1e4), torch.ones(2))


@pytest.mark.nb("nbs/3_fusion/11d_emoji_board.ipynb", "327ed092")
def test_effective_pairs_starter_fails():
    def effective_pairs(query, keys, sharpness):
        return torch.full((len(query),), float(len(keys)))

    with pytest.raises(Exception):
        query, keys = F.normalize(torch.randn(3, 8), dim=-1), F.normalize(torch.randn(7, 8), dim=-1)
        torch.testing.assert_close(effective_pairs(query, keys, 0.0), torch.full((3,), 7.0))
        torch.testing.assert_close(effective_pairs(keys[:2], keys, 1e4), torch.ones(2))
