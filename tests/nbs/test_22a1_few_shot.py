"""Generated from nbs/5_prompting/22a1_few_shot.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from unittest import mock
from vlp_course.data.emoji import STYLES
from vlp_course.data.emoji import load_emoji
from vlp_course.data.grammar import words_of
from vlp_course.models.clip import CLIP
from vlp_course.nn.encoders import TextEncoder
from vlp_course.prompts.few_shot import ARRANGEMENTS, Split, Vectors, arrangement, emoji_split, encoder, pretrain


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "bbc3fcf6")
def test_three_parts_share_no_concept():
    emoji = load_emoji()
    for seed in (0, 1):
        split = emoji_split(seed)
        ideas = [{emoji[i].concept for i in part.ravel()} for part in (split.pretraining, split.shots, split.test)]
        assert not (ideas[0] & ideas[1] or ideas[0] & ideas[2] or ideas[1] & ideas[2])
        assert (
            split.shots.shape == (len(split.names), 8)
            and len(ideas[1]) == split.shots.size
            and 18 <= len(split.names) <= 26
        )
        assert np.bincount(split.labels).min() >= 6 and len(split.pretraining) > 1000
        for row, label in ((split.shots[3], 3), (split.test[split.labels == 7], 7)):
            assert {" ".join(words_of(emoji[i].subgroup)) for i in row} == {split.names[label]}
    assert (emoji_split(1).test == split.test).all() and not np.array_equal(emoji_split(0).shots, split.shots)


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "ed796941")
def test_the_encoder_sees_its_part_and_its_styles_alone():
    HERE, split = pretrain.__module__, emoji_split(0)
    pictures = {
        s: torch.randn(len(load_emoji()), 1280, generator=torch.Generator().manual_seed(k))
        for k, s in enumerate(STYLES)
    }
    spoiled = {s: x.clone() for s, x in pictures.items()}
    spoiled["twemoji"][:] = torch.nan
    spoiled["noto"][split.shots.ravel()] = spoiled["noto"][split.test] = torch.nan
    found = []
    for seen in (pictures, spoiled):
        with mock.patch(f"{HERE}.emoji_pictures", return_value=seen):
            found.append(pretrain(split, ("noto",), 3, steps=2, batch=7, dim=16).state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0]) and found[0]["logit_scale"] != math.log(
        1 / 0.07
    )


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "1a01b5b9")
def test_features_as_pictures():
    torch.manual_seed(0)
    tokens = Vectors(6, 4)(x := torch.randn(3, 6))
    assert (
        tokens.pooled.shape == (3, 4)
        and torch.equal(tokens.tokens[:, 0], tokens.pooled)
        and tokens.mask.shape == (3, 1)
    )
    torch.testing.assert_close(Vectors(6, 4).map.weight.shape, torch.Size([4, 6]))
    torch.manual_seed(0)
    torch.testing.assert_close(Vectors(6, 4)(5 * x + 2).pooled, tokens.pooled, atol=1e-4, rtol=1e-3)


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "5b64966f")
def test_an_encoder_is_trained_once():
    from vlp_course.data.pairs import Vocabulary

    HERE = encoder.__module__
    torch.manual_seed(0)
    model = CLIP(Vectors(1280, 128), TextEncoder(torch.randn(9, 128)), Vocabulary(["a", "b", "c", "d"]), 128)
    with (
        tempfile.TemporaryDirectory() as runs,
        mock.patch(f"{HERE}.pretrain", return_value=model) as train,
        mock.patch(f"{HERE}.course_vocabulary", return_value=model.vocabulary),
        mock.patch(f"{HERE}.emoji_split"),
    ):
        for _ in range(2):
            again = encoder("one", 4, Path(runs))
        assert train.call_count == 1 and train.call_args.args[1:] == (("noto",), 4) and not again.training
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "eb529436")
def test_arrangements_by_hand():
    from vlp_course.data.grammar import Spec, Thing

    dog, cat = (Thing(n, None, "big") for n in ("dog", "cat"))
    names = list(ARRANGEMENTS.values())
    assert names[arrangement(Spec("place", (dog,), "white", place="bottom left"))] == "in the bottom left"
    assert (
        names[arrangement(Spec("count", (dog,), "white", count=3))] == "three"
        and names[arrangement(Spec("vertical", (dog, cat), "grey"))] == "above"
    )


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "2290ef4a")
def test_taken():
    def taken(shots, k, seed):
        return shots[:, :k]

    shots = np.arange(40).reshape(5, 8)
    assert all(set(taken(shots, 2, s).ravel()) < set(taken(shots, 4, s).ravel()) for s in range(3)) and taken(
        shots, 1, 0
    ).shape == (5, 1)


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "2290ef4a")
def test_taken_starter_fails():
    def taken(shots, k, seed):
        return np.random.default_rng((seed, k)).permuted(shots, axis=1)[:, :k]

    with pytest.raises(Exception):
        shots = np.arange(40).reshape(5, 8)
        assert all(set(taken(shots, 2, s).ravel()) < set(taken(shots, 4, s).ravel()) for s in range(3)) and taken(
            shots, 1, 0
        ).shape == (5, 1)


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "e3dce856")
def test_leaks():
    def leaks(split):
        words = lambda i: set(words_of(load_emoji()[i].name))
        shots = [set().union(*map(words, row)) for row in split.shots]
        return sum(bool(words(i) & shots[c]) for i, c in zip(split.test, split.labels))

    by_name = {e.name: i for i, e in enumerate(load_emoji())}
    two = Split(
        ("a", "b"),
        np.array([0]),
        np.array([[by_name["polar bear"]], [by_name["bus"]]]),
        np.array([by_name["bear"], by_name["tram"]]),
        np.array([0, 1]),
    )
    assert leaks(two) == 1 and leaks(two._replace(labels=np.array([1, 0]))) == 0


@pytest.mark.nb("nbs/5_prompting/22a1_few_shot.ipynb", "e3dce856")
def test_leaks_starter_fails():
    def leaks(split):
        return len(set(split.test) & set(split.shots.ravel()))

    with pytest.raises(Exception):
        by_name = {e.name: i for i, e in enumerate(load_emoji())}
        two = Split(
            ("a", "b"),
            np.array([0]),
            np.array([[by_name["polar bear"]], [by_name["bus"]]]),
            np.array([by_name["bear"], by_name["tram"]]),
            np.array([0, 1]),
        )
        assert leaks(two) == 1 and leaks(two._replace(labels=np.array([1, 0]))) == 0
