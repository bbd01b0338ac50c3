"""Generated from nbs/3_fusion/14c_med.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from vlp_course.nn.fusion import WordHead
from vlp_course.nn.transformer import DecoderState
from vlp_course.nn.vit import ViT
from vlp_course.nn.vit import from_timm
from vlp_course.nn.med import MED, PARTS, Writer, from_transformers


@pytest.fixture(scope="module")
def setup_2013a3f0():
    def small_med(**options):
        """Eleven words, width 12, three heads, two layers; norms and marks are random too, so that nothing hides behind ones and zeros."""
        torch.manual_seed(0)
        med = MED(torch.randn(11, 12), 3, 2, 20, context=9, **options)
        for p in med.parameters():
            p.data = 0.4 * torch.randn_like(p) + (p.ndim == 1)
        return med.double()

    ids = torch.tensor([[2, 5, 7, 9, 3], [2, 8, 3, 0, 0]])
    mask = (ids != 0)[:, None]
    picture = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(1)).double()
    MODES = {
        "read": lambda med, **o: med(ids, mask, **o),
        "match": lambda med, **o: med(med.begin(ids, 0), mask, picture, **o),
        "write": lambda med, **o: med(med.begin(ids, 1), None, picture, causal=True, **o),
    }
    return MODES, ids, mask, picture, small_med


@pytest.fixture(scope="module")
def setup_96ce3534():
    def reference(kind):
        """A small BLIP of transformers; all weights random and large enough to count."""
        import transformers

        torch.manual_seed(3)
        config = transformers.BlipConfig(
            text_config=dict(
                vocab_size=13,
                hidden_size=12,
                encoder_hidden_size=12,
                intermediate_size=20,
                num_hidden_layers=2,
                num_attention_heads=3,
                max_position_embeddings=9,
                bos_token_id=11,
                pad_token_id=0,
                sep_token_id=3,
                eos_token_id=3,
            ),
            vision_config=dict(
                hidden_size=12,
                intermediate_size=28,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=32,
                patch_size=8,
                layer_norm_eps=1e-6,
            ),
            image_text_hidden_size=6,
            attn_implementation="eager",
        )
        model = getattr(transformers, kind)(config).eval().double()
        for name, p in model.named_parameters():
            p.data = 0.4 * torch.randn_like(p) + (p.ndim == 1 and "orm" in name)
        return model

    def shared_pair():
        """Encoder and decoder of transformers, tied as BLIP's own code ties them: all but self-attention and its norm."""
        retrieval, generation = reference("BlipForImageTextRetrieval"), reference("BlipForConditionalGeneration")
        bert = generation.text_decoder.bert
        for name, p in bert.named_parameters():
            if ".attention." not in name:
                p.data = retrieval.text_encoder.get_parameter(name).data
        med = MED(torch.zeros(11, 12), 3, 2, 20, context=9, pre_norm=False, eps=1e-12).double()
        med.load_state_dict(from_transformers(retrieval.text_encoder.state_dict(), bert.state_dict()))
        return retrieval, generation, med.eval()

    return reference, shared_pair


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "ea763806")
def test_each_mode_uses_its_parts_and_no_others(setup_2013a3f0):
    MODES, _, _, _, small_med = setup_2013a3f0
    for mode, run in MODES.items():
        med = small_med()
        run(med).sum().backward()
        used = {name.split(".")[2] for name, p in med.named_parameters() if "layers" in name and p.grad is not None}
        assert used == PARTS[mode] | {"feed_forward", "norm2"}
        rows = med.embed.weight.grad.abs().sum(1).nonzero().flatten().tolist()
        assert {11, 12} & set(rows) == {"read": set(), "match": {11}, "write": {12}}[mode]
        assert (2 in rows) == (mode == "read")  # [CLS] is read in the first mode alone


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "e0f1ddad")
def test_one_mode_alone_is_the_same_function(setup_2013a3f0):
    MODES, _, _, _, small_med = setup_2013a3f0
    med = small_med()
    for mode, run in MODES.items():
        alone = med.only(mode)
        torch.testing.assert_close(run(alone), run(med), rtol=0, atol=0)
        assert not {p.data_ptr() for p in alone.parameters()} & {p.data_ptr() for p in med.parameters()}
        assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in med.parameters())


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "72ff70ef")
def test_who_sees_whom(setup_2013a3f0):
    MODES, ids, mask, picture, small_med = setup_2013a3f0
    med = small_med()
    later = ids.clone()
    later[0, 3] = 4
    swap = lambda mode: {
        "read": med(later, mask),
        "match": med(med.begin(later, 0), mask, picture),
        "write": med(med.begin(later, 1), None, picture, causal=True),
    }[mode]
    for mode, run in MODES.items():
        moved = (swap(mode) - run(med)).abs().amax(2) > 1e-9  # which states changed
        assert moved[0].tolist() == ([False] * 3 + [True] * 2 if mode == "write" else [True] * 5)
        assert not moved[1].any()
    padded = ids.clone()
    padded[1, 4] = 6  # a word where the mask says padding
    assert torch.equal(med(padded, mask)[1, :3], med(ids, mask)[1, :3])


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "96aa51b6")
def test_writing_with_memory_equals_writing_at_once(setup_2013a3f0):
    _, ids, _, picture, small_med = setup_2013a3f0
    med = small_med()
    head = WordHead(8, 12).double()
    writer, start = Writer(med, head), med.begin(ids, 1)
    state = DecoderState(writer, picture)
    for length in (1, 2, 4, 5):
        torch.testing.assert_close(
            state.logits(start[:, :length]), writer(start[:, :length], picture)[:, -1], rtol=0, atol=1e-12
        )
    with pytest.raises(ValueError, match="text of 10 tokens: this text model has places for 9"):
        writer(torch.ones(2, 10, dtype=torch.long), picture)


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "4865c291")
def test_contrast_and_matching_equal_transformers(setup_2013a3f0, setup_96ce3534):
    _, ids, mask, _, _ = setup_2013a3f0
    _, shared_pair = setup_96ce3534
    retrieval, _, med = shared_pair()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        theirs = retrieval(ids, 2 * pixels - 1, use_itm_head=False, attention_mask=mask[:, 0].long())
        vision = retrieval.vision_model(2 * pixels - 1).last_hidden_state
        text = F.normalize(retrieval.text_proj(med(ids, mask)[:, 0]), dim=-1)
        image = F.normalize(retrieval.vision_proj(vision[:, 0]), dim=-1)
        torch.testing.assert_close(image @ text.T, theirs.itm_score, rtol=0, atol=1e-10)
        enc = ids.clone()
        enc[:, 0] = 12  # the published [ENC]
        theirs = retrieval(enc, 2 * pixels - 1, attention_mask=mask[:, 0].long())
        ours = retrieval.itm_head(med(med.begin(ids, 0), mask, vision)[:, 0])
        torch.testing.assert_close(ours, theirs.itm_score, rtol=0, atol=1e-10)
    assert ours.std() > 0.01


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "d63e1b55")
def test_writing_equals_transformers(setup_2013a3f0, setup_96ce3534):
    _, ids, mask, _, _ = setup_2013a3f0
    _, shared_pair = setup_96ce3534
    _, generation, med = shared_pair()
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)).double()
    dec = ids.clone()
    dec[:, 0] = 11  # the published [DEC]
    head, prediction = WordHead(13, 12).double(), generation.text_decoder.cls.predictions
    head.layer.load_state_dict(prediction.transform.dense.state_dict())
    head.norm.load_state_dict(
        {k: 12**0.5 * v for k, v in prediction.transform.LayerNorm.state_dict().items()}
    )  # ours divides by it
    head.norm.eps = 1e-12
    with torch.no_grad():
        head.bias.copy_(prediction.bias[[*range(11), 12, 11]])  # the marks change places
        theirs = generation(pixel_values=2 * pixels - 1, input_ids=dec, attention_mask=mask[:, 0].long()).logits
        vision = generation.vision_model(2 * pixels - 1).last_hidden_state
        ours = Writer(med, head)(med.begin(ids, 1), vision)
        ours = ours[..., [*range(11), 12, 11]]
    torch.testing.assert_close(ours[mask[:, 0]], theirs[mask[:, 0]], rtol=0, atol=1e-10)
    assert theirs.std() > 0.1


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "8d798750")
def test_vision_tower_equals_transformers(setup_96ce3534):
    reference, _ = setup_96ce3534
    retrieval = reference("BlipForImageTextRetrieval")
    pixels = torch.rand(2, 3, 32, 32).double()
    names = {
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj",
        "encoder.layers.": "blocks.",
        "layer_norm": "norm",
        "self_attn.projection": "attn.proj",
        "self_attn.qkv": "attn.qkv",
        "post_layernorm": "norm",
        "post_norm": "norm",
    }
    state = {}
    for name, value in retrieval.vision_model.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value
    vit = ViT(32, 8, 12, 1, 2, 28).double()
    vit.load_state_dict(from_timm(state))
    with torch.no_grad():
        torch.testing.assert_close(
            vit.encode(pixels), retrieval.vision_model(2 * pixels - 1).last_hidden_state, rtol=0, atol=1e-10
        )


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "8ddcbf18")
def test_untied_weights_are_refused(setup_96ce3534):
    _, shared_pair = setup_96ce3534
    retrieval, generation, _ = shared_pair()
    bert = generation.text_decoder.bert.state_dict()
    bert["encoder.layer.0.output.dense.weight"] = bert["encoder.layer.0.output.dense.weight"] + 1
    with pytest.raises(ValueError, match="feed_forward.down.weight differs between encoder and decoder"):
        from_transformers(retrieval.text_encoder.state_dict(), bert)


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "7bd59b46")
def test_rows():
    def rows(batch: int) -> tuple[int, float]:
        return 3 * batch, 3 / 6  # read, slow read and write: one each

    assert rows(21) == (63, 0.5)


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "7bd59b46")
def test_rows_starter_fails():
    def rows(batch: int) -> tuple[int, float]:
        return batch, 0.25

    with pytest.raises(Exception):
        assert rows(21) == (63, 0.5)


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "2f6278b3")
def test_tie(setup_2013a3f0):
    MODES, _, _, _, small_med = setup_2013a3f0

    def tie(med: MED) -> MED:
        for layer in med.layers:
            layer.causal, layer.norm_causal = layer.attention, layer.norm1
        return med  # each_mode_uses_its_parts_and_no_others

    before, tied = small_med(), tie(small_med())
    assert len(list(tied.parameters())) == len(list(before.parameters())) - 2 * 10
    assert torch.equal(MODES["read"](tied), MODES["read"](before)) and not torch.equal(
        MODES["write"](tied), MODES["write"](before)
    )


@pytest.mark.nb("nbs/3_fusion/14c_med.ipynb", "2f6278b3")
def test_tie_starter_fails(setup_2013a3f0):
    MODES, _, _, _, small_med = setup_2013a3f0

    def tie(med: MED) -> MED:
        return med

    with pytest.raises(Exception):
        before, tied = small_med(), tie(small_med())
        assert len(list(tied.parameters())) == len(list(before.parameters())) - 2 * 10
        assert torch.equal(MODES["read"](tied), MODES["read"](before)) and not torch.equal(
            MODES["write"](tied), MODES["write"](before)
        )
