"""Generated from nbs/4_pretraining/19a_probing.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import PAD
from vlp_course.data.pairs import SceneSet
from vlp_course.downstream import DecoderReader
from vlp_course.evaluate import part
from vlp_course.finetune import linear_probe
from vlp_course.models.albef import build as build_albef
from vlp_course.models.blip import build as build_blip
from vlp_course.models.captioning import build as build_captioner
from vlp_course.models.clip import build as build_clip
from vlp_course.models.simvlm import build as build_simvlm
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.encoders import grid_tokens
from vlp_course.probe_tasks import CHOOSE
from vlp_course.probe_tasks import FIT
from vlp_course.probe_tasks import LEVELS
from vlp_course.probe_tasks import REPORT
from vlp_course.probe_tasks import probe_task
from vlp_course.probing import (
    PROBES,
    covered,
    picture_vectors,
    probe,
    reader_of,
    represent,
    right,
    scene_tokens,
    trunk_vectors,
)


@pytest.fixture(scope="module")
def setup_2cd4e873():
    def world(equal, items=600, seed=0):
        """Features of 5 dimensions, labels and parts; the class is a sign, or whether two signs are equal."""
        x = torch.randn(items, 5, generator=torch.Generator().manual_seed(seed))
        y = (x[:, 0] > 0) ^ (x[:, 1] > 0) if equal else x[:, 0] + x[:, 1] > 0
        return x, y.long().numpy(), np.arange(items) % 3

    return world


@pytest.fixture(scope="module")
def setup_93f6b7e2():
    COUNT = 108
    SCENES = SceneSet("test", COUNT, features=np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype(np.float32))
    BUILDS = {
        "clip": build_clip,
        "albef": build_albef,
        "blip": build_blip,
        "lm": build_captioner,
        "simvlm": build_simvlm,
    }

    def shaken(name):
        """A reader whose weights are away from their defaults."""
        model = reader_of(BUILDS[name](seed=0)).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        return model

    return BUILDS, COUNT, SCENES, shaken


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "66fa162c")
def test_lines_and_layers(setup_2cd4e873):
    world = setup_2cd4e873
    assert probe(*world(False), 2).hits.mean() > 0.97 and probe(*world(False), 2, "mlp").hits.mean() > 0.93
    assert probe(*world(True, 3000), 2).hits.mean() < 0.6 and probe(*world(True, 3000), 2, "mlp").hits.mean() > 0.85
    x, y, parts = world(False)
    assert len(probe(x, y, parts, 2).hits) == (parts == REPORT).sum()


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "901a4720")
def test_linear_probe_is_scikit_like(setup_2cd4e873):
    world = setup_2cd4e873
    """At the optimum the gradient vanishes: of the weights, and of the constants."""
    x, y, _ = world(False)
    x = x.double()
    head = linear_probe(x, torch.as_tensor(y), 2, 0.1)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    weight, bias = (
        (head.weight * deviation).detach().requires_grad_(),
        (head.bias + head.weight @ mean).detach().requires_grad_(),
    )
    loss = F.cross_entropy((x - mean) / deviation @ weight.T + bias, torch.as_tensor(y)) + 0.1 * weight.square().sum()
    assert all(g.abs().max() < 1e-4 for g in torch.autograd.grad(loss, (weight, bias)))


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "78640671")
def test_reported_items_never_choose(setup_2cd4e873):
    world = setup_2cd4e873
    for kind in PROBES:
        x, y, parts = world(True)
        before = probe(x, y, parts, 2, kind, seed=3)
        reported = parts == REPORT
        y[reported] = np.random.default_rng(1).permutation(y[reported])
        x = x.clone()
        x[torch.from_numpy(reported)] = 100 * torch.randn(int(reported.sum()), 5)
        after = probe(x, y, parts, 2, kind, seed=3)
        assert (before.choice, before.chosen) == (after.choice, after.chosen)
        assert all(a.equal(b) for a, b in zip(before.probe.state_dict().values(), after.probe.state_dict().values()))
        assert (before.hits != after.hits).any()
        y[parts == CHOOSE] = 1 - y[parts == CHOOSE]  # but the choosing part does choose
        assert probe(x, y, parts, 2, kind, seed=3).chosen != before.chosen


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "a5ba6650")
def test_a_choice_made_before(setup_2cd4e873):
    world = setup_2cd4e873
    for kind in PROBES:
        free = probe(*world(True), 2, kind, seed=1)
        bound = probe(*world(True), 2, kind, seed=1, only=free.choice)
        assert (free.choice, free.chosen) == (bound.choice, bound.chosen) and (free.hits == bound.hits).all()
        assert all(p.equal(q) for p, q in zip(free.probe.parameters(), bound.probe.parameters()))
        assert probe(*world(True), 2, kind, seed=1, only=2).choice == 2


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "57745e1b")
def test_seeds_draw_items_and_starts(setup_2cd4e873):
    world = setup_2cd4e873
    x, y, parts = world(True)
    for kind in PROBES:
        a, b, again = (probe(x, y, parts, 2, kind, seed) for seed in (0, 1, 0))
        assert all(p.equal(q) for p, q in zip(a.probe.parameters(), again.probe.parameters()))
        assert not all(p.equal(q) for p, q in zip(a.probe.parameters(), b.probe.parameters()))
    state = torch.get_rng_state()
    probe(x, y, parts, 2, "mlp")
    assert torch.get_rng_state().equal(state)


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "54f4a541")
def test_probes_complain(setup_2cd4e873):
    world = setup_2cd4e873
    x, y, parts = world(False)
    with pytest.raises(ValueError, match="unknown kind of probe 'svm': choose one of linear, mlp"):
        probe(x, y, parts, 2, "svm")
    with pytest.raises(ValueError, match="no items in part CHOOSE"):
        probe(x, y, np.where(parts == CHOOSE, FIT, parts), 2)


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "193201c3")
def test_equal_scores_are_errors():
    flat = nn.Linear(5, 2)
    nn.init.zeros_(flat.weight), nn.init.zeros_(flat.bias)
    assert not right(flat, torch.randn(7, 5), torch.zeros(7, dtype=torch.long)).any()


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "0b83e570")
def test_prefix_reader_reads_as_the_model_does(setup_93f6b7e2):
    _, _, SCENES, _ = setup_93f6b7e2
    whole = build_simvlm(seed=0).eval()
    with torch.no_grad():
        for p in whole.parameters():
            p.add_(0.2 * torch.randn_like(p))
    reader = reader_of(whole)
    text = reader.tokenize(["a big owl on a grey ground", "two cats"])
    image = reader.encode_image(SCENES.batch([0, 1]))
    fused = reader.fuse(image, reader.encode_text(text))
    prefix = text.ids.where(text.ids != EOS, PAD)
    memory, real = whole.core.encode(prefix, image.tokens, image.mask)
    assert (
        fused.tokens.shape[1] == text.ids.shape[1] and fused.mask.sum().item() == text.mask.sum().item() - 2
    )  # two [EOS] less
    for i in range(2):
        rows = memory[i, 16:][fused.mask[i]]
        torch.testing.assert_close(fused.pooled[i], rows.mean(0), rtol=1e-5, atol=1e-5)
    alone = reader.fuse(Tokens(*(x[1:] for x in image)), reader.encode_text(reader.tokenize(["two cats"])))
    torch.testing.assert_close(fused.pooled[1], alone.pooled[0], rtol=1e-5, atol=1e-5)  # padding counts for nothing
    assert reader_of(reader) is reader and isinstance(reader_of(build_captioner()), DecoderReader)


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "c338c4f2")
def test_covered_words():
    model = build_clip()
    text = covered(model, ["a big [MASK] star", "a cat"])
    plain = model.tokenize(["a big a star", "a cat"])
    assert text.ids[0, 3] == MASK and (text.ids != plain.ids).sum() == 1 and text.mask.equal(plain.mask)


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "54e21d13")
def test_vectors_by_a_slow_twin(setup_93f6b7e2):
    BUILDS, COUNT, SCENES, shaken = setup_93f6b7e2
    from unittest import mock

    tasks = {name: probe_task(name, COUNT) for name in ("colour", "size", "order", "speech")}
    with mock.patch(f"{represent.__module__}.native_bf16", lambda: False), torch.no_grad():
        for name in BUILDS:
            model = shaken(name)
            images = scene_tokens(model, SCENES)
            for task in tasks.values():
                for matched in (True, False):
                    fast, language = represent(model, task, images, matched, size=7), LEVELS[task.name] == "language"
                    for i in np.random.default_rng(2).choice(len(task.texts), 4, replace=False):
                        image = part(images, [COUNT if language else int(task.pictures(matched)[i])])
                        text = covered(model, [task.texts[i]])
                        if hasattr(model, "fuse"):
                            out = model.fuse(image, model.encode_text(text))
                        else:
                            out = model.encode_text(text)
                            a, b = (F.layer_norm(v.pooled, v.pooled.shape[-1:]) for v in (image, out))
                            out = out if language else out._replace(pooled=torch.cat([a, b, a * b], 1))
                        word = task.name == "speech" or task.name == "colour" and name != "clip"
                        place = task.places[i] + 1 - (name == "lm" and task.name == "colour")
                        torch.testing.assert_close(
                            fast[i], (out.tokens[:, place] if word else out.pooled)[0], rtol=1e-4, atol=1e-4
                        )


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "254d1ec2")
def test_controls_change_what_they_should(setup_93f6b7e2):
    BUILDS, COUNT, SCENES, shaken = setup_93f6b7e2
    with torch.no_grad():
        for name in BUILDS:
            model = shaken(name)
            images = scene_tokens(model, SCENES)
            for task in (probe_task("size", COUNT), probe_task("order", COUNT)):
                a, b = (represent(model, task, images, matched) for matched in (True, False))
                assert a.equal(b) == (LEVELS[task.name] == "language")


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "ecc354dd")
def test_pictures_alone(setup_93f6b7e2):
    _, COUNT, SCENES, shaken = setup_93f6b7e2
    images = scene_tokens(shaken("albef"), SCENES)
    assert len(images.pooled) == COUNT + 1
    at = np.array([5, 2, 2])
    torch.testing.assert_close(picture_vectors(images, at), images.tokens[at].float().mean(1))
    torch.testing.assert_close(picture_vectors(images, at, pooled=True), images.pooled[at].float())
    cells = grid_tokens(torch.from_numpy(SCENES.features[at]))
    torch.testing.assert_close(trunk_vectors(SCENES.features, at), cells.mean(1))


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "14f2798c")
def test_flattery():
    def flattery(candidates, items, generator):
        """Mean share of right answers of the best of several coins."""
        return generator.integers(2, size=(300, candidates, items)).mean(2).max(1).mean()

    few, many = (flattery(20, items, np.random.default_rng(0)) for items in (200, 2000))
    assert (
        0.55 < few < 0.58
        and 0.515 < many < 0.525
        and flattery(1, 200, np.random.default_rng(0)) == pytest.approx(0.5, abs=0.01)
    )


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "14f2798c")
def test_flattery_starter_fails():
    def flattery(candidates, items, generator):
        """Mean share of right answers of the best of several coins."""
        return generator.integers(2, size=(300, candidates, items)).mean()

    with pytest.raises(Exception):
        few, many = (flattery(20, items, np.random.default_rng(0)) for items in (200, 2000))
        assert (
            0.55 < few < 0.58
            and 0.515 < many < 0.525
            and flattery(1, 200, np.random.default_rng(0)) == pytest.approx(0.5, abs=0.01)
        )


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "c8d7906b")
def test_control_labels():
    def control_labels(words, classes, seed=0):
        """A random class for each word, the same wherever it stands."""
        names, place = np.unique(words, return_inverse=True)
        return np.random.default_rng(seed).integers(classes, size=len(names))[place]

    words = ["a", "cat", "a", "dog", "cat", *map(str, range(50))]
    labels = control_labels(words, 6)
    assert (
        labels[0] == labels[2]
        and labels[1] == labels[4]
        and set(labels) == set(range(6))
        and (control_labels(words, 6, 1) != labels).any()
    )


@pytest.mark.nb("nbs/4_pretraining/19a_probing.ipynb", "c8d7906b")
def test_control_labels_starter_fails():
    def control_labels(words, classes, seed=0):
        """A random class for each word, the same wherever it stands."""
        return np.random.default_rng(seed).integers(classes, size=len(words))

    with pytest.raises(Exception):
        words = ["a", "cat", "a", "dog", "cat", *map(str, range(50))]
        labels = control_labels(words, 6)
        assert (
            labels[0] == labels[2]
            and labels[1] == labels[4]
            and set(labels) == set(range(6))
            and (control_labels(words, 6, 1) != labels).any()
        )
