"""Generated from nbs/3_fusion/11b_clip_whole.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import dataclasses
import json
import math
import pytest
import tempfile
import torch
import torch.nn.functional as F
from pathlib import Path
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch import Tensor
from torch import nn
from transformers import CLIPConfig as ReferenceConfig
from transformers import CLIPModel as Reference
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.nn.clip_towers import Tower
from vlp_course.nn.clip_towers import TowerConfig
from vlp_course.objectives import itc_loss
from vlp_course.models.clip_whole import CLIP, CLIPConfig, eot_position, from_pretrained, rename, zero_shot_weights


@pytest.fixture(scope="module")
def setup_c799ff91():
    def slow_clip_loss(images, texts, s):
        unit = lambda v: [x / math.sqrt(sum(y * y for y in v)) for x in v]
        images, texts = [unit(v) for v in images.tolist()], [unit(v) for v in texts.tolist()]
        score = [[math.exp(s) * sum(a * b for a, b in zip(i, t)) for t in texts] for i in images]
        pick_text = [math.log(sum(math.exp(x) for x in row)) - row[n] for n, row in enumerate(score)]
        pick_image = [math.log(sum(math.exp(row[n]) for row in score)) - score[n][n] for n in range(len(score))]
        return sum(pick_text + pick_image) / (2 * len(score))

    return slow_clip_loss


@pytest.fixture(scope="module")
def setup_c943972f():
    CONFIGS = {
        "quick": CLIPConfig(TowerConfig(24, 2, 3, 56), TowerConfig(20, 3, 5, 36), 30, 10, 11, 47, 14, eos_id=5),
        "gelu": CLIPConfig(TowerConfig(36, 1, 4, 40, "gelu"), TowerConfig(18, 2, 3, 44), 28, 7, 9, 61, 10, eos_id=60),
        "legacy": CLIPConfig(
            TowerConfig(16, 4, 2, 30), TowerConfig(30, 1, 6, 52, eps=1e-3), 35, 8, 13, 53, 22, eos_id=None
        ),
    }
    PIXELS = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None],
        torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None],
    )

    def reference(config, seed=0):
        """transformers' CLIPModel of these sizes, freshly initialised."""
        torch.manual_seed(seed)
        tower = lambda t: dict(
            hidden_size=t.width,
            num_hidden_layers=t.layers,
            num_attention_heads=t.heads,
            intermediate_size=t.hidden,
            hidden_act=t.act,
            layer_norm_eps=t.eps,
        )
        text = dict(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context,
            bos_token_id=1,
            pad_token_id=0,
            eos_token_id=2 if config.eos_id is None else config.eos_id,
        )
        return Reference(
            ReferenceConfig(
                projection_dim=config.embed_dim,
                text_config=dict(**tower(config.text), **text),
                vision_config=dict(**tower(config.image), image_size=config.image_size, patch_size=config.patch_size),
            )
        )

    @torch.no_grad()
    def scaled(model, seed=0):
        """Overwrites every parameter with random numbers of a telling size."""
        made = torch.Generator().manual_seed(seed)
        for name, p in model.named_parameters():
            r = torch.randn(p.shape, generator=made, dtype=torch.float64)
            if name == "logit_scale":
                p.fill_(1.7)
            elif p.ndim < 2:
                p.copy_(0.4 * r + ("norm" in name and name.endswith("weight")))
            else:
                p.copy_(r if "embedding.weight" in name and p.ndim == 2 else 1.5 * r / p[0].numel() ** 0.5)
        return model

    def batch_for(config, size=5, seed=0):
        """Random pictures, and captions of different lengths with an end token and padding."""
        made = torch.Generator().manual_seed(seed)
        image = torch.rand(size, 3, config.image_size, config.image_size, generator=made)
        ids = torch.randint(6, config.vocab_size - 1, (size, config.context), generator=made)
        lengths = torch.tensor([config.context, 3, *torch.randint(4, config.context, (size - 2,), generator=made)])
        at = torch.arange(config.context)
        ids[:, 0] = 1
        ids[at == lengths[:, None] - 1] = config.vocab_size - 1 if config.eos_id is None else config.eos_id
        mask = at < lengths[:, None]
        return Pairs(image, [""] * size, Tokenized(ids * mask, mask), torch.zeros(size, dtype=torch.long))

    def twins(config, dtype=torch.float32, scale=True):
        """(reference, ours) with the same weights."""
        theirs = reference(config).to(dtype)
        theirs = scaled(theirs) if scale else theirs
        ours = CLIP(config).to(dtype)
        ours.load_state_dict(rename(theirs.state_dict()))
        return theirs.eval(), ours

    def run_reference(theirs, batch):
        pixels = (batch.image.to(theirs.dtype) - PIXELS[0]) / PIXELS[1]
        return theirs(
            input_ids=batch.text.ids, attention_mask=batch.text.mask.long(), pixel_values=pixels, return_loss=True
        )

    def run(ours, batch):
        """(image vectors, text vectors, logits, loss)"""
        batch = dataclasses.replace(batch, image=batch.image.to(ours.logit_scale.dtype))
        image, text = ours.encode_image(batch), ours.encode_text(batch.text)
        loss = ours(batch, step=0, generator=torch.Generator()).losses["itc"]
        return image.pooled, text.pooled, ours.logit_scale.exp() * ours.similarity(image, text), loss

    def errors(theirs, ours, batch):
        """Largest difference of each output, and of the gradients of all parameters over the largest gradient."""
        want, got = run_reference(theirs, batch), run(ours, batch)
        pairs = zip(got, (want.image_embeds, want.text_embeds, want.logits_per_image, want.loss))
        found = {n: (a - b).abs().max().item() for n, (a, b) in zip(("image", "text", "logits", "loss"), pairs)}
        found["logits, text"] = (got[2].T - want.logits_per_text).abs().max().item()
        want.loss.backward()
        got[3].backward()
        grads = rename({n: p.grad for n, p in theirs.named_parameters()})
        assert grads.keys() == dict(ours.named_parameters()).keys()
        largest = max(g.abs().max() for g in grads.values())
        found["gradients"] = max(((p.grad - grads[n]).abs().max() / largest).item() for n, p in ours.named_parameters())
        return found

    return CONFIGS, PIXELS, batch_for, errors, reference, run, run_reference, scaled, twins


