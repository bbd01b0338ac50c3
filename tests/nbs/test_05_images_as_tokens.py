"""Generated from nbs/1_foundations/05_images_as_tokens.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from vlp_course.nn.vit import PatchEmbedding, ViT, from_timm, grid_side, resize_positions


@pytest.fixture(scope="module")
def setup_01c29f9e():
    def slow_patches(image, weight, bias):
        """Tokens one by one: cut out a square, flatten it, multiply. weight: D x channels x p x p."""
        p, tokens = weight.shape[-1], []
        for top in range(0, image.shape[-2], p):
            for left in range(0, image.shape[-1], p):
                square = image[:, :, top : top + p, left : left + p].flatten(1)  # B 3pp
                tokens.append(square @ weight.flatten(1).T + bias)  # B D
        return torch.stack(tokens, 1)  # B N D

    return slow_patches


@pytest.fixture(scope="module")
def setup_2ff5592b():
    def small_vit(**changes):
        """A ViT with weights of a size that shows errors: default ones are nearly zero in places."""
        torch.manual_seed(0)
        model = ViT(**dict(image_size=48, patch=8, dim=24, depth=2, heads=3, hidden=40, classes=7) | changes).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.5))
        return model

    return small_vit


@pytest.fixture(scope="module")
def setup_e9316284(setup_2ff5592b):
    small_vit = setup_2ff5592b

    def timm_twin(**changes):
        """timm's ViT of the same sizes with random weights, and ours with those weights."""
        torch.manual_seed(1)
        theirs = (
            VisionTransformer(
                img_size=48,
                patch_size=8,
                embed_dim=24,
                depth=2,
                num_heads=3,
                mlp_ratio=40 / 24,
                num_classes=7,
                **changes,
            )
            .double()
            .eval()
        )
        with torch.no_grad():
            for p in theirs.parameters():
                p.copy_(torch.randn_like(p) * (0.3 if p.ndim > 1 else 0.5))
        ours = small_vit()
        ours.load_state_dict(from_timm(theirs.state_dict()))
        return ours, theirs

    return timm_twin


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "5800239f")
def test_patches_equal_their_slow_twin(setup_01c29f9e):
    slow_patches = setup_01c29f9e
    torch.manual_seed(0)
    embed, image = PatchEmbedding(4, 10).double(), torch.rand(2, 3, 12, 20, dtype=torch.float64)
    tokens = embed(image)
    assert tokens.shape == (2, 15, 10)  # 3 rows of 5 squares
    torch.testing.assert_close(
        tokens, slow_patches(image, embed.project.weight, embed.project.bias), rtol=0, atol=1e-12
    )


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "8cd660ce")
def test_a_token_sees_its_own_square():
    torch.manual_seed(0)
    embed, image = PatchEmbedding(4, 10), torch.rand(1, 3, 12, 20, requires_grad=True)
    embed(image)[0, 7].sum().backward()  # row 1, column 2
    seen = image.grad[0].abs().sum(0) > 0
    assert seen[4:8, 8:12].all() and seen.sum() == 16


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "ab4d49a8")
def test_squares_must_fit():
    with pytest.raises(ValueError, match="picture of 12 x 18 pixels: both must be multiples of the patch, 4"):
        PatchEmbedding(4, 10)(torch.rand(1, 3, 12, 18))


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "e591ad3c")
def test_squares_are_told_exactly():
    assert [grid_side(n) for n in (1, 4, 196, 10**12)] == [1, 2, 14, 10**6]
    for count, hint in ((197, "give the grid alone"), (0, "0 and 1"), (12, "9 and 16"), (10**12 - 1, "no square grid")):
        with pytest.raises(ValueError, match=hint):
            grid_side(count)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "94cd89b9")
def test_resizing_equals_timm():
    torch.manual_seed(0)
    table = torch.randn(25, 6)
    for height, width in ((5, 5), (8, 8), (3, 7), (12, 4)):
        reference = resample_abs_pos_embed(table[None], (height, width), (5, 5), num_prefix_tokens=0)[0]
        torch.testing.assert_close(resize_positions(table, height, width), reference, rtol=0, atol=1e-6)
    assert resize_positions(table, 5, 5) is table


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "65076542")
def test_a_slope_stays_a_slope():
    rows = torch.arange(8.0).repeat_interleave(8)  # each place knows its row
    small = resize_positions(torch.stack([rows, rows.flip(0)], 1), 4, 4)
    assert torch.allclose(small.sum(1), torch.full((16,), 7.0), atol=1e-4)  # linear: sums are kept
    assert torch.allclose(small[:, 0].view(4, 4).std(1), torch.zeros(4), atol=1e-5)  # equal along each row
    steps = small[::4, 0].diff()
    assert (steps > 1.5).all() and abs(small[:, 0].mean() - 3.5) < 1e-4  # and they climb by about two


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "f126b954")
def test_shapes_and_the_class_token(setup_2ff5592b):
    small_vit = setup_2ff5592b
    model = small_vit()
    x = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    assert model(x).shape == (2, 7) and model.encode(x).shape == (2, 37, 24)
    maps = model.attention_maps(x)
    assert maps.shape == (2, 2, 3, 37, 37) and torch.allclose(maps.sum(-1), torch.ones(2, 2, 3, 37, dtype=maps.dtype))
    torch.testing.assert_close(model(x), model.head(model.encode(x)[:, 0]), rtol=0, atol=0)
    assert ViT().class_token.abs().sum() == 0
    with pytest.raises(ValueError, match="no head"):
        small_vit(classes=0)(x)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "f7ba2bde")
