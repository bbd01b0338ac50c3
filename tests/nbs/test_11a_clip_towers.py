"""Generated from nbs/3_fusion/11a_clip_towers.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn
from transformers import CLIPConfig as ReferenceConfig
from transformers import CLIPModel as ReferenceCLIP
from vlp_course.nn.clip_towers import BLOCKED, Block, ImageTower, TextTower, TowerConfig, attend, quick_gelu


@pytest.fixture(scope="module")
def setup_c248cabd():
    def slow_attend(q, k, v, mask=None):
        out = torch.empty_like(q)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                for i, query in enumerate(q[b, h]):
                    scores = [float(query @ key) / math.sqrt(len(query)) for key in k[b, h]]
                    if mask is not None:
                        scores = [s + float(m) for s, m in zip(scores, mask[min(b, len(mask) - 1), 0, i])]
                    weights = [math.exp(s - max(scores)) for s in scores]
                    out[b, h, i] = sum(w / sum(weights) * value for w, value in zip(weights, v[b, h]))
        return out

    def qkv(dtype=torch.float64, seed=0):
        """Queries, keys, values of pairwise distinct sizes: batch 2, heads 3, tokens 5, dim 4."""
        made = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(2, 3, 5, 4, generator=made, dtype=torch.float64).to(dtype) for _ in range(3))

    return qkv, slow_attend


@pytest.fixture(scope="module")
def setup_be7a4669():
    def image_tower(**changes):
        torch.manual_seed(1)
        return ImageTower(
            TowerConfig(**{**dict(width=24, layers=2, heads=3, hidden=56), **changes}), 30, 10, 14
        ).double()

    def text_tower(**changes):
        torch.manual_seed(2)
        return TextTower(
            TowerConfig(**{**dict(width=20, layers=3, heads=5, hidden=36), **changes}), 11, 47, 14
        ).double()

    def picture(batch=2, side=30, seed=3):
        return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return image_tower, picture, text_tower


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "91bf7e10")
def test_attend_equals_the_loop(setup_c248cabd):
    qkv, slow_attend = setup_c248cabd
    q, k, v = qkv()
    mask = torch.zeros(2, 1, 5, 5, dtype=q.dtype).masked_fill(torch.ones(5, 5).triu(1).bool(), -3e4)
    for m in (None, mask):
        want = slow_attend(q, k, v, m)
        torch.testing.assert_close(attend(q, k, v, m, fused=False), want, atol=1e-12, rtol=0)
        torch.testing.assert_close(attend(q, k, v, m, fused=True), want, atol=1e-12, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "ba2f6789")
def test_attend_chooses_by_precision(setup_c248cabd):
    qkv, _ = setup_c248cabd
    for dtype, fused in ((torch.float32, True), (torch.bfloat16, False)):
        q, k, v = (x.requires_grad_() for x in qkv(dtype))
        graph = attend(q, k, v).grad_fn.name()
        assert ("Attention" in graph) == fused, graph


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "d0858995")
def test_attend_by_hand():
    q = torch.tensor([[[[2.0 * math.log(3)] + [0.0] * 3]]])  # one query; d = 4, so sqrt(d) = 2
    k = torch.tensor([[[[1.0, 0, 0, 0], [0.0, 0, 0, 0]]]])  # scores log 3 and 0: weights 3/4 and 1/4
    v = torch.tensor([[[[8.0, 0, 4, 0], [0.0, 4, 4, 0]]]])
    for fused in (True, False):
        torch.testing.assert_close(attend(q, k, v, fused=fused), torch.tensor([[[[6.0, 1, 4, 0]]]]))


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "b8046ea6")
def test_block_equals_pytorch():
    torch.manual_seed(0)
    ours = Block(TowerConfig(width=12, layers=1, heads=3, hidden=20, act="gelu")).double()
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": ours.qkv.weight,
            "self_attn.in_proj_bias": ours.qkv.bias,
            "self_attn.out_proj.weight": ours.out.weight,
            "self_attn.out_proj.bias": ours.out.bias,
            "linear1.weight": ours.fc.weight,
            "linear1.bias": ours.fc.bias,
            "linear2.weight": ours.proj.weight,
            "linear2.bias": ours.proj.bias,
            "norm1.weight": ours.ln_1.weight,
            "norm1.bias": ours.ln_1.bias,
            "norm2.weight": ours.ln_2.weight,
            "norm2.bias": ours.ln_2.bias,
        }
    )
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)
    causal = torch.zeros(5, 5, dtype=x.dtype).masked_fill(torch.ones(5, 5).triu(1).bool(), -3e4)
    torch.testing.assert_close(ours(x, causal[None, None]), theirs(x, src_mask=causal), atol=1e-12, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "aecd3afb")
def test_quick_gelu_values():
    assert abs(float(quick_gelu(torch.tensor(1.0))) - 1 / (1 + math.exp(-1.702))) < 1e-6
    x = torch.linspace(-8, 8, 401, dtype=torch.float64)
    torch.testing.assert_close(quick_gelu(x), x * torch.sigmoid(1.702 * x), atol=1e-14, rtol=0)  # the slow twin
    torch.testing.assert_close(quick_gelu(x) - quick_gelu(-x), x, atol=1e-12, rtol=0)  # as for GELU: f(x) - f(-x) = x


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "598f5ff6")
def test_config_refuses():
    with pytest.raises(ValueError, match="unknown activation 'gelu_new': use quick_gelu or gelu"):
        TowerConfig(12, 1, 3, 20, act="gelu_new")
    with pytest.raises(ValueError, match="width 12 is no multiple of heads 5"):
        TowerConfig(12, 1, 5, 20)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "59e5cd0f")
def test_patches_equal_a_linear_map(setup_be7a4669):
    image_tower, picture, _ = setup_be7a4669
    tower, image = image_tower(), picture()
    got = tower.patch(image).flatten(2).transpose(1, 2)  # B 9 24
    cut = image.unfold(2, 10, 10).unfold(3, 10, 10)  # B 3 row column 10 10
    cut = cut.permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 300)  # row by row
    torch.testing.assert_close(got, cut @ tower.patch.weight.flatten(1).T, atol=1e-12, rtol=0)
    assert tower.patch.bias is None and tower.projection.bias is None


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "f6050543")
def test_image_tokens(setup_be7a4669):
    image_tower, picture, _ = setup_be7a4669
    tower, image = image_tower(), picture()
    out = tower(image)
    assert out.shape == (2, 10, 14)
    with torch.no_grad():
        tower.position.zero_()
    swapped = image.clone()
    swapped[..., :10, :10], swapped[..., 10:20, 20:] = (
        image[..., 10:20, 20:],
        image[..., :10, :10],
    )  # patch 1 <-> patch 6
    before, after = tower(image), tower(swapped)
    torch.testing.assert_close(before[:, 0], after[:, 0], atol=1e-12, rtol=0)  # without positions: a bag of patches
    torch.testing.assert_close(before[:, 1], after[:, 6], atol=1e-12, rtol=0)
    assert (out[:, 0] - before[:, 0]).abs().max() > 1e-3  # with positions it is none


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "1b3ab54a")
def test_text_looks_only_back(setup_be7a4669):
    _, _, text_tower = setup_be7a4669
    tower = text_tower()
    ids = torch.randint(0, 47, (3, 7), generator=torch.Generator().manual_seed(4))
    mask = torch.ones(3, 7, dtype=torch.bool)
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 47
    a, b = tower(ids, mask), tower(changed, mask)
    torch.testing.assert_close(a[:, :5], b[:, :5], atol=1e-12, rtol=0)
    assert (a[:, 5:] - b[:, 5:]).abs().amin(dim=(0, 2)).max() > 0


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "0a7cc3c4")
def test_padding_changes_nothing(setup_be7a4669):
    _, _, text_tower = setup_be7a4669
    tower = text_tower()
    ids = torch.randint(1, 47, (2, 5), generator=torch.Generator().manual_seed(5))
    alone = tower(ids, torch.ones(2, 5, dtype=torch.bool))
    padded, mask = F.pad(ids, (0, 4)), F.pad(torch.ones(2, 5, dtype=torch.bool), (0, 4))
    torch.testing.assert_close(tower(padded, mask)[:, :5], alone, atol=1e-12, rtol=0)  # padding behind
    front = torch.tensor([[False, False, True, True, True]]).expand(2, -1)  # padding in front
    tower.position.data.zero_()
    torch.testing.assert_close(tower(ids, front)[:, 2:], tower(ids[:, 2:], front[:, 2:]), atol=1e-12, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "d8e171c4")
def test_a_row_without_keys_gives_no_nan(setup_be7a4669):
    _, _, text_tower = setup_be7a4669
    front = torch.tensor([[False, True, True]])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tower = text_tower().to(dtype)
        assert tower(torch.tensor([[0, 3, 4]]), front).isfinite().all(), dtype
        assert torch.tensor([0.0, BLOCKED], dtype=dtype).softmax(0)[1] == 0, dtype


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "dc0f27cb")
def test_gradient_reaches_every_parameter(setup_be7a4669):
    image_tower, picture, text_tower = setup_be7a4669
    for tower, inputs in (
        (image_tower(), (picture(),)),
        (text_tower(), (torch.arange(47)[None, :11], torch.ones(1, 11, dtype=torch.bool))),
    ):
        tower(*inputs).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())
        assert not [n for n, p in tower.named_parameters() if p.grad.abs().max() == 0]


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "7a405c31")
def test_towers_refuse(setup_be7a4669):
    image_tower, picture, text_tower = setup_be7a4669
    with pytest.raises(ValueError, match=r"image of \(30, 28\) pixels: this tower was built for 30 x 30"):
        image_tower()(picture()[..., :28])
    with pytest.raises(ValueError, match="text of 12 tokens: the context of this tower holds 11"):
        text_tower()(torch.zeros(1, 12, dtype=torch.long), torch.ones(1, 12, dtype=torch.bool))


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "a78c2400")
def test_initial_weights():
    torch.manual_seed(0)
    tower = TextTower(TowerConfig(width=64, layers=8, heads=4, hidden=256), 11, 500, 32)
    expected = {"qkv": 64**-0.5, "out": (2 * 8 * 64) ** -0.5, "fc": (2 * 64) ** -0.5, "proj": (2 * 8 * 64) ** -0.5}
    for name, std in expected.items():
        weights = torch.cat([getattr(block, name).weight.flatten() for block in tower.blocks])
        assert abs(weights.std().item() / std - 1) < 0.03, name
    assert abs(tower.token.weight.std().item() / 0.02 - 1) < 0.03
    assert abs(tower.position.std().item() / 0.01 - 1) < 0.15
    assert abs(tower.projection.weight.std().item() / 64**-0.5 - 1) < 0.1


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "b760e8c0")
def test_block_parameters():
    def block_parameters(width: int, hidden: int) -> int:
        attention = 4 * width**2 + 4 * width  # queries, keys, values, output; a bias each
        mlp = 2 * width * hidden + hidden + width
        norms = 4 * width  # two LayerNorms with weight and bias
        return attention + mlp + norms

    for width, heads, hidden in ((24, 3, 56), (768, 12, 3072)):
        with torch.device("meta"):
            block = Block(TowerConfig(width, 1, heads, hidden))
        assert block_parameters(width, hidden) == sum(p.numel() for p in block.parameters())


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "b760e8c0")
def test_block_parameters_starter_fails():
    def block_parameters(width: int, hidden: int) -> int:
        return 12 * width**2

    with pytest.raises(Exception):
        for width, heads, hidden in ((24, 3, 56), (768, 12, 3072)):
            with torch.device("meta"):
                block = Block(TowerConfig(width, 1, heads, hidden))
            assert block_parameters(width, hidden) == sum(p.numel() for p in block.parameters())


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "fdf43686")
def test_resize_positions():
    def resize_positions(position: Tensor, side: int) -> Tensor:
        """position: (1 + old * old, width) -> (1 + side * side, width)"""
        old = math.isqrt(len(position) - 1)
        grid = position[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)  # 1 width old old
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([position[:1], grid.flatten(2)[0].T])

    torch.manual_seed(0)
    vision = dict(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=8, image_size=30, patch_size=10
    )
    theirs = ReferenceCLIP(
        ReferenceConfig(
            text_config=dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
            vision_config=vision,
        )
    ).vision_model.embeddings
    want = theirs.interpolate_pos_encoding(torch.zeros(1, 26, 24), 50, 50)[0]
    torch.testing.assert_close(resize_positions(theirs.position_embedding.weight, 5), want)
    torch.testing.assert_close(resize_positions(theirs.position_embedding.weight, 3), theirs.position_embedding.weight)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "fdf43686")
def test_resize_positions_starter_fails():
    def resize_positions(position: Tensor, side: int) -> Tensor:
        """position: (1 + old * old, width) -> (1 + side * side, width)"""
        return F.interpolate(position.T[None], size=1 + side * side)[0].T

    with pytest.raises(Exception):
        torch.manual_seed(0)
        vision = dict(
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=3,
            intermediate_size=8,
            image_size=30,
            patch_size=10,
        )
        theirs = ReferenceCLIP(
            ReferenceConfig(
                text_config=dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8),
                vision_config=vision,
            )
        ).vision_model.embeddings
        want = theirs.interpolate_pos_encoding(torch.zeros(1, 26, 24), 50, 50)[0]
        torch.testing.assert_close(resize_positions(theirs.position_embedding.weight, 5), want)
        torch.testing.assert_close(
            resize_positions(theirs.position_embedding.weight, 3), theirs.position_embedding.weight
        )


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "7db15c42")
def test_attend_in_pieces(setup_c248cabd):
    qkv, slow_attend = setup_c248cabd

    def attend_in_pieces(q, k, v, mask=None, piece=2):
        rows = [slice(i, i + piece) for i in range(0, q.shape[2], piece)]
        return torch.cat([attend(q[:, :, r], k, v, None if mask is None else mask[:, :, r]) for r in rows], dim=2)

    q, k, v = qkv()
    mask = torch.zeros(1, 1, 5, 5, dtype=q.dtype).masked_fill(torch.ones(5, 5).triu(1).bool(), BLOCKED)
    for m in (None, mask):
        torch.testing.assert_close(attend_in_pieces(q, k, v, m), slow_attend(q, k, v, m), atol=1e-12, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "7db15c42")
def test_attend_in_pieces_starter_fails(setup_c248cabd):
    qkv, slow_attend = setup_c248cabd

    def attend_in_pieces(q, k, v, mask=None, piece=2):
        return torch.cat(
            [
                attend(q[:, :, i : i + piece], k[:, :, i : i + piece], v[:, :, i : i + piece])
                for i in range(0, q.shape[2], piece)
            ],
            dim=2,
        )

    with pytest.raises(Exception):
        q, k, v = qkv()
        mask = torch.zeros(1, 1, 5, 5, dtype=q.dtype).masked_fill(torch.ones(5, 5).triu(1).bool(), BLOCKED)
        for m in (None, mask):
            torch.testing.assert_close(attend_in_pieces(q, k, v, m), slow_attend(q, k, v, m), atol=1e-12, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "974120da")
def test_attention_error(setup_c248cabd):
    qkv, _ = setup_c248cabd

    def attention_error(scale: float) -> float:
        errors = []
        for seed in range(20):
            q, k, v = qkv(torch.bfloat16, seed)
            want = attend(scale * q.double(), k.double(), v.double())
            errors.append((attend(scale * q, k, v).double() - want).abs().max() / want.abs().max())
        return float(torch.stack(errors).mean())

    assert 1e-3 < attention_error(1.0) < 0.01  # 8 bits: about 0.4 per cent a rounding
    assert attention_error(32.0) > 2 * attention_error(1.0)  # sharper attention is less exact


@pytest.mark.nb("nbs/3_fusion/11a_clip_towers.ipynb", "974120da")
def test_attention_error_starter_fails(setup_c248cabd):
    qkv, _ = setup_c248cabd

    def attention_error(scale: float) -> float:
        q, k, v = qkv(torch.bfloat16)
        return 0.0

    with pytest.raises(Exception):
        assert 1e-3 < attention_error(1.0) < 0.01  # 8 bits: about 0.4 per cent a rounding
        assert attention_error(32.0) > 2 * attention_error(1.0)  # sharper attention is less exact
