"""Generated from nbs/4_pretraining/15c_soho_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
from vlp_course.data.grammar import NOUNS
from vlp_course.data.pairs import SceneSet
from vlp_course.soho_board import agreement, cell_labels, kin


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
def test_agrees_with_scikit_learn():
    adjusted = pytest.importorskip("sklearn.metrics").adjusted_mutual_info_score
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 20, 4000)
    index = np.where(rng.random(4000) < 0.5, labels, rng.integers(0, 90, 4000))
    assert agreement(index, labels)["ami"] == pytest.approx(adjusted(labels, index), abs=2e-3)


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
