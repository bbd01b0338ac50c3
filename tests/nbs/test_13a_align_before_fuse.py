"""Generated from nbs/3_fusion/13a_align_before_fuse.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from torch import Tensor
from torch import nn
from vlp_course.data.pairs import SceneSet
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.models.albef import build
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import Tokens
from vlp_course.albef_board import TOP, Trial, gallery_hits, hits, main, prepared


@pytest.fixture(scope="module")
def setup_b6e26629():
    class Fixed(nn.Module):
        """Cosines and matches from two given tables; tokens carry the row's number."""

        def __init__(self, cosine, match):
            super().__init__()
            self.nothing, self.cosine, self.table = nn.Parameter(torch.zeros(1)), cosine, match

        def similarity(self, image, text):
            return self.cosine

        def match(self, image, text):
            return self.table[image.tokens[:, 0, 0].long(), text.tokens[:, 0, 0].long()]

    def numbered(count):
        return Tokens(
            torch.zeros(count, 3),
            torch.arange(float(count))[:, None, None].expand(-1, 1, 2),
            torch.ones(count, 1, dtype=torch.bool),
        )

    return Fixed, numbered


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "0a48c9cb")
def test_starts_hand_over_what_they_should():
    scenes = SceneSet("train", 66)
    scenes.features = np.random.default_rng(0).standard_normal((66, WIDTH)).astype(np.float16)
    plain = build(seed=3).fast.state_dict()
    moved = lambda before: {
        k
        for k, v in prepared(Trial("t", 1, before=before, before_steps=2), 3, "no", scenes)[0].fast.state_dict().items()
        if not torch.equal(v, plain[k])
    }
    towers = {
        k
        for k in plain
        if k.split(".")[0] in ("image_encoder", "text_encoder", "image_project", "text_project", "logit_scale")
    }
    assert moved("clip") <= towers and {
        "image_project.weight",
        "text_encoder.embed.weight",
        "image_encoder.project.weight",
    } <= moved("clip")
    changed = moved("lm")
    assert {
        "fusion.layers.1.cross.query.weight",
        "image_encoder.project.weight",
        "text_encoder.embed.weight",
        "fusion.norm.weight",
    } <= changed
    assert not any(k.startswith(("head", "image_project", "text_encoder.blocks", "fusion.pool")) for k in changed)
    model, spent = prepared(Trial("t", 1, before="clip", before_steps=2), 3, "no", scenes)
    assert spent > 0 and all(
        torch.equal(a, b) for a, b in zip(model.fast.parameters(), model.slow.parameters())
    )  # the slow copy starts equal


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "73971782")
def test_ties_are_misses():
    relevant = torch.eye(3, dtype=torch.bool)
    scores = torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 5, 3]])
    assert hits(scores, relevant).tolist() == [True, False, False]
    relevant[1, 0] = True  # the same caption: now both are right
    assert hits(scores, relevant).tolist() == [True, True, False]


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "3e8467cb")
def test_reranking_equals_the_slow_loop(setup_b6e26629):
    Fixed, numbered = setup_b6e26629
    n, g = 23, torch.Generator().manual_seed(0)
    cosine, match = torch.randn(n, n, generator=g), torch.randn(n, n, generator=g)
    cosine += 2 * torch.eye(n)
    captions = [f"caption {i // 2 * 2 if i < 4 else i}" for i in range(n)]  # two pairs of equal captions
    found = gallery_hits(Fixed(cosine, match), numbered(n), numbered(n), captions, rerank=True)
    expected = []
    for c, m in ((cosine, match), (cosine.T, match.T)):
        for i in range(n):
            near = sorted(range(n), key=lambda j: -c[i, j])[:TOP]
            expected.append(captions[max(near, key=lambda j: m[i, j])] == captions[i])
    assert found["itm"].tolist() == expected and 0 < sum(expected) < len(expected)
    assert found["itc"].tolist() == [
        captions[int(row.argmax())] == captions[i] for c in (cosine, cosine.T) for i, row in enumerate(c)
    ]
    assert set(gallery_hits(Fixed(cosine, match), numbered(n), numbered(n), captions, rerank=False)) == {"itc"}


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "686c9789")
def test_a_recorded_row_is_not_trained_again():
    with tempfile.TemporaryDirectory() as folder:
        for board, row in (("albef", "full"), ("albef-whole", "whole")):
            save_json(result_path(Path(folder), board, {"row": row, "budget": "quick", "seed": 4}), {"kept": True})
        main(["--results", folder, "--seeds", "4", "--rows", "full", "whole"])  # would take minutes if it ran
        assert json.loads(Path(folder, "albef", "full-quick-s4.json").read_text()) == {"kept": True}
        with pytest.raises(SystemExit):
            main(["--rows", "unknown"])


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "04b51c94")
def test_needed():
    def needed(q1: float, qk: float) -> float:
        """The accuracy at which re-ranking k items equals the cosines."""
        return q1 / qk

    draw = np.random.default_rng(0)
    near = draw.random(200_000) < 0.9  # the right one is among the first k
    picked = near & (draw.random(200_000) < needed(0.6, 0.9))
    assert abs(picked.mean() - 0.6) < 0.01 and needed(0.5, 0.5) == 1


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "04b51c94")
def test_needed_starter_fails():
    def needed(q1: float, qk: float) -> float:
        """The accuracy at which re-ranking k items equals the cosines."""
        return q1

    with pytest.raises(Exception):
        draw = np.random.default_rng(0)
        near = draw.random(200_000) < 0.9  # the right one is among the first k
        picked = near & (draw.random(200_000) < needed(0.6, 0.9))
        assert abs(picked.mean() - 0.6) < 0.01 and needed(0.5, 0.5) == 1


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "e3400359")
def test_combined():
    def combined(cosine: Tensor, match: Tensor, near: Tensor, weight: float) -> Tensor:
        """Matching plus a weight times the cosine, where `near` is true."""
        return (match + weight * cosine).masked_fill(~near, -torch.inf)

    cosine, match = torch.tensor([[0.5, 0.4, 0.9]]), torch.tensor([[1.0, 1.1, 9.0]])
    near = torch.tensor([[True, True, False]])
    assert combined(cosine, match, near, 0).argmax().item() == 1  # the third is not near
    assert combined(cosine, match, near, 2).argmax().item() == 0  # the cosine tips the scale


@pytest.mark.nb("nbs/3_fusion/13a_align_before_fuse.ipynb", "e3400359")
def test_combined_starter_fails():
    def combined(cosine: Tensor, match: Tensor, near: Tensor, weight: float) -> Tensor:
        """Matching plus a weight times the cosine, where `near` is true."""
        return match + weight * cosine

    with pytest.raises(Exception):
        cosine, match = torch.tensor([[0.5, 0.4, 0.9]]), torch.tensor([[1.0, 1.1, 9.0]])
        near = torch.tensor([[True, True, False]])
        assert combined(cosine, match, near, 0).argmax().item() == 1  # the third is not near
        assert combined(cosine, match, near, 2).argmax().item() == 0  # the cosine tips the scale
