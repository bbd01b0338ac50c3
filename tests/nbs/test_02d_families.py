"""Generated from nbs/0_start/02d_families.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import os
import pytest
import re
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from vlp_course.data.grammar import COLOURS
from vlp_course.data.grammar import GROUNDS
from vlp_course.data.grammar import HELD_OUT_NOUNS
from vlp_course.data.grammar import HELD_OUT_TEMPLATES
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import PLACES
from vlp_course.data.grammar import SHAPES
from vlp_course.data.grammar import SIZES
from vlp_course.data.grammar import Spec
from vlp_course.data.grammar import TEMPLATES
from vlp_course.data.grammar import TRAINED_NOUNS
from vlp_course.data.grammar import Thing
from vlp_course.data.grammar import describe
from vlp_course.data.grammar import held_out_combination
from vlp_course.data.grammar import other
from vlp_course.data.grammar import plural
from vlp_course.data.grammar import swap_sizes
from vlp_course.data.grammar import words_of
from vlp_course.data.families import KINDS, SPLITS, _base, _draw_thing, _flip, _need_split, _resize, caption_of, family


@pytest.fixture(scope="module")
def setup_1d1a0187():
    def wait_for_mirror(k, rng):
        """How many random scenes of a world with k nouns until one mirrors the first."""
        draw = lambda: tuple(rng.choice(k, 2, replace=False))
        first, waited = draw(), 1
        while draw() != first[::-1]:
            waited += 1
        return waited

    return wait_for_mirror


@pytest.fixture(scope="module")
def setup_1e6a828e():
    def captions(split, number, seed=0):
        return [caption_of(split, member) for member in family(split, seed, number)]

    def digest(split, numbers, seed=0):
        """A checksum of captions, templates and layout seeds."""
        rows = [(caption_of(split, m), m.template, m.layout) for n in numbers for m in family(split, seed, n)]
        return zlib.crc32(repr(rows).encode())

    return captions, digest


@pytest.fixture(scope="module")
def setup_a2c4c5f2():
    SINGULAR = {noun.plural: noun.word for noun in NOUNS.values()} | {plural(shape): shape for shape in SHAPES}

    @lru_cache(maxsize=None)
    def nouns_of(caption):
        words = [SINGULAR.get(word, word) for word in words_of(caption)]
        return tuple(sorted(word for word in words if word in NOUNS or word in SHAPES))

    def neighbours(k):
        """The reader that notices which k words stand together, and nothing of their order beyond that."""

        @lru_cache(maxsize=None)
        def reader(caption):
            words = words_of(caption)
            return tuple(sorted(tuple(words[i : i + k]) for i in range(len(words) - k + 1)))

        return reader

    READERS = {
        "nouns": nouns_of,
        "bag of words": neighbours(1),
        "pairs of words": neighbours(2),
        "triples": neighbours(3),
        "sentence": str,
    }

    def classes(captions, reader):
        """For each caption n, how many look the same to the reader, and m, how many are the same string."""
        seen, strings = [reader(c) for c in captions], Counter(captions)
        looks = Counter(seen)
        return np.array([looks[key] for key in seen]), np.array([strings[c] for c in captions])

    def best_recall(captions, reader):
        n, m = classes(captions, reader)
        return np.mean(m / n)

    def least_loss(captions, reader):
        n, m = classes(captions, reader)
        return np.mean(np.log(1 + n - m))

    return READERS, best_recall, least_loss, neighbours, nouns_of


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "e6927f12")
def test_waiting_by_hand(setup_1d1a0187):
    wait_for_mirror = setup_1d1a0187
    rng = np.random.default_rng(0)  # each of the k (k - 1) scenes is equally likely
    for k in (3, 6):
        waits = [wait_for_mirror(k, rng) for _ in range(1500)]
        assert np.mean(waits) == pytest.approx(k * (k - 1), rel=5 / 1500**0.5)


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "4dbef2c8")
def test_unknown_split():
    with pytest.raises(
        ValueError, match="unknown split 'tests': choose one of train, val, test, nouns, combinations, templates"
    ):
        _need_split("tests")
    assert all(_need_split(split) is None for split in SPLITS)


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "dabff8cd")
def test_things_are_of_the_wanted_sort():
    rng = np.random.default_rng(0)
    for new_noun, new_combination in ((False, False), (False, True), (True, False)):
        things = [_draw_thing(rng, new_noun, new_combination) for _ in range(600)]
        assert all((t.noun in HELD_OUT_NOUNS) == new_noun for t in things)
        assert new_noun or all(held_out_combination(t) == new_combination for t in things)
        assert {t.size for t in things} == set(SIZES) and all((t.colour is None) == (t.noun in NOUNS) for t in things)


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "001be9f4")
def test_things_equal_slow_list():
    # the slow twin: list every allowed thing; nouns must be uniform over their list, and shapes over theirs
    nouns = [Thing(n, None, s) for n in TRAINED_NOUNS for s in SIZES]
    shapes = [Thing(n, c, s) for n in SHAPES for c in COLOURS for s in SIZES]
    nouns, shapes = ([t for t in things if not held_out_combination(t)] for things in (nouns, shapes))
    rng, size = np.random.default_rng(0), 12_000
    found = Counter(_draw_thing(rng) for _ in range(size))
    share = 0.3 * len(shapes) / 64 / (0.3 * len(shapes) / 64 + 0.7 * len(nouns) / 470)  # of shapes, after redrawing
    for things, expected in ((shapes, size * share / len(shapes)), (nouns, size * (1 - share) / len(nouns))):
        chi = sum((found[t] - expected) ** 2 / expected for t in things) / len(things)  # near 1 for uniform draws
        assert abs(chi - 1) < 5 * (2 / len(things)) ** 0.5
    assert set(found) <= {*nouns, *shapes}


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "002336a3")
def test_bases_are_sound():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        specs = [_base(rng, kind, "train") for _ in range(300)]
        assert all(len({t.noun for t in s.things}) == (2 if kind in KINDS[:2] else 1) for s in specs)
        assert {s.count for s in specs} == {1, 2, 3, 4} and {s.place for s in specs} == set(PLACES)
        assert {s.ground for s in specs} == set(GROUNDS) and {s.kind for s in specs} == {kind}


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "f37ecd35")
def test_held_out_thing_stands_anywhere():
    rng = np.random.default_rng(0)
    specs = [_base(rng, "horizontal", "combinations") for _ in range(400)]
    new = np.array([[held_out_combination(t) for t in s.things] for s in specs])
    assert (new.sum(1) == 1).all() and abs(new[:, 0].mean() - 0.5) < 5 * 0.5 / 400**0.5


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "f49fa9d8")
def test_flips_by_hand():
    rng, cat, star = np.random.default_rng(0), Thing("tiger", None, "small"), Thing("star", "red", "big")
    side = Spec("horizontal", (cat, star), "white")
    assert describe(_flip(side, rng)) == "a big red star left of a small tiger on a white ground"
    assert describe(_resize(side, "nouns", rng)) == "a big tiger left of a small red star on a white ground"
    assert {_flip(Spec("count", (cat,), "grey", count=1), rng).count for _ in range(9)} == {2}
    assert {_flip(Spec("count", (cat,), "grey", count=3), rng).count for _ in range(40)} == {2, 4}
    assert {_flip(Spec("place", (cat,), "grey", place="middle"), rng).place for _ in range(80)} == set(PLACES) - {
        "middle"
    }


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "2cf8d44c")
def test_resize_never_shows_what_is_held_out():
    taboo = next(
        Thing(n, None, "big")
        for n in TRAINED_NOUNS
        if held_out_combination(Thing(n, None, "big")) and not held_out_combination(Thing(n, None, "small"))
    )
    spec, rng = Spec("place", (taboo._replace(size="small"),), "white"), np.random.default_rng(0)
    assert _resize(spec, "combinations", rng).things == (taboo,)  # there it is wanted
    for _ in range(50):
        (found,) = _resize(spec, "train", rng).things
        assert found.noun != taboo.noun and found.size == "small" and not held_out_combination(found)


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "37d12869")
def test_families_are_frozen(setup_1e6a828e):
    captions, digest = setup_1e6a828e
    # by hand: read once, kept for ever; recorded runs were trained and scored on these very captions
    assert captions("train", 2) == [
        "a small teddy in the bottom right of a striped ground",
        "a small teddy in the middle of a striped ground",
        "a big teddy in the bottom right of a striped ground",
    ]
    assert [
        f"{digest(split, range(200)):08x}" for split in SPLITS
    ] == "c5ae257f a7b3ba08 765df44d 3e4e3214 3aadc748 282c5bca".split()


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "9ef00c9d")
def test_bad_requests():
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val"):
        family("dev", 0, 0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        caption_of("dev", family("val", 0, 0)[0])
    with pytest.raises(ValueError, match="seed 0 and number -1 of a family must be 0 or more"):
        family("train", 0, -1)


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "ea644f27")
def test_order_and_cache_do_not_matter():
    first = {(split, n): family(split, 3, n) for split in SPLITS for n in range(60)}
    family.cache_clear()
    for split, n in reversed(first):
        assert family(split, 3, n) == first[split, n] == family.__wrapped__(split, 3, n)
    with pytest.raises(AttributeError):
        first["train", 0][0].template = 7  # what the cache hands out cannot be changed


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "3b5cdd84")
def test_other_processes_agree(setup_1e6a828e):
    _, digest = setup_1e6a828e
    program = f"""