def test_without_positions_a_picture_is_a_bag(setup_2ff5592b):
    small_vit = setup_2ff5592b
    model = small_vit()
    x = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    rows = x.unflatten(2, (6, 8))
    shuffled = rows[:, :, [3, 0, 5, 1, 4, 2]].flatten(2, 3)  # rows of squares in another order
    assert not torch.allclose(model(x), model(shuffled), atol=1e-3)
    with torch.no_grad():
        model.positions.zero_()
    torch.testing.assert_close(model(x), model(shuffled), rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "246ec5b6")
def test_another_size_keeps_the_class_token_apart(setup_2ff5592b):
    small_vit = setup_2ff5592b
    model = small_vit()
    x = torch.rand(1, 3, 64, 40, dtype=torch.float64)
    table = model.embed(x)[0] - torch.cat([model.class_token[None], model.patch(2 * x - 1)[0]])  # what positions added
    assert len(table) == 1 + 8 * 5
    torch.testing.assert_close(table[0], model.positions[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(table[1:], resize_positions(model.positions[1:], 8, 5), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "814bdf5e")
def test_logits_equal_timm(setup_e9316284):
    timm_twin = setup_e9316284
    ours, theirs = timm_twin()
    x = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(2 * x - 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.encode(x), theirs.forward_features(2 * x - 1), rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "4896c300")
def test_logits_equal_timm_at_another_size(setup_e9316284):
    timm_twin = setup_e9316284
    ours, theirs = timm_twin(dynamic_img_size=True)
    x = torch.rand(2, 3, 64, 40, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(2 * x - 1), rtol=0, atol=1e-5)  # timm interpolates in 32 bits


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "934c9479")
def test_gradients_equal_timm(setup_e9316284):
    timm_twin = setup_e9316284
    ours, theirs = timm_twin()
    x = torch.rand(2, 3, 48, 48, dtype=torch.float64)
    ours(x).square().sum().backward(), theirs(2 * x - 1).square().sum().backward()
    qkv = torch.cat([getattr(ours.layers[1].attention, part).weight.grad for part in ("query", "key", "value")])
    scale = qkv.abs().max()
    torch.testing.assert_close(qkv / scale, theirs.blocks[1].attn.qkv.weight.grad / scale, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.class_token.grad / scale, theirs.cls_token.grad[0, 0] / scale, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "678340ac")
def test_weights_without_a_class_token():
    with pytest.raises(ValueError, match="no class token"):
        from_timm({"pos_embed": torch.zeros(1, 36, 24)})


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "04f26490")
def test_unpatch():
    def unpatch(tokens, height, width, patch):
        grid = tokens.unflatten(1, (height // patch, width // patch)).unflatten(-1, (3, patch, patch))  # B h w 3 p p
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    image = torch.rand(2, 3, 12, 20)
    assert torch.equal(unpatch(F.unfold(image, 4, stride=4).transpose(1, 2), 12, 20, 4), image)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "04f26490")
def test_unpatch_starter_fails():
    def unpatch(tokens, height, width, patch):
        return tokens.unflatten(-1, (3, patch, patch))

    with pytest.raises(Exception):
        image = torch.rand(2, 3, 12, 20)
        assert torch.equal(unpatch(F.unfold(image, 4, stride=4).transpose(1, 2), 12, 20, 4), image)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "b746543a")
def test_mean_logits(setup_2ff5592b):
    small_vit = setup_2ff5592b

    def mean_logits(model, image):
        return model.head(model.encode(image)[:, 1:].mean(1))

    model, x = small_vit(), torch.rand(2, 3, 48, 48, dtype=torch.float64)
    by_hand = sum(model.encode(x)[:, i] for i in range(1, 37)) / 36 @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(mean_logits(model, x), by_hand, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "b746543a")
def test_mean_logits_starter_fails(setup_2ff5592b):
    small_vit = setup_2ff5592b

    def mean_logits(model, image):
        return model.head(model.encode(image).mean(1))

    with pytest.raises(Exception):
        model, x = small_vit(), torch.rand(2, 3, 48, 48, dtype=torch.float64)
        by_hand = sum(model.encode(x)[:, i] for i in range(1, 37)) / 36 @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(mean_logits(model, x), by_hand, rtol=0, atol=1e-10)


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "b98b71d7")
def test_rollout():
    def rollout(maps):
        steps = (maps.mean(2) + torch.eye(maps.shape[-1], dtype=maps.dtype)) / 2  # B L T T
        result = steps[:, 0]
        for k in range(1, steps.shape[1]):
            result = steps[:, k] @ result
        return result

    maps = torch.rand(2, 3, 4, 5, 5, dtype=torch.float64).softmax(-1)
    found = rollout(maps)
    A = (maps.mean(2) + torch.eye(5)) / 2
    torch.testing.assert_close(found, A[:, 2] @ A[:, 1] @ A[:, 0], rtol=0, atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones(2, 5, dtype=found.dtype))


@pytest.mark.nb("nbs/1_foundations/05_images_as_tokens.ipynb", "b98b71d7")
def test_rollout_starter_fails():
    def rollout(maps):
        return maps.mean(2)[:, -1]

    with pytest.raises(Exception):
        maps = torch.rand(2, 3, 4, 5, 5, dtype=torch.float64).softmax(-1)
        found = rollout(maps)
        A = (maps.mean(2) + torch.eye(5)) / 2
        torch.testing.assert_close(found, A[:, 2] @ A[:, 1] @ A[:, 0], rtol=0, atol=1e-12)
        assert torch.allclose(found.sum(-1), torch.ones(2, 5, dtype=found.dtype))