@pytest.fixture(scope="module")
def setup_b2e47fd8(setup_c943972f):
    _, _, batch_for, _, _, run, run_reference, _, twins = setup_c943972f

    def blocks(model):
        return [*model.image.blocks, *model.text.blocks]

    def use_gelu(model):
        for block in blocks(model):
            block.act = F.gelu

    def other_eps(model):
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                m.eps = 1e-12

    def look_ahead(model):
        tower = model.text
        tower.encode = lambda x, mask: Tower.encode(tower, x, None)

    def swap_queries_and_keys(model):
        for block in blocks(model):
            for p in (block.qkv.weight, block.qkv.bias):
                q, k, v = p.data.chunk(3)
                p.data = torch.cat([k, q, v])

    def forget_biases(model):
        for m in model.modules():
            if isinstance(m, nn.Linear) and m.bias is not None:
                m.bias.data.zero_()

    def forget_norm_weights(model):
        for m in model.modules():
            if isinstance(m, nn.LayerNorm):
                nn.init.ones_(m.weight)

    def forget_root_d(model):
        for block in blocks(model):
            width = block.out.in_features
            for p in (block.qkv.weight, block.qkv.bias):
                p.data[:width] *= (width // block.heads) ** 0.5

    def cut_heads_crosswise(model):
        for block in blocks(model):
            order = torch.arange(block.out.in_features).view(-1, block.heads).T.flatten()
            for p in (block.qkv.weight, block.qkv.bias):
                p.data = torch.cat([part[order] for part in p.data.chunk(3)])

    FAULTS = {
        "GELU for QuickGELU": use_gelu,
        "no ln_pre": lambda m: setattr(m.image, "ln_pre", nn.Identity()),
        "LayerNorm eps 1e-12": other_eps,
        "text looks ahead": look_ahead,
        "largest id as end of text": lambda m: setattr(m, "config", dataclasses.replace(m.config, eos_id=None)),
        "queries and keys exchanged": swap_queries_and_keys,
        "biases forgotten": forget_biases,
        "LayerNorm weights forgotten": forget_norm_weights,
        "no 1/sqrt(d)": forget_root_d,
        "heads cut crosswise": cut_heads_crosswise,
        "pixels not normalised": lambda m: (m.image.mean.zero_(), m.image.std.fill_(1)),
    }

    @torch.no_grad()
    def logit_error(fault, config, dtype=torch.float32, scale=True):
        """Largest difference of the logits over the largest logit, with `fault` in our model."""
        theirs, ours = twins(config, dtype, scale)
        fault(ours)
        batch = batch_for(config, size=12)
        want, got = run_reference(theirs, batch).logits_per_image, run(ours, batch)[2]
        return ((got - want).abs().max() / want.abs().max()).item()

    return FAULTS, logit_error


@pytest.fixture(scope="module")
def setup_b00fc9b0(setup_c943972f):
    CONFIGS, _, _, _, reference, _, _, _, _ = setup_c943972f

    def spoilt(weights=lambda state: None, config=lambda values: None):
        """The message of from_pretrained for a checkpoint whose weights or config were changed."""
        with tempfile.TemporaryDirectory() as folder:
            reference(CONFIGS["quick"]).save_pretrained(folder)
            file, settings = Path(folder, "model.safetensors"), Path(folder, "config.json")
            state, values = load_file(file), json.loads(settings.read_text())
            if weights(state) != "gone":
                save_file(state, file, {"format": "pt"})
            else:
                file.rename(file.with_name("pytorch_model.bin"))
            config(values)
            settings.write_text(json.dumps(values))
            try:
                from_pretrained(folder)
            except ValueError as error:
                return str(error)
        return "loaded"

    return spoilt


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "1a607978")
def test_eot_by_hand():
    ids = torch.tensor([[1, 8, 9, 3, 0, 0], [1, 7, 3, 3, 3, 3]])  # end is 3; the second text is padded with it
    assert eot_position(ids, 3).tolist() == [3, 2]
    assert eot_position(ids, None).tolist() == [2, 1]  # largest id: a word in the middle
    original = torch.tensor([[49406, 320, 2368, 49407, 0], [49406, 49407, 0, 0, 0]])
    assert eot_position(original, None).tolist() == eot_position(original, 49407).tolist() == [3, 1]


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "7cf2796a")
def test_eot_missing():
    with pytest.raises(ValueError, match="text 1 has no end-of-text id 3: cut off, or made by another tokenizer"):
        eot_position(torch.tensor([[1, 8, 3], [1, 8, 9]]), 3)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "0261a03a")
