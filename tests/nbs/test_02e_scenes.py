"""Generated from nbs/0_start/02e_scenes.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import numpy as np
import pytest
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from torch.utils.data import DataLoader
from vlp_course.data.emoji import sprite
from vlp_course.data.families import family
from vlp_course.data.grammar import GROUNDS
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import NUMBERS
from vlp_course.data.grammar import PLACES
from vlp_course.data.grammar import SHAPES
from vlp_course.data.grammar import SIZES
from vlp_course.data.grammar import Spec
from vlp_course.data.grammar import Thing
from vlp_course.data.grammar import plural
from vlp_course.data.questions import noisy
from vlp_course.data.questions import questions
from vlp_course.data.questions import statements
from vlp_course.data.scenes import HALF, SIDE, _corners, _placed, draw, ground_picture, paste, scene, shape_sprite


@pytest.fixture(scope="module")
def setup_7a74a50b():
    def slow_paste(canvas, rgba, x, y):
        for row, line in enumerate(rgba.tolist()):
            for column, (*colour, alpha) in enumerate(line):
                below = canvas[y + row, x + column]
                for channel in range(3):
                    below[channel] = (colour[channel] * alpha + int(below[channel]) * (255 - alpha)) // 255

    def slow_box(mask):
        inside = [(x, y) for y, row in enumerate(mask.tolist()) for x, yes in enumerate(row) if yes]
        xs, ys = [x for x, _ in inside], [y for _, y in inside]
        return min(xs), min(ys), max(xs) + 1, max(ys) + 1

    return slow_box, slow_paste


@pytest.fixture(scope="module")
def setup_00d11562():
    def fingerprint(s):
        """A hash of all that a scene holds."""
        h = hashlib.sha256(s.image.tobytes())
        for o in s.objects:
            h.update(repr((o.noun, o.colour, o.size, o.box)).encode() + o.mask.tobytes())
        h.update(repr((s.index, s.split, s.seed, s.family, s.ground, s.relation, s.caption, s.foils)).encode())
        return h.hexdigest()

    return fingerprint


@pytest.fixture(scope="module")
def setup_06abdd88():
    WORDS = {word: noun for noun in (*NOUNS, *SHAPES) for word in (noun, plural(noun))}

    def read_caption(caption):
        """What a caption claims: kind, nouns in the order named, sizes in the order named, and the place or number."""
        words = caption.split()
        nouns = [WORDS[word] for word in words if word in WORDS]
        sizes = [word for word in words if word in SIZES]
        numbers = [NUMBERS.index(word) for word in words if word in NUMBERS]
        places = [place for place in PLACES if place in caption]
        if len(nouns) == 2:
            return "horizontal" if {"left", "right"} & set(words) else "vertical", nouns, sizes, None
        return ("place", nouns, sizes, places[0]) if places else ("count", nouns, sizes, numbers[-1])

    return read_caption


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "47fd82fc")
def test_grounds_by_hand():
    assert (ground_picture("white") == 255).all() and (ground_picture("sandy") == (240, 222, 180)).all()
    mark, rest = [208, 214, 222], [250, 250, 250]
    striped, checked, dotted = (ground_picture(name) for name in ("striped", "checked", "dotted"))
    assert striped[100, 0].tolist() == striped[3, 7].tolist() == mark and striped[0, 8].tolist() == rest
    assert checked[0, 0].tolist() == checked[8, 8].tolist() == mark
    assert checked[0, 8].tolist() == checked[8, 0].tolist() == rest
    assert dotted[7, 8].tolist() == mark and dotted[0, 0].tolist() == rest  # a dot in the middle of 16 x 16
    assert len({ground_picture(name).tobytes() for name in GROUNDS}) == 6


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "e06dc6a9")
def test_grounds_refuse():
    with pytest.raises(ValueError, match="unknown ground 'wooden': choose one of white, grey, sandy"):
        ground_picture("wooden")
    with pytest.raises(ValueError, match="read-only"):
        ground_picture("white")[0, 0] = 0


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "65113d16")
def test_shapes_by_hand():
    n, big = 60, 0.49 * 60
    areas = {
        "circle": np.pi * (n / 2 - 1) ** 2,
        "square": (0.86 * n) ** 2,
        "triangle": 3 * 3**0.5 / 4 * big**2,
        "star": 10 / 2 * 0.42 * big**2 * np.sin(np.radians(36)),
    }
    for shape, area in areas.items():
        rgba = shape_sprite(shape, "blue", n)
        assert rgba[..., 3].sum() / 255 == pytest.approx(area, rel=0.03)  # soft edges count in part
        assert rgba[n // 2, n // 2].tolist() == [31, 100, 200, 255] and rgba[0, 0, 3] == 0
        assert (rgba[..., 3] > 127).mean() == pytest.approx((rgba[:, ::-1, 3] > 127).mean(), abs=0.02)


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "4e49b071")
def test_shapes_refuse():
    with pytest.raises(ValueError, match="unknown shape or colour 'hexagon': choose one of circle, square"):
        shape_sprite("hexagon", "red", 30)
    with pytest.raises(ValueError, match="unknown shape or colour 'mauve': choose one of red, orange"):
        shape_sprite("star", "mauve", 30)


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "092455db")
def test_paste_by_hand():
    canvas = np.full((3, 4, 3), 100, np.uint8)
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = 200, 200, 200, 255  # hides all
    rgba[0, 1] = 200, 200, 200, 0  # hides nothing, whatever its colour
    rgba[1, 0] = 255, 0, 10, 51  # a fifth sticker, four fifths paper
    paste(canvas, rgba, 1, 0)
    assert canvas[0, 1].tolist() == [200, 200, 200] and canvas[0, 2].tolist() == [100, 100, 100]
    assert canvas[1, 1].tolist() == [131, 80, 82]  # (255 + 400) / 5, (0 + 400) / 5, (10 + 400) / 5
    assert (canvas[:, [0, 3]] == 100).all() and (canvas[2] == 100).all()


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "cc4fdd6c")
def test_paste_equals_loops(setup_7a74a50b):
    _, slow_paste = setup_7a74a50b
    rng = np.random.default_rng(0)
    fast = rng.integers(0, 256, (40, 50, 3), np.uint8)
    slow = fast.copy()
    for rgba, x, y in ((sprite("🦉", "noto", 30), 3, 5), (rng.integers(0, 256, (17, 17, 4), np.uint8), 20, 11)):
        paste(fast, rgba, x, y)
        slow_paste(slow, rgba, x, y)
    assert (fast == slow).all()


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "2c195749")
def test_paste_refuses_to_cut():
    with pytest.raises(ValueError, match=r"a sprite of 30 pixels at \(100, 5\) sticks out of a picture of 128 x 128"):
        paste(np.zeros((128, 128, 3), np.uint8), shape_sprite("star", "red", 30), 100, 5)
    with pytest.raises(ValueError, match="sticks out"):  # a slice from -1 would be empty, and silent
        paste(np.zeros((128, 128, 3), np.uint8), shape_sprite("star", "red", 30), -1, 5)


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "6a5d7e11")
def test_corners_stay_in_their_cells():
    rng, thing = np.random.default_rng(0), Thing("cat", None, "small")
    for kind in ("horizontal", "vertical", "place", "count"):
        for _ in range(500):
            things = (thing,) if kind in ("place", "count") else (thing, thing)
            spec = Spec(kind, things, "white", PLACES[rng.integers(5)], int(rng.integers(1, 5)))
            sizes = rng.integers(28, 62, spec.count if kind == "count" else len(things)).tolist()
            used = np.zeros((SIDE, SIDE), int)
            for i, ((x, y), n) in enumerate(zip(_corners(spec, sizes, rng), sizes)):
                assert 0 <= x <= SIDE - n and 0 <= y <= SIDE - n  # inside the picture
                used[y : y + n, x : x + n] += 1
                if kind in ("horizontal", "vertical"):
                    low = (x, y)[kind == "vertical"]
                    assert HALF * i <= low <= HALF * (i + 1) - n  # inside its half
            assert used.max() == 1  # no pixel twice


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "9d4e5678")
def test_corners_by_hand():
    class Middle(np.random.Generator):  # always the middle of what is free
        def random(self, shape):
            return np.full(shape, 0.5)

        def permutation(self, n):
            return np.arange(n)

    thing = Thing("cat", None, "small")
    at = lambda kind, things, sizes, **more: _corners(
        Spec(kind, things, "white", **more), sizes, Middle(np.random.PCG64())
    )
    assert at("horizontal", (thing, thing), [30, 60]) == [(17, 49), (66, 34)]
    assert at("vertical", (thing, thing), [30, 60]) == [(49, 17), (34, 66)]
    assert at("place", (thing,), [30], place="top right") == [(81, 17)]
    assert at("place", (thing,), [30], place="middle") == [(49, 49)]
    assert at("count", (thing,), [30, 30, 30], count=3) == [(17, 17), (81, 17), (17, 81)]


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "acc02a24")
def test_boxes_by_hand():
    alpha = np.zeros((9, 9), np.uint8)
    alpha[2:5, 3:8] = 255
    alpha[6, 0] = 127  # half transparent: ground, not object
    alpha[5, 4] = 128  # just over half: object
    found = _placed(Thing("circle", "red", "small"), (20, 40), alpha)
    assert found.box == (23, 42, 28, 46) and found.mask.sum() == 3 * 5 + 1
    assert (found.noun, found.colour, found.size) == ("circle", "red", "small")


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "8d1e0f4b")
def test_boxes_equal_loops(setup_7a74a50b):
    slow_box, _ = setup_7a74a50b
    for number in range(8):
        _, layers = draw(family("test", 5, number)[0], "openmoji")
        for layer in layers:
            placed = _placed(*layer)
            assert placed.box == slow_box(placed.mask)


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "30c2d907")
def test_drawing_changes_only_its_squares():
    for number in range(40):
        member = family("val", 1, number)[1]
        image, layers = draw(member, "twemoji")
        outside = np.ones((SIDE, SIDE), bool)
        for _, (x, y), alpha in layers:
            outside[y : y + len(alpha), x : x + len(alpha)] = alpha == 0
        assert (image == ground_picture(member.spec.ground))[outside].all()


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "48e60280")
def test_order_of_gluing_is_free():
    member = family("test", 0, 7)[0]  # kind "count"
    assert member.spec.kind == "count"
    member = replace(member, spec=replace(member.spec, count=4))
    image, layers = draw(member)
    again = ground_picture(member.spec.ground).copy()
    for thing, corner, alpha in layers[::-1]:
        n, noun = len(alpha), thing.noun
        paste(
            again, shape_sprite(noun, thing.colour, n) if thing.colour else sprite(NOUNS[noun].char, "noto", n), *corner
        )
    assert len(layers) == 4 and (again == image).all()


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "611acb76")
def test_draw_refuses():
    with pytest.raises(ValueError, match="unknown style 'manga': choose one of noto, twemoji, openmoji"):
        draw(family("test", 0, 0)[0], "manga")


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "f7ca4b48")
def test_order_of_calls_is_free(setup_00d11562):
    fingerprint = setup_00d11562
    indices = np.random.default_rng(0).permutation(60)
    mixed = {int(i): fingerprint(scene("test", 3, int(i))) for i in indices}
    family.cache_clear()
    assert [fingerprint(scene("test", 3, i)) for i in range(60)] == [mixed[i] for i in range(60)]
    assert len(set(mixed.values())) == 60


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "c4cc32b3")
def test_workers_do_not_matter(setup_00d11562):
    fingerprint = setup_00d11562
    from vlp_course.data.scenes import scene as library_scene  # a worker has to import what it calls

    want = [fingerprint(scene("val", 4, i)) for i in range(20)]
    make = partial(library_scene, "val", 4)
    for workers in (0, 2):
        loader = DataLoader(range(20), batch_size=None, collate_fn=make, num_workers=workers)
        assert [fingerprint(s) for s in loader] == want


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "c8c0388d")
def test_fresh_process_agrees():
    code = """import hashlib
