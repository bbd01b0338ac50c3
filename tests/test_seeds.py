"""What seeds promise on a GPU; skipped where there is none."""
import os

import numpy as np
import pytest
import torch
from torch import nn

from vlp_course.seeds import drawing, random_state, seed_everything, set_random_state, use_deterministic

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ":4096:8"))
    yield
    use_deterministic(False)


def trained(seed: int) -> bytes:
    """Weights after some steps that gather and scatter: an embedding, an index_add, a convolution."""
    own = seed_everything(seed, device="cuda")
    table, conv = nn.Embedding(50, 32).cuda(), nn.Conv1d(32, 16, 3, padding=1).cuda()
    weights = [*table.parameters(), *conv.parameters()]
    for _ in range(20):
        ids = torch.randint(50, (64, 100), device="cuda", generator=own)
        hidden = conv(table(ids).transpose(1, 2)).transpose(1, 2).flatten(0, 1)         # (6400, 16)
        pooled = torch.zeros(50, 16, device="cuda").index_add(0, ids.flatten(), hidden + 0.1 * torch.randn_like(hidden))
        grads = torch.autograd.grad(pooled.square().mean(), weights)
        with torch.no_grad():
            for weight, grad in zip(weights, grads):
                weight -= 0.1 * grad
    return b"".join(weight.detach().cpu().numpy().tobytes() for weight in weights)


@gpu
def test_training_with_atomics_repeats_bit_for_bit():
    one, two, other = trained(31), trained(31), trained(32)
    assert one == two != other


@gpu
def test_states_of_the_gpu_come_back():
    own = seed_everything(31, device="cuda")
    draws = lambda: (torch.rand(5, device="cuda").tolist(), torch.rand(5, device="cuda", generator=own).tolist())
    draws()
    state = random_state(own)
    after = draws()
    assert draws() != after
    set_random_state(state, own)
    assert draws() == after


@gpu
def test_drawing_leaves_no_trace_on_the_gpu():
    seed_everything(31, device="cuda")
    torch.rand(1, device="cuda")
    state = random_state()
    after = torch.rand(5, device="cuda").tolist()
    set_random_state(state)
    with drawing(7, device="cuda") as own:
        inside = torch.rand(5, device="cuda").tolist(), torch.rand(5, device="cuda", generator=own).tolist()
    assert torch.rand(5, device="cuda").tolist() == after
    with drawing(7, device="cuda") as own:
        assert (torch.rand(5, device="cuda").tolist(), torch.rand(5, device="cuda", generator=own).tolist()) == inside


def test_all_gpus_are_seeded_saved_and_put_back(monkeypatch):
    """The same paths on a machine without a GPU, with two that only remember what they were told."""
    told = {"seed": None, "states": [torch.tensor([1, 2], dtype=torch.uint8), torch.tensor([3, 4], dtype=torch.uint8)]}
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: told.update(seed=seed))
    monkeypatch.setattr("torch.cuda.get_rng_state_all", lambda: told["states"])
    monkeypatch.setattr("torch.cuda.set_rng_state_all", lambda states: told.update(states=states))
    own = seed_everything(31)
    assert told["seed"] == torch.initial_seed() == int(np.random.SeedSequence((31, 0)).generate_state(4)[2])
    state = random_state(own)
    assert state["cuda"].tolist() == [[1, 2], [3, 4]]
    told["states"] = None
    set_random_state(state, own)
    assert [row.tolist() for row in told["states"]] == [[1, 2], [3, 4]]
    assert all(row.storage_offset() == 0 for row in told["states"])      # clones: torch 2.14 crashes on a view


def test_streams_are_those_of_recorded_runs():
    """The trainer seeds with SeedSequence((seed, rank)): the recorded results rest on these numbers."""
    own = seed_everything(31, rank=2)
    words = [int(word) for word in np.random.SeedSequence((31, 2)).generate_state(4)]
    assert [torch.initial_seed(), own.initial_seed()] == words[2:]
