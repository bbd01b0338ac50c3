"""Generated from nbs/5_prompting/20b1_cloze_head.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
import json
import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from safetensors.torch import load
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers import models
from tokenizers import pre_tokenizers
from torch import nn
from transformers import BertConfig
from transformers import BertModel
from transformers import PreTrainedTokenizerFast
from vlp_course.bases import base_folder
from vlp_course.data.assets import AssetError
from vlp_course.finetune import LoRA
from vlp_course.nn.language import LanguageModel
from vlp_course.mlm import (
    FILE,
    add_delta,
    cover,
    fill_up,
    like_lengths,
    load_mlm,
    masked_loss,
    masked_top1,
    pieces,
    prepare,
    save_delta,
    train,
)


@pytest.fixture(scope="module")
def setup_33592821():
    def toy_mlm(layers=2):
        """A tiny random BERT with a fresh head, dim 12, 19 words of which 14 are no marks."""
        torch.manual_seed(0)
        marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner = Tokenizer(
            models.WordLevel({w: i for i, w in enumerate([*marks, *"abcdefghijklmn"])}, unk_token="[UNK]")
        )
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), marks))
        base = BertModel(
            BertConfig(
                hidden_size=12,
                num_hidden_layers=layers,
                num_attention_heads=3,
                intermediate_size=20,
                vocab_size=19,
                initializer_range=0.4,
            ),
            add_pooling_layer=False,
        )
        return LanguageModel(base, PreTrainedTokenizerFast(tokenizer_object=inner, **names), False).freeze()

    return toy_mlm


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "717d8804")
def test_covering_counts(setup_33592821):
    toy_mlm = setup_33592821
    tokenizer = toy_mlm().tokenizer
    ids = torch.full((60, 50), 9)
    ids[:, 0], ids[:, -3:] = 2, 0  # a mark and padding, which are never covered
    covered, chosen = cover(ids, tokenizer, 0.3, torch.Generator().manual_seed(0))
    assert not chosen[:, 0].any() and not chosen[:, -3:].any() and torch.equal(covered[~chosen], ids[~chosen])
    assert abs(chosen[:, 1:-3].double().mean() - 0.3) < 0.04  # 2,760 words: four deviations are 0.035
    fate = covered[chosen]
    assert (
        abs((fate == 4).double().mean() - 0.8) < 0.06 and abs((fate == 9).double().mean() - 0.1 * (1 + 1 / 14)) < 0.05
    )
    assert fate[(fate != 4) & (fate != 9)].min() >= 5  # another word, not a mark
    all_masked, again = cover(ids, tokenizer, 0.3, torch.Generator().manual_seed(0), always=True)
    assert torch.equal(chosen, again) and (all_masked[again] == 4).all()
    rare, one = cover(torch.tensor([[2, 9, 3]]), tokenizer, 1e-9, torch.Generator().manual_seed(0))
    assert one.tolist() == [[False, True, False]]  # at least one
    with pytest.raises(ValueError, match="share 1.5: must lie above 0"):
        cover(ids, tokenizer, 1.5, torch.Generator())
    with pytest.raises(ValueError, match="the batch holds marks and padding only"):
        cover(torch.tensor([[2, 3, 0]]), tokenizer, 0.5, torch.Generator())
    assert fill_up([[1, 2], [3]], 7).tolist() == [[1, 2], [3, 7]] and pieces(tokenizer, ["a b c d", "c"], 3) == [
        [5, 6, 7],
        [7],
    ]


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "ff2c6bfd")
def test_training_lowers_the_loss_and_moves_only_head_and_delta(setup_33592821):
    toy_mlm = setup_33592821
    model = toy_mlm()
    rows = [
        [2, *(5 + (k + i) % 14 for i in range(9)), 3] for k in range(14)
    ]  # the alphabet: a gap is told by its neighbours
    texts = [" ".join("abcdefghijklmn"[i - 5] for i in row[1:-1]) for row in rows]
    prepare(model, rows, 4)
    model.tokenizer.backend_tokenizer.post_processor = None
    before, frozen = masked_top1(model, texts), model.base.encoder.layer[0].attention.self.query.base.weight.clone()
    losses = train(model, rows, 150, size=7)
    assert (
        np.mean(losses[-20:]) < 0.7 * np.mean(losses[:10]) and masked_top1(model, texts)["nats"] < before["nats"] - 0.5
    )
    assert torch.equal(frozen, model.base.encoder.layer[0].attention.self.query.base.weight) and not model.training
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(n.startswith("head.") or n.endswith((".down", ".up")) for n in learned) and len(learned) == 5 + 2 * 2 * 6


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "73406b4e")
def test_batches_of_like_length():
    lengths = [3, 30, 4, 31, 5, 29]
    found = like_lengths(lengths, 3, torch.Generator().manual_seed(0))
    assert sorted(map(sorted, found)) == [[0, 2, 4], [1, 3, 5]]
    assert found == like_lengths(lengths, 3, torch.Generator().manual_seed(0))


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "8a5741e5")
def test_only_covered_places_count(setup_33592821):
    toy_mlm = setup_33592821
    model = prepare(toy_mlm(), [[5]], 0)
    ids = torch.tensor([[2, 9, 8, 7, 3, 0, 0], [2, 6, 5, 9, 8, 10, 3]])
    g = torch.Generator().manual_seed(3)
    loss = masked_loss(model, ids, 0.4, g)
    covered, chosen = cover(ids, model.tokenizer, 0.4, torch.Generator().manual_seed(3))
    slow = [
        -model.scores(model.hidden(covered[b : b + 1], ids[b : b + 1] != 0))[0, t].log_softmax(-1)[ids[b, t]]
        for b, t in chosen.nonzero().tolist()
    ]
    torch.testing.assert_close(
        loss, torch.stack(slow).mean(), rtol=0.02, atol=0.02
    )  # bfloat16 where the machine has it
    wide = masked_loss(model, F.pad(ids, (0, 4)), 1.0, torch.Generator())
    torch.testing.assert_close(wide.isfinite().item(), True)


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "392cbb32")
def test_there_and_back(setup_33592821):
    toy_mlm = setup_33592821
    model = prepare(toy_mlm(), [[5, 6, 6]], 4)
    for n, p in model.named_parameters():
        if n.endswith(".up") or n.startswith("head."):
            nn.init.normal_(p, std=0.3)
    ids, mask = torch.tensor([[2, 9, 4, 3]]), torch.ones(1, 4, dtype=torch.bool)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, FILE)
        digest = save_delta(model, path)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest and path.stat().st_size < 12_000
        back = add_delta(toy_mlm(), path.read_bytes())
        want, found = (m.scores(m.hidden(ids, mask)) for m in (model, back))
        torch.testing.assert_close(found, want, rtol=0.01, atol=0.01)  # float16 in between
        head_only = add_delta(
            toy_mlm(), save({n: t for n, t in load(path.read_bytes()).items() if n.startswith("head.")})
        )
        assert not torch.allclose(
            found, head_only.scores(head_only.hidden(ids, mask)), atol=0.05
        )  # the delta does something
        assert not any(isinstance(m, LoRA) for m in back.modules()) and not any(
            p.requires_grad for p in back.parameters()
        )
        with pytest.raises(AssetError, match="this head and delta are of another model: 29 tensors, the model takes"):
            add_delta(toy_mlm(layers=1), path.read_bytes())
        with pytest.raises(
            AssetError, match=r"no minilm_mlm.safetensors in .*: make it with `python -m vlp_course.mlm`"
        ):
            load_mlm(Path(folder, "elsewhere"))


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "d36bcaa9")
def test_the_kept_file_is_that_of_the_record():
    root = next(place for place in [Path.cwd(), *Path.cwd().parents] if (place / "results").is_dir())
    for path in (root / "results/mlm").glob("minilm-*.json"):
        kept = (base_folder() / FILE).read_bytes()
        assert json.loads(path.read_text())["file_sha"] == hashlib.sha256(kept).hexdigest() and len(kept) < 3_000_000
        model = load_mlm()
        given = model.tokenizer(["this is the best [MASK] of the year ."], return_tensors="pt")
        with torch.no_grad():
            states = model.hidden(given["input_ids"], given["attention_mask"].bool())
            best = model.scores(states[0, given["input_ids"][0].tolist().index(103)]).topk(20).indices
        assert "film" in model.tokenizer.convert_ids_to_tokens(best.tolist())


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "2c6d5d18")
def test_seen(setup_33592821):
    toy_mlm = setup_33592821

    def seen(share):
        return 1 - share + 0.1 * share, 0.1

    ids = torch.full((300, 40), 9)
    covered, chosen = cover(ids, toy_mlm().tokenizer, 0.3, torch.Generator().manual_seed(0))
    same, asked = (covered == 9).double().mean().item(), (covered[chosen] == 9).double().mean().item()
    assert abs(same - seen(0.3)[0]) < 0.02 and abs(asked - seen(0.3)[1]) < 0.03


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "2c6d5d18")
def test_seen_starter_fails(setup_33592821):
    toy_mlm = setup_33592821

    def seen(share):
        return 1 - share, 0.0

    with pytest.raises(Exception):
        ids = torch.full((300, 40), 9)
        covered, chosen = cover(ids, toy_mlm().tokenizer, 0.3, torch.Generator().manual_seed(0))
        same, asked = (covered == 9).double().mean().item(), (covered[chosen] == 9).double().mean().item()
        assert abs(same - seen(0.3)[0]) < 0.02 and abs(asked - seen(0.3)[1]) < 0.03


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "79ee018b")
def test_whole_words():
    def whole_words(chosen, continues):
        """A word is drawn if its first piece is."""
        starts = (
            torch.arange(chosen.shape[1]).expand_as(chosen).where(~continues, 0).cummax(1).values
        )  # where a piece's word begins
        return chosen.gather(1, starts)

    chosen = torch.tensor([[True, False, False, True, False], [False, True, False, False, True]])
    continues = torch.tensor([[False, True, True, False, False], [False, True, False, False, True]])
    assert whole_words(chosen, continues).tolist() == [[True, True, True, True, False], [False] * 5]


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "79ee018b")
def test_whole_words_starter_fails():
    def whole_words(chosen, continues):
        """chosen, continues: which pieces are drawn, which continue a word (##)."""
        return chosen

    with pytest.raises(Exception):
        chosen = torch.tensor([[True, False, False, True, False], [False, True, False, False, True]])
        continues = torch.tensor([[False, True, True, False, False], [False, True, False, False, True]])
        assert whole_words(chosen, continues).tolist() == [[True, True, True, True, False], [False] * 5]
