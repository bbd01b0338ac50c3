"""Generated from nbs/3_fusion/12_fuse.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LxmertConfig
from transformers import LxmertModel
from transformers import ViltConfig
from transformers import ViltModel
from vlp_course.nn.attention import MultiHeadAttention
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.transformer import Encoder
from vlp_course.nn.fusion import CoAttentionEncoder, CoAttentionLayer, CrossEncoder, MergedEncoder, WordHead


@pytest.fixture(scope="module")
def setup_d32b4837():
    def slow_attention(attention, asking, asked):
        """Lists of vectors in, a list out: what each asking vector finds among the asked ones."""
        size, found = len(asking[0]) // attention.heads, []
        for x in asking:
            slices = []
            for h in range(attention.heads):
                part = slice(h * size, (h + 1) * size)
                q = attention.query(x)[part]
                scores = torch.stack([q @ attention.key(c)[part] / size**0.5 for c in asked])
                weights = scores.exp() / scores.exp().sum()
                slices.append(sum(w * attention.value(c)[part] for w, c in zip(weights, asked)))
            found.append(attention.out(torch.cat(slices)))
        return found

    def slow_layer(layer, tokens, context=None):
        """A layer of notebook 04, with cross-attention if there is a context."""
        pre = layer.pre_norm

        def add(xs, norm, found):
            ys = found([norm(x) for x in xs] if pre else xs)
            return [x + y if pre else norm(x + y) for x, y in zip(xs, ys)]

        tokens = add(tokens, layer.norm1, lambda xs: slow_attention(layer.attention, xs, xs))
        if context is not None:
            tokens = add(tokens, layer.norm_cross, lambda xs: slow_attention(layer.cross, xs, context))
        return add(
            tokens,
            layer.norm2,
            lambda xs: [layer.feed_forward.down(layer.feed_forward.activation(layer.feed_forward.up(x))) for x in xs],
        )

    def slow_merged(encoder, words, cells):
        row = [w + encoder.kind[0] for w in words] + [c + encoder.kind[1] for c in cells]
        for layer in encoder.layers:
            row = slow_layer(layer, row)
        return [encoder.norm(x) for x in row]

    def slow_coattention(layer, cells, words):
        old_cells, old_words = list(cells), list(words)
        ask = lambda xs, ys: [layer.norm(x + y) for x, y in zip(xs, slow_attention(layer.cross, xs, ys))]
        return slow_layer(layer.image, ask(old_cells, old_words)), slow_layer(layer.text, ask(old_words, old_cells))

    def example(dim=12):
        """Two pairs: 5 words of which the second has 3; 7 image tokens of which the first has 6. Padding holds nonsense."""
        image, text = torch.randn(2, 7, dim, dtype=torch.float64), torch.randn(2, 5, dim, dtype=torch.float64)
        image_mask, text_mask = torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
        image_mask[0, 6:], text_mask[1, 3:] = False, False
        image[0, 6:], text[1, 3:] = 50.0, -50.0
        return Tokens(image[:, 0], image, image_mask), Tokens(text[:, 0], text, text_mask)

    def twice(module):
        """In double precision, and with weights large enough to matter."""
        for p in module.parameters():
            p.data = p.data.double() + 0.3 * torch.randn(p.shape, dtype=torch.float64)
        return module

    return example, slow_coattention, slow_layer, slow_merged, twice


@pytest.fixture(scope="module")
def setup_83cfc2c9():
    def layer_twins(ours, theirs):
        """Pairs of modules, ours and ViLT's: a layer."""
        attention = theirs.attention.attention
        return [
            (ours.norm1, theirs.layernorm_before),
            (ours.norm2, theirs.layernorm_after),
            (ours.attention.query, attention.query),
            (ours.attention.key, attention.key),
            (ours.attention.value, attention.value),
            (ours.attention.out, theirs.attention.output.dense),
            (ours.feed_forward.up, theirs.intermediate.dense),
            (ours.feed_forward.down, theirs.output.dense),
        ]

    def transfer(twins):
        for ours, theirs in twins:
            ours.load_state_dict(theirs.state_dict())

    def same_gradients(twins):
        for ours, theirs in twins:
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-9)

    return layer_twins, same_gradients, transfer


