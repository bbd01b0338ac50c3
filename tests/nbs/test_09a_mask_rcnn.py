"""Generated from nbs/2_transfer/09a_mask_rcnn.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
import torchvision
from collections import OrderedDict
from torch import nn
from vlp_course.data.pairs import Pairs
from vlp_course.nn.detection_vit import DetectionViT
from vlp_course.models.detection import (
    Detector,
    LEVELS,
    PyramidBackbone,
    SimplePyramid,
    TapPyramid,
    check_targets,
    mask_rcnn,
)


@pytest.fixture(scope="module")
def setup_e77e7522():
    def good_target():
        return {
            "boxes": torch.tensor([[4.0, 5, 40, 50], [30, 20, 96, 64]]),
            "labels": torch.tensor([3, 20]),
            "masks": torch.ones(2, 64, 96, dtype=torch.uint8),
        }

    def no_objects():
        return {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 64, 96, dtype=torch.uint8),
        }

    return good_target, no_objects


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "1937a673")
def test_five_levels():
    maps = [torch.randn(2, 32, 6, 10, requires_grad=True) for _ in range(4)]
    for kind in (SimplePyramid, TapPyramid):
        levels = kind(32, 12)(maps)
        assert [tuple(x.shape) for x in levels.values()] == [
            (2, 12, 24, 40),
            (2, 12, 12, 20),
            (2, 12, 6, 10),
            (2, 12, 3, 5),
            (2, 12, 2, 3),
        ]
        assert tuple(levels) == LEVELS and levels["pool"].equal(levels["3"][:, :, ::2, ::2])


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "3ce13bd8")
def test_who_feeds_whom():
    maps = [torch.randn(2, 32, 6, 10, requires_grad=True) for _ in range(4)]
    fed = lambda level: [
        g is not None and bool(g.abs().sum() > 0)
        for g in torch.autograd.grad(level.square().sum(), maps, allow_unused=True)
    ]
    levels = SimplePyramid(32, 12)(maps)
    assert [fed(levels[n]) for n in "0123"] == [[False, False, False, True]] * 4  # the last map feeds all
    levels = TapPyramid(32, 12)(maps)
    wanted = [[i >= n for i in range(4)] for n in range(4)]  # a level hears its own map and coarser ones
    assert [fed(TapPyramid(32, 12)(maps)[n]) for n in "0123"] == wanted


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "27542c80")
def test_a_pyramid_keeps_places():
    x = torch.zeros(1, 32, 8, 8)
    x[:, :, 2, 5] = torch.randn(32)  # one lit cell: row 2, column 5
    pyramid = SimplePyramid(32, 12)
    for n, level, dark in zip((4, 2, 1, 0.5), pyramid([x]).values(), pyramid([0 * x]).values()):
        lit = (level - dark).abs().sum((0, 1)).nonzero().float().mean(0)
        assert ((lit + 0.5) / n - torch.tensor([2.5, 5.5])).abs().max() <= 0.5 / n, n


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "570fe7de")
def test_heads_are_torchvisions():
    sizes = dict(image_mean=[0.0] * 3, image_std=[1.0] * 3, box_score_thresh=0.0, box_detections_per_img=7)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=21, min_size=64, max_size=128, **sizes
    )
    ours = mask_rcnn(theirs.backbone, 21, 64, box_score_thresh=0.0, box_detections_per_img=7)
    ours.load_state_dict(theirs.state_dict())  # strict: same names, same shapes
    image = [torch.rand(3, 64, 96)]
    boxes = torch.tensor([[4.0, 5, 40, 50], [30, 20, 90, 60]])
    target = [{"boxes": boxes, "labels": torch.tensor([3, 20]), "masks": (torch.rand(2, 64, 96) < 0.5).to(torch.uint8)}]
    losses = []
    for net in (ours, theirs):
        torch.manual_seed(1)  # both draw the same proposals
        with torch.no_grad():
            losses.append(net.train()(image, target))
    assert losses[0].keys() == losses[1].keys()
    torch.testing.assert_close(losses[0], losses[1])
    with torch.no_grad():
        found, wanted = ours.eval()(image)[0], theirs.eval()(image)[0]
    assert len(wanted["boxes"]) == 7
    torch.testing.assert_close(found, wanted)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "c96007a6")
def test_full_widths_on_a_vit():
    body = DetectionViT(64, 16, 64, 4, 4)
    net = mask_rcnn(PyramidBackbone(body), 21, 64)
    boxes = torch.tensor([[4.0, 5, 40, 50]])
    losses = net(
        [torch.rand(3, 64, 80)],
        [{"boxes": boxes, "labels": torch.tensor([3]), "masks": torch.ones(1, 64, 80, dtype=torch.uint8)}],
    )
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values()) and len(losses) == 5
    assert body.layers[0].attention.row_table.grad is not None and body.patch.project.weight.grad.abs().sum() > 0
    assert net.roi_heads.box_head.fc6.weight.shape == (1024, 256 * 49) and net.roi_heads.mask_head[3][
        0
    ].weight.shape == (256, 256, 3, 3)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "35470e12")
def test_bad_targets(setup_e77e7522):
    good_target, no_objects = setup_e77e7522
    image = torch.rand(3, 64, 96)
    check_targets([image, image], [good_target(), no_objects()], 21)  # both are fine
    faults = [
        (
            {"boxes": torch.zeros(0)},
            r"boxes are torch.float32 of shape \(0,\): expected floats of shape \(objects, 4\), \(0, 4\) for none",
        ),
        ({"boxes": torch.tensor([[4, 5, 40, 50], [30, 20, 96, 64]])}, r"boxes are torch.int64 of shape \(2, 4\)"),
        (
            {"boxes": torch.tensor([[4.0, 5, 40, 50], [30, 20, 97, 64]])},
            r"box \[30.0, 20.0, 97.0, 64.0\] .* leaves the picture of 96 x 64 pixels",
        ),
        ({"boxes": torch.tensor([[-1.0, 5, 40, 50], [30, 20, 96, 64]])}, r"box \[-1.0, 5.0, 40.0, 50.0\]"),
        ({"boxes": torch.tensor([[4.0, 50, 40, 50], [30, 20, 96, 64]])}, r"box \[4.0, 50.0, 40.0, 50.0\] is empty"),
        ({"boxes": torch.tensor([[4.0, math.nan, 40, 50], [30, 20, 96, 64]])}, r"box \[4.0, nan, 40.0, 50.0\]"),
        ({"labels": torch.tensor([3, 21])}, "labels from 3 to 21: expected 1 to 20, 0 is the background"),
        ({"labels": torch.tensor([0, 20])}, "labels from 0 to 20: expected 1 to 20"),
        (
            {"labels": torch.tensor([3])},
            r"labels are torch.int64 of shape \(1,\): expected torch.int64 of shape \(2,\)",
        ),
        ({"labels": torch.tensor([3.0, 20])}, "labels are torch.float32"),
        ({"masks": torch.ones(2, 96, 64)}, r"masks have shape \(2, 96, 64\): expected \(2, 64, 96\)"),
        ({"masks": torch.ones(1, 64, 96)}, r"masks have shape \(1, 64, 96\)"),
    ]
    for change, message in faults:
        with pytest.raises(ValueError, match="target 1: " + message):
            check_targets([image, image], [good_target(), good_target() | change], 21)
    with pytest.raises(ValueError, match="target 0 has no 'masks': it needs boxes, labels and masks"):
        check_targets([image], [{k: v for k, v in good_target().items() if k != "masks"}], 21)
    with pytest.raises(ValueError, match="2 pictures with 1 targets"):
        check_targets([image, image], [good_target()], 21)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "94730251")
def test_pictures_without_objects(setup_e77e7522):
    good_target, no_objects = setup_e77e7522
    torch.manual_seed(0)
    model, image = Detector(DetectionViT(64, 16, 64, 4, 4), 21, size=64), torch.rand(2, 3, 64, 96)
    for targets in ([good_target(), no_objects()], [no_objects(), no_objects()]):
        losses = model(
            Pairs(image, ["", ""], None, torch.arange(2), targets={"objects": targets}),
            step=0,
            generator=torch.Generator(),
        ).losses
        sum(losses.values()).backward()
        assert all(v.isfinite() for v in losses.values()) and losses["loss_objectness"] > 0
    assert losses["loss_mask"] == 0 and losses["loss_box_reg"] == 0  # nothing to paint, nothing to move
    with pytest.raises(ValueError, match="target 1: labels from 3 to 20: expected 1 to 4"):
        Detector(DetectionViT(64, 16, 64, 4, 4), 5, size=64)(
            Pairs(image, ["", ""], None, torch.arange(2), targets={"objects": [no_objects(), good_target()]}),
            step=0,
            generator=torch.Generator(),
        )


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "971306f4")
def test_detections_have_their_form():
    torch.manual_seed(0)
    model = Detector(DetectionViT(64, 16, 64, 4, 4), 5, TapPyramid, size=64, box_score_thresh=0.0)
    found = model.detect(torch.rand(2, 3, 64, 96))
    assert len(found) == 2 and model.training  # and goes on training
    for one in found:
        n = len(one["boxes"])
        assert (
            0 < n <= 20
            and one["masks"].shape == (n, 1, 64, 96)
            and one["labels"].min() >= 1
            and one["labels"].max() <= 4
        )
        assert (
            one["scores"].diff().max() <= 0
            and one["boxes"].min() >= 0
            and (one["boxes"] <= torch.tensor([96.0, 64, 96, 64])).all()
        )


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "55a3d8d8")
def test_encode():
    def encode(box, proposal):
        side, side_a = box[2:] - box[:2], proposal[2:] - proposal[:2]
        centre, centre_a = (box[2:] + box[:2]) / 2, (proposal[2:] + proposal[:2]) / 2
        return torch.cat([(centre - centre_a) / side_a, (side / side_a).log()])

    coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes, proposals = (torch.rand(5, 2) * 50 for _ in range(2))
    boxes, proposals = (
        torch.cat([boxes, boxes + 9 + 40 * torch.rand(5, 2)], 1),
        torch.cat([proposals, proposals + 9 + 40 * torch.rand(5, 2)], 1),
    )
    for box, proposal, wanted in zip(boxes, proposals, coder.encode_single(boxes, proposals)):
        torch.testing.assert_close(encode(box, proposal), wanted)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "55a3d8d8")
def test_encode_starter_fails():
    def encode(box, proposal):
        return (box - proposal) / (proposal[2:] - proposal[:2]).repeat(2)

    with pytest.raises(Exception):
        coder = torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
        boxes, proposals = (torch.rand(5, 2) * 50 for _ in range(2))
        boxes, proposals = (
            torch.cat([boxes, boxes + 9 + 40 * torch.rand(5, 2)], 1),
            torch.cat([proposals, proposals + 9 + 40 * torch.rand(5, 2)], 1),
        )
        for box, proposal, wanted in zip(boxes, proposals, coder.encode_single(boxes, proposals)):
            torch.testing.assert_close(encode(box, proposal), wanted)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "1972cf36")
def test_roi_align():
    def roi_align(grid, box, cells):
        x0, y0, x1, y1 = box
        y, x = (low + (torch.arange(cells) + 0.5) * (high - low) / cells for low, high in ((y0, y1), (x0, x1)))
        top, left = y.floor().long(), x.floor().long()
        down, right = (y - top)[:, None], x - left
        upper = grid[top][:, left] * (1 - right) + grid[top][:, left + 1] * right
        lower = grid[top + 1][:, left] * (1 - right) + grid[top + 1][:, left + 1] * right
        return upper * (1 - down) + lower * down

    grid = torch.rand(9, 12)
    for box in ([1.2, 2.7, 9.1, 7.4], [0.5, 0.5, 3.0, 8.0]):
        wanted = torchvision.ops.roi_align(grid[None, None], [torch.tensor([box])], 5, sampling_ratio=1)[0, 0]
        torch.testing.assert_close(roi_align(grid, box, 5), wanted)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "1972cf36")
def test_roi_align_starter_fails():
    def roi_align(grid, box, cells):
        x0, y0, x1, y1 = box
        rows = (y0 + (torch.arange(cells) + 0.5) * (y1 - y0) / cells).round().long()
        columns = (x0 + (torch.arange(cells) + 0.5) * (x1 - x0) / cells).round().long()
        return grid[rows][:, columns]

    with pytest.raises(Exception):
        grid = torch.rand(9, 12)
        for box in ([1.2, 2.7, 9.1, 7.4], [0.5, 0.5, 3.0, 8.0]):
            wanted = torchvision.ops.roi_align(grid[None, None], [torch.tensor([box])], 5, sampling_ratio=1)[0, 0]
            torch.testing.assert_close(roi_align(grid, box, 5), wanted)


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "38c96255")
def test_no_pyramid():
    class NoPyramid(nn.Module):
        def __init__(self, dim, channels=256):
            super().__init__()
            self.project = nn.Conv2d(dim, channels, 1)

        def forward(self, maps):
            x = self.project(maps[-1])
            finer = [F.interpolate(x, scale_factor=s, mode="bilinear", align_corners=False) for s in (4, 2)]
            coarser = [F.max_pool2d(x, 2), F.max_pool2d(F.max_pool2d(x, 2), 1, 2)]
            return OrderedDict(zip(LEVELS, [*finer, x, *coarser]))

    maps = [torch.randn(2, 32, 6, 10) for _ in range(4)]
    levels, wanted = NoPyramid(32, 12)(maps), SimplePyramid(32, 12)(maps)
    assert {k: v.shape for k, v in levels.items()} == {k: v.shape for k, v in wanted.items()}
    plain = [torch.ones(1, 32, 6, 10)] * 4
    assert all(
        v.std((2, 3)).max() < 1e-5 for v in NoPyramid(32, 12)(plain).values()
    )  # a plain map stays plain on every level


@pytest.mark.nb("nbs/2_transfer/09a_mask_rcnn.ipynb", "38c96255")
def test_no_pyramid_starter_fails():
    class NoPyramid(nn.Module):
        def __init__(self, dim, channels=256):
            super().__init__()
            self.project = nn.Conv2d(dim, channels, 1)

        def forward(self, maps):
            return OrderedDict(zip(LEVELS, [self.project(maps[-1])] * 5))

    with pytest.raises(Exception):
        maps = [torch.randn(2, 32, 6, 10) for _ in range(4)]
        levels, wanted = NoPyramid(32, 12)(maps), SimplePyramid(32, 12)(maps)
        assert {k: v.shape for k, v in levels.items()} == {k: v.shape for k, v in wanted.items()}
        plain = [torch.ones(1, 32, 6, 10)] * 4
        assert all(
            v.std((2, 3)).max() < 1e-5 for v in NoPyramid(32, 12)(plain).values()
        )  # a plain map stays plain on every level
