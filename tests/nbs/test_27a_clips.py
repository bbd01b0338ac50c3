"""Generated from nbs/5_prompting/27a_clips.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
from collections import Counter
from vlp_course.data.grammar import HELD_OUT_NOUNS
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import TRAINED_NOUNS
from vlp_course.data.grammar import words_of
from vlp_course.data.pairs import course_vocabulary
from vlp_course.data.scenes import SIDE
from vlp_course.data.clips import (
    ACTIONS,
    FRAMES,
    HELD_OUT_ACTIONS,
    HELD_OUT_MOTIONS,
    HELD_OUT_TEMPLATES,
    MOTIONS,
    SPLITS,
    TEMPLATES,
    action_of,
    caption_of,
    clip,
    corners,
    draw,
    shot,
    track,
    turned,
)


@pytest.fixture(scope="module")
def setup_383a246d():
    def rule(values, backward):
        """The best threshold on one number, either way round, chosen on the first half of the clips and scored on the second."""
        half, best = len(values) // 2, (0, 0.0, 1)
        for cut in np.quantile(values[:half], np.linspace(0.05, 0.95, 19)):
            for sign in (1, -1):
                best = max(best, (np.mean((sign * (values[:half] - cut) > 0) == backward[:half]), cut, sign))
        return np.mean((best[2] * (values[half:] - best[1]) > 0) == backward[half:])

    def boxes_of(motion, count=400):
        """Boxes of the acting object in clips of a motion: (clips, frames, 4), and which clips are played backward."""
        each = list(MOTIONS).index(motion)
        indices = [2 * (each + len(MOTIONS) * n) + n % 2 for n in range(count)]  # one of each two twins
        tracks = [(shot("train", 9, i // 2), i % 2) for i in indices]
        rows = [
            np.concatenate([at, at + side[:, None]], 1)[:: -1 if back else 1]
            for s, back in tracks
            for at, side in [corners(s.track, s.centre)]
        ]
        return np.array(rows), np.array([back for _, back in tracks], bool)

    return boxes_of, rule


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "201b9197")
def test_actions_are_pairs_of_known_words():
    assert len(ACTIONS) == 18 and len(HELD_OUT_ACTIONS) == 6 and len(set(ACTIONS + HELD_OUT_ACTIONS)) == 24
    known = course_vocabulary().index
    texts = [
        t.format(a="a", does=action, g="a")
        for t in TEMPLATES + HELD_OUT_TEMPLATES
        for action in ACTIONS + HELD_OUT_ACTIONS
    ]
    assert all(word in known for text in texts + ["beside"] for word in words_of(text))
    trained = {word for action in ACTIONS for word in words_of(action)}
    assert {word for action in HELD_OUT_ACTIONS for word in words_of(action)} - trained == {"and"}


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "40c840ba")
def test_each_motion_does_what_its_name_says():
    rng = np.random.default_rng(0)
    rising = lambda values: (np.diff(values) > 0).all()
    for _ in range(50):
        moves = {motion: track(motion, rng) for motion in MOTIONS | HELD_OUT_MOTIONS}
        assert all(rising(moves[m].x) for m in ("right", "roll", "bounce", "right down", "right up"))
        assert all(rising(moves[m].y) for m in ("down", "roll down", "right down")) and rising(-moves["right up"].y)
        assert (
            all(rising(moves[m].angle) for m in ("roll", "rotate", "roll down"))
            and rising(moves["grow"].size)
            and rising(moves["show"].opacity)
        )
        assert rising(abs(moves["shake"].x)) and (np.diff(np.sign(moves["shake"].x[1:])) != 0).all()
        x, y = moves["revolve"].x, moves["revolve"].y
        assert (
            np.ptp(np.hypot(x, y)) < 1e-9 and (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()
        )  # clockwise where y points down
        for m, t in moves.items():
            still = {"x", "y", "size", "angle", "opacity"} - {
                "right": {"x"},
                "down": {"y"},
                "roll": {"x", "angle"},
                "bounce": {"x", "y"},
                "rotate": {"angle"},
                "revolve": {"x", "y"},
                "grow": {"size"},
                "show": {"opacity"},
                "shake": {"x"},
                "right down": {"x", "y"},
                "right up": {"x", "y"},
                "roll down": {"y", "angle"},
            }[m]
            assert all(np.ptp(getattr(t, name)) == 0 for name in still)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f9d163d2")
def test_motions_by_hand():
    class Middle(np.random.Generator):  # always the middle of what can be drawn
        def uniform(self, low, high):
            return (low + high) / 2

    middle = lambda motion: track(motion, Middle(np.random.PCG64()))
    assert (
        middle("right").x.round(3).tolist() == [-23, -16.429, -9.857, -3.286, 3.286, 9.857, 16.429, 23]
        and middle("right").size[0] == 36
    )
    assert middle("rotate").angle[[0, -1]].tolist() == [-80, 80] and middle("show").opacity[[0, -1]].round(
        3
    ).tolist() == [0.08, 1]
    assert middle("grow").size[[0, -1]].round(2).tolist() == [24.27, 53.4]  # 36 / sqrt(2.2), 36 * sqrt(2.2)
    assert middle("shake").x[[0, 1, -1]].round(2).tolist() == [0, -2.19, -15.33]
    with pytest.raises(ValueError, match="unknown motion 'dance': choose one of right, down, roll"):
        track("dance", np.random.default_rng(0))


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "54833880")
def test_shots_fit_and_never_touch():
    for split in SPLITS:
        for number in range(150):
            s = shot(split, 0, number)
            at, side = corners(s.track, s.centre)
            assert at.min() >= 0 and (at + side[:, None]).max() <= SIDE
            x, y, n = s.still
            used = np.zeros((SIDE, SIDE), bool)
            for (left, top), width in zip(at, side):
                used[top : top + width, left : left + width] = True
            assert len(s.nouns) == 1 or not used[y : y + n, x : x + n].any()


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "b25a4bfa")
def test_shots_refuse():
    with pytest.raises(
        ValueError, match="unknown split 'tets': choose one of train, val, test, nouns, templates, actions"
    ):
        shot("tets", 0, 0)
    with pytest.raises(ValueError, match="seed 0 and number -1 of twins must be 0 or more"):
        shot("test", 0, -1)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "0fdc7f27")
def test_boxes_enclose_the_alpha():
    for number in range(40):
        s = shot("test", 1, number)
        s = s._replace(track=s.track._replace(opacity=np.ones(FRAMES)), ground="white")
        frames, boxes = draw(s)
        for k, frame in enumerate(frames):
            inside = np.zeros((SIDE, SIDE), bool)
            for x0, y0, x1, y1 in boxes[:, k]:
                assert 0 <= x0 < x1 <= SIDE and 0 <= y0 < y1 <= SIDE
                inside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = (
                    True  # half-seen rims reach a pixel or two further
                )
            assert (frame[~inside] > 225).all()
        x0, y0, x1, y1 = boxes[0, 3]
        (x, y), side = (value[3] for value in corners(s.track, s.centre))
        alpha = turned(NOUNS[s.nouns[0]].char, "noto", s.track.size[3], s.track.angle[3], int(side))[..., 3] > 127
        ys, xs = np.nonzero(alpha)
        assert (xs.min() + x, ys.min() + y, xs.max() + 1 + x, ys.max() + 1 + y) == (x0, y0, x1, y1)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "69fcbf06")
def test_turned_is_clockwise():
    char = NOUNS["cat"].char
    flat = turned(char, "noto", 40.0, 0, 60)
    for quarter in (1, 2, 3):
        assert (
            turned(char, "noto", 40.0, 90 * quarter, 60) == np.rot90(flat, -quarter)
        ).all()  # rot90 turns the other way
    with pytest.raises(ValueError, match="unknown style 'crayon': choose one of noto, twemoji, openmoji"):
        draw(shot("test", 0, 0), "crayon")


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "4ad13f13")
def test_twins_are_each_other_reversed():
    for split in SPLITS:
        for index in range(0, 24, 2):
            one, two = clip(split, 3, index), clip(split, 3, index + 1)
            assert (one.frames == two.frames[::-1]).all() and one.action != two.action and one.ground == two.ground
            assert all((a.boxes == b.boxes[::-1]).all() and a.noun == b.noun for a, b in zip(one.objects, two.objects))
            assert one.caption.replace(one.action, two.action) == two.caption and one.action in one.caption


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "4d09df57")
def test_same_numbers_same_clip():
    for index in (0, 7, 30):
        one = clip("test", 5, index)
        shot.cache_clear()
        two, other, drawn = clip("test", 5, index), clip("test", 6, index), clip("test", 5, index, "twemoji")
        assert (one.frames == two.frames).all() and one.caption == two.caption
        assert (one.frames != other.frames).any() and (one.frames != drawn.frames).any()
        assert drawn.caption == one.caption and drawn.action == one.action and drawn.ground == one.ground


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "6d43c04b")
def test_splits_keep_their_promises():
    for split, nouns, actions in (
        ("train", TRAINED_NOUNS, ACTIONS),
        ("test", TRAINED_NOUNS, ACTIONS),
        ("nouns", HELD_OUT_NOUNS, ACTIONS),
        ("actions", TRAINED_NOUNS, HELD_OUT_ACTIONS),
    ):
        counts = Counter(action_of(split, 0, index) for index in range(36 * 4))
        assert set(counts) == set(actions) and len(set(counts.values())) == 1  # all equally often
        assert all(noun in nouns for number in range(60) for noun in shot(split, 0, number).nouns)
    assert all(shot("templates", 0, n)[:3] == shot("test", 0, n)[:3] for n in range(20))
    words = [set(caption_of(split, 0, i).split()) for split in ("train", "templates") for i in range(60)]
    assert all({"look", "see"}.isdisjoint(w) for w in words[:60]) and all({"look", "see"} & w for w in words[60:])
    longest = max(len(words_of(caption_of("train", 0, i))) for i in range(3000))
    assert longest <= 22  # the models' context, without its two marks


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "6afed65a")
def test_index_is_checked():
    with pytest.raises(ValueError, match="number -1 of twins must be 0 or more"):
        clip("test", 0, -1)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f78dacdf")
def test_a_frame_at_random_does_not_tell_the_direction(setup_383a246d):
    boxes_of, rule = setup_383a246d
    rng = np.random.default_rng(0)
    for motion, edge in (("right", 0), ("down", 1), ("grow", 2)):
        boxes, backward = boxes_of(motion, 600)
        value = boxes[..., 2] - boxes[..., 0] if motion == "grow" else boxes[..., edge]
        blind = rule(value[np.arange(600), rng.integers(FRAMES, size=600)], backward)
        order = rule(value[:, -1] - value[:, 0], backward)  # who compares the ends knows all
        assert 0.41 < blind < 0.59 and order == 1  # 300 coins: 0.5 +- 0.087 in 997 of 1,000 cases


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f6154e7f")
def test_ceiling():
    def ceiling(directed, undirected):
        return (directed / 2 + undirected) / (directed + undirected)

    assert ceiling(100, 0) == 0.5 and ceiling(0, 30) == 1 and ceiling(60, 40) == pytest.approx(0.7)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f6154e7f")
def test_ceiling_starter_fails():
    def ceiling(directed, undirected):
        return 1.0

    with pytest.raises(Exception):
        assert ceiling(100, 0) == 0.5 and ceiling(0, 30) == 1 and ceiling(60, 40) == pytest.approx(0.7)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f233cc7d")
def test_spiral():
    def spiral(u):
        radius, angle = 5 + 25 * (u + 0.5), 2 * np.pi * (u + 0.5)
        return radius * np.cos(angle), radius * np.sin(angle)

    x, y = spiral(np.linspace(-0.5, 0.5, FRAMES))
    assert np.hypot(x, y)[[0, -1]].tolist() == pytest.approx([5, 30]) and (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "f233cc7d")
def test_spiral_starter_fails():
    def spiral(u):
        return 0 * u, 0 * u

    with pytest.raises(Exception):
        x, y = spiral(np.linspace(-0.5, 0.5, FRAMES))
        assert (
            np.hypot(x, y)[[0, -1]].tolist() == pytest.approx([5, 30]) and (x[:-1] * y[1:] - y[:-1] * x[1:] > 0).all()
        )


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "000b9f16")
def test_leak():
    def leak(length, room):
        free = room - length  # to the right: starts in [0, free]; to the left: in [length, room]
        overlap = max(0, free - length)  # where both can start, it is a coin
        return 1 - overlap / free / 2

    rng = np.random.default_rng(0)
    for length, room in ((20, 100), (50, 90), (40, 128)):
        right = rng.random(20000) < 0.5
        start = np.where(right, 0, length) + rng.random(20000) * (room - length)
        guess = start < room / 2
        assert leak(length, room) == pytest.approx(np.mean(guess == right), abs=0.012)


@pytest.mark.nb("nbs/5_prompting/27a_clips.ipynb", "000b9f16")
def test_leak_starter_fails():
    def leak(length, room):
        return 0.5

    with pytest.raises(Exception):
        rng = np.random.default_rng(0)
        for length, room in ((20, 100), (50, 90), (40, 128)):
            right = rng.random(20000) < 0.5
            start = np.where(right, 0, length) + rng.random(20000) * (room - length)
            guess = start < room / 2
            assert leak(length, room) == pytest.approx(np.mean(guess == right), abs=0.012)
