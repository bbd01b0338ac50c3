"""Generated from nbs/5_prompting/21b1_serving.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import pytest
import torch
from transformers import BertConfig
from transformers import BertForSequenceClassification
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import T5Config
from transformers import T5ForConditionalGeneration
from transformers.utils import logging
from vlp_course.prompts.deep import Prefixed
from vlp_course.prompts.deep import kv_shape
from vlp_course.prompts.soft import PromptTuned
from vlp_course.prompts.soft import Vectors
from vlp_course.prompts.serving import PromptBank


@pytest.fixture(scope="module")
def setup_11b921b4():
    logging.set_verbosity_error()
    IDS = torch.tensor([[5, 9, 33, 8, 41, 7, 12], [20, 3, 17, 55, 6, 0, 0]])  # 2 rows of 7 tokens, the second padded
    MASK = (IDS > 0).long()

    def tiny(kind, positions=40):
        """A model of 24 dimensions, 2 layers and 61 words with weights large enough to matter."""
        torch.manual_seed(1)
        models = {
            "gpt2": lambda: GPT2LMHeadModel(
                GPT2Config(n_embd=24, n_layer=2, n_head=3, vocab_size=61, n_positions=positions)
            ),
            "llama": lambda: LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=6,
                    num_key_value_heads=3,
                    intermediate_size=30,
                    vocab_size=61,
                    max_position_embeddings=positions,
                )
            ),
            "bert": lambda: BertForSequenceClassification(
                BertConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=3,
                    num_labels=4,
                    intermediate_size=30,
                    vocab_size=61,
                    max_position_embeddings=positions,
                )
            ),
            "t5": lambda: T5ForConditionalGeneration(
                T5Config(
                    d_model=24, d_kv=8, d_ff=30, num_layers=2, num_heads=3, vocab_size=61, decoder_start_token_id=0
                )
            ),
        }
        model = models[kind]().eval().double()
        for p in model.parameters():
            p.data += 0.1 * torch.randn_like(p)
        return model

    def extra(kind):
        return {"decoder_input_ids": IDS[:, :3]} if kind == "t5" else {}

    def digest(module):
        return hashlib.sha256(
            b"".join(v.contiguous().numpy().tobytes() for v in module.state_dict().values())
        ).hexdigest()

    return IDS, MASK, tiny


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "b1a89b0e")
def test_a_mixed_batch_is_the_tasks_one_by_one(setup_11b921b4):
    IDS, _, tiny = setup_11b921b4
    for kind in ("gpt2", "llama", "bert", "t5"):
        for deep in (False, True)[: 1 if kind == "t5" else 2]:
            model = tiny(kind) if kind != "bert" or deep else tiny(kind).bert  # its head reads the first place (below)
            wide = kv_shape(model).width if deep else 24
            prompts = {f"task {n}": torch.randn(n, wide, dtype=torch.float64) for n in (3, 5, 1)}
            bank = PromptBank(model, prompts, deep)
            order, ids = ["task 5", "task 1", "task 3", "task 5"], torch.cat([IDS, IDS.flip(0)])
            mask = (ids > 0).long()
            more = {"decoder_input_ids": ids[:, :3]} if kind == "t5" else {}
            result = lambda out: out.last_hidden_state if kind == "bert" and not deep else out.logits
            mixed = result(bank(order, ids, mask, **more))
            for b, task in enumerate(order):
                alone = (Prefixed if deep else PromptTuned)(model, Vectors(prompts[task]))
                real = int(mask[b].sum())  # alone: no neighbour, no padding
                row = {k: v[b : b + 1] for k, v in more.items()}
                said = result(alone(ids[b : b + 1, :real], mask[b : b + 1, :real], **row))[0]
                got = mixed[b]
                if kind in ("gpt2", "llama") or kind == "bert" and not deep:
                    got = got[-7:][:real] if deep else got[5 - len(prompts[task]) : 5 + real]
                torch.testing.assert_close(got, said, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "96bbb02f")
def test_what_a_bank_refuses(setup_11b921b4):
    IDS, MASK, tiny = setup_11b921b4
    bank = PromptBank(tiny("gpt2"), {"film": torch.zeros(3, 24), "news": torch.zeros(5, 24)})
    with pytest.raises(
        ValueError,
        match="this model's head reads the first place, which is empty before a shorter prompt: use prompts of one length, or its trunk",
    ):
        PromptBank(tiny("bert"), {"film": torch.zeros(3, 24), "news": torch.zeros(5, 24)})
    with pytest.raises(ValueError, match="unknown task 'spam': the bank has film, news"):
        bank(["film", "spam"], IDS, MASK)
    with pytest.raises(ValueError, match="the prompt of news is 23 wide, the model needs 24: made for another model?"):
        PromptBank(tiny("bert"), {"film": torch.zeros(3, 24), "news": torch.zeros(5, 23)})
    with pytest.raises(ValueError, match="a bank needs at least one prompt"):
        PromptBank(tiny("bert"), {})
    with pytest.raises(ValueError, match="5 virtual and 7 real tokens: the model's context is 11"):
        PromptBank(tiny("bert", positions=11), {"news": torch.zeros(5, 24)})(["news"] * 2, IDS, MASK)
    with pytest.raises(ValueError, match="a bank of deep prompts: not for an encoder-decoder"):
        PromptBank(tiny("t5"), {"film": torch.zeros(3, 96)}, deep=True)(["film"] * 2, IDS, MASK)
    state = bank.state_dict()
    assert (
        sum(v.numel() for n, v in state.items() if not n.startswith("model.")) == 2 * 5 * 24 + 2 * 5
    )  # the table and what is filled


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "c3dd289a")
def test_tasks_a_copy():
    def tasks_a_copy(parameters, P, D):
        return parameters // (P * D)

    assert tasks_a_copy(1000, 5, 7) == 28 and tasks_a_copy(22_565_376, 10, 384) == 5876


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "c3dd289a")
def test_tasks_a_copy_starter_fails():
    def tasks_a_copy(parameters, P, D):
        return parameters // P

    with pytest.raises(Exception):
        assert tasks_a_copy(1000, 5, 7) == 28 and tasks_a_copy(22_565_376, 10, 384) == 5876


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "63bfdb04")
def test_own_heads():
    def own_heads(states, heads, rows):
        return torch.einsum("bd,bcd->bc", states, heads[rows])

    states, heads, rows = torch.randn(4, 7), torch.randn(3, 2, 7), torch.tensor([2, 0, 2, 1])
    slow = torch.stack([heads[k] @ x for k, x in zip(rows.tolist(), states)])
    torch.testing.assert_close(own_heads(states, heads, rows), slow)


@pytest.mark.nb("nbs/5_prompting/21b1_serving.ipynb", "63bfdb04")
def test_own_heads_starter_fails():
    def own_heads(states, heads, rows):
        return states @ heads[rows[0]].T

    with pytest.raises(Exception):
        states, heads, rows = torch.randn(4, 7), torch.randn(3, 2, 7), torch.tensor([2, 0, 2, 1])
        slow = torch.stack([heads[k] @ x for k, x in zip(rows.tolist(), states)])
        torch.testing.assert_close(own_heads(states, heads, rows), slow)
