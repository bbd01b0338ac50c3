"""Generated from nbs/3_fusion/10e_downstream.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import torch
from dataclasses import replace
from pathlib import Path
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import SceneSet
from vlp_course.data.questions import ANSWERS
from vlp_course.data.questions import questions
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.models.captioning import Captioner
from vlp_course.models.captioning import build as build_captioner
from vlp_course.models.clip import build as build_clip
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.backbone import scene_features
from vlp_course.nn.encoders import Tokens
from vlp_course.downstream import (
    Answerer,
    DecoderReader,
    RATES,
    RATE_SEED,
    TASKS,
    best_rate,
    finetune,
    main,
    pretrained,
    row_and_control,
    score,
    task_set,
)


@pytest.fixture(scope="module")
def setup_335d3324():
    def small(task, blind=False):
        """A task over the first 24 test scenes."""
        return task_set(task, "test", blind, count=24)

    return small


@pytest.fixture(scope="module")
def setup_f2eeb157():
    def pictures(count, seed=0):
        """Random features of some pictures."""
        return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))

    return pictures


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "ccdf1e20")
def test_items_are_those_of_02g(setup_335d3324):
    small = setup_335d3324
    data = small("vqa")
    asked = [(i, *q) for i in range(24) for q in questions("test", 0, i)]
    assert [
        (int(i), slot, text, ANSWERS[a])
        for (i,), slot, text, a in zip(data.scenes, data.slots, data.texts, data.answers)
    ] == asked
    data = small("nlvr")
    assert data.scenes.shape == (len(data.texts), 2) and (data.scenes[:, 0] // 3 == data.scenes[:, 1] // 3).all()
    assert np.mean(small("entailment").answers) == 0.5 and len(small("entailment").texts) == 48
    first = task_set("vqa", "test", most=3, count=24)
    assert max(first.slots.count(slot) for slot in set(first.slots)) == 3 and first.texts[:4] == small("vqa").texts[:4]


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "61a63511")
def test_batches(setup_335d3324):
    small = setup_335d3324
    data, rows = small("nlvr"), np.array([2, 0, 5])
    batch, blind = data.batch(rows), small("nlvr", blind=True).batch(rows)
    features = scene_features(SceneSet("test", 24))
    for found, column in zip((batch.features, *batch.targets["more"]), data.scenes[rows].T):
        assert found.equal(torch.from_numpy(features[column].astype(np.float32)))
    assert not blind.features.any() and not blind.targets["more"][0].any() and blind.caption == batch.caption
    assert (
        batch.targets["answer"].tolist() == data.answers[rows].tolist()
        and small("vqa").batch(rows).targets["more"] == []
    )


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "88a0925a")
def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'vcr': choose one of vqa, entailment, nlvr"):
        task_set("vcr", "test", count=24)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "05097f9d")
def test_states_are_the_decoders(setup_f2eeb157):
    pictures = setup_f2eeb157
    captioner = build_captioner(seed=0).eval()
    with torch.no_grad():
        for p in captioner.parameters():
            p.add_(0.2 * torch.randn_like(p))  # default weights would hide a lost term
    texts = ["a small owl left of a big red star on a grey ground", "two big cats on a white ground"]
    text, decoder = captioner.tokenize(texts), captioner.decoder
    batch = Pairs(None, [], None, torch.zeros(2, dtype=torch.long), pictures(2))
    want = decoder(text.ids, captioner.encode_image(batch).tokens)
    reader = DecoderReader(captioner)
    ids = reader.tokenize(texts)
    assert ids.ids.equal(text.ids)  # the words keep their numbers
    states = reader.fuse(reader.encode_image(batch), reader.encode_text(ids)).tokens
    found = states @ decoder.embed.weight.T * states.shape[-1] ** -0.5 + decoder.bias
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "b51653f8")
def test_pooled_is_the_state_of_eos_whatever_the_padding(setup_f2eeb157):
    pictures = setup_f2eeb157
    reader = DecoderReader(build_captioner(seed=0)).eval()
    image = reader.encode_image(Pairs(None, [], None, torch.zeros(2, dtype=torch.long), pictures(2)))
    texts = ["where can you see the owl", "what number of owls can you see in the picture"]
    together = reader.tokenize(texts)
    fused = reader.fuse(image, reader.encode_text(together))
    assert together.ids[0, together.mask[0].sum() - 1] == EOS and together.ids[0, 0] == CLS
    alone = reader.fuse(Tokens(*(x[:1] for x in image)), reader.encode_text(reader.tokenize(texts[:1])))
    torch.testing.assert_close(fused.pooled[0], alone.pooled[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.pooled[1], fused.tokens[1, -1], rtol=0, atol=0)
    assert (
        reader.fuse(image._replace(tokens=image.tokens.flip(0)), reader.encode_text(together)).pooled - fused.pooled
    ).abs().max() > 1e-3


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "27e8090c")
def test_two_towers_are_joined_by_hand():
    answerer = Answerer(build_clip(), 7)
    image, text = (
        Tokens(torch.tensor([v]), torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))
        for v in ([1.0, 3.0, 1.0, 3.0], [0.0, 0.0, 5.0, 5.0])
    )
    want = torch.tensor([[-1.0, 1, -1, 1, -1, -1, 1, 1, 1, -1, -1, 1]])  # normalised, and their product
    torch.testing.assert_close(answerer.joined(image, text), want, rtol=1e-4, atol=1e-4)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "d36bb73d")
def test_order_of_the_two_pictures_counts(setup_335d3324):
    small = setup_335d3324
    torch.manual_seed(0)
    for model in (build_clip(), build_captioner()):
        answerer, data = Answerer(model, 2, pictures=2).eval(), small("nlvr")
        batch = data.batch(np.arange(5), answerer.tokenize)
        (second,) = batch.targets["more"]
        turned = replace(batch, features=second, targets=batch.targets | {"more": [batch.features]})
        text = answerer.model.encode_text(batch.text)
        parts = [
            answerer.joined(answerer.model.encode_image(replace(batch, features=f)), text)
            for f in (batch.features, second)
        ]
        torch.testing.assert_close(answerer.scores(batch), answerer.head(torch.cat(parts, 1)))
        torch.testing.assert_close(answerer.scores(turned), answerer.head(torch.cat(parts[::-1], 1)))
        assert (answerer.scores(turned) - answerer.scores(batch)).abs().max() > 1e-4


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "8468d995")
def test_everything_is_trained(setup_335d3324):
    small = setup_335d3324
    pool = {f"model.image_encoder.pool.score.{name}" for name in ("weight", "bias")}  # a decoder reads the tokens
    for model, idle in ((build_clip(), {"model.logit_scale"}), (build_captioner(), pool)):
        answerer = Answerer(model, TASKS["vqa"])
        loss = answerer(
            small("vqa").batch(np.arange(9), answerer.tokenize), step=0, generator=torch.Generator()
        ).losses["answer"]
        loss.backward()
        still = {
            name for name, p in answerer.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
        }
        assert still == idle and loss.isfinite()


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "f931b54d")
def test_a_few_items_are_learned_by_heart(setup_335d3324):
    small = setup_335d3324
    data = small("entailment")
    data = replace(
        data,
        scenes=data.scenes.repeat(2, 0),
        texts=[x for x in data.texts for _ in range(2)],
        answers=data.answers.repeat(2),
        slots=["a"] * 32 + ["b"] * 64,
    )
    run = finetune(build_clip(), "entailment", 40, data=data, progress=False)
    scores = score(run.model, data)
    assert run.losses["answer"][-1] < 0.4 < run.losses["answer"][0] and scores["all"] > 0.9
    assert scores["mean"] == pytest.approx((scores["a"] + scores["b"]) / 2) and scores["all"] == pytest.approx(
        (32 * scores["a"] + 64 * scores["b"]) / 96
    )


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "7e79d21a")
def test_an_undecided_model_scores_nothing(setup_335d3324):
    small = setup_335d3324
    answerer = Answerer(build_clip(), 2)
    with torch.no_grad():
        [p.zero_() for p in answerer.head.parameters()]
    assert score(answerer, small("entailment")) == {"statements": 0, "mean": 0, "all": 0}


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "4323e51a")
def test_lines_by_name():
    assert row_and_control("clip") == ("clip", "") and row_and_control("clip-blind") == ("clip", "blind")
    assert row_and_control("clip-from-scratch") == ("clip-from-scratch", "") and row_and_control("lm-untrained") == (
        "lm",
        "untrained",
    )
    model, cost = pretrained("lm-untrained", 3, Path("nowhere"))
    assert cost == {"steps": 0, "cpu_s": 0.0} and isinstance(model, Captioner)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "cf9a2159")
def test_rates_and_recorded_lines_are_read():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for lr, mean in zip(RATES, (0.4, 0.6, 0.5)):
            save_json(
                result_path(
                    Path(folder), "downstream-rates", {"row": f"clip-vqa@{lr:g}", "budget": "quick", "seed": RATE_SEED}
                ),
                {"metrics": {"vqa/mean": mean}, "config": {"lr": lr}},
            )
        assert (
            best_rate("clip-blind", Path(folder), Path("nowhere"))
            == best_rate("clip", Path(folder), Path("nowhere"))
            == 1e-3
        )
        done = result_path(Path(folder), "downstream", {"row": "clip-vqa", "budget": "quick", "seed": 4})
        save_json(done, {"kept": True})
        main(
            ["--rows", "clip", "--seeds", "4", "--tasks", "vqa", "--results", folder, "--runs", "nowhere"]
        )  # nothing is trained
        assert json.loads(done.read_text()) == {"kept": True} and not Path("nowhere").exists()


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "c128e573")
def test_parts():
    def parts(pretrained, untrained, blind):
        """(free, fine-tuning, pretraining, share of what is not free that pretraining brought)."""
        return blind, untrained - blind, pretrained - untrained, (pretrained - untrained) / (pretrained - blind)

    assert parts(0.8, 0.5, 0.2) == pytest.approx((0.2, 0.3, 0.3, 0.5)) and sum(
        parts(0.7, 0.4, 0.3)[:3]
    ) == pytest.approx(0.7)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "c128e573")
def test_parts_starter_fails():
    def parts(pretrained, untrained, blind):
        """(free, fine-tuning, pretraining, share of what is not free that pretraining brought)."""
        return blind, untrained, pretrained, pretrained / (untrained + pretrained)

    with pytest.raises(Exception):
        assert parts(0.8, 0.5, 0.2) == pytest.approx((0.2, 0.3, 0.3, 0.5)) and sum(
            parts(0.7, 0.4, 0.3)[:3]
        ) == pytest.approx(0.7)


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "dd1092ca")
def test_product():
    def best_linear(features, y):
        """Accuracy of the least-squares classifier; a zero is an error."""
        x = np.column_stack([features, np.ones(len(y))])
        guess = x @ np.linalg.lstsq(x, y, rcond=None)[0]
        return np.mean((guess * y) > 1e-9)

    i, t = np.array([-1, -1, 1, 1.0]), np.array([-1, 1, -1, 1.0])
    assert best_linear(np.column_stack([i, t]), i * t) == 0 and best_linear(np.column_stack([i, t, i * t]), i * t) == 1


@pytest.mark.nb("nbs/3_fusion/10e_downstream.ipynb", "dd1092ca")
def test_product_starter_fails():
    def best_linear(features, y):
        """Accuracy of the least-squares classifier; a zero is an error."""
        return max(np.mean(y > 0), np.mean(y < 0))  # looks at no feature

    with pytest.raises(Exception):
        i, t = np.array([-1, -1, 1, 1.0]), np.array([-1, 1, -1, 1.0])
        assert (
            best_linear(np.column_stack([i, t]), i * t) == 0 and best_linear(np.column_stack([i, t, i * t]), i * t) == 1
        )
