"""Generated from nbs/1_foundations/06a_caption_scores.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
from vlp_course.data.families import SPLITS
from vlp_course.data.families import caption_of
from vlp_course.data.families import family
from vlp_course.data.grammar import HELD_OUT_TEMPLATES
from vlp_course.data.grammar import NOUNS
from vlp_course.data.grammar import SHAPES
from vlp_course.data.grammar import TEMPLATES
from vlp_course.data.grammar import describe
from vlp_course.data.grammar import foil_specs
from vlp_course.data.grammar import plural
from vlp_course.data.grammar import words_of
from vlp_course.data.pairs import SceneSet
from vlp_course.caption_scores import bleu, caption_scores, cider, parse, references, slot_scores, truths_of


@pytest.fixture(scope="module")
def setup_73a81639():
    def in_the_list(caption, truth):
        """Is it one of the true captions, held-out templates included?"""
        every = [describe(truth, t) for t in range(len(TEMPLATES[truth.kind]))]
        every += [describe(truth, t, held_out=True) for t in range(len(HELD_OUT_TEMPLATES[truth.kind]))]
        return caption in every

    def specs(count=60):
        """Scenes of all splits, three from each of some families."""
        return [(split, member) for split in SPLITS for n in range(count // 3) for member in family(split, 0, n)]

    return in_the_list, specs


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "533512e1")
def test_reading_undoes_writing(setup_73a81639):
    _, specs = setup_73a81639
    shown = lambda s: (
        s.kind,
        s.things,
        s.ground,
        s.place if s.kind == "place" else None,
        s.count if s.kind == "count" else None,
    )
    for split, member in specs():
        assert shown(parse(caption_of(split, member))) == shown(member.spec)


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "eba55216")
def test_what_is_no_sentence_of_the_grammar():
    good = "a small violin left of a big tulip on a checked ground"
    assert parse(good) and parse(good.upper() + ".")
    for bad in (
        "",
        "a violin left of a tulip",
        good + " ground",
        good.replace("tulip", "gizmo"),
        good.replace("left", "north"),
        "a small violin",
    ):
        assert parse(bad) is None, bad


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "ebe8952f")
def test_one_and_many():
    assert (
        parse("two small sheep on a white ground").count == 2
        and parse("two small sheep on a white ground").things[0].noun == "sheep"
    )
    assert (
        parse("one big mouse on a white ground").count == 1
        and parse("four big mice on a white ground").things[0].noun == "mouse"
    )


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "ce5fa12a")
def test_true_captions_get_full_marks(setup_73a81639):
    in_the_list, specs = setup_73a81639
    for split, member in specs():
        assert set(slot_scores(caption_of(split, member), member.spec).values()) == {1.0}
        for reference in references(member.spec):
            assert in_the_list(reference, member.spec) and slot_scores(reference, member.spec)["exact"] == 1


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "ea8f5afe")
def test_exact_equals_the_list(setup_73a81639):
    in_the_list, specs = setup_73a81639
    rng = np.random.default_rng(0)
    for split, member in specs():
        for wrong in foil_specs(member.spec, NOUNS, rng).values():
            caption = describe(wrong, member.template, held_out=split == "templates")
            assert slot_scores(caption, member.spec)["exact"] == in_the_list(caption, member.spec)


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "1204ff8a")
def test_one_wrong_word_costs_one_slot():
    truth = parse("a small violin left of a big red star on a checked ground")
    marks = lambda caption: {k: v for k, v in slot_scores(caption, truth).items() if v < 1 and k != "exact"}
    assert marks("a small violin left of a big red star on a checked ground") == {}
    assert marks("a small violin left of a big blue star on a checked ground") == {"colour": 0}
    assert marks("a big violin left of a big red star on a checked ground") == {"size": 0.5}
    assert marks("a big violin left of a small red star on a checked ground") == {"size": 0}
    assert marks("a small violin left of a big red star on a dotted ground") == {"ground": 0}
    assert marks("a big red star left of a small violin on a checked ground") == {"relation": 0}
    assert marks("a small violin above a big red star on a checked ground") == {"relation": 0}
    assert marks("a small piano left of a big red star on a checked ground") == {
        "noun": 0.5,
        "size": 0.5,
        "relation": 0,
    }


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "d810ee58")
def test_words_without_a_sentence():
    truth = parse("two small sheep on a white ground")
    assert slot_scores("sheep", truth) == {"noun": 1, "size": 0, "ground": 0, "count": 0, "exact": 0}
    assert set(slot_scores("", truth).values()) == {0.0}
    assert slot_scores("three small sheep on a white ground", truth)["count"] == 0


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "7b934277")
def test_the_best_and_the_worst(setup_73a81639):
    _, specs = setup_73a81639
    truths = [member.spec for _, member in specs(12)]
    right = [references(t)[-1] for t in truths]
    assert abs(bleu(right, truths) - 1) < 1e-6 and cider(right, truths) > 5
    nonsense = ["xyzzy"] * len(truths)
    assert bleu(nonsense, truths) == cider(nonsense, truths) == 0
    assert caption_scores(right, truths)["exact"] == 1 and set(caption_scores(nonsense, truths).values()) == {0.0}


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "be10c796")
def test_means_are_over_scenes_that_have_the_slot():
    truths = [
        parse("two small sheep on a white ground"),
        parse("a small violin left of a big red star on a checked ground"),
    ]
    scores = caption_scores(["one small sheep on a white ground", references(truths[1])[0]], truths)
    assert scores["count"] == 0 and scores["relation"] == 1 and scores["exact"] == 0.5


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "449dd03b")
def test_as_many_captions_as_scenes():
    with pytest.raises(ValueError, match="1 captions for 2 scenes"):
        caption_scores(["a"], [parse("two small sheep on a white ground")] * 2)
    with pytest.raises(ValueError, match="CIDEr weighs words"):
        cider(["a"], [parse("two small sheep on a white ground")])


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "0618931b")
def test_truths_are_those_of_the_set():
    scenes = SceneSet("nouns", 9)
    assert [slot_scores(c, t)["exact"] for c, t in zip(scenes.captions, truths_of(scenes, 9))] == [1.0] * 9 and len(
        truths_of(scenes, 4)
    ) == 4


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "c90c7165")
def test_hallucinated():
    def hallucinated(caption, truth):
        forms = {form: word for word in (*NOUNS, *SHAPES) for form in (word, plural(word))}
        return {forms[w] for w in words_of(caption) if w in forms} - {t.noun for t in truth.things}

    truth = parse("two small sheep on a white ground")
    assert hallucinated("two small sheep on a white ground", truth) == set()
    assert hallucinated("three mice and a sheep beside a red star", truth) == {"mouse", "star"}


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "c90c7165")
def test_hallucinated_starter_fails():
    def hallucinated(caption, truth):
        return set(words_of(caption)) - {t.noun for t in truth.things}

    with pytest.raises(Exception):
        truth = parse("two small sheep on a white ground")
        assert hallucinated("two small sheep on a white ground", truth) == set()
        assert hallucinated("three mice and a sheep beside a red star", truth) == {"mouse", "star"}


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "46b4cd0f")
def test_slot_f1():
    def facts(spec):
        if spec is None:
            return set()
        attributes = {
            (t.noun, name, value)
            for t in spec.things
            for name, value in (("size", t.size), ("colour", t.colour))
            if value
        }
        return attributes | {("ground", spec.ground)}

    def slot_f1(captions, truths):
        told, true = [facts(parse(c)) for c in captions], [facts(t) for t in truths]
        hits = sum(len(a & b) for a, b in zip(told, true))
        return 2 * hits / (sum(map(len, told)) + sum(map(len, true)))

    truths = [
        parse("two small sheep on a white ground"),
        parse("a small violin left of a big red star on a checked ground"),
    ]
    assert slot_f1([references(t)[0] for t in truths], truths) == 1
    assert slot_f1(["", ""], truths) == 0
    assert abs(slot_f1(["two small sheep on a grey ground", ""], truths) - 2 * 1 / (2 + 6)) < 1e-12


@pytest.mark.nb("nbs/1_foundations/06a_caption_scores.ipynb", "46b4cd0f")
def test_slot_f1_starter_fails():
    def slot_f1(captions, truths):
        return float(np.mean([slot_scores(c, t)["exact"] for c, t in zip(captions, truths)]))

    with pytest.raises(Exception):
        truths = [
            parse("two small sheep on a white ground"),
            parse("a small violin left of a big red star on a checked ground"),
        ]
        assert slot_f1([references(t)[0] for t in truths], truths) == 1
        assert slot_f1(["", ""], truths) == 0
        assert abs(slot_f1(["two small sheep on a grey ground", ""], truths) - 2 * 1 / (2 + 6)) < 1e-12
