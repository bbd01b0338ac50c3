"""Generated from nbs/2_transfer/08a_regimes.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vlp_course.finetune import linear_probe
from vlp_course.nn.backbone import Backbone
from vlp_course.regimes import (
    LOWER,
    TASKS,
    TREATMENTS,
    as_input,
    pools,
    right,
    stage_means,
    task_data,
    trained,
    treated,
    trunk,
    warm_cosine,
)


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "f4978a4d")
def test_treatments_by_hand():
    picture = np.arange(6 * 6 * 3, dtype=np.uint8).reshape(6, 6, 3) * 2
    rng = np.random.default_rng(0)
    assert (treated(picture, "none", rng) == picture).all()
    assert (treated(picture, "posterise", rng)[0, 0] == 16).all() and set(
        np.unique(treated(picture, "posterise", rng)) % 32
    ) == {16}
    combed = treated(picture, "interlace", rng)
    assert (combed[::2] == picture[::2]).all() and (combed[1, 1:] == picture[1, :-1]).all()
    mosaic = treated(picture, "mosaic", rng)
    assert (
        (mosaic[..., 1] == picture[..., 1]).all()
        and mosaic[2, 2, 0] == picture[3, 3, 0]
        and mosaic[2, 3, 0] == picture[2, 3, 0]
    )
    for treatment in TREATMENTS:
        kept, before = picture.copy(), treated(picture, treatment, np.random.default_rng(1))
        assert before.shape == picture.shape and before.dtype == np.uint8 and (picture == kept).all()
        assert treatment == "none" or (before != picture).any()
    with pytest.raises(ValueError, match="unknown treatment 'sepia': choose one of none, JPEG"):
        treated(picture, "sepia", rng)


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "05885b83")
def test_no_idea_on_both_sides():
    ideas = {split: {e.concept for pool in pools(split) for e in pool} for split in ("train", "fit", "val", "test")}
    assert not ideas["train"] & ideas["test"] and not ideas["fit"] & ideas["val"]
    assert ideas["fit"] | ideas["val"] == ideas["train"]
    assert all(len(pool) >= 2 for split in ideas for pool in pools(split)) and sum(map(len, pools("train"))) == 255
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, fit, val, test"):
        pools("dev")


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "657599af")
def test_tasks_are_balanced_and_repeatable():
    for task in TASKS:
        pictures, labels = task_data(task, "test", 40, 1)
        again, _ = task_data(task, "test", 30, 1)
        assert labels.bincount().tolist() == [4] * 10 and pictures[:30].equal(
            again
        )  # fewer pictures are the first of more
        assert not pictures.equal(task_data(task, "test", 40, 2)[0]) and not pictures.equal(
            task_data(task, "val", 40, 1)[0]
        )
        assert not pictures.equal(task_data(task, "test", 40, 1, ("openmoji",))[0])
    i = np.arange(100)
    assert len(set(zip(i % 10, (10 * i + (i + i // 10) % 10) % 10))) == 100  # a treatment tells nothing of the kind
    with pytest.raises(ValueError, match="unknown task 'colours': choose one of kinds, treatments"):
        task_data("colours", "test", 10, 0)


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "bfc26723")
def test_the_same_network_as_the_backbone():
    pictures = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    tables = stage_means(trunk(True).train(), pictures)
    assert [t.shape[1] for t in tables] == [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    with torch.no_grad():
        pooled = Backbone().pooled(pictures / 255)
    torch.testing.assert_close(tables[-1], pooled, rtol=0, atol=1e-3)
    assert trunk(False, 1).conv_stem.weight.equal(trunk(False, 1).conv_stem.weight)
    assert not trunk(False, 1).conv_stem.weight.equal(trunk(False, 2).conv_stem.weight)


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "cfad99eb")
def test_right_by_hand():
    net = trunk(True)
    net.classifier.bias.data[3] = 1.0  # a head of zeros that always says 3
    assert right(net, torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([3, 1, 3, 0])).tolist() == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "2cf44253")
def test_what_each_strategy_leaves_alone():
    pictures, labels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 10
    old, head = trunk(True), linear_probe(torch.randn(20, 1280), labels, 10)
    start = {k: v.clone() for k, v in old.state_dict().items()}
    below = lambda name: name.startswith(tuple(part + "." for part in LOWER))
    nets = {s: trained(s, pictures, labels, 1e-3, 0, head, steps=2) for s in ("freeze", "finetune", "lpft", "lora")}
    frozen = {k for k, v in nets["freeze"].state_dict().items() if v.equal(start[k])}
    assert frozen >= {k for k in start if below(k)} and not any(
        k.endswith("conv_pw.weight") and not below(k) for k in frozen
    )
    assert not nets["finetune"].conv_stem.weight.equal(old.conv_stem.weight)
    assert (
        (nets["lpft"].classifier.weight - head.weight).abs().max() < 5e-3 < head.weight.abs().max()
    )  # two steps from the probe
    assert all(
        v.equal(start[k]) for k, v in nets["lpft"].state_dict().items() if "running" in k or ".bn" in k
    )  # what the head was fitted to
    assert not nets["finetune"].bn1.running_mean.equal(start["bn1.running_mean"])
    state = nets["lora"].state_dict()
    kept = [k for k in start if not k.startswith("classifier")]
    assert all((state[k] if k in state else state[k.replace(".weight", ".base.weight")]).equal(start[k]) for k in kept)
    with pytest.raises(ValueError, match="'probe' trains no network: choose freeze, finetune, scratch, lpft or lora"):
        trained("probe", pictures, labels, 1e-3, 0)


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "444be08c")
def test_lpft_starts_as_its_probe():
    pictures, labels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 10
    table, head = (
        stage_means(trunk(True), pictures)[8],
        torch.nn.Linear(1280, 10),
    )  # a probe of noise has weights of thousands, which amplify rounding
    net = trained("lpft", pictures, labels, 1e-9, 0, head, steps=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(as_input(pictures)), head(table), rtol=0, atol=1e-4)
    moving = trained("finetune", pictures, labels, 1e-9, 0, steps=3)
    assert (moving.bn1.running_mean - net.bn1.running_mean).abs().max() > 1e-3


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "b09512a8")
def test_scratch_knows_nothing_and_batches_agree():
    pictures, labels = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8), torch.arange(20) % 10
    one, two = (trained("scratch", pictures, labels, 1e-3, 1, steps=1) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    random, pretrained = trunk(False, 1).conv_stem.weight, trunk(True).conv_stem.weight
    near = lambda w: (one.conv_stem.weight - w).abs().max()
    assert near(random) < 0.01 < near(pretrained)
    assert warm_cosine(0, 40) == 0.1 and warm_cosine(9, 40) == warm_cosine(10, 40) == 1


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "6b911895")
def test_kind_of():
    def kind_of(i):
        return (i + i // 10) % 10

    assert len({(i % 10, kind_of(i)) for i in range(100)}) == 100


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "6b911895")
def test_kind_of_starter_fails():
    def kind_of(i):
        return i % 10

    with pytest.raises(Exception):
        assert len({(i % 10, kind_of(i)) for i in range(100)}) == 100


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "2d00248f")
def test_mirrored():
    def mirrored(pictures):
        return torch.cat([pictures, pictures.flip(3)]), torch.arange(2 * len(pictures)) // len(pictures)

    pictures = torch.randint(256, (3, 3, 8, 10), dtype=torch.uint8)
    both, labels = mirrored(pictures)
    assert labels.bincount().tolist() == [3, 3]
    assert both[labels == 0].equal(pictures) and both[labels == 1].equal(pictures.flip(3))


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "2d00248f")
def test_mirrored_starter_fails():
    def mirrored(pictures):
        return pictures, torch.arange(len(pictures)) % 2

    with pytest.raises(Exception):
        pictures = torch.randint(256, (3, 3, 8, 10), dtype=torch.uint8)
        both, labels = mirrored(pictures)
        assert labels.bincount().tolist() == [3, 3]
        assert both[labels == 0].equal(pictures) and both[labels == 1].equal(pictures.flip(3))


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "87435f89")
def test_all_depths():
    def all_depths(tables):
        return torch.cat([F.normalize(table - table.mean(0), dim=1) for table in tables], 1)

    tables = [torch.randn(5, width) * scale for width, scale in ((4, 1.0), (7, 100.0))]
    joined = all_depths(tables)
    assert joined.shape == (5, 11)
    torch.testing.assert_close(joined[:, :4].norm(dim=1), joined[:, 4:].norm(dim=1))  # no table drowns the others


@pytest.mark.nb("nbs/2_transfer/08a_regimes.ipynb", "87435f89")
def test_all_depths_starter_fails():
    def all_depths(tables):
        return tables[-1]

    with pytest.raises(Exception):
        tables = [torch.randn(5, width) * scale for width, scale in ((4, 1.0), (7, 100.0))]
        joined = all_depths(tables)
        assert joined.shape == (5, 11)
        torch.testing.assert_close(joined[:, :4].norm(dim=1), joined[:, 4:].norm(dim=1))  # no table drowns the others
