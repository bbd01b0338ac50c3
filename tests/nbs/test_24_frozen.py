"""Generated from nbs/5_prompting/24_frozen.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from torch import nn
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.language import wrap
from vlp_course.models.frozen import (
    Frozen,
    MARK,
    VisualPrefix,
    interleave,
    padded,
    prefix_nll,
    shots_prompt,
    word_scale,
)


@pytest.fixture(scope="module")
def setup_4efc561d():
    def slow_nll(logits, ids, mask):
        """Mean surprise of the real words, one by one; prefix length from the shapes."""
        n, found = logits.shape[1] - ids.shape[1], []
        for b in range(len(ids)):
            for t in range(ids.shape[1]):
                if mask[b, t]:
                    found.append(
                        -logits[b, n + t - 1].log_softmax(-1)[ids[b, t]]
                    )  # what stands before word t predicts it
        return torch.stack(found).mean()

    return slow_nll


@pytest.fixture(scope="module")
def setup_5e9d475c():
    def tiny_lm(words=("what", "colour", "is", "it", "red", "blue", "question:", "answer:", "a", "cup", ".")):
        """A random Llama of 24 dimensions in 64 bits, with a word-level tokenizer."""
        torch.manual_seed(0)
        tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("<pad>", "<unk>", *words))}, unk_token="<unk>"))
        tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        config = LlamaConfig(
            vocab_size=2 + len(words),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            intermediate_size=32,
            max_position_embeddings=40,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
        model = LlamaForCausalLM(config).double()
        for p in model.parameters():
            p.data = p.data + 0.2 * torch.randn_like(p)  # norms too, and no weight at its start
        return wrap(
            model,
            PreTrainedTokenizerFast(tokenizer_object=tok, pad_token="<pad>", unk_token="<unk>", bos_token="<unk>"),
        ).freeze()

    def tiny_prefix(lm, count=2):
        """The course's image encoder, small and in 64 bits, under a prefix of `count` vectors."""
        torch.manual_seed(1)
        return VisualPrefix(ImageEncoder(8, 2), 8, lm.table.shape[1], count, word_scale(lm)).double()

    return tiny_lm, tiny_prefix


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "f1b7d85e")
def test_first_word_counts():
    flat = torch.zeros(1, 5, 4)  # two prefix vectors, three words, four in the vocabulary
    flat[0, 1, 3] = 2.0  # the last prefix vector expects word 3
    loss = prefix_nll(flat, torch.tensor([[3, 0, 1]]), torch.ones(1, 3, dtype=torch.bool))
    first = np.log(3 + np.exp(2)) - 2
    assert loss.item() == pytest.approx((first + 2 * np.log(4)) / 3, abs=1e-6)
    only = prefix_nll(flat, torch.tensor([[3, 0, 1]]), torch.tensor([[True, False, False]]))
    assert only.item() == pytest.approx(first, abs=1e-6)  # the word that a wrong slice forgets


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "f924d7a0")
def test_equal_to_the_loop(setup_4efc561d):
    slow_nll = setup_4efc561d
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 13, generator=g, dtype=torch.float64)
    ids, mask = torch.randint(13, (3, 7), generator=g), torch.arange(7) < torch.tensor([[7], [4], [1]])
    assert abs(prefix_nll(logits, ids, mask) - slow_nll(logits, ids, mask)) < 1e-6


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "ceea40f2")
def test_no_prefix_no_first_word():
    with pytest.raises(ValueError, match="5 places for 5 words: without a prefix nothing predicts the first word"):
        prefix_nll(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="no word counts"):
        prefix_nll(torch.zeros(2, 5, 4), torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "b2f6b946")
