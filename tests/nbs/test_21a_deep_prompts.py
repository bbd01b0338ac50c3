"""Generated from nbs/5_prompting/21a_deep_prompts.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers import BertForSequenceClassification
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import LlamaConfig
from transformers import LlamaForCausalLM
from transformers import T5Config
from transformers import T5ForConditionalGeneration
from transformers.utils import logging
from vlp_course.prompts.soft import Vectors
from vlp_course.prompts.deep import (
    Gated,
    PrefixMLP,
    Prefixed,
    activations,
    bitfit,
    fit_prefix,
    gated_attention,
    kv_shape,
    lora_on,
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

    return few_steps, learners


@pytest.fixture(scope="module")
def setup_94a4197d():
    def slow_prefix(model, attention, flat, ids, mask):
        """BERT with a prefix, written out: no cache, one loop over layers and heads."""
        P, d = len(flat), 8
        slots, core = flat.view(P, 2, 2, 3, d), model.bert  # P, layer, key or value, head, size
        x = core.embeddings(input_ids=ids, position_ids=torch.arange(P, P + ids.shape[1])[None])
        hide = torch.cat([torch.zeros(len(ids), P), (1 - mask) * -1e9], 1)[:, None]
        for l, layer in enumerate(core.encoder.layer):
            own, heads = layer.attention.self, []
            q, k, v = own.query(x), own.key(x), own.value(x)
            for h in range(3):
                cut = slice(d * h, d * h + d)
                K, V = (
                    torch.cat([slots[:, l, j, h].expand(len(ids), -1, -1), part[..., cut]], 1)
                    for j, part in enumerate((k, v))
                )
                heads.append(attention(q[..., cut] @ K.transpose(1, 2) / d**0.5 + hide) @ V)
            x = layer.attention.output(torch.cat(heads, -1), x)
            x = layer.output(layer.intermediate(x), x)
        return model.classifier(core.pooler(x))

    return slow_prefix


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "a5c634b7")
def test_the_cache_does_what_the_loop_does(setup_11b921b4, setup_94a4197d):
    IDS, MASK, _, _, tiny = setup_11b921b4
    slow_prefix = setup_94a4197d
    model, flat = tiny("bert"), torch.randn(5, 96, dtype=torch.float64)
    slow = slow_prefix(model, lambda s: s.softmax(-1), flat, IDS, MASK)
    torch.testing.assert_close(Prefixed(model, Vectors(flat))(IDS, MASK).logits, slow, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "00374967")
def test_sizes_and_refusals(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    assert (
        kv_shape(tiny("gpt2")) == (2, 3, 8)
        and kv_shape(tiny("llama")) == (2, 3, 4)
        and kv_shape(tiny("t5")) == (2, 3, 8)
    )
    assert kv_shape(tiny("bert")).width == 96
    with pytest.raises(
        ValueError,
        match="90 numbers a virtual token, the model needs 96 \\(2 layers x 2 x 3 heads x 8\\): made for another model?",
    ):
        Prefixed(tiny("gpt2"), Vectors(torch.zeros(5, 90)))
    for kind in ("gpt2", "bert"):
        fits = Prefixed(tiny(kind, positions=10), Vectors(torch.zeros(3, 96)))
        fits(IDS, MASK)
        with pytest.raises(ValueError, match="4 virtual and 7 real tokens: the model's context is 10"):
            Prefixed(fits.model, Vectors(torch.zeros(4, 96)))(IDS, MASK)
        Prefixed(fits.model, Vectors(torch.zeros(4, 96)), shift=False)(IDS, MASK)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "406cd1b2")
def test_a_prefix_trains_and_the_model_stays(setup_11b921b4, setup_1d39b060):
    _, _, digest, _, tiny = setup_11b921b4
    few_steps, learners = setup_1d39b060
    for kind in ("gpt2", "llama", "bert", "t5"):
        model = tiny(kind)
        tuned = Prefixed(model, Vectors(torch.randn(5, kv_shape(model).width)))
        assert learners(tuned) == 5 * 2 * 2 * kv_shape(model).heads * kv_shape(model).size
        before, start = digest(model), tuned.prefix().detach().clone()
        few_steps(tuned.train(), kind)
        assert digest(model) == before and (tuned.prefix() - start).abs().min() > 1e-4


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "e698e19e")
def test_what_p_tuning_v2_trains(setup_11b921b4, setup_1d39b060):
    _, _, digest, _, tiny = setup_11b921b4
    few_steps, learners = setup_1d39b060
    model = tiny("bert")
    tuned = Prefixed(model, Vectors(torch.randn(5, 96)), head="classifier")
    assert learners(tuned) == 5 * 96 + 24 * 4 + 4
    before, head = digest(model.bert), model.classifier.weight.detach().clone()
    few_steps(tuned, "bert")
    assert digest(model.bert) == before and not model.classifier.weight.equal(head)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "95ab760c")
def test_sizes_of_the_mlp(setup_11b921b4, setup_1d39b060):
    IDS, MASK, _, _, tiny = setup_11b921b4
    _, learners = setup_1d39b060
    P, D, h, W = 5, 24, 11, 96
    mlp = PrefixMLP(torch.randn(P, D), h, W)
    assert mlp().shape == (P, W) and learners(mlp) == P * D + (D * h + h) + (h * W + W)
    kept = Prefixed(tiny("gpt2"), Vectors(mlp()))  # what it makes is all that is needed
    torch.testing.assert_close(
        kept(IDS, MASK).logits, Prefixed(tiny("gpt2"), mlp)(IDS, MASK).logits, rtol=0, atol=1e-12
    )


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "6438de1f")
def test_words_as_a_prefix_are_words_read_before(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    words = torch.tensor([11, 4, 30])
    for kind in ("gpt2", "llama"):
        model = tiny(kind)
        flat = activations(model, words)
        ids, mask = torch.cat([words.expand(2, -1), IDS], 1), torch.cat([torch.ones(2, 3).long(), MASK], 1)
        typed = model(input_ids=ids, attention_mask=mask).logits[:, 3:]
        torch.testing.assert_close(Prefixed(model, Vectors(flat))(IDS, MASK).logits, typed, rtol=0, atol=1e-10)
    assert activations(tiny("bert"), words).shape == (3, 96)
    with pytest.raises(ValueError, match="words as a prefix: not for an encoder-decoder"):
        activations(tiny("t5"), words)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "b26d2dcc")
def test_the_mlp_is_fitted_to_words(setup_11b921b4):
    IDS, MASK, _, _, tiny = setup_11b921b4
    model = tiny("gpt2")
    target = activations(model, torch.tensor([11, 4, 30, 7]))
    torch.manual_seed(0)
    mlp = PrefixMLP(torch.randn(4, 24, dtype=torch.float64), 16, 96)
    start, end = F.mse_loss(mlp(), target).item(), fit_prefix(mlp, target, 300)
    assert end < 0.01 * start
    exact = Prefixed(model, Vectors(target))(IDS, MASK).logits
    assert (Prefixed(model, mlp)(IDS, MASK).logits - exact).abs().mean() < 0.1 * (
        model(input_ids=IDS, attention_mask=MASK).logits - exact
    ).abs().mean()


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "f2f28957")
def test_a_shut_gate_is_a_no_op(setup_11b921b4, setup_1d39b060):
    IDS, MASK, _, _, tiny = setup_11b921b4
    few_steps, learners = setup_1d39b060
    for kind in ("gpt2", "llama", "bert"):
        model = tiny(kind)
        plain = model(input_ids=IDS, attention_mask=MASK).logits
        zero = Vectors(torch.zeros(5, kv_shape(model).width, dtype=torch.float64))
        assert (Prefixed(model, zero)(IDS, MASK).logits - plain).abs().max() > 0.01  # zeros are no no-op
        assert (
            Prefixed(model, zero, shift=False)(IDS, MASK).logits - plain
        ).abs().max() > 0.01  # and that is not the shift alone
        gated = Gated(model, Vectors(torch.randn(5, kv_shape(model).width)))
        torch.testing.assert_close(gated(IDS, MASK).logits, plain, rtol=0, atol=1e-12)
        assert learners(gated) == 5 * kv_shape(model).width + 2 * model.config.num_attention_heads
        gated(IDS, MASK).logits.square().sum().backward()
        assert (gated.gate.grad.abs() > 1e-6).all() and (
            gated.prefix.embedding.weight.grad == 0
        ).all()  # the gate moves first
        few_steps(gated, kind)
        assert (gated(IDS, MASK).logits - plain).abs().max() > 0.01 and (gated.prefix.embedding.weight.grad != 0).any()
    with pytest.raises(ValueError, match="a gated prefix: not for an encoder-decoder"):
        Gated(tiny("t5"), Vectors(torch.zeros(5, 96)))


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "5175bae9")
def test_a_gate_by_hand():
    one = torch.nn.Module()
    one.layer_idx, one.training, one.prefix_gate = 0, False, (torch.tensor([[0.7, 0.0]]), 2)
    q, k, v = torch.randn(3, 2, 4, 5), torch.randn(3, 1, 8, 5), torch.randn(3, 1, 8, 5)
    out, _ = gated_attention(one, q, k, v, None)
    prefix, words = (
        (q @ k[:, :, part].transpose(-1, -2) / 5**0.5).softmax(-1) @ v[:, :, part] for part in (slice(2), slice(2, 8))
    )
    torch.testing.assert_close(out[:, :, 0], (np.tanh(0.7) * prefix + words)[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(out[:, :, 1], words[:, 1], rtol=0, atol=1e-6)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "780f64da")
def test_what_the_contrasts_train(setup_11b921b4, setup_1d39b060):
    IDS, MASK, _, extra, tiny = setup_11b921b4
    _, learners = setup_1d39b060
    for kind, layers in (
        ("gpt2", [(24, 72)] * 2),
        ("bert", [(24, 24)] * 4),
        ("llama", [(24, 24), (24, 12)] * 2),
        ("t5", [(24, 24)] * 12),
    ):
        model = tiny(kind)
        plain = model(input_ids=IDS, attention_mask=MASK, **extra(kind)).logits
        found = lora_on(model, 3, alpha=6)
        assert len(found) == len(layers) and learners(model) == sum(3 * (i + o) for i, o in layers)  # r (in + out)
        torch.testing.assert_close(
            model(input_ids=IDS, attention_mask=MASK, **extra(kind)).logits, plain, rtol=0, atol=1e-12
        )
    with pytest.raises(ValueError, match="a bert without a layer named q_proj"):
        lora_on(tiny("bert"), 3, ["q_proj"])
    model = bitfit(tiny("bert"), "classifier")
    assert learners(model) == 24 + 2 * (4 * 24 + 24 + 30 + 24 + 24) + 24 + (
        24 * 4 + 4
    )  # norm; q k v o, two norms, two of the MLP; pooler; head
    assert learners(bitfit(tiny("gpt2"))) == 2 * (72 + 24 + 96 + 24 + 2 * 24) + 24


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "40673245")
def test_share():
    def share(n, P, s):
        return P / (P + n * np.exp(s))

    weights = torch.cat([torch.zeros(3), torch.full((7,), 0.4)]).softmax(0)
    assert share(7, 3, 0.4) == pytest.approx(weights[:3].sum().item(), abs=1e-6)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "40673245")
def test_share_starter_fails():
    def share(n, P, s):
        return 0.0

    with pytest.raises(Exception):
        weights = torch.cat([torch.zeros(3), torch.full((7,), 0.4)]).softmax(0)
        assert share(7, 3, 0.4) == pytest.approx(weights[:3].sum().item(), abs=1e-6)


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "6d4e6791")
def test_slope():
    def slope(n, P, s, b):
        taken = P * np.exp(b) / (P * np.exp(b) + n * np.exp(s))
        return taken * (1 - taken)

    bias = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    taken = torch.cat([bias.expand(3), torch.full((7,), 0.4, dtype=torch.float64)]).softmax(0)[:3].sum()
    assert (
        slope(7, 3, 0.4, -0.7) == pytest.approx(torch.autograd.grad(taken, bias)[0].item())
        and slope(7, 3, 0.4, -np.inf) == 0
    )


@pytest.mark.nb("nbs/5_prompting/21a_deep_prompts.ipynb", "6d4e6791")
def test_slope_starter_fails():
    def slope(n, P, s, b):
        return 1.0

    with pytest.raises(Exception):
        bias = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
        taken = torch.cat([bias.expand(3), torch.full((7,), 0.4, dtype=torch.float64)]).softmax(0)[:3].sum()
        assert (
            slope(7, 3, 0.4, -0.7) == pytest.approx(torch.autograd.grad(taken, bias)[0].item())
            and slope(7, 3, 0.4, -np.inf) == 0
        )
