"""Generated from nbs/1_foundations/07_vae.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from vlp_course.data.emoji import load_emoji
from vlp_course.data.emoji import picture
from vlp_course.models.vae import (
    Setting,
    VAE,
    best_variance,
    draw_codes,
    elbo_losses,
    emoji_pictures,
    gaussian_kl,
    gaussian_nll,
    train,
)


@pytest.fixture(scope="module")
def setup_bade971c():
    def slow_losses(output, image, mean, logvar, variance, beta):
        """The negative bound, one number at a time."""
        reconstruction = kl = 0.0
        for b in range(len(image)):
            for x, y in zip(image[b].flatten().tolist(), output[b].flatten().tolist()):
                reconstruction += (x - y) ** 2 / (2 * variance) + 0.5 * math.log(2 * math.pi * variance)
            for m, v in zip(mean[b].tolist(), logvar[b].tolist()):
                kl += 0.5 * (m**2 + math.exp(v) - 1 - v)
        return (reconstruction + beta * kl) / len(image), reconstruction / len(image), kl / len(image)

    return slow_losses


@pytest.fixture(scope="module")
def setup_abd8577a():
    def score_gradient(loss, mean, std, noise, baseline=0.0):
        """Score-function estimates of d E[loss(z)] / d mean, one for each row of noise."""
        return (loss(mean + std * noise) - baseline)[:, None] * noise / std

    def path_gradient(loss, mean, std, noise):
        """The same gradient by reparameterisation."""
        z = (mean + std * noise).requires_grad_()
        return torch.autograd.grad(loss(z).sum(), z)[0]

    return path_gradient, score_gradient


@pytest.fixture(scope="module")
def setup_1d7a1b28():
    def walk(start, stop, steps):
        """Codes on the straight line from start to stop, both included."""
        share = torch.linspace(0, 1, steps)[:, None]
        return (1 - share) * start + share * stop

    return walk


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "92395974")
def test_parts_by_hand():
    mean, logvar = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4)]])
    assert gaussian_kl(mean, logvar)[0].tolist() == pytest.approx([0, 2, 0.5 * (3 - math.log(4))])
    image, output = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert gaussian_nll(output, image, 0.5).item() == pytest.approx(1 + math.log(math.pi))  # one square: s² = 1/2
    assert gaussian_nll(output, image, 1.0).item() == pytest.approx(0.5 + math.log(2 * math.pi))  # half of it: s² = 1
    assert best_variance(output, image) == 0.5


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "e2473b67")
def test_bound_equals_loops(setup_bade971c):
    slow_losses = setup_bade971c
    image, output, mean, logvar = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5), torch.randn(2, 7), torch.randn(2, 7)
    found = elbo_losses(output, image, mean, logvar, 0.3, beta=2.5)
    assert [found[k].item() for k in ("loss", "reconstruction", "kl")] == pytest.approx(
        slow_losses(output, image, mean, logvar, 0.3, 2.5), rel=1e-5
    )


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "f87b8e58")
def test_parts_equal_torch():
    mean, logvar, image, output = torch.randn(5, 7), torch.randn(5, 7), torch.rand(5, 3, 4), torch.rand(5, 3, 4)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (0.5 * logvar).exp()), normal(torch.zeros(5, 7), torch.ones(5, 7))
    )
    torch.testing.assert_close(gaussian_kl(mean, logvar), expected)
    torch.testing.assert_close(gaussian_nll(output, image, 0.2), -normal(output, 0.2**0.5).log_prob(image).sum((1, 2)))
    constant = 12 / 2 * math.log(math.pi)
    torch.testing.assert_close(
        gaussian_nll(output, image, 0.5).sum() - 5 * constant, F.mse_loss(output, image, reduction="sum")
    )


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "40d593cd")
def test_the_best_variance_is_best():
    image, output = torch.rand(3, 50, dtype=torch.float64), torch.rand(3, 50, dtype=torch.float64, requires_grad=True)
    best = best_variance(output, image)
    least = gaussian_nll(output, image, best).sum()
    assert all(least < gaussian_nll(output, image, factor * best).sum() for factor in (0.5, 0.9, 1.1, 2.0))
    (ours,) = torch.autograd.grad(
        elbo_losses(output, image, torch.zeros(3, 2).double(), torch.zeros(3, 2).double())["loss"], output
    )
    (through,) = torch.autograd.grad(
        50 / 2 * (image - output).square().mean().log(), output
    )  # with the variance inside the graph
    torch.testing.assert_close(ours, through)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "44537835")
def test_properties_of_the_bound():
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    assert (gaussian_kl(mean, logvar) >= 0).all() and gaussian_kl(torch.zeros(1, 7), torch.zeros(1, 7)).sum() == 0
    quiet = 0.01 * torch.randn(5, 7, requires_grad=True)  # says nearly nothing: the floor takes its gradient away
    x = torch.rand(5, 3)
    paid = elbo_losses(x, x, quiet, torch.zeros(5, 7), 1.0, free_bits=0.5)
    assert (
        torch.autograd.grad(paid["loss"], quiet)[0].abs().max() == 0 and paid["kl"] < 0.01
    )  # reported without the floor
    assert (paid["loss"] - paid["reconstruction"]).item() == pytest.approx(7 * 0.5)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "b44772e7")
def test_prices_and_variances_have_signs():
    x, code = torch.rand(2, 3), torch.zeros(2, 5)
    with pytest.raises(ValueError, match="variance is 0.0; the decoder's noise needs a variance above 0"):
        gaussian_nll(x, x, 0.0)
    with pytest.raises(ValueError, match="variance is 0.0; the decoder's noise"):
        elbo_losses(x, x, code, code)  # nothing left to explain: the best variance is 0
    with pytest.raises(ValueError, match="beta is -1.0, free_bits 0.0; a price below 0"):
        elbo_losses(x, x, code, code, 1.0, beta=-1.0)
    with pytest.raises(ValueError, match="beta is 1.0, free_bits -0.5; a price below 0"):
        elbo_losses(x, x, code, code, 1.0, free_bits=-0.5)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "ced49065")
def test_both_gradients_are_unbiased(setup_abd8577a):
    path_gradient, score_gradient = setup_abd8577a
    noise, mean, std = torch.randn(200_000, 3, dtype=torch.float64), torch.tensor([1.0, -0.5, 0.0]).double(), 0.7
    loss = lambda z: z.square().sum(1)
    for estimate in (
        path_gradient(loss, mean, std, noise),
        score_gradient(loss, mean, std, noise),
        score_gradient(loss, mean, std, noise, baseline=2.0),
    ):
        error = estimate.std(0) / len(noise) ** 0.5
        assert ((estimate.mean(0) - 2 * mean).abs() < 4 * error).all()
    assert path_gradient(loss, mean, std, noise).std(0).tolist() == pytest.approx(
        [2 * std] * 3, rel=0.02
    )  # by hand: 2 std


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "756096f7")
def test_shapes_and_sides():
    for side in (16, 32, 64, 128):
        output, mean, logvar = VAE(side, latent=5, width=4)(torch.rand(2, 3, side, side))
        assert (
            output.shape == (2, 3, side, side)
            and mean.shape == logvar.shape == (2, 5)
            and 0 < output.min() < output.max() < 1
        )
    with pytest.raises(ValueError, match="pictures of 48 pixels; the side must be 16, 32, 64 or 128"):
        VAE(48)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "f9458078")
def test_noise_is_the_only_difference():
    model, image = VAE(16, latent=5, width=4), torch.rand(2, 3, 16, 16)
    plain, mean, logvar = model(image)
    torch.testing.assert_close(model(image, torch.zeros(2, 5))[0], plain)
    noise = torch.randn(2, 5)
    torch.testing.assert_close(model(image, noise)[0], model.decode(mean + logvar.exp().sqrt() * noise))
    head = model.encoder[-1].weight  # rows 0-4: mean, rows 5-9: log variance
    (blind,) = torch.autograd.grad(plain.sum(), head)
    (seen,) = torch.autograd.grad(model(image, noise)[0].sum(), head)
    assert blind[:5].abs().sum() > 0 and blind[5:].abs().sum() == 0  # an autoencoder never trains the second half
    assert seen[5:].abs().sum() > 0  # through the noise, the gradient reaches sigma


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "fa0fcca0")
def test_fitted_codes_have_the_moments():
    model, images = VAE(16, latent=5, width=4), torch.rand(300, 3, 16, 16)
    with torch.no_grad():
        model.encoder[-1].bias[5:] = -2  # a fresh model has logvar near 0, which would hide errors
        mean, logvar = model.encode(images)
        for noise in (False, True):
            codes = draw_codes(model, images, 50_000, torch.Generator().manual_seed(0), fitted=True, noise=noise)
            expected = mean.T.cov() + noise * logvar.exp().mean(0).diag()
            torch.testing.assert_close(codes.T.cov(), expected, atol=0.03 * expected.max().item(), rtol=0.05)
            torch.testing.assert_close(codes.mean(0), mean.mean(0), atol=0.03, rtol=0)
        assert draw_codes(model, images, 50_000, torch.Generator().manual_seed(0)).var().item() == pytest.approx(
            1, abs=0.02
        )


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "e3e39d9b")
def test_pictures_and_their_order():
    images = emoji_pictures([3, 8], 16)
    assert images.shape == (4, 3, 16, 16) and images.max() == 1
    torch.testing.assert_close(
        images[3], torch.from_numpy(picture(load_emoji()[8].char, "twemoji", 16)).permute(2, 0, 1) / 255
    )


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "bb7ac3c1")
def test_training_learns_and_repeats():
    images = 0.8 + 0.2 * F.interpolate(torch.rand(40, 3, 2, 2), size=16)  # bright: even the mean is worth learning
    setting = Setting(steps=40, batch=20, latent=6)
    (first, curve), (second, again) = train(images, setting, 1, width=4), train(images, setting, 1, width=4)
    assert curve == again and all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert curve[-1]["loss"] < curve[0]["loss"] and set(curve[0]) == {"loss", "reconstruction", "kl"}
    assert train(images, setting, 2, width=4)[1] != curve


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "e444e4f8")
def test_warmup_raises_beta():
    images = torch.rand(30, 3, 16, 16)
    _, curve = train(images, Setting(beta=8.0, warmup=4, steps=6, batch=10, latent=6), 3, width=4)
    betas = [(c["loss"] - c["reconstruction"]) / c["kl"] for c in curve]
    assert betas == pytest.approx([2, 4, 6, 8, 8, 8], rel=0.02)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "91d9a1ca")
def test_an_autoencoder_leaves_the_variances_alone():
    images = torch.rand(30, 3, 16, 16)
    model, curve = train(images, Setting(beta=0.0, noise=False, steps=5, batch=10, latent=6), 3, width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = VAE(16, 6, 4)
    assert torch.equal(model.encoder[-1].weight[6:], start.encoder[-1].weight[6:])  # no gradient ever came
    assert not torch.equal(model.encoder[-1].weight[:6], start.encoder[-1].weight[:6])
    assert curve[0]["loss"] == curve[0]["reconstruction"]


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "6da3da1c")
def test_a_walk_is_even(setup_1d7a1b28):
    walk = setup_1d7a1b28
    codes = walk(torch.zeros(3), torch.tensor([4.0, 0.0, 8.0]), 5)
    assert codes.tolist() == [[0, 0, 0], [1, 0, 2], [2, 0, 4], [3, 0, 6], [4, 0, 8]]


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "729acdfc")
def test_hidden_beta():
    def hidden_beta(pixels, variance):
        return pixels / (2 * variance)

    image, output = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5, requires_grad=True)
    mean, logvar = torch.randn(2, 7, requires_grad=True), torch.zeros(2, 7)
    theirs = F.mse_loss(output, image) + gaussian_kl(mean, logvar).sum(1).mean()
    ours = elbo_losses(output, image, mean, logvar, 0.02, hidden_beta(60, 0.02))["loss"]
    (a, b), (c, d) = (torch.autograd.grad(loss, (output, mean)) for loss in (theirs, ours))
    torch.testing.assert_close(c / a, torch.full_like(a, (d / b).mean().item()))  # the same direction, another length


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "729acdfc")
def test_hidden_beta_starter_fails():
    def hidden_beta(pixels, variance):
        return 1.0

    with pytest.raises(Exception):
        image, output = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5, requires_grad=True)
        mean, logvar = torch.randn(2, 7, requires_grad=True), torch.zeros(2, 7)
        theirs = F.mse_loss(output, image) + gaussian_kl(mean, logvar).sum(1).mean()
        ours = elbo_losses(output, image, mean, logvar, 0.02, hidden_beta(60, 0.02))["loss"]
        (a, b), (c, d) = (torch.autograd.grad(loss, (output, mean)) for loss in (theirs, ours))
        torch.testing.assert_close(
            c / a, torch.full_like(a, (d / b).mean().item())
        )  # the same direction, another length


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "3fb1e69f")
def test_capacity_loss():
    def capacity_loss(reconstruction, kl, step, most=25.0, ramp=1000, gamma=1000.0):
        return reconstruction + gamma * abs(kl - most * min(1, step / ramp))

    loss = lambda kl, step: capacity_loss(
        torch.tensor(7.0), torch.tensor(kl), step, most=20.0, ramp=100, gamma=10.0
    ).item()
    assert loss(5.0, 25) == 7 and loss(20.0, 100) == 7 and loss(20.0, 5000) == 7  # on the schedule
    assert loss(3.0, 25) == 27 and loss(7.0, 25) == 27  # too little costs as much as too much
    assert loss(3.0, 25) == loss(3.0, 25)  # asking twice changes nothing


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "3fb1e69f")
def test_capacity_loss_starter_fails():
    def capacity_loss(reconstruction, kl, step, most=25.0, ramp=1000, gamma=1000.0):
        return reconstruction + gamma * max(kl - most, 0)

    with pytest.raises(Exception):
        loss = lambda kl, step: capacity_loss(
            torch.tensor(7.0), torch.tensor(kl), step, most=20.0, ramp=100, gamma=10.0
        ).item()
        assert loss(5.0, 25) == 7 and loss(20.0, 100) == 7 and loss(20.0, 5000) == 7  # on the schedule
        assert loss(3.0, 25) == 27 and loss(7.0, 25) == 27  # too little costs as much as too much
        assert loss(3.0, 25) == loss(3.0, 25)  # asking twice changes nothing


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "cde8a607")
def test_leave_one_out():
    def leave_one_out(loss_values, score):
        n = len(loss_values)
        others = (loss_values.sum() - loss_values) / (n - 1)
        return (loss_values - others)[:, None] * score

    noise, mean = (
        torch.randn(40_000, 3, 2, dtype=torch.float64),
        torch.tensor([1.0, -0.5]).double(),
    )  # many groups of 3 samples
    losses = (mean + noise).square().sum(2)
    found = torch.stack([leave_one_out(losses[i], noise[i]).mean(0) for i in range(4000)])
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - 2 * mean).abs() < 4 * error).all()


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "cde8a607")
def test_leave_one_out_starter_fails():
    def leave_one_out(loss_values, score):
        return (loss_values - loss_values.mean())[:, None] * score

    with pytest.raises(Exception):
        noise, mean = (
            torch.randn(40_000, 3, 2, dtype=torch.float64),
            torch.tensor([1.0, -0.5]).double(),
        )  # many groups of 3 samples
        losses = (mean + noise).square().sum(2)
        found = torch.stack([leave_one_out(losses[i], noise[i]).mean(0) for i in range(4000)])
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - 2 * mean).abs() < 4 * error).all()


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "be117d98")
def test_linear_kl():
    def linear_kl(eigenvalues, variance, beta=1.0):
        return 0.5 * (eigenvalues / (beta * variance)).clamp(min=1).log()

    assert linear_kl(torch.tensor([4.0, 0.5]), 0.5, 2.0).tolist() == pytest.approx([math.log(2), 0])
    grid = torch.linspace(0.01, 3, 120)
    decoder, encoder, spread = torch.meshgrid(
        grid, torch.linspace(0, 1.2, 120), torch.linspace(0.02, 1, 80), indexing="ij"
    )
    for size, variance, beta in (
        (4.0, 0.5, 1.0),
        (4.0, 0.5, 2.0),
    ):  # brute force: x ~ N(0, size), z = encoder x + noise
        error = (1 - decoder * encoder) ** 2 * size + decoder**2 * spread
        kl = 0.5 * (encoder**2 * size + spread - 1 - spread.log())
        best = (error / (2 * variance) + beta * kl).argmin()
        assert kl.flatten()[best].item() == pytest.approx(
            linear_kl(torch.tensor(size), variance, beta).item(), abs=0.05
        )


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "be117d98")
def test_linear_kl_starter_fails():
    def linear_kl(eigenvalues, variance, beta=1.0):
        return 0.5 * (eigenvalues / (beta * variance)).log()

    with pytest.raises(Exception):
        assert linear_kl(torch.tensor([4.0, 0.5]), 0.5, 2.0).tolist() == pytest.approx([math.log(2), 0])
        grid = torch.linspace(0.01, 3, 120)
        decoder, encoder, spread = torch.meshgrid(
            grid, torch.linspace(0, 1.2, 120), torch.linspace(0.02, 1, 80), indexing="ij"
        )
        for size, variance, beta in (
            (4.0, 0.5, 1.0),
            (4.0, 0.5, 2.0),
        ):  # brute force: x ~ N(0, size), z = encoder x + noise
            error = (1 - decoder * encoder) ** 2 * size + decoder**2 * spread
            kl = 0.5 * (encoder**2 * size + spread - 1 - spread.log())
            best = (error / (2 * variance) + beta * kl).argmin()
            assert kl.flatten()[best].item() == pytest.approx(
                linear_kl(torch.tensor(size), variance, beta).item(), abs=0.05
            )
