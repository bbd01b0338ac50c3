"""Generated from nbs/4_pretraining/18b_bpe.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import gzip
import importlib.util
import pytest
import random
import torch
import torch.nn.functional as F
from pathlib import Path
from vlp_course.models.clip_whole import CLIP
from vlp_course.models.clip_whole import CLIPConfig
from vlp_course.nn.clip_towers import TowerConfig
from vlp_course.nn.late_interaction import token_similarities
from vlp_course.data.bpe import BPE, END, START, clip_bpe, read_merges


@pytest.fixture(scope="module")
def setup_39e9de01():
    ODD = [
        "A photo of a cat.",
        "don't   STOP, it's 2 o'clock &amp; 30% off!",
        "naïve café: 12,345 Ünïcödé",
        "snake_case --- a/b",
        "蘑菇 と 🦉🦉",
        "m² ½ Ⅳ",
        "x" * 40,
    ]

    def slow_pieces(bpe, word):
        """All merges tried one after the other, in the order in which they were learned: right, and 48,894 looks at each word."""
        parts = [bpe.letters[b] for b in word.encode()]
        parts[-1] += "</w>"
        for pair in bpe.rank:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair:
                    parts[i : i + 2] = ["".join(pair)]
                i += 1
        return parts

    def toy():
        """A BPE that has learned four merges."""
        return BPE([("o", "w"), ("ow", "l</w>"), ("l", "ow"), ("e", "r</w>")])

    return ODD, slow_pieces, toy


@pytest.fixture(scope="module")
def setup_e4be0f54():
    def whole(seed=0):
        """The published architecture with small towers, 49,408 pieces and a context of 77."""
        torch.manual_seed(seed)
        size = lambda width: TowerConfig(width, 2, 2, 2 * width)
        return CLIP(
            CLIPConfig(size(24), size(16), image_size=32, patch_size=16, embed_dim=12), clip_bpe().tokenize
        ).eval()

    def unit(tokens):
        """All tokens at length one."""
        return F.normalize(tokens.tokens, dim=-1), tokens.mask

    return unit, whole


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "808417e7")
def test_pieces_by_hand(setup_39e9de01):
    _, _, toy = setup_39e9de01
    bpe = toy()
    assert bpe.pieces("owl") == ["owl</w>"]
    assert bpe.pieces("lower") == ["low", "er</w>"]
    assert bpe.pieces("low") == ["l", "o", "w</w>"]  # its w ends a word: another piece, never merged
    assert bpe.pieces("owow") == ["ow", "o", "w</w>"]
    assert bpe.decode(bpe.encode("  Lower OWL ")) == "lower owl"
    tokens = bpe.tokenize(["owl", "lower owl"], 5)
    assert tokens.ids.tolist() == [
        [516, bpe.index["owl</w>"], 517, 0, 0],
        [516, bpe.index["low"], bpe.index["er</w>"], bpe.index["owl</w>"], 517],
    ]
    assert tokens.mask.sum(1).tolist() == [3, 5]
    assert bpe.tokenize(["lower owl lower"], 4).ids.tolist() == [
        [516, bpe.index["low"], bpe.index["er</w>"], 517]
    ]  # cut, and ended


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "22999aa4")
def test_equals_the_slow_twin(setup_39e9de01):
    _, slow_pieces, _ = setup_39e9de01
    bpe, rng = clip_bpe(), random.Random(0)
    words = [
        "unpackable",
        "dumplings",
        "🦉",
        "".join(rng.choices("aeioustrn", k=9)),
        "".join(rng.choices("aeioustrn", k=14)),
    ]
    assert [bpe.pieces(w) for w in words] == [slow_pieces(bpe, w) for w in words]


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "ed6fec19")
def test_same_numbers_as_the_reference(setup_39e9de01):
    ODD, _, _ = setup_39e9de01
    spec = importlib.util.spec_from_file_location(
        "reference", Path(importlib.util.find_spec("open_clip").origin).with_name("tokenizer.py")
    )
    module = importlib.util.module_from_spec(spec)  # this file alone: all of open_clip takes seconds
    spec.loader.exec_module(module)
    reference, bpe = module.SimpleTokenizer(), clip_bpe()
    assert len(bpe) == 49408 == reference.vocab_size and (bpe.index[START], bpe.index[END]) == (49406, 49407)
    for text in ODD:
        assert bpe.encode(text) == reference.encode(text), text
    assert torch.equal(bpe.tokenize(ODD).ids, reference(ODD))
    assert bpe.decode(bpe.encode(ODD[4])) == ODD[4]


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "bcb73425")
def test_documented_failures(setup_39e9de01):
    _, _, toy = setup_39e9de01
    for texts in ([], ["an owl", " "]):
        with pytest.raises(ValueError, match="tokenize needs at least one text, and none of them empty"):
            toy().tokenize(texts)
    path = Path("few.txt.gz")
    try:
        path.write_bytes(gzip.compress(b"header\no w\n"))
        with pytest.raises(ValueError, match="few.txt.gz holds 2 merges, CLIP's vocabulary needs 48894"):
            read_merges(path)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "db1a929e")
def test_words_know_what_came_before_only(setup_e4be0f54):
    unit, whole = setup_e4be0f54
    model = whole()
    with torch.no_grad():
        first, second, third = (
            unit(model.encode_text(model.tokenize([t])))[0][0] for t in ("a red owl", "a red fox", "a blue owl")
        )
    torch.testing.assert_close(first[:3], second[:3])  # start, a, red: the thing is yet to come
    assert (first[3] - second[3]).norm() > 1e-3 and (first[3] - third[3]).norm() > 1e-3  # the owl knows its colour


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "36b130c3")
def test_late_tables_of_the_published_towers(setup_e4be0f54):
    unit, whole = setup_e4be0f54
    model, texts = whole(), ["an owl", "two small dumplings on a checked ground", "🦉"]
    with torch.no_grad():
        text, text_mask = unit(model.encode_text(model.tokenize(texts)))
        image = F.normalize(model.image(torch.rand(2, 3, 32, 32)), dim=-1)  # 2, class token + 4 patches, 12
        tables = token_similarities(image, text, torch.ones(2, 5, dtype=torch.bool), text_mask)
        for j in range(3):
            cosine = image @ text[j][text_mask[j]].T  # padding thrown away: 77 places, few are real
            torch.testing.assert_close(tables[0][:, j], cosine.amax(2).mean(1))
            torch.testing.assert_close(tables[1][:, j], cosine.amax(1).mean(1))
    assert text.shape == (3, 77, 12) and text_mask.sum(1).tolist() == [len(clip_bpe().encode(t)) + 2 for t in texts]


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "471c77fd")
def test_fertility(setup_39e9de01):
    _, _, toy = setup_39e9de01

    def fertility(bpe: BPE, text: str) -> float:
        """Pieces for each word."""
        return len(bpe.encode(text)) / len(text.split())

    assert fertility(toy(), "owl lower") == 1.5 and fertility(clip_bpe(), "a big owl on a grey ground") == 1


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "471c77fd")
def test_fertility_starter_fails(setup_39e9de01):
    _, _, toy = setup_39e9de01

    def fertility(bpe: BPE, text: str) -> float:
        """Pieces for each word."""
        return 1.0

    with pytest.raises(Exception):
        assert fertility(toy(), "owl lower") == 1.5 and fertility(clip_bpe(), "a big owl on a grey ground") == 1


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "6cbe1494")
def test_learn():
    def learn(words: list[str], merges: int) -> list[tuple[str, str]]:
        """The first pairs to join."""
        found = []
        for _ in range(merges):
            cut = [BPE(found).pieces(word) for word in words]
            counts = {}
            for pair in (pair for parts in cut for pair in zip(parts, parts[1:])):
                counts[pair] = counts.get(pair, 0) + 1
            found.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        return found

    assert learn(["lower", "lowest", "low"], 1) == [("l", "o")]
    assert learn(["aab", "aab", "ab"], 2) == [("a", "b</w>"), ("a", "ab</w>")]


@pytest.mark.nb("nbs/4_pretraining/18b_bpe.ipynb", "6cbe1494")
def test_learn_starter_fails():
    def learn(words: list[str], merges: int) -> list[tuple[str, str]]:
        """The first pairs to join."""
        return []

    with pytest.raises(Exception):
        assert learn(["lower", "lowest", "low"], 1) == [("l", "o")]
        assert learn(["aab", "aab", "ab"], 2) == [("a", "b</w>"), ("a", "ab</w>")]
