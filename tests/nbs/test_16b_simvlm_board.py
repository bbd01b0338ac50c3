"""Generated from nbs/4_pretraining/16b_simvlm_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import torch
from dataclasses import replace
from pathlib import Path
from torch import nn
from unittest.mock import patch
from vlp_course.data.pairs import SceneSet
from vlp_course.data.questions import questions
from vlp_course.evaluate import part
from vlp_course.models.simvlm import answer
from vlp_course.models.simvlm import build
from vlp_course.models.simvlm import prompt_of
from vlp_course.nn.encoders import Tokens
from vlp_course.verdicts import verdict
from vlp_course.simvlm_board import (
    ROWS,
    main,
    patient,
    picture_adds,
    prompted_items,
    question_scores,
    run_unit,
    without_picture,
)


@pytest.fixture(scope="module")
def setup_7f6f6f77():
    class Parrot(nn.Module):
        """Knows three captions by heart; the first number of a picture's token says which. Without a picture it tells the first."""

        told = ("striped ground a small cat", "top left of a white ground", "two big dogs on a sandy ground")

        def generate(self, image, prompt="", **options):
            return [
                f"{prompt} {self.told[int(t) if seen else 0]}"
                for t, seen in zip(image.tokens[:, 0, 0], image.mask[:, 0])
            ]

    ITEMS = [
        (0, "ground", "what ground do you see in the picture", "striped"),
        (1, "ground", "what ground do you see in the picture", "white"),
        (1, "place", "where can you see the cat", "top left"),
        (2, "count", "what number of dogs can you see", "two"),
        (2, "ground", "what ground do you see in the picture", "grey"),
    ]
    SEEN = Tokens(
        torch.zeros(3, 2), torch.arange(3.0)[:, None, None].expand(3, 4, 2), torch.ones(3, 4, dtype=torch.bool)
    )
    return ITEMS, Parrot, SEEN


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "434379df")
def test_shares_by_hand(setup_7f6f6f77):
    ITEMS, Parrot, SEEN = setup_7f6f6f77
    found = question_scores(Parrot(), SEEN, ITEMS)
    assert (
        found["seen/ground"] == 2 / 3
        and found["seen/place"] == found["seen/count"] == 1
        and abs(found["seen/mean"] - 8 / 9) < 1e-12
    )
    assert (
        found["blind/ground"] == 1 / 3
        and found["blind/place"] == found["blind/count"] == 0
        and abs(found["blind/mean"] - 1 / 9) < 1e-12
    )
    slow = {slot: [] for slot in ("ground", "place", "count")}
    for scene, slot, question, truth in ITEMS:  # one question at a time
        slow[slot].append(answer(Parrot(), part(SEEN, [scene]), [question])[0] == truth)
    assert all(found[f"seen/{slot}"] == np.mean(hits) for slot, hits in slow.items())


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "34bbe034")
def test_two_ways_of_seeing_nothing(setup_7f6f6f77):
    _, Parrot, SEEN = setup_7f6f6f77
    model = Parrot()
    assert not without_picture(model, SEEN).mask.any() and torch.equal(without_picture(model, SEEN).tokens, SEEN.tokens)
    model.nothing = nn.Parameter(torch.tensor([5.0, 7.0]))
    assert (without_picture(model, SEEN).tokens == torch.tensor([5.0, 7.0])).all() and without_picture(
        model, SEEN
    ).mask.all()


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "eb771f04")
def test_only_questions_that_have_a_prompt():
    items = prompted_items(24)
    assert {slot for _, slot, _, _ in items} == {"what", "ground", "place", "count"} and all(
        prompt_of(q)[0] for _, _, q, _ in items
    )
    assert all((slot, q, a) in questions("test", 0, i) for i, slot, q, a in items)
    assert len(items) < sum(len(questions("test", 0, i)) for i in range(24))


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "12b60507")
def test_both_rows_can_be_asked():
    found = [run_unit(f"{row}-untrained", 0, Path("nowhere"), count=12) for row in ROWS]
    for result in found:
        assert {"seen/mean", "blind/mean", "seen/ground", "blind/count"} <= result["metrics"].keys() and result[
            "steps"
        ] == 0
        assert result["config"] == {"scenes": 12} and 0 <= result["metrics"]["seen/mean"] <= 1


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "d1c0be26")
def test_what_is_recorded_is_not_recorded_again():
    import tempfile

    calls = []
    with (
        tempfile.TemporaryDirectory() as folder,
        patch(
            f"{question_scores.__module__}.run_unit",
            lambda row, seed, runs: (
                calls.append((row, seed)) or {"row": row, "seed": seed, "budget": "quick", "metrics": {}}
            ),
        ),
    ):
        (
            main(["--seeds", "3", "4", "--results", folder]),
            main(["--seeds", "3", "4", "5", "--rows", "lm", "--results", folder]),
        )
        assert calls == [("simvlm", 3), ("lm", 3), ("simvlm", 4), ("lm", 4), ("lm", 5)]
        assert json.loads(next(Path(folder).glob("prompts/lm-quick-s5.json")).read_text())["seed"] == 5


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "e758f8dc")
def test_the_leak_is_a_leak():
    model, leaky, blind = build(seed=2).eval(), patient("simvlm-leaky", 2).eval(), patient("simvlm-blind", 2).eval()
    scenes = SceneSet("val", 6, features=np.random.default_rng(1).normal(size=(6, 12288)).astype(np.float32))
    batch = scenes.batch(range(6), model.tokenize)
    last = batch.text.mask.sum(1) - 2  # the last word: never read, always written
    other = replace(batch, text=batch.text._replace(ids=batch.text.ids.scatter(1, last[:, None], 7)))
    unseen = replace(batch, features=torch.randn(6, 12288))
    draw = lambda: torch.Generator().manual_seed(3)
    with torch.no_grad(), patch.object(type(model.core), "write", autospec=True) as write:
        for kind, leaks in ((model, False), (leaky, True), (blind, False)):
            seen = []
            write.side_effect = lambda core, suffix, places, memory, mask=None: (
                seen.append(memory),
                torch.zeros(*suffix.shape, len(core.bias)),
            )[1]
            for some in (batch, other):
                kind(some, step=0, generator=draw())
            assert torch.equal(*seen) != leaks
    with torch.no_grad():
        blinds = [blind(some, step=0, generator=draw()).losses["prefix_lm"] for some in (batch, unseen)]
        sees = [model(some, step=0, generator=draw()).losses["prefix_lm"] for some in (batch, unseen)]
    assert torch.allclose(*blinds) and not torch.allclose(*sees)
    with pytest.raises(ValueError, match="unknown sickness 'lm': choose one of simvlm-blind, simvlm-leaky"):
        patient("lm", 0)


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "3d6582f4")
def test_what_a_picture_adds_by_hand():
    class Judge(nn.Module):
        def match(self, image, text):
            return image.tokens[:, 0, 0] * text.tokens[:, 0, 0]

    tokens = lambda values: Tokens(
        torch.zeros(4, 2), torch.tensor(values)[:, None, None].expand(4, 1, 2), torch.ones(4, 1, dtype=torch.bool)
    )
    found = picture_adds(Judge(), tokens([1.0, 2, 3, 4]), tokens([1.0, 1, 1, 1]))  # wrong partners: 4, 1, 2, 3
    assert found == {"adds/right": 2.5, "adds/wrong": 2.5, "adds/more": 0.75}


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "0b93c38f")
def test_commonest(setup_7f6f6f77):
    ITEMS, _, _ = setup_7f6f6f77

    def commonest(items):
        answers = {slot: [a for _, s, _, a in items if s == slot] for _, slot, _, _ in items}
        return {slot: max(map(given.count, given)) / len(given) for slot, given in answers.items()}

    found = commonest([*ITEMS, (0, "ground", "", "grey"), (0, "ground", "", "grey")])
    assert found == {"ground": 3 / 5, "place": 1, "count": 1}


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "0b93c38f")
def test_commonest_starter_fails(setup_7f6f6f77):
    ITEMS, _, _ = setup_7f6f6f77

    def commonest(items):
        return {slot: 1 / len({a for _, s, _, a in items if s == slot}) for _, slot, _, _ in items}

    with pytest.raises(Exception):
        found = commonest([*ITEMS, (0, "ground", "", "grey"), (0, "ground", "", "grey")])
        assert found == {"ground": 3 / 5, "place": 1, "count": 1}


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "e0fda977")
def test_missing(setup_7f6f6f77):
    ITEMS, Parrot, SEEN = setup_7f6f6f77

    def missing(model, images, items):
        rows, _, asked, _ = map(list, zip(*items))
        return float(np.mean([not text for text in answer(model, part(images, rows), asked)]))

    crossed = [(2, "place", "where can you see the cat", "middle"), *ITEMS]
    assert missing(Parrot(), SEEN, ITEMS) == 0 and missing(Parrot(), SEEN, crossed) == 1 / 6


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "e0fda977")
def test_missing_starter_fails(setup_7f6f6f77):
    ITEMS, Parrot, SEEN = setup_7f6f6f77

    def missing(model, images, items):
        return 0.0

    with pytest.raises(Exception):
        crossed = [(2, "place", "where can you see the cat", "middle"), *ITEMS]
        assert missing(Parrot(), SEEN, ITEMS) == 0 and missing(Parrot(), SEEN, crossed) == 1 / 6


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "f8834af2")
def test_rule():
    def rule(against, sees, margin=0):
        worse = [title for title, found in against.items() if found.high < -margin]
        if "captions right" in worse or sees.low <= 0:
            return "does not hold here"
        return "depends" if worse else "holds"

    low, same, high = (verdict(np.array([0.0, 1, 2, 1, 0]) + shift, np.zeros(5)) for shift in (-6, -0.8, 5))
    assert (
        rule({"R@1": low, "captions right": high}, high) == "depends"
        and rule({"R@1": low, "captions right": high}, high, 5) == "holds"
    )
    assert (
        rule({"R@1": high, "captions right": low}, high) == "does not hold here" == rule({"captions right": high}, same)
    )


@pytest.mark.nb("nbs/4_pretraining/16b_simvlm_board.ipynb", "f8834af2")
def test_rule_starter_fails():
    def rule(against, sees, margin=0):
        return "holds"

    with pytest.raises(Exception):
        low, same, high = (verdict(np.array([0.0, 1, 2, 1, 0]) + shift, np.zeros(5)) for shift in (-6, -0.8, 5))
        assert (
            rule({"R@1": low, "captions right": high}, high) == "depends"
            and rule({"R@1": low, "captions right": high}, high, 5) == "holds"
        )
        assert (
            rule({"R@1": high, "captions right": low}, high)
            == "does not hold here"
            == rule({"captions right": high}, same)
        )
