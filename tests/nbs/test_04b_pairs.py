"""Generated from nbs/1_foundations/04b_pairs.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import difflib
import numpy as np
import pytest
import re
import torch
from vlp_course.data.parallel import (
    BOS,
    EOS,
    PAD,
    PLACEHOLDER,
    Pair,
    UNK,
    batches,
    clusters,
    decode,
    encode,
    hide,
    likeness,
    load_pairs,
    normal,
    pad,
    read_json,
    read_po,
    restore,
    split,
    token_ids,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def setup_0ef99caf():
    def slow_likeness(a, b):
        """Jaccard of two strings' letter triples."""
        a, b = ({f"  {t} "[i : i + 3] for i in range(len(t) + 1)} for t in (normal(a), normal(b)))
        return len(a & b) / len(a | b)

    return slow_likeness


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "48430fe5")
def test_catalogues_by_hand():
    po = """msgid ""
msgstr "header"

#. a remark
msgctxt "menu"
msgid "Delete %(name)s"
msgstr ""
"删除"
" %(name)s"

#, fuzzy
msgid "Guess"
msgstr "Raten"

msgid "%d item"
msgid_plural "%d items"
msgstr[0] "%d"

msgid "Not done"
msgstr ""

msgid "A \\"quote\\"\\n"
msgstr "Ein \\"Zitat\\"\\n"
"""
    assert read_po(po) == [("Delete %(name)s", "删除 %(name)s"), ('A "quote"\n', 'Ein "Zitat"\n')]
    assert read_json('{"": {"language": "zh"}, "menu\\u0004Save": ["保存"], "Open": [""], "Close": ["关闭"]}') == [
        ("Save", "保存"),
        ("Close", "关闭"),
    ]


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "04926ff2")
def test_pairs_are_clean():
    for language, count in (("zh", 5000), ("de", 2500)):
        pairs = load_pairs(language)
        assert len(pairs) > count and len({p.source for p in pairs}) == len(pairs)
        assert all(
            len(p.source.split()) <= 16 and len(p.source) <= 100 and "\n" not in p.source + p.target for p in pairs
        )
        assert all(sorted(PLACEHOLDER.findall(p.source)) == sorted(PLACEHOLDER.findall(p.target)) for p in pairs)
    assert not any(re.search("[\u4e00-\u9fff]", p.target) for p in pairs)  # German
    with pytest.raises(ValueError, match="language 'fr': there are 'zh' and 'de'"):
        load_pairs("fr")


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "ca6bc034")
def test_placeholders_come_back():
    source, names = hide("Move %(what)s to %(where)s, {{ n }} of %s, 100% done")
    assert source == "Move <0> to <1>, <2> of <3>, 100% done" and names == ["%(what)s", "%(where)s", "{{ n }}", "%s"]
    target, _ = hide("把 %(where)s 的 %(what)s 移动", names)
    assert target == "把 <1> 的 <0> 移动" and restore(target, names) == "把 %(where)s 的 %(what)s 移动"
    assert restore("<1><7>", names) == "%(where)s"  # a number that the model made up
    assert hide("%s and %s")[0] == "<0> and <0>"  # one name, one number
    with pytest.raises(ValueError, match=r"the placeholder %d is not among \['%s'\]"):
        hide("%d", ["%s"])


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "e984cb26")
def test_likeness_equals_sets(setup_0ef99caf):
    slow_likeness = setup_0ef99caf
    texts = [p.source for p in load_pairs("de")[::60]]
    found = likeness(texts[:20], texts).toarray()
    assert np.allclose(found, [[slow_likeness(a, b) for b in texts] for a in texts[:20]], atol=1e-6) and np.allclose(
        found.diagonal(), 1
    )
    assert likeness(["Delete %(name)s 12"], ["delete %s 7!", "xyz"]).toarray().tolist() == [
        [1.0, 0.0]
    ]  # what counts as a copy
    assert normal("Delete %(name)s, now (12)?") == "delete # now 0"


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "01737a8c")
def test_clusters_by_hand():
    pairs = [
        Pair(*texts)
        for texts in (
            ("Delete the volume", "a"),
            ("delete the volumes", "b"),
            ("Remove it", "a"),
            ("Quite another thing", "c"),
            ("Attach the interface", "d"),
        )
    ]
    found = clusters(pairs).tolist()
    assert found[0] == found[1] == found[2] and len(set(found)) == 3  # alike; the same translation
    assert len(set(clusters(pairs, 1.0).tolist())) == 4  # only equal targets join
    with pytest.raises(ValueError, match="threshold 0: expected above 0 and at most 1"):
        clusters(pairs, 0)


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "56f165c8")
def test_no_near_copy_in_training():
    pairs = load_pairs("de")
    parts = split(pairs, 150, 300)
    assert (
        sorted(i for part in parts for i in part) == list(range(len(pairs)))
        and len(parts.test) >= 300
        and len(parts.valid) >= 150
    )
    train, held = [pairs[i] for i in parts.train], [pairs[i] for i in parts.test + parts.valid]
    alike = likeness([p.source for p in held], [p.source for p in train]).toarray()
    assert alike.max() < 0.6 and not {normal(p.target) for p in held} & {normal(p.target) for p in train}
    assert all(len(p.source.split()) >= 3 for p in held)
    nearest = [train[j].source for j in alike.argmax(1)]  # a second opinion: edit similarity of the whole strings
    assert max(difflib.SequenceMatcher(None, normal(a.source), normal(b)).ratio() for a, b in zip(held, nearest)) < 0.95
    assert split(pairs, 150, 300) == parts and split(pairs, 150, 300, seed=1) != parts
    between = likeness([pairs[i].source for i in parts.test], [pairs[i].source for i in parts.valid]).toarray()
    assert between.max() < 0.6  # tuning sees no near copy of the test either
    with pytest.raises(ValueError, match=r"20 pairs have too few small clusters for 150 \+ 300 held-out ones"):
        split(pairs[:20], 150, 300)


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "3986367f")
def test_a_random_split_would_leak():
    pairs = load_pairs("de")
    order = np.random.default_rng(0).permutation(len(pairs))
    alike = likeness([pairs[i].source for i in order[:300]], [pairs[i].source for i in order[300:]]).toarray().max(1)
    assert (alike >= 0.6).mean() > 0.3


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "5a739cdf")
def test_tokens_come_back():
    texts = ["Delete the <0> volume", "delete, if <1> (the <0>) is off.", "删除 <0> 卷。", "卷 the", "(a) b", " "]
    tokenizer = train_tokenizer(texts, 90)
    for text in texts:
        assert decode(tokenizer, encode(tokenizer, text)) == text.strip() and UNK not in encode(tokenizer, text)
    name = tokenizer.id_to_token
    assert [name(i) for i in range(4)] == ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    assert encode(tokenizer, "the")[0] == encode(tokenizer, "if the")[-1]  # one word, one token, wherever it stands
    assert "<1>" in [name(i) for i in encode(tokenizer, "x<1>y")]
    assert UNK in encode(tokenizer, "龙") and decode(tokenizer, [BOS, *encode(tokenizer, "the 龙"), EOS, PAD]) == "the"
    pairs = load_pairs("zh")[:600]
    real = train_tokenizer([hide(text)[0] for pair in pairs for text in pair], 1200)
    assert real.get_vocab_size() <= 1200
    for pair in pairs:
        hidden = hide(pair.target, hide(pair.source)[1])[0]
        assert decode(real, encode(real, hidden)) == hidden


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "b3685696")
def test_rows_are_padded_at_the_right():
    pair = Pair("Delete the %(what)s", "删除 %(what)s")
    tokenizer = train_tokenizer([hide(text)[0] for text in pair], 90)
    source, target = token_ids(tokenizer, pair)
    assert source[-1] == EOS and target[0] == BOS and target[-1] == EOS and source.count(EOS) == target.count(EOS) == 1
    assert tokenizer.id_to_token(source[-2]) == tokenizer.id_to_token(target[-2]) == "<0>"
    assert pad([[5, 6, 7], [8]]).tolist() == [[5, 6, 7], [8, PAD, PAD]]


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "b05aa377")
def test_batches_hold_all_once():
    lengths = [3, 9, 4, 30, 5, 8, 31, 7, 29]
    g = torch.Generator().manual_seed(0)
    found = batches(lengths, 3, g)
    assert (
        sorted(i for batch in found for i in batch) == list(range(9))
        and [len(b) for b in batches(lengths, 4, g)].count(4) == 2
    )
    assert any(set(batch) == {3, 6, 8} for batch in found) and any(
        batches(lengths, 3, g) != found for _ in range(5)
    )  # like length; other orders
    assert batches(lengths, 3, torch.Generator().manual_seed(0)) == found


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "546dadd0")
def test_unseen():
    def unseen(train, test):
        known = {word for text in train for word in normal(text).split()}
        words = [word for text in test for word in normal(text).split()]
        return sum(word not in known for word in words) / len(words)

    assert unseen(["Delete the disk", "Edit %s"], ["delete %(name)s", "Edit the volume"]) == 0.2
    assert unseen(["a b c"], ["a", "b", "c c"]) == 0


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "546dadd0")
def test_unseen_starter_fails():
    def unseen(train, test):
        return 1 - len({w for t in train for w in normal(t).split()}) / len(
            {w for t in test for w in normal(t).split()}
        )

    with pytest.raises(Exception):
        assert unseen(["Delete the disk", "Edit %s"], ["delete %(name)s", "Edit the volume"]) == 0.2
        assert unseen(["a b c"], ["a", "b", "c c"]) == 0


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "85736b6f")
def test_edit_likeness():
    def edit_likeness(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            before, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
        return 1 - row[-1] / max(len(a), len(b))

    assert (
        edit_likeness("volume", "volumes") == pytest.approx(6 / 7)
        and edit_likeness("abc", "xabc") == 0.75
        and edit_likeness("ab", "cd") == 0
    )
    assert edit_likeness("kitten", "sitting") == pytest.approx(4 / 7) and edit_likeness("a", "a") == 1


@pytest.mark.nb("nbs/1_foundations/04b_pairs.ipynb", "85736b6f")
def test_edit_likeness_starter_fails():
    def edit_likeness(a, b):
        return sum(x == y for x, y in zip(a, b)) / max(len(a), len(b))

    with pytest.raises(Exception):
        assert (
            edit_likeness("volume", "volumes") == pytest.approx(6 / 7)
            and edit_likeness("abc", "xabc") == 0.75
            and edit_likeness("ab", "cd") == 0
        )
        assert edit_likeness("kitten", "sitting") == pytest.approx(4 / 7) and edit_likeness("a", "a") == 1