def test_prefix_is_as_long_as_words(setup_5e9d475c):
    tiny_lm, tiny_prefix = setup_5e9d475c
    torch.manual_seed(0)

    class Unit(nn.Module):
        def forward(self, x):
            from vlp_course.nn.encoders import Tokens

            return Tokens(x, x[:, None], torch.ones(len(x), 1, dtype=torch.bool))

    made = VisualPrefix(Unit(), 96, 160, 3, scale=0.25)(torch.randn(50, 96))
    assert made.shape == (50, 3, 160) and made.square().mean().sqrt().item() == pytest.approx(0.25, rel=0.05)
    x = torch.randn(4, 96)
    layer = VisualPrefix(Unit(), 96, 160, 3)
    assert torch.equal(layer(x)[:, 1], (layer.project(x))[:, 160:320])  # vector 1 is the second slice
    with pytest.raises(ValueError, match="features of width 7, expected 12288"):
        tiny_prefix(tiny_lm())(torch.zeros(2, 7).double())


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "ac5e35cd")
def test_pictures_stand_where_they_belong(setup_5e9d475c):
    tiny_lm, _ = setup_5e9d475c
    lm = tiny_lm()
    table, names = lm.table, lm.tokenizer.get_vocab()
    pictures = torch.randn(2, 3, 24).double()
    made = interleave(lm, f"what {MARK} is red {MARK} blue", pictures)
    by_hand = torch.cat(
        [
            lm.start,
            table[[names["what"]]],
            pictures[0],
            table[[names["is"], names["red"]]],
            pictures[1],
            table[[names["blue"]]],
        ]
    )
    assert torch.equal(made, by_hand)
    assert not torch.equal(interleave(lm, f"what {MARK} is red {MARK} blue", pictures.flip(0)), by_hand)
    prompt = shots_prompt([("what colour is it", "red")], "is it a cup")
    assert prompt == "<image> question: what colour is it answer: red.\n<image> question: is it a cup answer:"
    rows, mask = padded([made, made[:4]])
    assert (
        rows.shape == (2, 11, 24)
        and mask.sum(1).tolist() == [11, 4]
        and torch.equal(lm.start, table[1:2])
        and torch.equal(rows[1, :4], made[:4])
        and not rows[1, 4:].any()
    )


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "abec72b6")
def test_prompts_that_do_not_fit(setup_5e9d475c):
    tiny_lm, _ = setup_5e9d475c
    lm = tiny_lm()
    with pytest.raises(ValueError, match="2 pictures for 1 slots"):
        interleave(lm, f"{MARK} what", torch.zeros(2, 3, 24).double())
    with pytest.raises(ValueError, match="picture vectors of width 23: the language model's are 24 wide"):
        interleave(lm, f"{MARK} what", torch.zeros(1, 3, 23).double())
    with pytest.raises(ValueError, match="prompt of 49 tokens: the context holds 40"):
        interleave(lm, MARK + " what" * 45, torch.zeros(1, 3, 24).double())


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "690ec0c1")
def test_equal_to_transformers(setup_4efc561d, setup_5e9d475c):
    slow_nll = setup_4efc561d
    tiny_lm, tiny_prefix = setup_5e9d475c
    lm = tiny_lm()
    model, features = Frozen(lm, tiny_prefix(lm)), torch.randn(3, 12288).double()
    ids, mask = torch.randint(2, 13, (3, 5)), torch.arange(5) < torch.tensor([[5], [3], [4]])
    theirs = LlamaForCausalLM(lm.base.config).double()
    theirs.model.load_state_dict(lm.base.state_dict())
    theirs.lm_head.weight = theirs.model.embed_tokens.weight
    front = torch.cat([lm.start.expand(3, 1, -1), model.prefix(features)], 1)
    logits = theirs(
        inputs_embeds=torch.cat([front, theirs.model.embed_tokens(ids)], 1),
        attention_mask=torch.cat([torch.ones(3, 3, dtype=torch.long), mask.long()], 1),
    ).logits
    assert abs(model(features, ids, mask) - slow_nll(logits, ids, mask)) < 1e-6
    prompt = f"{MARK} question: what colour is it answer:"
    words = torch.tensor(lm.tokenizer(prompt.replace(MARK, ""), add_special_tokens=False)["input_ids"])
    alone = theirs(inputs_embeds=torch.cat([front[:1], theirs.model.embed_tokens(words)[None]], 1)).logits[:, -1]
    assert (
        model.next_word([prompt, "what " + prompt], [features[:1], features[1:2]])[:1] - alone
    ).abs().max() < 1e-6  # a longer neighbour changes nothing


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "5a382917")
def test_language_model_stays_bit_for_bit(setup_5e9d475c):
    tiny_lm, tiny_prefix = setup_5e9d475c
    lm = tiny_lm()
    before, model = copy.deepcopy(lm.state_dict()), Frozen(lm, tiny_prefix(lm))
    ids, mask, features = (
        torch.randint(2, 13, (4, 5)),
        torch.ones(4, 5, dtype=torch.bool),
        torch.randn(4, 12288).double(),
    )
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        optimiser.zero_grad()
        loss = model.train()(features, ids, mask)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert (
        not lm.training
        and losses[-1] < losses[0]
        and all(torch.equal(before[k], v) for k, v in lm.state_dict().items())
    )
    assert all(p.grad is None for p in lm.parameters())
    assert (
        model.prefix.encoder.project.weight.grad.abs().sum() > 0 and model.prefix.project.weight.grad.abs().sum() > 0
    )  # through the language model


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "75a7fd73")
def test_predicting():
    def predicting(n, words):
        return slice(n - 1, n + words - 1)

    assert list(range(5))[predicting(2, 3)] == [1, 2, 3]


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "75a7fd73")
def test_predicting_starter_fails():
    def predicting(n, words):
        return slice(n, n + words)

    with pytest.raises(Exception):
        assert list(range(5))[predicting(2, 3)] == [1, 2, 3]


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "359a97ac")
def test_blind():
    def blind(features):
        return torch.zeros_like(features)

    assert blind(torch.ones(2, 3)).abs().sum() == 0 and blind(torch.ones(2, 3)).shape == (2, 3)


@pytest.mark.nb("nbs/5_prompting/24_frozen.ipynb", "359a97ac")
def test_blind_starter_fails():
    def blind(features):
        return features

    with pytest.raises(Exception):
        assert blind(torch.ones(2, 3)).abs().sum() == 0 and blind(torch.ones(2, 3)).shape == (2, 3)
