"""Generated from nbs/4_pretraining/16a_simvlm.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from torch import nn
from unittest.mock import patch
from vlp_course.data.families import family
from vlp_course.data.grammar import describe
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Vocabulary
from vlp_course.data.questions import questions
from vlp_course.decoding import beam_search
from vlp_course.lab import row_of
from vlp_course.models.clip import towers
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.prefix import TwoStacks
from vlp_course.nn.prefix import prefix_lm_loss
from vlp_course.nn.prefix import sample_prefix
from vlp_course.nn.prefix import suffix_log_prob
from vlp_course.models.simvlm import SimVLM, answer, build, first_of, prompt_of


@pytest.fixture(scope="module")
def setup_ce0fea7e():
    def slow_writing(model, image, prompt, limit=8):
        """The greedy continuation of a prompt for one picture (or None): all is computed anew for each word."""
        ids = [CLS, *[model.vocabulary.index[w] for w in prompt.split()]]
        read = len(ids) - 1
        while len(ids) - read <= limit:
            row = torch.tensor([[*ids, EOS]])  # what follows the last word does not matter to it
            logits, _ = model.core(row, torch.tensor([read]), image)
            word = int(logits[0, len(ids) - 1 - read].argmax())
            if word == EOS:
                break
            ids.append(word)
        return " ".join(model.vocabulary.words[i] for i in ids[1:])

    return slow_writing


@pytest.fixture(scope="module")
def setup_a6b8de90():
    class Tower(nn.Module):
        """Three tokens of width 12, cut out of the features."""

        def forward(self, x):
            tokens = x.unflatten(1, (3, 12))
            return Tokens(tokens.mean(1), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    TEXTS = ["a cat left of a dog", "a dog", "a dog left of a cat and a cat"]

    def tiny(seed=0, random=True, **options):
        """A model of eleven words and width 12, with large random weights if asked for, and a batch of three pairs."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary(["a", "and", "cat", "dog", "left", "of"])
        model = SimVLM(Tower(), TwoStacks(torch.randn(len(vocabulary), 12), 3, context=12), vocabulary, **options)
        for p in model.parameters() if random else ():
            p.data = 0.5 * torch.randn_like(p) + (p.ndim == 1)
        model.core.bias.data[:2] = -30 if random else 0  # [PAD] and [UNK] are never written
        return model, Pairs(None, TEXTS, model.tokenize(TEXTS), torch.arange(3), torch.randn(3, 36))

    def loss(model, batch, seed=0):
        return model(batch, step=0, generator=torch.Generator().manual_seed(seed)).losses["prefix_lm"]

    exact = patch(f"{SimVLM.__module__}.native_bf16", lambda device: False)  # no 16-bit products in a test of digits
    return TEXTS, exact, loss, tiny


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "9e7a52f9")
def test_text_alone_is_the_same_loss(setup_a6b8de90):
    TEXTS, _, loss, tiny = setup_a6b8de90
    model, batch = tiny(text_only=1.0)
    alone = Pairs(None, TEXTS, batch.text, batch.family)
    torch.testing.assert_close(loss(model, batch), loss(model, alone))  # all pictures masked, or none there
    seeing, _ = tiny(text_only=0.0)
    assert not torch.allclose(loss(seeing, batch), loss(seeing, alone))


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "7c145b30")
def test_forward_is_the_loss_of_16_and_changes_nothing(setup_a6b8de90):
    _, _, loss, tiny = setup_a6b8de90
    model, batch = tiny(text_only=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    words, seen = sample_prefix(batch.text.ids, generator, 0.5), torch.rand(3, generator=generator) >= 0.5
    assert 0 < seen.sum() < 3 and words.sum() > 0  # a mixed batch, else the test shows little
    expected = prefix_lm_loss(
        *model.core(batch.text.ids, words, batch.features.unflatten(1, (3, 12)), seen[:, None].expand(3, 3))
    )
    torch.testing.assert_close(loss(model, batch, 1), expected, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert loss(model, batch, 1) == loss(model, batch, 1) != loss(model, batch, 5)


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "484484a7")
def test_who_gets_a_gradient(setup_a6b8de90):
    _, _, loss, tiny = setup_a6b8de90
    for share in (0.0, 1.0):
        model, batch = tiny(text_only=share)
        batch.features.requires_grad_(True)
        loss(model, batch, 1).backward()
        assert (
            (batch.features.grad.abs().sum(1) > 0) == (share == 0)
        ).all()  # text alone teaches nothing about pictures
        assert all(
            p.grad.abs().sum() > 0 for name, p in model.core.named_parameters() if "key.bias" not in name
        )  # softmax drops a shift


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "5265a07b")
def test_writing_from_a_prompt_equals_the_slow_way(setup_a6b8de90, setup_ce0fea7e):
    _, exact, _, tiny = setup_a6b8de90
    slow_writing = setup_ce0fea7e
    for seed in range(3):
        model, batch = tiny(seed)
        model.double()
        batch.features = batch.features.double()
        image = model.encode_image(batch)
        with exact, torch.no_grad():
            for prompt in ("", "a", "a dog left of"):
                found = model.generate(image, prompt=prompt)
                for row in range(3):
                    slow = slow_writing(model, image.tokens[row : row + 1], prompt, limit=12 - len(prompt.split()))
                    assert found[row] == slow and found[row].startswith(prompt)
                nobody = model.generate(image._replace(mask=torch.zeros_like(image.mask)), prompt=prompt)
                assert (
                    nobody == [slow_writing(model, None, prompt, limit=12 - len(prompt.split()))] * 3
                )  # without a picture
    with pytest.raises(ValueError, match=r"a prompt of 12 words: this model has places for 12, \[CLS\] included"):
        model.generate(image, prompt="a " * 12)


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "c7ae2327")
def test_a_score_is_a_difference_of_log_probabilities(setup_a6b8de90):
    _, exact, _, tiny = setup_a6b8de90
    model, batch = tiny()
    model.double()
    batch.features = batch.features.double()
    with exact, torch.no_grad():
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        ids, zero = batch.text.ids, torch.zeros(3, dtype=torch.long)
        seen, blind = suffix_log_prob(*model.core(ids, zero, image.tokens)), suffix_log_prob(*model.core(ids, zero))
        torch.testing.assert_close(model.match(image, text), seen - blind, rtol=0, atol=1e-9)
        table = model.similarity(image, text)
        torch.testing.assert_close(table.diagonal(), seen - blind, rtol=0, atol=1e-9)
        crossed = model.match(image, Tokens(*(x[[2, 0, 1]] for x in text)))
        torch.testing.assert_close(table[[0, 1, 2], [2, 0, 1]], crossed, rtol=0, atol=1e-9)
        assert table.shape == (3, 3) and (seen - blind).abs().min() > 1e-3


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "a6714bc8")
def test_learned_by_heart(setup_a6b8de90):
    TEXTS, exact, _, tiny = setup_a6b8de90
    model, batch = tiny(random=False, text_only=0.3)
    optimizer, generator = torch.optim.Adam(model.parameters(), 0.02), torch.Generator().manual_seed(0)
    for step in range(300):
        optimizer.zero_grad()
        model(batch, step=step, generator=generator).losses["prefix_lm"].backward()
        optimizer.step()
    image = model.encode_image(batch)
    with exact, torch.no_grad():
        assert model.generate(image) == TEXTS == model.generate(image, beam_search)
        assert model.generate(Tokens(*(x[:1] for x in image)), prompt="a cat left")[0] == TEXTS[0]
        assert model.similarity(image, model.encode_text(batch.text)).argmax(1).tolist() == [0, 1, 2]


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "69e5360e")
def test_each_prompt_lets_the_true_caption_answer():
    kinds = {
        "on a": {"horizontal": 2, "vertical": 2, "count": 2},
        "a picture of": {"count": 3},
        "in the": {"place": 2},
        "from left to right a": {"horizontal": 3},
        "from top to bottom a": {"vertical": 3},
    }
    checked = set()
    for index in range(120):
        spec = family("test", 0, index // 3)[index % 3].spec
        for slot, question, truth in questions("test", 0, index):
            prompt, choices = prompt_of(question)
            if not prompt or spec.kind not in kinds[prompt]:
                continue
            caption = describe(spec, kinds[prompt][spec.kind])
            assert caption.startswith(prompt + " ") and first_of(caption.removeprefix(prompt), choices) in (
                truth,
                "one",
            )
            if slot != "count":
                assert first_of(caption.removeprefix(prompt), choices) == truth
            checked.add(prompt)
    assert checked == set(kinds)


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "8512a553")
def test_answers_are_words_that_were_asked_for(setup_a6b8de90):
    _, _, _, tiny = setup_a6b8de90
    assert (
        first_of("small cat left of a big dog", ("dog", "cat")) == "cat"
        and first_of("cats and a catfish", ("cat",)) == ""
    )
    assert first_of("top left of a", ("left", "top left")) == "top left" and prompt_of("can you see a cat") == ("", ())
    model, batch = tiny()
    with pytest.raises(
        ValueError,
        match="no prompt for 'can you see a cat': there are prompts for questions that begin with what ground",
    ):
        answer(model, model.encode_image(batch), ["what ground do you see", "can you see a cat", "what ground"])


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "d139068e")
def test_the_row_of_the_board():
    model, row = build(), row_of("simvlm")
    assert (row.title, row.builder, row.sets) == ("SimVLM", "simvlm:build", ("seen",))
    assert torch.equal(model.core.embed.weight, towers(0)[1].embed.weight[: len(model.vocabulary)])
    assert model.image_encoder(torch.randn(2, 12288)).tokens.shape == (2, 16, 128)
    with pytest.raises(ValueError, match="unknown size 'huge': models.simvlm has 'small'"):
        build("huge")


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "a2de19ac")
def test_text_share():
    def text_share(pairs, texts):
        return texts / (pairs + texts)

    assert text_share(4096, 512) == 1 / 9 and text_share(0, 5) == 1 and text_share(5, 0) == 0


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "a2de19ac")
def test_text_share_starter_fails():
    def text_share(pairs, texts):
        return texts / pairs

    with pytest.raises(Exception):
        assert text_share(4096, 512) == 1 / 9 and text_share(0, 5) == 1 and text_share(5, 0) == 0


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "ddb06f6e")
def test_says(setup_a6b8de90):
    TEXTS, exact, _, tiny = setup_a6b8de90

    def says(model, image, caption, wrong):
        right, other = (model.match(image, model.encode_text(model.tokenize(texts))) for texts in (caption, wrong))
        return right > other

    model, batch = tiny()
    with exact, torch.no_grad():
        image, others = model.encode_image(batch), [TEXTS[1], TEXTS[2], TEXTS[0]]
        found = says(model, image, TEXTS, others)
        assert torch.equal(found, ~says(model, image, others, TEXTS)) and found.shape == (3,)
        table = model.similarity(image, model.encode_text(batch.text))
        assert found.tolist() == [bool(table[i, i] > table[i, (i + 1) % 3]) for i in range(3)]


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "ddb06f6e")
def test_says_starter_fails(setup_a6b8de90):
    TEXTS, exact, _, tiny = setup_a6b8de90

    def says(model, image, caption, wrong):
        return torch.ones(len(caption), dtype=torch.bool)

    with pytest.raises(Exception):
        model, batch = tiny()
        with exact, torch.no_grad():
            image, others = model.encode_image(batch), [TEXTS[1], TEXTS[2], TEXTS[0]]
            found = says(model, image, TEXTS, others)
            assert torch.equal(found, ~says(model, image, others, TEXTS)) and found.shape == (3,)
            table = model.similarity(image, model.encode_text(batch.text))
            assert found.tolist() == [bool(table[i, i] > table[i, (i + 1) % 3]) for i in range(3)]


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "686f57bc")
def test_after_prefix(setup_a6b8de90):
    _, exact, _, tiny = setup_a6b8de90

    def after_prefix(model, image, ids, words):
        return suffix_log_prob(*model.core(ids, words, image.tokens, image.mask)) - suffix_log_prob(
            *model.core(ids, words)
        )

    model, batch = tiny()
    model.double()
    batch.features = batch.features.double()
    image, words = model.encode_image(batch), torch.tensor([3, 0, 5])
    with exact:
        found = after_prefix(model, image, batch.text.ids, words)
        torch.testing.assert_close(found[1], model.match(image, model.encode_text(batch.text))[1], rtol=0, atol=1e-9)
        blind = after_prefix(model, image._replace(mask=torch.zeros_like(image.mask)), batch.text.ids, words)
        torch.testing.assert_close(blind, torch.zeros(3).double(), rtol=0, atol=1e-9)


@pytest.mark.nb("nbs/4_pretraining/16a_simvlm.ipynb", "686f57bc")
def test_after_prefix_starter_fails(setup_a6b8de90):
    _, exact, _, tiny = setup_a6b8de90

    def after_prefix(model, image, ids, words):
        return suffix_log_prob(*model.core(ids, words, image.tokens, image.mask))

    with pytest.raises(Exception):
        model, batch = tiny()
        model.double()
        batch.features = batch.features.double()
        image, words = model.encode_image(batch), torch.tensor([3, 0, 5])
        with exact:
            found = after_prefix(model, image, batch.text.ids, words)
            torch.testing.assert_close(
                found[1], model.match(image, model.encode_text(batch.text))[1], rtol=0, atol=1e-9
            )
            blind = after_prefix(model, image._replace(mask=torch.zeros_like(image.mask)), batch.text.ids, words)
            torch.testing.assert_close(blind, torch.zeros(3).double(), rtol=0, atol=1e-9)
