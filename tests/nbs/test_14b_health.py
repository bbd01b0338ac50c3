"""Generated from nbs/3_fusion/14b_health.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from torch import nn
from vlp_course.data.pairs import SceneSet
from vlp_course.lab import save_json
from vlp_course.recipe import Recipe
from vlp_course.train import fit
from vlp_course.health import WORDS, examine, patient, read_run, report, signs_of


@pytest.fixture(scope="module")
def setup_3fb394d9():
    def words_of(losses, steps=400, batch=63, **signs):
        return {f.sign: f.sick for f in examine(losses, steps, batch, signs)}

    flat = lambda level, n=40: [level + 0.003 * math.sin(i) for i in range(n)]
    falling = lambda start, end, n=40: list(np.linspace(start, end, n))
    return falling, flat, words_of


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "c6842825")
def test_levels_are_told_from_progress(setup_3fb394d9):
    falling, flat, words_of = setup_3fb394d9
    assert words_of({"itc": flat(math.log(63))}) == {"itc": True} and words_of({"itc": falling(4.2, 1.0)}) == {
        "itc": False
    }
    assert (
        words_of({"itc": flat(math.log(63))}, queue=630.0, queue_empty=0.0)["itc"] is False
    )  # with a queue 4.14 is progress
    assert words_of({"itc": flat(math.log(693))}, queue=630.0, queue_empty=0.0)["itc"] is True
    assert words_of({"itm": flat(0.6365)})["itm"] and not words_of({"itm": flat(0.55)})["itm"]
    assert words_of({"mlm": flat(WORDS)})["mlm"] and not words_of({"mlm": falling(6, 0.4)})["mlm"]
    assert words_of({"lm": [*falling(3, 0.5), *falling(0.5, 2.0)]})["lm"]  # rose again
    assert words_of({"lm": [*falling(3, 0.5), math.nan]})["lm"]
    assert words_of({"prefix_lm": [WORDS] * 30})["prefix_lm"] and not words_of({"ic": [*falling(8, 1.0)]})["ic"]
    with pytest.raises(
        ValueError, match="40 steps with losses itc: needs 100 steps and one of itc, itm, mlm, lm, prefix_lm, ic"
    ):
        examine({"itc": flat(4.0)}, 40, 63, {})


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "51517638")
def test_signs_of_tensors(setup_3fb394d9):
    falling, _, words_of = setup_3fb394d9
    tensors = {
        "fast.logit_scale": torch.tensor(math.log(20)),
        "slow.logit_scale": torch.tensor(9.0),
        "key_queue": torch.tensor([-1, -1, 5, 7]),
    }
    assert signs_of(tensors) == pytest.approx({"temperature": 0.05, "queue": 4, "queue_empty": 0.5})
    assert signs_of({"weight": torch.zeros(3)}) == {}
    well = {"itc": falling(4.2, 1.0)}
    assert words_of(well, temperature=0.05, queue=630.0, queue_empty=0.5) == {
        "itc": False,
        "temperature": False,
        "queue": True,
    }
    assert words_of(well, temperature=0.001)["temperature"] and words_of(well, temperature=0.9)["temperature"]
    assert "queue" not in words_of(well, steps=100, batch=6, queue=630.0, queue_empty=0.5)  # too early to judge


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "31f97eb7")
def test_no_run_is_one_clear_line():
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder, "x.json")
        wrong.write_text("[1, 2]")
        for path in (folder, wrong, Path(folder, "none")):
            with pytest.raises(ValueError, match="is no recorded run: give a JSON file of results/ or a folder"):
                read_run(path)


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "e9eefd19")
def test_a_folder_and_its_json_agree():
    from vlp_course.data.pairs import Vocabulary
    from vlp_course.models.clip import build as build_clip

    class Line(nn.Module):
        """A model with one number, whose loss is a straight line down."""

        def __init__(self):
            super().__init__()
            self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))

        def forward(self, batch, *, step, generator):
            from vlp_course.nn.encoders import Out

            return Out({"itc": 4.0 - 0.02 * step + 0 * self.logit_scale}, {})

    with tempfile.TemporaryDirectory() as folder:
        run = fit(Line(), SceneSet("train", 126), Recipe(steps=120, batch_size=3), Path(folder, "run"), progress=False)
        losses, steps, batch, signs = read_run(Path(folder, "run"))
        assert (steps, batch, len(losses["itc"])) == (120, 3, 120) and signs["temperature"] == pytest.approx(
            0.1, rel=0.05
        )
        record = {
            "curves": {"itc": losses["itc"][::10]},
            "steps": 120,
            "config": {"recipe": asdict(Recipe(120, batch_size=3))},
            "signs": signs,
        }
        save_json(Path(folder, "r.json"), record)
        assert read_run(Path(folder, "r.json")) == ({"itc": losses["itc"][::10]}, 120, 3, signs)
        assert "sick: itc" in report(Path(folder, "r.json"))  # 1.6 to 4: above ln 3


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "3fa1c2ec")
def test_patients_differ_in_one_thing():
    clip, sick = patient("clip", 3), patient("collapse", 3)
    assert all(a.equal(b) for a, b in zip(clip.state_dict().values(), sick.state_dict().values()))  # the same start
    cosine, same = torch.randn(5, 5).tanh().requires_grad_(), torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(sick.loss(cosine, same), clip.loss(cosine, same))  # shows the same number
    (pull,) = torch.autograd.grad(sick.loss(cosine, same), cosine)
    assert (pull.diagonal() < 0).all() and pull[~same].abs().max() == 0  # but only pulls
    torch.testing.assert_close(patient("out-of-step", 3).loss(cosine, same), clip.loss(cosine.roll(2, 0), same))
    fast = patient("fast-scale", 3)
    before = fast.logit_scale.item()
    with torch.no_grad():
        for rise in (0.001, 0.01):  # the second takes it beyond CLIP's limit of 100
            fast.logit_scale.add_(rise)
            fast.after_step({}, 0)
    assert fast.logit_scale.item() == pytest.approx(before + 300 * 0.011, abs=1e-3) and fast.logit_scale.exp() > 100
    with pytest.raises(
        ValueError,
        match="unknown patient 'flu': choose one of clip, albef, blind-judge, collapse, fast-scale, out-of-step, dead-queue",
    ):
        patient("flu", 0)


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "e4eefea2")
def test_blind_and_dead():
    from vlp_course.nn.encoders import Tokens

    blind, dead = patient("blind-judge", 0), patient("dead-queue", 0)
    text = blind.encode_text(blind.tokenize(["a big owl on a white ground"] * 2))
    image = Tokens(torch.randn(2, 128), torch.randn(2, 16, 128), torch.ones(2, 16, dtype=torch.bool))
    a, b = blind.match(image, text)
    assert a == b and dead.match(image, text).unique().numel() == 2
    state = {"image": torch.randn(4, 128), "text": torch.randn(4, 128), "key": torch.arange(4)}
    dead.after_step(state, 0)
    assert signs_of(dead.state_dict())["queue_empty"] == 1
    healthy = patient("albef", 0)
    healthy.after_step(state, 0)
    assert signs_of(healthy.state_dict())["queue_empty"] < 1


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "46964826")
def test_entropy_of_the_words():
    words = Counter(w for caption in SceneSet("train", 6000).captions for w in [*caption.split(), "[EOS]"][:-1])
    total = sum(words.values())
    assert -sum(n / total * math.log(n / total) for n in words.values()) == pytest.approx(WORDS, abs=0.03)


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "e901bc07")
def test_candidates():
    def sick_level(batch, queue):
        return math.log(batch + queue)

    assert sick_level(63, 630) == pytest.approx(6.54, abs=0.01) and sick_level(63, 0) == pytest.approx(4.14, abs=0.01)


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "e901bc07")
def test_candidates_starter_fails():
    def sick_level(batch, queue):
        return math.log(batch)

    with pytest.raises(Exception):
        assert sick_level(63, 630) == pytest.approx(6.54, abs=0.01) and sick_level(63, 0) == pytest.approx(
            4.14, abs=0.01
        )


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "b29d1418")
def test_sameness():
    def sameness(vectors):
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        n = len(vectors)
        return ((vectors @ vectors.T).sum() - n) / (n * n - n)

    assert sameness(torch.ones(5, 3)).item() == pytest.approx(1) and sameness(torch.eye(4)).item() == pytest.approx(
        0, abs=1e-6
    )
    assert sameness(-torch.eye(4)[[0, 0]]).item() == pytest.approx(1)


@pytest.mark.nb("nbs/3_fusion/14b_health.ipynb", "b29d1418")
def test_sameness_starter_fails():
    def sameness(vectors):
        return (vectors @ vectors.T).mean()

    with pytest.raises(Exception):
        assert sameness(torch.ones(5, 3)).item() == pytest.approx(1) and sameness(torch.eye(4)).item() == pytest.approx(
            0, abs=1e-6
        )
        assert sameness(-torch.eye(4)[[0, 0]]).item() == pytest.approx(1)