@pytest.fixture(scope="module")
def setup_dc854f58():
    def crossing_twins(ours, theirs):
        """Pairs of modules, ours and LXMERT's: a crossing layer."""

        def attention(a, norm, b):
            core = b.att if hasattr(b, "att") else b.self
            return [
                (a.query, core.query),
                (a.key, core.key),
                (a.value, core.value),
                (a.out, b.output.dense),
                (norm, b.output.LayerNorm),
            ]

        twins = attention(ours.cross, ours.norm, theirs.visual_attention)
        for mine, self_attention, up, down in (
            (ours.text, theirs.lang_self_att, theirs.lang_inter, theirs.lang_output),
            (ours.image, theirs.visn_self_att, theirs.visn_inter, theirs.visn_output),
        ):
            twins += attention(mine.attention, mine.norm1, self_attention)
            twins += [
                (mine.feed_forward.up, up.dense),
                (mine.feed_forward.down, down.dense),
                (mine.norm2, down.LayerNorm),
            ]
        return twins

    return crossing_twins


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "8ddf00af")
def test_merged_equals_loop(setup_d32b4837):
    example, _, _, slow_merged, twice = setup_d32b4837
    torch.manual_seed(0)
    encoder, (image, text) = twice(MergedEncoder(12, 3, 2)), example()
    found, mask = encoder.stream(image, text)
    for b in range(2):
        slow = slow_merged(encoder, text.tokens[b][text.mask[b]], image.tokens[b][image.mask[b]])
        torch.testing.assert_close(found[b][mask[b]], torch.stack(slow), rtol=0, atol=1e-10)
    assert encoder(image, text).tokens.equal(found[:, :5]) and encoder(image, text).pooled.shape == (2, 12)


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "6723376c")
def test_merged_is_a_gated_mix(setup_d32b4837):
    example, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    attention, (image, text) = twice(MultiHeadAttention(12, 3)), example()
    x, c = text.tokens[:1], image.tokens[1:]
    attention.out = nn.Identity()
    both = torch.cat([x, c], 1)
    gate = (
        attention.weights(x, both)[..., :5].sum(-1).transpose(1, 2).repeat_interleave(4, -1)
    )  # 1 T D: one gate for each head's slice
    torch.testing.assert_close(attention(x, both), gate * attention(x) + (1 - gate) * attention(x, c))


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "6bcf1e9e")
def test_kinds_that_do_not_meet(setup_d32b4837):
    example, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    encoder, (image, text) = twice(MergedEncoder(12, 3, 2)), example()
    x, c = text.tokens[:1] + encoder.kind[0], image.tokens[1:] + encoder.kind[1]
    apart = torch.block_diag(torch.ones(5, 5), torch.ones(7, 7))[None] > 0
    torch.testing.assert_close(
        Encoder.forward(encoder, torch.cat([x, c], 1), apart),
        torch.cat([Encoder.forward(encoder, x), Encoder.forward(encoder, c)], 1),
    )


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "cf555382")
def test_vilt_layers(setup_83cfc2c9, setup_d32b4837):
    layer_twins, same_gradients, transfer = setup_83cfc2c9
    _, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    config = ViltConfig(
        vocab_size=19,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=12,
        patch_size=4,
        max_position_embeddings=7,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    vilt = twice(ViltModel(config, add_pooling_layer=False)).train()
    ids, words, pixels, shown = (
        torch.randint(19, (2, 5)),
        torch.ones(2, 5, dtype=torch.long),
        torch.randn(2, 3, 12, 12).double(),
        torch.ones(2, 12, 12),
    )
    words[1, 3:], shown[0, 8:] = 0, 0  # a short text; a picture of two rows of patches
    torch.manual_seed(7)  # it shuffles the patches
    expected = vilt(ids, attention_mask=words, pixel_values=pixels, pixel_mask=shown.long()).last_hidden_state
    torch.manual_seed(7)
    with torch.no_grad():
        cells, cell_mask, _ = vilt.embeddings.visual_embed(pixels, shown.long(), config.max_image_length)
        tokens = vilt.embeddings.text_embeddings(ids)
    ours = twice(MergedEncoder(12, 3, 2, 20, eps=config.layer_norm_eps))
    twins = [(ours.norm, vilt.layernorm)] + [
        pair for a, b in zip(ours.layers, vilt.encoder.layer) for pair in layer_twins(a, b)
    ]
    transfer(twins)
    ours.kind.data = vilt.embeddings.token_type_embeddings.weight.detach().clone()
    found, mask = ours.stream(Tokens(cells[:, 0], cells, cell_mask > 0), Tokens(tokens[:, 0], tokens, words > 0))
    assert mask.sum().item() == 5 + 3 + 7 + 10 and found.shape == (
        2,
        15,
        12,
    )  # words; patches and the picture's own [CLS]
    torch.testing.assert_close(found[mask], expected[mask], rtol=0, atol=1e-10)
    weight = torch.randn(found[mask].shape, dtype=torch.float64)
    (found[mask] * weight).sum().backward()
    (expected[mask] * weight).sum().backward()
    same_gradients(twins)
    assert ours.layers[0].attention.query.weight.grad.abs().max() > 1e-3
    torch.testing.assert_close(ours.kind.grad, vilt.embeddings.token_type_embeddings.weight.grad, rtol=0, atol=1e-9)


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "981f6452")
def test_coattention_equals_loop(setup_d32b4837):
    example, slow_coattention, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    layer, (image, text) = twice(CoAttentionLayer(12, 3)), example()
    cells, words = layer(image.tokens, text.tokens, image.mask[:, None], text.mask[:, None])
    for b in range(2):
        slow = slow_coattention(layer, image.tokens[b][image.mask[b]], text.tokens[b][text.mask[b]])
        torch.testing.assert_close(cells[b][image.mask[b]], torch.stack(slow[0]), rtol=0, atol=1e-10)
        torch.testing.assert_close(words[b][text.mask[b]], torch.stack(slow[1]), rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "d1b913d2")
