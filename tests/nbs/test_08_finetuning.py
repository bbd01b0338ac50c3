"""Generated from nbs/2_transfer/08_finetuning.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import math
import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vlp_course.finetune import (
    LoRA,
    add_lora,
    cosine,
    freeze,
    linear_probe,
    parameter_groups,
    replace_head,
    slanted_triangular,
    thaw,
    train_steps,
    unfreeze,
)


@pytest.fixture(scope="module")
def setup_38c3acc1():
    def small_net():
        net = nn.Sequential()
        net.add_module("stem", nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU()))
        net.add_module(
            "body", nn.Sequential(nn.Conv2d(5, 7, 3, stride=2), nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 11, 1))
        )
        net.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
        net.add_module("fc", nn.Linear(11, 4))
        return net

    def some_steps(net, groups, steps=6):
        x, y, optimiser = torch.randn(8, 3, 9, 10) * 2 + 1, torch.randint(4, (8,)), torch.optim.AdamW(groups)
        for _ in range(steps):
            net.train()
            optimiser.zero_grad(), F.cross_entropy(net(x), y).backward(), optimiser.step()
        return optimiser

    def learners(net):
        return [p for p in net.parameters() if p.requires_grad]

    return learners, small_net, some_steps


@pytest.fixture(scope="module")
def setup_a9772bd7():
    def detection_rule(name, decay, blocks):
        layer = blocks + 1
        if name.startswith(("pos_embed", "patch_embed")):
            layer = 0
        elif name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        return decay ** (blocks + 1 - layer)

    def tiny_vit(blocks=4):
        net = nn.Module()
        net.pos_embed, net.patch_embed = nn.Parameter(torch.zeros(1, 5, 12)), nn.Conv2d(3, 12, 4, 4)
        net.blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12)) for _ in range(blocks)))
        net.norm, net.head = nn.LayerNorm(12), nn.Linear(12, 3)
        return net

    return detection_rule, tiny_vit


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "41a29f53")
def test_what_is_frozen_does_not_move(setup_38c3acc1):
    learners, small_net, some_steps = setup_38c3acc1
    net = freeze(small_net(), "stem", "body.0", "body.1")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimiser = some_steps(net, learners(net))
    same = {k for k, v in net.state_dict().items() if v.equal(before[k])}
    assert same == {
        k for k in before if k.startswith(("stem", "body.0", "body.1"))
    }  # weights and statistics, to the last bit
    assert set(optimiser.state) == set(learners(net))  # state for what learns, and for nothing else
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    assert net.stem[1].training is False and net.training is True


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "7063c4ae")
def test_without_freeze_statistics_move(setup_38c3acc1):
    learners, small_net, some_steps = setup_38c3acc1
    net = small_net()
    net.stem.requires_grad_(False)
    before = net.stem[1].running_mean.clone()
    some_steps(net, learners(net))
    assert not net.stem[1].running_mean.equal(before)  # the mistake that freeze prevents
    frozen = freeze(net, "stem")
    copied = copy.deepcopy(frozen).train()
    before = copied.stem[1].running_mean.clone()
    copied(torch.randn(4, 3, 9, 10))
    assert copied.stem[1].running_mean.equal(before)  # a copy stays frozen
    unfreeze(copied, "stem").train()(torch.randn(4, 3, 9, 10))
    assert copied.stem[1].training and not copied.stem[1].running_mean.equal(before)
    assert all(p.requires_grad for p in copied.parameters())


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "66118f6a")
def test_an_old_gradient_is_dropped(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1
    net = small_net()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 3, 9, 10)).sum().backward(), optimiser.step()
    freeze(net)  # the optimiser still holds momentum for all
    before = [p.clone() for p in net.parameters()]
    optimiser.step()
    assert all(p.equal(q) for p, q in zip(net.parameters(), before))
    with pytest.raises(
        ValueError, match="the model has no part 'stam': its parts are stem, body, pool, fc, and parts of these"
    ):
        freeze(net, "stam")
    with pytest.raises(ValueError, match="no part 'bod'"):  # a name, not the beginning of one
        unfreeze(net, "bod")


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "692b275b")
def test_a_new_head(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1
    net = small_net()
    assert replace_head(net, 6) == "fc" and net.fc.weight.shape == (6, 11)
    loss = F.cross_entropy(net(torch.randn(2, 3, 9, 10)), torch.tensor([1, 5]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6))
    assert all((p.grad == 0).all() for name, p in net.named_parameters() if not name.startswith("fc"))
    assert (net.fc.weight.grad != 0).any()
    assert replace_head(nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).double(), 7, "0") == "0"
    with pytest.raises(ValueError, match="no linear layer 'stem' to replace: the model has fc"):
        replace_head(net, 6, "stem")
    with pytest.raises(ValueError, match="the model has none"):
        replace_head(nn.Sequential(nn.ReLU()), 6)
    with pytest.raises(ValueError, match="1 classes: a classifier needs at least 2"):
        replace_head(net, 1)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "786fd302")
def test_rates_by_hand(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1
    net = freeze(small_net(), "body.3")
    groups = parameter_groups(net, ["stem", ["body.0", "body.1"]], lr=0.8, decay=0.5, weight_decay=0.3)
    found = {
        name: (g["lr"], g["weight_decay"])
        for g in groups
        for p in g["params"]
        for name, q in net.named_parameters()
        if p is q
    }
    assert found == {
        "stem.0.weight": (0.2, 0.3),
        "stem.0.bias": (0.2, 0),
        "stem.1.weight": (0.2, 0),
        "stem.1.bias": (0.2, 0),
        "body.0.weight": (0.4, 0.3),
        "body.0.bias": (0.4, 0),
        "body.1.weight": (0.4, 0),
        "body.1.bias": (0.4, 0),
        "fc.weight": (0.8, 0.3),
        "fc.bias": (0.8, 0),
    }
    for lr, decay in ((0.0, 0.5), (0.1, 0.0)):
        with pytest.raises(ValueError, match="both must be above 0"):
            parameter_groups(net, ["stem"], lr, decay)
    with pytest.raises(ValueError, match="no part 'neck'"):
        parameter_groups(net, ["neck"], 0.1)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "68cda402")
def test_rates_as_in_detection(setup_a9772bd7):
    detection_rule, tiny_vit = setup_a9772bd7
    net = tiny_vit(blocks=4)
    groups = parameter_groups(
        net, [["pos_embed", "patch_embed"], *(f"blocks.{i}" for i in range(4))], lr=1.0, decay=0.7
    )
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, p in net.named_parameters():
        assert rates[id(p)] == pytest.approx(detection_rule(name, 0.7, blocks=4)), name
    assert len(rates) == len(list(net.parameters()))


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "6bcc8603")
def test_triangle_by_hand():
    found = [slanted_triangular(k, 20) for k in (0, 1, 2, 11, 19)]  # c = 2
    assert found == pytest.approx([1 / 32, (1 + 31 / 2) / 32, 1.0, (1 + 31 / 2) / 32, (1 + 31 / 18) / 32])
    shares = [slanted_triangular(k, 300, 0.2, 10) for k in range(300)]
    assert max(shares) == shares[60] == 1 and min(shares) == shares[0] == 0.1
    assert np.allclose(np.diff(shares[:61]), 0.9 / 60) and np.allclose(np.diff(shares[60:]), -0.9 / 240)
    assert [cosine(k, 4) for k in range(4)] == pytest.approx([1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5])
    assert [cosine(k, 6, warmup=2) for k in (0, 1, 2, 4)] == pytest.approx([0.5, 1, 1, 0.5])
    for schedule in (slanted_triangular, cosine):
        for step in (-1, 20):
            with pytest.raises(ValueError, match=f"step {step} of 20: steps are counted from 0 to 19"):
                schedule(step, 20)
    with pytest.raises(
        ValueError, match="cut_frac=0.1 of 9 steps is 0: the rise must take at least 1 step and not all"
    ):
        slanted_triangular(3, 9)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "476ea3a1")
def test_layers_wake_from_the_top(setup_38c3acc1):
    learners, small_net, _ = setup_38c3acc1
    net, x, y = small_net(), torch.randn(8, 3, 9, 10), torch.randint(4, (8,))
    learning = lambda: [next(part.parameters()).requires_grad for part in (net.stem, net.body, net.fc)]
    optimiser, crews, awake = torch.optim.AdamW(net.parameters(), lr=1e-2), [], []
    for step in range(7):
        awake.append(thaw(net, ["stem", "body"], step, every=2))
        net.train()
        optimiser.zero_grad(), F.cross_entropy(net(x), y).backward(), optimiser.step()
        crews.append(learning())
        assert set(learners(net)) == set(optimiser.state)  # sleepers have no state yet
    assert awake == [0, 0, 1, 1, 2, 2, 2]
    assert crews == [[False, False, True]] * 2 + [[False, True, True]] * 2 + [[True] * 3] * 3
    with pytest.raises(ValueError, match="step 3, a new layer every 0 steps"):
        thaw(net, ["stem"], 3, 0)
    with pytest.raises(ValueError, match="no part 'neck'"):
        thaw(net, ["neck"], 0, 5)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "87bfdd8d")
def test_lora_as_in_peft():
    net = nn.Sequential(nn.Conv2d(5, 7, 1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(42, 4)).double()
    theirs = peft.inject_adapter_in_model(
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0", "3"]), copy.deepcopy(net)
    )
    ours, x = copy.deepcopy(net), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    assert add_lora(ours, 3, ["0", "3"], alpha=6) == 2
    torch.testing.assert_close(ours(x), net(x), rtol=0, atol=0)  # the update starts at zero
    for mine, other in ((ours[0], theirs[0]), (ours[3], theirs[3])):
        nn.init.normal_(mine.down), nn.init.normal_(mine.up)
        other.lora_A["default"].weight.data = mine.down.detach().view_as(other.lora_A["default"].weight).clone()
        other.lora_B["default"].weight.data = mine.up.detach().view_as(other.lora_B["default"].weight).clone()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-10)
    assert (ours(x) - net(x)).abs().max() > 0.1
    before = ours(x).detach()
    merged, theirs_merged = (
        nn.Sequential(ours[0].merge(), ours[1], ours[2], ours[3].merge()),
        [t for t in (theirs[0], theirs[3])],
    )
    torch.testing.assert_close(merged(x), before, rtol=0, atol=1e-12)
    for mine, other in zip((merged[0], merged[3]), theirs_merged):
        other.merge()
        torch.testing.assert_close(mine.weight, other.get_base_layer().weight, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "fb1e3dd3")
def test_lora_trains_the_update_alone(setup_38c3acc1):
    _, small_net, some_steps = setup_38c3acc1
    net = small_net()
    assert add_lora(net, 2, ["stem", "body"]) == 1  # only body.3 is 1 x 1
    base = net.body[3].base.weight.clone()
    learning = {name for name, p in net.named_parameters() if p.requires_grad}
    assert learning == {"body.3.down", "body.3.up", "fc.weight", "fc.bias"}
    optimiser = some_steps(net, parameter_groups(net, ["stem", "body"], 1e-2))
    assert net.body[3].base.weight.equal(base) and len(optimiser.state) == 4
    assert torch.linalg.matrix_rank(net.body[3].weight()[..., 0, 0] - base[..., 0, 0]) == 2
    with pytest.raises(ValueError, match="a linear layer or a 1 x 1 convolution, not Conv2d"):
        LoRA(nn.Conv2d(3, 5, 3), 2)
    with pytest.raises(ValueError, match="rank 0: an update needs at least rank 1"):
        LoRA(nn.Linear(3, 5), 0)
    with pytest.raises(ValueError, match="no linear layer and no 1 x 1 convolution in stem"):
        add_lora(small_net(), 2, ["stem"])


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "9ae6c589")
def test_probe_is_the_optimum():
    x, y = torch.randn(60, 5, dtype=torch.float64) * torch.tensor([1.0, 3, 10, 0.1, 1]) + 2, torch.arange(60) % 3
    x[:, 1] += 12 * y
    head = linear_probe(x, y, 3, strength=0.01)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    weight = (head.weight * deviation).detach().requires_grad_()  # back to standardised features
    bias = (head.bias + head.weight @ mean).detach().requires_grad_()
    loss = F.cross_entropy((x - mean) / deviation @ weight.T + bias, y) + 0.01 * weight.square().sum()
    slopes = torch.autograd.grad(loss, (weight, bias))
    assert max(g.abs().max() for g in slopes) < 1e-4  # no slope left
    assert (head(x).argmax(1) == y).double().mean() > 0.8
    torch.testing.assert_close(
        linear_probe(100 * x - 7, y, 3)(100 * x - 7), linear_probe(x, y, 3)(x), rtol=0, atol=1e-2
    )
    with pytest.raises(ValueError, match="labels from 0 to 2: expected 0 to 1"):
        linear_probe(x, y, 2)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "cbf986fd")
def test_rates_follow_the_schedule(setup_38c3acc1):
    _, small_net, some_steps = setup_38c3acc1
    net, rates = small_net(), []
    groups = parameter_groups(net, ["stem", "body"], 0.4, decay=0.5)
    x, y, held = torch.randn(8, 3, 9, 10), torch.randint(4, (8,)), []

    def loss_of(step):
        held.append((step, net.training))
        return F.cross_entropy(net(x), y)

    optimiser = train_steps(net, groups, loss_of, 5, lambda k, s: (k + 1) / s)
    assert held == [(k, True) for k in range(5)]
    assert sorted({g["lr"] for g in optimiser.param_groups}) == pytest.approx([0.1, 0.2, 0.4])
    first, second = copy.deepcopy(net), copy.deepcopy(net)
    (
        some_steps(first, parameter_groups(first, ["stem"], 0.01), 1),
        some_steps(second, parameter_groups(second, ["stem"], 1e-9), 1),
    )
    moved = lambda other: (other.fc.weight - net.fc.weight).abs().max().item()
    assert moved(first) > 1e-3 > 1e-7 > moved(second)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "a5ff1ceb")
def test_lora_size():
    def lora_size(inputs, outputs, rank):
        return rank * (inputs + outputs)

    for inputs, outputs, rank in ((5, 7, 2), (12, 3, 4)):
        layer = LoRA(nn.Conv2d(inputs, outputs, 1), rank)
        assert lora_size(inputs, outputs, rank) == sum(p.numel() for p in layer.parameters() if p.requires_grad)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "a5ff1ceb")
def test_lora_size_starter_fails():
    def lora_size(inputs, outputs, rank):
        return rank * inputs * outputs

    with pytest.raises(Exception):
        for inputs, outputs, rank in ((5, 7, 2), (12, 3, 4)):
            layer = LoRA(nn.Conv2d(inputs, outputs, 1), rank)
            assert lora_size(inputs, outputs, rank) == sum(p.numel() for p in layer.parameters() if p.requires_grad)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "5b4f32ad")
def test_leash(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1

    def leash(model, start, strength):
        return strength * sum((p - start[name]).square().sum() for name, p in model.named_parameters() if name in start)

    net = small_net()
    start = {name: p.detach().clone() for name, p in net.named_parameters() if not name.startswith("fc")}
    assert leash(net, start, 3.0) == 0
    net.stem[0].bias.data += 2
    value = leash(net, start, 3.0)
    assert value.item() == pytest.approx(3 * 5 * 4)
    value.backward()
    assert net.fc.weight.grad is None and torch.allclose(net.stem[0].bias.grad, torch.tensor(12.0))


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "5b4f32ad")
def test_leash_starter_fails(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1

    def leash(model, start, strength):
        return strength * sum(p.square().sum() for p in model.parameters())

    with pytest.raises(Exception):
        net = small_net()
        start = {name: p.detach().clone() for name, p in net.named_parameters() if not name.startswith("fc")}
        assert leash(net, start, 3.0) == 0
        net.stem[0].bias.data += 2
        value = leash(net, start, 3.0)
        assert value.item() == pytest.approx(3 * 5 * 4)
        value.backward()
        assert net.fc.weight.grad is None and torch.allclose(net.stem[0].bias.grad, torch.tensor(12.0))


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "366f5f56")
def test_mixture(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1

    def mixture(a, b, share):
        return {name: torch.lerp(a[name], b[name], share) if a[name].is_floating_point() else b[name] for name in a}

    one, two = small_net(), small_net()
    two.train()(torch.randn(4, 3, 9, 10))  # its statistics and counters move
    a, b = one.state_dict(), two.state_dict()
    half = mixture(a, b, 0.5)
    small_net().load_state_dict(half)
    assert all(v.dtype == a[k].dtype for k, v in half.items())
    torch.testing.assert_close(half["stem.1.running_mean"], (a["stem.1.running_mean"] + b["stem.1.running_mean"]) / 2)
    assert all(v.equal(a[k]) for k, v in mixture(a, b, 0.0).items() if a[k].is_floating_point())


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "366f5f56")
def test_mixture_starter_fails(setup_38c3acc1):
    _, small_net, _ = setup_38c3acc1

    def mixture(a, b, share):
        return {name: (1 - share) * a[name] + share * b[name] for name in a}

    with pytest.raises(Exception):
        one, two = small_net(), small_net()
        two.train()(torch.randn(4, 3, 9, 10))  # its statistics and counters move
        a, b = one.state_dict(), two.state_dict()
        half = mixture(a, b, 0.5)
        small_net().load_state_dict(half)
        assert all(v.dtype == a[k].dtype for k, v in half.items())
        torch.testing.assert_close(
            half["stem.1.running_mean"], (a["stem.1.running_mean"] + b["stem.1.running_mean"]) / 2
        )
        assert all(v.equal(a[k]) for k, v in mixture(a, b, 0.0).items() if a[k].is_floating_point())


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "d1f1032f")
def test_only_biases(setup_38c3acc1):
    _, small_net, some_steps = setup_38c3acc1

    def only_biases(model, head):
        freeze(model)
        for name, p in model.named_parameters():
            p.requires_grad_(name.endswith("bias"))  # not unfreeze: the norms' statistics stay pinned
        return unfreeze(model, head)

    net = only_biases(small_net(), "fc")
    before = net.stem[1].running_mean.clone()
    optimiser = some_steps(net, parameter_groups(net, [], 1e-2))
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {
        "fc.weight",
        *(n for n in dict(net.named_parameters()) if n.endswith("bias")),
    }
    assert len(optimiser.state) == 7 - 0 and net.stem[1].running_mean.equal(before)


@pytest.mark.nb("nbs/2_transfer/08_finetuning.ipynb", "d1f1032f")
def test_only_biases_starter_fails(setup_38c3acc1):
    _, small_net, some_steps = setup_38c3acc1

    def only_biases(model, head):
        freeze(model)
        return unfreeze(model, head)

    with pytest.raises(Exception):
        net = only_biases(small_net(), "fc")
        before = net.stem[1].running_mean.clone()
        optimiser = some_steps(net, parameter_groups(net, [], 1e-2))
        assert {n for n, p in net.named_parameters() if p.requires_grad} == {
            "fc.weight",
            *(n for n in dict(net.named_parameters()) if n.endswith("bias")),
        }
        assert len(optimiser.state) == 7 - 0 and net.stem[1].running_mean.equal(before)