def test_parity_float32(setup_c943972f):
    CONFIGS, _, batch_for, errors, _, _, _, _, twins = setup_c943972f
    for name, config in CONFIGS.items():
        for scale in (True, False):
            found = errors(*twins(config, torch.float32, scale), batch_for(config))
            assert max(found.values()) < 1e-5, (name, scale, found)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "be462bad")
def test_parity_float64(setup_c943972f):
    CONFIGS, _, batch_for, errors, _, _, _, _, twins = setup_c943972f
    for name, config in CONFIGS.items():
        for scale in (True, False):
            found = errors(*twins(config, torch.float64, scale), batch_for(config))
            assert max(found.values()) < 1e-10, (name, scale, found)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "629a0d11")
def test_tokens_equal_the_reference(setup_c943972f):
    CONFIGS, _, batch_for, _, _, _, _, _, twins = setup_c943972f
    config = CONFIGS["quick"]
    theirs, ours = twins(config, torch.float64)
    batch = batch_for(config)
    batch.image = batch.image.double()
    text = theirs.text_model(input_ids=batch.text.ids, attention_mask=batch.text.mask.long())
    want = theirs.text_projection(text.last_hidden_state)
    torch.testing.assert_close(
        ours.encode_text(batch.text).tokens, want, atol=1e-10, rtol=0
    )  # every token, padding too
    image = ours.encode_image(batch)
    assert image.tokens.shape == (5, 10, 14) and image.mask.all()
    torch.testing.assert_close(F.normalize(image.tokens[:, 0], dim=-1), image.pooled)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "d24b1202")
