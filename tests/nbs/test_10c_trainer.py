"""Generated from nbs/3_fusion/10c_trainer.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import functools
import itertools
import math
import numpy as np
import os
import pytest
import random
import tempfile
import torch
from dataclasses import dataclass
from pathlib import Path
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize
from unittest.mock import patch
from vlp_course.checkpoints import TrainError
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.checkpoints import latest_checkpoint
from vlp_course.nn.encoders import Out
from vlp_course.recipe import Recipe
from vlp_course.recipe import batch_indices
from vlp_course.recipe import learning_rate
from vlp_course.seeds import seed_everything
from vlp_course.train import fit, param_groups


@pytest.fixture(scope="module")
def setup_2149ba68():
    @dataclass
    class Batch:
        image: torch.Tensor
        text: torch.Tensor

        def to(self, device):
            return Batch(self.image.to(device), self.text.to(device))

    class ToyPairs:
        "Vectors and noisy linear maps of them, in families of three."

        def __init__(self, families=40):
            draw = torch.Generator().manual_seed(7)
            self.groups = np.arange(3 * families) // 3
            self.image = torch.randn(3 * families, 7, generator=draw)
            self.text = self.image @ torch.randn(7, 5, generator=draw) + torch.randn(3 * families, 5, generator=draw)

        def batch(self, indices, tokenize=None):
            return Batch(self.image[indices], self.text[indices])

    class Towers(nn.Module):
        "Two linear towers with a temperature; `mean` is moved by after_step only."

        def __init__(self):
            super().__init__()
            self.image, self.text, self.norm = nn.Linear(7, 4), nn.Linear(5, 4), nn.LayerNorm(4)
            self.logit_scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, batch, *, step, generator):
            image, text = self.norm(self.image(batch.image)), self.text(batch.text)
            text = text + 0.1 * torch.randn(text.shape, generator=generator)
            logits = self.logit_scale.exp() * normalize(image, dim=-1) @ normalize(text, dim=-1).T
            here = torch.arange(len(logits))
            return Out({"itc": (cross_entropy(logits, here) + cross_entropy(logits.T, here)) / 2}, {"text": text})

        def after_step(self, state, step):
            self.mean.lerp_(state["text"].mean(0), 0.1)

    def towers(seed=0):
        torch.manual_seed(seed)
        return Towers()

    PAIRS = ToyPairs()
    return PAIRS, Towers, ToyPairs, towers


@pytest.fixture(scope="module")
def setup_c7bf5b49():
    def slow_fit(model, data, recipe):
        "The loop in plain torch, for one process."
        generator = seed_everything(recipe.seed, deterministic=None)
        optimizer = torch.optim.AdamW(param_groups(model, recipe.weight_decay), betas=recipe.betas, fused=True)
        losses = []
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["lr_scale"] * learning_rate(recipe, step)
            batch = data.batch(batch_indices(data.groups, step, recipe.batch_size, recipe.seed))
            out = model(batch, step=step, generator=generator)
            loss = sum(out.losses.values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            with torch.no_grad():
                model.after_step({k: v.detach() for k, v in out.state.items()}, step)
            losses.append(loss.item())
        return losses

    return slow_fit


@pytest.fixture(scope="module")
def setup_0ebdb1d5(setup_2149ba68):
    PAIRS, _, _, _ = setup_2149ba68

    class Killed(BaseException):
        "Stands for SIGKILL inside one process: no code of ours catches it."

    def fit_with_kills(model_of, recipe, out, kills, save_every=4, between=lambda: None):
        "Start, die at each of `kills` in turn, start again; the last start runs to the end."
        for kill in [*kills, None]:
            model = model_of()
            moves = model.after_step

            def after_step(state, step, kill=kill, moves=moves):
                if step == kill:
                    raise Killed
                moves(state, step)

            model.after_step = after_step
            try:
                return fit(model, PAIRS, recipe, out, save_every=save_every, progress=False)
            except Killed:
                between()

    return fit_with_kills


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "559ae936")
def test_decay_for_matrices_only(setup_2149ba68):
    _, Towers, _, _ = setup_2149ba68
    model = Towers()
    model.text.weight.requires_grad_(False)  # frozen: not trained at all
    decayed, plain = (group["params"] for group in param_groups(model, 0.1))
    assert [p is q for p, q in zip(decayed, [model.image.weight], strict=True)] == [True]
    assert {tuple(p.shape) for p in plain} == {(4,), ()} and len(plain) == 5  # biases, norm, temperature
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.AdamW(param_groups(model, 0.1), lr=0.5).step()  # no gradient: only the decay is left
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (0.95 if name == "image.weight" else 1.0))


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "32706f5f")
def test_streams_do_not_touch():
    seed = functools.partial(seed_everything, deterministic=None)
    first = [torch.rand(3, generator=seed(31, 0)), torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    again = [torch.rand(3, generator=seed(31, 0)), torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    other = [torch.rand(3, generator=seed(31, 1)), torch.rand(3), torch.tensor([random.random(), np.random.rand()])]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))  # another process draws other numbers
    assert not torch.equal(torch.rand(3, generator=seed(32, 0)), first[0])
    assert not torch.equal(first[0], first[1])  # dropout does not repeat the model's noise


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "db60f899")
def test_fit_equals_the_slow_loop(setup_2149ba68, setup_c7bf5b49):
    PAIRS, _, _, towers = setup_2149ba68
    slow_fit = setup_c7bf5b49
    recipe = Recipe(20, batch_size=12, lr=0.01, warmup=4, clip=0.5, seed=5)
    slow, fast = towers(), towers().eval()
    losses = slow_fit(slow, PAIRS, recipe)
    run = fit(fast, PAIRS, recipe, progress=False)
    assert run.losses == {"itc": losses} and checkpoint_sha(fast) == checkpoint_sha(slow)
    assert run.steps == 20 and run.model is fast and fast.training and run.peak_mb > 10 and 0 < run.cpu_s


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "0f330cd2")
def test_lr_scale_slows_a_part(setup_2149ba68):
    PAIRS, _, _, towers = setup_2149ba68
    model, start = towers(), towers()
    model.image.lr_scale = 0.25
    groups = param_groups(model, 0.1)
    assert [(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1, 0.1, 1),
        (1, 0, 4),
        (0.25, 0.1, 1),
        (0.25, 0, 1),
    ]
    fit(model, PAIRS, Recipe(1, batch_size=12, lr=0.01, warmup=1, weight_decay=0.0), progress=False)
    for part, expected in ((model.image, 0.0025), (model.text, 0.01)):
        before = (start.image if part is model.image else start.text).weight
        assert torch.allclose((part.weight - before).abs(), torch.full_like(before, expected), rtol=1e-3)


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "ca416fa6")
def test_accumulation_equals_one_batch_without_negatives(setup_2149ba68):
    PAIRS, Towers, _, _ = setup_2149ba68

    class Regression(Towers):
        def forward(self, batch, *, step, generator):
            error = self.image(batch.image.double()) - self.text(batch.text.double())
            return Out({"mse": error.square().mean()}, {"text": self.text(batch.text.double())})

    class Contrast(Towers):
        def forward(self, batch, *, step, generator):
            logits = self.image(batch.image.double()) @ self.text(batch.text.double()).T
            return Out(
                {"itc": cross_entropy(logits, torch.arange(len(logits)))}, {"text": self.text(batch.text.double())}
            )

    def apart(kind):
        ends = []
        for parts in (1, 3):
            torch.manual_seed(0)
            model = kind().double()
            run = fit(model, PAIRS, Recipe(10, batch_size=12, lr=0.01, warmup=0, accumulation=parts), progress=False)
            losses = torch.tensor(*run.losses.values(), dtype=torch.float64)
            ends.append(torch.cat([losses, *(value.flatten() for value in model.state_dict().values())]))
        return (ends[0] - ends[1]).abs().max()  # of the curves and the weights

    assert apart(Regression) < 1e-12
    assert apart(Contrast) > 1e-3


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "7fdbc189")
def test_after_step_once_with_the_whole_batch(setup_2149ba68):
    _, Towers, ToyPairs, _ = setup_2149ba68

    class Spy(Towers):
        def __init__(self):
            super().__init__()
            self.calls, self.steps_seen = [], []

        def forward(self, batch, *, step, generator):
            out = super().forward(batch, step=step, generator=generator)
            self.steps_seen.append(step)
            return Out(out.losses, out.state | {"temperature": self.logit_scale.exp(), "note": f"step {step}"})

        def tokenize(self, texts):
            return [text.upper() for text in texts]

        def after_step(self, state, step):
            assert not torch.is_grad_enabled() and not state["text"].requires_grad
            self.calls.append((step, tuple(state["text"].shape), state["temperature"].ndim, state["note"]))

    class Words(ToyPairs):
        def batch(self, indices, tokenize=None):
            assert len(indices) == 4 and tokenize(["a cat"]) == ["A CAT"]  # each model has its own words
            return super().batch(indices)

    spy = Spy()
    fit(spy, Words(), Recipe(2, batch_size=12, accumulation=3), progress=False)
    assert spy.steps_seen == [0, 0, 0, 1, 1, 1]
    assert spy.calls == [(0, (12, 4), 0, "step 0"), (1, (12, 4), 0, "step 1")]


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "7ae7c295")
def test_bf16_runs_and_leaves_no_trace(setup_2149ba68):
    PAIRS, Towers, _, towers = setup_2149ba68
    model, reference = towers(), towers()
    recipe = dict(steps=30, batch_size=12, lr=0.01, warmup=4)
    half = fit(model, PAIRS, Recipe(**recipe, precision="bf16"), progress=False).losses["itc"]
    full = fit(reference, PAIRS, Recipe(**recipe), progress=False).losses["itc"]  # a second fit, another precision
    assert half != full and half == pytest.approx(full, rel=0.1)
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # the weights stay in full precision
    assert model.forward.__func__ is Towers.forward  # autocast's wrapper is off again


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "c7c1d6a6")
def test_killed_and_resumed_is_the_same_run(setup_2149ba68, setup_0ebdb1d5):
    PAIRS, _, _, towers = setup_2149ba68
    fit_with_kills = setup_0ebdb1d5
    recipe = Recipe(22, batch_size=12, lr=0.01, warmup=4, seed=3)
    whole = fit(towers(), PAIRS, recipe, progress=False)
    with tempfile.TemporaryDirectory() as out, patch("time.process_time", itertools.count().__next__):
        resumed = fit_with_kills(towers, recipe, out, kills=[2, 4, 9, 9, 21])
        assert resumed.cpu_s == 22  # a clock that ticks once a step
        assert resumed.losses == whole.losses and checkpoint_sha(resumed.model) == checkpoint_sha(whole.model)
        assert os.listdir(out) == ["step-00000022"]
        Path(out, ".tmp-old-step-00000020").mkdir()
        again = fit(towers(), PAIRS, recipe, out, progress=False)  # finished: nothing to do
        assert os.listdir(out) == ["step-00000022"]
        assert (
            again.steps == 22
            and again.losses == whole.losses
            and checkpoint_sha(again.model) == checkpoint_sha(whole.model)
        )
        assert again.cpu_s == resumed.cpu_s


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "08c9b6ba")
def test_another_run_is_not_resumed(setup_2149ba68):
    PAIRS, _, ToyPairs, towers = setup_2149ba68

    class Redrawn(ToyPairs):
        def digest(self):
            return "the same groups with other pictures"

    recipe = Recipe(4, batch_size=12)
    with tempfile.TemporaryDirectory() as out:
        fit(towers(), PAIRS, recipe, out, progress=False)
        for model, data, other, reason in [
            (towers(), PAIRS, Recipe(5, batch_size=12), "recipe entry 'steps' is 4 there and 5 here"),
            (towers(), PAIRS, Recipe(4, batch_size=12, seed=1), "'seed' is 0 there and 1 here"),
            (towers(), ToyPairs(50), recipe, "recipe entry 'data'"),
            (towers(), Redrawn(), recipe, "recipe entry 'data'"),
            (nn.Linear(2, 2), PAIRS, recipe, "the 'model' is Towers there and Linear here"),
        ]:
            with pytest.raises(TrainError, match=reason):
                fit(model, data, other, out, progress=False)


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "bfc0d566")
def test_not_finite_stops_before_the_weights(setup_2149ba68):
    PAIRS, Towers, _, _ = setup_2149ba68

    class Explodes(Towers):
        def forward(self, batch, *, step, generator):
            out = super().forward(batch, step=step, generator=generator)
            bad = torch.tensor(float("nan")) if step == 5 else torch.tensor(0.0)
            return Out(out.losses | {"itm": bad}, out.state)

    class Steep(Towers):
        def forward(self, batch, *, step, generator):
            out = super().forward(batch, step=step, generator=generator)
            zero = (self.logit_scale - self.logit_scale.detach()).abs()
            return Out(out.losses | {"itm": zero.sqrt() if step == 5 else zero}, out.state)  # 0, with an infinite slope

    for kind, reason in [
        (Explodes, r"step 5: losses .*'itm': nan.* are not finite"),
        (Steep, r"'itm': 0.0} with gradient norm nan"),
    ]:
        model = kind()
        with tempfile.TemporaryDirectory() as out:
            with pytest.raises(TrainError, match=reason) as error:
                fit(model, PAIRS, Recipe(9, batch_size=12), out, save_every=2, progress=False)
            assert "\n" not in str(error.value)
            assert latest_checkpoint(out).name == "step-00000004"
            assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "fb536f52")
def test_trainer_says_what_is_wrong(setup_2149ba68):
    PAIRS, _, ToyPairs, towers = setup_2149ba68
    with (
        patch("torch.cuda.is_available", lambda: False),
        pytest.raises(TrainError, match="no GPU here; use device='cpu'"),
    ):
        fit(towers(), PAIRS, Recipe(3, device="cuda"), progress=False)
    with pytest.raises(ValueError, match="no batch of 63 can be made of 30 items"):
        fit(towers(), ToyPairs(10), Recipe(3), progress=False)


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "ee72541d")
def test_negatives():
    def negatives(batch_size, accumulation=1, processes=1, gathered=True):
        return batch_size // accumulation // (1 if gathered else processes) - 1

    assert negatives(64) == 63 and negatives(64, accumulation=4) == 15
    assert negatives(64, processes=4) == 63 and negatives(64, processes=4, gathered=False) == 15
    assert negatives(64, 2, 4, gathered=False) == 7


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "ee72541d")
def test_negatives_starter_fails():
    def negatives(batch_size, accumulation=1, processes=1, gathered=True):
        return batch_size - 1

    with pytest.raises(Exception):
        assert negatives(64) == 63 and negatives(64, accumulation=4) == 15
        assert negatives(64, processes=4) == 63 and negatives(64, processes=4, gathered=False) == 15
        assert negatives(64, 2, 4, gathered=False) == 7


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "f24b2bab")
def test_averaged(setup_2149ba68):
    PAIRS, Towers, _, _ = setup_2149ba68

    class Averaged(Towers):
        def __init__(self):
            super().__init__()
            self.register_buffer("average", self.image.weight.detach().clone())

        def after_step(self, state, step):
            super().after_step(state, step)
            self.average.lerp_(self.image.weight, 0.1)

    torch.manual_seed(0)
    model = Averaged()
    start = model.average.clone()
    model(PAIRS.batch([0, 1, 2]), step=0, generator=torch.Generator())
    assert torch.equal(model.average, start)  # evaluating changes nothing
    fit(model, PAIRS, Recipe(1, batch_size=12, lr=0.01, warmup=0, accumulation=3), progress=False)
    assert torch.allclose(model.average, 0.9 * start + 0.1 * model.image.weight, atol=1e-7)  # once for three parts


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "f24b2bab")
def test_averaged_starter_fails(setup_2149ba68):
    PAIRS, Towers, _, _ = setup_2149ba68

    class Averaged(Towers):
        def __init__(self):
            super().__init__()
            self.register_buffer("average", self.image.weight.detach().clone())

        def forward(self, batch, *, step, generator):
            self.average.lerp_(self.image.weight.detach(), 0.1)
            return super().forward(batch, step=step, generator=generator)

    with pytest.raises(Exception):
        torch.manual_seed(0)
        model = Averaged()
        start = model.average.clone()
        model(PAIRS.batch([0, 1, 2]), step=0, generator=torch.Generator())
        assert torch.equal(model.average, start)  # evaluating changes nothing
        fit(model, PAIRS, Recipe(1, batch_size=12, lr=0.01, warmup=0, accumulation=3), progress=False)
        assert torch.allclose(model.average, 0.9 * start + 0.1 * model.image.weight, atol=1e-7)  # once for three parts


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "cbe66f19")
def test_steps_until():
    def steps_until(losses, window, patience):
        best, since = math.inf, 0
        for step in range(window, len(losses) + 1):
            mean = sum(losses[step - window : step]) / window
            best, since = (mean, 0) if mean < best else (best, since + 1)
            if since == patience:
                return step
        return None

    assert steps_until([5, 4, 3, 2, 1], 2, 2) is None
    assert steps_until([5, 4, 3, 3, 3, 3, 1], 1, 3) == 6  # best at step 3, then three in vain
    assert steps_until([4, 2, 4, 2, 4, 2], 2, 4) == 6  # the mean is flat from the start


@pytest.mark.nb("nbs/3_fusion/10c_trainer.ipynb", "cbe66f19")
def test_steps_until_starter_fails():
    def steps_until(losses, window, patience):
        return None

    with pytest.raises(Exception):
        assert steps_until([5, 4, 3, 2, 1], 2, 2) is None
        assert steps_until([5, 4, 3, 3, 3, 3, 1], 1, 3) == 6  # best at step 3, then three in vain
        assert steps_until([4, 2, 4, 2, 4, 2], 2, 4) == 6  # the mean is flat from the start
