"""Generated from nbs/4_pretraining/15c_soho_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from torch import nn
from vlp_course.data.grammar import NOUNS
from vlp_course.data.pairs import SceneSet
from vlp_course.models.soho import SOHO
from vlp_course.models.soho import build
from vlp_course.nn.dictionary import VisualDictionary
from vlp_course.soho_board import TRIALS, agreement, cell_labels, cells_of, counts, kin, model_of, trunk_cells, watched


@pytest.fixture(scope="module")
def setup_965ab7fe():
    def slow_purity(index, labels):
        right = 0
        for j in set(index):
            mine = [y for i, y in zip(index, labels) if i == j]
            right += max(mine.count(y) for y in mine)
        return right / len(labels)

    def slow_kin(index, labels, groups):
        found = {True: [0, 0], False: [0, 0]}  # same entry or any: kin, all
        for a in range(len(labels)):
            for b in range(a):
                if labels[a] != labels[b]:
                    kin = groups[labels[a]] == groups[labels[b]]
                    for same in {index[a] == index[b], False}:
                        found[same] = [found[same][0] + kin, found[same][1] + 1]
        return (found[True][0] / found[True][1]) / (found[False][0] / found[False][1])

    return slow_kin, slow_purity


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "f2aaafea")
def test_agreement_by_hand(setup_965ab7fe):
    _, slow_purity = setup_965ab7fe
    index, labels = np.array([0, 0, 0, 1, 1, 3]), np.array([2, 2, 0, 1, 1, 1])
    found = agreement(index, labels)
    assert found["purity"] == 5 / 6 == slow_purity(index.tolist(), labels.tolist()) and found["used"] == 3
    assert agreement(labels, labels)["ami"] == pytest.approx(1)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 3000)
    few, many = agreement(rng.integers(0, 10, 3000), labels), agreement(rng.integers(0, 500, 3000), labels)
    assert (
        many["purity"] > few["purity"] + 0.1 and abs(many["purity"] - many["dealt"]) < 0.02
    )  # purity grows with entries alone
    assert abs(many["ami"]) < 0.01 and abs(few["ami"]) < 0.01  # adjusted information does not
    assert agreement(np.zeros(9, int), labels[:9])["ami"] == 0  # one entry for all


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "b1672d96")
def test_chance_is_what_the_exact_formula_says():
    from scipy.stats import hypergeom

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 9, 4000)
    index = np.where(rng.random(4000) < 0.5, labels, rng.integers(0, 30, 4000))
    table, total = counts(index, labels).astype(float), 4000
    rows, columns = table.sum(1), table.sum(0)
    expected = 0.0  # Vinh et al. 2010, equation 24a: every cell of the table is hypergeometric
    for a in rows[rows > 0]:
        for b in columns[columns > 0]:
            shared = np.arange(1, int(min(a, b)) + 1)
            expected += (
                shared / total * np.log(total * shared / (a * b)) * hypergeom(total, int(a), int(b)).pmf(shared)
            ).sum()
    h = lambda p: -(p[p > 0] * np.log(p[p > 0])).sum()
    mutual, most = (
        h(rows / total) + h(columns / total) - h(table.flatten() / total),
        (h(rows / total) + h(columns / total)) / 2,
    )
    assert agreement(index, labels)["ami"] == pytest.approx((mutual - expected) / (most - expected), abs=2e-3)


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "a5e25a0e")
def test_kin_equals_the_slow_way(setup_965ab7fe):
    slow_kin, _ = setup_965ab7fe
    rng = np.random.default_rng(2)
    labels, groups = rng.integers(0, 9, 60), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    index = np.where(rng.random(60) < 0.6, groups[labels], rng.integers(0, 5, 60))
    assert (
        kin(index, labels, groups) == pytest.approx(slow_kin(index.tolist(), labels.tolist(), groups.tolist()))
        and kin(index, labels, groups) > 1.3
    )
    assert kin(labels, labels, groups) == 0  # pure entries have no unlike pair


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "b7a4fbbe")
def test_labels_of_cells():
    scenes = SceneSet("test", 24)
    for i in range(24):
        scene, labels = scenes.scene(i), cell_labels(scenes.scene(i))
        assert len(labels) == 16 and {*labels} <= {scene.ground, *(o.noun for o in scene.objects)}
        for c, label in enumerate(labels):
            y, x = 32 * (c // 4), 32 * (c % 4)
            shares = {o.noun: 0 for o in scene.objects}
            for o in scene.objects:
                shares[o.noun] = max(shares[o.noun], o.mask[y : y + 32, x : x + 32].sum() / 1024)
            assert label == (max(shares, key=shares.get) if max(shares.values()) >= 0.25 else scene.ground)
    assert any(label in NOUNS for i in range(24) for label in cell_labels(scenes.scene(i)))


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "71730e23")
def test_trials_differ_in_what_they_say():
    model, plain = model_of(TRIALS["soho"], 3), build(seed=3)
    same = lambda a, b: all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    settings = lambda m: (
        m.dictionary.decay,
        m.dictionary.dead,
        m.masked,
        m.temperature,
        m.image_encoder.project.lr_scale,
        m.top.lr_scale,
    )
    assert same(model, plain) and settings(model) == settings(plain)  # the trial `soho` is the board's row
    found = {name: settings(model_of(trial, 3)) for name, trial in TRIALS.items() if trial.dictionary}
    assert len({*found.values()}) == len(found) and found["paper-pace"] == (0.99, 0.1, 0.5, 0.1, 1, 0.1)
    raw = model_of(TRIALS["raw"], 3)
    raw.after_step({}, 0)
    assert same(raw, plain) and not raw.dictionary.started


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "b2b9d1b0")
def test_watching_changes_nothing():
    class Toy(SOHO):
        """A SOHO that is nothing but its dictionary."""

        def __init__(self):
            nn.Module.__init__(self)
            self.dictionary = VisualDictionary(5, 3)

    curve, plain = [], Toy()
    model = watched(Toy(), curve, every=2)
    for step in range(5):
        state = {"cells": torch.randn(40, 3), "index": torch.zeros(40, dtype=torch.long)}
        plain.after_step(state, step), model.after_step(state, step)
    assert torch.equal(model.dictionary.embed, plain.dictionary.embed) and [row["step"] for row in curve] == [0, 2, 4]
    assert all(1 <= row["perplexity"] <= 5 and row["error"] > 0 for row in curve)


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "22c781e5")
def test_cells_of_a_set():
    scenes = SceneSet("test", 30)
    scenes.features = np.random.default_rng(0).standard_normal((30, 12288)).astype(np.float16)
    rows = trunk_cells(scenes, 20)
    assert (
        rows.shape == (320, 768)
        and rows.mean(1).abs().max() < 1e-3
        and (rows.var(1, unbiased=False) - 1).abs().max() < 1e-2
    )
    model = build(seed=1)
    torch.testing.assert_close(
        cells_of(model, scenes, 20)[16:32], model.cells(scenes.batch([1]))[0].detach(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "bfba8990")
def test_inverse_purity():
    def inverse_purity(index, labels):
        return agreement(labels, index)["purity"]

    labels = np.array([0, 0, 0, 1, 1, 2])
    assert inverse_purity(np.zeros(6, int), labels) == 1  # collapsed: perfect
    assert inverse_purity(np.arange(6), labels) == 0.5  # an entry a cell: one of each label


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "bfba8990")
def test_inverse_purity_starter_fails():
    def inverse_purity(index, labels):
        return agreement(index, labels)["purity"]

    with pytest.raises(Exception):
        labels = np.array([0, 0, 0, 1, 1, 2])
        assert inverse_purity(np.zeros(6, int), labels) == 1  # collapsed: perfect
        assert inverse_purity(np.arange(6), labels) == 0.5  # an entry a cell: one of each label


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "b684b24d")
def test_named():
    def named(index, labels, other, truth):
        table = np.zeros((max(index.max(), other.max()) + 1, max(labels.max(), truth.max()) + 1))
        np.add.at(table, (index, labels), 1)
        name = np.where(table.sum(1) > 0, table.argmax(1), -1)
        return float((name[other] == truth).mean())

    index, labels = np.array([0, 0, 1, 1, 1]), np.array([3, 3, 2, 2, 0])
    assert named(index, labels, np.array([0, 1, 1, 4]), np.array([3, 2, 1, 1])) == 0.5
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 10, 400), rng.integers(0, 10, 400)
    every = np.arange(400)
    assert (
        agreement(every, labels)["purity"] == 1 and named(every, labels, rng.integers(0, 400, 400), truth) < 0.2
    )  # many entries buy nothing


@pytest.mark.nb("nbs/4_pretraining/15c_soho_board.ipynb", "b684b24d")
def test_named_starter_fails():
    def named(index, labels, other, truth):
        return agreement(other, truth)["purity"]

    with pytest.raises(Exception):
        index, labels = np.array([0, 0, 1, 1, 1]), np.array([3, 3, 2, 2, 0])
        assert named(index, labels, np.array([0, 1, 1, 4]), np.array([3, 2, 1, 1])) == 0.5
        rng = np.random.default_rng(0)
        labels, truth = rng.integers(0, 10, 400), rng.integers(0, 10, 400)
        every = np.arange(400)
        assert (
            agreement(every, labels)["purity"] == 1 and named(every, labels, rng.integers(0, 400, 400), truth) < 0.2
        )  # many entries buy nothing
