"""Generated from nbs/5_prompting/20_cloze.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers import BertConfig
from transformers import BertForMaskedLM
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from transformers import PreTrainedTokenizerFast
from vlp_course.nn.language import wrap
from vlp_course.prompts.cloze import (
    Answers,
    HOW,
    Template,
    Verbalizer,
    ask,
    calibrate,
    class_scores,
    distillation_loss,
    merge_patterns,
    pattern_loss,
    verbalizer,
    word_prior,
)


@pytest.fixture(scope="module")
def setup_28c6b7cc():
    def toy_model(
        causal,
        words=(
            "good",
            "bad",
            "fine",
            "poor",
            "it",
            "was",
            "film",
            "a",
            "the",
            ".",
            "dull",
            "story",
            "very",
            "tale",
            "plot",
        ),
    ):
        """A tiny random model and tokenizer, one token a word: bert (with marks) or gpt2; 12 wide."""
        torch.manual_seed(0)
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *words])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks)),
        )
        sizes = {
            "hidden_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 20,
            "vocab_size": 20,
        }
        if causal:
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=20, n_positions=24, initializer_range=0.5)
            )
        else:
            model = BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=24, initializer_range=0.5))
        return wrap(model, tokenizer).freeze()

    return toy_model


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "84a8e1b9")
def test_a_template_by_hand(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    model = toy_model(causal=False)
    prompt = Template("the film : {text} it was {answer} .").encode(model, ["dull story", "very dull plot a"])
    names = model.tokenizer.convert_ids_to_tokens
    assert names(prompt.ids[0].tolist()) == [
        "[CLS]",
        "the",
        "film",
        "[UNK]",
        "dull",
        "story",
        "it",
        "was",
        "[MASK]",
        ".",
        "[SEP]",
        "[PAD]",
        "[PAD]",
    ]
    assert (
        prompt.answer.tolist() == [[8], [10]]
        and (prompt.ids[[0, 1], [8, 10]] == 4).all()
        and prompt.mask.sum(1).tolist() == [11, 13]
    )
    two = Template("{answer} : {text}").encode(model, ["plot"], blanks=2)
    assert names(two.ids[0].tolist()) == [
        "[CLS]",
        "[MASK]",
        "[MASK]",
        "[UNK]",
        "plot",
        "[SEP]",
    ] and two.answer.tolist() == [[1, 2]]
    last = Template("{text} it was {answer}").encode(toy_model(causal=True), ["dull story", "plot"])
    assert names(last.ids[1].tolist()) == ["plot", "it", "was", "[PAD]"] and last.answer.tolist() == [
        [3],
        [2],
    ]  # the state of "was" tells the word


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "ab934e82")
def test_only_the_text_is_shortened(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    model, template = toy_model(causal=False), Template("the {text} it was {answer} .")
    short, long = ["dull"], ["very " * 40 + "dull"]
    prompt = template.encode(model, short + long, length=12)
    assert prompt.mask.sum(1).tolist() == [8, 12] and torch.equal(
        prompt.ids[0, :8], template.encode(model, short).ids[0]
    )
    words = model.tokenizer.convert_ids_to_tokens(prompt.ids[1].tolist())
    assert words == ["[CLS]", "the", *["very"] * 5, "it", "was", "[MASK]", ".", "[SEP]"]
    assert template.encode(model, long, length=99).ids.shape[1] == 24  # never over the model's context
    with pytest.raises(ValueError, match="leaves no room for a text: the context holds 7 tokens"):
        template.encode(model, short, length=7)
    with pytest.raises(ValueError, match="leaves no room for a text: the context holds 24 tokens"):
        Template("the " * 25 + "{text} {answer}").encode(model, short)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "07bfc7e5")
def test_templates_that_are_refused(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    for pattern, message in (
        ("it was {answer}.", r"has 0 slots \{text\}: exactly one"),
        ("{text} it was", r"has 0 slots \{answer\}: exactly one"),
        ("{text} {text} {answer}", r"has 2 slots \{text\}"),
        ("{answer} {text} {answer}", r"has 2 slots \{answer\}"),
        ("{text} {answer} {label}", r"neither \{text\} nor \{answer\}"),
    ):
        with pytest.raises(ValueError, match=message):
            Template(pattern)
    for pattern in ("{text} it was {answer} .", "{answer} {text}"):
        with pytest.raises(ValueError, match="a causal model reads from left to right, so {answer} must come last"):
            Template(pattern).encode(toy_model(causal=True), ["plot"])


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "c96a779a")
def test_label_words(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    tokenizer = toy_model(causal=False).tokenizer
    v = verbalizer(tokenizer, [["bad", "poor"], ["good"]])
    assert v.words == ["bad", "poor", "good"] and v.tokens == [[6], [8], [5]] and v.classes.tolist() == [0, 0, 1]
    assert verbalizer(tokenizer, [["very dull"], ["good"]], several=True).tokens == [[17, 15], [5]]
    for words, message in (
        ([["bad"], ["splendid"]], "label word 'splendid' is not in the vocabulary"),
        ([["bad"], ["good", "bad"]], "label word 'bad' is there twice"),
        ([["very dull"], ["good"]], r"label word 'very dull' has 2 tokens \(very dull\) where one is needed"),
        ([["bad"], []], "two classes or more, and a label word for each"),
        ([["bad"]], "two classes or more"),
    ):
        with pytest.raises(ValueError, match=message):
            verbalizer(tokenizer, words)
    with pytest.raises(ValueError, match="label word 'bad' is there twice"):
        verbalizer(tokenizer, [["bad", "bad"], ["good"]])


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "c958c0e8")
def test_asking_one_by_one(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    for causal in (False, True):
        model = toy_model(causal)
        template, texts = (
            Template("{text} it was {answer}"),
            ["dull story", "a very very fine plot", "tale", "the film"],
        )
        v = verbalizer(model.tokenizer, [["bad", "poor"], ["good"]])
        with torch.no_grad():
            found = ask(model, template, texts, v, size=3)
            for row, text in enumerate(texts):  # each alone, without padding
                ids = torch.tensor(
                    [
                        [
                            *([] if causal else [2]),
                            *model.tokenizer(f"{text} it was", add_special_tokens=False)["input_ids"],
                            *([] if causal else [4, 3]),
                        ]
                    ]
                )
                logits = model.scores(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[
                    0, -1 if causal else -2
                ]
                torch.testing.assert_close(found.logits[row], logits[[6, 8, 5]], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(found.total[row], logits.logsumexp(0), rtol=1e-4, atol=1e-4)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "56dac488")
def test_words_of_several_tokens(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    causal, masked = toy_model(True), toy_model(False)
    template, texts = Template("{text} it was {answer}"), ["dull story", "a tale"]
    with torch.no_grad():
        for model in (causal, masked):
            one = verbalizer(model.tokenizer, [["bad"], ["good"]])
            plain = ask(model, template, texts, one)
            mixed = ask(
                model, template, texts, verbalizer(model.tokenizer, [["bad"], ["good", "very fine"]], several=True)
            )
            torch.testing.assert_close(
                mixed.logits[:, :2], plain.logits - plain.total[:, None], rtol=1e-4, atol=1e-4
            )  # one token: the same
        words = causal.tokenizer("dull story it was very fine", add_special_tokens=False)["input_ids"]
        log_probs = causal.scores(causal.hidden(torch.tensor([words]), torch.ones(1, 6, dtype=torch.bool)))[
            0
        ].log_softmax(-1)
        chain = log_probs[3, words[4]] + log_probs[4, words[5]]
        found = ask(
            causal, template, texts, verbalizer(causal.tokenizer, [["bad"], ["very fine"]], several=True)
        ).logits[0, 1]
        torch.testing.assert_close(found, chain, rtol=1e-4, atol=1e-4)
        pseudo = 0.0
        for hidden in (0, 1):  # masked: hide one, show the other
            row = [2, *words[:4], *(4 if j == hidden else w for j, w in enumerate(words[4:])), 3]
            pseudo += masked.scores(masked.hidden(torch.tensor([row]), torch.ones(1, 8, dtype=torch.bool)))[
                0, 5 + hidden
            ].log_softmax(0)[words[4 + hidden]]
        found = ask(
            masked, template, texts, verbalizer(masked.tokenizer, [["bad"], ["very fine"]], several=True)
        ).logits[0, 1]
        torch.testing.assert_close(found, pseudo, rtol=1e-4, atol=1e-4)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "801f5c4b")
def test_three_aggregations_three_answers():
    p = torch.tensor([[0.40, 0.0001, 0.10, 0.10, 0.05, 0.06]])  # of the whole vocabulary; the other words have the rest
    answers, classes = Answers(p.log() + 3.0, torch.tensor([3.0])), torch.tensor([0, 0, 1, 1, 2, 2])
    prior = torch.tensor([0.4, 0.1, 0.2, 0.2, 0.05, 0.05])
    found = {how: class_scores(answers, classes, how, prior if how == "mean_log_prob" else None) for how in HOW}
    assert [int(s.argmax()) for s in found.values()] == [1, 2, 0]  # PET, OpenPrompt with a prior, AutoPrompt
    torch.testing.assert_close(found["mean_logits"][0, 1], torch.tensor(0.10).log() + 3)
    torch.testing.assert_close(found["sum_prob"].exp(), torch.tensor([[0.4001, 0.2, 0.11]]))
    ratio = p[0] / prior / (p[0] / prior).sum()
    torch.testing.assert_close(found["mean_log_prob"][0, 2], ratio[4:].log().mean())
    plain = class_scores(answers, classes, "mean_log_prob")
    torch.testing.assert_close(plain.softmax(1), found["mean_logits"].softmax(1))  # without a prior, the same choice
    assert not torch.allclose(plain, found["mean_logits"])
    torch.testing.assert_close(word_prior(Answers(prior[None].log(), torch.zeros(1))), prior)
    with pytest.raises(
        ValueError, match="unknown aggregation 'max': choose one of mean_logits, mean_log_prob, sum_prob"
    ):
        class_scores(answers, classes, "max")
    with pytest.raises(ValueError, match="sum_prob takes no prior of words"):
        class_scores(answers, classes, "sum_prob", prior)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "3a68a06b")
def test_one_word_a_class_leaves_no_choice():
    answers = Answers(torch.randn(7, 3), torch.randn(7) + 9)
    scores = [class_scores(answers, torch.arange(3), how).softmax(1) for how in HOW]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "f20c0910")
def test_calibration_by_hand():
    scores, blank = torch.tensor([[0.6, 0.4], [0.9, 0.1]]).log(), torch.tensor([[0.7, 0.3], [0.8, 0.2]]).log()
    ratio = torch.tensor([[0.6 / 0.75, 0.4 / 0.25], [0.9 / 0.75, 0.1 / 0.25]])
    torch.testing.assert_close(calibrate(scores, blank).exp(), ratio / ratio.sum(1, keepdim=True))
    assert calibrate(scores, blank).argmax(1).tolist() == [1, 0] and scores.argmax(1).tolist() == [0, 0]
    torch.testing.assert_close(calibrate(scores + 3, blank - 2), calibrate(scores, blank))  # a shift is no matter
    torch.testing.assert_close(calibrate(blank[:1], blank[:1]).exp(), torch.full((1, 2), 0.5))  # nothing in, even out


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "50220d52")
def test_pet_by_hand():
    logits = torch.tensor([[[1.0, 3.0]], [[5.0, 0.0]]])
    torch.testing.assert_close(merge_patterns(logits, torch.tensor([0.75, 0.25])), torch.tensor([[2.0, 2.25]]))
    torch.testing.assert_close(
        merge_patterns(logits, torch.tensor([0.6, 0.2])), merge_patterns(logits, torch.tensor([0.75, 0.25]))
    )
    p, q = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    want = 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(
        distillation_loss(2 * q.log()[None], 2 * p.log()[None]), want
    )  # at T = 2 these are p and q
    assert distillation_loss(logits[0], logits[0]).abs() < 1e-6
    with pytest.raises(ValueError, match="temperature 0: must be above 0"):
        distillation_loss(logits[0], logits[0], 0)
    with pytest.raises(ValueError, match="weights of patterns are accuracies"):
        merge_patterns(logits, torch.zeros(2))


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "b067466f")
def test_gradients_do_not_shrink_with_temperature():
    teacher = torch.tensor([[0.02, -0.01, 0.03]])  # small logits: the limit in which the factor is exact
    grads = []
    for t in (1.0, 2.0, 8.0):
        student = torch.zeros(1, 3, requires_grad=True)
        distillation_loss(student, teacher, t).backward()
        grads.append(student.grad.clone())
    torch.testing.assert_close(grads[1], grads[0], rtol=0.02, atol=1e-5)
    torch.testing.assert_close(grads[2], grads[0], rtol=0.02, atol=1e-5)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "1d59de7b")
def test_a_pattern_learns(setup_28c6b7cc):
    toy_model = setup_28c6b7cc
    model = toy_model(causal=False).train().requires_grad_(True)
    template, v = Template("{text} it was {answer}"), verbalizer(model.tokenizer, [["bad"], ["good"]])
    texts, labels = ["dull film", "fine film", "dull plot", "fine plot"], torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.AdamW(model.parameters(), 0.01)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = pattern_loss(model, template, v, texts, labels)
        loss.backward(), optimiser.step(), losses.append(loss.item())
    assert losses[-1] < 0.3 < losses[0] or losses[-1] < 0.1 * losses[0]
    assert ask(model.eval(), template, ["fine tale"], v).logits.diff().item() > 0  # a text that was not there


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "d6ddaf21")
def test_shorten():
    def shorten(a, b, room):
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        return a, b

    assert shorten(30, 4, 20) == (16, 4) and shorten(4, 30, 20) == (4, 16) and shorten(5, 6, 20) == (5, 6)
    assert shorten(30, 31, 20) == (10, 10) and shorten(3, 3, 5) == (3, 2)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "d6ddaf21")
def test_shorten_starter_fails():
    def shorten(a, b, room):
        return min(a, room), max(0, room - a)

    with pytest.raises(Exception):
        assert shorten(30, 4, 20) == (16, 4) and shorten(4, 30, 20) == (4, 16) and shorten(5, 6, 20) == (5, 6)
        assert shorten(30, 31, 20) == (10, 10) and shorten(3, 3, 5) == (3, 2)


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "91b34795")
def test_fitted_shift():
    def fitted_shift(margin, labels):
        ordered = margin.sort().values
        cuts = torch.cat([ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2, ordered[-1:] + 1])
        hits = ((margin[None] > cuts[:, None]).long() == labels).sum(1)
        return cuts[hits.argmax()]

    margin, labels = torch.tensor([0.2, 5.0, 0.9, 1.5, 1.1]), torch.tensor([0, 1, 0, 1, 1])
    shift = fitted_shift(margin, labels)
    assert 0.9 < shift < 1.1 and ((margin > shift).long() == labels).all()
    assert ((margin > fitted_shift(margin, torch.ones(5, dtype=torch.long))) == 1).all()


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "91b34795")
def test_fitted_shift_starter_fails():
    def fitted_shift(margin, labels):
        return margin.mean()

    with pytest.raises(Exception):
        margin, labels = torch.tensor([0.2, 5.0, 0.9, 1.5, 1.1]), torch.tensor([0, 1, 0, 1, 1])
        shift = fitted_shift(margin, labels)
        assert 0.9 < shift < 1.1 and ((margin > shift).long() == labels).all()
        assert ((margin > fitted_shift(margin, torch.ones(5, dtype=torch.long))) == 1).all()


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "53e0068b")
def test_per_token():
    def per_token(answers, words):
        return answers._replace(logits=answers.logits / torch.tensor([len(t) for t in words.tokens]))

    words = Verbalizer(["a", "b c d"], [[5], [6, 7, 8]], torch.tensor([0, 1]))
    answers = Answers(torch.tensor([[-4.0, -6.0]]), torch.zeros(1))
    assert (
        class_scores(answers, words.classes).argmax() == 0
        and class_scores(per_token(answers, words), words.classes).argmax() == 1
    )


@pytest.mark.nb("nbs/5_prompting/20_cloze.ipynb", "53e0068b")
def test_per_token_starter_fails():
    def per_token(answers, words):
        return answers

    with pytest.raises(Exception):
        words = Verbalizer(["a", "b c d"], [[5], [6, 7, 8]], torch.tensor([0, 1]))
        answers = Answers(torch.tensor([[-4.0, -6.0]]), torch.zeros(1))
        assert (
            class_scores(answers, words.classes).argmax() == 0
            and class_scores(per_token(answers, words), words.classes).argmax() == 1
        )
