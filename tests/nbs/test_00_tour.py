"""Generated from nbs/0_start/00_tour.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import re
from vlp_course.data.grammar import grammar_words
from vlp_course.data.grammar import words_of
from vlp_course.data.pairs import SceneSet
from vlp_course.recipe import batch_indices


@pytest.fixture(scope="module")
def setup_2eb1b92b():
    def check_words(sentence):
        "Nothing, or a ValueError that names the words which no caption ever held."
        strange = [word for word in words_of(sentence) if word not in set(grammar_words())]
        if strange:
            raise ValueError(
                f"the model was never shown {', '.join(strange)}: it knows things like 'a small cat above a big red star'"
            )

    def ranking(score):
        "Pictures from best to worst."
        return np.argsort(-np.asarray(score), kind="stable")

    return check_words, ranking


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "5853b0cf")
def test_strange_words_are_named(setup_2eb1b92b):
    check_words, ranking = setup_2eb1b92b
    check_words("three big roosters on a sandy ground")
    with pytest.raises(ValueError, match="never shown platypus, sofa: it knows things like"):
        check_words("a platypus left of a big sofa")
    assert ranking([0.1, 0.9, -0.3, 0.9]).tolist() == [1, 3, 0, 2]


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "fe2505ea")
def test_guessing():
    def in_first(k, pictures):
        return k / pictures

    def beyond_a_coin(traps):
        return traps / 2 + 1.96 * (traps / 4) ** 0.5

    assert in_first(1, 501) == 1 / 501 and in_first(5, 501) == 5 / 501 and in_first(501, 501) == 1
    assert beyond_a_coin(300) == pytest.approx(166.97, abs=0.01)  # 56 %
    assert beyond_a_coin(10_000) == pytest.approx(5098)  # 51 %: many questions see small differences


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "fe2505ea")
def test_guessing_starter_fails():
    def in_first(k, pictures):
        return 1 / pictures

    def beyond_a_coin(traps):
        return traps / 2

    with pytest.raises(Exception):
        assert in_first(1, 501) == 1 / 501 and in_first(5, 501) == 5 / 501 and in_first(501, 501) == 1
        assert beyond_a_coin(300) == pytest.approx(166.97, abs=0.01)  # 56 %
        assert beyond_a_coin(10_000) == pytest.approx(5098)  # 51 %: many questions see small differences


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "74c3c7c1")
def test_exchanged():
    def exchanged(sentence):
        parts = re.fullmatch(r"(.+?) (left of|above|higher than) (.+?)( on a \w+ ground)?", sentence)
        if parts is None:
            raise ValueError(f"no 'left of', 'above' or 'higher than' in {sentence!r}")
        first, relation, second, ground = parts.groups("")
        return f"{second} {relation} {first}{ground}"

    assert (
        exchanged("a small cat left of a big dog on a grey ground") == "a big dog left of a small cat on a grey ground"
    )
    assert exchanged("a big red star above an owl") == "an owl above a big red star"
    for sentence in (
        "a big crown higher than a big duck on a grey ground",
        "a small elephant left of a big whale on a sandy ground",
    ):
        assert exchanged(exchanged(sentence)) == sentence != exchanged(sentence)
    with pytest.raises(ValueError, match="no 'left of', 'above' or 'higher than' in 'three big roosters'"):
        exchanged("three big roosters")


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "74c3c7c1")
def test_exchanged_starter_fails():
    def exchanged(sentence):
        first, second = sentence.split(" left of ")
        return f"{second} left of {first}"  # and the ground?

    with pytest.raises(Exception):
        assert (
            exchanged("a small cat left of a big dog on a grey ground")
            == "a big dog left of a small cat on a grey ground"
        )
        assert exchanged("a big red star above an owl") == "an owl above a big red star"
        for sentence in (
            "a big crown higher than a big duck on a grey ground",
            "a small elephant left of a big whale on a sandy ground",
        ):
            assert exchanged(exchanged(sentence)) == sentence != exchanged(sentence)
        with pytest.raises(ValueError, match="no 'left of', 'above' or 'higher than' in 'three big roosters'"):
            exchanged("three big roosters")


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "cba8007e")
def test_tempting():
    def tempting(captions):
        bags = [tuple(sorted(caption.split())) for caption in captions]
        return sum(
            any(bag == other and caption != text for other, text in zip(bags, captions))
            for bag, caption in zip(bags, captions)
        )

    # Shuffled: about one of 63 (out of 1,500 pictures; out of 16,002 a tenth of that). With siblings: about 25.
    assert tempting(["a cat above a dog", "a dog above a cat", "a cat above a cat", "two owls"]) == 2
    assert tempting(["a cat above a dog", "a cat above a dog"]) == 0  # the same sentence is no trap
    counts = {}
    for share_of_families in (0.0, 1.0):
        scenes = SceneSet("train", 1500, families=share_of_families)
        quizzes = [batch_indices(scenes.groups, step, 63, 0) for step in range(20)]
        counts[share_of_families] = np.mean([tempting([scenes.captions[i] for i in quiz]) for quiz in quizzes])
    assert counts[0.0] < 3 and 20 < counts[1.0] < 30


@pytest.mark.nb("nbs/0_start/00_tour.ipynb", "cba8007e")
def test_tempting_starter_fails():
    def tempting(captions):
        return len(captions) - len(set(captions))

    with pytest.raises(Exception):
        assert tempting(["a cat above a dog", "a dog above a cat", "a cat above a cat", "two owls"]) == 2
        assert tempting(["a cat above a dog", "a cat above a dog"]) == 0  # the same sentence is no trap
        counts = {}
        for share_of_families in (0.0, 1.0):
            scenes = SceneSet("train", 1500, families=share_of_families)
            quizzes = [batch_indices(scenes.groups, step, 63, 0) for step in range(20)]
            counts[share_of_families] = np.mean([tempting([scenes.captions[i] for i in quiz]) for quiz in quizzes])
        assert counts[0.0] < 3 and 20 < counts[1.0] < 30
