"""Generated from nbs/2_transfer/09_detection_vit.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import VitDetBackbone
from transformers import VitDetConfig
from vlp_course.nn.attention import MultiHeadAttention
from vlp_course.nn.vit import ViT
from vlp_course.nn.detection_vit import (
    DetectionViT,
    GridAttention,
    GridLayer,
    join_windows,
    layer_flops,
    relative_vectors,
    split_windows,
    window_mask,
)


@pytest.fixture(scope="module")
def setup_7ea8a938():
    def slow_look(layer, x, see_padding=False):
        """GridLayer.look by loops: for each cell, list the cells that it may see, score them, mix them."""
        attention, (batch, height, width, dim) = layer.attention, x.shape
        window, size = layer.window, dim // attention.heads
        q, k, v = (
            linear(x).unflatten(-1, (attention.heads, size))
            for linear in (attention.query, attention.key, attention.value)
        )
        zero = {
            name: linear(x.new_zeros(dim)).unflatten(-1, (attention.heads, size))
            for name, linear in (("k", attention.key), ("v", attention.value))
        }
        out = torch.empty_like(x)
        for b, r, c, n in np.ndindex(batch, height, width, attention.heads):
            top, left = (r // window * window, c // window * window) if window else (0, 0)
            rows, columns = (
                (range(top, top + window), range(left, left + window)) if window else (range(height), range(width))
            )
            scores, values = [], []
            for i in rows:
                for j in columns:
                    real = i < height and j < width
                    if real or see_padding:
                        key, value = (k[b, i, j, n], v[b, i, j, n]) if real else (zero["k"][n], zero["v"][n])
                        tables = (
                            attention.row_table[r - i + len(rows) - 1]
                            + attention.column_table[c - j + len(columns) - 1]
                        )
                        scores.append(q[b, r, c, n] @ key / math.sqrt(size) + q[b, r, c, n] @ tables)
                        values.append(value)
            out[b, r, c, n * size : (n + 1) * size] = torch.stack(scores).softmax(0) @ torch.stack(values)
        return attention.out(out)

    def shake(module):
        """Random weights of a healthy size: fresh weights, above all tables of zeros, would hide errors."""
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn_like(p) * (0.5 if p.ndim == 1 else 1.5 / math.sqrt(p[0].numel())))
        return module.double().eval()

    return shake, slow_look


@pytest.fixture(scope="module")
def setup_0feff73a():
    def vitdet_like(body, image_size):
        """transformers' backbone with the weights of ours; its windows let the filling take part."""
        attention = body.layers[0].attention
        config = VitDetConfig(
            hidden_size=body.dim,
            num_hidden_layers=len(body.layers),
            num_attention_heads=attention.heads,
            mlp_ratio=body.layers[0].feed_forward.up.out_features // body.dim,
            image_size=image_size,
            pretrain_image_size=image_size,
            patch_size=body.patch.patch,
            window_size=body.layers[0].window,
            window_block_indices=[n for n in range(len(body.layers)) if n not in body.taps],
            use_relative_position_embeddings=True,
            out_indices=[n + 1 for n in body.taps],
        )
        net = VitDetBackbone(config).double().eval()
        state = {
            "embeddings.position_embeddings": torch.cat([body.positions[:1], body.positions])[None]
        }  # the first is a class token's
        for name, p in (("weight", "weight"), ("bias", "bias")):
            state[f"embeddings.projection.{name}"] = getattr(body.patch.project, p)
            for n, layer in enumerate(body.layers):
                a, at = layer.attention, f"encoder.layer.{n}."
                state |= {
                    f"{at}attention.qkv.{name}": torch.cat(
                        [getattr(linear, p) for linear in (a.query, a.key, a.value)]
                    ),
                    f"{at}attention.proj.{name}": getattr(a.out, p),
                    f"{at}norm1.{name}": getattr(layer.norm1, p),
                    f"{at}norm2.{name}": getattr(layer.norm2, p),
                    f"{at}mlp.fc1.{name}": getattr(layer.feed_forward.up, p),
                    f"{at}mlp.fc2.{name}": getattr(layer.feed_forward.down, p),
                    f"{at}attention.rel_pos_h": a.row_table,
                    f"{at}attention.rel_pos_w": a.column_table,
                }
        net.load_state_dict(state)
        return net

    return vitdet_like


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "6b96ffd0")
def test_windows_by_hand():
    grid = torch.arange(1, 7.0).reshape(1, 2, 3, 1)  # 1 2 3 / 4 5 6
    assert split_windows(grid, 2)[..., 0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]
    assert window_mask(2, 3, 2).int().tolist() == [[[1, 1, 1, 1]], [[1, 0, 1, 0]]]


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "9dbf6817")
def test_windows_there_and_back():
    x = torch.randn(2, 5, 7, 3)
    for window in (1, 2, 3, 4, 5, 8):
        parts = split_windows(x, window)
        assert parts.shape == (2 * -(-5 // window) * -(-7 // window), window**2, 3)
        assert join_windows(parts, window, 5, 7).equal(x)
    with pytest.raises(ValueError, match="window 0: a window needs at least one cell"):
        split_windows(x, 0)


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "174c12b1")
def test_relative_by_hand():
    table = torch.tensor([[10.0], [20.0], [30.0]])  # distances -1, 0, 1
    assert relative_vectors(table, 2)[..., 0].tolist() == [[20, 10], [30, 20]]  # row: query, column: key
    assert (
        relative_vectors(table, 3).shape == (3, 3, 1) and relative_vectors(table, 3)[0, 0] == 20
    )  # stretched: 10, 14, 20, 26, 30
    layer = GridAttention(4, 2, 2).double()
    with torch.no_grad():
        layer.row_table.copy_(torch.tensor([[1.0, 0], [0, 0], [0, 0]]))  # key one row below the query
    q = torch.zeros(1, 2, 6, 2, dtype=torch.float64)
    q[..., 0] = 7.0
    with torch.no_grad():
        found = layer.relative(q, 2, 3)[0, 0]
    assert found[:3, 3:].eq(7).all() and found[3:].eq(0).all() and found[:3, :3].eq(0).all()


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "2e35165e")
def test_zero_tables_are_plain_attention():
    layer, plain = GridAttention(12, 3, 4), MultiHeadAttention(12, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x, mask = torch.randn(2, 20, 12), torch.rand(2, 1, 20) < 0.7
    torch.testing.assert_close(layer(x, 4, 5), plain(x))
    torch.testing.assert_close(layer(x, 4, 5, mask), plain(x, mask=mask))


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "2f3a4d8b")
def test_attention_depends_on_distance_alone(setup_7ea8a938):
    shake, _ = setup_7ea8a938
    layer = shake(GridAttention(12, 3, 9))
    q = torch.randn(1, 3, 1, 4, dtype=torch.float64).expand(
        -1, -1, 30, -1
    )  # the same query everywhere, on a grid of 5 x 6
    scores = layer.relative(q, 5, 6).unflatten(2, (5, 6)).unflatten(4, (5, 6))  # 1 H h w h w
    torch.testing.assert_close(scores[:, :, 1:, 2:, 1:, 2:], scores[:, :, :-1, :-2, :-1, :-2])
    assert (scores[:, :, 0, 0, 1, 2] - scores[:, :, 0, 0, 2, 1]).abs().min() > 1e-3  # and rows are not columns


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "1d79c52a")
def test_layer_like_its_slow_twin(setup_7ea8a938):
    shake, slow_look = setup_7ea8a938
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    for window, see in ((0, False), (2, False), (2, True), (3, False), (3, True), (7, False)):
        layer, grid = (
            shake(GridLayer(6, 3, 4, window, see_padding=see)),
            x if window else x[:, :4],
        )  # no stretched tables here
        with torch.no_grad():
            torch.testing.assert_close(layer.look(grid), slow_look(layer, grid, see), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "fce739e8")
