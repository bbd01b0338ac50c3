"""Generated from nbs/5_prompting/25_promptfuse.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import PreTrainedTokenizerFast
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.language import wrap
from vlp_course.prompts.fuse import FixedLook, Fused, fuse_mask, orthonormal


@pytest.fixture(scope="module")
def setup_c7ef5df8():
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
            max_position_embeddings=30,
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

    def tiny_look(scale=0.5):
        torch.manual_seed(1)
        return FixedLook(ImageEncoder(8, 2).double(), torch.randn(40, 12288).double(), 24, scale)

    return tiny_lm, tiny_look


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "fb0963ce")
def test_fixed_map_keeps_angles():
    turn = orthonormal(5, 11, seed=3)
    assert (
        (turn @ turn.T - torch.eye(5)).abs().max() < 1e-6
        and torch.equal(turn, orthonormal(5, 11, seed=3))
        and not torch.equal(turn, orthonormal(5, 11, seed=4))
    )
    with pytest.raises(ValueError, match="from 11 to 5 numbers: a map that keeps angles needs a width of at least 11"):
        orthonormal(11, 5)


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "a7a916f8")
def test_look_is_fixed_and_as_long_as_words(setup_c7ef5df8):
    _, tiny_look = setup_c7ef5df8
    look = tiny_look(0.5)
    torch.manual_seed(1)
    ImageEncoder(8, 2)
    sample = torch.randn(40, 12288).double()
    vectors = look(sample)
    assert vectors.shape == (40, 1, 24) and vectors.square().mean().sqrt().item() == pytest.approx(0.5, rel=0.02)
    pooled = (look.encoder(sample).pooled - look.mean) / look.deviation
    assert torch.allclose(
        F.normalize(vectors[:, 0]) @ F.normalize(vectors[:, 0]).T,
        F.normalize(pooled) @ F.normalize(pooled).T,
        atol=1e-5,
    )
    assert not any(p.requires_grad for p in look.parameters()) and not look.train().encoder.training
    with pytest.raises(ValueError, match="features of width 7, expected 12288"):
        look(torch.zeros(2, 7).double())


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "92110157")
def test_mask_as_drawn():
    drawn = [
        "1.......",  # s
        "11......",  # v
        "111.....",  # v
        "1..1....",  # P
        "1..11...",  # P
        "1..111..",  # P
        "1111111.",  # x sees everything before it
        "11111111",
    ]
    read = lambda rows: torch.tensor([[c == "1" for c in row] for row in rows])
    both = torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(fuse_mask(2, 3, both, True)[0, 0], read(drawn))
    plain = fuse_mask(2, 3, both)[0, 0]
    assert torch.equal(plain, torch.ones(8, 8, dtype=torch.bool).tril()) and plain[3:6, :3].all()
    short = fuse_mask(2, 3, torch.tensor([[True, False]]))[0, 0]
    assert not short[:7, 7].any() and short[7, 7]  # padding is seen by itself alone


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "3449ef98")
def test_blind_prompts_do_not_see(setup_c7ef5df8):
    tiny_lm, tiny_look = setup_c7ef5df8
    lm, features = tiny_lm(), torch.randn(2, 12288).double()
    prompts, ids = torch.randn(3, 24).double(), torch.randint(2, 13, (2, 5))
    words = torch.arange(5) < torch.tensor([[5], [3]])
    plain, blind = (Fused(lm, tiny_look(), prompts, b) for b in (False, True))
    now, then = blind.states(features, ids, words), blind.states(features.flip(0) + 1, ids, words)
    assert (now[:, 2:5] - then[:, 2:5]).abs().max() < 1e-12  # the same prompt states for any picture
    assert (now[:, 5] - then[:, 5]).abs().max() > 1e-4  # and words see picture and prompt
    moved = plain.states(features, ids, words)[:, 2:5] - plain.states(features.flip(0) + 1, ids, words)[:, 2:5]
    assert moved.abs().amax(-1).min() > 1e-4  # plain prompts do see it


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "98e74c01")
def test_equal_to_transformers(setup_c7ef5df8):
    tiny_lm, tiny_look = setup_c7ef5df8
    lm, features = tiny_lm(), torch.randn(3, 12288).double()
    model = Fused(lm, tiny_look(), torch.randn(4, 24).double())
    texts = ["what colour is it", "is it a cup", "what"]
    theirs = LlamaForCausalLM(lm.base.config).double()
    theirs.model.load_state_dict(lm.base.state_dict())
    theirs.lm_head.weight = theirs.model.embed_tokens.weight
    for row, text in enumerate(texts):
        ids = torch.tensor(lm.tokenizer(text)["input_ids"])
        inputs = torch.cat([lm.start, model.look(features[row : row + 1])[0], model.prompts, lm.table[ids]])[None]
        assert (
            theirs(inputs_embeds=inputs).logits[0, -1] - model(features, texts)[row]
        ).abs().max() < 1e-6  # padding moves nothing


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "39e6647f")
def test_only_prompts_learn(setup_c7ef5df8):
    tiny_lm, tiny_look = setup_c7ef5df8
    lm = tiny_lm()
    model, features = Fused(lm, tiny_look(), torch.randn(4, 24).double(), blind=True), torch.randn(3, 12288).double()
    before = copy.deepcopy(model.state_dict())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["prompts"]
    optimiser, losses = torch.optim.AdamW([model.prompts], lr=0.05), []
    for _ in range(10):
        optimiser.zero_grad()
        loss = F.cross_entropy(
            model.train()(features, ["what colour is it", "is it a cup", "what is it"]), torch.tensor([6, 7, 5])
        )
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])]
    assert changed == ["prompts"] and losses[-1] < losses[0] and not model.lm.training


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "54aa0a7d")
def test_what_does_not_fit(setup_c7ef5df8):
    tiny_lm, tiny_look = setup_c7ef5df8
    lm = tiny_lm()
    with pytest.raises(ValueError, match="prompt vectors of width 23: the language model's are 24 wide"):
        Fused(lm, tiny_look(), torch.zeros(4, 23))
    with pytest.raises(ValueError, match="prompt of 32 tokens: the context holds 30"):
        Fused(lm, tiny_look(), torch.zeros(28, 24).double())(torch.zeros(1, 12288).double(), ["what colour"])


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "ca7d18b7")
def test_trained_numbers():
    def trained_numbers(count, width):
        return count * width

    assert trained_numbers(20, 768) == 15360


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "ca7d18b7")
def test_trained_numbers_starter_fails():
    def trained_numbers(count, width):
        return width

    with pytest.raises(Exception):
        assert trained_numbers(20, 768) == 15360


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "a33534df")
def test_prompt_first():
    def prompt_first(count):
        return torch.ones(count + 1, count + 1, dtype=torch.bool).tril()

    assert not prompt_first(3)[:3, 3].any() and prompt_first(3)[3].all()


@pytest.mark.nb("nbs/5_prompting/25_promptfuse.ipynb", "a33534df")
def test_prompt_first_starter_fails():
    def prompt_first(count):
        return torch.ones(count + 1, count + 1, dtype=torch.bool)

    with pytest.raises(Exception):
        assert not prompt_first(3)[:3, 3].any() and prompt_first(3)[3].all()
