"""Generated from nbs/5_prompting/20c_autoprompt.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import itertools
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from transformers import BertConfig
from transformers import BertForMaskedLM
from transformers import PreTrainedTokenizerFast
from vlp_course.data.snippets import Snippets
from vlp_course.nn.language import wrap
from vlp_course.prompts.cloze import Template
from vlp_course.prompts.cloze import verbalizer
from vlp_course.prompts.autoprompt import (
    _better,
    bans,
    candidates,
    label_loss,
    mask_features,
    place_trigger,
    search_label_words,
    search_trigger,
    slot_gradient,
    trigger_loss,
)


@pytest.fixture(scope="module")
def setup_4832e9f9():
    WORDS_OF_TOY = (
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
    )

    def toy_masked(spread=0.5):
        """A tiny random BERT with a one-token-a-word tokenizer."""
        torch.manual_seed(0)
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *WORDS_OF_TOY])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks)),
        )
        config = BertConfig(
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=18,
            vocab_size=20,
            max_position_embeddings=64,
            initializer_range=spread,
        )
        return wrap(BertForMaskedLM(config), tokenizer).freeze()

    def toy_task():
        """Toy model, label words, six texts with their labels."""
        model = toy_masked()
        words = verbalizer(model.tokenizer, [["bad", "poor"], ["good", "fine"]])
        texts = ["dull story", "very very dull plot", "the tale", "a film", "it was dull", "the plot a story"]
        return model, words, texts, torch.tensor([0, 0, 1, 1, 0, 1])

    return toy_masked, toy_task


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "81801ef8")
def test_a_trigger_in_its_place(setup_4832e9f9):
    toy_masked, _ = setup_4832e9f9
    model = toy_masked()
    prompt, slots = place_trigger(model, ["dull story", "plot"], torch.tensor([7, 5, 9]))
    names = model.tokenizer.convert_ids_to_tokens
    assert names(prompt.ids[0].tolist()) == ["[CLS]", "dull", "story", "fine", "good", "it", "[MASK]", ".", "[SEP]"]
    assert (
        slots.tolist() == [[3, 4, 5], [2, 3, 4]]
        and prompt.answer.tolist() == [[6], [5]]
        and prompt.mask.sum(1).tolist() == [9, 8]
    )
    cut, _ = place_trigger(model, ["very " * 30], torch.tensor([7, 5, 9]), length=10)
    assert names(cut.ids[0].tolist()) == ["[CLS]", *["very"] * 3, "fine", "good", "it", "[MASK]", ".", "[SEP]"]
    for trigger, length, message in (
        (torch.tensor([], dtype=torch.long), 64, "an empty trigger"),
        (torch.arange(5, 11), 10, "a trigger of 6 tokens leaves no room for a text"),
    ):
        with pytest.raises(ValueError, match=message):
            place_trigger(model, ["plot"], trigger, length)
    model.causal = True
    with pytest.raises(ValueError, match="it needs a masked language model"):
        place_trigger(model, ["plot"], torch.tensor([5]))


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "f0675ea8")
def test_the_loss_by_hand(setup_4832e9f9):
    toy_masked, _ = setup_4832e9f9
    words = verbalizer(toy_masked().tokenizer, [["bad", "poor"], ["good"]])
    p = torch.full((2, 20), 0.02)
    p[:, 6], p[:, 8], p[:, 5] = 0.3, 0.1, 0.26  # bad, poor, good; rows sum to 1
    loss = label_loss(p.log() + 4.0, torch.tensor([0, 1]), words)
    torch.testing.assert_close(loss, -torch.tensor([0.4, 0.26]).log())
    first = verbalizer(toy_masked().tokenizer, [["[PAD]"], ["good"]])  # token 0 is a word like any other
    torch.testing.assert_close(label_loss(p.log(), torch.tensor([0, 1]), first), -torch.tensor([0.02, 0.26]).log())


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "b03ae3bd")
def test_the_gradient_is_that_of_differences(setup_4832e9f9):
    _, toy_task = setup_4832e9f9
    model, words, texts, labels = toy_task()
    model, trigger = model.double(), torch.tensor([9, 17])
    found, base = slot_gradient(model, texts, labels, words, trigger), model.table[trigger].detach()
    for slot, axis in ((0, 3), (1, 7), (1, 0)):
        step = torch.zeros_like(base)
        step[slot, axis] = 1e-5
        ends = [trigger_loss(model, texts, labels, words, trigger, base + sign * step) for sign in (1, -1)]
        torch.testing.assert_close(found[slot, axis], (ends[0] - ends[1]).detach() / 2e-5, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        trigger_loss(model, texts, labels, words, trigger, base), trigger_loss(model, texts, labels, words, trigger)
    )
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "ad1c3f54")
def test_candidates_by_hand():
    table, gradient = torch.tensor([[1.0, 0], [-3, 0], [0, 2], [-1, -1], [2, 5]]), torch.tensor([1.0, 0.5])
    none = torch.zeros(5, dtype=torch.bool)
    assert candidates(table, gradient, 2, none).tolist() == [1, 3]  # -E g = -1, 3, -1, 1.5, -4.5
    banned = torch.tensor([False, True, False, False, False])
    assert candidates(table, gradient, 1, banned).tolist() == [3]
    assert 1 not in candidates(table, -gradient, 4, banned).tolist()  # nor when the sign is turned
    with pytest.raises(ValueError, match="5 candidates: only 4 words are not banned"):
        candidates(table, gradient, 5, banned)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "15cea5f8")
def test_only_strictly_better_is_taken(setup_4832e9f9):
    _, toy_task = setup_4832e9f9
    model, words, texts, labels = toy_task()
    batch, trigger = Snippets(texts, labels), torch.tensor([9, 12])
    loss = lambda t: trigger_loss(model, texts, labels, words, t).item()
    with torch.no_grad():
        every = torch.arange(9, 20)
        best = _better(model, batch, words, trigger, 1, every)
        assert loss(best) == min(loss(torch.tensor([9, int(o)])) for o in [12, *every]) and best[0] == 9
        worse = torch.tensor([o for o in every.tolist() if loss(torch.tensor([9, o])) >= loss(best)])
        assert torch.equal(
            _better(model, batch, words, best, 1, worse), best
        )  # as good is not better: the same word is among them


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "8f20f5dd")
def test_the_search_never_gets_worse_on_dev(setup_4832e9f9):
    _, toy_task = setup_4832e9f9
    model, words, texts, labels = toy_task()
    data = Snippets(texts, labels)
    found = search_trigger(model, data, data, words, length=2, iterations=25, count=4, size=5, seed=1)
    start = found.history[0]
    assert start[2] == ["[MASK]", "[MASK]"] and found.loss == min(h[1] for h in found.history) < start[1]
    with torch.no_grad():
        assert trigger_loss(model, *data, words, found.trigger).item() == pytest.approx(found.loss)
        allowed = [i for i in range(20) if not bans(model, words)[i]]
        every = {
            pair: trigger_loss(model, *data, words, torch.tensor(pair)).item()
            for pair in itertools.product(allowed, repeat=2)
        }
    place = sorted(every.values()).index(pytest.approx(found.loss))
    assert (
        set(found.trigger.tolist()) <= set(allowed) and place < len(every) // 4
    )  # among the best quarter of all pairs
    assert torch.equal(search_trigger(model, data, data, words, 2, 25, 4, 5, seed=1).trigger, found.trigger)
    assert [len(set(a[2]) ^ set(b[2])) <= 2 for a, b in zip(found.history, found.history[1:])]
    with pytest.raises(ValueError, match="batches of 7 from 6 texts"):
        search_trigger(model, data, data, words, size=7)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "64f80cb8")
def test_what_may_not_stand_in_a_trigger(setup_4832e9f9):
    _, toy_task = setup_4832e9f9
    model, words, _, _ = toy_task()
    banned = bans(model, words)
    assert banned[:5].all() and banned[[5, 6, 7, 8]].all() and not banned[9:].any()


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "2e03d973")
def test_fresh_batches_propose_and_decide(setup_4832e9f9):
    _, toy_task = setup_4832e9f9
    seen = []
    model, words, texts, labels = toy_task()
    tokenizer = model.tokenizer

    class Watch(torch.nn.Module):
        """Counts what passes."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_input_embeddings(self):
            return self.inner.get_input_embeddings()

        def forward(self, **given):
            seen.append(len(given["attention_mask"]))
            return self.inner(**given)

    model.base = Watch(model.base)
    search_trigger(
        model, Snippets(texts, labels), Snippets(texts[:2], labels[:2]), words, iterations=4, count=3, size=5
    )
    dev = seen.count(2)
    assert len(seen) - dev == 4 * (1 + 1 + 3) and 1 <= dev <= 5  # a gradient, the current trigger, three candidates


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "971c9bf6")
def test_label_words_of_planted_features(setup_4832e9f9):
    toy_masked, _ = setup_4832e9f9
    g = torch.Generator().manual_seed(0)
    table = 0.3 * torch.randn(30, 6, generator=g)
    table[[4, 17, 22]] = 2 * torch.eye(6)[:3]
    labels = torch.arange(90) % 3
    features = table[[4, 17, 22]][labels] + 0.1 * torch.randn(90, 6, generator=g)  # each class looks like one word
    none = torch.zeros(30, dtype=torch.bool)
    found = search_label_words(features, labels, table, 3, none)
    assert 4 in found[0] and 17 in found[1] and 22 in found[2] and len(found[0]) == 3
    banned = none.clone()
    banned[4] = True
    assert 4 not in search_label_words(features, labels, table, 3, banned)[0]
    with pytest.raises(ValueError, match="9 words for each of 3 classes: only 25 are not banned"):
        search_label_words(features, labels, table, 9, banned | (torch.arange(30) < 4))
    model = toy_masked()
    rows = mask_features(model, Template("{text} it was {answer}"), ["dull story", "a very dull plot", "tale"], size=2)
    alone = mask_features(model, Template("{text} it was {answer}"), ["tale"])
    torch.testing.assert_close(rows[2], alone[0], rtol=1e-4, atol=1e-5)
    assert rows.shape == (3, 12)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "6019b2d3")