from vlp_course.data.scenes import scene
for i in (31, 7, 8):
    s = scene("combinations", 2, i, "openmoji")
    print(hashlib.sha256(s.image.tobytes()).hexdigest(), s.caption, s.foils, [o.box for o in s.objects])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [scene("combinations", 2, i, "openmoji") for i in (31, 7, 8)]
    assert done.stdout.splitlines() == [
        " ".join(
            map(str, (hashlib.sha256(s.image.tobytes()).hexdigest(), s.caption, s.foils, [o.box for o in s.objects]))
        )
        for s in here
    ]


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "2454c63e")
def test_three_numbers_and_nothing_else(setup_00d11562):
    fingerprint = setup_00d11562
    base = scene("test", 0, 10)
    assert len({fingerprint(s) for s in (base, scene("test", 1, 10), scene("val", 0, 10), scene("test", 0, 11))}) == 4
    drawn = scene("test", 0, 10, "twemoji")
    assert (drawn.caption, drawn.foils, drawn.ground) == (base.caption, base.foils, base.ground)
    assert (drawn.image != base.image).any()
    rephrased = scene("templates", 0, 10)  # the test split's pictures in other words
    assert (rephrased.image == base.image).all() and rephrased.caption != base.caption


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "a08ad721")
def test_texts_on_demand():
    s = scene("test", 0, 10)
    fields = set(vars(s))
    assert (
        s.questions == questions("test", 0, 10)
        and s.statements == statements("test", 0, 10)
        and s.noisy == noisy("test", 0, 10)
    )
    assert (
        set(vars(s)) - fields == {"questions", "statements", "noisy"} and s.questions is s.questions
    )  # not before, and once


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "4ea4e32e")
def test_scene_refuses():
    with pytest.raises(ValueError, match="index is -1: scenes are numbered from 0"):
        scene("test", 0, -1)
    with pytest.raises(ValueError, match="unknown split 'dev': choose one of train, val, test"):
        scene("dev", 0, 0)
    with pytest.raises(ValueError, match="unknown style 'apple'"):
        scene("test", 0, 0, "apple")


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "19c52e71")
def test_two_thousand_scenes_without_overlap():
    for i in range(2000):
        s = scene("train", 9, i)
        assert sum(o.mask.astype(int) for o in s.objects).max() == 1
        for o in s.objects:
            x0, y0, x1, y1 = o.box
            inside = o.mask[y0:y1, x0:x1]
            assert inside.sum() == o.mask.sum() and 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "bbd90385")