def test_filling_is_not_seen(setup_7ea8a938):
    shake, _ = setup_7ea8a938
    layer, x = shake(GridLayer(6, 3, 5, 3)), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        masked = layer.look(x)
        layer.see_padding = True
        seen = layer.look(x)
    torch.testing.assert_close(seen[:, :3, :3], masked[:, :3, :3])  # a full window: nothing to hide
    assert (seen - masked)[:, 3:].abs().amax(-1).min() > 1e-3 and (seen - masked)[:, :, 3:].abs().amax(-1).min() > 1e-3


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "8323c38c")
def test_like_a_vit_without_its_class_token(setup_7ea8a938):
    shake, _ = setup_7ea8a938
    vit = shake(ViT(20, 4, 12, 5, 3))
    body, image = DetectionViT.from_vit(vit, window=5), torch.rand(2, 3, 20, 20, dtype=torch.float64)
    assert body.double().taps == (0, 1, 2, 4)
    with torch.no_grad():
        maps, x = body(image), vit.embed(image)[:, 1:]
        for n, layer in enumerate(vit.layers):
            x = layer(x)
            if n in body.taps:
                torch.testing.assert_close(maps[body.taps.index(n)].flatten(2).transpose(1, 2), x)
        assert [m.shape for m in body(torch.rand(2, 3, 12, 28, dtype=torch.float64))] == [(2, 12, 3, 7)] * 4
        vit.layers[0].norm1.weight += 1
        assert not body.layers[0].norm1.weight.equal(
            vit.layers[0].norm1.weight
        )  # a copy: training one leaves the other alone


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "7cd16bbe")
def test_wrong_pictures_and_depths():
    with pytest.raises(ValueError, match="picture of 20 x 18 pixels: both must be multiples of the patch, 4"):
        DetectionViT(20, 4, 12, 4, 3)(torch.rand(2, 3, 20, 18))
    with pytest.raises(ValueError, match="3 layers: four quarters need at least 4"):
        DetectionViT(20, 4, 12, 3, 3)


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "e3d7f2c9")
def test_parity_with_vitdet(setup_7ea8a938, setup_0feff73a):
    shake, _ = setup_7ea8a938
    vitdet_like = setup_0feff73a
    for window, absolute, pixels in (
        (3, True, (24, 24)),
        (4, True, (24, 24)),
        (3, False, (24, 36)),
        (4, False, (20, 28)),
    ):
        body = shake(DetectionViT(24, 4, 12, 8, 3, window=window, see_padding=True))
        with torch.no_grad():
            if not absolute:
                body.positions.zero_()  # the two interpolate them differently
            image = torch.rand(2, 3, *pixels, dtype=torch.float64)
            theirs = vitdet_like(body, 24)(2 * image - 1).feature_maps
            assert len(theirs) == 4
            for ours, reference in zip(body(image), theirs):
                torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "3f1899a9")
