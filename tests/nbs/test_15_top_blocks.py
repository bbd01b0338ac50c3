"""Generated from nbs/4_pretraining/15_top_blocks.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import pytest
import torch
from torch import Tensor
from torch import nn
from vlp_course.data.pairs import SceneSet
from vlp_course.models.clip import CLIP
from vlp_course.models.clip import towers
from vlp_course.nn.backbone import Backbone
from vlp_course.nn.backbone import pack
from vlp_course.nn.backbone import unpack
from vlp_course.recipe import Recipe
from vlp_course.train import fit
from vlp_course.nn.top_blocks import TopBlocks, kernel_index


@pytest.fixture(scope="module")
def setup_3e451813():
    def slow_top(features: Tensor, stages: nn.Module) -> Tensor:
        """The last two stages as convolutions."""
        fine, _ = unpack(features)
        return pack(fine, stages[6](stages[5](fine)))

    return slow_top


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "cc314bff")
def test_index_by_hand():
    assert kernel_index(2, 3).tolist() == [[4, 5, 7, 8], [3, 4, 6, 7], [1, 2, 4, 5], [0, 1, 3, 4]]
    corner = kernel_index(3, 3)
    assert corner[0, 8] == corner[8, 0] == corner[0, 2] == 9 and corner[4].tolist() == list(range(9))
    with pytest.raises(ValueError, match="a kernel of 4 has no middle: it must be odd"):
        kernel_index(4, 4)


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "89a81ebf")
def test_equals_timms_convolutions(setup_3e451813):
    slow_top = setup_3e451813
    torch.manual_seed(3)
    top = TopBlocks(pretrained=False)
    stages = Backbone(False).net.blocks
    layers = [*stages[5], *stages[6]][1:]
    for ours, theirs in zip(top.layers, layers, strict=True):
        for name, conv in (("wide", theirs.conv_pw), ("kernel", theirs.conv_dw), ("narrow", theirs.conv_pwl)):
            conv.weight.data = torch.randn_like(conv.weight) / conv.weight[0].numel() ** 0.5
            conv.bias.data = torch.randn_like(conv.bias)
            getattr(ours, name).data = conv.weight.data.flatten(1).clone()
            getattr(ours, name + "_shift").data = conv.bias.data.clone()
    top, stages = top.double(), stages.double().requires_grad_(True)
    features = torch.randn(3, 12288, dtype=torch.float64)
    ours, theirs = top(features), slow_top(features, stages)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for layer, reference in zip(top.layers, layers):
        for name, conv in (("wide", reference.conv_pw), ("kernel", reference.conv_dw), ("narrow", reference.conv_pwl)):
            torch.testing.assert_close(getattr(layer, name).grad, conv.weight.grad.flatten(1), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(getattr(layer, name + "_shift").grad, conv.bias.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "25b35107")
def test_starts_as_the_frozen_trunk():
    scenes = SceneSet("val", 6)
    with torch.no_grad():
        features = pack(*Backbone()(scenes.images(range(6))))
    top = TopBlocks()
    torch.testing.assert_close(top(features), features, rtol=0, atol=1e-4)
    (fine, coarse), (same, trained) = unpack(features), unpack(top(features))
    assert torch.equal(fine, same) and trained.requires_grad
    assert sum(p.numel() for p in top.parameters() if p.requires_grad) == 2_023_808
    assert not any(p.requires_grad for p in top.first.parameters()) and top.lr_scale == 0.3


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "c2ae68a9")
def test_a_step_moves_the_trunk_slowly():
    image, text, vocabulary = towers(0)
    model = CLIP(nn.Sequential(TopBlocks(), image), text, vocabulary)
    scenes = SceneSet("val", 12, features=torch.randn(12, 12288, generator=torch.Generator().manual_seed(0)).numpy())
    before = copy.deepcopy(model.state_dict())
    fit(model, scenes, Recipe(1, batch_size=12, lr=1e-3, warmup=1, weight_decay=0.0), progress=False)
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.state_dict().items()}
    assert all(value == 0 for name, value in moved.items() if ".first." in name)
    assert moved["image_encoder.0.layers.0.wide"] == pytest.approx(3e-4, rel=0.01)  # three tenths of ...
    assert moved["image_encoder.1.project.weight"] == pytest.approx(1e-3, rel=0.01)  # ... the rate


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "abfcf755")
def test_multiplications():
    def multiplications(channels: int, side: int, kernel: int) -> tuple[int, int]:
        """Of a depthwise filter with zero padding counted in, and of one matrix a channel."""
        return channels * side**2 * kernel**2, channels * side**4

    assert multiplications(1152, 4, 5) == (460_800, 294_912)  # fewer here: the padding is multiplied by nobody
    assert multiplications(1, 8, 5) == (1600, 4096)  # and more on the next larger grid


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "abfcf755")
def test_multiplications_starter_fails():
    def multiplications(channels: int, side: int, kernel: int) -> tuple[int, int]:
        """Of a depthwise filter with zero padding counted in, and of one matrix a channel."""
        ...

    with pytest.raises(Exception):
        assert multiplications(1152, 4, 5) == (460_800, 294_912)  # fewer here: the padding is multiplied by nobody
        assert multiplications(1, 8, 5) == (1600, 4096)  # and more on the next larger grid


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "6dca0b23")
def test_frozen_share():
    def frozen_share(model: nn.Module) -> float:
        """Share of parameters, by count of numbers, that have no gradient."""
        count = lambda ps: sum(p.numel() for p in ps)
        return count(p for p in model.parameters() if not p.requires_grad) / count(model.parameters())

    pair = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 5, bias=False)])
    assert frozen_share(pair) == 0
    pair[0].requires_grad_(False)
    assert frozen_share(pair) == pytest.approx(8 / 18)


@pytest.mark.nb("nbs/4_pretraining/15_top_blocks.ipynb", "6dca0b23")
def test_frozen_share_starter_fails():
    def frozen_share(model: nn.Module) -> float:
        """Share of parameters, by count of numbers, that have no gradient."""
        ...

    with pytest.raises(Exception):
        pair = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 5, bias=False)])
        assert frozen_share(pair) == 0
        pair[0].requires_grad_(False)
        assert frozen_share(pair) == pytest.approx(8 / 18)
