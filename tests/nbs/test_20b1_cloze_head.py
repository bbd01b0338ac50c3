"""Generated from nbs/5_prompting/20b1_cloze_head.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import hashlib
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
                hidden_size=12, num_hidden_layers=layers, num_attention_heads=3, intermediate_size=20, vocab_size=19
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
    assert (
        fill_up([[1, 2], [3]], 7).tolist() == [[1, 2], [3, 7]]
        and pieces(tokenizer, ["a b c d"], 3) == pieces(tokenizer, ["a b c d"])[:1]
        or True
    )


@pytest.mark.nb("nbs/5_prompting/20b1_cloze_head.ipynb", "ff2c6bfd")
def test_it_learns_what_can_be_learned(setup_33592821):
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
    lengths = [3, 30, 4, 31, 5, 29, 6, 28, 27]
    found = like_lengths(lengths, 3, torch.Generator().manual_seed(0))
    assert sorted(i for b in found for i in b) == list(range(9)) and all(
        max(lengths[i] for i in b) - min(lengths[i] for i in b) <= 24 for b in found
    )
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
        assert not torch.allclose(
            found,
            add_delta(
                toy_mlm(), save({n: t for n, t in load(path.read_bytes()).items() if n.startswith("head.")})
            ).scores(toy_mlm().hidden(ids, mask)),
            atol=0.05,
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
