"""Generated from nbs/5_prompting/21b_prompt_files.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import peft
import pytest
import tempfile
import torch
import torch.nn.functional as F
import warnings
from pathlib import Path
from safetensors.torch import load_file
from transformers import BertConfig
from transformers import BertForSequenceClassification
from transformers import BertModel
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import T5Config
from transformers import T5ForConditionalGeneration
from transformers.utils import logging
from vlp_course.prompts.deep import PrefixMLP
from vlp_course.prompts.deep import Prefixed
from vlp_course.prompts.deep import kv_shape
from vlp_course.prompts.deep import lora_on
from vlp_course.prompts.soft import PromptEncoder
from vlp_course.prompts.soft import PromptTuned
from vlp_course.prompts.soft import Vectors
from vlp_course.prompts.files import (
    _from_peft,
    _to_peft,
    fingerprint,
    load_adapter,
    load_training,
    save_adapter,
    save_training,
    task_type,
)


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

    return IDS, MASK, digest, extra, tiny


@pytest.fixture(scope="module")
def setup_1d39b060(setup_11b921b4):
    IDS, MASK, _, extra, _ = setup_11b921b4

    def learners(module):
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    def few_steps(tuned, kind, steps=3, rate=0.1):
        optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], rate)
        for _ in range(steps):
            optimiser.zero_grad()
            tuned(IDS, MASK, **extra(kind)).logits.square().mean().backward()
            optimiser.step()

    return learners


@pytest.fixture(scope="module")
def setup_a4182dcf(setup_11b921b4):
    IDS, MASK, _, extra, tiny = setup_11b921b4
    TASKS = {"gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}

    def theirs(kind, method):
        """A peft model on a tiny one, and what it says."""
        torch.manual_seed(3)
        task = TASKS[kind]
        config = {
            "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=5),
            "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5),
            "prefix-mlp": lambda: peft.PrefixTuningConfig(
                task_type=task, num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=11
            ),
            "ptuning": lambda: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=5, encoder_hidden_size=7),
            "ptuning-lstm": lambda: peft.PromptEncoderConfig(
                task_type=task, num_virtual_tokens=5, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"
            ),
            "lora": lambda: peft.LoraConfig(task_type=task, r=3, lora_alpha=6),
        }[method]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(tiny(kind), config).eval()
        for n, p in model.named_parameters():
            if "lora_B" in n or "classifier" in n and p.requires_grad:
                p.data.normal_()  # else LoRA does nothing yet
        return model

    def said(model, kind):
        with torch.no_grad():
            return model(input_ids=IDS, attention_mask=MASK, **extra(kind)).logits

    return TASKS, said, theirs


@pytest.fixture(scope="module")
def setup_f48fe9de(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4

    def beginning(kind):
        """A model with a reparameterised prompt, and its optimiser: the same each time."""
        torch.manual_seed(5)
        model = tiny("bert")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2  # so that the generator matters
        sources = {
            "lstm": lambda: PromptTuned(model, PromptEncoder(torch.randn(5, 24, dtype=torch.float64))),
            "mlp": lambda: Prefixed(
                model, PrefixMLP(torch.randn(5, 24, dtype=torch.float64), 11, 96), head="classifier"
            ),
        }
        tuned = sources[kind]().train()
        return tuned, torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], 0.01)

    def go_on(tuned, optimiser, start, stop):
        for step in range(start, stop):
            optimiser.zero_grad()
            F.cross_entropy(tuned(IDS, MASK).logits, torch.tensor([1, 3])).backward()
            optimiser.step()

    return beginning, go_on


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "478b19ec")
def test_a_fingerprint_knows_its_model(setup_11b921b4):
    _, _, _, _, tiny = setup_11b921b4
    for kind in ("gpt2", "llama", "bert", "t5"):
        model = tiny(kind)
        mark = fingerprint(model)
        lora_on(model, 3)
        assert fingerprint(model) == mark == fingerprint(tiny(kind))  # LoRA changes nothing
        next(p for n, p in model.base_model.named_parameters() if p.ndim == 1).data[0] += 1e-9
        assert fingerprint(model) != mark
    assert [task_type(tiny(k)) for k in ("gpt2", "llama", "bert", "t5")] == [
        "CAUSAL_LM",
        "CAUSAL_LM",
        "SEQ_CLS",
        "SEQ_2_SEQ_LM",
    ]
    assert task_type(BertModel(tiny("bert").config)) == "FEATURE_EXTRACTION"


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "bc8ee407")
def test_same_numbers_as_peft_and_back(setup_a4182dcf, setup_11b921b4):
    TASKS, said, theirs = setup_a4182dcf
    _, _, _, _, tiny = setup_11b921b4
    for kind in TASKS:
        for method in ("prompt", "prefix", "prefix-mlp", "ptuning", "ptuning-lstm", "lora"):
            their = theirs(kind, method)
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                their.save_pretrained(one)
                ours = load_adapter(one, tiny(kind))  # ours loads peft's
                expected, plain = said(their, kind), said(tiny(kind), kind)
                assert (said(ours, kind) - expected).abs().max() <= 1e-6
                assert (
                    expected[:, -plain.shape[1] :] - plain if plain.ndim == 3 else expected - plain
                ).abs().max() > 0.01
                for p in getattr(ours, "model", ours).classifier.parameters() if kind == "bert" else ():
                    p.requires_grad_(True)  # a head that was trained is kept
                save_adapter(two, ours)
                assert {f.name for f in Path(two).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
                back = peft.PeftModel.from_pretrained(tiny(kind), two).eval()  # peft loads ours
                assert (said(back, kind) - expected).abs().max() <= 1e-6
                mine, other = (
                    load_file(Path(two, "adapter_model.safetensors")),
                    load_file(Path(one, "adapter_model.safetensors")),
                )
                assert set(mine) == set(other)
                if (kind, method[:6]) != ("t5", "prefix"):
                    assert all(
                        torch.equal(mine[n].float(), other[n].float()[: len(mine[n])]) for n in mine
                    )  # T5: peft keeps a second half


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "f477ca0e")
def test_half_of_a_prefix_for_t5_is_never_read(setup_11b921b4, setup_a4182dcf):
    IDS, MASK, _, extra, tiny = setup_11b921b4
    _, _, theirs = setup_a4182dcf
    their = theirs("t5", "prefix")
    their.train()(input_ids=IDS, attention_mask=MASK, **extra("t5")).logits.square().sum().backward()
    slopes = their.prompt_encoder["default"].embedding.weight.grad.unflatten(1, (4, 24)).abs().sum((0, 2))
    assert (slopes[:2] > 0).all() and (slopes[2:] == 0).all()  # of two layers, both read the first one's
    ours = Prefixed(tiny("t5"), Vectors(torch.randn(5, 96, dtype=torch.float64)))
    ours(IDS, MASK, **extra("t5")).logits.square().sum().backward()
    assert (ours.prefix.embedding.weight.grad.abs().sum(0) > 0).all()
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(
            ValueError,
            match="layers of this encoder-decoder share slots in peft's format, and here they differ: keep it with save_training",
        ):
            save_adapter(folder, ours)
    for layers in (3, 5):  # an odd number of layers shares none
        flat = torch.randn(4, 2 * layers * 7)
        assert _from_peft(_to_peft(flat, layers), layers).equal(flat)


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "abd75fc3")
def test_encoders_agree_with_peft(setup_1d39b060, setup_a4182dcf):
    learners = setup_1d39b060
    _, _, theirs = setup_a4182dcf
    for method in ("ptuning", "ptuning-lstm", "prefix-mlp"):
        their = theirs("gpt2", method).prompt_encoder["default"]
        start = torch.zeros(5, 24)
        mine = (
            PrefixMLP(start, 11, 96)
            if method == "prefix-mlp"
            else PromptEncoder(start, "lstm", 12)
            if method == "ptuning-lstm"
            else PromptEncoder(start, "mlp", 7)
        )
        mine.load_state_dict(their.state_dict())  # the same names
        torch.testing.assert_close(mine(), their(torch.arange(5)[None])[0], rtol=0, atol=1e-6)
        assert learners(mine) == learners(their)


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "92719a20")
def test_trainable_counts_agree_with_peft(setup_a4182dcf, setup_1d39b060, setup_11b921b4):
    TASKS, _, theirs = setup_a4182dcf
    learners = setup_1d39b060
    _, _, _, _, tiny = setup_11b921b4
    for kind in TASKS:
        head = 24 * 4 + 4 if kind == "bert" else 0
        for method, mine in (
            ("prompt", lambda m: PromptTuned(m, Vectors(torch.zeros(5, 24)))),
            ("prefix", lambda m: Prefixed(m, Vectors(torch.zeros(5, kv_shape(m).width)))),
        ):
            both = 2 if (kind, method) == ("t5", "prompt") else 1  # peft's unused second half
            assert learners(theirs(kind, method)) == both * learners(mine(tiny(kind))) + head
        model = tiny(kind)
        lora_on(model, 3, alpha=6)
        assert learners(theirs(kind, "lora")) == learners(model) + head


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "51a2c063")
def test_an_adapter_of_another_model(setup_a4182dcf, setup_11b921b4):
    _, _, theirs = setup_a4182dcf
    _, _, _, _, tiny = setup_11b921b4
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_adapter(folder, PromptTuned(tiny("gpt2"), Vectors(torch.randn(5, 24))))
        other = tiny("gpt2")
        other.transformer.ln_f.bias.data[3] += 1e-6
        with pytest.raises(
            ValueError, match="this adapter was made for another model: the words' table or the biases differ"
        ):
            load_adapter(folder, other)
        theirs("gpt2", "prompt").save_pretrained(folder)  # peft keeps no fingerprint: shapes decide
        wide = GPT2LMHeadModel(GPT2Config(n_embd=36, n_layer=2, n_head=3, vocab_size=61, n_positions=40))
        with pytest.raises(
            ValueError, match="vectors of width 24 for a model whose inputs are 36 wide: made for another model?"
        ):
            load_adapter(folder, wide)
        theirs("gpt2", "prefix").save_pretrained(folder)
        with pytest.raises(ValueError, match="96 numbers a virtual token, the model needs 144"):
            load_adapter(folder, wide)
        theirs("gpt2", "lora").save_pretrained(folder)
        with pytest.raises(
            ValueError, match="the adapter's 4 LoRA matrices are not the 4 of this model: made for another model?"
        ):
            load_adapter(folder, wide)
        with pytest.raises(ValueError, match="a bert without a layer named c_attn"):
            load_adapter(folder, tiny("bert"))
        theirs("bert", "prefix").save_pretrained(folder)
        two = BertForSequenceClassification(
            BertConfig(**{**tiny("bert").config.to_dict(), "num_labels": 2, "id2label": None, "label2id": None})
        )
        with pytest.raises(
            ValueError,
            match="a head base_model.classifier.bias of \\(4,\\) that the model lacks: made for another model?",
        ):
            load_adapter(folder, two)
        config = Path(folder, "adapter_config.json")
        config.write_text(config.read_text().replace("PREFIX_TUNING", "IA3"))
        with pytest.raises(
            ValueError, match="an adapter of kind IA3: known are LORA, P_TUNING, PREFIX_TUNING, PROMPT_TUNING"
        ):
            load_adapter(folder, tiny("bert"))
        config.unlink()
        with pytest.raises(
            ValueError, match="no adapter in .*: it needs adapter_config.json and adapter_model.safetensors"
        ):
            load_adapter(folder, tiny("bert"))
        with pytest.raises(ValueError, match="nothing to save in a GPT2LMHeadModel: no prompt, no prefix, no LoRA"):
            save_adapter(folder, tiny("gpt2"))


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "47450297")
def test_a_resumed_run_is_the_uninterrupted_one(setup_f48fe9de, setup_11b921b4):
    beginning, go_on = setup_f48fe9de
    _, _, digest, _, _ = setup_11b921b4
    for kind in ("lstm", "mlp"):
        whole, optimiser = beginning(kind)
        before = digest(whole.model.bert)
        go_on(whole, optimiser, 0, 7)
        with tempfile.TemporaryDirectory() as folder:
            first, optimiser = beginning(kind)
            go_on(first, optimiser, 0, 4)
            save_training(folder, first, optimiser, 4)
            torch.randn(100)  # another process, other numbers
            again, optimiser = beginning(kind)
            step = load_training(folder, again, optimiser)
            assert step == 4
            go_on(again, optimiser, step, 7)
            wrong, optimiser = beginning("mlp" if kind == "lstm" else "lstm")
            with pytest.raises(
                ValueError,
                match="parameters learn here, .* were kept, or their shapes differ: build the model as it was",
            ):
                load_training(folder, wrong, optimiser)
        assert all(a.equal(b) for a, b in zip(whole.parameters(), again.parameters()))  # to the last bit
        assert not all(a.equal(b) for a, b in zip(first.parameters(), again.parameters()))
        assert digest(again.model.bert) == before  # and no bit of the trunk


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "1b04f46f")
def test_what_peft_refuses_and_what_the_format_cannot_say(setup_a4182dcf, setup_11b921b4):
    _, _, theirs = setup_a4182dcf
    _, _, _, _, tiny = setup_11b921b4
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs("gpt2", "ptuning").save_pretrained(folder)
        with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
            peft.PeftModel.from_pretrained(tiny("gpt2"), folder, is_trainable=True)


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "764133b1")
def test_prefix_bytes(setup_11b921b4):
    _, _, _, _, tiny = setup_11b921b4

    def prefix_bytes(P, layers, heads, size):
        return 4 * P * 2 * layers * heads * size

    flat = torch.zeros(5, kv_shape(tiny("llama")).width)
    assert prefix_bytes(5, *kv_shape(tiny("llama"))) == flat.numel() * 4


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "764133b1")
def test_prefix_bytes_starter_fails(setup_11b921b4):
    _, _, _, _, tiny = setup_11b921b4

    def prefix_bytes(P, layers, heads, size):
        return 4 * P * heads * size

    with pytest.raises(Exception):
        flat = torch.zeros(5, kv_shape(tiny("llama")).width)
        assert prefix_bytes(5, *kv_shape(tiny("llama"))) == flat.numel() * 4


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "96abf88c")
def test_mean_prompt():
    def mean_prompt(prompts):
        if len({p.shape for p in prompts}) != 1:
            raise ValueError("prompts of different shapes have no mean")
        return torch.stack(prompts).mean(0)

    a, b = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(mean_prompt([a, b]), (a + b) / 2)
    with pytest.raises(ValueError, match="prompts of different shapes have no mean"):
        mean_prompt([a, torch.randn(1, 7)])


@pytest.mark.nb("nbs/5_prompting/21b_prompt_files.ipynb", "96abf88c")
def test_mean_prompt_starter_fails():
    def mean_prompt(prompts):
        return prompts[0]

    with pytest.raises(Exception):
        a, b = torch.randn(5, 7), torch.randn(5, 7)
        torch.testing.assert_close(mean_prompt([a, b]), (a + b) / 2)
        with pytest.raises(ValueError, match="prompts of different shapes have no mean"):
            mean_prompt([a, torch.randn(1, 7)])