def test_loss_equals_the_loop(setup_c943972f, setup_c799ff91):
    CONFIGS, _, batch_for, _, _, run, _, _, twins = setup_c943972f
    slow_clip_loss = setup_c799ff91
    config = CONFIGS["quick"]
    ours, batch = twins(config, torch.float64)[1], batch_for(config)
    image, text, _, loss = run(ours, batch)
    assert abs(loss.item() - slow_clip_loss(3 * image, 0.5 * text, 1.7)) < 1e-10  # lengths do not matter


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "29f19baa")
def test_padding_and_order_change_nothing(setup_c943972f):
    CONFIGS, _, batch_for, _, _, run, _, _, twins = setup_c943972f
    config = CONFIGS["quick"]
    ours, batch = twins(config, torch.float64)[1], batch_for(config, size=4)
    short = Tokenized(batch.text.ids[1:2, :3], batch.text.mask[1:2, :3])  # text 1 has three tokens
    torch.testing.assert_close(
        ours.encode_text(short).pooled, ours.encode_text(batch.text).pooled[1:2], atol=1e-12, rtol=0
    )
    order = torch.tensor([2, 0, 3, 1])
    mixed = Pairs(batch.image[order], [""] * 4, Tokenized(batch.text.ids[order], batch.text.mask[order]), batch.family)
    assert abs(run(ours, batch)[3].item() - run(ours, mixed)[3].item()) < 1e-12


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "f56a8e08")
def test_forward_changes_nothing(setup_c943972f):
    CONFIGS, _, batch_for, _, _, _, _, _, twins = setup_c943972f
    config = CONFIGS["gelu"]
    ours, batch = twins(config)[1], batch_for(config)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    out = ours(batch, step=3, generator=torch.Generator())
    assert out.state == {} and all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    assert torch.equal(out.losses["itc"], ours(batch, step=4, generator=torch.Generator()).losses["itc"])


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "119bd59f")
def test_bfloat16_keeps_exact_logits(setup_c943972f):
    CONFIGS, _, batch_for, _, _, _, _, _, twins = setup_c943972f
    config = CONFIGS["quick"]
    ours, batch = twins(config)[1], batch_for(config)
    ours.logit_scale.data.fill_(math.log(100))
    with torch.autocast("cpu", torch.bfloat16):
        image, text = ours.encode_image(batch), ours.encode_text(batch.text)
        loss = ours(batch, step=0, generator=torch.Generator()).losses["itc"]
    assert image.pooled.dtype == text.pooled.dtype == loss.dtype == torch.float32
    logits = 100 * image.pooled @ text.pooled.T  # outside autocast: float32
    want = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert abs(loss.item() - want.item()) < 1e-3


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "fac42ead")
def test_it_learns(setup_c943972f):
    CONFIGS, _, batch_for, _, _, _, _, _, _ = setup_c943972f
    config = dataclasses.replace(CONFIGS["quick"], embed_dim=16)
    torch.manual_seed(0)
    model, batch = CLIP(config), batch_for(config, size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    losses = []
    for step in range(60):
        out = model(batch, step=step, generator=torch.Generator())
        losses.append(out.losses["itc"].item())
        optimizer.zero_grad()
        out.losses["itc"].backward()
        optimizer.step()
        model.after_step(out.state, step)
    assert 1.5 < losses[0] < 4 and losses[-1] < 0.1  # from about ln 8 = 2.08 to memory


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "6602af8b")
def test_what_each_kind_of_weights_hides(setup_c943972f, setup_b2e47fd8):
    CONFIGS, _, _, _, _, _, _, _, _ = setup_c943972f
    FAULTS, logit_error = setup_b2e47fd8
    config = CONFIGS["quick"]
    for name in ("biases forgotten", "LayerNorm weights forgotten"):
        assert (
            logit_error(FAULTS[name], config, scale=False) < 1e-5 < 0.1 < logit_error(FAULTS[name], config, scale=True)
        ), name
    for name, fault in FAULTS.items():  # in float64 scaled weights show them all
        assert logit_error(fault, config, torch.float64) > 1e-7, name


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "5dceefa7")
def test_round_trip(setup_c943972f):
    CONFIGS, _, batch_for, _, reference, run, run_reference, scaled, _ = setup_c943972f
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = scaled(reference(config)).eval()
            theirs.save_pretrained(folder)
            ours = from_pretrained(folder)
        assert ours.config == config, name
        with torch.no_grad():
            want, got = run_reference(theirs, batch_for(config)), run(ours, batch_for(config))
        torch.testing.assert_close(got[2], want.logits_per_image, atol=1e-5, rtol=0)
        torch.testing.assert_close(got[3], want.loss, atol=1e-5, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "55898886")
