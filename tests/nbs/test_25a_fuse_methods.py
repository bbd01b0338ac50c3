"""Generated from nbs/5_prompting/25a_fuse_methods.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from collections import Counter
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from vlp_course.data.questions import questions
from vlp_course.models.frozen import VisualPrefix
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.language import wrap
from vlp_course.prompts.fuse_methods import CHOICES, Items, METHODS, contestant, draw, pieces, probe, shares


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "9f3d3cd4")
def test_questions_are_shared_out():
    few, many = draw("train", 24, seed=3), draw("train", 48, seed=3)
    assert (
        [few.slots.count(s) for s in CHOICES] == [6] * 4
        and len(set(few.scenes)) == 24
        and few.slots[:4] == list(CHOICES)
    )
    assert few.texts == many.texts[:24] and few.texts != draw("train", 24, seed=4).texts
    for scene, text, slot, answer in zip(*draw("test", 12)):
        assert (slot, text.removeprefix("question: ").removesuffix("? answer:"), CHOICES[slot][answer]) in questions(
            "test", 0, int(scene)
        )
    with pytest.raises(ValueError, match="13 questions: they are shared among 4 slots"):
        draw("train", 13)


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "66f21cc4")
def test_shares_by_slot():
    items = Items(np.arange(8), ["q"] * 8, list(CHOICES) * 2, torch.tensor([1, 2, 3, 0, 1, 2, 3, 0]))
    found = shares(torch.tensor([1, 2, 0, 0, 1, 0, 0, 1]), items)
    assert found == {"ground": 1.0, "count": 0.5, "colour": 0.0, "size": 0.5, "all": 0.5}


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "bce933ee")
def test_probe_finds_what_is_there():
    items, test = draw("train", 240, seed=0), draw("test", 40)
    told = lambda some: torch.nn.functional.one_hot(some.answers, 8).float()  # a vector that says the answer
    assert shares(probe(told(items), items, told(test), test), test)["all"] == 1.0
    assert shares(probe(torch.zeros(240, 8), items, torch.zeros(40, 8), test), test)["all"] < 0.6
    lm = wrap(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=9,
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=3,
                num_key_value_heads=1,
                intermediate_size=16,
                tie_word_embeddings=True,
            )
        ),
        lambda text, **_: {"input_ids": [len(text), 1]},
    )
    with pytest.raises(ValueError, match="answers of 'colour' begin alike"):
        pieces(lm, "colour")  # red and some other of three letters


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "5a9dde4f")
def test_who_trains_what():
    lm = wrap(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=3,
                num_key_value_heads=1,
                intermediate_size=16,
                tie_word_embeddings=True,
            )
        ),
        None,
    )
    encoder, sample = ImageEncoder(8, 2), torch.randn(9, 12288)
    trained = {
        m: {
            n.split(".")[0] + "." * (n.count(".") > 0) + (n.split(".")[1] if n.count(".") else "")
            for n, p in contestant(m, lm, encoder, 0, sample).named_parameters()
            if p.requires_grad and p.numel()
        }
        for m in METHODS
    }
    assert (
        trained["promptfuse"] == trained["blindprompt"] == trained["black"] == {"prompts"} and trained["zero"] == set()
    )
    assert trained["linear"] == {"look.project"} and trained["frozen"] == trained["frozenblack"] == {
        "look.project",
        "look.encoder",
    }
    assert trained["full"] == {"look.project", "look.encoder", "lm.base"}
    with pytest.raises(ValueError, match="unknown method 'joint': choose one of frozen, linear"):
        contestant("joint", lm, encoder, 0, sample)


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "77ea1626")
def test_layer_numbers():
    def layer_numbers(dim, width, count):
        return (dim + 1) * width * count

    assert layer_numbers(8, 24, 2) == sum(
        p.numel() for p in VisualPrefix(ImageEncoder(8, 2), 8, 24, 2).project.parameters()
    )


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "77ea1626")
def test_layer_numbers_starter_fails():
    def layer_numbers(dim, width, count):
        return dim * width

    with pytest.raises(Exception):
        assert layer_numbers(8, 24, 2) == sum(
            p.numel() for p in VisualPrefix(ImageEncoder(8, 2), 8, 24, 2).project.parameters()
        )


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "d299054b")
def test_most_frequent():
    def most_frequent(items):
        by = {}
        for slot, answer in zip(items.slots, items.answers.tolist()):
            by.setdefault(slot, []).append(answer)
        return sum(max(Counter(a).values()) / len(a) for a in by.values()) / len(by)

    assert most_frequent(
        Items(np.arange(6), ["q"] * 6, ["ground", "size"] * 3, torch.tensor([1, 0, 1, 0, 2, 0]))
    ) == pytest.approx((2 / 3 + 1) / 2)


@pytest.mark.nb("nbs/5_prompting/25a_fuse_methods.ipynb", "d299054b")
def test_most_frequent_starter_fails():
    def most_frequent(items):
        return 1 / 8

    with pytest.raises(Exception):
        assert most_frequent(
            Items(np.arange(6), ["q"] * 6, ["ground", "size"] * 3, torch.tensor([1, 0, 1, 0, 2, 0]))
        ) == pytest.approx((2 / 3 + 1) / 2)
