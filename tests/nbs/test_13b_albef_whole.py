"""Generated from nbs/3_fusion/13b_albef_whole.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import tempfile
import torch
from pathlib import Path
from safetensors.torch import load
from transformers import BertModel
from vlp_course.data.assets import read
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import PAD
from vlp_course.nn.encoders import Tokens
from vlp_course.models.albef_whole import FOLDER, FusionLayers, Pieces, TextLayers, build, split_bert


@pytest.mark.nb("nbs/3_fusion/13b_albef_whole.ipynb", "99094de9")
def test_pieces_keep_berts_words_under_new_numbers():
    pieces = Pieces()
    captions = pieces.tokenize(["an owl", "an owl left of a small red circle"])
    assert (
        captions.ids[0, :4].tolist()[0] == CLS
        and captions.ids[captions.ids == EOS].tolist() == [EOS, EOS]
        and pieces.order[MASK] == 103
    )
    assert (
        captions.ids[~captions.mask] == PAD
    ).all() and captions.ids.max() < pieces.spoken  # the grammar's pieces come first
    theirs = pieces.tokenizer.encode("an owl left of a small red circle").ids
    assert pieces.order[captions.ids[1]].tolist() == theirs and sorted(pieces.order.tolist()) == list(range(30522))
    for texts, message in (
        ([], "no text"),
        ([""], "empty one"),
        (["owl " * 70], "72 pieces, marks included: the context holds 64"),
    ):
        with pytest.raises(ValueError, match=message):
            pieces.tokenize(texts)


@pytest.mark.nb("nbs/3_fusion/13b_albef_whole.ipynb", "6df68096")
def test_fusion_layers_look_at_the_picture():
    fusion, draw = FusionLayers(12, 3, 2), torch.Generator().manual_seed(0)
    for p in fusion.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.4, generator=draw)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    text = Tokens(torch.zeros(2, 12), torch.randn(2, 5, 12, generator=draw), mask)
    image = Tokens(torch.zeros(2, 12), torch.randn(2, 7, 12, generator=draw), torch.ones(2, 7, dtype=torch.bool))
    fused = fusion(image, text)
    other = fusion(image._replace(tokens=image.tokens.flip(0)), text)
    assert (fused.pooled - other.pooled).abs().max() > 0.1  # another picture
    turned = fusion(image._replace(tokens=image.tokens.flip(1)), text)
    torch.testing.assert_close(turned.pooled, fused.pooled)  # the order of image tokens says nothing
    padded = fusion(image, text._replace(tokens=text.tokens + 9 * ~mask[..., None]))
    torch.testing.assert_close(padded.pooled, fused.pooled)  # nor does padding


@pytest.mark.nb("nbs/3_fusion/13b_albef_whole.ipynb", "4eade6e0")
def test_text_path_equals_bert():
    pieces = Pieces()
    state = load(read("text-weights", f"{FOLDER}/model.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("config.json", "model.safetensors"):
            Path(folder, name).write_bytes(read("text-weights", f"{FOLDER}/{name}"))
        bert = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").double().eval()
    parts = split_bert(state, pieces.order)
    text, fusion = TextLayers(len(pieces.order)).double(), FusionLayers().double()
    assert all("pool" in k for k in text.load_state_dict(parts[0], strict=False).missing_keys)
    left = fusion.load_state_dict(parts[1], strict=False)
    assert not left.unexpected_keys and all("cross" in k or "pool" in k for k in left.missing_keys)
    captions = pieces.tokenize(["an owl left of a red circle", "two cats", "a snowboarder above the unicorn on grass"])
    read_by_bert = bert(
        pieces.order[captions.ids] * captions.mask, captions.mask.long(), output_hidden_states=True
    ).hidden_states
    first = text(captions)
    torch.testing.assert_close(first.tokens[captions.mask], read_by_bert[3][captions.mask], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        fusion.text_only(first)[captions.mask], read_by_bert[6][captions.mask], rtol=0, atol=1e-10
    )
    with pytest.raises(ValueError, match="unknown size 'small': models.albef_whole has 'whole'"):
        build("small")


@pytest.mark.nb("nbs/3_fusion/13b_albef_whole.ipynb", "1f261ce0")
def test_new_parameters():
    def new_parameters(dim: int, layers: int) -> int:
        """How many parameters cross-attention adds to BERT."""
        return layers * (4 * (dim * dim + dim) + 2 * dim)  # four maps with biases, and a norm

    fusion = FusionLayers(12, 3, 2)
    assert new_parameters(12, 2) == sum(p.numel() for name, p in fusion.named_parameters() if "cross" in name)


@pytest.mark.nb("nbs/3_fusion/13b_albef_whole.ipynb", "1f261ce0")
def test_new_parameters_starter_fails():
    def new_parameters(dim: int, layers: int) -> int:
        """How many parameters cross-attention adds to BERT."""
        return layers * 4 * dim * dim

    with pytest.raises(Exception):
        fusion = FusionLayers(12, 3, 2)
        assert new_parameters(12, 2) == sum(p.numel() for name, p in fusion.named_parameters() if "cross" in name)
