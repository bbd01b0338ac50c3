"""Generated from nbs/0_start/02h_referring.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
from collections import Counter
from types import SimpleNamespace
from vlp_course.data.grammar import grammar_words
from vlp_course.data.grammar import words_of
from vlp_course.data.scenes import scene
from vlp_course.data.referring import KINDS, expressions, iou, propose, referring


@pytest.fixture(scope="module")
def setup_1428649f():
    def fits(text, i, objects):
        """Whether the words of an expression are true of object i."""
        o, words = objects[i], text.split()
        x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
        head = words[1 : next((k for k, w in enumerate(words) if w in ("on", "at", "in", "left", "above")), len(words))]
        if any(w not in (o.noun, o.size, o.colour, "one") for w in head):
            return False
        ends = {"on the left": x < 64, "on the right": x >= 64, "at the top": y < 64, "at the bottom": y >= 64}
        if any(text.endswith(end) and not true for end, true in ends.items()):
            return False
        if " in the " in text:
            place = text.split(" in the ")[1]
            return "middle" == place or ("top" in place) == (y < 64) and ("left" in place) == (x < 64)
        for mark, axis in ((" left of ", 0), (" above ", 1)):
            if mark in text:
                return any(p.noun == text.split()[-1] and p.box[axis] > o.box[axis] for p in objects if p is not o)
        return True

    return fits


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "3f9303fd")
def test_by_hand():
    thing = lambda noun, colour, size, box: SimpleNamespace(noun=noun, colour=colour, size=size, box=box)
    two = SimpleNamespace(
        relation="vertical",
        objects=(thing("owl", None, "big", (40, 2, 90, 50)), thing("star", "red", "small", (50, 80, 80, 110))),
    )
    assert expressions(two) == (
        ("noun", "an owl", 0),
        ("phrase", "a big owl", 0),
        ("size", "a big one", 0),
        ("side", "a big owl at the top", 0),
        ("relation", "a big owl above a small red star", 0),
        ("noun", "a star", 1),
        ("phrase", "a small red star", 1),
        ("size", "a small one", 1),
        ("side", "a small star at the bottom", 1),
    )
    same = SimpleNamespace(
        relation="count", objects=tuple(thing("owl", None, "big", box) for box in ((2, 2, 50, 50), (70, 70, 120, 120)))
    )
    assert referring(same) == (("a big owl in the top left", 0), ("a big owl in the bottom right", 1))
    alone = SimpleNamespace(relation="count", objects=same.objects[:1])
    assert referring(alone) == (("an owl", 0), ("a big owl", 0))


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "7b3aa181")
def test_one_object_and_no_other(setup_1428649f):
    fits = setup_1428649f
    known = set(grammar_words())
    seen = Counter()
    for split, count in (("train", 240), ("nouns", 60), ("combinations", 60)):
        for n in range(count):
            s = scene(split, 3, n)
            for kind, text, i in expressions(s):
                assert [j for j in range(len(s.objects)) if fits(text, j, s.objects)] == [i], (text, n)
                assert known >= set(words_of(text))
                seen[kind] += 1
            assert {i for _, i in referring(s)} == set(range(len(s.objects)))
    assert set(seen) == set(KINDS)


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "36661b56")
def test_the_scene_holds_them():
    s = scene("test", 0, 4)
    assert s.referring == referring(s) and s.referring is s.referring and len(s.referring) > 2
    assert scene("test", 0, 4, "twemoji").referring == s.referring  # a drawing style moves no object to another side


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "295e30e3")
def test_overlap_by_hand():
    assert iou((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12) and iou((0, 0, 4, 2), (4, 0, 6, 2)) == 0
    assert iou((1, 2, 9, 5), (1, 2, 9, 5)) == 1 and iou((0, 0, 4, 4), (1, 1, 3, 3)) == pytest.approx(4 / 16)


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "8a84e6bd")
def test_proposals_hold_each_object_once():
    for n in range(48):
        s = scene("val", 2, n)
        boxes = propose(s)
        assert (
            boxes == propose(s)
            and len(set(boxes)) == 6
            and all(0 <= b[0] < b[2] <= 128 and 0 <= b[1] < b[3] <= 128 for b in boxes)
        )
        assert [sum(iou(b, o.box) > 0.5 for b in boxes) for o in s.objects] == [1] * len(s.objects)
    assert (
        len(
            {
                propose(scene("val", 2, n)).index(
                    max(propose(scene("val", 2, n)), key=lambda b: iou(b, scene("val", 2, n).objects[0].box))
                )
                for n in range(30)
            }
        )
        > 3
    )  # an object's box has no fixed place in the list
    with pytest.raises(ValueError, match="3 proposals for 4 objects: there must be one each"):
        propose(next(s for s in (scene("val", 2, n) for n in range(300)) if len(s.objects) == 4), 3)


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "77a02465")
def test_moved():
    def moved(s, d):
        return (s - d) / (s + d)

    for s, d in ((30, 2), (26, 10), (50, 0)):
        assert moved(s, d) == pytest.approx(iou((5, 5, 5 + s, 5 + s), (5 + d, 5, 5 + d + s, 5 + s)))


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "77a02465")
def test_moved_starter_fails():
    def moved(s, d):
        return (s - d) / s

    with pytest.raises(Exception):
        for s, d in ((30, 2), (26, 10), (50, 0)):
            assert moved(s, d) == pytest.approx(iou((5, 5, 5 + s, 5 + s), (5 + d, 5, 5 + d + s, 5 + s)))


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "8cad5ae3")
def test_shortest():
    def shortest(scene, i):
        return min((text for text, j in scene.referring if j == i), key=lambda t: len(t.split()))

    s = next(s for s in (scene("val", 0, n) for n in range(30)) if s.relation == "horizontal")
    for i, o in enumerate(s.objects):
        assert shortest(s, i).split()[-1] == o.noun and len(shortest(s, i).split()) == 2


@pytest.mark.nb("nbs/0_start/02h_referring.ipynb", "8cad5ae3")
def test_shortest_starter_fails():
    def shortest(scene, i):
        return min((text for text, _ in scene.referring), key=lambda t: len(t.split()))

    with pytest.raises(Exception):
        s = next(s for s in (scene("val", 0, n) for n in range(30)) if s.relation == "horizontal")
        for i, o in enumerate(s.objects):
            assert shortest(s, i).split()[-1] == o.noun and len(shortest(s, i).split()) == 2
