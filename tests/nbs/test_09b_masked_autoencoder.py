"""Generated from nbs/2_transfer/09b_masked_autoencoder.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from vlp_course.data.pairs import Pairs
from vlp_course.nn.vit import ViT
from vlp_course.models.mae import MAE, from_patches, pick, standardise, to_patches


@pytest.fixture(scope="module")
def setup_c40f3487():
    def slow_loss(model, image, order):
        """MAE.loss for one picture at a time, with lists instead of gathering."""
        errors = []
        for picture, places in zip(image, order.tolist()):
            tokens = model.encoder.embed(picture[None])[0]
            seen, hidden = places[: model.seen], places[model.seen :]
            x = torch.stack([tokens[0]] + [tokens[1 + place] for place in seen])[None]
            for layer in model.encoder.layers:
                x = layer(x)
            x = model.project(model.encoder.norm(x))[0]
            full = [x[0]] + [x[1 + seen.index(n)] if n in seen else model.mask_token for n in range(len(places))]
            y = (torch.stack(full) + model.positions)[None]
            for layer in model.layers:
                y = layer(y)
            guess = model.predict(model.norm(y))[0, 1:]
            side = model.patch
            for n in hidden:
                row, column = divmod(n, picture.shape[2] // side)
                pixels = (
                    (2 * picture - 1)[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                    .permute(1, 2, 0)
                    .flatten()
                )
                target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                errors.append((guess[n] - target).square().mean())
        return torch.stack(errors).mean()

    def shake(module):
        """Random weights of a healthy size: fresh ones hide errors."""
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn_like(p) * (0.5 if p.ndim == 1 else 1.5 / p[0].numel() ** 0.5))
        return module.double().eval()

    return shake, slow_loss


@pytest.fixture(scope="module")
def setup_9fdd03c9():
    def vit_mae_like(model, image_size, hidden, decoder_hidden):
        """transformers' masked autoencoder with the weights of ours."""
        vit, first = model.encoder, model.encoder.layers[0]
        config = ViTMAEConfig(
            hidden_size=vit.positions.shape[1],
            num_hidden_layers=len(vit.layers),
            num_attention_heads=first.attention.heads,
            intermediate_size=hidden,
            image_size=image_size,
            patch_size=model.patch,
            layer_norm_eps=1e-6,
            norm_pix_loss=True,
            decoder_hidden_size=model.positions.shape[1],
            decoder_num_hidden_layers=len(model.layers),
            decoder_num_attention_heads=model.layers[0].attention.heads,
            decoder_intermediate_size=decoder_hidden,
        )
        names = {
            "attention.query": "attention.q_proj",
            "attention.key": "attention.k_proj",
            "attention.value": "attention.v_proj",
            "attention.out": "attention.o_proj",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "feed_forward.up": "mlp.fc1",
            "feed_forward.down": "mlp.fc2",
        }
        state = {
            "vit.embeddings.cls_token": vit.class_token[None, None],
            "vit.embeddings.position_embeddings": vit.positions[None],
            "decoder.mask_token": model.mask_token[None, None],
            "decoder.decoder_pos_embed": model.positions[None],
        }
        for theirs, ours in (
            ("vit.embeddings.patch_embeddings.projection", vit.patch.project),
            ("vit.layernorm", vit.norm),
            ("decoder.decoder_embed", model.project),
            ("decoder.decoder_norm", model.norm),
            ("decoder.decoder_pred", model.predict),
        ):
            state |= {f"{theirs}.{k}": v for k, v in ours.state_dict().items()}
        net = ViTMAEForPreTraining(config).double().eval()
        inner = {
            key.split("layer.0.")[0] + "layer." if "layer.0." in key else key.split("layers.0.")[0] + "layers."
            for key in net.state_dict()
            if "layer.0." in key or "layers.0." in key
        }
        for at, layers in zip(sorted(inner, key=lambda name: "decoder" in name), (vit.layers, model.layers)):
            for n, layer in enumerate(layers):
                state |= {
                    f"{at}{n}.{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v
                    for k, v in layer.state_dict().items()
                }
        net.load_state_dict(state)
        return net

    return vit_mae_like


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "f13a831c")
def test_patches_by_hand():
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = to_patches(image, 2)
    assert patches.shape == (2, 6, 12)
    assert patches[0, 4].tolist() == [
        14,
        38,
        62,
        15,
        39,
        63,
        20,
        44,
        68,
        21,
        45,
        69,
    ]  # second row of patches, second column
    square = torch.rand(2, 3, 8, 8)
    assert from_patches(to_patches(square, 4), 4).equal(square)
    rows = torch.tensor([[[1.0], [2], [3]], [[4], [5], [6]]])
    assert pick(rows, torch.tensor([[2, 0], [1, 1]]))[..., 0].tolist() == [[3, 1], [5, 5]]


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "4572267b")
def test_standardised_patches():
    patches = standardise(3 + 5 * torch.randn(2, 5, 48))
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert standardise(torch.full((1, 1, 48), 0.7)).abs().max() < 1e-3  # a plain patch becomes zeros, not noise


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "3113d985")
def test_loss_like_the_slow_twin(setup_c40f3487):
    shake, slow_loss = setup_c40f3487
    model, image = (
        shake(MAE(ViT(24, 4, 12, 2, 3), dim=8, depth=2, heads=2)),
        torch.rand(2, 3, 24, 24, dtype=torch.float64),
    )
    order = torch.rand(2, 36).argsort(1)
    assert model.seen == 9
    with torch.no_grad():
        torch.testing.assert_close(model.loss(image, order), slow_loss(model, image, order), rtol=0, atol=1e-12)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "fbed3fc2")
