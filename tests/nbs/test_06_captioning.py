"""Generated from nbs/1_foundations/06_captioning.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unittest.mock import patch
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import PAD
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.decoding import beam_search
from vlp_course.evaluate import part
from vlp_course.models.clip import towers
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.transformer import DecoderState
from vlp_course.models.captioning import CaptionDecoder, Captioner, build, build_blind, build_pixels, build_pooled


@pytest.fixture(scope="module")
def setup_b169672f():
    def slow_loss(model, image, ids):
        """The mean of -log p(next word) over all real words, one question at a time."""
        costs = []
        for row, tokens in zip(ids, image):
            for t in range(1, int((row != PAD).sum())):
                scores = model.decoder(row[None, :t], tokens[None])[0, -1]
                costs.append(-scores.log_softmax(-1)[row[t]])
        return torch.stack(costs).mean()

    return slow_loss


@pytest.fixture(scope="module")
def setup_47b69591():
    class Tower(nn.Module):
        """Three tokens of width 12, cut out of the features."""

        def forward(self, x):
            tokens = x.unflatten(1, (3, 12))
            return Tokens(tokens.mean(1), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    TEXTS = ["a cat left of a dog", "a dog", "a dog left of a cat and a cat"]

    def tiny(seed=0, **options):
        """A captioner of nine words and width 12 with weights that are not near zero, and a batch of three pairs."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary(["a", "and", "cat", "dog", "left", "of"])
        model = Captioner(
            Tower(),
            CaptionDecoder(torch.randn(len(vocabulary), 12), heads=3, layers=2, context=12),
            vocabulary,
            **options,
        )
        text = model.tokenize(TEXTS)
        return model, Pairs(None, TEXTS, text, torch.arange(3), torch.randn(3, 36))

    exact = patch(f"{Captioner.__module__}.native_bf16", lambda device: False)  # no 16-bit products in a test of digits
    return TEXTS, exact, tiny


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "3d7e17a2")
def test_cached_equals_read_whole(setup_47b69591):
    _, _, tiny = setup_47b69591
    model, batch = tiny()
    model.double()
    image, ids = batch.features.double().unflatten(1, (3, 12)), batch.text.ids
    state = DecoderState(model.decoder, image)
    for t in (1, 2, 5):  # one new word, one, then three
        torch.testing.assert_close(
            state.logits(ids[:, :t]), model.decoder(ids[:, :t], image)[:, -1], rtol=0, atol=1e-10
        )
    rows = torch.tensor([2, 0, 2, 1])
    state.select(rows)
    torch.testing.assert_close(
        state.logits(ids[rows, :6]), model.decoder(ids[rows, :6], image[rows])[:, -1], rtol=0, atol=1e-10
    )


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "55ad2436")
def test_no_word_sees_its_answer(setup_47b69591):
    _, _, tiny = setup_47b69591
    model, batch = tiny()
    ids, image = batch.text.ids[:1], batch.features[:1].unflatten(1, (3, 12))
    other = ids.clone()
    other[0, 4] = model.vocabulary.index["and"]
    a, b = model.decoder(ids, image), model.decoder(other, image)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "3ee00f47")
