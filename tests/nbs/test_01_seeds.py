"""Generated from nbs/0_start/01_seeds.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import os
import pytest
import random
import subprocess
import sys
import tempfile
import torch
from pathlib import Path
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from unittest.mock import patch
from vlp_course.seeds import (
    Seeded,
    drawing,
    loader_seeds,
    random_state,
    seed_everything,
    set_random_state,
    use_deterministic,
)


@pytest.fixture(scope="module")
def setup_d5217b9e():
    def slow_twister(seed, count):
        "The first `count` words of 32 bits of book number `seed`."
        x = [seed]
        for i in range(1, 624):
            x.append((1812433253 * (x[-1] ^ x[-1] >> 30) + i) % 2**32)
        words = []
        for k in range(count):
            i = k % 624
            joined = (x[i] & 0x80000000) | (x[(i + 1) % 624] & 0x7FFFFFFF)  # top bit of one, the rest of the next
            x[i] = x[(i + 397) % 624] ^ joined >> 1 ^ (0x9908B0DF if joined % 2 else 0)
            y = x[i] ^ x[i] >> 11  # from here on: shaken, so that no bit is weak
            y ^= y << 7 & 0x9D2C5680
            y ^= y << 15 & 0xEFC60000
            words.append(y ^ y >> 18)
        return words

    return slow_twister


@pytest.fixture(scope="module")
def setup_2deabd7d():
    def noisy(item):
        "A transform as they are: it draws from all the global generators."
        return torch.tensor([item, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)

    def passed(data, workers=0, transform=None, **options):
        "All items of a DataLoader without batches, as rows."
        loader = DataLoader(data, batch_size=None, num_workers=workers, collate_fn=transform, **options)
        return torch.stack(list(loader))

    return noisy, passed


@pytest.fixture(scope="module")
def setup_5d8c9ca4():
    SCRIPT = """
import hashlib, sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vlp_course.seeds import loader_seeds, seed_everything