def test_flops_as_torch_counts_them():
    for (height, width), window in (((6, 4), 0), ((6, 4), 2), ((5, 7), 3), ((3, 3), 4)):
        layer = GridLayer(12, 3, 6, window, hidden=20)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            layer(torch.randn(1, height, width, 12))
        assert counter.get_total_flops() == layer_flops(height, width, 12, window, 20), (height, width, window)


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "2f42f71d")
def test_wasted():
    def wasted(height, width, window):
        rows, columns = (-(-side // window) * window for side in (height, width))
        return 1 - height * width / (rows * columns)

    assert wasted(8, 8, 4) == 0 and wasted(2, 3, 2) == pytest.approx(0.25)
    for height, width, window in ((5, 7, 3), (64, 64, 14), (3, 3, 8)):
        assert wasted(height, width, window) == pytest.approx(
            1 - window_mask(height, width, window).float().mean().item()
        )


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "2f42f71d")
def test_wasted_starter_fails():
    def wasted(height, width, window):
        return (height % window) * (width % window) / (height * width)

    with pytest.raises(Exception):
        assert wasted(8, 8, 4) == 0 and wasted(2, 3, 2) == pytest.approx(0.25)
        for height, width, window in ((5, 7, 3), (64, 64, 14), (3, 3, 8)):
            assert wasted(height, width, window) == pytest.approx(
                1 - window_mask(height, width, window).float().mean().item()
            )


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "ac7d606a")
def test_break_even():
    def break_even(dim):
        return 6 * dim  # 4 N^2 D = 24 N D^2

    for dim in (96, 384):
        side = math.isqrt(break_even(dim))
        pairs = 4 * side**4 * dim
        assert side**2 == break_even(dim) and layer_flops(side, side, dim) - 4 * side**3 * dim == 2 * pairs


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "ac7d606a")
def test_break_even_starter_fails():
    def break_even(dim):
        return 4 * dim

    with pytest.raises(Exception):
        for dim in (96, 384):
            side = math.isqrt(break_even(dim))
            pairs = 4 * side**4 * dim
            assert side**2 == break_even(dim) and layer_flops(side, side, dim) - 4 * side**3 * dim == 2 * pairs


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "e1ce65d5")
def test_propagate():
    class Propagate(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.mix = nn.Sequential(
                nn.Conv2d(dim, dim // 2, 1),
                nn.GELU(),
                nn.Conv2d(dim // 2, dim // 2, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(dim // 2, dim, 1),
            )
            (
                nn.init.zeros_(self.mix[-1].weight),
                nn.init.zeros_(self.mix[-1].bias),
            )  # pretrained layers must first work as before

        def forward(self, x):
            return x + self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    block, x = Propagate(12), torch.randn(2, 8, 8, 12, requires_grad=True)
    assert block(x).equal(x)
    nn.init.normal_(block.mix[-1].weight)
    (gradient,) = torch.autograd.grad(GridLayer(12, 3, 8, 4).eval()(block(GridLayer(12, 3, 8, 4)(x)))[0, 0, 0].sum(), x)
    assert (gradient[0, :, 4].abs().sum() > 0) and (
        gradient[1] == 0
    ).all()  # from another window, not from another picture


@pytest.mark.nb("nbs/2_transfer/09_detection_vit.ipynb", "e1ce65d5")
def test_propagate_starter_fails():
    class Propagate(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.mix = nn.Conv2d(dim, dim, 3, padding=1)

        def forward(self, x):
            return x + self.mix(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    with pytest.raises(Exception):
        block, x = Propagate(12), torch.randn(2, 8, 8, 12, requires_grad=True)
        assert block(x).equal(x)
        nn.init.normal_(block.mix[-1].weight)
        (gradient,) = torch.autograd.grad(
            GridLayer(12, 3, 8, 4).eval()(block(GridLayer(12, 3, 8, 4)(x)))[0, 0, 0].sum(), x
        )
        assert (gradient[0, :, 4].abs().sum() > 0) and (
            gradient[1] == 0
        ).all()  # from another window, not from another picture
