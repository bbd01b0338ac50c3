"""Generated from nbs/0_start/02f_pairs.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import subprocess
import sys
import torch
import zlib
from tokenizers import Regex
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from torch.utils.data import DataLoader
from vlp_course.data.emoji import caption as emoji_caption
from vlp_course.data.emoji import load_emoji
from vlp_course.data.families import SPLITS
from vlp_course.data.families import caption_of
from vlp_course.data.families import family
from vlp_course.data.grammar import COLOURS
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import SHAPES
from vlp_course.data.grammar import SIZES
from vlp_course.data.grammar import Thing
from vlp_course.data.grammar import grammar_words
from vlp_course.data.grammar import phrase
from vlp_course.data.grammar import words_of
from vlp_course.data.scenes import scene
from vlp_course.recipe import batch_indices
from vlp_course.data.pairs import CLS, EOS, MASK, PAD, Pairs, SceneSet, Tokenized, UNK, Vocabulary, course_vocabulary


@pytest.fixture(scope="module")
def setup_a957560f():
    def slow_tokenize(words, texts):
        """Loops over texts and positions; `words` is the vocabulary as a list."""
        longest = max(len(text.split()) for text in texts) + 2
        ids, mask = (
            torch.zeros(len(texts), longest, dtype=torch.long),
            torch.zeros(len(texts), longest, dtype=torch.bool),
        )
        for i, text in enumerate(texts):
            row = ["[CLS]"] + text.split() + ["[EOS]"]
            for t in range(longest):
                if t < len(row):
                    ids[i, t] = words.index(row[t]) if row[t] in words else words.index("[UNK]")
                    mask[i, t] = True
        return ids, mask

    CAPTIONS = [caption_of(split, family(split, 0, n)[n % 3]) for split in SPLITS for n in range(60)]
    return CAPTIONS, slow_tokenize


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "f47562a0")
def test_tokens_by_hand():
    small = Vocabulary(["a", "cat", "dog", "cat"])  # the second "cat" is dropped
    assert small.words == ("[PAD]", "[UNK]", "[CLS]", "[EOS]", "[MASK]", "a", "cat", "dog") and len(small) == 8
    assert small.encode("A cat, a zebra!") == [CLS, 5, 6, 5, UNK, EOS]
    ids, mask = small.tokenize(["a dog", "cat"])
    assert ids.tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]] and mask.tolist() == [[True] * 4, [True, True, True, False]]


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "708e84ac")
def test_tokens_equal_loops(setup_a957560f):
    CAPTIONS, slow_tokenize = setup_a957560f
    words = Vocabulary(grammar_words())
    short = Vocabulary(grammar_words()[::3])  # two words in three are unknown
    for vocabulary in (words, short):
        ids, mask = vocabulary.tokenize(CAPTIONS)
        slow_ids, slow_mask = slow_tokenize(list(vocabulary.words), CAPTIONS)
        assert ids.equal(slow_ids) and mask.equal(slow_mask)


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "5ea608d5")
def test_tokens_equal_library(setup_a957560f):
    CAPTIONS, _ = setup_a957560f
    vocabulary = Vocabulary(grammar_words())
    reference = Tokenizer(models.WordLevel(vocabulary.index, unk_token="[UNK]"))
    reference.normalizer = normalizers.Lowercase()
    reference.pre_tokenizer = pre_tokenizers.Split(Regex("[a-z0-9]+"), behavior="removed", invert=True)
    ends = [("[CLS]", CLS), ("[EOS]", EOS)]
    reference.post_processor = processors.TemplateProcessing("[CLS] $A [EOS]", special_tokens=ends)
    reference.enable_padding(pad_id=PAD)
    texts = [*CAPTIONS, "Two BIG wolves, unheard of: on a grey ground?"]
    found = reference.encode_batch(texts)
    ids, mask = vocabulary.tokenize(texts)
    assert ids.tolist() == [e.ids for e in found] and mask.long().tolist() == [e.attention_mask for e in found]


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "d48be426")
def test_padding_changes_nothing(setup_a957560f):
    CAPTIONS, _ = setup_a957560f
    vocabulary = Vocabulary(grammar_words())
    ids, mask = vocabulary.tokenize(CAPTIONS)
    assert mask.sum(1).tolist() == [len(text.split()) + 2 for text in CAPTIONS]
    assert (ids[:, 0] == CLS).all() and all(row[m].tolist()[-1] == EOS for row, m in zip(ids, mask))
    for i in range(0, len(CAPTIONS), 17):  # alone: the same ids, no padding
        alone = vocabulary.tokenize([CAPTIONS[i]])
        assert alone.mask.all() and alone.ids[0].equal(ids[i][mask[i]])


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "e77ef256")
def test_text_cannot_hold_special_tokens():
    vocabulary = course_vocabulary()
    ids = vocabulary.encode("[CLS] [MASK] [PAD] [EOS]")
    assert ids[0] == CLS and ids[-1] == EOS and all(i == UNK or i > MASK for i in ids[1:-1])
    assert vocabulary.words[ids[2]] == "mask"


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "620d3fb2")
def test_tokenizer_refuses():
    vocabulary = Vocabulary(["a", "cat"])
    with pytest.raises(ValueError, match=r"empty caption '\.\.\.': a caption needs at least one word"):
        vocabulary.tokenize(["a cat", "..."])
    with pytest.raises(ValueError, match="no captions: tokenize needs a list of at least one caption"):
        vocabulary.tokenize([])
    with pytest.raises(ValueError, match="caption of 23 words, the context holds 22: 'cat cat cat"):  # a context of 24
        vocabulary.tokenize(["a", "cat " * 23])
    assert vocabulary.tokenize(["cat " * 22]).ids.shape == (1, 24)
    assert vocabulary.tokenize(["cat " * 23], context=25).ids.shape == (1, 25)


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "5cba2604")
def test_no_word_is_unknown():
    vocabulary = course_vocabulary()
    scenes = [scene(split, 6, i) for split in SPLITS for i in range(300)]
    texts = {text for s in scenes for text in (s.caption, *s.foils.values())}
    things = [Thing(noun, None, size) for noun in NOUNS for size in ("", *SIZES)]
    things += [Thing(shape, colour, size) for shape in SHAPES for colour in ("", *COLOURS) for size in ("", *SIZES)]
    texts |= {phrase(thing, count) for thing in things for count in (None, 0, 1, 2, 3, 4)}
    texts |= {text for e in load_emoji() for text in (e.name, emoji_caption(e))}
    unknown = {word for text in texts for word in words_of(text) if word not in vocabulary.index}
    assert len(texts) > 10_000 and not unknown, unknown


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "28585e68")
def test_vocabulary_is_frozen():
    # a word's place is the row of a trained embedding: another order would spoil every checkpoint without an error
    words = course_vocabulary().words
    assert len(words) == 4249 and words[5 : 5 + 573] == tuple(grammar_words()) and len(set(words)) == len(words)
    assert zlib.crc32(" ".join(words).encode()) == 0x23E0FFBC


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "e2098cf4")
def test_pairs_move_whole():
    text = Vocabulary(["a", "cat"]).tokenize(["a cat", "cat"])
    batch = Pairs(
        torch.rand(2, 3, 5, 4),
        ["a cat", "cat"],
        text,
        torch.tensor([0, 0]),
        torch.rand(2, 7),
        {"answer": torch.tensor([1, 0]), "boxes": [torch.rand(1, 4), torch.rand(3, 4)], "asked": ["what", "where"]},
    )
    moved = batch.to("meta")
    tensors = [moved.image, *moved.text, moved.family, moved.features, moved.targets["answer"], *moved.targets["boxes"]]
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.caption == batch.caption and moved.targets["asked"] == ["what", "where"]
    assert [b.shape for b in moved.targets["boxes"]] == [(1, 4), (3, 4)]
    assert batch.image.device.type == batch.targets["answer"].device.type == "cpu"  # the old batch stays


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "d2b9732c")
def test_pairs_without_some_parts():
    batch = Pairs(None, ["a cat"], None, torch.tensor([4]), torch.rand(1, 7)).to("meta")
    assert batch.image is None and batch.text is None and batch.targets is None and batch.features.device.type == "meta"


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "c3562e7b")
def test_batch_by_hand():
    scenes, vocabulary = SceneSet("val", 10, seed=2, style="twemoji"), Vocabulary(grammar_words())
    batch = scenes.batch([7, 0, 3], vocabulary.tokenize)
    assert batch.image.shape == (3, 3, 128, 128) and batch.image.dtype == torch.float32 and batch.image.is_contiguous()
    for row, index in enumerate((7, 0, 3)):
        s = scene("val", 2, index, "twemoji")
        assert batch.caption[row] == s.caption and scenes.scene(index).caption == s.caption
        for y, x, channel in ((0, 0, 0), (40, 90, 1), (127, 5, 2), (64, 30, 0)):
            assert batch.image[row, channel, y, x].item() == pytest.approx(s.image[y, x, channel] / 255)
    assert batch.family.tolist() == [2, 0, 1] and batch.features is None and batch.targets is None
    assert batch.text.ids.equal(vocabulary.tokenize(batch.caption).ids)


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "4088a250")
def test_batch_depends_on_its_items_alone():
    scenes = SceneSet("test", 12)
    whole, part = scenes.batch(np.arange(12)), scenes.batch([5, 5, 2])
    assert part.image.equal(whole.image[[5, 5, 2]]) and part.caption == [whole.caption[i] for i in (5, 5, 2)]
    assert 0 <= whole.image.min() and whole.image.max() <= 1


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "e5dc9625")
def test_features_in_place_of_pictures():
    rows = np.arange(6 * 4, dtype=np.float16).reshape(6, 4)
    scenes = SceneSet("train", 6, features=rows)
    scenes.image = None  # drawing would fail now
    batch = scenes.batch([4, 1])
    assert batch.image is None and batch.features.dtype == torch.float32
    assert batch.features.tolist() == [[16, 17, 18, 19], [4, 5, 6, 7]]


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "14928ddf")
def test_objects_travel_with_their_scenes():
    scenes = SceneSet("train", 6, features=np.zeros((6, 4)))
    scenes.objects = [{"labels": torch.tensor([n])} for n in range(6)]
    batch = scenes.batch([4, 1])
    assert [o["labels"].item() for o in batch.targets["objects"]] == [4, 1] and batch.to("meta").targets["objects"][0][
        "labels"
    ].is_meta
    with pytest.raises(ValueError, match="2 lists of objects for 6 scenes of 'train': they must be as many"):
        scenes.objects = [{}, {}]


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "b369d1e4")
def test_groups_by_hand():
    together, half, control = (SceneSet("train", 240, families=share).groups for share in (1.0, 0.5, 0.0))
    assert together.tolist() == [i // 3 for i in range(240)]
    assert (half[:60] == together[:60]).all()  # families 0 to 19: whole
    assert len(set(half[60:120].tolist())) == 60 and half[60:120].min() >= 80  # 20 to 39: each its own group
    assert (half[120:180] == together[120:180]).all() and len(set(half.tolist())) == 40 + 120
    assert len(set(control.tolist())) == 240
    for kind in range(4):  # of each kind as many
        whole = [n for n in range(80) if half[3 * n] == half[3 * n + 1]]
        assert sum(n % 4 == kind for n in whole) == 10


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "8668f60c")
def test_control_changes_the_company_only():
    together, control = SceneSet("train", 18), SceneSet("train", 18, families=0.0)
    a, b = together.batch(range(18)), control.batch(range(18))
    assert a.image.equal(b.image) and a.caption == b.caption and a.family.equal(b.family)
    assert together.digest() == control.digest()


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "d661c7fb")
def test_siblings_meet_as_often_as_promised():
    met = {}
    for families in (1.0, 0.5, 0.0):
        groups = SceneSet("train", 1260, families=families).groups
        counts = [np.bincount(batch_indices(groups, step, 63, seed=0) // 3, minlength=420) for step in range(60)]
        met[families] = np.mean([(c * (c - 1)).sum() / 63 for c in counts])  # siblings that an item meets
    assert met[1.0] == 2  # both, always
    assert met[0.0] == pytest.approx(62 * 2 / 1259, rel=0.3)  # (B - 1)(g - 1) / (N - 1)
    assert met[0.5] == pytest.approx((met[1.0] + met[0.0]) / 2, rel=0.1)


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "42fce9ed")
def test_digest_tells_sets_apart():
    sets = [
        SceneSet("train", 30),
        SceneSet("val", 30),
        SceneSet("train", 30, seed=1),
        SceneSet("train", 33),
        SceneSet("train", 30, style="openmoji"),
    ]
    assert len({s.digest() for s in sets}) == 5 and SceneSet("train", 30).digest() == sets[0].digest()
    code = "from vlp_course.data.pairs import SceneSet; print(SceneSet('train', 30).digest())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == sets[0].digest()


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "76837a2f")
def test_board_data_is_frozen():
    # recorded runs and cached features belong to these scenes; this is the training set of the quick board
    assert SceneSet("train", 16002).digest() == "5cd411441a9379ab401627a12ee78a9cdd39338673c0cae45b0954dd653fdb6d"


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "c85e30d0")
def test_workers_change_nothing():
    from vlp_course.data.pairs import SceneSet as LibrarySet  # a worker has to import what it calls

    want = [LibrarySet("test", 24).batch(range(a, a + 6)) for a in range(0, 24, 6)]
    for workers in (0, 2):
        loader = DataLoader(range(24), batch_size=6, collate_fn=LibrarySet("test", 24).batch, num_workers=workers)
        for a, b in zip(loader, want, strict=True):
            assert a.image.equal(b.image) and a.caption == b.caption and a.family.equal(b.family)


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "95098f74")
def test_scene_set_refuses():
    with pytest.raises(ValueError, match="unknown style 'apple': choose one of noto, twemoji, openmoji"):
        SceneSet("train", 6, style="apple")
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val, test"):
        SceneSet("dev", 6)
    with pytest.raises(ValueError, match="0 scenes of 'train': a data set needs at least one"):
        SceneSet("train", 0)
    with pytest.raises(ValueError, match="families is 3: the share that stays together lies between 0 and 1"):
        SceneSet("train", 6, families=3)
    with pytest.raises(ValueError, match="5 rows of features for 6 scenes of 'val': they must be as many"):
        SceneSet("val", 6, features=np.zeros((5, 4)))
    scenes = SceneSet("val", 6)
    with pytest.raises(ValueError, match="7 rows of features for 6 scenes"):  # set later: checked too
        scenes.features = np.zeros((7, 4))
    for wrong in (6, -1):  # Python would take -1 for the last one
        with pytest.raises(IndexError, match=f"no scene {wrong} in a set of 6: indices go from 0 to 5"):
            scenes.batch([0, wrong])


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "0d39666e")
def test_decode(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def decode(vocabulary, ids):
        """The words of a row of ids as text."""
        hidden = {PAD, CLS, EOS, MASK}
        return " ".join(vocabulary.words[i] for i in map(int, ids) if i not in hidden)

    vocabulary = Vocabulary(grammar_words())
    ids, _ = vocabulary.tokenize(CAPTIONS)
    assert [decode(vocabulary, row) for row in ids] == CAPTIONS
    assert decode(vocabulary, vocabulary.encode("a mauve cat")) == "a [UNK] cat"


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "0d39666e")
def test_decode_starter_fails(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def decode(vocabulary, ids):
        """The words of a row of ids as text."""
        return " ".join(vocabulary.words[i] for i in ids)  # keeps [CLS], [EOS] and [PAD]

    with pytest.raises(Exception):
        vocabulary = Vocabulary(grammar_words())
        ids, _ = vocabulary.tokenize(CAPTIONS)
        assert [decode(vocabulary, row) for row in ids] == CAPTIONS
        assert decode(vocabulary, vocabulary.encode("a mauve cat")) == "a [UNK] cat"


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "124e8bf0")
def test_buckets(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def buckets(lengths, size):
        """Arrays of indices, one a batch."""
        order = np.argsort(lengths, kind="stable")  # neighbours are equally long
        return [order[a : a + size] for a in range(0, len(order), size)]

    # Siblings have captions of nearly equal length but not always the same, so some families are torn apart.
    # To keep them, sort the families by their longest member and fill the batches with whole families.
    lengths = np.array([len(text.split()) for text in CAPTIONS])
    boxes = lambda batches: sum(lengths[b].max() * len(b) for b in batches)
    found = buckets(lengths, 32)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths))) and {len(b) for b in found[:-1]} == {32}
    given = [np.arange(len(lengths))[a : a + 32] for a in range(0, len(lengths), 32)]
    assert boxes(found) < 0.85 * boxes(given) and boxes(found) < 1.05 * lengths.sum()


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "124e8bf0")
def test_buckets_starter_fails(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def buckets(lengths, size):
        """Arrays of indices, one a batch."""
        order = np.arange(len(lengths))  # the given order
        return [order[a : a + size] for a in range(0, len(order), size)]

    with pytest.raises(Exception):
        lengths = np.array([len(text.split()) for text in CAPTIONS])
        boxes = lambda batches: sum(lengths[b].max() * len(b) for b in batches)
        found = buckets(lengths, 32)
        assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths))) and {len(b) for b in found[:-1]} == {
            32
        }
        given = [np.arange(len(lengths))[a : a + 32] for a in range(0, len(lengths), 32)]
        assert boxes(found) < 0.85 * boxes(given) and boxes(found) < 1.05 * lengths.sum()


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "c9a411a0")
def test_hide_words(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def hide(text, rate, generator):
        """(tokens with [MASK], which were hidden)."""
        word = text.mask & (text.ids != CLS) & (text.ids != EOS)
        hidden = word & (torch.rand(text.ids.shape, generator=generator) < rate)
        return Tokenized(text.ids.masked_fill(hidden, MASK), text.mask), hidden

    text = Vocabulary(grammar_words()).tokenize(CAPTIONS)
    before = text.ids.clone()
    masked, hidden = hide(text, 0.5, torch.Generator().manual_seed(0))
    assert text.ids.equal(before) and masked.mask.equal(text.mask)
    assert (masked.ids[hidden] == MASK).all() and masked.ids[~hidden].equal(before[~hidden])
    special = torch.isin(before, torch.tensor([PAD, CLS, EOS]))
    assert not hidden[special].any() and abs(hidden[~special].float().mean() - 0.5) < 0.05


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "c9a411a0")
def test_hide_words_starter_fails(setup_a957560f):
    CAPTIONS, _ = setup_a957560f

    def hide(text, rate, generator):
        """(tokens with [MASK], which were hidden)."""
        hidden = torch.rand(text.ids.shape, generator=generator) < rate  # hides [CLS] and [PAD] too
        text.ids[hidden] = MASK
        return text, hidden

    with pytest.raises(Exception):
        text = Vocabulary(grammar_words()).tokenize(CAPTIONS)
        before = text.ids.clone()
        masked, hidden = hide(text, 0.5, torch.Generator().manual_seed(0))
        assert text.ids.equal(before) and masked.mask.equal(text.mask)
        assert (masked.ids[hidden] == MASK).all() and masked.ids[~hidden].equal(before[~hidden])
        special = torch.isin(before, torch.tensor([PAD, CLS, EOS]))
        assert not hidden[special].any() and abs(hidden[~special].float().mean() - 0.5) < 0.05


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "cf260ea3")
def test_split_word():
    def split_word(word, known):
        """The word as a list of known words, longest first, or None."""
        parts = []
        while word:
            end = next((n for n in range(len(word), 0, -1) if word[:n] in known), None)
            if end is None:
                return None
            parts, word = parts + [word[:end]], word[end:]
        return parts

    # "catfish" -> cat fish is a gain. "carpet" -> car pet is nonsense that looks like knowledge; with pieces trained on
    # much text, frequency keeps such words whole. A longer greedy match can also block the only way to cut a word.
    known = {"cat", "fish", "car", "pet", "star", "s", "butter", "fly", "butterfly"}
    assert split_word("catfish", known) == ["cat", "fish"] and split_word("starfish", known) == ["star", "fish"]
    assert split_word("cats", known) == ["cat", "s"] and split_word("butterfly", known) == ["butterfly"]
    assert split_word("carpets", known) == ["car", "pet", "s"] and split_word("zebra", known) is None


@pytest.mark.nb("nbs/0_start/02f_pairs.ipynb", "cf260ea3")
def test_split_word_starter_fails():
    def split_word(word, known):
        """The word as a list of known words, longest first, or None."""
        return [word] if word in known else None  # whole words only

    with pytest.raises(Exception):
        known = {"cat", "fish", "car", "pet", "star", "s", "butter", "fly", "butterfly"}
        assert split_word("catfish", known) == ["cat", "fish"] and split_word("starfish", known) == ["star", "fish"]
        assert split_word("cats", known) == ["cat", "s"] and split_word("butterfly", known) == ["butterfly"]
        assert split_word("carpets", known) == ["car", "pet", "s"] and split_word("zebra", known) is None