def test_both_ask_the_old_states(setup_d32b4837):
    example, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    for pre_norm in (False, True):
        layer, (image, text) = twice(CoAttentionLayer(12, 3, pre_norm=pre_norm)), example()
        layer.image.load_state_dict(layer.text.state_dict())
        masks = image.mask[:, None], text.mask[:, None]
        one, other = layer(image.tokens, text.tokens, *masks), layer(text.tokens, image.tokens, *masks[::-1])
        torch.testing.assert_close(one, other[::-1])
        first = layer.text(layer.ask(text.tokens, image.tokens, masks[0]), masks[1])  # the wrong order: words first
        assert not torch.allclose(layer.image(layer.ask(image.tokens, first, masks[1]), masks[0]), one[0])


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "69bdf9b5")
def test_summary_of_two_streams(setup_d32b4837):
    example, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    encoder, (image, text) = twice(CoAttentionEncoder(12, 3)), example()
    found = encoder(image, text)
    noise = lambda t: t._replace(tokens=torch.where(t.mask[..., None], t.tokens, 7.0))  # other padding
    torch.testing.assert_close(encoder(noise(image), noise(text)).pooled, found.pooled)
    x, y = encoder.streams(image, text)
    torch.testing.assert_close(found.pooled, encoder.image_pool(x, image.mask) * encoder.text_pool(y, text.mask))
    found.pooled.sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0
        for name, p in encoder.named_parameters()
        if "key.bias" not in name
    )


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "a5287463")
def test_lxmert_crossing_layers(setup_dc854f58, setup_83cfc2c9, setup_d32b4837):
    crossing_twins = setup_dc854f58
    _, same_gradients, transfer = setup_83cfc2c9
    _, _, _, _, twice = setup_d32b4837
    torch.manual_seed(0)
    config = LxmertConfig(
        vocab_size=19,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        l_layers=1,
        r_layers=1,
        x_layers=2,
        visual_feat_dim=11,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    lxmert = twice(LxmertModel(config)).train()
    words, regions = torch.ones(2, 5), torch.ones(2, 7)
    words[1, 3:], regions[0, 6:] = 0, 0
    out = lxmert(
        torch.randint(19, (2, 5)),
        torch.randn(2, 7, 11).double(),
        torch.rand(2, 7, 4).double(),
        attention_mask=words,
        visual_attention_mask=regions,
        output_hidden_states=True,
        return_dict=True,
    )
    y, x = (
        out.language_hidden_states[-3].detach(),
        out.vision_hidden_states[-3].detach(),
    )  # what enters the crossing layers
    layers = [twice(CoAttentionLayer(12, 3, 20, eps=1e-12)) for _ in range(2)]
    twins = [pair for ours, theirs in zip(layers, lxmert.encoder.x_layers) for pair in crossing_twins(ours, theirs)]
    transfer(twins)
    for layer in layers:
        x, y = layer(x, y, regions[:, None] > 0, words[:, None] > 0)
    real = words > 0, regions > 0
    torch.testing.assert_close(y[real[0]], out.language_output[real[0]], rtol=0, atol=1e-10)
    torch.testing.assert_close(x[real[1]], out.vision_output[real[1]], rtol=0, atol=1e-10)
    weights = torch.randn(y[real[0]].shape, dtype=torch.float64), torch.randn(x[real[1]].shape, dtype=torch.float64)
    ((y[real[0]] * weights[0]).sum() + (x[real[1]] * weights[1]).sum()).backward()
    ((out.language_output[real[0]] * weights[0]).sum() + (out.vision_output[real[1]] * weights[1]).sum()).backward()
    same_gradients(twins)
    assert layers[0].cross.query.weight.grad.abs().max() > 1e-3


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "408d17c6")
def test_cross_encoder_equals_loop(setup_d32b4837):
    example, _, slow_layer, _, twice = setup_d32b4837
    torch.manual_seed(0)
    encoder, (image, text) = twice(CrossEncoder(12, 3, 2)), example()
    found = encoder(image, text)
    for b in range(2):
        row, cells = list(text.tokens[b][text.mask[b]]), list(image.tokens[b][image.mask[b]])
        for layer in encoder.layers:
            row = slow_layer(layer, row, cells)
        torch.testing.assert_close(
            found.tokens[b][text.mask[b]], torch.stack([encoder.norm(x) for x in row]), rtol=0, atol=1e-10
        )


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "85a8b1c0")
def test_cross_encoder_sees_the_picture_and_no_padding():
    torch.manual_seed(0)
    fuse, words = CrossEncoder(12, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    image = lambda x: Tokens(x.mean(1), x, torch.ones(x.shape[:2], dtype=torch.bool))
    a, b = image(torch.randn(2, 7, 12)), image(torch.randn(2, 7, 12))
    found = fuse(a, Tokens(words.mean(1), words, mask))
    assert found.pooled.shape == (2, 12) and not torch.allclose(
        found.pooled, fuse(b, Tokens(words.mean(1), words, mask)).pooled
    )
    other = words.clone()
    other[1, 3:] = 9.0
    torch.testing.assert_close(fuse(a, Tokens(words.mean(1), other, mask)).pooled, found.pooled)


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "5c84e20b")
def test_word_head_by_hand():
    head, table = WordHead(3, 4), torch.randn(7, 4)
    head.bias.data = torch.tensor([0.0, 1.0, -1.0])
    x = torch.randn(2, 5, 4)
    state = head.norm(F.gelu(head.layer(x)))
    expected = torch.stack(
        [(state * table[w]).sum(-1) / 2 + head.bias[w] for w in range(3)], -1
    )  # sqrt(4) = 2; four words do not count
    torch.testing.assert_close(head(x, table), expected)


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "ed6b8d99")
def test_table_of_costs():
    D, T, I = 16, 5, 7
    tokens = lambda n: Tokens(torch.zeros(1, D), torch.randn(1, n, D), torch.ones(1, n, dtype=torch.bool))
    for way, parameters, multiplications in (
        (MergedEncoder, 12 * D**2, 12 * D**2 * (T + I) + 2 * D * (T + I) ** 2),
        (CoAttentionEncoder, 28 * D**2, 16 * D**2 * (T + I) + 2 * D * (T + I) ** 2),
        (CrossEncoder, 16 * D**2, 14 * D**2 * T + 2 * D**2 * I + 2 * D * T * (T + I)),
    ):
        flops, (one, two) = [], (way(D, 2, layers=n) for n in (1, 2))
        for encoder in (one, two):
            with FlopCounterMode(display=False) as counter:
                encoder(tokens(I), tokens(T))
            flops.append(counter.get_total_flops())
        assert sum(p.numel() for p in one.layers.parameters() if p.ndim == 2) == parameters
        assert flops[1] - flops[0] == 2 * multiplications  # a multiplication and an addition