def test_a_text_beyond_the_places(setup_47b69591):
    _, _, tiny = setup_47b69591
    model, batch = tiny()
    with pytest.raises(ValueError, match="text of 13 tokens: this decoder has places for 12"):
        model.decoder(torch.ones(1, 13, dtype=torch.long), torch.randn(1, 3, 12))
    with pytest.raises(ValueError, match="caption of 11 words, the context holds 10"):
        model.tokenize(["a cat left of a dog left of a cat and"])


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "5e7596a1")
def test_one_pass_equals_one_question_at_a_time(setup_b169672f, setup_47b69591):
    slow_loss = setup_b169672f
    _, _, tiny = setup_47b69591
    model, batch = tiny(blind=0.0)
    model.double()
    batch.features = batch.features.double()
    loss = model(batch, step=0, generator=torch.Generator()).losses["lm"]
    torch.testing.assert_close(
        loss, slow_loss(model, model.encode_image(batch).tokens, batch.text.ids).float(), rtol=0, atol=1e-6
    )


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "e734c272")
def test_padding_costs_nothing(setup_47b69591):
    TEXTS, _, tiny = setup_47b69591
    model, batch = tiny(blind=0.0)
    long = Tokenized(F.pad(batch.text.ids, (0, 1)), F.pad(batch.text.mask, (0, 1)))
    generator = torch.Generator()
    a, b = (
        model(Pairs(None, TEXTS, text, batch.family, batch.features), step=0, generator=generator).losses["lm"]
        for text in (batch.text, long)
    )
    torch.testing.assert_close(a, b)


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "bd4dba10")
def test_who_gets_a_gradient(setup_47b69591):
    _, _, tiny = setup_47b69591
    model, batch = tiny(blind=0.0)
    batch.features.requires_grad_(True)
    model(batch, step=0, generator=torch.Generator()).losses["lm"].backward()
    assert (batch.features.grad.abs().sum(1) > 0).all()
    assert model.nothing.grad is None or model.nothing.grad.abs().sum() == 0  # it was not shown
    model, batch = tiny(blind=1.0)
    batch.features.requires_grad_(True)
    model(batch, step=0, generator=torch.Generator()).losses["lm"].backward()
    assert (
        batch.features.grad is None or batch.features.grad.abs().sum() == 0
    )  # a blind one learns nothing from pictures
    assert model.nothing.grad.abs().sum() > 0


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "0b5ba078")
def test_a_score_is_a_sum_of_log_probabilities(setup_47b69591):
    _, exact, tiny = setup_47b69591
    model, batch = tiny()
    image = model.encode_image(batch)
    with exact:
        text = model.encode_text(batch.text)
        found, prior = model.match(image, text), text.pooled[:, 0]
    for k in range(3):
        n = int(batch.text.mask[k].sum())
        ids = batch.text.ids[k : k + 1, :n]
        for tokens, value in (
            (image.tokens[k : k + 1], found[k] + prior[k]),
            (model.nothing.expand(1, 1, -1), prior[k]),
        ):
            each = model.decoder(ids[:, :-1], tokens)[0].log_softmax(-1)
            by_hand = sum(each[t, ids[0, t + 1]] for t in range(n - 1))
            torch.testing.assert_close(value, by_hand, rtol=0, atol=1e-4)


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "41623761")
def test_all_pairs_equal_pair_by_pair(setup_47b69591):
    _, exact, tiny = setup_47b69591
    model, batch = tiny()
    with exact:
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        whole = model.similarity(part(image, slice(0, 2)), text)
        assert whole.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                torch.testing.assert_close(
                    whole[i, j], model.match(part(image, [i]), part(text, [j]))[0], rtol=0, atol=1e-5
                )


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "0fc49d12")
def test_probabilities_sum_to_one(setup_47b69591):
    _, exact, tiny = setup_47b69591
    model, _ = tiny()  # over all captions of one word: p(word, end), and over what else may come
    image = torch.randn(1, 3, 12)
    words = torch.arange(len(model.vocabulary))
    ids = torch.stack([torch.full_like(words, CLS), words], 1)
    with exact, torch.no_grad():
        firsts = model.decoder(ids[:1, :1], image)[0, 0].softmax(-1)
        scored = model.log_prob(image.expand(len(words), -1, -1), ids).exp()
    kept = words != PAD
    torch.testing.assert_close(scored[kept], firsts[kept], rtol=1e-4, atol=1e-6)


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "5ec4f1d3")
def test_it_learns_what_it_is_taught(setup_47b69591):
    TEXTS, _, tiny = setup_47b69591
    model, batch = tiny(blind=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        model(batch, step=0, generator=torch.Generator()).losses["lm"].backward()
        optimizer.step()
    image = model.encode_image(batch)
    assert model.generate(image) == TEXTS == model.generate(image, beam_search, beams=3)
    assert model.generate(part(image, [1]), prompt="a dog") == ["a dog"]
    turned = model.generate(part(image, [2, 1, 0]))
    assert turned == TEXTS[::-1]  # the picture decides, not the row


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "da9b9e32")
def test_a_prompt_is_kept(setup_47b69591):
    _, _, tiny = setup_47b69591
    model, batch = tiny()
    for caption in model.generate(model.encode_image(batch), prompt="a cat left"):
        assert caption.startswith("a cat left") and len(caption.split()) <= 11


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "a72d08df")
def test_the_words_keep_their_numbers():
    model, whole = build(), towers(0)[2]
    assert whole.words[: len(model.vocabulary)] == model.vocabulary.words and len(model.vocabulary) < len(whole)
    assert torch.equal(model.decoder.embed.weight, towers(0)[1].embed.weight[: len(model.vocabulary)])


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "ab73487c")
def test_controls_change_one_thing():
    pooled, pixels, blind = build_pooled(), build_pixels(), build_blind()
    features, image = torch.randn(2, 12288), torch.rand(2, 3, 128, 128)
    assert [
        build().image_encoder(features).tokens.shape[1],
        pooled.image_encoder(features).tokens.shape[1],
        pixels.image_encoder(image).tokens.shape[1],
    ] == [16, 1, 64]
    torch.testing.assert_close(pooled.image_encoder(features).tokens[:, 0], build().image_encoder(features).pooled)
    assert blind.blind == 1 and torch.equal(blind.decoder.embed.weight, build().decoder.embed.weight)


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "c7daa3c8")
def test_perplexity():
    def perplexity(loss):
        return float(np.exp(loss))

    assert perplexity(0.0) == 1 and abs(perplexity(np.log(578)) - 578) < 1e-6 and 1.2 < perplexity(0.25) < 1.3


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "c7daa3c8")
def test_perplexity_starter_fails():
    def perplexity(loss):
        return 2**loss

    with pytest.raises(Exception):
        assert perplexity(0.0) == 1 and abs(perplexity(np.log(578)) - 578) < 1e-6 and 1.2 < perplexity(0.25) < 1.3


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "f0ff9c16")
def test_guided(setup_47b69591):
    _, _, tiny = setup_47b69591

    def guided(model, image, ids, strength):
        seen = model.decoder(ids, image)[:, -1]
        blind = model.decoder(ids, model.nothing.expand_as(image))[:, -1]
        return (1 + strength) * seen - strength * blind

    model, batch = tiny()
    image, ids = model.encode_image(batch).tokens, batch.text.ids[:, :3]
    plain, blind = model.decoder(ids, image)[:, -1], model.decoder(ids, model.nothing.expand_as(image))[:, -1]
    torch.testing.assert_close(guided(model, image, ids, 0.0), plain)
    torch.testing.assert_close(guided(model, image, ids, -1.0), blind)
    torch.testing.assert_close(guided(model, image, ids, 2.0), plain + 2 * (plain - blind))


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "f0ff9c16")
def test_guided_starter_fails(setup_47b69591):
    _, _, tiny = setup_47b69591

    def guided(model, image, ids, strength):
        return model.decoder(ids, image)[:, -1]

    with pytest.raises(Exception):
        model, batch = tiny()
        image, ids = model.encode_image(batch).tokens, batch.text.ids[:, :3]
        plain, blind = model.decoder(ids, image)[:, -1], model.decoder(ids, model.nothing.expand_as(image))[:, -1]
        torch.testing.assert_close(guided(model, image, ids, 0.0), plain)
        torch.testing.assert_close(guided(model, image, ids, -1.0), blind)
        torch.testing.assert_close(guided(model, image, ids, 2.0), plain + 2 * (plain - blind))


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "8e50d47a")
def test_without_prior(setup_47b69591):
    _, exact, tiny = setup_47b69591

    def without_prior(similarity, texts):
        return similarity + texts.pooled[:, 0]

    model, batch = tiny()
    with exact, torch.no_grad():
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        found = without_prior(model.similarity(image, text), text)
        torch.testing.assert_close(
            found[1, 2], model.log_prob(image.tokens[1:2], batch.text.ids[2:3])[0], rtol=0, atol=1e-4
        )
        assert torch.equal(
            found.argmax(0), model.similarity(image, text).argmax(0)
        )  # each column is shifted as a whole


@pytest.mark.nb("nbs/1_foundations/06_captioning.ipynb", "8e50d47a")
def test_without_prior_starter_fails(setup_47b69591):
    _, exact, tiny = setup_47b69591

    def without_prior(similarity, texts):
        return similarity

    with pytest.raises(Exception):
        model, batch = tiny()
        with exact, torch.no_grad():
            image, text = model.encode_image(batch), model.encode_text(batch.text)
            found = without_prior(model.similarity(image, text), text)
            torch.testing.assert_close(
                found[1, 2], model.log_prob(image.tokens[1:2], batch.text.ids[2:3])[0], rtol=0, atol=1e-4
            )
            assert torch.equal(
                found.argmax(0), model.similarity(image, text).argmax(0)
            )  # each column is shifted as a whole
