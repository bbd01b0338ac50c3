"""Generated from nbs/1_foundations/07_vae.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import io
import math
import numpy as np
import pytest
import scipy.linalg
import tempfile
import torch
import torch.nn.functional as F
from PIL import Image
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock
from vlp_course.data.emoji import load_emoji
from vlp_course.data.emoji import picture
from vlp_course.lab import read_results
from vlp_course.models.vae import (
    Judge,
    Setting,
    VAE,
    draw_codes,
    elbo_losses,
    emoji_pictures,
    frechet_distance,
    gaussian_kl,
    gaussian_nll,
    main,
    run_seed,
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


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "9cec5e9a")
def test_kl_by_hand():
    mean, logvar = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4)]])
    assert gaussian_kl(mean, logvar)[0].tolist() == pytest.approx([0, 2, 0.5 * (3 - math.log(4))])
    image, output = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert gaussian_nll(output, image, 0.5).item() == pytest.approx(1 + math.log(math.pi))  # one square: s² = 1/2
    assert gaussian_nll(output, image, 1.0).item() == pytest.approx(0.5 + math.log(2 * math.pi))  # half of it: s² = 1


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


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "eb3ccfd7")
def test_variance_must_be_positive():
    with pytest.raises(ValueError, match="variance is 0.0; the decoder's noise needs a variance above 0"):
        gaussian_nll(torch.rand(2, 3), torch.rand(2, 3), 0.0)


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


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "f0b7f37e")
def test_shapes_and_sides():
    for side in (8, 16, 32, 64):
        output, mean, logvar = VAE(side, latent=5, width=4)(torch.rand(2, 3, side, side))
        assert (
            output.shape == (2, 3, side, side)
            and mean.shape == logvar.shape == (2, 5)
            and 0 < output.min() < output.max() < 1
        )
    with pytest.raises(ValueError, match="pictures of 48 pixels; the side must be 8, 16, 32, 64 or 128"):
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


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "07876c0e")
def test_training_learns_and_repeats():
    images = F.interpolate(torch.rand(40, 3, 2, 2), size=16)
    setting = Setting(steps=40, batch=20, latent=6, lr=2e-3)
    (first, curve), (second, again) = train(images, setting, 1, width=4), train(images, setting, 1, width=4)
    assert curve == again and all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert curve[-1]["loss"] < curve[0]["loss"] and set(curve[0]) == {"loss", "reconstruction", "kl"}
    assert train(images, setting, 2, width=4)[1] != curve


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "245675fb")
def test_an_autoencoder_leaves_the_variances_alone():
    images = torch.rand(30, 3, 8, 8)
    setting = Setting(beta=0.0, noise=False, steps=5, batch=10, latent=6)
    model, curve = train(images, setting, 3, width=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        start = VAE(8, 6, 4)
    assert torch.equal(model.encoder[-1].weight[6:], start.encoder[-1].weight[6:])  # no gradient ever came
    assert not torch.equal(model.encoder[-1].weight[:6], start.encoder[-1].weight[:6])
    assert curve[0]["loss"] == curve[0]["reconstruction"]


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "6da3da1c")
def test_a_walk_is_even(setup_1d7a1b28):
    walk = setup_1d7a1b28
    codes = walk(torch.zeros(3), torch.tensor([4.0, 0.0, 8.0]), 5)
    assert codes.tolist() == [[0, 0, 0], [1, 0, 2], [2, 0, 4], [3, 0, 6], [4, 0, 8]]


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "d5ec438d")
def test_frechet_by_hand():
    line = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    unit = line / line.std(ddof=1)  # mean 0, variance 1
    assert frechet_distance(unit, 3 * unit + 2) == pytest.approx(2**2 + (3 - 1) ** 2)


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "3b916135")
def test_frechet_equals_the_matrix_root():
    a, b = np.random.randn(50, 4) @ np.random.randn(4, 4), np.random.randn(60, 4) + 1
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9) and frechet_distance(b, a) == pytest.approx(
        expected
    )
    turn = np.linalg.qr(np.random.randn(4, 4))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(expected)  # directions have no names


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "f8ac7b10")
def test_frechet_needs_samples():
    with pytest.raises(ValueError, match="4 samples in 4 dimensions; a covariance needs more samples than dimensions"):
        frechet_distance(np.random.randn(4, 4), np.random.randn(9, 4))


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "5622710c")
def test_the_judge_prefers_pictures_to_noise():
    images = emoji_pictures(range(0, 60, 2), 32)
    judge = Judge(images, dims=6)
    assert judge(images) == pytest.approx(0, abs=1e-6) and judge.reference.shape == (60, 6)
    assert judge(images.flip(3)) < judge(torch.rand(60, 3, 32, 32)) / 2


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "00ccb57d")
def test_one_command_writes_a_file_a_row_and_seed():
    def few(indices, side=64):
        return torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(len(indices)))

    threads, real, small = (
        torch.get_num_threads(),
        run_seed,
        {"ae": Setting(0.0, noise=False, steps=3), "vae": Setting(steps=3)},
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()) as said,
        mock.patch.multiple(main.__module__, emoji_pictures=few, run_seed=lambda seed: real(seed, small)),
    ):
        main(["--results", folder, "--seeds", "2", "4"])
        found = {(r["row"], r["seed"]): r for r in read_results(Path(folder), "vae")}
        sheets = sorted(p.name for p in Path(folder, "vae").glob("*.png"))
        picture_size = Image.open(Path(folder, "vae", "vae-quick-s2.png")).size
    torch.set_num_threads(threads)
    assert (
        set(found) == {(row, seed) for row in ("controls", "ae", "vae") for seed in (2, 4)}
        and len(said.getvalue().splitlines()) == 6
    )
    assert sheets == ["ae-quick-s2.png", "vae-quick-s2.png"] and picture_size == (160, 64)
    assert found["vae", 2]["metrics"]["bound"] > 0 and "kl" not in found["ae", 2]["metrics"]
    assert found["controls", 2]["metrics"]["frechet/floor"] == pytest.approx(0, abs=1e-6)  # here, the same pictures


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


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "ca0de08c")
def test_best_variance():
    def best_variance(output, image):
        return (output - image).square().mean().item()  # derivative: -SSE / 2 s⁴ + P / 2 s² = 0

    image, output = torch.rand(3, 50), torch.rand(3, 50)
    best = best_variance(output, image)
    least = gaussian_nll(output, image, best).sum()
    assert all(least < gaussian_nll(output, image, factor * best).sum() for factor in (0.5, 0.9, 1.1, 2.0))


@pytest.mark.nb("nbs/1_foundations/07_vae.ipynb", "ca0de08c")
def test_best_variance_starter_fails():
    def best_variance(output, image):
        return 0.5

    with pytest.raises(Exception):
        image, output = torch.rand(3, 50), torch.rand(3, 50)
        best = best_variance(output, image)
        least = gaussian_nll(output, image, best).sum()
        assert all(least < gaussian_nll(output, image, factor * best).sum() for factor in (0.5, 0.9, 1.1, 2.0))


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
