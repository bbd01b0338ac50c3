"""Generated from nbs/3_fusion/10c2_checkpoints.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import itertools
import json
import math
import numpy as np
import os
import pytest
import random
import shutil
import tempfile
import torch
from pathlib import Path
from safetensors.torch import load
from safetensors.torch import save
from torch import nn
from unittest.mock import patch
from vlp_course.seeds import random_state
from vlp_course.seeds import set_random_state
from vlp_course.checkpoints import (
    TrainError,
    checkpoint_sha,
    clean,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def setup_069da026():
    def slow_save(out, model, optimizer, step):
        "Overwrite model, optimiser and step, one after the other."
        Path(out).mkdir(parents=True, exist_ok=True)
        slots = {f"{i}.{k}": v for i, slot in optimizer.state_dict()["state"].items() for k, v in slot.items()}
        weights = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
        files = {"model.safetensors": save(weights), "optimizer.safetensors": save(slots), "step.json": b"%d" % step}
        for name, payload in files.items():
            with open(Path(out, name), "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())

    return slow_save


@pytest.fixture(scope="module")
def setup_fa4f5f22():
    class Toy(nn.Module):
        "Two linear layers, two buffers, and a weight that is used under two names."

        def __init__(self, width=5):
            super().__init__()
            self.first, self.second = nn.Linear(3, width), nn.Linear(width, 4, bias=False)
            self.tied = self.second.weight
            self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
            self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)  # its numbers do not lie in order

    def trained(steps, model=None, optimizer=None):
        "A toy after some steps of AdamW with dropout, and its optimiser."
        model = model or Toy()
        optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(steps):
            hidden = torch.dropout(model.first(torch.ones(2, 3)), 0.5, True)
            model.second(hidden).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            model.seen += 1
        return model, optimizer

    return Toy, trained


@pytest.fixture(scope="module")
def setup_f271ddc3(setup_fa4f5f22):
    _, trained = setup_fa4f5f22

    def saved(out, steps=2):
        "A toy saved after some steps: (its checkpoint, model, optimiser, generator)."
        model, optimizer = trained(steps)
        own = torch.Generator().manual_seed(3)
        state = {"step": steps, "recipe": {"steps": 9, "betas": [0.9, 0.98]}}
        return save_checkpoint(out, model, optimizer, random_state(own), state), model, optimizer, own

    return saved


@pytest.fixture(scope="module")
def setup_cce33f8f():
    class Crash(BaseException):
        "The process is gone: nobody catches this."

    def crash_at(number, action):
        "Run `action` and die at its `number`-th touch of the disk; returns the touches seen, by name."
        touches = []

        def dying(name, real):
            def touch(*args, **kwargs):
                touches.append(name)
                if len(touches) == number:
                    if name == "fsync" and not os.path.isdir(f"/dev/fd/{args[0]}"):
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                    raise Crash
                return real(*args, **kwargs)

            return touch

        with (
            patch("os.mkdir", dying("mkdir", os.mkdir)),
            patch("os.fsync", dying("fsync", os.fsync)),
            patch("os.rename", dying("rename", os.rename)),
            patch("os.unlink", dying("unlink", os.unlink)),
            patch("os.rmdir", dying("rmdir", os.rmdir)),
        ):
            try:
                action()
            except Crash:
                pass
        return touches

    def survivors(save_it, whole):
        "For each touch of the second save: (its name, what a restart finds)."
        found = []
        for number in itertools.count(1):
            with tempfile.TemporaryDirectory() as out:
                save_it(out, 1)
                touches = crash_at(number, lambda: save_it(out, 2))
                if len(touches) < number:
                    return found
                found.append((touches[-1], whole(out)))

    return survivors


@pytest.fixture(scope="module")
def setup_215e96ee(setup_fa4f5f22, setup_069da026):
    Toy, trained = setup_fa4f5f22
    slow_save = setup_069da026
    TOYS = [trained(steps) for steps in range(3)]
    SHA = {checkpoint_sha(model): steps for steps, (model, _) in enumerate(TOYS)}

    def our_save(out, step):
        save_checkpoint(out, *TOYS[step], random_state(torch.Generator()), {"step": step, "recipe": {}})

    def our_whole(out):
        "What a restart finds: 'old', 'new' or 'broken'; and the next save must work and leave one folder."
        model = Toy()
        if any(len(os.listdir(folder)) < 4 for folder in Path(out).glob("step-*")):
            return "broken"  # half a checkpoint under a valid name
        try:
            step = load_checkpoint(latest_checkpoint(out), model)["step"]
        except (TrainError, TypeError):
            return "broken"
        our_save(out, 2) if step == 1 else clean(out)
        assert os.listdir(out) == ["step-00000002"]
        return {1: "old", 2: "new"}[step] if SHA[checkpoint_sha(model)] == step else "broken"

    def slow_whole(out):
        "The same for the slow version: all three files must be of one step."
        steps = set()
        try:
            steps.add(json.loads(Path(out, "step.json").read_text()))
            model, expected = Toy(), {1: TOYS[1], 2: TOYS[2]}
            model.load_state_dict(load(Path(out, "model.safetensors").read_bytes()))
            steps.add(SHA[checkpoint_sha(model)])
            count = load(Path(out, "optimizer.safetensors").read_bytes())["0.step"]
            steps.add(int(count))
        except Exception:  # half a file: each fails in its own way
            return "broken"
        return {1: "old", 2: "new"}[steps.pop()] if len(steps) == 1 else "broken"

    def slow_save_step(out, step):
        slow_save(out, *TOYS[step], step)

    return our_save, our_whole


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "b31a8cef")
def test_sha_sees_every_bit(setup_fa4f5f22):
    Toy, _ = setup_fa4f5f22
    torch.manual_seed(0)
    toy = Toy()
    first = checkpoint_sha(toy)
    assert len(first) == 64 and checkpoint_sha(toy) == first
    with torch.no_grad():
        toy.first.bias[2] = torch.nextafter(toy.first.bias[2], torch.tensor(9.0))  # the smallest change there is
    second = checkpoint_sha(toy)
    toy.seen += 1
    assert len({first, second, checkpoint_sha(toy), checkpoint_sha(toy.double())}) == 4


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "38237c94")
def test_sha_by_hand():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0]])
    text = b"weight (1, 2) torch.float32\n" + bytes.fromhex("0000803f000000c0")  # 1.0 and -2.0, little end first
    assert checkpoint_sha(layer) == hashlib.sha256(text).hexdigest()
    one, other = (
        nn.ModuleDict({"a": layer, "b": nn.ReLU(), "c": nn.PReLU()}),
        nn.ModuleDict({"c": nn.PReLU(), "a": layer}),
    )
    assert checkpoint_sha(one) == checkpoint_sha(other)  # the order of definition does not count


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "b5d5b9e6")
def test_generators_go_on_where_they_were():
    def draws():
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            float(torch.rand(())),
            float(torch.randn((), generator=own)),
        ]

    own = torch.Generator().manual_seed(5)
    draws()  # an odd number of normals: NumPy keeps the second of the pair
    state = random_state(own)
    expected = draws()
    draws()
    set_random_state(load(save(state)), own)  # through the file format
    assert draws() == expected
    rows = {k: torch.stack([torch.zeros_like(v), v]) for k, v in state.items()}
    set_random_state({k: v[1] for k, v in rows.items()}, own)  # as the second of two processes does
    assert draws() == expected


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "03f31b4e")
def test_resumed_equals_undisturbed(setup_fa4f5f22, setup_f271ddc3):
    Toy, trained = setup_fa4f5f22
    saved = setup_f271ddc3
    with tempfile.TemporaryDirectory() as out:
        path, model, optimizer, own = saved(out)
        trained(3, model, optimizer)
        expected, noise = checkpoint_sha(model), torch.rand(2, generator=own)
        other = Toy()
        fresh, other_own = torch.optim.AdamW(other.parameters(), lr=0.01), torch.Generator()
        state = load_checkpoint(latest_checkpoint(out), other, fresh, {"steps": 9, "betas": (0.9, 0.98)})
        set_random_state(state["generators"], other_own)
        trained(3, other, fresh)
        assert state["step"] == 2 and checkpoint_sha(other) == expected
        assert torch.equal(torch.rand(2, generator=other_own), noise)
        assert other.tied is other.second.weight  # shared before, shared after


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "98b74e2d")
def test_only_the_newest_is_kept():
    with tempfile.TemporaryDirectory() as out:
        assert latest_checkpoint(out) is None
        for name in ("step-00000002", "step-00001000", "step-00000030", ".tmp-new-step-00009999", "the-readers-own"):
            Path(out, name).mkdir()  # names sort by step, not by time
        clean(out)
        assert sorted(os.listdir(out)) == ["step-00001000", "the-readers-own"]
        assert latest_checkpoint(out) == Path(out, "step-00001000")


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "d22b6732")
def test_refused_in_one_line(setup_fa4f5f22, setup_f271ddc3):
    Toy, _ = setup_fa4f5f22
    saved = setup_f271ddc3

    def refusal(path, model, recipe=None):
        before = checkpoint_sha(model)
        with pytest.raises(TrainError) as error:
            load_checkpoint(path, model, recipe=recipe)
        assert checkpoint_sha(model) == before and "\n" not in str(error.value)
        return str(error.value)

    class Other(Toy):
        pass

    with tempfile.TemporaryDirectory() as out:
        path = saved(out)[0]
        assert "the 'model' is Toy there and Other here" in refusal(path, Other())
        less = Toy()
        del less._buffers["seen"]
        assert "tensor 'seen' is torch.int64 () there and absent here" in refusal(path, less)
        assert "tensor 'first.bias' is torch.float32 (5,) there and torch.float32 (6,) here" in refusal(path, Toy(6))
        assert "recipe entry 'steps' is 9 there and 10 here" in refusal(
            path, Toy(), {"steps": 10, "betas": [0.9, 0.98]}
        )
        assert "recipe entry 'seed' is absent there and 1 here" in refusal(
            path, Toy(), {"steps": 9, "betas": [0.9, 0.98], "seed": 1}
        )
        model_file = path / "model.safetensors"
        model_file.write_bytes(model_file.read_bytes()[:-1])
        assert "model.safetensors is damaged or missing" in refusal(path, Toy())
        (path / "state.json").unlink()
        assert "state.json is damaged or missing" in refusal(path, Toy())
        assert "is damaged or missing" in refusal(Path(out, "step-00000007"), Toy())


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "253ec37f")
def test_a_crash_at_any_touch_leaves_old_or_new(setup_215e96ee, setup_cce33f8f):
    our_save, our_whole = setup_215e96ee
    survivors = setup_cce33f8f
    found = survivors(our_save, our_whole)
    states = [state for _, state in found]
    assert "broken" not in states and states == sorted(states, reverse=True)  # old ... old, then new ... new
    touches = [name for name, _ in found]
    assert touches[:8] == ["mkdir", *["fsync"] * 5, "rename", "fsync"]  # four files and two folders reach the disk
    assert states.index("new") == 7  # dying *at* the rename still finds the old


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "2ddb6211")
def test_best_interval():
    def best_interval(save_s, failure_s):
        "Seconds between saves that waste the least."
        return math.sqrt(2 * save_s * failure_s)

    for save_s, failure_s in [(0.05, 86400), (30, 3600), (2, 500)]:
        waste = {tau: save_s / tau + tau / (2 * failure_s) for tau in np.geomspace(1, 1e4, 20001)}
        assert best_interval(save_s, failure_s) == pytest.approx(min(waste, key=waste.get), rel=1e-3)


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "2ddb6211")
def test_best_interval_starter_fails():
    def best_interval(save_s, failure_s):
        "Seconds between saves that waste the least."
        return save_s

    with pytest.raises(Exception):
        for save_s, failure_s in [(0.05, 86400), (30, 3600), (2, 500)]:
            waste = {tau: save_s / tau + tau / (2 * failure_s) for tau in np.geomspace(1, 1e4, 20001)}
            assert best_interval(save_s, failure_s) == pytest.approx(min(waste, key=waste.get), rel=1e-3)


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "11851493")
def test_thin_out():
    def thin_out(out, every):
        for old in sorted(Path(out).glob("step-*"))[:-1]:
            if int(old.name.split("-")[1]) % every:
                shutil.rmtree(old.rename(old.with_name(f".tmp-old-{old.name}")))

    with tempfile.TemporaryDirectory() as out:
        for step in range(10, 80, 10):
            Path(out, f"step-{step:08d}").mkdir()
            Path(out, f"step-{step:08d}", "model.safetensors").write_bytes(b"x")
        thin_out(out, 30)
        assert sorted(int(p.name[5:]) for p in Path(out).iterdir()) == [30, 60, 70]
        with patch("shutil.rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            thin_out(out, 60)  # killed before anything is deleted
        assert sorted(int(p.name[5:]) for p in Path(out).glob("step-*")) == [60, 70]


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "11851493")
def test_thin_out_starter_fails():
    def thin_out(out, every):
        clean(out)

    with pytest.raises(Exception):
        with tempfile.TemporaryDirectory() as out:
            for step in range(10, 80, 10):
                Path(out, f"step-{step:08d}").mkdir()
                Path(out, f"step-{step:08d}", "model.safetensors").write_bytes(b"x")
            thin_out(out, 30)
            assert sorted(int(p.name[5:]) for p in Path(out).iterdir()) == [30, 60, 70]
            with patch("shutil.rmtree", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
                thin_out(out, 60)  # killed before anything is deleted
            assert sorted(int(p.name[5:]) for p in Path(out).glob("step-*")) == [60, 70]


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "7e98597d")
def test_halved():
    def halved(state):
        half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        errors = [
            ((half[name].float() - value).abs() / value.abs())[value.abs() > 6.2e-5]
            for name, value in state.items()
            if value.is_floating_point()
        ]
        return half, float(torch.cat([error.flatten() for error in errors]).max())

    torch.manual_seed(1)
    state = {"weight": torch.randn(40, 50), "count": torch.tensor(70000)}
    half, error = halved(state)
    assert half["weight"].dtype == torch.float16 and int(half["count"]) == 70000
    assert 2e-4 < error <= 2**-11  # 11 bits, rounded to nearest


@pytest.mark.nb("nbs/3_fusion/10c2_checkpoints.ipynb", "7e98597d")
def test_halved_starter_fails():
    def halved(state):
        return {name: value.half() for name, value in state.items()}, 0.0

    with pytest.raises(Exception):
        torch.manual_seed(1)
        state = {"weight": torch.randn(40, 50), "count": torch.tensor(70000)}
        half, error = halved(state)
        assert half["weight"].dtype == torch.float16 and int(half["count"]) == 70000
        assert 2e-4 < error <= 2**-11  # 11 bits, rounded to nearest