for run in sys.argv[1:]:
    seed, threads = map(int, run.split(","))
    torch.set_num_threads(threads)
    own, seeds = torch.Generator(), {}
    if seed >= 0:                                            # a negative number: nobody sets a seed
        own, seeds = seed_everything(seed), loader_seeds(seed)
    data = TensorDataset(torch.randn(2048, 256), torch.randint(10, (2048,)))
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.1), nn.Linear(256, 10))
    for x, y in DataLoader(data, batch_size=1024, shuffle=True, num_workers=2, **seeds):
        for _ in range(20):
            loss = nn.functional.cross_entropy(model(x + 0.1 * torch.randn(x.shape, generator=own)), y)
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.5 * p.grad
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print(hashlib.sha256(weights).hexdigest()[:16], f"{loss.item():.9f}")
"""

    def two_processes(*runs):
        "Both train these runs (seed, threads), one after the other -> for each process its [(hash, loss)]."
        command = [sys.executable, "-c", SCRIPT, *(f"{seed},{threads}" for seed, threads in runs)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        return [[tuple(line.split()) for line in p.communicate()[0].splitlines()] for p in started]

    return two_processes


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "f4d33e89")
def test_one_book_two_readers(setup_d5217b9e):
    slow_twister = setup_d5217b9e
    words = np.array(slow_twister(31, 2000))
    assert (words == np.random.RandomState(31).randint(0, 2**32, 2000, dtype=np.uint32)).all()
    torch_reads = torch.rand(2000, generator=torch.Generator().manual_seed(31)).double() * 2**24
    assert (torch_reads.long().numpy() == words % 2**24).all()  # the low 24 bits: all that a float32 holds


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "5735d634")
def test_one_call_fixes_all():
    def draw_all(own):
        return [
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.randn()),
            float(torch.rand(())),
            torch.randperm(9).tolist(),
            float(torch.rand((), generator=own)),
        ]

    one = draw_all(seed_everything(31))
    assert draw_all(seed_everything(31)) == one  # seeded again: the same draws
    assert all(a != b for a, b in zip(draw_all(seed_everything(32)), one))  # another seed
    assert all(a != b for a, b in zip(draw_all(seed_everything(31, rank=1)), one))  # another process
    own = seed_everything(31)
    assert draw_all(own) == one and all(a != b for a, b in zip(draw_all(own), one))  # read on: no draw repeats
    use_deterministic(False)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "ff22a71c")
def test_streams_are_unrelated():
    seed_everything(31)
    draws = [
        np.array([random.random() for _ in range(4000)]),
        np.random.rand(4000),
        torch.rand(4000).numpy(),
        torch.rand(4000, generator=seed_everything(31)).numpy(),
    ]
    correlation = np.corrcoef(draws) - np.eye(4)
    assert abs(correlation).max() < 0.06  # four standard errors of 1 / sqrt(4000)
    use_deterministic(False)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "1f06d664")
def test_seeds_refused():
    for seed in (-1, True):
        with pytest.raises(ValueError, match=f"seed={seed!r} must be a whole number from 0 up"):
            seed_everything(seed)
    for seed in (1.0, "31", None):
        with pytest.raises((ValueError, TypeError)):  # a TypeError where annotations are checked, as in our tests
            seed_everything(seed)
    with pytest.raises(ValueError, match="rank=-1 must be"):
        seed_everything(31, rank=-1)
    assert seed_everything(np.int64(31)).initial_seed() == seed_everything(31).initial_seed()
    use_deterministic(False)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "a63cc0a7")
def test_deterministic_fails_loudly():
    twice = lambda: torch.zeros(4).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # who writes last?
    use_deterministic(True)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        twice()
    use_deterministic(False)
    assert twice()[0] in (1, 2)
    with patch("torch.cuda.is_initialized", lambda: True), patch.dict(os.environ):
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        with pytest.raises(RuntimeError, match="call seed_everything before its first use"):
            use_deterministic(True)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "3c7895c0")
def test_states_come_back():
    own = torch.Generator().manual_seed(5)
    draws = lambda: (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(3).tolist(),
        torch.randn(5).tolist(),
        torch.rand(3, generator=own).tolist(),
    )
    for odd in range(4):  # Python and NumPy draw normal numbers in pairs and keep one back
        random.gauss(0, 1), np.random.randn(odd)
        state = random_state(own)
        after = draws()
        assert draws() != after
        with tempfile.TemporaryDirectory() as folder:
            save_file(state, Path(folder, "random.safetensors"))
            set_random_state(load_file(Path(folder, "random.safetensors")), own)
        assert draws() == after
        text = json.dumps({name: value.tolist() for name, value in state.items()})
        kinds = {name: value.dtype for name, value in state.items()}
        set_random_state(
            {name: torch.tensor(value, dtype=kinds[name]) for name, value in json.loads(text).items()}, own
        )
        assert draws() == after


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "5d176ca9")
def test_state_of_a_batch_of_processes():
    random.gauss(0, 1)  # a number kept back
    state = random_state()
    first = torch.randn(4)
    stacked = {name: torch.stack([value, value]) for name, value in state.items()}  # what gathering two processes gives
    set_random_state({name: rows[1] for name, rows in stacked.items()})  # rows: would crash without the clone
    assert torch.equal(torch.randn(4), first)
    with pytest.raises(ValueError, match=r"holds no 'run': save it with random_state\(generator\)"):
        set_random_state(state, torch.Generator())


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "43472e57")
def test_drawing_leaves_no_trace():
    draws = lambda: (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())
    state = random_state()
    after = draws()
    set_random_state(state)
    with drawing(31):
        inside = draws()
    assert draws() == after
    with pytest.raises(ZeroDivisionError), drawing(31):
        assert draws() == inside  # the same draws each time
        1 / 0
    set_random_state(state)
    with drawing(31):
        with drawing(31, 4):
            draws()
        assert draws() == inside  # nested: the inner one left no trace either
    assert draws() == after


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "65b1df33")
def test_places_have_books_of_their_own():
    def first_number(*key):
        with drawing(*key) as own:
            return random.random(), float(np.random.rand()), float(torch.rand(())), float(torch.rand((), generator=own))

    keys = [(31,), (31, 0), (31, 0, 0), (31, 1), (31, 0, 1), (31, 1, 0), (0, 31), (32,)]
    assert len({number for key in keys for number in first_number(*key)}) == 4 * len(keys)
    state = random_state()
    own = seed_everything(31, deterministic=False)  # drawing(seed) reads the books of seed_everything(seed)
    assert first_number(31) == (
        random.random(),
        float(np.random.rand()),
        float(torch.rand(())),
        float(torch.rand((), generator=own)),
    )
    set_random_state(state)
    with pytest.raises(ValueError, match="place 0=-1 must be a whole number"):
        first_number(31, -1)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "16e92685")
def test_short_keys_collide():
    same = [np.random.SeedSequence(key).generate_state(1)[0] for key in (31, (31, 0), (31, 0, 0))]
    apart = [np.random.SeedSequence(31, spawn_key=place).generate_state(1)[0] for place in ((), (0,), (0, 0))]
    assert len(set(same)) == 1 and len(set(apart)) == 3


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "b8ad11dd")
def test_loader_repeats(setup_2deabd7d):
    noisy, passed = setup_2deabd7d
    for workers in (0, 2):
        runs = []
        for _ in range(2):
            with drawing(31):  # the process itself seeded alike; workers by loader_seeds
                runs.append(passed(range(12), workers, noisy, shuffle=True, **loader_seeds(31)))
        assert torch.equal(*runs) and sorted(runs[0][:, 0].tolist()) == list(range(12))
        with drawing(31):
            other = passed(range(12), workers, noisy, shuffle=True, **loader_seeds(32))
        assert not torch.equal(other, runs[0])
    assert not torch.equal(
        passed(range(12), 2, noisy, **loader_seeds(31)), passed(range(12), 1, noisy, **loader_seeds(31))
    )


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "2f5c50f3")
def test_workers_draw_apart(setup_2deabd7d):
    noisy, passed = setup_2deabd7d
    rows = passed(range(12), 2, noisy, **loader_seeds(31))
    assert len(torch.unique(rows[:, 1:])) == 36  # two workers, three generators: nobody repeats anybody


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "7f494be0")
def test_seeded_items_do_not_ask_who_made_them(setup_2deabd7d):
    noisy, passed = setup_2deabd7d
    data = Seeded(range(12), 31, noisy)
    alone = torch.stack([data[i] for i in range(12)])
    random.random(), np.random.rand(), torch.rand(3)  # other people draw in between
    assert torch.equal(torch.stack([data[i] for i in reversed(range(12))]).flip(0), alone)
    for workers in (0, 1, 2):
        assert torch.equal(passed(data, workers), alone)
    data.epoch = 1
    assert (torch.stack([data[i] for i in range(12)])[:, 1:] != alone[:, 1:]).all()
    assert len(data) == 12 and Seeded(["as it is"], 0)[0] == "as it is"
    with pytest.raises(ValueError, match="epoch=-1 must be a whole number"):
        data.epoch = -1


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "c2b0b761")
def test_epoch_reaches_living_workers(setup_2deabd7d):
    noisy, _ = setup_2deabd7d
    data = Seeded(range(8), 31, noisy)
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    first = torch.stack(list(loader))
    data.epoch = 1
    second = torch.stack(list(loader))
    assert (first[:, 1:] != second[:, 1:]).all()
    assert torch.equal(second, torch.stack([data[i] for i in range(8)]))


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "56800400")
def test_two_processes_agree_bit_for_bit(setup_5d8c9ca4):
    two_processes = setup_5d8c9ca4
    one, two = two_processes((-1, 1), (31, 1), (32, 1))
    assert one[1:] == two[1:] and [len(sha) for sha, _ in one] == [16] * 3
    assert len({one[0], two[0], *one[1:]}) == 4  # no seed twice, seed 31, seed 32


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "819f69a3")
def test_threads_change_bits():
    x = torch.randn(20, 300_000, generator=torch.Generator().manual_seed(0)) * 1000
    before, sums = torch.get_num_threads(), {}
    for threads in (1, 2, 3, 4, 1):
        torch.set_num_threads(threads)
        sums.setdefault(threads, []).append(tuple(row.sum().item() for row in x))
    torch.set_num_threads(before)
    assert len(set(sums[1])) == 1  # the same number of threads: the same bits
    assert len({each for some in sums.values() for each in some}) > 1  # another number: other bits
    exact = x.double().sum(1)
    for some in sums.values():
        assert torch.allclose(torch.tensor(some[0]).double(), exact, rtol=1e-4, atol=1)  # and still right


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "7fa952b0")
def test_sets_have_no_order():
    def order(code, secret):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(secret)},
            capture_output=True,
            text=True,
        )
        return run.stdout.split()

    words = "'cat dog owl fox bee ant cow pig'.split()"
    assert len({tuple(order(f"print(*set({words}))", secret)) for secret in (1, 2, 3)}) > 1
    for cure in (f"sorted(set({words}))", f"dict.fromkeys({words})"):
        assert len({tuple(order(f"print(*{cure})", secret)) for secret in (1, 2, 3)}) == 1


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "cac4a4d0")
def test_sixteen_is_another_story():
    normal = lambda count: torch.randn(count, generator=torch.Generator().manual_seed(31))
    assert torch.equal(normal(14), normal(15)[:14]) and torch.equal(
        torch.rand(15, generator=torch.Generator().manual_seed(31)),
        torch.rand(16, generator=torch.Generator().manual_seed(31))[:15],
    )
    assert not set(normal(15).tolist()) & set(normal(16).tolist())


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "899e65a8")
def test_repeats():
    def repeats(job, seed):
        results = []
        for _ in range(2):
            with drawing(seed):  # NumPy and Python too, and no trace
                results.append(job())
        return torch.equal(*results)

    state = random_state()
    assert repeats(lambda: torch.rand(3), 31) and repeats(lambda: torch.tensor([random.random(), np.random.rand()]), 31)
    fresh = np.random.default_rng()  # opens an unknown book: no seed of ours reaches it
    assert not repeats(lambda: torch.tensor(fresh.random()), 31)
    now = random_state()
    assert all(torch.equal(state[k].nan_to_num(), now[k].nan_to_num()) for k in state)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "899e65a8")
def test_repeats_starter_fails():
    def repeats(job, seed):
        torch.manual_seed(seed)
        first = job()
        torch.manual_seed(seed)
        return torch.equal(job(), first)

    with pytest.raises(Exception):
        state = random_state()
        assert repeats(lambda: torch.rand(3), 31) and repeats(
            lambda: torch.tensor([random.random(), np.random.rand()]), 31
        )
        fresh = np.random.default_rng()  # opens an unknown book: no seed of ours reaches it
        assert not repeats(lambda: torch.tensor(fresh.random()), 31)
        now = random_state()
        assert all(torch.equal(state[k].nan_to_num(), now[k].nan_to_num()) for k in state)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "f54b70c1")
def test_pack_pcg():
    def pack(rng):
        state = rng.bit_generator.state
        words = [n >> 32 * i & 0xFFFFFFFF for n in (state["state"]["state"], state["state"]["inc"]) for i in range(4)]
        return torch.tensor([*words, state["has_uint32"], state["uinteger"]], dtype=torch.int64)

    def unpack(words, rng):
        *words, has, kept = words.tolist()
        whole = [sum(w << 32 * i for i, w in enumerate(words[at : at + 4])) for at in (0, 4)]
        rng.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": dict(zip(("state", "inc"), whole)),
            "has_uint32": has,
            "uinteger": kept,
        }

    rng = np.random.default_rng(31)
    for odd in range(3):
        rng.integers(10, size=odd, dtype=np.uint32)  # half a word of 64 bits may be kept back
        words = pack(rng)
        after = rng.random(5).tolist(), rng.integers(9, size=3, dtype=np.uint32).tolist()
        other = np.random.default_rng(99)
        unpack(words, other)
        assert (other.random(5).tolist(), other.integers(9, size=3, dtype=np.uint32).tolist()) == after


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "f54b70c1")
def test_pack_pcg_starter_fails():
    def pack(rng):
        state = rng.bit_generator.state
        return torch.tensor([state["state"]["state"] % 2**32, state["state"]["inc"] % 2**32], dtype=torch.int64)

    def unpack(words, rng):
        state = rng.bit_generator.state
        state["state"] = dict(zip(("state", "inc"), words.tolist()))
        rng.bit_generator.state = state

    with pytest.raises(Exception):
        rng = np.random.default_rng(31)
        for odd in range(3):
            rng.integers(10, size=odd, dtype=np.uint32)  # half a word of 64 bits may be kept back
            words = pack(rng)
            after = rng.random(5).tolist(), rng.integers(9, size=3, dtype=np.uint32).tolist()
            other = np.random.default_rng(99)
            unpack(words, other)
            assert (other.random(5).tolist(), other.integers(9, size=3, dtype=np.uint32).tolist()) == after


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "a9830dbd")
def test_share():
    def share(count, epoch, seed, rank, world):
        return np.random.default_rng((seed, epoch)).permutation(count)[
            rank::world
        ]  # one order for all; rank only selects

    def joint(world, epoch):
        parts = [share(12, epoch, 31, rank, world) for rank in range(world)]
        return np.stack(parts, 1).ravel().tolist()

    assert joint(1, 0) == joint(2, 0) == joint(3, 0) and sorted(joint(3, 0)) == list(range(12))
    assert joint(1, 0) != joint(1, 1)


@pytest.mark.nb("nbs/0_start/01_seeds.ipynb", "a9830dbd")
def test_share_starter_fails():
    def share(count, epoch, seed, rank, world):
        return np.random.default_rng((seed, epoch, rank)).permutation(count)[rank::world]

    with pytest.raises(Exception):

        def joint(world, epoch):
            parts = [share(12, epoch, 31, rank, world) for rank in range(world)]
            return np.stack(parts, 1).ravel().tolist()

        assert joint(1, 0) == joint(2, 0) == joint(3, 0) and sorted(joint(3, 0)) == list(range(12))
        assert joint(1, 0) != joint(1, 1)
