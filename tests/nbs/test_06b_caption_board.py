"""Generated from nbs/1_foundations/06b_caption_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import tempfile
import torch
from inspect import unwrap
from unittest.mock import patch
from vlp_course.models.captioning import build
from vlp_course.nn.encoders import Tokens
from vlp_course.rows import Row
from vlp_course.rows import TRAIN
from vlp_course.caption_board import BOARD, SIZES, main, run_unit, word_cost


@pytest.fixture(scope="module")
def setup_b4c708a2():
    class Small:
        """Test sets of six scenes without features, and no pretrained grid: what the examination needs, in a second."""

        def __enter__(self):
            self.patches = [
                patch(f"{unwrap(run_unit).__module__}.GALLERY", 6),
                patch(
                    "vlp_course.evaluate.SETS",
                    {
                        "seen": ("test", "noto", 6),
                        "twemoji": ("test", "twemoji", 6),
                        "templates": ("templates", "noto", 6),
                    },
                ),
            ]
            for p in self.patches:
                p.start()

        def __exit__(self, *_):
            for p in self.patches:
                p.stop()

    def pixel_row(**changes):
        return Row(**{**vars(BOARD["lm-pixels"]), "quick": 2, "scenes": 63, "sets": ("seen", "twemoji"), **changes})

    return Small, pixel_row


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "e14f5412")
def test_one_unit_from_end_to_end(setup_b4c708a2):
    Small, pixel_row = setup_b4c708a2
    with Small():
        result = run_unit(pixel_row(), 3)
    assert result["steps"] == 2 and result["seed"] == 3 and result["row"] == "lm-pixels" and len(result["samples"]) == 6
    assert {"seen/exact", "seen/cider", "seen/bleu", "seen/nats", "templates/nats", "twemoji/noun"} <= set(
        result["metrics"]
    )
    assert "twemoji/r1" not in result["metrics"] and "greedy/exact" not in result["metrics"]  # of the full row alone
    assert result["metrics"]["seen/nats"] > 3 and len(result["curves"]["lm"]) == 1


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "ebd8e474")
def test_nats_by_hand():
    model = build(0).eval()
    texts = ["a small cat on a white ground", "two big dogs on a grey ground and a"]
    with torch.no_grad():
        images = Tokens(torch.randn(2, 128), torch.randn(2, 16, 128), torch.ones(2, 16, dtype=torch.bool))
        ids = model.tokenize(texts).ids
        total = sum(
            float(model.log_prob(images.tokens[i : i + 1], model.tokenize(texts[i : i + 1]).ids)) for i in range(2)
        )
        found = word_cost(model, images, texts)
    assert abs(found + total / (8 + 10)) < 0.02  # seven and nine words, and an end each


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "3e0c1ae3")
def test_rows_differ_in_one_thing():
    plain = vars(BOARD["lm"])
    changed = {
        name: {k for k, v in vars(row).items() if v != plain[k] and k not in ("name", "title")}
        for name, row in BOARD.items()
    }
    assert (
        changed["lm-pooled"] == {"builder"}
        and changed["lm-500"] == {"scenes"}
        and changed["lm-blind"] == {"builder", "quick"}
    )
    assert changed["lm-pixels"] == {"builder", "pixels", "quick"}
    assert [row.scenes for row in BOARD.values() if row.builder == plain["builder"]] == [TRAIN, *SIZES[:-1]]


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "dc9b4a14")
def test_what_is_there_is_kept():
    calls = []
    with (
        tempfile.TemporaryDirectory() as folder,
        patch(
            f"{unwrap(main).__module__}.run_unit",
            lambda row, seed: calls.append((row.name, seed)) or {"row": row.name, "seed": seed, "budget": "quick"},
        ),
    ):
        for _ in range(2):
            main(["--rows", "lm", "lm-500", "--seeds", "0", "7", "--results", folder])
    assert calls == [("lm", 0), ("lm-500", 0), ("lm", 7), ("lm-500", 7)]
    with pytest.raises(SystemExit):
        main(["--rows", "nonsense"])


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "08405b89")
def test_above_blind():
    def above_blind(score, blind):
        return (score - blind) / (1 - blind)

    assert above_blind(1.0, 0.3) == 1 and above_blind(0.3, 0.3) == 0 and abs(above_blind(0.65, 0.3) - 0.5) < 1e-12


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "08405b89")
def test_above_blind_starter_fails():
    def above_blind(score, blind):
        return score - blind

    with pytest.raises(Exception):
        assert above_blind(1.0, 0.3) == 1 and above_blind(0.3, 0.3) == 0 and abs(above_blind(0.65, 0.3) - 0.5) < 1e-12


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "fbd142bc")
def test_rank_of_truth():
    def rank_of_truth(similarity):
        return float((similarity >= similarity.diagonal()[:, None]).sum(1).float().mean())

    scores = torch.tensor([[3.0, 1, 2], [5, 4, 4], [1, 2, 0]])
    assert abs(rank_of_truth(scores) - (1 + 3 + 3) / 3) < 1e-6


@pytest.mark.nb("nbs/1_foundations/06b_caption_board.ipynb", "fbd142bc")
def test_rank_of_truth_starter_fails():
    def rank_of_truth(similarity):
        return float((similarity.argmax(1) == torch.arange(len(similarity))).float().mean())

    with pytest.raises(Exception):
        scores = torch.tensor([[3.0, 1, 2], [5, 4, 4], [1, 2, 0]])
        assert abs(rank_of_truth(scores) - (1 + 3 + 3) / 3) < 1e-6
