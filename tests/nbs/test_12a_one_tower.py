"""Generated from nbs/3_fusion/12a_one_tower.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from unittest.mock import patch
from vlp_course.data.grammar import grammar_words
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as build_clip
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.fusion import CoAttentionEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.objectives import same_caption
from vlp_course.objectives_fused import hard_negatives
from vlp_course.objectives_fused import itm_loss
from vlp_course.objectives_fused import itm_plateau
from vlp_course.objectives_fused import mask_words
from vlp_course.rows import row_of
from vlp_course.models.fusion import (
    BlindStream,
    CoAttention,
    OneTower,
    SingleStream,
    build_blind,
    build_coattn,
    build_single,
    rows_of,
)


@pytest.fixture(scope="module")
def setup_954044e0():
    def slow_losses(model, batch, wrong, asked, covered, chosen):
        one = lambda tokens, i: Tokens(*(x[int(i) : int(i) + 1] for x in tokens))
        image, text, hidden = model.encode_image(batch), model.encode_text(batch.text), model.encode_text(covered)
        answer = lambda i, j: model.itm(model.fuse(one(image, i), one(text, j)).pooled)[0].log_softmax(
            0
        )  # log (no, yes)
        itm = [-answer(i, i)[1] - answer(wrong.image[i], i)[0] - answer(i, wrong.text[i])[0] for i in asked]
        mlm = []
        for i, t in chosen.nonzero().tolist():
            state = model.fuse(one(image, i), one(hidden, i)).tokens[0, t]
            mlm.append(-model.head(state, model.text_encoder.embed.weight).log_softmax(0)[batch.text.ids[i, t]])
        return {"itm": sum(itm) / (3 * len(itm)), "mlm": sum(mlm) / len(mlm)}

    return slow_losses


@pytest.fixture(scope="module")
def setup_6c29f7e3():
    WORDS = [f"w{i}" for i in range(9)]

    def toy(kind=SingleStream, fusion=MergedEncoder, seed=0, **options):
        torch.manual_seed(seed)
        vocabulary = Vocabulary([*WORDS, "other"])
        return kind(
            ImageEncoder(12, 3),
            TextEncoder(torch.randn(len(vocabulary), 12), 3),
            fusion(12, 3),
            vocabulary,
            14,
            12,
            **options,
        ).double()

    def toy_batch(captions, seed=1):
        torch.manual_seed(seed)
        text = Vocabulary([*WORDS, "other"]).tokenize(captions)
        return Pairs(
            None,
            list(captions),
            text,
            torch.arange(len(captions)),
            torch.randn(len(captions), 12288, dtype=torch.float64),
        )

    def run(model, batch, seed=3):
        return model(batch, step=0, generator=torch.Generator().manual_seed(seed)).losses

    return run, toy, toy_batch


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "57807c5f")
def test_losses_equal_a_loop(setup_6c29f7e3, setup_954044e0):
    run, toy, toy_batch = setup_6c29f7e3
    slow_losses = setup_954044e0
    for kind, fusion in ((SingleStream, MergedEncoder), (CoAttention, CoAttentionEncoder)):
        model, batch = toy(kind, fusion), toy_batch(["w0 w1", "w2 w3 w4 w5", "w6", "w7 w8 w0", "w1 w1 w2"])
        generator, right = torch.Generator().manual_seed(3), same_caption(batch.caption)  # the same draws again
        wrong = hard_negatives(torch.zeros(5, 5), right, generator)
        asked = torch.randperm(5, generator=generator)[:2]
        covered, chosen = mask_words(batch.text, 14, 0.5, generator)
        found, slow = run(model, batch), slow_losses(model, batch, wrong, asked, covered, chosen)
        torch.testing.assert_close(found["itm"], slow["itm"])
        torch.testing.assert_close(found["mlm"], slow["mlm"])


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "1047ceb6")
def test_the_same_caption_is_no_negative(setup_6c29f7e3):
    run, toy, toy_batch = setup_6c29f7e3
    model, drawn = toy(asked=1), []
    batch = toy_batch(["w0 w1", "w0 w1", "w2", "w0 w1"])
    with patch.object(
        model, "losses", lambda image, texts, ids, wrong, asked, chosen: drawn.append((wrong, asked)) or {}
    ):
        for seed in range(20):
            run(model, batch, seed)
    for wrong, asked in drawn:
        assert (
            all(wrong.text[i] == 2 and wrong.image[i] == 2 for i in (0, 1, 3))
            and wrong.text[2] != 2
            and sorted(asked.tolist()) == [0, 1, 2, 3]
        )
    assert {int(wrong.text[2]) for wrong, _ in drawn} == {0, 1, 3}
    with pytest.raises(ValueError, match="item 0 of a batch of 2 has no wrong partner to draw"):
        run(model, toy_batch(["w0 w1", "w0 w1"]))


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "0b648820")
def test_who_learns_what(setup_6c29f7e3):
    run, toy, toy_batch = setup_6c29f7e3
    model, batch = toy(), toy_batch(["w0 w1", "w2 w3", "w4 w5", "w6 w7"])
    losses, reached = run(model, batch), {}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        reached[name] = {
            part
            for (key, _), g in zip(model.named_parameters(), grads)
            if g is not None and g.abs().max() > 0
            for part in [key.split(".")[0]]
        }
    assert reached["itm"] == {"image_encoder", "text_encoder", "fusion", "itm"}
    assert reached["mlm"] == {"image_encoder", "text_encoder", "fusion", "head"}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert run(model, batch) == run(model, batch) and all(v.equal(before[k]) for k, v in model.state_dict().items())


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "d57e75c7")
def test_match_and_similarity(setup_6c29f7e3):
    _, toy, toy_batch = setup_6c29f7e3
    model, batch = toy(CoAttention, CoAttentionEncoder).float(), toy_batch(["w0 w1", "w2 w3 w4 w5", "w6"])
    batch.features = batch.features.float()
    with torch.no_grad():
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        table = model.similarity(image, rows_of(text, torch.tensor([2, 0])))
        for i in range(3):
            for j, t in enumerate((2, 0)):
                one = model.match(rows_of(image, torch.tensor([i])), rows_of(text, torch.tensor([t])))
                torch.testing.assert_close(table[i, j], one[0], rtol=0, atol=2e-2)  # bfloat16 where it is native
    assert table.shape == (3, 2) and table.dtype == torch.float32 and table.std() > 0


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "53c3bd26")
def test_the_blind_sees_nothing(setup_6c29f7e3):
    run, toy, toy_batch = setup_6c29f7e3
    blind, seeing = toy(BlindStream), toy()
    batch, other = toy_batch(["w0 w1", "w2 w3", "w4 w5"]), toy_batch(["w0 w1", "w2 w3", "w4 w5"], seed=2)
    assert run(blind, batch) == run(blind, other)
    assert (
        run(seeing, batch)["mlm"] != run(seeing, other)["mlm"]
        and run(seeing, batch)["itm"] != run(seeing, other)["itm"]
    )


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "df9792e5")
def test_towers_are_the_boards():
    single, coattn, clip = build_single(3), build_coattn(3), build_clip(seed=3)
    for model in (single, coattn, build_blind(3)):
        for tower in ("image_encoder", "text_encoder"):
            assert all(
                a.equal(b)
                for a, b in zip(getattr(model, tower).parameters(), getattr(clip, tower).parameters(), strict=True)
            )
    assert len(single.head.bias) == len(Vocabulary(grammar_words())) < len(single.vocabulary)
    assert all(
        row_of(name).builder == f"fusion:build_{end}"
        for name, end in (("single", "single"), ("coattn", "coattn"), ("single-blind", "blind"))
    )


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "10b1b5e8")
def test_vilt_plateau():
    def vilt_plateau() -> float:
        return itm_plateau(1)  # as many wrong as right: ln 2

    answers = torch.tensor([0.5, 0.5]).log().expand(1000, 2)
    assert (
        vilt_plateau()
        == pytest.approx(itm_loss(answers[:500], answers[500:]).item())
        == pytest.approx(0.6931, abs=1e-4)
    )


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "10b1b5e8")
def test_vilt_plateau_starter_fails():
    def vilt_plateau() -> float:
        return itm_plateau()

    with pytest.raises(Exception):
        answers = torch.tensor([0.5, 0.5]).log().expand(1000, 2)
        assert (
            vilt_plateau()
            == pytest.approx(itm_loss(answers[:500], answers[500:]).item())
            == pytest.approx(0.6931, abs=1e-4)
        )


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "3d6b705b")
def test_word_match(setup_6c29f7e3):
    _, toy, toy_batch = setup_6c29f7e3

    def word_match(model, image, text):
        total = 0.0
        for t, i in enumerate(text.ids[0].tolist()):
            if i > MASK:
                ids = text.ids.clone()
                ids[0, t] = MASK
                state = model.fuse(image, model.encode_text(Tokenized(ids, text.mask))).tokens[0, t]
                total = total + model.head(state, model.text_encoder.embed.weight).log_softmax(-1)[i]
        return total

    model, batch = toy(), toy_batch(["w1 w2 w3"])
    image, seen = model.encode_image(batch), []
    with patch.object(
        model, "encode_text", lambda text: seen.append(text.ids[0].tolist()) or OneTower.encode_text(model, text)
    ):
        found = word_match(model, image, batch.text)
    assert len(seen) == 3 and all(ids.count(MASK) == 1 for ids in seen) and found < 0  # one word is covered at a time


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "3d6b705b")
def test_word_match_starter_fails(setup_6c29f7e3):
    _, toy, toy_batch = setup_6c29f7e3

    def word_match(model, image, text):
        fused = model.fuse(image, model.encode_text(text))
        scores = model.head(fused.tokens[0], model.text_encoder.embed.weight).log_softmax(-1)
        return sum(
            scores[t, i] for t, i in enumerate(text.ids[0].tolist()) if i > MASK
        )  # each word is shown: it can be copied

    with pytest.raises(Exception):
        model, batch = toy(), toy_batch(["w1 w2 w3"])
        image, seen = model.encode_image(batch), []
        with patch.object(
            model, "encode_text", lambda text: seen.append(text.ids[0].tolist()) or OneTower.encode_text(model, text)
        ):
            found = word_match(model, image, batch.text)
        assert (
            len(seen) == 3 and all(ids.count(MASK) == 1 for ids in seen) and found < 0
        )  # one word is covered at a time


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "3dcd8025")
def test_siblings():
    def sibling_negatives(family, right, generator=None):
        return hard_negatives(100.0 * (family[:, None] == family), right, generator, floor=1e-9)

    family, right = torch.tensor([0, 0, 0, 1, 1, 1, 2]), torch.eye(7, dtype=torch.bool)
    for seed in range(20):
        drawn = sibling_negatives(family, right, torch.Generator().manual_seed(seed))
        assert (
            (family[drawn.text] == family)[:6].all()
            and (family[drawn.image] == family)[:6].all()
            and drawn.text[6] != 6
        )


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "3dcd8025")
def test_siblings_starter_fails():
    def sibling_negatives(family, right, generator=None):
        return hard_negatives(torch.zeros(right.shape), right, generator)

    with pytest.raises(Exception):
        family, right = torch.tensor([0, 0, 0, 1, 1, 1, 2]), torch.eye(7, dtype=torch.bool)
        for seed in range(20):
            drawn = sibling_negatives(family, right, torch.Generator().manual_seed(seed))
            assert (
                (family[drawn.text] == family)[:6].all()
                and (family[drawn.image] == family)[:6].all()
                and drawn.text[6] != 6
            )
