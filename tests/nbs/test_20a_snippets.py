"""Generated from nbs/5_prompting/20a_snippets.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from vlp_course.data.snippets import (
    DOMAINS,
    _Line,
    _lines,
    clean,
    few_shot,
    in_batches,
    key,
    load_snippets,
    merge_copies,
    part_of,
    shuffled,
    unlabelled_snippets,
)


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "b4ea4bf8")
def test_text_is_cleaned():
    assert (
        clean("  so &quot;good&quot; @Some_One1 \t see http://t.co/abc?x=1 &amp; www.x.org/y ")
        == 'so "good" @user see http & http'
    )
    assert key("It's GOOD, 10/10!") == "itsgood1010" == key("its good 1010")


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "b9e31c19")
def test_copies_are_merged():
    lines = [
        _Line("film", "a", "Fine film!", 2.0),
        _Line("news", "b", "other", 1.0),
        _Line("tweets", "c", "fine FILM", -1.0),
        _Line("news", "d", "...", 3.0),
    ]
    assert merge_copies(lines) == [
        _Line("film", "a", "Fine film!", 0.5),
        _Line("news", "b", "other", 1.0),
    ]  # first place, mean score; no empty key


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "7511c6fe")
def test_parts_share_nothing():
    seen = {}
    for domain in DOMAINS:
        for part in ("train", "dev", "test") if domain == "film" else ("dev", "test"):
            found = load_snippets(domain, part)
            assert len(found.texts) == len(found.labels) == len(set(map(key, found.texts)))
            seen[domain, part] = set(map(key, found.texts))
        seen[domain, "unlabelled"] = set(map(key, unlabelled_snippets(domain)))
    assert seen["film", "train"] < seen["film", "unlabelled"]  # the doubtful ones come on top
    names = [n for n in seen if n != ("film", "train")]
    assert not any(seen[a] & seen[b] for i, a in enumerate(names) for b in names[:i])


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "f9823989")
def test_documents_stay_whole():
    parts = {}
    for line in _lines():
        parts.setdefault(line.document, set()).add(part_of(line))
    assert all(len(p) == 1 for p in parts.values()) and sum(name.startswith("products ") for name in parts) == 300
    assert part_of(_Line("film", "x", "one text", 1.0)) == part_of(_Line("film", "x", "another", -2.0))


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "831d6063")
def test_tests_are_balanced():
    sizes = {(d, p): load_snippets(d, p).labels for d in DOMAINS for p in ("dev", "test")}
    assert all(labels.sum() * 2 == len(labels) for labels in sizes.values())
    assert {key: len(labels) for key, labels in sizes.items() if key[1] == "test"} == {
        ("film", "test"): 1000,
        ("tweets", "test"): 600,
        ("products", "test"): 600,
        ("news", "test"): 600,
    }
    assert len(load_snippets().texts) > 7000 and load_snippets().labels.double().mean().sub(0.5).abs() < 0.02
    score = {line.text: line.score for line in _lines()}
    for d, p in sizes:
        found = load_snippets(d, p)
        assert all(abs(score[t]) >= 1 and (score[t] > 0) == bool(l) for t, l in zip(*found))


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "872befed")
def test_the_same_each_time_and_safe_to_change():
    first = load_snippets("news", "dev")
    first.texts.clear(), first.labels.zero_()
    again = load_snippets("news", "dev")
    assert len(again.texts) == 100 and again.labels.sum() == 50
    with pytest.raises(ValueError, match="unknown domain 'books': choose one of film, tweets, products, news"):
        load_snippets("books")
    with pytest.raises(ValueError, match="unknown part 'valid': choose one of train, dev, test"):
        load_snippets("film", "valid")
    with pytest.raises(ValueError, match="news is there to be tested on: train on film"):
        load_snippets("news", "train")
    with pytest.raises(ValueError, match="unknown domain 'books'"):
        unlabelled_snippets("books")


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "ef81dccf")
def test_few_labels_are_balanced_and_nested():
    large = few_shot(64, 3)
    for count in (2, 4, 16):
        small = few_shot(count, 3)
        assert (
            small.texts == large.texts[:count]
            and torch.equal(small.labels, large.labels[:count])
            and small.labels.sum() * 2 == count
        )
    assert len(set(large.texts)) == 64 and large.texts == few_shot(64, 3).texts != few_shot(64, 4).texts
    assert set(large.texts) <= set(load_snippets().texts) and set(few_shot(16, 0, "dev").texts) <= set(
        load_snippets("film", "dev").texts
    )
    most = 2 * int(torch.bincount(load_snippets().labels).min())
    assert len(few_shot(most, 0).texts) == most
    for count in (0, 5, most + 2):
        with pytest.raises(
            ValueError,
            match=f"{count} labels: expected an even number from 2 to {most}, the balanced labels of film/train",
        ):
            few_shot(count, 0)
    with pytest.raises(
        ValueError, match="402 labels: expected an even number from 2 to 400, the balanced labels of film/dev"
    ):
        few_shot(402, 0, "dev")
    with pytest.raises(ValueError, match="unknown part 'test set'"):
        few_shot(4, 0, "test set")


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "3d20b19f")
def test_batches_hold_every_item_once_an_epoch():
    batches = shuffled(7, 3, 5)
    seen = torch.cat([next(batches) for _ in range(14)])  # 42 numbers, six epochs
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in seen.split(7)) and not torch.equal(
        seen[:7], seen[7:14]
    )
    assert torch.equal(seen[:3], next(shuffled(7, 3, 5))) and not torch.equal(seen[:3], next(shuffled(7, 3, 6)))
    assert sorted(next(shuffled(2, 8, 0)).tolist()) == [0, 1]  # fewer than a batch


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "b29d5c9f")
def test_answers_come_back_in_order():
    shown = []
    read = lambda texts: (
        shown.append([len(t) for t in texts]) or torch.tensor([[len(t), ord(t[0])] for t in texts], requires_grad=False)
    )
    texts = ["dddd", "a", "ccc", "bb", "eeeee"]
    assert in_batches(read, texts, 2).tolist() == [[len(t), ord(t[0])] for t in texts] and shown == [
        [1, 2],
        [3, 4],
        [5],
    ]
    weight = torch.ones(1, requires_grad=True)
    assert in_batches(lambda texts: weight * torch.ones(len(texts), 1), texts).requires_grad is False


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "aef49e92")
def test_deviation():
    def deviation(share, documents):
        return (share * (1 - share) / documents) ** 0.5

    found = np.mean([part_of(_Line("film", f"document {n}", "", 2.0)) == "test" for n in range(10_000)])
    assert abs(found - 0.14) < 4 * deviation(0.14, 10_000) and deviation(0.5, 100) == 0.05


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "aef49e92")
def test_deviation_starter_fails():
    def deviation(share, documents):
        return share / documents

    with pytest.raises(Exception):
        found = np.mean([part_of(_Line("film", f"document {n}", "", 2.0)) == "test" for n in range(10_000)])
        assert abs(found - 0.14) < 4 * deviation(0.14, 10_000) and deviation(0.5, 100) == 0.05


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "7279cbb8")
def test_overlap():
    def overlap(a, b):
        a, b = ({w.strip(".,!?").lower() for w in t.split()} - {""} for t in (a, b))
        return len(a & b) / max(1, len(a | b))

    assert overlap("A fine film.", "a fine, long FILM") == 0.75 and overlap("one", "two") == 0 and overlap("", "") == 0


@pytest.mark.nb("nbs/5_prompting/20a_snippets.ipynb", "7279cbb8")
def test_overlap_starter_fails():
    def overlap(a, b):
        return float(key(a) == key(b))

    with pytest.raises(Exception):
        assert (
            overlap("A fine film.", "a fine, long FILM") == 0.75 and overlap("one", "two") == 0 and overlap("", "") == 0
        )
