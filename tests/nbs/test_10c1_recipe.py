"""Generated from nbs/3_fusion/10c1_recipe.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import dataclasses
import itertools
import numpy as np
import pytest
import torch
from vlp_course.recipe import Recipe, batch_indices, learning_rate


@pytest.fixture(scope="module")
def setup_1bcbc438():
    class SlowSampler:
        "An endless stream of batches: shuffle the families, fill batches, drop what is left over, shuffle again."

        def __init__(self, groups, batch_size, seed):
            self.groups, self.batch_size, self.seed = np.asarray(groups), batch_size, seed

        def epoch(self, number):
            names = np.unique(self.groups)
            batch = []
            for name in names[np.random.default_rng((self.seed, number)).permutation(len(names))]:
                family = list(np.flatnonzero(self.groups == name))
                if len(batch) + len(family) > self.batch_size:
                    yield batch
                    batch = []
                batch += family
            yield batch

        def __iter__(self):
            for number in itertools.count():
                yield from itertools.islice(self.epoch(number), len(self.groups) // self.batch_size)

    return SlowSampler


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "fcd25712")
def test_recipe_through_json():
    recipe = Recipe(steps=300, lr=3e-4, betas=(0.9, 0.95), seed=31, precision="bf16", accumulation=3)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert (
        Recipe.from_json('{"steps": 7}')
        == Recipe(7)
        == Recipe(7, clip=1)
        == Recipe.from_json('{"steps": 7, "betas": [0.9, 0.98]}')
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "35afd141")
def test_recipe_says_what_is_wrong():
    def complaint(**entries):
        with pytest.raises(ValueError) as error:
            Recipe(**{"steps": 10, **entries})
        return str(error.value)

    assert complaint(steps=0) == "Recipe: steps=0 must be a whole number from 1 up"
    assert complaint(device="gpu") == "Recipe: device='gpu' must be one of cpu, cuda"
    assert complaint(precision="fp16") == "Recipe: precision='fp16' must be one of no, bf16"
    assert complaint(batch_size=64, accumulation=3) == "Recipe: batch_size=64 is no multiple of accumulation=3"
    for entry, bad in dict(
        batch_size=0,
        lr=float("nan"),
        betas=(0.9, 1.0),
        weight_decay=-1,
        clip=float("inf"),
        warmup=-1,
        seed=-1,
        accumulation=0,
        budget="",
    ).items():
        assert complaint(**{entry: bad}).startswith(f"Recipe: {entry}=") and "\n" not in complaint(**{entry: bad})
    for text, named in {'{"steps": 5, "lerning_rate": 1}': "lerning_rate", "{}": "steps"}.items():
        with pytest.raises(ValueError, match=named):
            Recipe.from_json(text)


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "7d967dba")
def test_learning_rate_by_hand():
    rates = [learning_rate(Recipe(12, lr=1.0, warmup=4), step) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[8] == pytest.approx(0.5) and rates[12] == pytest.approx(0.0, abs=1e-15)
    assert rates[6] == pytest.approx(0.5 + 0.5 * np.sqrt(0.5))  # cos of 45 degrees
    assert learning_rate(Recipe(12, lr=1.0, warmup=0), 0) == 1.0
    assert learning_rate(Recipe(4, lr=1.0, warmup=4), 4) == 1.0  # nothing but warm-up
    assert learning_rate(Recipe(3, lr=1.0, warmup=50), 2) == 0.06  # a run shorter than its warm-up never leaves it


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "cfeaf131")
def test_learning_rate_like_torch():
    recipe = Recipe(60, lr=3e-3, warmup=7)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    parts = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 7),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=53),
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[7])
    for step in range(60):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate(recipe, step), rel=1e-9, abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "6502e1d5")
def test_sampler_equals_the_slow_one(setup_1bcbc438):
    SlowSampler = setup_1bcbc438
    for groups, batch_size in [
        (np.arange(60) // 3, 12),
        (np.arange(50), 7),
        (np.repeat(np.arange(9), [1, 4, 2, 3, 5, 1, 2, 6, 3]), 8),
    ]:
        slow = itertools.islice(SlowSampler(groups, batch_size, 31), 40)
        for step, batch in enumerate(slow):
            assert batch_indices(groups, step, batch_size, 31).tolist() == batch


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "676337bc")
def test_sampler_keeps_families_whole():
    groups = np.random.default_rng(1).permutation(np.arange(90) // 3)  # siblings lie anywhere in the data set
    for epoch in range(3):
        batches = [batch_indices(groups, 7 * epoch + place, 12, 5) for place in range(7)]
        seen = np.concatenate(batches)
        assert len(set(seen.tolist())) == len(seen) == 84  # nothing twice, 6 of 90 items dropped
        for batch in batches:
            assert len(batch) == 12 and set(np.bincount(groups[batch])) == {
                0,
                3,
            }  # a family is there whole or not at all


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "ea82632e")
def test_sampler_is_a_pure_function():
    groups = np.arange(63) // 3
    forwards = [batch_indices(groups, step, 9, 0).tolist() for step in range(40)]
    backwards = [batch_indices(groups, step, 9, 0).tolist() for step in reversed(range(40))]
    assert forwards == backwards[::-1]  # resumed at any step, the same batch
    assert forwards[:7] != forwards[7:14]  # each epoch has an order of its own
    assert sorted(sum(forwards[:7], [])) == sorted(sum(forwards[7:14], [])) == list(range(63))
    assert batch_indices(groups, 0, 9, 1).tolist() != forwards[0]
    batch_indices(groups, 0, 9, 0)[:] = -1  # a caller may write into its batch
    assert batch_indices(groups, 0, 9, 0).tolist() == forwards[0]


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "da84a7fc")
def test_sampler_says_what_is_wrong():
    with pytest.raises(ValueError, match="no batch of 12 can be made of 9 items"):
        batch_indices(np.arange(9), 0, 12, 0)
    with pytest.raises(ValueError, match="families of up to 6"):
        batch_indices(np.repeat([0, 1], 6), 0, 4, 0)
    with pytest.raises(ValueError, match="0 items"):
        batch_indices(np.array([], np.int64), 0, 4, 0)


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "4a208e24")
def test_inverse_square_root():
    def inverse_square_root(step, dim, warmup):
        return dim**-0.5 * min((step + 1) ** -0.5, (step + 1) * warmup**-1.5)

    curve = [inverse_square_root(step, 64, 16) for step in range(100)]
    assert (
        curve[0] == pytest.approx(1 / 8 / 64)
        and curve[15] == pytest.approx(1 / 8 / 4)
        and curve[63] == pytest.approx(1 / 64)
    )
    assert max(curve) == curve[15]  # it peaks when the warm-up ends


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "4a208e24")
def test_inverse_square_root_starter_fails():
    def inverse_square_root(step, dim, warmup):
        return dim**-0.5 * (step + 1) ** -0.5

    with pytest.raises(Exception):
        curve = [inverse_square_root(step, 64, 16) for step in range(100)]
        assert (
            curve[0] == pytest.approx(1 / 8 / 64)
            and curve[15] == pytest.approx(1 / 8 / 4)
            and curve[63] == pytest.approx(1 / 64)
        )
        assert max(curve) == curve[15]  # it peaks when the warm-up ends


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "06b8ce8b")
def test_times_used():
    def times_used(groups, batch_size, seed, epochs):
        steps = epochs * (len(groups) // batch_size)
        used = np.concatenate([batch_indices(groups, step, batch_size, seed) for step in range(steps)])
        return np.bincount(used, minlength=len(groups))

    families = np.arange(75) // 3
    used = times_used(families, 12, 0, 200)
    assert used.sum() == 200 * 6 * 12 and (used[0::3] == used[1::3]).all()  # siblings share their fate
    assert abs(used - 192).max() < 5 * np.sqrt(200 * 0.96 * 0.04)  # 24 of 25 families a time: binomial


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "06b8ce8b")
def test_times_used_starter_fails():
    def times_used(groups, batch_size, seed, epochs):
        return np.full(len(groups), epochs)

    with pytest.raises(Exception):
        families = np.arange(75) // 3
        used = times_used(families, 12, 0, 200)
        assert used.sum() == 200 * 6 * 12 and (used[0::3] == used[1::3]).all()  # siblings share their fate
        assert abs(used - 192).max() < 5 * np.sqrt(200 * 0.96 * 0.04)  # 24 of 25 families a time: binomial


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "8293a855")
def test_themed_indices():
    def themed_indices(groups, themes, step, batch_size, seed):
        members = [np.flatnonzero(themes == theme) for theme in np.unique(themes)]
        counts = [len(m) // batch_size for m in members]  # batches of each theme in an epoch
        epoch, place = divmod(step, sum(counts))
        slots = [(theme, k) for theme, count in enumerate(counts) for k in range(count)]
        theme, k = slots[np.random.default_rng((seed, epoch, 1)).permutation(len(slots))[place]]
        inside = batch_indices(groups[members[theme]], epoch * counts[theme] + k, batch_size, seed)
        return members[theme][inside]

    families, themes = np.arange(90) // 3, np.arange(90) // 3 % 2
    batches = [themed_indices(families, themes, step, 9, 4) for step in range(30)]
    for batch in batches:
        assert len(batch) == 9 and len(set(themes[batch])) == 1 and set(np.bincount(families[batch])) == {0, 3}
    first = np.concatenate(batches[:10])
    assert len(set(first.tolist())) == 90 and len({themes[b][0] for b in batches[:4]}) == 2
    assert themed_indices(families, themes, 17, 9, 4).tolist() == batches[17].tolist()


@pytest.mark.nb("nbs/3_fusion/10c1_recipe.ipynb", "8293a855")
def test_themed_indices_starter_fails():
    def themed_indices(groups, themes, step, batch_size, seed):
        return batch_indices(groups, step, batch_size, seed)

    with pytest.raises(Exception):
        families, themes = np.arange(90) // 3, np.arange(90) // 3 % 2
        batches = [themed_indices(families, themes, step, 9, 4) for step in range(30)]
        for batch in batches:
            assert len(batch) == 9 and len(set(themes[batch])) == 1 and set(np.bincount(families[batch])) == {0, 3}
        first = np.concatenate(batches[:10])
        assert len(set(first.tolist())) == 90 and len({themes[b][0] for b in batches[:4]}) == 2
        assert themed_indices(families, themes, 17, 9, 4).tolist() == batches[17].tolist()
