"""Generated from nbs/4_pretraining/18c_filip_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pathlib import Path
from torch import Tensor
from torch import nn
from vlp_course.data.pairs import SceneSet
from vlp_course.data.scenes import SIDE
from vlp_course.evaluate import encode_texts
from vlp_course.evaluate import points_into
from vlp_course.models.clip import build as clip_build
from vlp_course.models.clip import same_captions
from vlp_course.models.clip import towers
from vlp_course.models.filip import FILIP
from vlp_course.models.filip import build
from vlp_course.nn.encoders import Out
from vlp_course.nn.encoders import Tokens
from vlp_course.objectives import itc_loss
from vlp_course.filip_board import main, phrase_maps


@pytest.fixture(scope="module")
def setup_582885a8():
    class Ready(nn.Module):
        """Stands for a FILIP: its tokens are unit vectors already."""

        tables = image_project = text_project = nn.Identity()

    CORNERS = torch.eye(4)
    return CORNERS, Ready


@pytest.fixture(scope="module")
def setup_4cf7e1ea():
    class PadsCount(FILIP):
        def encode_text(self, text):
            tokens = super().encode_text(text)
            return tokens._replace(mask=torch.ones_like(tokens.mask))

    class Sums(FILIP):
        def tables(self, image, text):
            to_text, to_image = super().tables(image, text)
            return to_text * image.mask.sum(1)[:, None], to_image * text.mask.sum(1)

        def forward(self, batch, *, step, generator):
            to_text, to_image = self.tables(self.encode_image(batch), self.encode_text(batch.text))
            return Out(
                {
                    "late": itc_loss(
                        self.logit_scale.exp() * to_text, self.logit_scale.exp() * to_image.T, same_captions(batch)
                    )
                },
                {},
            )

    class OneAxis(FILIP):
        def forward(self, batch, *, step, generator):
            to_text, to_image = self.tables(self.encode_image(batch), self.encode_text(batch.text))
            return Out(
                {
                    "late": itc_loss(
                        self.logit_scale.exp() * to_text, self.logit_scale.exp() * to_image, same_captions(batch)
                    )
                },
                {},
            )

    def neighbours_matter(model, image, short="a big owl", long="three small red circles on a blue ground"):
        """How far the score of a picture with a short caption moves when a long caption joins the batch."""
        with torch.no_grad():
            alone, beside = (
                model.similarity(image, model.encode_text(model.tokenize(texts)))[:, 0]
                for texts in ([short], [short, long])
            )
        return (alone - beside).abs().max().item()

    return OneAxis, PadsCount, Sums, neighbours_matter


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "4367a98c")
def test_maps_by_hand(setup_582885a8):
    CORNERS, Ready = setup_582885a8
    image = Tokens(torch.zeros(2, 4), torch.stack([CORNERS, CORNERS]), torch.ones(2, 4, dtype=torch.bool))
    words = torch.zeros(2, 4, 4)  # [CLS] word (word) [EOS]
    words[0, 1] = CORNERS[2]
    words[1, 1], words[1, 2] = torch.tensor([0.8, 0.6, 0, 0]), torch.tensor([0, 0.6, 0, 0.8])
    words[:, 0] = words[0, 2] = words[1, 3] = CORNERS[1]  # marks point elsewhere: they must not count
    text = Tokens(torch.stack([CORNERS[3], CORNERS[0]]), words, torch.tensor([[True, True, True, False], [True] * 4]))
    maps = phrase_maps(Ready(), image, text)
    best = {name: heat.flatten(1).argmax(1).tolist() for name, heat in maps.items()}
    assert best == {"words": [2, 1], "noun": [2, 3], "vector": [3, 0]} and maps["noun"].shape == (2, 2, 2)
    assert points_into(maps["noun"], [(0, SIDE // 2, SIDE // 2, SIDE), (0, 0, SIDE // 2, SIDE // 2)]) == [True, False]


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "36f93092")
def test_clip_is_projected_first():
    scenes, clip, filip = (
        SceneSet("val", 4, features=np.random.default_rng(0).normal(size=(4, 12288)).astype(np.float32)),
        clip_build(seed=3).eval(),
        build(seed=3).eval(),
    )
    batch = scenes.batch(range(4))
    with torch.no_grad():
        for model in (clip, filip):
            image, text = (
                model.encode_image(batch),
                encode_texts(model, ["an owl", "a big star", "a cat", "a red circle"]),
            )
            found = phrase_maps(model, image, text)
            patches, words = (
                F.normalize(project(tower), dim=-1) if model is clip else tower
                for tower, project in ((image.tokens, model.image_project), (text.tokens, model.text_project))
            )
            for i, count in enumerate((2, 3, 2, 3)):  # words between the marks
                cosine = words[i] @ patches[i].T
                torch.testing.assert_close(found["words"][i].flatten(), cosine[1 : 1 + count].mean(0))
                torch.testing.assert_close(found["noun"][i].flatten(), cosine[count])
                torch.testing.assert_close(found["vector"][i].flatten(), patches[i] @ text.pooled[i])
                assert found["words"][i].abs().max() <= 1 + 1e-5


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "ba6f03f8")
def test_records_once():
    import json, tempfile
    from unittest import mock

    with tempfile.TemporaryDirectory() as folder, mock.patch(f"{main.__module__}.run_unit") as unit:
        unit.side_effect = lambda row, seed, runs: {
            "row": row,
            "seed": seed,
            "budget": "quick",
            "metrics": {"noun": 0.5},
        }
        main(["--seeds", "3", "4", "--rows", "clip", "filip", "--results", folder])
        main(["--seeds", "3", "5", "--rows", "clip", "--results", folder])
        assert [call.args[:2] for call in unit.call_args_list] == [
            ("clip", 3),
            ("filip", 3),
            ("clip", 4),
            ("filip", 4),
            ("clip", 5),
        ]
        assert json.loads((Path(folder) / "pointing" / "clip-quick-s5.json").read_text())["metrics"] == {"noun": 0.5}


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "7325d0b6")
def test_sick_ones_differ_where_they_should(setup_4cf7e1ea):
    OneAxis, PadsCount, Sums, neighbours_matter = setup_4cf7e1ea
    scenes = SceneSet("val", 6, features=np.random.default_rng(1).normal(size=(6, 12288)).astype(np.float32))
    made = {kind: kind(*towers(2)).eval() for kind in (FILIP, PadsCount, Sums, OneAxis)}
    for model in made.values():
        model.load_state_dict(made[FILIP].state_dict())
    batch = scenes.batch(range(6), made[FILIP].tokenize)
    image = made[FILIP].encode_image(batch)
    assert neighbours_matter(made[FILIP], image) < 1e-5 < 1e-3 < neighbours_matter(made[PadsCount], image)
    with torch.no_grad():
        loss = {
            kind: model(batch, step=0, generator=torch.Generator()).losses["late"].item()
            for kind, model in made.items()
        }
        to_text, to_image = made[FILIP].tables(image, made[FILIP].encode_text(batch.text))
        summed = made[Sums].tables(image, made[FILIP].encode_text(batch.text))
    assert torch.allclose(summed[0], 16 * to_text) and torch.allclose(summed[1], to_image * batch.text.mask.sum(1))
    assert len(set(loss.values())) >= 3
    scale = made[FILIP].logit_scale.exp().detach()
    assert loss[OneAxis] == pytest.approx(
        itc_loss(scale * to_text, scale * to_image, same_captions(batch)).item(), rel=1e-5
    )


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "96e09ced")
def test_middle_hits():
    def middle_hits(boxes: list[tuple]) -> float:
        """Share of boxes (x0, y0, x1, y1, in pixels) that hold the middle of the picture."""
        return float(np.mean([x0 <= SIDE // 2 < x1 and y0 <= SIDE // 2 < y1 for x0, y0, x1, y1 in boxes]))

    assert middle_hits([(0, 0, 65, 65), (64, 64, 70, 70), (0, 0, 64, 64), (70, 60, 80, 70)]) == 0.5


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "96e09ced")
def test_middle_hits_starter_fails():
    def middle_hits(boxes: list[tuple]) -> float:
        """Share of boxes (x0, y0, x1, y1, in pixels) that hold the middle of the picture."""
        ...

    with pytest.raises(Exception):
        assert middle_hits([(0, 0, 65, 65), (64, 64, 70, 70), (0, 0, 64, 64), (70, 60, 80, 70)]) == 0.5


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "1753adfc")
def test_confusion():
    def confusion(heat: Tensor, boxes: list[tuple], others: list[tuple]) -> tuple[float, float, float]:
        """Shares of maps whose brightest place lies in the box, in the other box, in neither."""
        right, wrong = (np.array(points_into(heat, some)) for some in (boxes, others))
        return float(right.mean()), float((wrong & ~right).mean()), float((~right & ~wrong).mean())

    heat = torch.zeros(4, 2, 2)
    heat[[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1]] = 1  # the four corners
    left, right = (0, 0, 64, 64), (64, 0, 128, 64)
    assert confusion(heat, [left] * 4, [right] * 4) == (0.25, 0.25, 0.5)
    assert confusion(heat, [left] * 4, [left] * 4) == (0.25, 0.0, 0.75)


@pytest.mark.nb("nbs/4_pretraining/18c_filip_board.ipynb", "1753adfc")
def test_confusion_starter_fails():
    def confusion(heat: Tensor, boxes: list[tuple], others: list[tuple]) -> tuple[float, float, float]:
        """Shares of maps whose brightest place lies in the box, in the other box, in neither."""
        ...

    with pytest.raises(Exception):
        heat = torch.zeros(4, 2, 2)
        heat[[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1]] = 1  # the four corners
        left, right = (0, 0, 64, 64), (64, 0, 128, 64)
        assert confusion(heat, [left] * 4, [right] * 4) == (0.25, 0.25, 0.5)
        assert confusion(heat, [left] * 4, [left] * 4) == (0.25, 0.0, 0.75)
