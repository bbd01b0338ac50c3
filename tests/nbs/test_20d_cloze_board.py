"""Generated from nbs/5_prompting/20d_cloze_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from torch import nn
from transformers import BertConfig
from transformers import BertForMaskedLM
from transformers import PreTrainedTokenizerFast
from vlp_course.data.snippets import Snippets
from vlp_course.data.snippets import in_batches
from vlp_course.lab import result_path
from vlp_course.nn.language import wrap
from vlp_course.prompts.cloze import Template
from vlp_course.prompts.cloze import ask
from vlp_course.prompts.cloze import merge_patterns
from vlp_course.prompts.cloze import verbalizer
from vlp_course.cloze_board import Classifier, MORE, PATTERNS, ROWS, WORDS, hand_scores, main, right, tune


@pytest.fixture(scope="module")
def setup_36b6f067():
    def toy_reader():
        """A tiny random BERT with a head; one token a word."""
        torch.manual_seed(0)
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = sorted(
            {w for group in MORE for w in group} | set("a film was it plot all in i think that is one : . ,".split())
        )
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*marks, *words])}, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            **dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks)),
        )
        config = BertConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=3,
            intermediate_size=18,
            vocab_size=len(marks) + len(words),
            max_position_embeddings=40,
            initializer_range=0.5,
        )
        return wrap(BertForMaskedLM(config), tokenizer).freeze()

    return toy_reader


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "a50bba28")
def test_hand_scores_are_shares_of_right_answers(setup_36b6f067):
    toy_reader = setup_36b6f067
    model, data = (
        toy_reader(),
        Snippets(["a film", "plot plot", "it was a plot", "i think"], torch.tensor([0, 1, 1, 0])),
    )
    found = hand_scores(model, PATTERNS[0], data)
    words = verbalizer(model.tokenizer, WORDS)
    with torch.no_grad():
        slow = [
            int(ask(model, Template(PATTERNS[0]), [t], words).logits.argmax()) == l
            for t, l in zip(data.texts, data.labels.tolist())
        ]
    assert found["raw"] == list(map(int, slow)) and all(len(v) == 4 and set(v) <= {0, 1} for v in found.values())
    assert found["five/mean_logits"] == found["five/mean_log_prob"] and len(found) == 9
    assert right(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), Snippets(["a", "b"], torch.tensor([1, 1]))) == [1, 0]


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "045db4f5")
def test_the_classifier_pools_words_only(setup_36b6f067):
    toy_reader = setup_36b6f067
    model = toy_reader()
    net = Classifier(model, 3)
    nn.init.normal_(net.out.weight)
    with torch.no_grad():
        both, alone = net(["a film", "it was a plot in a film"]), net(["a film"])
    torch.testing.assert_close(both[:1], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        in_batches(net, ["it was a plot in a film", "a film"], size=1)[1], alone[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "17610ea4")
def test_tuning_moves_the_trunk_and_not_the_words(setup_36b6f067):
    toy_reader = setup_36b6f067
    net, texts, labels = (
        Classifier(toy_reader()),
        ["film film", "plot plot", "a film", "a plot"],
        torch.tensor([0, 1, 0, 1]),
    )
    table = net.model.table.clone()
    layer = net.model.base.encoder.layer[0].attention.self.query.weight.clone()
    tune(net, lambda rows: F.cross_entropy(net([texts[i] for i in rows]), labels[rows]), 4, 40, lr=1e-2, size=2)
    assert torch.equal(table, net.model.table) and not torch.equal(
        layer, net.model.base.encoder.layer[0].attention.self.query.weight
    )
    assert right(in_batches(net, texts), Snippets(texts, labels)) == [1, 1, 1, 1] and not net.training


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "b0f768c6")
def test_what_is_there_is_not_done_again():
    with tempfile.TemporaryDirectory() as folder:
        for row, seeds in ROWS.items():
            for seed in range(seeds):
                path = result_path(Path(folder), "cloze", {"row": row, "budget": "quick", "seed": seed})
                path.parent.mkdir(exist_ok=True)
                path.write_text("{}")
        main(["--results", folder])  # nothing to do: no model is loaded
        assert all(p.read_text() == "{}" for p in Path(folder, "cloze").iterdir())
        with pytest.raises(SystemExit):
            main(["--rows", "nothing", "--results", folder])


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "95ff26b3")
def test_half_width():
    def half_width(share, texts):
        return 1.96 * (share * (1 - share) / texts) ** 0.5

    assert half_width(0.5, 1000) == pytest.approx(0.031, abs=5e-4) and half_width(1.0, 50) == 0


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "95ff26b3")
def test_half_width_starter_fails():
    def half_width(share, texts):
        return 1.96 * share / texts**0.5

    with pytest.raises(Exception):
        assert half_width(0.5, 1000) == pytest.approx(0.031, abs=5e-4) and half_width(1.0, 50) == 0


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "d8fe8ab8")
def test_above_guessing():
    def above_guessing(accuracy, classes=2):
        return (accuracy - 1 / classes).clamp(min=0)

    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 4.0]]])
    found = merge_patterns(logits, above_guessing(torch.tensor([0.7, 0.5])))
    assert torch.equal(found, logits[0]) and above_guessing(torch.tensor([0.4])).item() == 0


@pytest.mark.nb("nbs/5_prompting/20d_cloze_board.ipynb", "d8fe8ab8")
def test_above_guessing_starter_fails():
    def above_guessing(accuracy, classes=2):
        return accuracy

    with pytest.raises(Exception):
        logits = torch.tensor([[[1.0, 0.0]], [[0.0, 4.0]]])
        found = merge_patterns(logits, above_guessing(torch.tensor([0.7, 0.5])))
        assert torch.equal(found, logits[0]) and above_guessing(torch.tensor([0.4])).item() == 0