def test_passes(setup_4832e9f9):
    _, toy_task = setup_4832e9f9

    def passes(iterations, count, accepted):
        return (
            iterations * (1 + 1 + count) + 1 + accepted
        )  # gradient, current trigger, candidates; dev at the start and after exchanges

    calls = []
    model, words, texts, labels = toy_task()
    model.base.register_forward_hook(lambda *_: calls.append(1))
    found = search_trigger(
        model, Snippets(texts, labels), Snippets(texts[:2], labels[:2]), words, iterations=6, count=3, size=5
    )
    assert len(calls) == passes(6, 3, len(found.history) - 1)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "6019b2d3")
def test_passes_starter_fails(setup_4832e9f9):
    _, toy_task = setup_4832e9f9

    def passes(iterations, count, accepted):
        return iterations * count

    with pytest.raises(Exception):
        calls = []
        model, words, texts, labels = toy_task()
        model.base.register_forward_hook(lambda *_: calls.append(1))
        found = search_trigger(
            model, Snippets(texts, labels), Snippets(texts[:2], labels[:2]), words, iterations=6, count=3, size=5
        )
        assert len(calls) == passes(6, 3, len(found.history) - 1)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "3c8f39de")
def test_best_exchange():
    def best_exchange(table, gradient, trigger, banned):
        """The (slot, word) of the lowest first-order estimate: here the word that stands in each slot matters."""
        scores = (table @ gradient.T - (table[trigger] * gradient).sum(1)).masked_fill(banned[:, None], torch.inf)
        return divmod(int(scores.T.argmin()), len(table))

    table, trigger = torch.tensor([[4.0], [1.0], [0.0]]), torch.tensor([0, 2])
    gradient = torch.tensor([[0.5], [-1.0]])  # slot 0: 4 to 0 gains 2; slot 1: 0 to 4 gains 4
    assert best_exchange(table, gradient, trigger, torch.zeros(3, dtype=torch.bool)) == (1, 0)
    gradient = torch.tensor([[1.0], [-0.5]])  # slot 0: 4 to 0 gains 4; slot 1: 0 to 4 gains 2, though it scores lower
    assert best_exchange(table, gradient, trigger, torch.zeros(3, dtype=torch.bool)) == (0, 2)


@pytest.mark.nb("nbs/5_prompting/20c_autoprompt.ipynb", "3c8f39de")
def test_best_exchange_starter_fails():
    def best_exchange(table, gradient, trigger, banned):
        """The (slot, word) of the lowest first-order estimate."""
        scores = (table @ gradient.T).masked_fill(banned[:, None], torch.inf)
        return divmod(int(scores.T.argmin()), len(table))

    with pytest.raises(Exception):
        table, trigger = torch.tensor([[4.0], [1.0], [0.0]]), torch.tensor([0, 2])
        gradient = torch.tensor([[0.5], [-1.0]])  # slot 0: 4 to 0 gains 2; slot 1: 0 to 4 gains 4
        assert best_exchange(table, gradient, trigger, torch.zeros(3, dtype=torch.bool)) == (1, 0)
        gradient = torch.tensor(
            [[1.0], [-0.5]]
        )  # slot 0: 4 to 0 gains 4; slot 1: 0 to 4 gains 2, though it scores lower
        assert best_exchange(table, gradient, trigger, torch.zeros(3, dtype=torch.bool)) == (0, 2)