def test_nothing_leaks_from_hidden_patches(setup_c40f3487):
    shake, _ = setup_c40f3487
    model, image = (
        shake(MAE(ViT(24, 4, 12, 2, 3), dim=8, depth=2, heads=2)),
        torch.rand(2, 3, 24, 24, dtype=torch.float64),
    )
    order = torch.rand(2, 36).argsort(1)
    with torch.no_grad():
        guess, hidden = model.reconstruct(image, order)
        assert hidden.sum(1).tolist() == [27, 27] and not hidden[0, order[0, :9]].any()
        other = from_patches(
            torch.where(hidden[..., None], torch.rand(2, 36, 48, dtype=torch.float64), to_patches(image, 4)), 4
        )
        assert model.reconstruct(other, order)[0].equal(guess)  # other pixels where it is hidden: the same guess
        again = order.clone()
        again[:, :9] = again[:, :9].flip(1)  # the same patches, shown in another order
        torch.testing.assert_close(model.reconstruct(image, again)[0], guess)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "fa009b3a")
def test_decoder_is_left_behind():
    model, generator = MAE(ViT(24, 4, 12, 2, 3), dim=8, depth=1, heads=2), torch.Generator().manual_seed(0)
    batch = Pairs(torch.rand(5, 3, 24, 24), [""] * 5, None, torch.arange(5))
    out = model(batch, step=0, generator=generator)
    out.losses["mae"].backward()
    used = {name for name, p in model.encoder.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in used} == {"patch", "class_token", "positions", "layers", "norm"}
    for masked in (0.0, 1.0):
        with pytest.raises(ValueError, match="masked leaves .* of 36 patches: some must be seen and some guessed"):
            MAE(ViT(24, 4, 12, 2, 3), dim=8, heads=2, masked=masked)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "f6940954")
def test_parity_with_transformers(setup_c40f3487, setup_9fdd03c9):
    shake, _ = setup_c40f3487
    vit_mae_like = setup_9fdd03c9
    model = shake(MAE(ViT(24, 4, 12, 3, 3, hidden=20), dim=8, depth=2, heads=2, hidden=28))
    model.positions.normal_()
    theirs = vit_mae_like(model, 24, 20, 28)
    image, noise = torch.rand(2, 3, 24, 24, dtype=torch.float64), torch.rand(2, 36)
    with torch.no_grad():
        wanted = theirs(2 * image - 1, noise=noise)
        guess, hidden = model.reconstruct(image, noise.argsort(1))
        torch.testing.assert_close(guess, wanted.logits, rtol=1e-10, atol=1e-10)
        assert hidden.equal(wanted.mask.bool())
        torch.testing.assert_close(model.loss(image, noise.argsort(1)), wanted.loss, rtol=1e-10, atol=0)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "7e4bd595")
def test_zero_guess():
    def zero_guess(pixels):
        return (pixels - 1) / pixels

    for pixels in (12, 768):
        noise = torch.rand(1, 7, pixels, dtype=torch.float64)
        assert standardise(noise).square().mean().item() == pytest.approx(zero_guess(pixels), rel=1e-4)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "7e4bd595")
def test_zero_guess_starter_fails():
    def zero_guess(pixels):
        return 1.0

    with pytest.raises(Exception):
        for pixels in (12, 768):
            noise = torch.rand(1, 7, pixels, dtype=torch.float64)
            assert standardise(noise).square().mean().item() == pytest.approx(zero_guess(pixels), rel=1e-4)


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "98b52f5d")
def test_block_order():
    def block_order(batch, generator):
        blocks = torch.rand(batch, 16, generator=generator).argsort(1)  # blocks of a 4 x 4 grid
        corner = blocks // 4 * 16 + blocks % 4 * 2  # its upper left patch
        return (corner[..., None] + torch.tensor([0, 1, 8, 9])).flatten(1)

    order = block_order(3, torch.Generator().manual_seed(0))
    assert (order.sort(1).values == torch.arange(64)).all() and not order[0].equal(order[1])
    for row in order.reshape(-1, 4).tolist():
        assert len({(n // 16, n % 8 // 2) for n in row}) == 1, row


@pytest.mark.nb("nbs/2_transfer/09b_masked_autoencoder.ipynb", "98b52f5d")
def test_block_order_starter_fails():
    def block_order(batch, generator):
        return torch.rand(batch, 64, generator=generator).argsort(1)

    with pytest.raises(Exception):
        order = block_order(3, torch.Generator().manual_seed(0))
        assert (order.sort(1).values == torch.arange(64)).all() and not order[0].equal(order[1])
        for row in order.reshape(-1, 4).tolist():
            assert len({(n // 16, n % 8 // 2) for n in row}) == 1, row