def test_half_precision_is_loaded_as_float32(setup_c943972f):
    CONFIGS, _, _, _, reference, _, _, scaled, _ = setup_c943972f
    config = CONFIGS["quick"]
    with tempfile.TemporaryDirectory() as folder:
        theirs = scaled(reference(config))
        theirs.half().save_pretrained(folder)
        ours = from_pretrained(Path(folder))
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    torch.testing.assert_close(ours.text.position, theirs.text_model.embeddings.position_embedding.weight.float())


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "20cc78ad")
def test_the_loader_refuses(setup_b00fc9b0):
    spoilt = setup_b00fc9b0
    one = "text_model.encoder.layers.1.mlp.fc1.weight"
    drop = lambda key: lambda state: state.pop(key) is None
    assert spoilt() == "loaded"
    assert (
        spoilt(lambda s: s.update({"text_model.embeddings.position_ids": torch.arange(11)[None]})) == "loaded"
    )  # old files have it
    assert "1 missing, as text.blocks.1.fc.weight" in spoilt(drop(one))
    assert "1 unknown, as text_model.extra" in spoilt(lambda s: s.update({"text_model.extra": torch.zeros(2)}))
    assert "1 of another shape, as text.blocks.1.fc.weight" in spoilt(lambda s: s.update({one: s[one][:-1].clone()}))
    assert "1 missing, as image.blocks.0.qkv.bias" in spoilt(
        drop("vision_model.encoder.layers.0.self_attn.k_proj.bias")
    )
    assert "pickled weights (pytorch_model.bin) are not read" in spoilt(lambda s: "gone")
    assert "unknown activation 'relu'" in spoilt(config=lambda c: c["vision_config"].update(hidden_act="relu"))
    assert "'siglip' model: only 'clip' can be read" in spoilt(config=lambda c: c.update(model_type="siglip"))
    assert "\n" not in spoilt(drop(one))


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "3a086c2b")
def test_temperature(setup_c943972f):
    CONFIGS, _, batch_for, _, _, _, _, _, _ = setup_c943972f
    model = CLIP(CONFIGS["quick"])
    assert abs(model.logit_scale.exp().item() - 1 / 0.07) < 1e-4 and model.logit_scale.shape == ()
    batch = batch_for(CONFIGS["quick"])
    model.logit_scale.data.fill_(math.log(100) + 0.5)
    out = model(batch, step=0, generator=torch.Generator())
    out.losses["itc"].backward()
    assert model.logit_scale.grad.abs() > 0  # no clamp in forward: the gradient lives
    model.after_step(out.state, 0)
    assert abs(model.logit_scale.exp().item() - 100) < 1e-3
    model.logit_scale.data.fill_(-1.0)
    model.after_step({}, 1)
    assert model.logit_scale.item() == -1.0  # only from above


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "fe3bc4e3")
def test_end_token_two(setup_c943972f):
    CONFIGS, _, batch_for, _, _, run, run_reference, _, twins = setup_c943972f
    config = dataclasses.replace(CONFIGS["quick"], eos_id=2)  # a tokenizer whose end token really has id 2
    theirs, ours = twins(config)
    batch = batch_for(config)
    legacy = CLIP(dataclasses.replace(config, eos_id=None))
    legacy.load_state_dict(ours.state_dict())
    with torch.no_grad():
        want, right, old = run_reference(theirs, batch).text_embeds, run(ours, batch)[1], run(legacy, batch)[1]
    torch.testing.assert_close(old, want, atol=1e-5, rtol=0)  # transformers: 2 still means the largest id
    assert (right - want).abs().max() > 0.1  # ours: the token it says


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "7fbbc0a0")
def test_the_course_vocabulary(setup_c943972f):
    CONFIGS, _, _, _, _, _, _, _, _ = setup_c943972f
    words = Vocabulary(["a", "red", "fox", "zebra"])  # [EOS] is 3, words come after it
    config = dataclasses.replace(CONFIGS["quick"], vocab_size=len(words), eos_id=3)
    torch.manual_seed(0)
    model = CLIP(config, tokenizer=words.tokenize)
    text = model.tokenize(["a red fox", "zebra"])
    assert eot_position(text.ids, 3).tolist() == [4, 2] and eot_position(text.ids, None).tolist() == [3, 1]
    assert model.encode_text(text).pooled.shape == (2, 14)
    with pytest.raises(ValueError, match="this CLIP has no tokenizer: give CLIP"):
        CLIP(config).tokenize(["a red fox"])


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "45866744")
def test_zero_shot_by_hand():
    prompts = torch.tensor([[[1.0, 0.0], [0.0, 100.0]], [[3.0, 4.0], [6.0, 8.0]]])  # two classes, two prompts each
    half = 0.5**0.5
    torch.testing.assert_close(zero_shot_weights(prompts), torch.tensor([[half, half], [0.6, 0.8]]))
    naive = F.normalize(prompts.mean(1), dim=-1)
    assert naive[0, 1] > 0.9999  # the long vector decides alone


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "439768da")
def test_zero_shot_properties():
    made = torch.Generator().manual_seed(0)
    prompts = torch.randn(4, 3, 6, generator=made)
    w = zero_shot_weights(prompts)
    torch.testing.assert_close(w.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(zero_shot_weights(prompts[:, [2, 0, 1]] * 7), w)  # order and length are nothing
    torch.testing.assert_close(zero_shot_weights(prompts[:, :1]), F.normalize(prompts[:, 0], dim=-1))


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "b36d992f")
def test_zero_shot_classifies(setup_c943972f):
    CONFIGS, _, _, _, _, _, _, _, _ = setup_c943972f
    torch.manual_seed(0)
    words = Vocabulary(["a", "the", "red", "fox", "zebra", "car"])
    config = dataclasses.replace(CONFIGS["quick"], vocab_size=len(words), eos_id=3)
    model = CLIP(config, tokenizer=words.tokenize)
    classes, templates = ["fox", "zebra", "car"], ["a {}", "the {}", "the red {}"]
    text = model.encode_text(model.tokenize([t.format(c) for c in classes for t in templates]))
    w = zero_shot_weights(text.pooled.unflatten(0, (3, 3)))
    assert w.shape == (3, 14)
    assert ((w @ w.T).argmax(1) == torch.arange(3)).all()


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "fc57fd25")
def test_loss_bounds():
    def loss_bounds(batch: int, scale: float = 100.0) -> tuple[float, float]:
        """(loss when all scores are equal, loss when right cosines are 1 and wrong ones 0)"""
        return math.log(batch), math.log1p((batch - 1) * math.exp(-scale))

    start, end = loss_bounds(63, scale=5.0)
    assert abs(start - itc_loss(torch.zeros(63, 63), torch.zeros(63, 63)).item()) < 1e-5
    assert abs(end - itc_loss(5 * torch.eye(63), 5 * torch.eye(63)).item()) < 1e-5


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "fc57fd25")
def test_loss_bounds_starter_fails():
    def loss_bounds(batch: int, scale: float = 100.0) -> tuple[float, float]:
        """(loss when all scores are equal, loss when right cosines are 1 and wrong ones 0)"""
        return float(batch), 0.0

    with pytest.raises(Exception):
        start, end = loss_bounds(63, scale=5.0)
        assert abs(start - itc_loss(torch.zeros(63, 63), torch.zeros(63, 63)).item()) < 1e-5
        assert abs(end - itc_loss(5 * torch.eye(63), 5 * torch.eye(63)).item()) < 1e-5


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "37c22dd7")
def test_rename_original(setup_c943972f):
    _, PIXELS, batch_for, _, _, run, _, scaled, _ = setup_c943972f

    def rename_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = (
            ("visual.transformer.resblocks", "image.blocks"),
            ("visual.class_embedding", "image.class_token"),
            ("visual.positional_embedding", "image.position"),
            ("visual.conv1", "image.patch"),
            ("visual.ln_pre", "image.ln_pre"),
            ("visual.ln_post", "image.ln_out"),
            ("visual.proj", "image.projection.weight"),
            ("transformer.resblocks", "text.blocks"),
            ("token_embedding", "text.token"),
            ("positional_embedding", "text.position"),
            ("ln_final", "text.ln_out"),
            ("text_projection", "text.projection.weight"),
            ("attn.in_proj_", "qkv."),
            ("attn.out_proj", "out"),
            ("mlp.c_fc", "fc"),
            ("mlp.c_proj", "proj"),
        )
        ours = {}
        for key, tensor in state.items():
            for theirs, name in names:
                key = key.replace(theirs, name)
            if key != "attn_mask":
                ours[key] = tensor.T if "projection" in key else tensor
        return ours

    from open_clip.model import CLIP as OpenCLIP

    theirs = OpenCLIP(
        14,
        quick_gelu=True,
        vision_cfg=dict(layers=2, width=24, head_width=8, patch_size=10, image_size=30, mlp_ratio=2.5),
        text_cfg=dict(context_length=11, vocab_size=47, width=20, heads=5, layers=3, mlp_ratio=1.8),
    ).double()
    theirs = scaled(theirs).eval()
    config = CLIPConfig(TowerConfig(24, 2, 3, 60), TowerConfig(20, 3, 5, 36), 30, 10, 11, 47, 14, eos_id=None)
    ours = CLIP(config).double()
    ours.load_state_dict(rename_original(theirs.state_dict()))
    batch = batch_for(config)
    with torch.no_grad():
        image, text, scale = theirs((batch.image.double() - PIXELS[0]) / PIXELS[1], batch.text.ids)
        torch.testing.assert_close(run(ours, batch)[2], scale * image @ text.T, atol=1e-10, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "37c22dd7")
