"""Generated from nbs/5_prompting/28a_alpro.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import math
import pytest
import torch
import torch.nn.functional as F
from vlp_course.data.clip_sets import Clips
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import CLIP
from vlp_course.models.fusion import SingleStream
from vlp_course.nn.backbone import unpack
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.models.alpro import (
    ALPRO,
    Aligner,
    SHAPES,
    TEMPLATES,
    blank_features,
    crop,
    draw_cells,
    pem_loss,
    prompter_of,
    vtc_loss,
)


@pytest.fixture(scope="module")
def setup_fd237327():
    def toys(dim=8, seed=0):
        """A small single stream, a small CLIP, and a batch of four clips of two frames."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary("a picture of cat dog owl on white ground one can see rolling left moving".split())
        towers = lambda: (ImageEncoder(dim, 2), TextEncoder(torch.randn(len(vocabulary), dim), 2))
        single = SingleStream(*towers(), MergedEncoder(dim, 2, 1), vocabulary, 10, dim=dim)
        clip = CLIP(*towers(), vocabulary, dim)
        captions = [
            "a cat rolling left",
            "a dog moving left",
            "a owl rolling left on a white ground",
            "a cat moving left",
        ]
        batch = Clips(
            torch.randn(4, 2, 12288),
            captions,
            vocabulary.tokenize(captions),
            torch.arange(4),
            torch.arange(4),
            ["cat", "dog", "owl", "cat"],
        )
        return single, clip, batch

    return toys


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "bada5b49")
def test_rectangles_of_six_or_eight_cells():
    cells = draw_cells(400, torch.Generator().manual_seed(0)).unflatten(1, (4, 4))
    seen = set()
    for grid in cells:
        rows, columns = grid.any(1).nonzero()[:, 0], grid.any(0).nonzero()[:, 0]
        assert grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and grid.sum() == len(rows) * len(
            columns
        )  # full rectangles
        seen.add((len(rows), len(columns)))
    assert (
        seen == set(SHAPES)
        and all(0.3 <= h * w / 16 <= 0.5 and 0.3 <= h / w <= 3.3 for h, w in SHAPES)
        and (cells.float().mean(0) > 0.15).all()
    )


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "d3a8472d")
def test_a_crop_keeps_its_cells():
    g = torch.Generator().manual_seed(1)
    features, cells = torch.randn(2, 3, 12288, generator=g), draw_cells(2, g)
    blank = torch.randn(12288, generator=g)
    parts = [
        tuple(x.unflatten(0, (-1, 1 if k == 2 else 3)) for x in unpack(y))
        for k, y in enumerate((crop(features, cells, blank).flatten(0, 1), features.flatten(0, 1), blank[None]))
    ]
    for b in range(2):
        for c in range(16):
            y, x = divmod(c, 4)
            for part, whole, empty, k in zip(*parts, (2, 1)):
                place = (slice(None), slice(k * y, k * y + k), slice(k * x, k * x + k))
                for frame in range(3):
                    torch.testing.assert_close(
                        part[b, frame][place], whole[b, frame][place] if cells[b, c] else empty[0, 0][place]
                    )


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "0362164b")
def test_soft_cross_entropy_and_who_is_dropped():
    labels = torch.tensor([[0.7, 0.2, 0.1], [0.19, 0.41, 0.40], [1 / 3, 1 / 3, 1 / 3]])
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [5.0, -5.0, 0.0]])
    log_p = logits.log_softmax(1)
    each = [
        -(0.7 * log_p[0, 0] + 0.2 * log_p[0, 1] + 0.1 * log_p[0, 2]),
        -(0.19 * log_p[1, 0] + 0.41 * log_p[1, 1] + 0.40 * log_p[1, 2]),
    ]
    assert pem_loss(logits, labels, 0.4).item() == pytest.approx(float(sum(each)) / 2) and pem_loss(
        logits, labels, 0.5
    ).item() == pytest.approx(float(each[0]))
    assert pem_loss(logits, labels, 0.8) == 0
    by_index = labels.argmax(1) >= 0.2  # what the authors' code compares
    assert by_index.tolist() == [
        False,
        True,
        False,
    ]  # it drops the surest crop, whose best entity is the first of the list


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "42fb442d")
def test_labels_are_the_slow_ones(setup_fd237327):
    toys = setup_fd237327

    def by_hand(crop_vector, prompts, scale):
        means = [sum(v / v.norm() for v in own) / len(own) for own in prompts]
        scores = torch.stack([scale * crop_vector @ m / (crop_vector.norm() * m.norm()) for m in means])
        return scores.exp() / scores.exp().sum()

    _, clip, batch = toys()
    aligner = Aligner(clip, frames=2)
    names = ["cat", "dog", "owl"]
    prompter = prompter_of(aligner, names)
    assert torch.allclose(prompter.entities.norm(dim=1), torch.ones(3), atol=1e-6)
    where = draw_cells(4, torch.Generator().manual_seed(2))
    found = prompter.labels(batch.features, where)
    with torch.no_grad():
        prompts = [aligner.encode_text(aligner.tokenize([t.format(n) for t in TEMPLATES])) for n in names]
        vectors = aligner.encode_video(crop(batch.features, where, blank_features())).pooled
        torch.testing.assert_close(
            F.normalize(aligner.shares(batch.features).sum(1), dim=-1),
            aligner.encode_video(batch.features).pooled,
            rtol=1e-4,
            atol=1e-5,
        )
    for label, vector in zip(found, vectors):
        torch.testing.assert_close(
            label, by_hand(vector, prompts, aligner.logit_scale.exp().item()), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match=r"template 'a cat' has no \{\} for the name of an entity"):
        aligner.entities(names, ("a cat",))


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "e28b9e0a")
def test_contrast_by_hand():
    video, text = (
        F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(3)), dim=1),
        F.normalize(torch.randn(3, 5, generator=torch.Generator().manual_seed(4)), dim=1),
    )
    logits = 10 * video @ text.T
    by_rows = sum(-logits.log_softmax(1)[i, i] - logits.log_softmax(0)[i, i] for i in range(3)) / 6
    torch.testing.assert_close(vtc_loss(video, text, torch.tensor(math.log(10.0)), ["a", "b", "c"]), by_rows)
    assert (
        vtc_loss(video, text, torch.tensor(math.log(10.0)), ["a", "b", "a"]) < by_rows
    )  # an equal caption is no negative


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "322da5b2")
def test_where_gradients_go_and_do_not(setup_fd237327):
    toys = setup_fd237327
    single, clip, batch = toys()
    prompter = prompter_of(Aligner(clip, frames=2), ["cat", "dog", "owl"])
    kept = {n: p.clone() for n, p in prompter.aligner.state_dict().items()}
    model = ALPRO(clip, single, prompter, frames=2, sure=0.0)
    losses, _ = model(batch, step=0, generator=torch.Generator().manual_seed(5))
    assert set(losses) == {"vtc", "vtm", "mlm", "pem"}
    losses["pem"].backward()
    assert (
        model.video_encoder.project.weight.grad.abs().sum() > 0
        and model.entity_head[0].weight.grad.abs().sum() > 0
        and model.itm.weight.grad is None
    )
    assert model.text_encoder.embed.weight.grad.abs().sum() > 0  # the fused cells have read the caption
    assert all(torch.equal(p, kept[n]) for n, p in prompter.aligner.state_dict().items()) and not any(
        p.requires_grad for p in prompter.aligner.parameters()
    )
    assert not any("aligner" in n or "prompter" in n for n, _ in model.named_parameters())
    single_before = copy.deepcopy(single.state_dict())
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(model(batch, step=1, generator=torch.Generator().manual_seed(6)).losses.values()).backward(), optimiser.step()
    assert all(torch.equal(p, kept[n]) for n, p in prompter.aligner.state_dict().items())  # after a step, too
    assert all(
        torch.equal(p, single_before[n]) for n, p in single.state_dict().items()
    )  # the base is copied, not shared
    without = ALPRO(clip, single, None, entities=3, frames=2)
    assert set(without(batch, step=0, generator=torch.Generator()).losses) == {"vtc", "vtm", "mlm"}
    model.logit_scale.data.fill_(100.0)
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(1000, rel=1e-4)
    model.logit_scale.data.fill_(-3.0)
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(2, rel=1e-4)  # temperature 0.5


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "97271ded")
def test_regions_are_means_of_their_cells(setup_fd237327):
    toys = setup_fd237327
    single, clip, batch = toys()
    model = ALPRO(clip, single, None, entities=3, frames=2)
    cells, where = torch.randn(4, 32, 8), draw_cells(4, torch.Generator().manual_seed(7))
    for b, found in enumerate(model.region(cells, where)):
        mine = [cells[b, 16 * frame + c] for frame in range(2) for c in range(16) if where[b, c]]
        torch.testing.assert_close(found, torch.stack(mine).mean(0))


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "56782c36")
def test_all_four_losses_fall(setup_fd237327):
    toys = setup_fd237327
    single, clip, batch = toys()
    model = ALPRO(clip, single, prompter_of(Aligner(clip, frames=2), ["cat", "dog", "owl"]), frames=2, sure=0.0)
    optimiser, seen = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for step in range(40):
        losses = model(
            batch, step=step, generator=torch.Generator().manual_seed(8)
        ).losses  # the same draws in every step
        optimiser.zero_grad(), sum(losses.values()).backward(), optimiser.step()
        seen.append({k: v.item() for k, v in losses.items()})
    assert all(seen[-1][k] < seen[0][k] - 0.05 for k in ("vtc", "vtm", "mlm")) and seen[-1]["pem"] < seen[0]["pem"]


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "f60652e8")
def test_mean_length():
    def mean_length(degrees):
        return math.cos(math.radians(degrees) / 2)

    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 3**0.5 / 2])
    assert mean_length(60) == pytest.approx(((a + b) / 2).norm().item()) and mean_length(0) == 1


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "f60652e8")
def test_mean_length_starter_fails():
    def mean_length(degrees):
        return 1.0

    with pytest.raises(Exception):
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 3**0.5 / 2])
        assert mean_length(60) == pytest.approx(((a + b) / 2).norm().item()) and mean_length(0) == 1


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "10a37e24")
def test_hard():
    def hard(labels, sure):
        return F.one_hot(labels.argmax(1), labels.shape[1]).float() * (labels.amax(1, keepdim=True) >= sure)

    assert hard(torch.tensor([[0.6, 0.4], [0.5, 0.5]]), 0.55).tolist() == [[1, 0], [0, 0]]


@pytest.mark.nb("nbs/5_prompting/28a_alpro.ipynb", "10a37e24")
def test_hard_starter_fails():
    def hard(labels, sure):
        return F.one_hot(labels.argmax(1), labels.shape[1]).float()

    with pytest.raises(Exception):
        assert hard(torch.tensor([[0.6, 0.4], [0.5, 0.5]]), 0.55).tolist() == [[1, 0], [0, 0]]
