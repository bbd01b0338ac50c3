"""Generated from nbs/3_fusion/12a_one_tower.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from unittest.mock import patch
from vlp_course.data.grammar import grammar_words
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as build_clip
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.fusion import CoAttentionEncoder
from vlp_course.nn.fusion import MergedEncoder
from vlp_course.objectives import same_caption
from vlp_course.objectives_fused import hard_negatives
from vlp_course.objectives_fused import mask_words
from vlp_course.rows import row_of
from vlp_course.models.fusion import (
    BlindStream,
    CoAttention,
    SingleStream,
    build_blind,
    build_coattn,
    build_single,
    rows_of,
)


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


@pytest.mark.nb("nbs/3_fusion/12a_one_tower.ipynb", "674e1c40")
def test_losses_equal_a_loop(setup_6c29f7e3):
    run, toy, toy_batch = setup_6c29f7e3
    for kind, fusion in ((SingleStream, MergedEncoder), (CoAttention, CoAttentionEncoder)):
        model, batch = toy(kind, fusion), toy_batch(["w0 w1", "w2 w3 w4 w5", "w6", "w7 w8 w0", "w1 w1 w2"])
        found = run(model, batch)
        generator, right = torch.Generator().manual_seed(3), same_caption(batch.caption)
        wrong = hard_negatives(torch.zeros(5, 5), right, generator)
        asked = torch.randperm(5, generator=generator)[:2]
        covered, chosen = mask_words(batch.text, 14, 0.5, generator)
        image, text, hidden = model.encode_image(batch), model.encode_text(batch.text), model.encode_text(covered)
        one = lambda tokens, i: Tokens(*(x[int(i) : int(i) + 1] for x in tokens))
        logits = lambda i, j: model.itm(model.fuse(one(image, i), one(text, j)).pooled)[0].log_softmax(0)
        answers = (
            [-logits(i, i)[1] for i in asked]
            + [-logits(wrong.image[i], i)[0] for i in asked]
            + [-logits(i, wrong.text[i])[0] for i in asked]
        )
        torch.testing.assert_close(found["itm"], sum(answers) / 6)
        words = [
            -model.head(
                model.fuse(one(image, i), one(hidden, i)).tokens[0, t], model.text_encoder.embed.weight
            ).log_softmax(0)[batch.text.ids[i, t]]
            for i, t in chosen.nonzero().tolist()
        ]
        torch.testing.assert_close(found["mlm"], sum(words) / len(words))


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