import zlib
from vlp_course.data.families import caption_of, family
for split in {SPLITS}:
    rows = [(caption_of(split, m), m.template, m.layout) for n in (70, 3, 41) for m in family(split, 5, n)]
    print(zlib.crc32(repr(rows).encode()))
"""
    for hash_seed in ("1", "2"):  # Python's own hash differs between the two
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert [int(line) for line in done.stdout.split()] == [digest(split, (70, 3, 41), 5) for split in SPLITS]


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "588d98eb")
def test_number_seed_and_split_all_count():
    same = lambda a, b: family(*a)[0].spec == family(*b)[0].spec
    for other_split, other_seed, step in (("train", 0, 4), ("train", 1, 0), ("val", 0, 0)):
        hits = [same(("train", 0, n), (other_split, other_seed, n + step)) for n in range(400)]
        assert sum(hits) < 8  # equal by chance, in small worlds only


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "f32e93ef")
def test_siblings_differ_by_the_promised_slot():
    swaps = Counter()
    for split in SPLITS:
        for number in range(400):
            base, flip, resized = (m.spec for m in family(split, 0, number))
            assert (
                len({(m.template, m.layout) for m in family(split, 0, number)}) == 1 and base.kind == KINDS[number % 4]
            )
            changes = {"place": {"place": flip.place}, "count": {"count": flip.count}}.get(
                base.kind, {"things": base.things[::-1]}
            )
            assert flip == replace(base, **changes) != base
            if resized == swap_sizes(base):
                swaps[split, "sizes"] += 1
            else:  # another noun, sizes and all else as they were
                swaps[split, "noun"] += 1
                old, new = base.things[0], resized.things[0]
                assert (
                    new.noun != old.noun
                    and new.size == old.size
                    and resized == replace(base, things=(new, *base.things[1:]))
                )
                assert any(map(held_out_combination, swap_sizes(base).things))
    assert all(swaps[split, "noun"] == 0 for split in ("nouns", "combinations")) and 25 < swaps["train", "noun"] < 75


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "162b4a1f")
def test_splits_keep_their_promises(setup_1e6a828e):
    captions, _ = setup_1e6a828e
    thing = rf"(?:{'|'.join(SIZES)})(?: (?:{'|'.join(COLOURS)}))? [a-z]+"
    slots = {
        "a": f"a {thing}",
        "b": f"a {thing}",
        "n": f"(?:one|two|three|four) {thing}",
        "g": "a [a-z]+ ground",
        "p": f"(?:{'|'.join(PLACES)})",
    }
    trained, unseen = (
        "|".join(f"(?:{t.format(**slots)})" for texts in group.values() for t in texts)
        for group in (TEMPLATES, HELD_OUT_TEMPLATES)
    )
    for number in range(3000):
        for member in family("train", 0, number):
            text = caption_of("train", member)
            assert not any(t.noun in HELD_OUT_NOUNS or held_out_combination(t) for t in member.spec.things)
            assert re.fullmatch(trained, text) and not re.fullmatch(unseen, text)
    for number in range(500):
        assert all(t.noun in HELD_OUT_NOUNS for m in family("nouns", 0, number) for t in m.spec.things)
        new = [sum(map(held_out_combination, m.spec.things)) for m in family("combinations", 0, number)]
        assert new[:2] == [1, 1]  # the resized sibling may show any
        assert [m.spec for m in family("templates", 0, number)] == [m.spec for m in family("test", 0, number)]
        assert all(
            re.fullmatch(unseen, text) and not re.fullmatch(trained, text) for text in captions("templates", number)
        )


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "13ad3e2a")
def test_readers_by_hand(setup_a2c4c5f2):
    READERS, _, _, _, nouns_of = setup_a2c4c5f2
    text = "two small red circles on a white ground"
    assert nouns_of(text) == ("circle",) and nouns_of("a big ox above a small fly on a grey ground") == ("fly", "ox")
    assert READERS["bag of words"]("a cat a dog") == (("a",), ("a",), ("cat",), ("dog",))
    assert READERS["pairs of words"]("a cat a dog") == (("a", "cat"), ("a", "dog"), ("cat", "a"))


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "76a880c5")
def test_ceilings_by_hand(setup_a2c4c5f2):
    READERS, best_recall, least_loss, _, _ = setup_a2c4c5f2
    gallery = ["a b", "b a", "a b", "c"]  # to a bag: three alike, two of them equal
    bag = READERS["bag of words"]
    assert (
        best_recall(gallery, bag) == pytest.approx((2 / 3 + 1 / 3 + 2 / 3 + 1) / 4) and best_recall(gallery, str) == 1
    )
    assert least_loss(gallery, bag) == pytest.approx((math.log(2) + math.log(3) + math.log(2) + 0) / 4)
    assert least_loss(gallery, str) == 0


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "c413a390")
def test_ceilings_equal_slow_loops(setup_a2c4c5f2, setup_1e6a828e):
    READERS, best_recall, least_loss, _, _ = setup_a2c4c5f2
    captions, _ = setup_1e6a828e
    batch = [c for n in range(12) for c in captions("test", n)] + captions("test", 3)
    for reader in READERS.values():
        recall, loss = [], []
        for mine in batch:
            same_look = [c for c in batch if reader(c) == reader(mine)]
            rivals = [c for c in same_look if c != mine]
            recall.append(sum(c == mine for c in same_look) / len(same_look))
            loss.append(math.log(1 + len(rivals)))
        assert best_recall(batch, reader) == pytest.approx(np.mean(recall))
        assert least_loss(batch, reader) == pytest.approx(np.mean(loss))


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "b04730b3")
def test_no_score_beats_the_floor(setup_a2c4c5f2, setup_1e6a828e):
    READERS, _, least_loss, _, _ = setup_a2c4c5f2
    captions, _ = setup_1e6a828e
    # any similarity that depends on the picture and on r(caption) alone, with equal strings taken out as rivals
    rng, batch, bag = (
        np.random.default_rng(0),
        [c for n in range(8) for c in captions("test", n)],
        READERS["bag of words"],
    )
    keys = {key: i for i, key in enumerate({bag(c): None for c in batch})}
    columns = [keys[bag(c)] for c in batch]
    rivals = np.array([[a != b or i == j for j, b in enumerate(batch)] for i, a in enumerate(batch)])

    def quiz(score):
        logits = np.where(rivals, score[:, columns], -np.inf)
        return np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))

    assert all(quiz(rng.normal(size=(len(batch), len(keys))) * 3) > least_loss(batch, bag) for _ in range(50))
    perfect = np.array([[40.0 * (column == k) for k in range(len(keys))] for column in columns])
    assert quiz(perfect) == pytest.approx(least_loss(batch, bag))  # and perfect eyes reach it


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "6a938952")
def test_siblings():
    def siblings(i: int) -> list[int]:
        first = i - i % 3
        return [j for j in range(first, first + 3) if j != i]

    assert siblings(0) == [1, 2] and siblings(4) == [3, 5] and siblings(11) == [9, 10]
    assert all(i in siblings(j) for i in range(30) for j in siblings(i))


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "6a938952")
def test_siblings_starter_fails():
    def siblings(i: int) -> list[int]:
        return [i - 1, i + 1]

    with pytest.raises(Exception):
        assert siblings(0) == [1, 2] and siblings(4) == [3, 5] and siblings(11) == [9, 10]
        assert all(i in siblings(j) for i in range(30) for j in siblings(i))


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "690ca9e0")
def test_deaf(setup_a2c4c5f2, setup_1e6a828e):
    _, best_recall, _, _, _ = setup_a2c4c5f2
    captions, _ = setup_1e6a828e

    def deaf(words):
        return lambda caption: tuple(word for word in words_of(caption) if word not in words)

    galleries = [sum([captions("test", n) for n in range(g, g + 167)], []) for g in (0, 167)]
    score = {words: np.mean([best_recall(g, deaf(words)) for g in galleries]) for words in (SIZES, GROUNDS)}
    assert deaf(("big",))("a big owl") == ("a", "owl")
    assert score[GROUNDS] > 0.98  # siblings share the ground anyway
    assert 0.6 < score[SIZES] < 0.75  # base and second sibling look the same


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "690ca9e0")
def test_deaf_starter_fails(setup_a2c4c5f2, setup_1e6a828e):
    _, best_recall, _, _, _ = setup_a2c4c5f2
    captions, _ = setup_1e6a828e

    def deaf(words):
        return lambda caption: caption

    with pytest.raises(Exception):
        galleries = [sum([captions("test", n) for n in range(g, g + 167)], []) for g in (0, 167)]
        score = {words: np.mean([best_recall(g, deaf(words)) for g in galleries]) for words in (SIZES, GROUNDS)}
        assert deaf(("big",))("a big owl") == ("a", "owl")
        assert score[GROUNDS] > 0.98  # siblings share the ground anyway
        assert 0.6 < score[SIZES] < 0.75  # base and second sibling look the same


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "7b3b3fc3")
def test_recolour():
    def recolour(spec: Spec, rng) -> Spec | None:
        places = [i for i, thing in enumerate(spec.things) if thing.colour]
        if not places:
            return None
        i = places[rng.integers(len(places))]
        allowed = [c for c in COLOURS if not held_out_combination(spec.things[i]._replace(colour=c))]
        things = list(spec.things)
        things[i] = things[i]._replace(colour=other(things[i].colour, allowed, rng))
        return replace(spec, things=tuple(things))

    rng, changed = np.random.default_rng(0), 0
    for n in range(600):
        spec = family("train", 0, n)[0].spec
        found = recolour(spec, rng)
        assert (found is None) == all(t.colour is None for t in spec.things)
        if found:
            changed += 1
            assert (
                sum(a != b for a, b in zip(spec.things, found.things)) == 1
                and replace(found, things=spec.things) == spec
            )
            assert [t._replace(colour=None) for t in found.things] == [t._replace(colour=None) for t in spec.things]
            assert not any(map(held_out_combination, found.things))
    assert changed > 150


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "7b3b3fc3")
def test_recolour_starter_fails():
    def recolour(spec: Spec, rng) -> Spec | None:
        things = [thing._replace(colour=other(thing.colour, COLOURS, rng)) for thing in spec.things]
        return replace(spec, things=tuple(things))

    with pytest.raises(Exception):
        rng, changed = np.random.default_rng(0), 0
        for n in range(600):
            spec = family("train", 0, n)[0].spec
            found = recolour(spec, rng)
            assert (found is None) == all(t.colour is None for t in spec.things)
            if found:
                changed += 1
                assert (
                    sum(a != b for a, b in zip(spec.things, found.things)) == 1
                    and replace(found, things=spec.things) == spec
                )
                assert [t._replace(colour=None) for t in found.things] == [t._replace(colour=None) for t in spec.things]
                assert not any(map(held_out_combination, found.things))
        assert changed > 150


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "f0dde77c")
def test_worth(setup_1e6a828e, setup_a2c4c5f2):
    captions, _ = setup_1e6a828e
    _, _, least_loss, neighbours, _ = setup_a2c4c5f2

    def worth(batch: int, scenes: list[str], rng) -> float:
        chosen = rng.choice(len(scenes), batch, replace=False)
        return least_loss([scenes[i] for i in chosen], neighbours(1))

    scenes_here = sum([captions("train", n) for n in range(1200)], [])
    rng = np.random.default_rng(0)
    small, half, whole = (np.mean([worth(size, scenes_here, rng) for _ in range(5)]) for size in (63, 1800, 3600))
    assert small < 0.05 < half < whole
    assert whole == pytest.approx(least_loss(scenes_here, neighbours(1)))  # only the whole set holds all siblings
    assert 0.35 < half / whole < 0.65  # about in proportion to the batch


@pytest.mark.nb("nbs/0_start/02d_families.ipynb", "f0dde77c")
def test_worth_starter_fails(setup_1e6a828e, setup_a2c4c5f2):
    captions, _ = setup_1e6a828e
    _, _, least_loss, neighbours, _ = setup_a2c4c5f2

    def worth(batch: int, scenes: list[str], rng) -> float:
        return 0.0

    with pytest.raises(Exception):
        scenes_here = sum([captions("train", n) for n in range(1200)], [])
        rng = np.random.default_rng(0)
        small, half, whole = (np.mean([worth(size, scenes_here, rng) for _ in range(5)]) for size in (63, 1800, 3600))
        assert small < 0.05 < half < whole
        assert whole == pytest.approx(least_loss(scenes_here, neighbours(1)))  # only the whole set holds all siblings
        assert 0.35 < half / whole < 0.65  # about in proportion to the batch
