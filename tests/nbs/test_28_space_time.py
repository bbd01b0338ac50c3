"""Generated from nbs/5_prompting/28_space_time.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from transformers import TimesformerConfig
from transformers import TimesformerModel
from vlp_course.nn.encoders import Block
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.space_time import ClipEncoder, SpaceTimeBlock


@pytest.fixture(scope="module")
def setup_4350192b():
    def shaken(module, seed=0, scale=0.4):
        """Every weight drawn anew: zeros and ones hide errors."""
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=g, dtype=p.dtype))
        return module

    return shaken


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "416ebef0")
def test_block_is_the_formulas(setup_4350192b):
    shaken = setup_4350192b

    def slowly(block, x, s):
        y, z, summary = x.clone(), torch.empty_like(x), torch.empty_like(s)
        for b in range(len(x)):
            for p in range(x.shape[2]):
                line = block.norm_time(x[b, :, p])[None]
                y[b, :, p] = x[b, :, p] + block.time_out(block.time(line, line))[0]
            outs = [
                block.space(f, f)[0]
                for f in (block.norm_space(torch.cat([s[b], y[b, t]]))[None] for t in range(x.shape[1]))
            ]
            z[b] = y[b] + torch.stack([o[1:] for o in outs])
            summary[b] = s[b] + torch.stack([o[:1] for o in outs]).mean(0)
        return tuple(v + block.mlp(block.norm_mlp(v)) for v in (z, summary))

    block = shaken(SpaceTimeBlock(8, 2).double())
    g = torch.Generator().manual_seed(1)
    x, s = (
        torch.randn(3, 5, 4, 8, generator=g, dtype=torch.double),
        torch.randn(3, 1, 8, generator=g, dtype=torch.double),
    )
    for found, wanted in zip(block(x, s), slowly(block, x, s)):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "4f6abf2e")
def test_a_fresh_block_sees_each_frame_alone(setup_4350192b):
    shaken = setup_4350192b
    picture = shaken(Block(8, 2).double(), 2)
    block = SpaceTimeBlock.of_picture(picture, 2)
    g = torch.Generator().manual_seed(3)
    x, s = (
        torch.randn(2, 3, 5, 8, generator=g, dtype=torch.double),
        torch.randn(2, 1, 8, generator=g, dtype=torch.double),
    )
    tokens, _ = block(x, s)
    for t in range(3):
        alone = picture(torch.cat([s, x[:, t]], 1))[:, 1:]  # the picture block, summary in front
        torch.testing.assert_close(tokens[:, t], alone, rtol=1e-10, atol=1e-10)
    moved = x.clone()
    moved[:, 1] = moved[:, 1].flip(-1)
    assert torch.equal(block(moved, s)[0][:, 0], tokens[:, 0])  # frame 1 does not reach frame 0 ...
    with torch.no_grad():
        block.time_out.weight.copy_(torch.eye(8))
    changed = block(moved, s)[0][:, 0] - block(x, s)[0][:, 0]
    assert changed.abs().max() > 1e-3  # ... until time is looked at


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "d1831157")
def test_equals_timesformer(setup_4350192b):
    shaken = setup_4350192b
    config = TimesformerConfig(
        image_size=12,
        patch_size=4,
        num_channels=3,
        num_frames=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        layer_norm_eps=1e-5,
        attention_type="divided_space_time",
        hidden_act="gelu",
        drop_path_rate=0,
    )
    theirs = shaken(TimesformerModel(config).double().eval(), 4, 0.3)
    g = torch.Generator().manual_seed(5)
    video = torch.randn(2, 4, 3, 12, 12, generator=g, dtype=torch.double)
    with torch.no_grad():
        start = theirs.embeddings(video)  # 2, 1 + 9 * 4, 24
        x, s = start[:, 1:].unflatten(1, (9, 4)).transpose(1, 2), start[:, :1]
        for layer in theirs.encoder.layer:
            mine = SpaceTimeBlock(24, 3).double()
            for name, attention in (("time", layer.temporal_attention), ("space", layer.attention)):
                qkv, out = attention.attention.qkv, attention.output.dense
                part = getattr(mine, name)
                for n, target in enumerate((part.query, part.key, part.value)):
                    (
                        target.weight.copy_(qkv.weight[24 * n : 24 * n + 24]),
                        target.bias.copy_(qkv.bias[24 * n : 24 * n + 24]),
                    )
                part.out.load_state_dict(out.state_dict())
            for target, source in (
                (mine.time_out, layer.temporal_dense),
                (mine.norm_time, layer.temporal_layernorm),
                (mine.norm_space, layer.layernorm_before),
                (mine.norm_mlp, layer.layernorm_after),
                (mine.mlp[0], layer.intermediate.dense),
                (mine.mlp[2], layer.output.dense),
            ):
                target.load_state_dict(source.state_dict())
            x, s = mine(x, s)
        found = F.layer_norm(
            torch.cat([s, x.transpose(1, 2).flatten(1, 2)], 1),
            (24,),
            theirs.layernorm.weight,
            theirs.layernorm.bias,
            1e-5,
        )
        torch.testing.assert_close(found, theirs(video).last_hidden_state, rtol=1e-9, atol=1e-9)


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "a29b5395")
def test_a_clip_encoder_begins_as_a_picture_encoder(setup_4350192b):
    shaken = setup_4350192b
    picture = ImageEncoder(12, 3, layers=2)
    shaken(picture, 6, 0.3)
    clip = ClipEncoder.of_pictures(picture, frames=5)
    features = torch.randn(2, 3, 12288, generator=torch.Generator().manual_seed(7))
    out = clip(features)
    assert out.tokens.shape == (2, 48, 12) and out.pooled.shape == (2, 12) and out.mask.all()
    same = clip(features[:, :1].expand(-1, 4, -1))
    torch.testing.assert_close(
        same.tokens.unflatten(1, (4, 16))[:, 0], same.tokens.unflatten(1, (4, 16))[:, 3]
    )  # equal frames, equal tokens
    torch.testing.assert_close(same.pooled, clip(features[:, :1]).pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip(features.flip(1)).pooled, out.pooled, rtol=1e-4, atol=1e-5)  # no order yet
    kept = {n: p.clone() for n, p in picture.named_parameters()}
    clip.project.weight.data.add_(1)
    assert all(torch.equal(p, kept[n]) for n, p in picture.named_parameters())
    with pytest.raises(ValueError, match="clip of 6 frames: this encoder has places for 5"):
        clip(torch.zeros(1, 6, 12288))


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "9c43a346")
def test_first_saving():
    def first_saving(cells):
        frames = 1
        while cells * frames**2 + frames * (cells + 1) ** 2 >= (frames * cells + 1) ** 2:
            frames += 1
        return frames

    assert [first_saving(n) for n in (2, 16, 196)] == [3, 2, 2]


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "9c43a346")
def test_first_saving_starter_fails():
    def first_saving(cells):
        return 1

    with pytest.raises(Exception):
        assert [first_saving(n) for n in (2, 16, 196)] == [3, 2, 2]


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "aa46bfd2")
def test_space_first(setup_4350192b):
    shaken = setup_4350192b

    def space_first(block, x, s):
        frames = x.shape[1]
        frame = block.norm_space(torch.cat([s.repeat_interleave(frames, 0), x.flatten(0, 1)], 1))
        seen = block.space(frame, frame).unflatten(0, x.shape[:2])
        x, s = x + seen[:, :, 1:], s + seen[:, :, 0].mean(1, keepdim=True)
        line = block.norm_time(x).transpose(1, 2).flatten(0, 1)
        x = x + block.time_out(block.time(line, line)).unflatten(0, (len(x), x.shape[2])).transpose(1, 2)
        return x + block.mlp(block.norm_mlp(x)), s + block.mlp(block.norm_mlp(s))

    block = shaken(SpaceTimeBlock(8, 2), 8)
    g = torch.Generator().manual_seed(9)
    x, s = torch.randn(2, 3, 4, 8, generator=g), torch.randn(2, 1, 8, generator=g)
    found = space_first(block, x, s)
    assert found[0].shape == x.shape and not torch.allclose(found[0], block(x, s)[0], atol=1e-3)
    with torch.no_grad():
        block.time_out.weight.zero_(), block.time_out.bias.zero_()
    for a, b in zip(space_first(block, x, s), block(x, s)):  # without the look along time the order is no matter
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.nb("nbs/5_prompting/28_space_time.ipynb", "aa46bfd2")
def test_space_first_starter_fails(setup_4350192b):
    shaken = setup_4350192b

    def space_first(block, x, s):
        return block(x, s)

    with pytest.raises(Exception):
        block = shaken(SpaceTimeBlock(8, 2), 8)
        g = torch.Generator().manual_seed(9)
        x, s = torch.randn(2, 3, 4, 8, generator=g), torch.randn(2, 1, 8, generator=g)
        found = space_first(block, x, s)
        assert found[0].shape == x.shape and not torch.allclose(found[0], block(x, s)[0], atol=1e-3)
        with torch.no_grad():
            block.time_out.weight.zero_(), block.time_out.bias.zero_()
        for a, b in zip(space_first(block, x, s), block(x, s)):  # without the look along time the order is no matter
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
