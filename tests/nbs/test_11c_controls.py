"""Generated from nbs/3_fusion/11c_controls.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from torch import nn
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import course_vocabulary
from vlp_course.lab import TRAIN
from vlp_course.models.clip import CLIP
from vlp_course.models.clip import build
from vlp_course.nn.backbone import pack
from vlp_course.nn.backbone import unpack
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.encoders import grid_tokens
from vlp_course.nn.encoders import masked_mean
from vlp_course.recipe import batch_indices
from vlp_course.models.controls import (
    BagOfWords,
    LinearImages,
    PixelEncoder,
    build_learning,
    build_linear,
    build_pixels,
)


@pytest.fixture(scope="module")
def setup_40ec9fd5():
    def slow_bag(embed, text):
        """Mean word vector, word by word."""
        rows = []
        for ids, mask in zip(text.ids.tolist(), text.mask.tolist()):
            words = [embed.weight[i] for i, real in zip(ids, mask) if real]
            rows.append(sum(words) / len(words))
        return torch.stack(rows)

    def slow_patches(conv, image, side):
        """Each patch cut out, flattened and multiplied: what a convolution with stride = size does. Row by row."""
        weight = conv.weight.flatten(1)  # D x (3 side side)
        rows = []
        for picture in image * 2 - 1:
            patches = [
                picture[:, y : y + side, x : x + side].flatten()
                for y in range(0, picture.shape[1], side)
                for x in range(0, picture.shape[2], side)
            ]
            rows.append(torch.stack([weight @ p + conv.bias for p in patches]))
        return torch.stack(rows)

    def shuffle_cells(features, order):
        """The sixteen cells in another order, fine 2 x 2 blocks and coarse cells together."""
        fine, coarse = unpack(features)
        blocks = fine.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 1, 2, 4, 3, 5).flatten(2, 3)  # B 112 16 2 2
        blocks = blocks[:, :, order].unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
        return pack(blocks, coarse.flatten(2)[:, :, order].unflatten(2, (4, 4)))

    def some_features(count=3):
        return torch.randn(count, 112 * 64 + 320 * 16, generator=torch.Generator().manual_seed(2))

    return shuffle_cells, slow_bag, slow_patches, some_features


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "ae9da851")
def test_bag_of_words_has_no_order():
    linear, clip = build_linear(3).eval(), build(seed=3).eval()
    text = linear.tokenize(["a big tiger is left of a small star"])
    order = torch.tensor([0, 7, 8, 9, 4, 5, 6, 1, 2, 3, 10])  # [CLS] and [EOS] stay
    mirrored = Tokenized(text.ids[:, order], text.mask[:, order])
    assert mirrored.ids.tolist() == linear.tokenize(["a small star is left of a big tiger"]).ids.tolist()
    assert torch.allclose(linear.encode_text(mirrored).pooled, linear.encode_text(text).pooled, atol=1e-6)
    assert (clip.encode_text(mirrored).pooled - clip.encode_text(text).pooled).abs().max() > 1e-3


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "e77fd512")
def test_bag_of_words_equals_the_slow_version(setup_40ec9fd5):
    _, slow_bag, _, _ = setup_40ec9fd5
    bag = BagOfWords(nn.Embedding(9, 5))
    text = Tokenized(torch.tensor([[2, 7, 3, 0], [2, 5, 5, 3]]), torch.tensor([[True, True, True, False], [True] * 4]))
    out = bag(text)
    assert torch.allclose(out.pooled, slow_bag(bag.embed, text), atol=1e-6)
    assert out.tokens.shape == (2, 4, 5) and out.mask is text.mask
    padded = Tokenized(
        torch.cat([text.ids, torch.full((2, 3), 8)], 1), torch.cat([text.mask, torch.zeros(2, 3, dtype=torch.bool)], 1)
    )
    assert torch.allclose(bag(padded).pooled, out.pooled, atol=1e-6)  # what the mask hides has no say


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "13e56508")
def test_linear_images_have_no_place(setup_40ec9fd5):
    shuffle_cells, _, _, some_features = setup_40ec9fd5
    features, order = some_features(), torch.randperm(16, generator=torch.Generator().manual_seed(4))
    moved = shuffle_cells(features, order)
    assert torch.equal(grid_tokens(moved), grid_tokens(features)[:, order])  # the shuffle does what it says
    linear, clip = build_linear(3).eval().image_encoder, build(seed=3).eval().image_encoder
    assert torch.allclose(linear(moved).pooled, linear(features).pooled, atol=1e-6)
    assert (clip(moved).pooled - clip(features).pooled).abs().max() > 1e-3


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "2507b470")
def test_linear_images_by_hand(setup_40ec9fd5):
    _, _, _, some_features = setup_40ec9fd5
    tower, features = LinearImages(dim=5), some_features(2)
    out = tower(features)
    assert out.pooled.shape == (2, 5) and out.tokens.shape == (2, 16, 5) and out.mask.all()
    x = grid_tokens(features)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()  # LayerNorm
    assert torch.allclose(out.pooled, tower.project(x.mean(1)), atol=1e-5)  # mean and linear map change places
    with pytest.raises(ValueError, match="features of width 700, expected 12288"):
        tower(torch.zeros(2, 700))


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "8eaf24a6")
def test_patches_equal_the_slow_loop(setup_40ec9fd5):
    _, _, slow_patches, _ = setup_40ec9fd5
    tower = PixelEncoder(dim=12, heads=3, layers=0).eval()
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        slow = tower.norm(slow_patches(tower.patch, image, 32) + tower.position)
        out = tower(image)
        assert out.tokens.shape == (2, 16, 12) and torch.allclose(out.tokens, slow, atol=1e-5)
        assert torch.allclose(out.pooled, tower.pool(slow, out.mask), atol=1e-5)


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "f4bc8863")
def test_pixel_encoder_sees_place():
    tower = PixelEncoder(dim=12, heads=3, layers=2).eval()
    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        out, mirrored = tower(image), tower(image.flip(3))
        assert out.pooled.shape == (2, 12) and out.tokens.shape == (2, 16, 12) and out.mask.all()
        assert (out.pooled - mirrored.pooled).abs().max() > 1e-4
    assert len(tower.blocks) == 2 and tower.position.requires_grad


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "48433138")
def test_builders_keep_the_contract(setup_40ec9fd5):
    _, _, _, some_features = setup_40ec9fd5
    scenes = SceneSet("train", 6)
    pixels = scenes.batch(np.arange(6), build_linear().tokenize)
    features = Pairs(None, pixels.caption, pixels.text, pixels.family, some_features(6))
    for builder, batch in ((build_linear, features), (build_pixels, pixels), (build_learning, features)):
        model, twin, other = builder(seed=1), builder(seed=1), builder(seed=2)
        same = [torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters())]
        assert all(same) and not all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
        assert isinstance(model, CLIP)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        out = model(batch, step=0, generator=torch.Generator())
        assert set(out.losses) == {"itc"} and out.losses["itc"].isfinite() and out.state == {}
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # forward changes nothing
        out.losses["itc"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        image, text = model.encode_image(batch), model.encode_text(batch.text)
        assert model.similarity(image, text).shape == (6, 6) and image.pooled.norm(dim=-1).allclose(torch.ones(6))


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "d67b1442")
def test_controls_share_clips_words_and_loss():
    models = [build(seed=5), build_linear(5), build_pixels(5)]
    assert all(torch.equal(m.text_encoder.embed.weight, models[0].text_encoder.embed.weight) for m in models)
    assert all(m.vocabulary.words == course_vocabulary().words and m.loss.__func__ is CLIP.loss for m in models)
    pairs = zip(models[0].text_encoder.parameters(), models[2].text_encoder.parameters())
    assert all(torch.equal(a, b) for a, b in pairs)  # the ViT row differs in sight alone
    linear = sum(p.numel() for n, p in models[1].named_parameters() if "embed" not in n)
    assert linear == (768 + 1) * 128 + 2 * 128 * 128 + 1  # map, two projections, scale


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "21897f80")
def test_sibling_pairs():
    def sibling_pairs(batch: int, scenes: int) -> float:
        return batch * (batch - 1) / 2 * 2 / (scenes - 1)  # pairs, times the chance that the other is a sibling

    assert sibling_pairs(3, 3) == 3 and sibling_pairs(63, TRAIN) == pytest.approx(0.2441, abs=1e-4)
    family, counts = np.arange(300) // 3, []
    for step in range(400):  # batches of the course's own sampler, scene by scene
        here = np.bincount(family[batch_indices(np.arange(300), step, 30, 0)], minlength=100)
        counts.append((here * (here - 1) / 2).sum())
    assert np.mean(counts) == pytest.approx(sibling_pairs(30, 300), rel=0.1)


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "21897f80")
def test_sibling_pairs_starter_fails():
    def sibling_pairs(batch: int, scenes: int) -> float:
        return batch / scenes

    with pytest.raises(Exception):
        assert sibling_pairs(3, 3) == 3 and sibling_pairs(63, TRAIN) == pytest.approx(0.2441, abs=1e-4)
        family, counts = np.arange(300) // 3, []
        for step in range(400):  # batches of the course's own sampler, scene by scene
            here = np.bincount(family[batch_indices(np.arange(300), step, 30, 0)], minlength=100)
            counts.append((here * (here - 1) / 2).sum())
        assert np.mean(counts) == pytest.approx(sibling_pairs(30, 300), rel=0.1)


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "04cb0dc7")
def test_ordered_bag():
    class OrderedBag(BagOfWords):
        def forward(self, text):
            x = self.embed(text.ids)
            x = x * torch.linspace(-1, 1, x.shape[1])[:, None]  # a product ties the word to its place, a sum does not
            return Tokens(masked_mean(x, text.mask), x, text.mask)

    ids = torch.tensor([[2, 5, 7, 4, 3], [2, 4, 7, 5, 3]])  # the same words, two of them exchanged
    text = Tokenized(ids, torch.ones(2, 5, dtype=torch.bool))
    torch.manual_seed(0)
    pooled = OrderedBag(nn.Embedding(9, 6))(text).pooled
    assert pooled.shape == (2, 6) and (pooled[0] - pooled[1]).abs().max() > 0.05


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "04cb0dc7")
def test_ordered_bag_starter_fails():
    class OrderedBag(BagOfWords):
        def forward(self, text):
            x = self.embed(text.ids)
            x = x + torch.linspace(-1, 1, x.shape[1])[:, None]
            return Tokens(masked_mean(x, text.mask), x, text.mask)

    with pytest.raises(Exception):
        ids = torch.tensor([[2, 5, 7, 4, 3], [2, 4, 7, 5, 3]])  # the same words, two of them exchanged
        text = Tokenized(ids, torch.ones(2, 5, dtype=torch.bool))
        torch.manual_seed(0)
        pooled = OrderedBag(nn.Embedding(9, 6))(text).pooled
        assert pooled.shape == (2, 6) and (pooled[0] - pooled[1]).abs().max() > 0.05


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "8762879e")
def test_shuffle_patches():
    def shuffle_patches(image, order, side):
        grid = image.shape[-1] // side
        patches = (
            image.unflatten(3, (grid, side))
            .unflatten(2, (grid, side))
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(1, 2)[:, order]
        )
        return patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(7))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(8))
    mixed, y, x = shuffle_patches(image, order, 32), order[0] // 4 * 32, order[0] % 4 * 32
    assert torch.equal(mixed[:, :, :32, :32], image[:, :, y : y + 32, x : x + 32])
    tower = PixelEncoder(dim=12, heads=3, layers=2).eval()
    with torch.no_grad():
        assert (tower(mixed).pooled - tower(image).pooled).abs().max() > 1e-4
        tower.position.zero_()
        assert torch.allclose(tower(mixed).pooled, tower(image).pooled, atol=1e-5)


@pytest.mark.nb("nbs/3_fusion/11c_controls.ipynb", "8762879e")
def test_shuffle_patches_starter_fails():
    def shuffle_patches(image, order, side):
        return image.flip(3)

    with pytest.raises(Exception):
        image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(7))
        order = torch.randperm(16, generator=torch.Generator().manual_seed(8))
        mixed, y, x = shuffle_patches(image, order, 32), order[0] // 4 * 32, order[0] % 4 * 32
        assert torch.equal(mixed[:, :, :32, :32], image[:, :, y : y + 32, x : x + 32])
        tower = PixelEncoder(dim=12, heads=3, layers=2).eval()
        with torch.no_grad():
            assert (tower(mixed).pooled - tower(image).pooled).abs().max() > 1e-4
            tower.position.zero_()
            assert torch.allclose(tower(mixed).pooled, tower(image).pooled, atol=1e-5)
