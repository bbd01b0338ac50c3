"""Generated from nbs/1_foundations/03_attention.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
from torch import nn
from transformers import BertConfig
from transformers import GPT2Config
from transformers.models.bert.modeling_bert import BertAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from vlp_course.nn.encoders import Attention
from vlp_course.nn.encoders import sine_positions
from vlp_course.nn.attention import (
    AdditiveAttention,
    KeyValueCache,
    LearnedPositions,
    MultiHeadAttention,
    SinusoidalPositions,
    attend,
    attention_for,
    causal_mask,
    fused_attention,
    kernel_weights,
    masked_softmax,
    padding_mask,
    plain_attention,
    sinusoidal_positions,
)


@pytest.fixture(scope="module")
def setup_4ee19267():
    def slow_multi_head(layer, x, keys=None, values=None, mask=None):
        """Multi-head attention, one sample, head, query and key at a time."""
        keys = x if keys is None else keys
        values = keys if values is None else values
        q, k, v = layer.query(x), layer.key(keys), layer.value(values)
        size, joined = x.shape[-1] // layer.heads, torch.zeros_like(x)
        for b in range(len(x)):
            for h in range(layer.heads):
                part = slice(h * size, (h + 1) * size)
                for i in range(x.shape[1]):
                    seen = [
                        j for j in range(keys.shape[1]) if mask is None or mask.expand(len(x), x.shape[1], -1)[b, i, j]
                    ]
                    raw = [(q[b, i, part] @ k[b, j, part] / math.sqrt(size)).exp() for j in seen]
                    for j, weight in zip(seen, raw):
                        joined[b, i, part] += weight / sum(raw) * v[b, j, part]
        return layer.out(joined)

    return slow_multi_head


@pytest.fixture(scope="module")
def setup_f7f68519():
    def large(layer, seed=0):
        """The layer in float64 with large random weights and biases."""
        generator = torch.Generator().manual_seed(seed)
        for p in layer.double().parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        return layer

    def same_gradients(ours, theirs, inputs, pairs):
        """Both outputs, and their gradients for inputs and for pairs of parameters (ours, theirs), agree to 1e-12."""
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        left = torch.autograd.grad((ours * direction).sum(), [*inputs, *(p for p, _ in pairs)])
        right = torch.autograd.grad((theirs * direction).sum(), [*inputs, *(p for _, p in pairs)])
        torch.testing.assert_close(left, right, rtol=0, atol=1e-12)

    return large, same_gradients


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "e75e858c")
def test_masks_by_hand():
    assert causal_mask(3).int().tolist() == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert causal_mask(2, 4).int().tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]]]
    assert padding_mask(torch.tensor([2, 0]), 3).int().tolist() == [[[1, 1, 0]], [[0, 0, 0]]]
    scores = torch.tensor([[0.0, math.log(3), 7.0], [1.0, 2.0, 3.0]])
    found = masked_softmax(scores, torch.tensor([[True, True, False], [False, False, False]]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]))
    assert masked_softmax(torch.tensor([[-1e6, 0.0]]), torch.tensor([[True, False]])).tolist() == [
        [1.0, 0.0]
    ]  # however low the rest


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "3b143e54")
def test_masked_scores_are_not_there():
    scores = torch.randn(2, 4, 5, requires_grad=True)
    mask = torch.rand(2, 4, 5) < 0.6
    mask[0, 1] = False  # one query sees nothing
    weights = masked_softmax(scores, mask)
    (gradient,) = torch.autograd.grad(weights.square().sum(), scores)
    assert (weights[~mask] == 0).all() and (gradient[~mask] == 0).all() and gradient.isfinite().all()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float())
    assert masked_softmax(scores.masked_fill(~mask, 1e30), mask).equal(weights)  # whatever stands there
    half = masked_softmax(scores.half(), mask)
    assert half.isfinite().all() and half.dtype == torch.float16


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "aa50c7e1")
def test_wrong_masks():
    scores = torch.zeros(2, 4, 5)
    with pytest.raises(
        ValueError, match=r"shape \(4, 5\): expected \(2 or 1, 4 or 1, 5\), for batch, queries and keys"
    ):
        masked_softmax(scores, torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(2, 4, 1\): expected \(2 or 1, 4 or 1, 5\)"):
        masked_softmax(scores, torch.ones(2, 4, 1, dtype=torch.bool))
    for wrong in ((3, 4, 5), (2, 3, 5), (2, 4, 5, 5), (5,)):
        with pytest.raises(ValueError, match=r"expected \(2 or 1, 4 or 1, 5\)"):
            masked_softmax(scores, torch.ones(wrong, dtype=torch.bool))
    with pytest.raises(ValueError, match="the mask holds torch.float32: expected torch.bool"):
        masked_softmax(scores, torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="4 queries need at least as many keys, not 3"):
        causal_mask(4, 3)
    with pytest.raises(ValueError, match="lengths from 2 to 6 do not fit into 5 tokens"):
        padding_mask(torch.tensor([2, 6]), 5)
    with pytest.raises(ValueError, match="lengths from -1 to 2 do not fit"):
        padding_mask(torch.tensor([2, -1]), 5)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "3b8fc1ba")
def test_kernel_by_hand():
    found = kernel_weights(torch.tensor([0.0]), torch.tensor([0.0, 2.0]), width=2 / math.sqrt(2 * math.log(4)))
    torch.testing.assert_close(found, torch.tensor([[0.8, 0.2]]))  # the far point weighs a quarter of the near one
    x = torch.linspace(0, 5, 7)
    torch.testing.assert_close(kernel_weights(x, x, 1e6), torch.full((7, 7), 1 / 7))  # wide: average pooling
    torch.testing.assert_close(kernel_weights(x, x, 1e-3), torch.eye(7))  # narrow: the nearest point
    assert (kernel_weights(x, x, 1.0, ~torch.eye(7, dtype=torch.bool)).diagonal() == 0).all()
    with pytest.raises(ValueError, match="width 0: a kernel needs a width above 0"):
        kernel_weights(x, x, 0.0)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "d0568201")
def test_scores_by_hand():
    q, k, v = (
        torch.tensor([[[[2 * math.log(3), 0.0, 0.0, 0.0]]]]),
        torch.eye(4)[None, None, :2],
        torch.tensor([[[[1.0], [5.0]]]]),
    )
    assert attend(q, k, v).item() == pytest.approx(0.75 * 1 + 0.25 * 5)  # scores 2 log 3 / sqrt(4) and 0
    layer = AdditiveAttention(1, 2, 1)
    (
        layer.query.weight.data.fill_(1.0),
        layer.key.weight.data.copy_(torch.tensor([[1.0, 0.0]])),
        layer.score.weight.data.fill_(2.0),
    )
    keys = torch.tensor([[[0.0, 9.0], [math.atanh(math.log(3) / 2), -9.0]]])
    found = layer(torch.zeros(1, 1, 1), keys, torch.tensor([[[1.0], [5.0]]]))
    assert found.item() == pytest.approx(0.25 * 1 + 0.75 * 5)  # scores 0 and 2 tanh(...) = log 3


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "3478d983")
def test_additive_equals_loops():
    layer = AdditiveAttention(6, 7, 8).double()
    q, k, v = (torch.randn(*size, dtype=torch.float64) for size in ((2, 4, 6), (2, 5, 7), (2, 5, 3)))
    mask = padding_mask(torch.tensor([5, 3]), 5)
    expected = torch.zeros(2, 4, 3, dtype=torch.float64)
    for b in range(2):
        for i in range(4):
            seen = [j for j in range(5) if mask[b, 0, j]]
            scores = torch.stack(
                [
                    layer.score.weight[0] @ torch.tanh(layer.query.weight @ q[b, i] + layer.key.weight @ k[b, j])
                    for j in seen
                ]
            )
            expected[b, i] = sum(weight * v[b, j] for weight, j in zip(scores.softmax(0), seen))
    torch.testing.assert_close(layer(q, k, v, mask), expected, rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "8de2458c")
def test_plain_and_fused_agree():
    assert attention_for("cuda") is fused_attention and attention_for("cpu") is plain_attention
    q, k, v = (torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True) for size in ((4, 5), (7, 5), (7, 6)))
    blind = torch.rand(2, 4, 7) < 0.5
    blind[0, 1] = False  # a query that sees nothing
    for mask in (None, padding_mask(torch.tensor([7, 2]), 7), causal_mask(4, 7), blind):
        both = [form(q, k, v, mask) for form in (plain_attention, fused_attention)]
        torch.testing.assert_close(*both, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in both]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)
    assert (both[0][0, :, 1] == 0).all() and (grads[0][0][0, :, 1] == 0).all()  # zeros, and no gradient
    for form in (plain_attention, fused_attention):
        with pytest.raises(ValueError, match=r"shape \(2, 7\): expected \(2 or 1, 4 or 1, 7\)"):
            form(q, k, v, torch.ones(2, 7, dtype=torch.bool))


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "6f82d101")
def test_heads_equal_loops(setup_4ee19267):
    slow_multi_head = setup_4ee19267
    layer = MultiHeadAttention(15, 3, key_dim=7, value_dim=8).double()
    x, keys, values = (torch.randn(*size, dtype=torch.float64) for size in ((2, 4, 15), (2, 6, 7), (2, 6, 8)))
    free = torch.rand(2, 4, 6) < 0.5
    free[1, 2] = False
    for mask in (None, padding_mask(torch.tensor([2, 6]), 6), causal_mask(4, 6), free):
        torch.testing.assert_close(
            layer(x, keys, values, mask), slow_multi_head(layer, x, keys, values, mask), rtol=0, atol=1e-12
        )
    torch.testing.assert_close(layer(x, keys, values, free)[1, 2], layer.out.bias)  # it saw nothing
    alone = MultiHeadAttention(15, 3, bias=False).double()
    assert len(list(alone.parameters())) == 4
    torch.testing.assert_close(alone(x), slow_multi_head(alone, x), rtol=0, atol=1e-12)
    torch.testing.assert_close(alone(x), alone(x, x, x), rtol=0, atol=0)
    assert alone.weights(x).shape == (2, 3, 4, 4) and layer.weights(x, keys, free)[1, :, 2].sum() == 0


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "545806c3")
def test_order_does_not_matter():
    layer, order = MultiHeadAttention(12, 3).double(), torch.randperm(5)
    x, context = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-12)  # equivariant
    torch.testing.assert_close(layer(x, context[:, order]), layer(x, context), rtol=0, atol=1e-12)  # invariant


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "2894495d")
def test_masked_keys_leak_nothing():
    layer, x = MultiHeadAttention(12, 3), torch.randn(2, 4, 12)
    context, mask = torch.randn(2, 5, 12, requires_grad=True), padding_mask(torch.tensor([3, 5]), 5)
    found = layer(x, context, mask=mask)
    (gradient,) = torch.autograd.grad(found.square().sum(), context)
    assert (gradient[~mask[:, 0]] == 0).all() and (gradient[mask[:, 0]].abs().sum(-1) > 0).all()
    assert layer(x, context.detach().masked_fill(~mask[:, 0, :, None], 1e6), mask=mask).equal(found)
    torch.testing.assert_close(layer(x[:1], context[:1, :3]), found[:1])  # as if the padding were cut off
    later = x.clone()
    later[:, 2:] += 1
    assert layer(x, mask=causal_mask(4))[:, :2].equal(layer(later, mask=causal_mask(4))[:, :2])


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "d14f87d9")
def test_a_blind_row_spoils_nothing():
    layer = MultiHeadAttention(12, 3)
    x = torch.randn(2, 4, 12, requires_grad=True)
    nothing = padding_mask(torch.tensor([0, 3]), 4)  # the first sample is all padding
    layer(x, mask=nothing).square().sum().backward()
    assert x.grad.isfinite().all() and (x.grad[0] == 0).all() and (x.grad[1] != 0).any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, mask=nothing)
    torch.testing.assert_close(half.float(), layer(x, mask=nothing), rtol=0, atol=2e-2)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "b5aa32f0")
def test_cache_equals_the_whole():
    layer, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    whole, cache = layer(x, mask=causal_mask(5)), KeyValueCache()
    steps = [layer(x[:, :2], mask=causal_mask(2), cache=cache)] + [
        layer(x[:, t : t + 1], cache=cache) for t in (2, 3, 4)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-12)
    assert len(cache) == 5
    cache.select(torch.tensor([1, 1, 0]))  # beams: the second sample twice, then the first
    word = torch.randn(3, 1, 12, dtype=torch.float64)
    again = layer(torch.cat([x[[1, 1, 0]], word], 1), mask=causal_mask(6))[:, -1:]
    torch.testing.assert_close(layer(word, cache=cache), again, rtol=0, atol=1e-12)
    picture_cache, context = KeyValueCache(), torch.randn(2, 7, 12, dtype=torch.float64)
    for t in range(3):  # cross-attention: filled once, never grows
        found = layer(x[:, t : t + 1], context, cache=picture_cache)
        torch.testing.assert_close(found, layer(x[:, t : t + 1], context), rtol=0, atol=1e-12)
    assert len(picture_cache) == 7


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "82cc3051")
def test_misuse_of_heads_and_cache():
    with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
        MultiHeadAttention(10, 3)
    with pytest.raises(ValueError, match="width 12 is not a multiple of 0 heads"):
        MultiHeadAttention(12, 0)
    layer, cache = MultiHeadAttention(12, 3), KeyValueCache()
    layer(torch.zeros(2, 5, 12), cache=cache)
    with pytest.raises(ValueError, match="the cache holds a batch of 2, not of 3"):
        layer(torch.zeros(3, 1, 12), cache=cache)
    with pytest.raises(ValueError, match="the cache is of another context: 2 x 5 keys, not 2 x 6"):
        layer(torch.zeros(2, 1, 12), torch.zeros(2, 6, 12), cache=cache)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1\): expected \(2 or 1, 1 or 1, 6\)"):
        layer(torch.zeros(2, 1, 12), mask=causal_mask(1), cache=cache)  # forgot the five keys in the cache


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "8d4c1797")
def test_heads_equal_torch(setup_f7f68519):
    large, same_gradients = setup_f7f68519
    ours = large(MultiHeadAttention(15, 3, key_dim=7, value_dim=8))
    theirs = nn.MultiheadAttention(15, 3, kdim=7, vdim=8, batch_first=True).double()
    for their_weight, part in zip(
        (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight), (ours.query, ours.key, ours.value)
    ):
        their_weight.data = part.weight.detach().clone()
    theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]).detach()
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    pairs = [
        (ours.query.weight, theirs.q_proj_weight),
        (ours.key.weight, theirs.k_proj_weight),
        (ours.value.weight, theirs.v_proj_weight),
        (ours.out.weight, theirs.out_proj.weight),
        (ours.out.bias, theirs.out_proj.bias),
    ]
    x, keys, values = inputs = [
        torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 4, 15), (2, 6, 7), (2, 6, 8))
    ]
    padding, free = padding_mask(torch.tensor([4, 6]), 6), torch.rand(1, 4, 6) < 0.6
    free[..., 0] = True
    expected, weights = theirs(
        x, keys, values, key_padding_mask=~padding[:, 0], attn_mask=~free[0], average_attn_weights=False
    )
    same_gradients(ours(x, keys, values, padding & free), expected, inputs, pairs)
    torch.testing.assert_close(ours.weights(x, keys, padding & free), weights, rtol=0, atol=1e-12)
    same_gradients(ours(x, keys, values), theirs(x, keys, values, need_weights=False)[0], inputs, pairs)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "98d89ccb")
def test_heads_equal_bert(setup_f7f68519):
    large, same_gradients = setup_f7f68519
    ours = large(MultiHeadAttention(15, 3))
    config = BertConfig(
        hidden_size=15, num_attention_heads=3, attention_probs_dropout_prob=0.0, attn_implementation="eager"
    )
    theirs = BertAttention(config).double()
    parts = [
        (ours.query, theirs.self.query),
        (ours.key, theirs.self.key),
        (ours.value, theirs.self.value),
        (ours.out, theirs.output.dense),
    ]
    for part, their_part in parts:
        their_part.load_state_dict(part.state_dict())
    x, mask = torch.randn(2, 5, 15, dtype=torch.float64, requires_grad=True), padding_mask(torch.tensor([3, 5]), 5)
    added = torch.zeros(2, 1, 1, 5, dtype=torch.float64).masked_fill(~mask[:, None], torch.finfo(torch.float64).min)
    expected = theirs.output.dense(theirs.self(x, attention_mask=added)[0])
    pairs = [(a, b) for part, their_part in parts for a, b in zip(part.parameters(), their_part.parameters())]
    same_gradients(ours(x, mask=mask), expected, [x], pairs)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "c458c74a")
def test_heads_equal_gpt2(setup_f7f68519):
    large, same_gradients = setup_f7f68519
    ours = large(MultiHeadAttention(15, 3))
    config = GPT2Config(
        n_embd=15, n_head=3, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="sdpa"
    )  # it is causal by itself
    theirs = GPT2Attention(config, layer_idx=0).double()
    theirs.c_attn.weight.data = torch.cat([p.weight.T for p in (ours.query, ours.key, ours.value)], 1).detach()
    theirs.c_attn.bias.data = torch.cat([p.bias for p in (ours.query, ours.key, ours.value)]).detach()
    theirs.c_proj.weight.data, theirs.c_proj.bias.data = (
        ours.out.weight.T.detach().clone(),
        ours.out.bias.detach().clone(),
    )
    x = torch.randn(2, 5, 15, dtype=torch.float64, requires_grad=True)
    same_gradients(ours(x, mask=causal_mask(5)), theirs(x)[0], [x], [(ours.out.bias, theirs.c_proj.bias)])
    direction = torch.randn(2, 5, 15, dtype=torch.float64)
    left = torch.autograd.grad(
        (ours(x, mask=causal_mask(5)) * direction).sum(),
        [p.weight for p in (ours.query, ours.key, ours.value, ours.out)],
    )
    right = torch.autograd.grad((theirs(x)[0] * direction).sum(), [theirs.c_attn.weight, theirs.c_proj.weight])
    torch.testing.assert_close(torch.cat(left[:3]).T, right[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(left[3].T, right[1], rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "f99aec36")
def test_heads_equal_10a(setup_f7f68519):
    large, _ = setup_f7f68519
    small, ours = large(Attention(12, 3)), MultiHeadAttention(12, 3).double()
    ours.load_state_dict(small.state_dict())
    x, context = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    mask = padding_mask(torch.tensor([3, 5]), 5)
    torch.testing.assert_close(ours(x, context, mask=mask), small(x, context, mask), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "6f285a78")
def test_positions_by_hand():
    found = sinusoidal_positions(3, 4)
    expected = [[math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]]
    (
        torch.testing.assert_close(found[2:], torch.tensor(expected)),
        torch.testing.assert_close(found[0], torch.tensor([0.0, 1, 0, 1])),
    )
    torch.testing.assert_close(
        sinusoidal_positions(24, 128), sine_positions(24, 128), rtol=0, atol=1e-5
    )  # those of 10a
    assert sinusoidal_positions(5001, 6)[5000, 2].item() == pytest.approx(
        math.sin(5000 * 10000 ** (-1 / 3)), abs=1e-6
    )  # far out, too
    assert LearnedPositions(400, 12).table.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "3ea5b592")
def test_a_shift_is_a_rotation():
    table = sinusoidal_positions(60, 16).double()
    turn = 7 * 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)  # by how much 7 places turn each hand
    rotation = torch.block_diag(
        *(torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) for a in turn.tolist())
    ).double()
    torch.testing.assert_close(table[7:], table[:-7] @ rotation.T, rtol=0, atol=1e-5)  # the same matrix for all places
    near = table @ table.T
    for distance in (0, 1, 5, 30):
        line = near.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-5)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "87513c24")
def test_places_must_exist():
    x = torch.zeros(2, 3, 12)
    for places in (LearnedPositions(5, 12), SinusoidalPositions(5, 12)):
        assert places(x.bfloat16()).dtype == torch.bfloat16
        assert places(x, start=2).equal(places.table[2:5].expand(2, 3, 12))
        assert torch.cat([places(x[:, :2]), places(x[:, 2:], start=2)], 1).equal(places(x))
        with pytest.raises(ValueError, match="tokens 3 to 5 need places that are not there: the table holds 0 to 4"):
            places(x, start=3)
        with pytest.raises(ValueError, match="tokens -1 to 1 need places"):
            places(x, start=-1)
    assert len(SinusoidalPositions(5, 12).state_dict()) == 0 and LearnedPositions(5, 12).table.requires_grad
    with pytest.raises(ValueError, match="width 7 is odd"):
        sinusoidal_positions(4, 7)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "55232de3")
def test_idle_parameter():
    def idle_parameter():
        return "key.bias"  # adds the same q^T b to all scores of a query, and softmax does not see that

    layer, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    before = layer(x)
    for name, p in layer.named_parameters():
        if name.endswith("bias"):
            kept = p.data.clone()
            p.data = torch.randn_like(p)
            assert torch.allclose(layer(x), before, rtol=0, atol=1e-12) == (name == idle_parameter())
            p.data = kept


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "55232de3")
def test_idle_parameter_starter_fails():
    def idle_parameter():
        return "query.bias"

    with pytest.raises(Exception):
        layer, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
        before = layer(x)
        for name, p in layer.named_parameters():
            if name.endswith("bias"):
                kept = p.data.clone()
                p.data = torch.randn_like(p)
                assert torch.allclose(layer(x), before, rtol=0, atol=1e-12) == (name == idle_parameter())
                p.data = kept


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "d598676a")
def test_window_mask():
    def window_mask(tokens, radius):
        place = torch.arange(tokens)
        return ((place[:, None] - place).abs() <= radius)[None]

    assert window_mask(4, 1).int().tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]]
    layer, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, mask=window_mask(7, 9)), layer(x), rtol=0, atol=1e-12)
    far = x.clone()
    far[:, 5:] += 1
    assert layer(far, mask=window_mask(7, 2))[:, :3].equal(layer(x, mask=window_mask(7, 2))[:, :3])


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "d598676a")
def test_window_mask_starter_fails():
    def window_mask(tokens, radius):
        return causal_mask(tokens)

    with pytest.raises(Exception):
        assert window_mask(4, 1).int().tolist() == [[[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]]
        layer, x = MultiHeadAttention(12, 3).double(), torch.randn(2, 7, 12, dtype=torch.float64)
        torch.testing.assert_close(layer(x, mask=window_mask(7, 9)), layer(x), rtol=0, atol=1e-12)
        far = x.clone()
        far[:, 5:] += 1
        assert layer(far, mask=window_mask(7, 2))[:, :3].equal(layer(x, mask=window_mask(7, 2))[:, :3])


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "0daf2548")
def test_streamed():
    def streamed(q, k, v, block=3):
        largest, total, mixed = torch.full((*q.shape[:3], 1), -math.inf, dtype=q.dtype), 0.0, 0.0
        for n in range(0, k.shape[2], block):
            scores = q @ k[:, :, n : n + block].transpose(-1, -2) * q.shape[-1] ** -0.5
            grown = torch.maximum(largest, scores.amax(-1, keepdim=True))
            shrink, weights = (largest - grown).exp(), (scores - grown).exp()
            total, mixed, largest = (
                total * shrink + weights.sum(-1, keepdim=True),
                mixed * shrink + weights @ v[:, :, n : n + block],
                grown,
            )
        return mixed / total

    q, k, v = (5 * torch.randn(2, 3, *size, dtype=torch.float64) for size in ((4, 5), (8, 5), (8, 6)))
    for block in (1, 3, 8):
        torch.testing.assert_close(streamed(q, k, v, block), attend(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "0daf2548")
def test_streamed_starter_fails():
    def streamed(q, k, v, block=3):
        outputs = [attend(q, k[:, :, n : n + block], v[:, :, n : n + block]) for n in range(0, k.shape[2], block)]
        return sum(outputs) / len(outputs)

    with pytest.raises(Exception):
        q, k, v = (5 * torch.randn(2, 3, *size, dtype=torch.float64) for size in ((4, 5), (8, 5), (8, 6)))
        for block in (1, 3, 8):
            torch.testing.assert_close(streamed(q, k, v, block), attend(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "8d846a74")
def test_places():
    def places(tokens):
        zeros = torch.zeros(1, 1, tokens, 2)
        first = (torch.arange(tokens) == 0).float()[None, None, :, None]
        return (
            1 / attend(zeros, zeros, first, causal_mask(tokens))[0, 0, :, 0] - 1
        )  # place p sees the first with 1 / (p + 1)

    torch.testing.assert_close(places(9), torch.arange(9.0))


@pytest.mark.nb("nbs/1_foundations/03_attention.ipynb", "8d846a74")
def test_places_starter_fails():
    def places(tokens):
        zeros = torch.zeros(1, 1, tokens, 2)
        first = (torch.arange(tokens) == 0).float()[None, None, :, None]
        return attend(zeros, zeros, first)[0, 0, :, 0]

    with pytest.raises(Exception):
        torch.testing.assert_close(places(9), torch.arange(9.0))