def test_rename_original_starter_fails(setup_c943972f):
    _, PIXELS, batch_for, _, _, run, _, scaled, _ = setup_c943972f

    def rename_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.replace("visual.", "image."): tensor for key, tensor in state.items()}

    with pytest.raises(Exception):
        from open_clip.model import CLIP as OpenCLIP

        theirs = OpenCLIP(
            14,
            quick_gelu=True,
            vision_cfg=dict(layers=2, width=24, head_width=8, patch_size=10, image_size=30, mlp_ratio=2.5),
            text_cfg=dict(context_length=11, vocab_size=47, width=20, heads=5, layers=3, mlp_ratio=1.8),
        ).double()
        theirs = scaled(theirs).eval()
        config = CLIPConfig(TowerConfig(24, 2, 3, 60), TowerConfig(20, 3, 5, 36), 30, 10, 11, 47, 14, eos_id=None)
        ours = CLIP(config).double()
        ours.load_state_dict(rename_original(theirs.state_dict()))
        batch = batch_for(config)
        with torch.no_grad():
            image, text, scale = theirs((batch.image.double() - PIXELS[0]) / PIXELS[1], batch.text.ids)
            torch.testing.assert_close(run(ours, batch)[2], scale * image @ text.T, atol=1e-10, rtol=0)


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "f75d6cf5")
def test_to_hugging_face(setup_c943972f):
    CONFIGS, _, _, _, reference, _, _, _, twins = setup_c943972f

    def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
        tower = {"image.": "vision_model.", "text.": "text_model."}
        inside = {
            "blocks": "encoder.layers",
            "class_token": "embeddings.class_embedding",
            "patch": "embeddings.patch_embedding",
            "token": "embeddings.token_embedding",
            "position": "embeddings.position_embedding.weight",
            "ln_pre": "pre_layrnorm",
        }
        last = {"vision_model.": "post_layernorm", "text_model.": "final_layer_norm"}
        block = {
            "ln_1": "layer_norm1",
            "ln_2": "layer_norm2",
            "out": "self_attn.out_proj",
            "fc": "mlp.fc1",
            "proj": "mlp.fc2",
        }
        theirs = {}
        for key, tensor in state.items():
            side, *rest = key.split(".")
            if side == "logit_scale":
                theirs[key] = tensor
            elif rest[0] == "projection":
                theirs[("visual" if side == "image" else "text") + "_projection.weight"] = tensor
            elif rest[0] != "blocks":
                name = last[tower[side + "."]] if rest[0] == "ln_out" else inside[rest[0]]
                theirs[".".join([tower[side + "."] + name, *rest[1:]])] = tensor
            else:
                stem = f"{tower[side + '.']}encoder.layers.{rest[1]}."
                if rest[2] == "qkv":
                    for name, part in zip("qkv", tensor.chunk(3)):
                        theirs[f"{stem}self_attn.{name}_proj.{rest[3]}"] = part
                else:
                    theirs[f"{stem}{block[rest[2]]}.{rest[3]}"] = tensor
        return theirs

    for config in CONFIGS.values():
        theirs, ours = twins(config)
        back = to_hugging_face(ours.state_dict())
        assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())
        reference(config, seed=1).load_state_dict(back)  # strict


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "f75d6cf5")
def test_to_hugging_face_starter_fails(setup_c943972f):
    CONFIGS, _, _, _, reference, _, _, _, twins = setup_c943972f

    def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(state)

    with pytest.raises(Exception):
        for config in CONFIGS.values():
            theirs, ours = twins(config)
            back = to_hugging_face(ours.state_dict())
            assert all(torch.equal(back[key], tensor) for key, tensor in theirs.state_dict().items())
            reference(config, seed=1).load_state_dict(back)  # strict


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "de968491")
def test_bf16_logit_error():
    def bf16_logit_error(scale: float) -> float:
        made = torch.Generator().manual_seed(0)
        image = F.normalize(torch.randn(200, 512, generator=made), dim=-1)
        text = F.normalize(image + 0.01 * torch.randn(200, 512, generator=made), dim=-1)
        exact = scale * (image.double() * text.double()).sum(-1)
        rough = scale * (image.bfloat16() @ text.bfloat16().T).diagonal()
        return (rough.double() - exact).abs().max().item()

    assert bf16_logit_error(14.3) < 0.1  # at the start of training: harmless
    assert bf16_logit_error(100.0) > 0.1  # at the end: one logit in a tenth of a nat and more
    assert abs(bf16_logit_error(100.0) / bf16_logit_error(10.0) - 10) < 3  # in proportion to the scale


@pytest.mark.nb("nbs/3_fusion/11b_clip_whole.ipynb", "de968491")
def test_bf16_logit_error_starter_fails():
    def bf16_logit_error(scale: float) -> float:
        return 2.0**-9

    with pytest.raises(Exception):
        assert bf16_logit_error(14.3) < 0.1  # at the start of training: harmless
        assert bf16_logit_error(100.0) > 0.1  # at the end: one logit in a tenth of a nat and more
        assert abs(bf16_logit_error(100.0) / bf16_logit_error(10.0) - 10) < 3  # in proportion to the scale
