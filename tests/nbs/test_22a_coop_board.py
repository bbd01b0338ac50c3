"""Generated from nbs/5_prompting/22a_coop_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import math
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pathlib import Path
from vlp_course.data.pairs import Vocabulary
from vlp_course.lab import read_results
from vlp_course.models.clip import CLIP
from vlp_course.nn.encoders import TextEncoder
from vlp_course.prompts.coop import harmonic_mean
from vlp_course.prompts.few_shot import EMOJI_TEMPLATES
from vlp_course.prompts.few_shot import ENCODERS
from vlp_course.prompts.few_shot import SHOTS
from vlp_course.prompts.few_shot import Task
from vlp_course.prompts.few_shot import Vectors
from vlp_course.prompts.few_shot import look
from vlp_course.prompts.coop_board import (
    CELLS,
    ROWS,
    base_to_new,
    chosen,
    claim_18,
    difference,
    learned,
    main,
    run_unit,
    score,
)


@pytest.fixture(scope="module")
def setup_2d8d50b3():
    def toy(classes=5, features=12, dim=8, shots=4, noise=0.3):
        generator = torch.Generator().manual_seed(0)
        words = "a an picture of emoji symbol kind cat dog bird sun tree car".split()
        torch.manual_seed(0)
        model = CLIP(
            Vectors(features, dim), TextEncoder(torch.randn(len(words) + 5, dim)), Vocabulary(words), dim
        ).eval()
        means = torch.randn(classes, features, generator=generator)
        pictures = lambda n: means[:, None] + noise * torch.randn(classes, n, features, generator=generator)
        labels = torch.arange(classes).repeat_interleave(6)
        return model, Task(
            tuple(words[7 : 7 + classes]),
            EMOJI_TEMPLATES,
            pictures(shots),
            {"noto": (pictures(6).flatten(0, 1), labels)},
        )

    return toy


@pytest.fixture(scope="module")
def setup_e77365b3():
    import json, tempfile
    from unittest import mock

    HERE = run_unit.__module__
    return HERE, json, mock, tempfile


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "8aaee538")
def test_every_row_answers_and_the_trained_ones_learn(setup_2d8d50b3):
    toy = setup_2d8d50b3
    model, task = toy()
    x, y = task.pool.flatten(0, 1), torch.arange(5).repeat_interleave(4)
    q, labels = task.tests["noto"]
    before, right = copy.deepcopy(model.state_dict()), {}
    for row in ROWS:
        answer = learned(row.name, model, task, x, y, 1.0 if row.name.startswith("coop") else row.grid[-1], seed=1)
        with torch.no_grad():
            logits = answer(q, task.names)
            assert logits.shape == (30, 5) and logits.isfinite().all()
            right[row.name] = float((logits.argmax(1) == labels).float().mean())
            if row.by_name:
                assert answer(q, task.names[1:4]).shape == (30, 3)
    assert (
        min(right[r] for r in ("probe", "tip", "probe-text", "coop-class")) > 0.8
        and right["zero"] < 0.6
        and right["coop"] > right["zero"]
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # fine-tuning trained a copy
    with pytest.raises(ValueError, match="unknown row 'clip': choose one of zero, ensemble"):
        learned("clip", model, task, x, y, 1.0)


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "f4589f24")
def test_hand_prompts_and_cache_by_hand(setup_2d8d50b3):
    toy = setup_2d8d50b3
    model, task = toy(classes=3)
    x, y, (q, _) = task.pool[:, 0], torch.arange(3), task.tests["noto"]
    tau, seen, u = float(model.logit_scale.exp()), look(model, x), look(model, q[:2])
    texts = model.encode_text(model.tokenize([f"an emoji of {n}" for n in task.names])).pooled
    torch.testing.assert_close(learned("zero", model, task, x, y, 3)(q[:2], task.names), tau * u @ texts.T)
    mean = sum(model.encode_text(model.tokenize([t.format("cat") for t in EMOJI_TEMPLATES])).pooled) / 6
    ensemble = learned("ensemble", model, task, x, y, 0)(q[:2], task.names)
    torch.testing.assert_close(ensemble[:, 0], tau * u @ (mean / mean.norm()))
    cache_votes = learned("tip", model, task, x, y, 4.0)(q[:2], task.names) - ensemble
    for i in range(2):
        for c in range(3):
            assert cache_votes[i, c].item() == pytest.approx(4 * math.exp(-5.5 * (1 - float(u[i] @ seen[c]))), abs=1e-4)


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "b886647f")
def test_shots_are_nested_and_halves_scored_apart(setup_e77365b3, setup_2d8d50b3):
    HERE, _, mock, _ = setup_e77365b3
    toy = setup_2d8d50b3
    model, task = toy(classes=5)
    perfect = lambda row, model, task, x, y, value, seed: (
        lambda q, n: -torch.cdist(q, torch.stack([task.pool[known.index(name)].mean(0) for name in n]))
    )
    known = task.names
    with mock.patch(f"{HERE}.learned", side_effect=perfect) as spy:
        assert score("coop", model, task, 2, 0.1, 0) == {"noto": pytest.approx(1.0, abs=0.1)}
        assert spy.call_args.args[3].shape == (10, 12) and spy.call_args.args[4].tolist() == [
            0,
            0,
            1,
            1,
            2,
            2,
            3,
            3,
            4,
            4,
        ]
        assert torch.equal(spy.call_args.args[3][2], task.pool[1, 0])
        found = base_to_new("coop", model, task, 3, 0.1, 0)
        assert spy.call_args.args[2].names == task.names[:3] and len(spy.call_args.args[3]) == 9
        assert found["h"] == pytest.approx(harmonic_mean(found["base"], found["new"])) and min(found.values()) > 0.8


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "29e0d5dc")
def test_the_setting_comes_from_tuning_alone(setup_e77365b3):
    _, json, _, tempfile = setup_e77365b3
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(
            ValueError, match="row 'coop' is not tuned in .*: run python -m vlp_course.prompts.coop_board --tune"
        ):
            chosen("coop", Path(folder), "emoji")
        Path(folder, "prompts-vision-rates").mkdir()
        for value, marks in (
            (0.03, (0.1, 0.1)),
            (0.3, (0.3, 0.9)),
            (3.0, (0.5, 0.1)),
            (30.0, (0.4, 0.2)),
            (100.0, (0.4, 0.3)),
        ):
            result = {
                "row": f"coop@{value:g}",
                "seed": 100,
                "budget": "quick",
                "metrics": dict(zip(("emoji", "scenes"), marks)),
            }
            Path(folder, "prompts-vision-rates", f"coop@{value:g}-quick-s100.json").write_text(json.dumps(result))
        assert chosen("coop", Path(folder), "emoji") == 3.0 and chosen("coop", Path(folder), "scenes") == 0.3
        assert chosen("ensemble", Path(folder), "emoji") == 0


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "5f45242d")
def test_units_and_command(setup_e77365b3, setup_2d8d50b3):
    HERE, _, mock, tempfile = setup_e77365b3
    toy = setup_2d8d50b3
    model, task = toy()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch(f"{HERE}.emoji_task", return_value=task._replace(pool=task.pool.repeat(1, 2, 1))),
        mock.patch(f"{HERE}.emoji_split"),
        mock.patch(f"{HERE}.encoder", return_value=model),
        mock.patch(f"{HERE}.load_base", return_value=model),
        mock.patch(f"{HERE}.scene_task", return_value=task._replace(pool=task.pool.repeat(1, 4, 1))),
    ):
        main(["--tune", "--rows", "zero@2", "coop@0.3", "--seeds", "100", "--results", folder])
        tuned = read_results(Path(folder), "prompts-vision-rates")
        assert {r["row"] for r in tuned} == {"zero@2", "coop@0.3"} and {
            "one/1/noto",
            "three/4/noto",
            "scenes/16/noto",
        } < set(tuned[0]["metrics"])
        main(["--rows", "ensemble", "--seeds", "3", "--results", folder])
        (run,) = read_results(Path(folder), "prompts-vision")
        assert run["seed"] == 3 and {"one/8/noto", "three/h", "one/base"} < set(run["metrics"]) and run["cpu_s"] > 0
        first = run["metrics"]
        assert first["emoji"] == pytest.approx(np.mean([first[f"{e}/{s}/noto"] for e in ENCODERS for s in SHOTS]))


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "d36e5f67")
def test_the_rule_by_hand():
    def board(gain, splits=5):
        return [
            {
                "row": row,
                "seed": s,
                "metrics": {c: 0.4 + 0.01 * s + (gain(k, s) if row == "coop" else 0) for k, c in enumerate(CELLS)},
            }
            for row in ("coop", "zero")
            for s in range(splits)
        ]

    small = lambda s: 0.001 * (s % 2)
    assert claim_18(board(lambda k, s: 0.1 + small(s))).startswith(
        "CLAIM 18: holds (CoOp above the best hand-written prompt in 9 of 9 cells, below in 0"
    )
    assert claim_18(board(lambda k, s: (0.1 if k < 4 else -0.1) + small(s))).startswith(
        "CLAIM 18: depends (CoOp above the best hand-written prompt in 4 of 9 cells, below in 5"
    )
    assert claim_18(board(lambda k, s: 0.05 * (-1) ** s)).startswith("CLAIM 18: does not hold here (")
    assert claim_18(board(lambda k, s: 0.1, 4)) == "CLAIM 18: open here (9 of 9 cells have fewer than five splits)"
    assert difference(board(lambda k, s: 0.1 + small(s)), "coop", "zero", CELLS[0]).mean == pytest.approx(10.04)


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "79b76a4d")
def test_standard_error():
    def standard_error(share, items):
        return 100 * math.sqrt(share * (1 - share) / items)

    drawn = np.random.default_rng(0).binomial(135, 0.5, 20_000) / 135
    assert standard_error(0.5, 135) == pytest.approx(100 * drawn.std(), rel=0.03) and standard_error(
        0.5, 2500
    ) == pytest.approx(1)


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "79b76a4d")
def test_standard_error_starter_fails():
    def standard_error(share, items):
        return 100 * share * (1 - share) / items

    with pytest.raises(Exception):
        drawn = np.random.default_rng(0).binomial(135, 0.5, 20_000) / 135
        assert standard_error(0.5, 135) == pytest.approx(100 * drawn.std(), rel=0.03) and standard_error(
            0.5, 2500
        ) == pytest.approx(1)


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "54ea4330")
def test_nearest_mean():
    def nearest_mean(keys, labels, classes, query):
        means = torch.stack([keys[labels == c].mean(0) for c in range(classes)])
        return (query @ F.normalize(means, dim=-1).T).argmax(1)

    keys = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, -1.0]]), dim=-1)
    query = F.normalize(torch.tensor([[1.0, 1.2, 0.0], [1.0, 0.1, 0.0]]), dim=-1)
    assert nearest_mean(keys, torch.tensor([0, 0, 1, 1]), 2, query).tolist() == [1, 0]


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "54ea4330")
def test_nearest_mean_starter_fails():
    def nearest_mean(keys, labels, classes, query):
        return (query @ torch.stack([keys[labels == c].mean(0) for c in range(classes)]).T).argmax(1)

    with pytest.raises(Exception):
        keys = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, -1.0]]), dim=-1)
        query = F.normalize(torch.tensor([[1.0, 1.2, 0.0], [1.0, 0.1, 0.0]]), dim=-1)
        assert nearest_mean(keys, torch.tensor([0, 0, 1, 1]), 2, query).tolist() == [1, 0]


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "b93d0e41")
def test_blend():
    def blend(hand, learned, share):
        return F.normalize((1 - share) * F.normalize(hand, dim=-1) + share * F.normalize(learned, dim=-1), dim=-1)

    hand, free = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(blend(hand, free, 0.0), F.normalize(hand, dim=-1))
    torch.testing.assert_close(blend(hand, free, 0.3).norm(dim=1), torch.ones(4))
    torch.testing.assert_close(blend(hand, 5 * free, 0.3), blend(hand, free, 0.3))


@pytest.mark.nb("nbs/5_prompting/22a_coop_board.ipynb", "b93d0e41")
def test_blend_starter_fails():
    def blend(hand, learned, share):
        return (1 - share) * hand + share * learned

    with pytest.raises(Exception):
        hand, free = torch.randn(4, 6), torch.randn(4, 6)
        torch.testing.assert_close(blend(hand, free, 0.0), F.normalize(hand, dim=-1))
        torch.testing.assert_close(blend(hand, free, 0.3).norm(dim=1), torch.ones(4))
        torch.testing.assert_close(blend(hand, 5 * free, 0.3), blend(hand, free, 0.3))
