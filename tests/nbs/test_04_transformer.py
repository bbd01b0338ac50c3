"""Generated from nbs/1_foundations/04_transformer.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from functools import partial
from torch import nn
from transformers import BertConfig
from transformers import BertModel
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from vlp_course.nn.attention import causal_mask
from vlp_course.nn.attention import padding_mask
from vlp_course.nn.transformer import (
    Decoder,
    DecoderState,
    Encoder,
    TextDecoder,
    TokenEmbedding,
    Transformer,
    smoothed_loss,
    warmup_rate,
)


@pytest.fixture(scope="module")
def setup_54d44321():
    def large(model, seed=0, scale=0.5):
        """The model in float64 with large random weights, biases and norms; its dropout off."""
        g = torch.Generator().manual_seed(seed)
        for p in model.double().parameters():
            p.data = scale * torch.randn(p.shape, generator=g, dtype=torch.float64)
        return model.eval()

    def slow_norm(norm, x):
        mean = sum(x) / len(x)
        variance = sum((v - mean) ** 2 for v in x) / len(x)
        return torch.stack(
            [(v - mean) / (variance + norm.eps).sqrt() * w + b for v, w, b in zip(x, norm.weight, norm.bias)]
        )

    def slow_attention(layer, asks, told):
        """One sample, head and query at a time; the queries are told of nothing else."""
        size, outputs = len(asks[0]) // layer.heads, []
        for x in asks:
            parts = []
            for h in range(layer.heads):
                cut = slice(h * size, (h + 1) * size)
                scores = [layer.query(x)[cut] @ layer.key(t)[cut] / math.sqrt(size) for t in told]
                total = sum(s.exp() for s in scores)
                parts.append(sum(s.exp() / total * layer.value(t)[cut] for s, t in zip(scores, told)))
            outputs.append(layer.out(torch.cat(parts)))
        return outputs

    def slow_layer(layer, xs, context=None):
        """A layer of an encoder, or (with a context) of a decoder, on a list of tokens."""

        def net(x):
            return layer.feed_forward.down(layer.feed_forward.activation(layer.feed_forward.up(x)))

        def causal(ys):
            return [slow_attention(layer.attention, [y], ys[: n + 1])[0] for n, y in enumerate(ys)]

        looks = [(layer.norm1, causal if context else lambda ys: slow_attention(layer.attention, ys, ys))]
        looks += [(layer.norm_cross, lambda ys: slow_attention(layer.cross, ys, context))] if context else []
        for norm, sublayer in [*looks, (layer.norm2, lambda ys: [net(y) for y in ys])]:
            if layer.pre_norm:
                xs = [x + y for x, y in zip(xs, sublayer([slow_norm(norm, x) for x in xs]))]
            else:
                xs = [slow_norm(norm, x + y) for x, y in zip(xs, sublayer(xs))]
        return xs

    def slow_transformer(model, source, target):
        """Scores for one source and one target without padding."""
        dim = model.embed.table.embedding_dim

        def embed(ids):
            waves = [
                [f(p / 10000 ** (i / dim)) for i in range(0, dim, 2) for f in (math.sin, math.cos)]
                for p in range(len(ids))
            ]
            return [
                math.sqrt(dim) * model.embed.table.weight[i] + torch.tensor(w, dtype=torch.float64)
                for i, w in zip(ids, waves)
            ]

        last = (
            (lambda norm, xs: [slow_norm(norm, x) for x in xs])
            if isinstance(model.encoder.norm, nn.LayerNorm)
            else lambda norm, xs: xs
        )
        xs = embed(source)
        for layer in model.encoder.layers:
            xs = slow_layer(layer, xs)
        context, ys = last(model.encoder.norm, xs), embed(target)
        for layer in model.writer.decoder.layers:
            ys = slow_layer(layer, ys, context)
        return torch.stack([model.embed.table.weight @ y for y in last(model.writer.decoder.norm, ys)])

    return large, slow_transformer


@pytest.fixture(scope="module")
def setup_b0457e41():
    def same(ours, theirs, inputs, pairs):
        """Outputs and gradients agree to 1e-10. A pair holds a list of our tensors and the one of theirs that holds them all."""
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        left = torch.autograd.grad((ours * direction).sum(), [*inputs, *(p for many, _ in pairs for p in many)])
        right = torch.autograd.grad((theirs * direction).sum(), [*inputs, *(p for _, p in pairs)])
        torch.testing.assert_close(left[: len(inputs)], right[: len(inputs)], rtol=0, atol=1e-10)
        rest = iter(left[len(inputs) :])
        for (many, theirs), expected in zip(pairs, right[len(inputs) :]):
            joined = torch.cat([next(rest) for _ in many])
            torch.testing.assert_close(
                joined if joined.shape == expected.shape else joined.T, expected, rtol=0, atol=1e-10
            )

    def give(pairs):
        """Writes our weights into theirs."""
        for many, theirs in pairs:
            joined = torch.cat([p.detach() for p in many])
            theirs.data = (joined if joined.shape == theirs.shape else joined.T).clone()

    def both(ours, theirs):
        return [([ours.weight], theirs.weight), ([ours.bias], theirs.bias)]

    return both, give, same


@pytest.fixture(scope="module")
def setup_1589a070(setup_b0457e41):
    both, _, _ = setup_b0457e41

    def torch_attention(ours, theirs):
        three = (ours.query, ours.key, ours.value)
        return [
            ([p.weight for p in three], theirs.in_proj_weight),
            ([p.bias for p in three], theirs.in_proj_bias),
            *both(ours.out, theirs.out_proj),
        ]

    def torch_pairs(ours, theirs):
        """Our stack's parameters and those of torch's."""
        pairs = both(ours.norm, theirs.norm)
        for a, b in zip(ours.layers, theirs.layers):
            pairs += torch_attention(a.attention, b.self_attn) + both(a.norm1, b.norm1)
            pairs += both(a.feed_forward.up, b.linear1) + both(a.feed_forward.down, b.linear2)
            if hasattr(a, "cross"):
                pairs += (
                    torch_attention(a.cross, b.multihead_attn) + both(a.norm_cross, b.norm2) + both(a.norm2, b.norm3)
                )
            else:
                pairs += both(a.norm2, b.norm2)
        return pairs

    return torch_pairs


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "ea393913")
def test_transformer_equals_loops(setup_54d44321):
    large, slow_transformer = setup_54d44321
    for pre_norm in (True, False):
        model = large(Transformer(11, 12, 3, 2, 20, places=9, pre_norm=pre_norm), scale=0.3)
        model.embed.places.table = model.embed.places.table.double()
        source, target = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]), torch.tensor([[5, 3, 5, 8], [7, 9, 0, 0]])
        found = model(source, target)
        with torch.no_grad():
            torch.testing.assert_close(
                found[0], slow_transformer(model, [3, 1, 4, 1, 5], [5, 3, 5, 8]), rtol=0, atol=1e-6
            )
            torch.testing.assert_close(
                found[1, :2], slow_transformer(model, [9, 2, 6], [7, 9]), rtol=0, atol=1e-6
            )  # no padding there


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "fa29f777")
def test_stacks_equal_torch(setup_b0457e41, setup_54d44321, setup_1589a070):
    _, give, same = setup_b0457e41
    large, _ = setup_54d44321
    torch_pairs = setup_1589a070
    for pre_norm in (True, False):
        options = {"pre_norm": pre_norm, "final_norm": True, "activation": F.relu, "eps": 1e-5}
        encoder, decoder = large(Encoder(15, 3, 2, 20, **options)), large(Decoder(15, 3, 2, 20, **options), seed=1)
        theirs = nn.Transformer(15, 3, 2, 2, 20, dropout=0.0, norm_first=pre_norm, batch_first=True).double()
        pairs = torch_pairs(encoder, theirs.encoder) + torch_pairs(decoder, theirs.decoder)
        give(pairs)
        assert sum(p.numel() for p in theirs.parameters()) == sum(
            p.numel() for stack in (encoder, decoder) for p in stack.parameters()
        )
        x, y = inputs = [torch.randn(2, n, 15, dtype=torch.float64, requires_grad=True) for n in (6, 4)]
        mask = padding_mask(torch.tensor([4, 6]), 6)
        expected = theirs(
            x, y, tgt_mask=~causal_mask(4)[0], src_key_padding_mask=~mask[:, 0], memory_key_padding_mask=~mask[:, 0]
        )
        same(decoder(y, encoder(x, mask), mask), expected, inputs, pairs)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "2aefb87d")
def test_encoder_equals_bert(setup_b0457e41, setup_54d44321):
    both, give, same = setup_b0457e41
    large, _ = setup_54d44321
    config = BertConfig(
        vocab_size=17,
        hidden_size=15,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=9,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    theirs = BertModel(config).double()
    embed, norm = large(TokenEmbedding(17, 15, 9, learned=True, scale=False)), large(nn.LayerNorm(15, 1e-12), seed=1)
    encoder = large(Encoder(15, 3, 2, 20, pre_norm=False, eps=1e-12), seed=2)
    pairs = [
        ([embed.table.weight], theirs.embeddings.word_embeddings.weight),
        ([embed.places.table], theirs.embeddings.position_embeddings.weight),
    ]
    pairs += both(norm, theirs.embeddings.LayerNorm)
    for a, b in zip(encoder.layers, theirs.encoder.layer):
        pairs += both(a.attention.query, b.attention.self.query) + both(a.attention.key, b.attention.self.key)
        pairs += both(a.attention.value, b.attention.self.value) + both(a.attention.out, b.attention.output.dense)
        pairs += both(a.norm1, b.attention.output.LayerNorm) + both(a.norm2, b.output.LayerNorm)
        pairs += both(a.feed_forward.up, b.intermediate.dense) + both(a.feed_forward.down, b.output.dense)
    give(pairs)
    theirs.embeddings.token_type_embeddings.weight.data.zero_()  # one kind of text
    ids, mask = (
        torch.randint(1, 17, (2, 7)),
        padding_mask(torch.tensor([4, 7]), 7),
    )  # 0 is its padding, and gets no gradient there
    expected = theirs(ids, attention_mask=mask[:, 0].long()).last_hidden_state
    same(encoder(norm(embed(ids)), mask), expected, [], pairs)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "5cda8aa4")
def test_decoder_equals_gpt2(setup_b0457e41, setup_54d44321):
    both, give, same = setup_b0457e41
    large, _ = setup_54d44321
    config = GPT2Config(
        vocab_size=17,
        n_embd=15,
        n_layer=2,
        n_head=3,
        n_inner=20,
        n_positions=9,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
        bos_token_id=1,
        eos_token_id=2,
    )
    theirs = GPT2LMHeadModel(config).double()
    embed = TokenEmbedding(17, 15, 9, learned=True, scale=False)
    decoder = Decoder(15, 3, 2, 20, cross=False, activation=partial(F.gelu, approximate="tanh"))
    ours = large(TextDecoder(embed, decoder))
    pairs = [
        ([embed.table.weight], theirs.transformer.wte.weight),
        ([embed.places.table], theirs.transformer.wpe.weight),
    ]
    pairs += both(decoder.norm, theirs.transformer.ln_f)
    for a, b in zip(decoder.layers, theirs.transformer.h):
        three = (a.attention.query, a.attention.key, a.attention.value)
        pairs += [([p.weight for p in three], b.attn.c_attn.weight), ([p.bias for p in three], b.attn.c_attn.bias)]
        pairs += both(a.norm1, b.ln_1) + both(a.norm2, b.ln_2) + [([a.attention.out.bias], b.attn.c_proj.bias)]
        pairs += both(a.feed_forward.up, b.mlp.c_fc) + both(a.feed_forward.down, b.mlp.c_proj)
    give(pairs)
    for a, b in zip(
        decoder.layers, theirs.transformer.h
    ):  # square, so that `give` cannot see that it is transposed there
        b.attn.c_proj.weight.data = a.attention.out.weight.detach().T.clone()
    ids = torch.randint(17, (2, 7))
    same(ours(ids), theirs(ids).logits, [], pairs)  # causal, and tied: one table in, one table out


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "84bb3415")
def test_nothing_leaks():
    model = Transformer(11, 12, 3, 2, places=9).eval()
    source, target = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]), torch.tensor([[5, 3, 5, 8], [7, 9, 2, 1]])
    found = model(source, target)
    later = target.clone()
    later[:, 2:] = 10
    assert model(source, later)[:, :2].equal(found[:, :2]) and not model(source, later)[:, 2].equal(found[:, 2])
    torch.testing.assert_close(model(source[1:, :3], target[1:]), found[1:])  # padding is as if it were cut off
    changed = source.clone()
    changed[0, 4] = 6
    assert not model(changed, target)[0, 0].equal(
        found[0, 0]
    )  # the last word of the source reaches the first of the target


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "9da9d441")
def test_state_equals_the_whole(setup_54d44321):
    large, _ = setup_54d44321
    for pre_norm in (True, False):
        model = large(Transformer(11, 12, 3, 2, places=9, pre_norm=pre_norm), scale=0.3)
        model.embed.places.table = model.embed.places.table.double()
        source, target = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]]), torch.tensor([[5, 3, 5, 8], [7, 9, 2, 1]])
        whole, state = model(source, target), model.state(source)
        for n in (2, 3):  # two tokens at once, then one
            torch.testing.assert_close(state.logits(target[:, :n]), whole[:, n - 1], rtol=0, atol=1e-10)
        rows = torch.tensor([1, 0, 1])
        state.select(rows)
        torch.testing.assert_close(state.logits(target[rows]), whole[rows, 3], rtol=0, atol=1e-10)
        with pytest.raises(ValueError, match="4 tokens are read already: a prefix of 4 brings no new one"):
            state.logits(target[rows])
    one = model.state(source[:1])
    one.select(torch.tensor([0, 0, 0]))  # before anything is read
    torch.testing.assert_close(one.logits(target[:1, :1].expand(3, 1)), whole[[0, 0, 0], 0], rtol=0, atol=1e-10)
    alone = TextDecoder(TokenEmbedding(11, 12, 9), Decoder(12, 3, 2, cross=False)).eval()
    state = DecoderState(alone)
    steps = [state.logits(target[:, :n]) for n in (1, 2, 3, 4)]
    torch.testing.assert_close(torch.stack(steps, 1), alone(target), rtol=0, atol=1e-5)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "ad893a43")
def test_embedding_by_hand():
    embed = TokenEmbedding(7, 4, 5)
    embed.table.weight.data[3] = torch.tensor([1.0, 2, 3, 4])
    expected = 2 * torch.tensor([1.0, 2, 3, 4]) + torch.tensor(
        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]
    )
    (
        torch.testing.assert_close(embed(torch.tensor([[0, 3]]))[0, 1], expected),
        torch.testing.assert_close(embed(torch.tensor([[3]]), start=1)[0, 0], expected),
    )
    wide = TokenEmbedding(400, 64, 5)
    assert (wide.scale * wide.table(torch.arange(400))).std().item() == pytest.approx(1, abs=0.03)
    model = Transformer(7, 12, 3, 1)
    assert sum(p.shape == (7, 12) for p in model.parameters()) == 1  # one table for source, target and output
    drop = TokenEmbedding(7, 4, 5, dropout=0.5)
    assert (drop(torch.arange(5)[None]) == 0).any() and not (drop.eval()(torch.arange(5)[None]) == 0).all(-1).any()


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "90692c8b")
def test_misuse():
    model = Transformer(11, 12, 3, 2, places=5)
    long = torch.ones(2, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="tokens 0 to 5 need places that are not there: the table holds 0 to 4"):
        model(long, long[:, :3])
    with pytest.raises(ValueError, match="tokens 0 to 5 need places"):
        model(long[:, :3], long)
    state = model.state(long[:, :3])
    state.logits(long[:, :5])
    with pytest.raises(ValueError, match="tokens 5 to 5 need places"):
        state.logits(long)  # cached steps count too
    with pytest.raises(ValueError, match="ids from 1 to 11: the vocabulary holds 0 to 10"):
        model(long[:, :3], torch.tensor([[1, 11], [1, 1]]))
    with pytest.raises(ValueError, match="this decoder attends to a context: give one"):
        Decoder(12, 3, 1)(torch.zeros(2, 5, 12))
    with pytest.raises(ValueError, match="this decoder takes no context"):
        Decoder(12, 3, 1, cross=False)(torch.zeros(2, 5, 12), torch.zeros(2, 4, 12))
    with pytest.raises(
        ValueError, match=r"shape \(2, 5\): expected \(2 or 1, 5 or 1, 5\), for batch, queries and keys"
    ):
        Encoder(12, 3, 1)(torch.zeros(2, 5, 12), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"shape \(2, 1, 5\): expected \(2 or 1, 5 or 1, 4\)"):
        Decoder(12, 3, 1)(torch.zeros(2, 5, 12), torch.zeros(2, 4, 12), torch.ones(2, 1, 5, dtype=torch.bool))


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "f014f33d")
def test_smoothing_by_hand():
    logits = torch.tensor([[[math.log(0.7), math.log(0.2), math.log(0.1)], [9.0, 9.0, 9.0]]])
    target = torch.tensor([[1, 0]])  # the second is padding
    expected = -0.9 * math.log(0.2) - 0.1 / 3 * (math.log(0.7) + math.log(0.2) + math.log(0.1))
    assert smoothed_loss(logits, target).item() == pytest.approx(expected)
    assert smoothed_loss(logits, target, 0.0).item() == pytest.approx(-math.log(0.2))
    assert smoothed_loss(logits, target, 0.0, pad=None).item() == pytest.approx((-math.log(0.2) + math.log(3)) / 2)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "672d3a9d")
def test_smoothing_equals_torch():
    logits, target = 3 * torch.randn(2, 5, 7, dtype=torch.float64), torch.tensor([[4, 2, 6, 0, 0], [1, 1, 5, 3, 0]])
    for smoothing in (0.0, 0.1, 0.6):
        a, b = (logits.clone().requires_grad_() for _ in range(2))
        ours, theirs = (
            smoothed_loss(a, target, smoothing),
            F.cross_entropy(b.flatten(0, 1), target.flatten(), ignore_index=0, label_smoothing=smoothing),
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            *(torch.autograd.grad(*each)[0] for each in ((ours, a), (theirs, b))), rtol=0, atol=1e-12
        )


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "a1a54fe1")
def test_finite_at_zero():
    logits = torch.tensor([[[0.0, -math.inf, 1.0], [2.0, 1.0, -math.inf]]], requires_grad=True)
    target = torch.tensor([[2, 2]])  # first a forbidden other, then a forbidden target
    for smoothing in (0.0, 0.1):
        loss = smoothed_loss(logits, target, smoothing)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
    assert not F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), label_smoothing=0.1
    ).isfinite()  # torch's is infinite there
    half = smoothed_loss(10 * torch.randn(2, 5, 7).half(), torch.ones(2, 5, dtype=torch.long))
    assert half.isfinite() and half.dtype == torch.float32


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "ac48f4ec")
def test_padding_does_not_count():
    logits, target = torch.randn(2, 5, 7, requires_grad=True), torch.tensor([[4, 2, 6, 0, 0], [1, 1, 5, 3, 0]])
    (gradient,) = torch.autograd.grad(smoothed_loss(logits, target), logits)
    assert (gradient[target == 0] == 0).all() and (gradient[target != 0] != 0).all()
    with pytest.raises(ValueError, match=r"all 4 targets are padding \(0\): there is nothing to predict"):
        smoothed_loss(torch.zeros(2, 2, 7), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="smoothing 1: expected at least 0 and below 1"):
        smoothed_loss(logits, target, 1.0)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "6657d4f3")
def test_warmup_by_hand():
    assert warmup_rate(1, 64, 100) == pytest.approx(1 / 8 / 1000) and warmup_rate(100, 64, 100) == pytest.approx(1 / 80)
    assert warmup_rate(400, 64, 100) == pytest.approx(1 / 160)  # four times the steps, half the rate
    rates = [warmup_rate(step, 512) for step in range(1, 20001)]
    assert np.argmax(rates) == 3999 and max(rates) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert np.allclose(np.diff(rates[:4000]), rates[0])  # a straight line up
    for step, warmup in ((0, 10), (1, 0)):
        with pytest.raises(ValueError, match=f"step {step} and warm-up {warmup}: both count from 1"):
            warmup_rate(step, 64, warmup)


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "8352114e")
def test_count():
    def count(vocab, dim, layers, hidden):
        attention, net, norm = 4 * (dim * dim + dim), 2 * dim * hidden + hidden + dim, 2 * dim
        return vocab * dim + layers * ((attention + net + 2 * norm) + (2 * attention + net + 3 * norm))

    for vocab, dim, heads, layers, hidden in ((11, 12, 3, 2, 20), (7, 8, 2, 3, 9)):
        assert count(vocab, dim, layers, hidden) == sum(
            p.numel() for p in Transformer(vocab, dim, heads, layers, hidden).parameters()
        )


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "8352114e")
def test_count_starter_fails():
    def count(vocab, dim, layers, hidden):
        return vocab * dim + 2 * layers * (4 * dim * dim + 2 * dim * hidden)

    with pytest.raises(Exception):
        for vocab, dim, heads, layers, hidden in ((11, 12, 3, 2, 20), (7, 8, 2, 3, 9)):
            assert count(vocab, dim, layers, hidden) == sum(
                p.numel() for p in Transformer(vocab, dim, heads, layers, hidden).parameters()
            )


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "d8bd5b2a")
def test_own_norm():
    def own_norm(x, eps):
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + eps
        ).sqrt()  # divide by D, eps under the root

    x = torch.randn(2, 5, 12, dtype=torch.float64)
    for scale, eps in ((1.0, 1e-5), (1e-3, 1e-5)):
        torch.testing.assert_close(
            own_norm(scale * x, eps), F.layer_norm(scale * x, (12,), eps=eps), rtol=0, atol=1e-10
        )


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "d8bd5b2a")
def test_own_norm_starter_fails():
    def own_norm(x, eps):
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps)

    with pytest.raises(Exception):
        x = torch.randn(2, 5, 12, dtype=torch.float64)
        for scale, eps in ((1.0, 1e-5), (1e-3, 1e-5)):
            torch.testing.assert_close(
                own_norm(scale * x, eps), F.layer_norm(scale * x, (12,), eps=eps), rtol=0, atol=1e-10
            )


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "f3189d66")
def test_prefix_mask():
    def prefix_mask(prefix, tokens):
        return causal_mask(tokens) | (torch.arange(tokens) < prefix)

    assert prefix_mask(2, 4).int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]
    encoder, x = Encoder(12, 3, 2).eval(), torch.randn(2, 5, 12)
    found = encoder(x, prefix_mask(3, 5))
    torch.testing.assert_close(found[:, :3], encoder(x[:, :3]))  # the prefix is read as by an encoder
    later = x.clone()
    later[:, 4] += 1
    assert encoder(later, prefix_mask(3, 5))[:, :4].equal(found[:, :4])


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "f3189d66")
def test_prefix_mask_starter_fails():
    def prefix_mask(prefix, tokens):
        return causal_mask(tokens)

    with pytest.raises(Exception):
        assert prefix_mask(2, 4).int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]
        encoder, x = Encoder(12, 3, 2).eval(), torch.randn(2, 5, 12)
        found = encoder(x, prefix_mask(3, 5))
        torch.testing.assert_close(found[:, :3], encoder(x[:, :3]))  # the prefix is read as by an encoder
        later = x.clone()
        later[:, 4] += 1
        assert encoder(later, prefix_mask(3, 5))[:, :4].equal(found[:, :4])


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "a5d52a99")
def test_quiet():
    def quiet(stack):
        for layer in stack.layers:
            for last in (
                layer.feed_forward.down,
                layer.attention.out,
                *([layer.cross.out] if hasattr(layer, "cross") else []),
            ):
                nn.init.zeros_(last.weight), nn.init.zeros_(last.bias)
        return stack

    x, context = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    torch.testing.assert_close(quiet(Encoder(12, 3, 2))(x), F.layer_norm(x, (12,)))
    torch.testing.assert_close(quiet(Decoder(12, 3, 2))(x, context), F.layer_norm(x, (12,)))


@pytest.mark.nb("nbs/1_foundations/04_transformer.ipynb", "a5d52a99")
def test_quiet_starter_fails():
    def quiet(stack):
        for layer in stack.layers:
            nn.init.zeros_(layer.feed_forward.down.weight)
        return stack

    with pytest.raises(Exception):
        x, context = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
        torch.testing.assert_close(quiet(Encoder(12, 3, 2))(x), F.layer_norm(x, (12,)))
        torch.testing.assert_close(quiet(Decoder(12, 3, 2))(x, context), F.layer_norm(x, (12,)))