def test_caption_agrees_with_boxes(setup_06abdd88):
    read_caption = setup_06abdd88
    for split in ("train", "val", "test", "nouns", "combinations", "templates"):
        for i in range(240):
            s = scene(split, 1, i, ("noto", "twemoji", "openmoji")[i % 3])
            kind, nouns, sizes, value = read_caption(s.caption)
            centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in (o.box for o in s.objects)]
            assert kind == s.relation and s.ground in s.caption.split()
            assert all(o.colour is None or o.colour in s.caption.split() for o in s.objects)
            if kind in ("horizontal", "vertical"):  # the first one named is left, or above
                axis = kind == "vertical"
                first, second = (centres[[o.noun for o in s.objects].index(noun)] for noun in nouns)
                assert first[axis] < HALF < second[axis]
            elif kind == "count":
                assert len(s.objects) == value and {o.noun for o in s.objects} == set(nouns)
            else:
                ((x, y),) = centres
                side = (
                    "" if value == "middle" else ("top " if y < HALF else "bottom ") + ("left" if x < HALF else "right")
                )
                assert side == value or (value == "middle" and max(abs(x - HALF), abs(y - HALF)) < 21)


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "8223ed62")
def test_big_is_bigger_than_small(setup_06abdd88):
    read_caption = setup_06abdd88
    for style in ("noto", "twemoji", "openmoji"):
        for i in range(300):
            s = scene("test", 2, i, style)
            longest = {o.size: max(o.box[2] - o.box[0], o.box[3] - o.box[1]) for o in s.objects}
            assert longest.get("big", 99) > longest.get("small", 0)
            assert [o.size for o in s.objects][:2] == (read_caption(s.caption)[2] * 4)[: len(s.objects)][:2]


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "4304013c")
def test_foils_are_wrong_in_one_slot(setup_06abdd88):
    read_caption = setup_06abdd88
    slots = set()
    for i in range(240):
        s = scene("test", 0, i)
        truth = read_caption(s.caption)
        for slot, text in s.foils.items():
            slots.add(slot)
            lie = read_caption(text)
            assert text != s.caption and lie[0] == truth[0]
            changed = [name for name, a, b in zip(("kind", "nouns", "sizes", "value"), truth, lie) if a != b]
            assert changed == {
                "object": ["nouns"],
                "size": ["sizes"],
                "binding": ["sizes"],
                "colour": [],
                "place": ["value"],
                "count": ["value"],
            }.get(slot, changed)
            if slot in ("relation", "binding"):  # the same words in another order
                assert sorted(text.replace("an ", "a ").split()) == sorted(s.caption.replace("an ", "a ").split())
    assert slots == {"object", "size", "colour", "place", "count", "relation", "binding"}


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "c782021c")
def test_box_overlap():
    def iou(a, b):
        """Intersection over union of two boxes, from 0 to 1."""
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)  # two negative sides would make a positive area
        area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
        return shared / (area(a) + area(b) - shared)

    assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1 and iou((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert iou((0, 0, 2, 2), (5, 5, 9, 9)) == 0 == iou((0, 0, 2, 2), (2, 0, 4, 2))
    s = scene("test", 0, 0)
    assert iou(s.objects[0].box, s.objects[1].box) == 0


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "c782021c")
def test_box_overlap_starter_fails():
    def iou(a, b):
        """Intersection over union of two boxes, from 0 to 1."""
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        return width * height  # wrong in two ways

    with pytest.raises(Exception):
        assert iou((0, 0, 4, 4), (0, 0, 4, 4)) == 1 and iou((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
        assert iou((0, 0, 2, 2), (5, 5, 9, 9)) == 0 == iou((0, 0, 2, 2), (2, 0, 4, 2))
        s = scene("test", 0, 0)
        assert iou(s.objects[0].box, s.objects[1].box) == 0


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "1981f80d")
def test_mirror():
    def mirrored(s):
        """The scene seen in a mirror: (image, objects)."""
        objects = []
        for o in s.objects:
            x0, y0, x1, y1 = o.box
            objects.append(replace(o, box=(SIDE - x1, y0, SIDE - x0, y1), mask=o.mask[:, ::-1]))
        return s.image[:, ::-1], tuple(objects[::-1] if s.relation == "horizontal" else objects)

    # A lie for every horizontal relation and for every place but "middle"; still true for "vertical" and "count".
    # A model trained with it is told that left and right mean the same.
    for i in range(24):
        s = scene("test", 0, i)
        image, objects = mirrored(s)
        assert (image[:, ::-1] == s.image).all() and len(objects) == len(s.objects)
        for o in objects:
            rows, columns = np.nonzero(o.mask)
            assert o.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        if s.relation == "horizontal":
            assert objects[0].box[2] <= objects[1].box[0] and objects[0].noun == s.objects[1].noun


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "1981f80d")
def test_mirror_starter_fails():
    def mirrored(s):
        """The scene seen in a mirror: (image, objects)."""
        return s.image[:, ::-1], s.objects  # boxes and masks still stand where they were

    with pytest.raises(Exception):
        for i in range(24):
            s = scene("test", 0, i)
            image, objects = mirrored(s)
            assert (image[:, ::-1] == s.image).all() and len(objects) == len(s.objects)
            for o in objects:
                rows, columns = np.nonzero(o.mask)
                assert o.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            if s.relation == "horizontal":
                assert objects[0].box[2] <= objects[1].box[0] and objects[0].noun == s.objects[1].noun


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "3892c3d6")
def test_patch_share():
    def patch_share(mask, grid):
        """Share of each patch that a mask covers, (grid, grid)."""
        step = len(mask) // grid
        return mask.reshape(grid, step, grid, step).mean(axis=(1, 3))  # rows, in patch, columns, in patch

    square = np.zeros((128, 128), bool)
    square[32:80, 0:16] = True
    share = patch_share(square, 4)
    assert share.shape == (4, 4) and share[1, 0] == 0.5 and share[2, 0] == 0.25 and share.sum() == 0.75
    mask = scene("test", 0, 3).objects[0].mask
    assert patch_share(mask, 8).sum() * 16**2 == pytest.approx(mask.sum())


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "3892c3d6")
def test_patch_share_starter_fails():
    def patch_share(mask, grid):
        """Share of each patch that a mask covers, (grid, grid)."""
        step = len(mask) // grid
        return mask[::step, ::step].astype(float)  # one pixel a patch is not a share

    with pytest.raises(Exception):
        square = np.zeros((128, 128), bool)
        square[32:80, 0:16] = True
        share = patch_share(square, 4)
        assert share.shape == (4, 4) and share[1, 0] == 0.5 and share[2, 0] == 0.25 and share.sum() == 0.75
        mask = scene("test", 0, 3).objects[0].mask
        assert patch_share(mask, 8).sum() * 16**2 == pytest.approx(mask.sum())


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "d6530ed1")
def test_nearest_place():
    def place_of(box):
        """The place whose cell's centre is nearest to the centre of a box."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        centres = dict(zip(PLACES, ((32, 32), (96, 32), (32, 96), (96, 96), (64, 64))))
        return min(centres, key=lambda place: (x - centres[place][0]) ** 2 + (y - centres[place][1]) ** 2)

    # Big things: never wrong. Small ones: in about 1 scene of 150. So no model can score 100 on "place", and 99.5 is
    # the ceiling. Narrower cells for small things would cure it, but would move pixels that recorded results rest on.
    hits = defaultdict(list)
    for number in range(2, 1600, 4):  # families of kind "place"
        member = family("test", 1, number)[0]
        (layer,) = draw(member)[1]
        hits[member.spec.things[0].size].append(place_of(_placed(*layer).box) == member.spec.place)
    assert np.mean(hits["big"]) == 1 and 0.97 < np.mean(hits["small"]) <= 1


@pytest.mark.nb("nbs/0_start/02e_scenes.ipynb", "d6530ed1")
def test_nearest_place_starter_fails():
    def place_of(box):
        """The place whose cell's centre is nearest to the centre of a box."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        return ("top " if y < HALF else "bottom ") + ("left" if x < HALF else "right")  # knows no middle

    with pytest.raises(Exception):
        hits = defaultdict(list)
        for number in range(2, 1600, 4):  # families of kind "place"
            member = family("test", 1, number)[0]
            (layer,) = draw(member)[1]
            hits[member.spec.things[0].size].append(place_of(_placed(*layer).box) == member.spec.place)
        assert np.mean(hits["big"]) == 1 and 0.97 < np.mean(hits["small"]) <= 1
