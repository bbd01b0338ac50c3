"""Generated from nbs/4_pretraining/19_probe_tasks.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
from collections import Counter
from dataclasses import replace
from vlp_course.data.families import family
from vlp_course.data.grammar import Spec
from vlp_course.data.grammar import Thing
from vlp_course.data.scenes import scene
from vlp_course.probe_tasks import (
    CHOOSE,
    FIT,
    LEVELS,
    ProbeTask,
    REPORT,
    _grams,
    _trained,
    cuts,
    probe_task,
    speech_of,
    strangers,
    word_counts,
    wrong_spec,
)


@pytest.fixture(scope="module")
def setup_bcd4f975():
    SMALL = {name: probe_task(name, 324) for name in LEVELS}
    return SMALL


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "355c646e")
def test_parts_keep_families_together():
    bounds = cuts(6012)
    assert bounds.tolist() == [0, 3006, 4008, 6012] and (bounds % 3 == 0).all()
    for count in (108, 144, 6012):
        found, scenes = strangers(count), np.arange(count)
        part = lambda s: np.searchsorted(cuts(count)[1:], s, "right")
        assert (
            sorted(found) == scenes.tolist()
            and (found // 3 != scenes // 3).all()
            and (part(found) == part(scenes)).all()
        )
    assert np.mean(strangers(6012) // 3 % 4 == np.arange(6012) // 3 % 4) > 0.7


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "8ddfec38")
def test_odd_numbers_of_scenes():
    for count in (72, 6000, 0):
        with pytest.raises(ValueError, match=f"{count} scenes: the parts need a multiple of 36, and at least 108"):
            cuts(count)


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "adca07c1")
def test_wrong_in_one_respect():
    rng = np.random.default_rng(0)
    owl, star, dot = Thing("rat", None, "small"), Thing("star", "red", "big"), Thing("circle", "blue", "big")
    pair = Spec("horizontal", (star, dot), "grey")
    assert (
        wrong_spec("position", pair, rng).things == (dot, star)
        and wrong_spec("position", Spec("count", (owl,), "grey", count=2), rng) is None
    )
    assert wrong_spec("binding", Spec("vertical", (owl, star), "grey"), rng).things == (
        owl._replace(size="big"),
        star._replace(size="small"),
    )
    assert wrong_spec("binding", pair, rng) in (
        None,
        replace(pair, things=(star._replace(colour="blue"), dot._replace(colour="red"))),
    )
    assert wrong_spec("binding", Spec("place", (star,), "grey"), rng) is None
    for task in ("position", "size", "binding", "adversarial"):
        for n in range(400):
            spec = family("test", 0, n)[0].spec
            if wrong := wrong_spec(task, spec, rng):
                same = lambda f: sorted(map(str, f(spec.things))) == sorted(map(str, f(wrong.things)))
                assert wrong != spec and wrong.ground == spec.ground and wrong.count == spec.count and _trained(wrong)
                assert (wrong.place == spec.place) or task == "position"
                assert same(lambda ts: [t.noun for t in ts]) == (task != "adversarial")
                assert same(lambda ts: [t.size for t in ts]) == (task != "size") and same(
                    lambda ts: [t.colour for t in ts]
                )


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "d8e98a3c")
def test_tasks_without_wrong_captions():
    with pytest.raises(
        ValueError, match="no wrong captions for 'colour': choose position, size, binding or adversarial"
    ):
        wrong_spec("colour", Spec("place", (Thing("star", "red", "big"),), "grey"), np.random.default_rng(0))


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "b3a65149")
def test_words_by_hand():
    short = lambda text: " ".join(tag[0] for tag in speech_of(text))
    assert short("a small red circle left of an owl on a white ground") == "d a a n p p d n p d a n"
    assert (
        short("two big cats on the left and a fly on the right of a grey ground") == "n a n p d n c d n p d n p d a n"
    )
    assert (
        short("a rat in the top left of a dotted ground") == "d n p d a n p d a n"
        and short("from left to right") == "p n p n"
    )
    assert (
        short("a big ant at the top and a bee to the left of a pie higher than a fly")
        == "d a n p d n c d n p d n p d n a p d n"
    )


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "1585e0fb")
def test_items_say_what_is_so(setup_bcd4f975):
    SMALL = setup_bcd4f975
    for name, task in SMALL.items():
        assert len(task.texts) == len(task.scenes) == len(task.labels) == len(task.slots) == len(task.places) > 0
        for n, text, label, place in zip(task.scenes, task.texts, task.labels, task.places):
            s = scene("test", 0, int(n))
            if name == "count":
                assert len(s.objects) == label + 1
            elif name in ("noun", "shade"):
                assert {(o.noun, o.colour)[name == "shade"] for o in s.objects} == {task.classes[label]}
            elif name == "colour":
                words = text.split()
                assert (
                    words[place] == "[MASK]"
                    and " ".join([*words[:place], task.classes[label], *words[place + 1 :]]) == s.caption
                )
            elif name == "speech":
                assert text == s.caption and speech_of(text)[place] == task.classes[label]
            else:
                assert (text == s.caption) == (label == 0)
                assert (
                    (sorted(text.split()) == sorted(s.caption.split()))
                    or label
                    and name in ("size", "adversarial", "position", "binding")
                )


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "ac543946")
def test_halves_are_halves(setup_bcd4f975):
    SMALL = setup_bcd4f975
    for name in ("order", "position", "size", "binding", "adversarial"):
        task, seen = SMALL[name], Counter()
        seen = Counter(zip(task.parts, task.slots, task.labels))
        assert all(
            seen[part, slot, 0] == seen[part, slot, 1] > 0 for part in (FIT, CHOOSE, REPORT) for slot in set(task.slots)
        )
    again = probe_task("size", 324)
    assert again.texts == SMALL["size"].texts and (again.labels == SMALL["size"].labels).all()
    assert set(SMALL["position"].slots) == {"place", "relation"} and len(set(SMALL["speech"].slots)) == 2


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "d77a2afe")
def test_pictures_of_items(setup_bcd4f975):
    SMALL = setup_bcd4f975
    task = SMALL["size"]
    own, stranger = task.pictures(), task.pictures(matched=False)
    assert (own == task.scenes).all() and (own // 3 != stranger // 3).all()
    assert (np.searchsorted(cuts(324)[1:], stranger, "right") == task.parts).all()


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "1d0a8d1c")
def test_unknown_tasks():
    with pytest.raises(
        ValueError, match="unknown probe task 'verbs': choose one of count, noun, shade, order, speech, colour"
    ):
        probe_task("verbs")


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "2d5e156b")
def test_counts_by_hand():
    texts = ["a b a", "a [MASK]", "b c", "c c"]
    task = ProbeTask(
        "size",
        np.array([0, 3, 6, 100]),
        texts,
        np.zeros(4, int),
        ["size"] * 4,
        np.array([-1, 1, -1, -1]),
        ("true", "wrong"),
        108,
    )
    assert word_counts(task, pairs=False, least=1).tolist() == [
        [0, 2, 1, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 0, 2],
    ]  # [MASK] a b c
    assert word_counts(task, pairs=False, least=2).tolist() == [
        [2, 1],
        [1, 0],
        [0, 1],
        [0, 0],
    ]  # the last is no fitting item
    assert _grams("a b c", 1, True) == ["b", "a _", "_ c", "a b", "b c"] and _grams("a b", -1, True) == [
        "a",
        "b",
        "^ a",
        "a b",
        "b $",
    ]


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "3afd69b9")
def test_band_of():
    def band_of(items, share=0.5):
        """Half-width in points."""
        return 196 * (share * (1 - share) / items) ** 0.5

    assert (
        band_of(200) == pytest.approx(6.93, abs=0.01)
        and band_of(2000) == pytest.approx(2.19, abs=0.01)
        and band_of(2000, 0.9) < band_of(2000)
    )


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "3afd69b9")
def test_band_of_starter_fails():
    def band_of(items, share=0.5):
        """Half-width in points."""
        return 100 / items

    with pytest.raises(Exception):
        assert (
            band_of(200) == pytest.approx(6.93, abs=0.01)
            and band_of(2000) == pytest.approx(2.19, abs=0.01)
            and band_of(2000, 0.9) < band_of(2000)
        )


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "275ced87")
def test_gap_error():
    def gap_error(a, b):
        """Standard error of 100 * (mean a - mean b)."""
        return 100 * np.std(np.asarray(a, float) - np.asarray(b, float)) / len(a) ** 0.5

    a = np.arange(40) < 30
    b = np.arange(40) < 26
    assert gap_error(a, b) == pytest.approx(100 * (0.1 * 0.9 / 40) ** 0.5) and gap_error(a, a) == 0


@pytest.mark.nb("nbs/4_pretraining/19_probe_tasks.ipynb", "275ced87")
def test_gap_error_starter_fails():
    def gap_error(a, b):
        """Standard error of 100 * (mean a - mean b)."""
        return 100 * (np.var(a) / len(a) + np.var(b) / len(b)) ** 0.5

    with pytest.raises(Exception):
        a = np.arange(40) < 30
        b = np.arange(40) < 26
        assert gap_error(a, b) == pytest.approx(100 * (0.1 * 0.9 / 40) ** 0.5) and gap_error(a, a) == 0
