"""Generated from nbs/4_pretraining/17b_e2e_vlp.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from dataclasses import replace
from torch import nn
from unittest.mock import patch
from vlp_course.data.objects import CLASSES
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as build_clip
from vlp_course.models.fusion import rows_of
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.set_prediction import SlotHeads
from vlp_course.nn.set_prediction import padded
from vlp_course.nn.set_prediction import set_losses
from vlp_course.nn.top_blocks import TopBlocks
from vlp_course.objectives import same_caption
from vlp_course.objectives_fused import hard_negatives
from vlp_course.objectives_fused import mask_words
from vlp_course.rows import row_of
from vlp_course.models.e2e_vlp import E2EVLP, GridEncoder, ROW, VisualDecoder, Weights, WordScores, build


@pytest.fixture(scope="module")
def setup_fcfd37cc():
    class LeakyEncoder(GridEncoder):
        """The mistake: the decoder gets all that the joint encoder gives, words included."""

        def alone(self, image):
            return self.stream(image, self.read)[0]

    class Leaky(E2EVLP):
        """A model that lets the decoder look at what the encoder has read."""

        def forward(self, batch, *, step, generator):
            self.fusion.read = self.encode_text(batch.text)
            return super().forward(batch, step=step, generator=generator)

    def slow_losses(model, batch, generator):
        """All losses, one question at a time, each by a pass of its own; the same draws."""
        one = lambda tokens, i: Tokens(*(x[int(i) : int(i) + 1] for x in tokens))
        words = lambda text, i: model.encode_text(
            Tokenized(text.ids[int(i) : int(i) + 1], text.mask[int(i) : int(i) + 1])
        )
        image, ids, count = model.encode_image(batch), batch.text.ids, len(batch.caption)
        pairs = torch.randperm(count, generator=generator)[: max(1, round(model.clozes * count))]
        text = Tokenized(*(x[pairs] for x in batch.text))
        covered, chosen = mask_words(text, 14, model.share, generator)
        mlm = []
        for i, t in chosen.nonzero().tolist():
            state = model.fuse(one(image, pairs[i]), words(covered, i)).tokens[0, t]
            mlm.append(-model.head(state, model.text_encoder.embed.weight).log_softmax(0)[text.ids[i, t]])
        wrong = hard_negatives(torch.zeros(count, count), same_caption(batch.caption), generator)
        asked = torch.randperm(count, generator=generator)[: max(1, round(model.asked * count))]
        answer = lambda i, j: model.itm(model.fuse(one(image, i), words(batch.text, j)).pooled)[0].log_softmax(
            0
        )  # log (no, yes)
        itm = [-x for i in asked for x in (answer(i, i)[1], answer(wrong.image[i], i)[0], answer(i, wrong.text[i])[0])]
        ic, states = [], [[], []]
        for i in range(count):
            grid = model.fusion.alone(one(image, i))
            for t in range(int(batch.text.mask[i].sum()) - 1):
                ic.append(-model.decoder(ids[i : i + 1, : t + 1], grid)[0, -1].log_softmax(0)[ids[i, t + 1]])
            for layer, x in zip(states, model.decoder.objects(grid)):
                layer.append(x)
        od = [set_losses(model.heads(torch.cat(x)), padded(batch.targets["objects"])) for x in states]
        mean = lambda x: sum(x) / len(x)
        return {"mlm": mean(mlm), "itm": mean(itm), "ic": mean(ic)} | {f"od_{k}": od[0][k] + od[1][k] for k in od[0]}

    return Leaky, LeakyEncoder, slow_losses


@pytest.fixture(scope="module")
def setup_30b42f88():
    WORDS = [f"w{i}" for i in range(9)]
    exact = patch(f"{E2EVLP.__module__}.native_bf16", lambda device: False)  # no 16-bit products in a test of digits

    def toy(seed=0, weights=Weights(1, 1, 1, 1), kind=E2EVLP, fusion=GridEncoder, **options):
        """Width 12, ten words, of which four are classes and two colours, five slots; large random weights, float64."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary([*WORDS, "other"])
        text = TextEncoder(torch.randn(len(vocabulary), 12), 3)
        heads = SlotHeads(12, 5, WordScores(text.embed, [6, 5, 8, 9], 1), WordScores(text.embed, [7, 10]))
        trunk, decoder = nn.Sequential(nn.Identity(), ImageEncoder(12, 3)), VisualDecoder(text.embed, 14, 3, slots=5)
        model = kind(trunk, text, fusion(12, 3), decoder, heads, vocabulary, 14, weights, 12, **options)
        for p in model.parameters():
            p.data = 0.4 * torch.randn_like(p) + (p.ndim == 1)
        decoder.bias.data[:2] = -50  # [PAD] and [UNK] are never written
        return model.double()

    def toy_batch(captions=("w0 w1", "w2 w3 w4 w5", "w6", "w7 w8 w0 w2 w2"), seed=1):
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
        objects = [
            {
                "boxes": 0.3 + 0.3 * draw(n, 4),
                "labels": torch.randint(4, (n,), generator=g),
                "colours": torch.randint(-1, 2, (n,), generator=g),
            }
            for n in (1, 3, 2, 0)[: len(captions)]
        ]
        text = Vocabulary([*WORDS, "other"]).tokenize(list(captions))
        return Pairs(
            None,
            list(captions),
            text,
            torch.arange(len(captions)),
            torch.randn(len(captions), 12288, generator=g, dtype=torch.float64),
            {"objects": objects},
        )

    def run(model, batch, seed=3):
        return model(batch, step=0, generator=torch.Generator().manual_seed(seed)).losses

    return exact, run, toy, toy_batch


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "fc45c3f4")
def test_losses_equal_a_loop(setup_30b42f88, setup_fcfd37cc):
    _, run, toy, toy_batch = setup_30b42f88
    _, _, slow_losses = setup_fcfd37cc
    model, batch = toy(), toy_batch()
    found, slow = run(model, batch), slow_losses(model, batch, torch.Generator().manual_seed(3))
    assert set(found) == set(slow) == {"mlm", "itm", "ic", "od_class", "od_colour", "od_l1", "od_giou"}
    for name in found:
        torch.testing.assert_close(
            found[name].double(), slow[name].double(), rtol=0, atol=1e-5
        )  # IC adds up in 32 bits


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "92236bec")
def test_the_writer_cannot_see_the_caption_through_the_encoder(setup_30b42f88):
    _, run, toy, toy_batch = setup_30b42f88
    model, batch = toy(), toy_batch()
    losses = run(model, batch)
    nonsense = lambda text: model.text_encoder(Tokenized(text.ids.clamp(max=4), text.mask))
    with patch.object(model, "encode_text", nonsense):  # what the joint encoder reads
        other = run(model, batch)
    assert (
        all(losses[k].equal(other[k]) for k in losses if k not in ("mlm", "itm"))
        and losses["itm"] != other["itm"]
        and losses["mlm"] != other["mlm"]
    )
    read = [
        p
        for part in (model.text_encoder.blocks, model.text_encoder.norm, model.text_encoder.pool)
        for p in part.parameters()
    ]
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, read, retain_graph=True, allow_unused=True)
        assert any(g is not None for g in grads) == (name in ("mlm", "itm")), name


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "e0abf5e7")
def test_a_word_hinges_on_no_later_one(setup_30b42f88):
    _, _, toy, toy_batch = setup_30b42f88
    model, batch, seen = toy(), toy_batch(), []
    grid = model.fusion.alone(model.encode_image(batch)).detach()
    hook = model.decoder.embed.register_forward_hook(lambda module, ids, out: seen.append(out))
    logits = model.decoder(batch.text.ids, grid)
    hook.remove()
    for t in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, t].square().sum(), seen[0], retain_graph=True)
        assert gradient[:, t + 1 :].abs().sum() == 0 and (gradient[:, : t + 1].abs().sum(-1) > 0).all()


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "b3b18023")
def test_a_leak_is_found(setup_fcfd37cc, setup_30b42f88):
    Leaky, LeakyEncoder, _ = setup_fcfd37cc
    _, run, toy, toy_batch = setup_30b42f88
    leaky, batch = toy(kind=Leaky, fusion=LeakyEncoder), toy_batch()
    losses = run(leaky, batch)
    nonsense = lambda text: leaky.text_encoder(Tokenized(text.ids.clamp(max=4), text.mask))
    with patch.object(leaky, "encode_text", nonsense):
        assert losses["ic"] != run(leaky, batch)["ic"]  # the test above can fail


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "ef0f8b21")
def test_the_grid_alone_is_the_stream_without_words(setup_30b42f88):
    _, _, toy, toy_batch = setup_30b42f88
    model, batch = toy(), toy_batch()
    image, text = model.encode_image(batch), model.encode_text(batch.text)
    stream, _ = model.fusion.stream(image, text._replace(mask=torch.zeros_like(text.mask)))  # all words masked
    torch.testing.assert_close(model.fusion.alone(image), stream[:, text.tokens.shape[1] :])


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "07bdfd56")
def test_a_weight_of_zero_leaves_a_loss_out(setup_30b42f88):
    _, run, toy, toy_batch = setup_30b42f88
    batch = toy_batch()
    groups = {"mlm": {"mlm"}, "itm": {"itm"}, "ic": {"ic"}, "od": {"od_class", "od_colour", "od_l1", "od_giou"}}
    for name, keys in groups.items():
        assert set(run(toy(weights=Weights(**{n: float(n == name) for n in groups})), batch)) == keys
        assert not keys & set(run(toy(weights=replace(Weights(), **{name: 0})), batch))
    once, twice = run(toy(weights=Weights(0, 0, 1, 1)), batch), run(toy(weights=Weights(0, 0, 3, 2)), batch)
    for name in once:
        torch.testing.assert_close(twice[name], (2 if name == "ic" else 3) * once[name])
    bare = Pairs(None, batch.caption, batch.text, batch.family, batch.features)
    with pytest.raises(
        ValueError, match=r"a batch without objects: set `scenes.objects = scene_objects\(scenes\)`, or Weights\(od=0\)"
    ):
        run(toy(), bare)
    assert set(run(toy(weights=Weights(od=0)), bare)) == {"mlm", "itm", "ic"}


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "3fe9615b")
def test_who_learns_what(setup_30b42f88):
    _, run, toy, toy_batch = setup_30b42f88
    model, batch = toy(), toy_batch()
    losses, reached = run(model, batch), {}
    for name, loss in losses.items():
        named = list(model.named_parameters())
        grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
        reached[name] = {key.split(".")[0] for (key, _), g in zip(named, grads) if g is not None and g.abs().sum() > 0}
    assert reached["mlm"] == {"image_encoder", "text_encoder", "fusion", "head"} and reached["itm"] == {
        "image_encoder",
        "text_encoder",
        "fusion",
        "itm",
    }
    assert reached["ic"] == {
        "image_encoder",
        "text_encoder",
        "fusion",
        "decoder",
    }  # of the text encoder the table alone
    assert (
        all(reached[f"od_{k}"] == reached["ic"] | {"heads"} for k in ("class", "colour"))
        and {"heads", "decoder", "image_encoder"} <= reached["od_giou"]
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert run(model, batch) == run(model, batch) and all(v.equal(before[k]) for k, v in model.state_dict().items())


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "d0856cdc")
def test_the_same_caption_is_no_negative(setup_30b42f88):
    _, _, toy, toy_batch = setup_30b42f88
    model, drawn = toy(asked=1), []
    batch = toy_batch(("w0 w1", "w0 w1", "w2", "w0 w1"))
    with patch.object(
        model, "fuse", lambda image, text: drawn.append((image, text)) or (_ for _ in ()).throw(KeyError)
    ):
        for seed in range(20):
            with pytest.raises(KeyError):
                model.matching(model.encode_image(batch), batch, torch.Generator().manual_seed(seed))
    image, text = model.encode_image(batch), model.encode_text(batch.text)
    number = lambda rows, table: [next(i for i, t in enumerate(table) if torch.allclose(r, t)) for r in rows]
    for asked_image, asked_text in drawn:
        pairs = list(
            zip(number(asked_image.tokens, image.tokens), number(asked_text.tokens, text.tokens))
        )  # equal captions: the first number
        assert all(batch.caption[i] == batch.caption[t] for i, t in pairs[:4]) and all(
            batch.caption[i] != batch.caption[t] for i, t in pairs[4:]
        )


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "afeefd42")
def test_writing_equals_the_slow_way(setup_30b42f88):
    exact, _, toy, toy_batch = setup_30b42f88
    for seed in range(3):
        model, batch = toy(seed), toy_batch(seed=seed)
        image = model.encode_image(batch)
        with exact, torch.no_grad():
            for row, text in enumerate(model.generate(image)):
                grid, ids = model.fusion.alone(rows_of(image, torch.tensor([row]))), [2]
                while len(ids) < 24 and (word := int(model.decoder(torch.tensor([ids]), grid)[0, -1].argmax())) != 3:
                    ids.append(word)
                assert text == " ".join(model.vocabulary.words[i] for i in ids[1:])
    with pytest.raises(ValueError, match="text of 25 tokens: this decoder has places for 24"):
        model.decoder(torch.full((1, 25), 6), grid)


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "cb61a5a4")
def test_detecting_sees_each_picture_alone(setup_30b42f88):
    exact, _, toy, toy_batch = setup_30b42f88
    model, batch = toy(), toy_batch()
    with exact, torch.no_grad():
        image = model.encode_image(batch)
        found = model.detect(image)
        for i in range(4):
            one = model.detect(rows_of(image, torch.tensor([i])))[0]
            assert set(one) == {"boxes", "labels", "scores", "colours"} and all(
                torch.allclose(one[k].double(), found[i][k].double()) for k in one
            )
    assert (
        found[0]["boxes"].shape == (5, 4) and max(int(f["labels"].max()) for f in found) < 4
    )  # "nothing" is never an answer


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "6c37fb09")
def test_class_scores_are_word_scores():
    embed = nn.Embedding(7, 12).double()
    scores = WordScores(embed, [5, 2, 6], 1).double()
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    torch.testing.assert_close(scores(x)[1, 2, 1], scores.layer(x)[1, 2] @ embed.weight[2] / 12**0.5 + scores.bias[1])
    assert scores(x).shape == (2, 3, 4) and "ids" not in scores.state_dict()


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "22e01dd5")
def test_the_row_and_its_towers():
    model, clip = build(seed=3), build_clip(seed=3)
    for mine, theirs in ((model.image_encoder[1], clip.image_encoder), (model.text_encoder, clip.text_encoder)):
        assert all(a.equal(b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert isinstance(model.image_encoder[0], TopBlocks) and model.decoder.embed is model.text_encoder.embed
    assert [model.vocabulary.words[i] for i in model.heads.kind.ids[[0, -1]]] == [CLASSES[0], CLASSES[-1]] and len(
        model.heads.kind.bias
    ) == len(CLASSES) + 1
    row = row_of("e2e-vlp")
    assert row.builder == "e2e-vlp:build" and row.objects and row.lr == ROW["lr"]
    with pytest.raises(ValueError, match="unknown size 'large': models.e2e_vlp has 'small'"):
        build("large")


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "62df2192")
def test_questions(setup_30b42f88):
    _, run, toy, toy_batch = setup_30b42f88

    def questions(batch, clozes, asked):
        return max(1, round(clozes * batch)) + 3 * max(1, round(asked * batch))

    model, batch, rows = toy(clozes=0.5, asked=0.25), toy_batch(), []
    fuse = model.fuse
    with patch.object(model, "fuse", lambda image, text: rows.append(len(image.tokens)) or fuse(image, text)):
        run(model, batch)
    assert sum(rows) == questions(4, 0.5, 0.25) == 5


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "62df2192")
def test_questions_starter_fails(setup_30b42f88):
    _, run, toy, toy_batch = setup_30b42f88

    def questions(batch, clozes, asked):
        return 2 * batch

    with pytest.raises(Exception):
        model, batch, rows = toy(clozes=0.5, asked=0.25), toy_batch(), []
        fuse = model.fuse
        with patch.object(model, "fuse", lambda image, text: rows.append(len(image.tokens)) or fuse(image, text)):
            run(model, batch)
        assert sum(rows) == questions(4, 0.5, 0.25) == 5


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "52fdc196")
def test_seen_by_caption(setup_30b42f88):
    _, _, toy, toy_batch = setup_30b42f88

    def seen_by_caption(model, image, text):
        return model.fusion.stream(image, text)[0][:, text.tokens.shape[1] :]

    model, batch = toy(), toy_batch()
    image, text = model.encode_image(batch), model.encode_text(batch.text)
    found = seen_by_caption(model, image, text)
    nothing = text._replace(mask=torch.zeros_like(text.mask))
    assert found.shape == model.fusion.alone(image).shape and not torch.allclose(found, model.fusion.alone(image))
    torch.testing.assert_close(seen_by_caption(model, image, nothing), model.fusion.alone(image))


@pytest.mark.nb("nbs/4_pretraining/17b_e2e_vlp.ipynb", "52fdc196")
def test_seen_by_caption_starter_fails(setup_30b42f88):
    _, _, toy, toy_batch = setup_30b42f88

    def seen_by_caption(model, image, text):
        return model.fusion.alone(image)

    with pytest.raises(Exception):
        model, batch = toy(), toy_batch()
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        found = seen_by_caption(model, image, text)
        nothing = text._replace(mask=torch.zeros_like(text.mask))
        assert found.shape == model.fusion.alone(image).shape and not torch.allclose(found, model.fusion.alone(image))
        torch.testing.assert_close(seen_by_caption(model, image, nothing), model.fusion.alone(image))
