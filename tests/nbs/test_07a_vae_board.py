"""Generated from nbs/1_foundations/07a_vae_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import base64
import io
import numpy as np
import pytest
import re
import scipy.linalg
import tempfile
import torch
import torch.nn.functional as F
from PIL import Image
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock
from vlp_course.lab import read_results
from vlp_course.models.vae import Setting
from vlp_course.models.vae import VAE
from vlp_course.models.vae import emoji_pictures
from vlp_course.models.vae import gaussian_kl
from vlp_course.vae_board import Judge, atlas, examine, explorer, frechet_distance, main, prior_gap, to_webp


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "d5ec438d")
def test_frechet_by_hand():
    line = np.array([[-1.0], [1.0], [-1.0], [1.0]])
    unit = line / line.std(ddof=1)  # mean 0, variance 1
    assert frechet_distance(unit, 3 * unit + 2) == pytest.approx(2**2 + (3 - 1) ** 2)


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "3b916135")
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


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "1c2725f5")
def test_gap_equals_torch():
    mean, logvar = torch.randn(40, 3, dtype=torch.float64) @ torch.randn(3, 3).double() + 1, torch.randn(40, 3).double()
    normal = torch.distributions.MultivariateNormal
    prior = normal(torch.zeros(3).double(), torch.eye(3).double())
    for v, extra in ((None, 0), (logvar, logvar.exp().mean(0).diag())):
        expected = torch.distributions.kl_divergence(normal(mean.mean(0), mean.T.cov() + extra), prior)
        assert prior_gap(mean, v) == pytest.approx(expected.item())
    signs = (
        torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]) * 0.75**0.5
    )  # covariance 1: no gap, by hand
    assert prior_gap(signs) == pytest.approx(0, abs=1e-6)
    assert prior_gap(signs + torch.tensor([2.0, 0.0])) == pytest.approx(2)


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "7cb98c8f")
def test_the_gap_is_part_of_the_kl():
    mean, logvar = torch.randn(500, 4), torch.full((500, 4), -2.0)
    assert 0 < prior_gap(mean, logvar) < gaussian_kl(mean, logvar).sum(1).mean()  # the split above


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "066eeb8c")
def test_covariances_need_samples():
    with pytest.raises(ValueError, match="4 samples in 4 dimensions; a covariance needs more samples than dimensions"):
        frechet_distance(np.random.randn(4, 4), np.random.randn(9, 4))
    with pytest.raises(ValueError, match="5 codes in 5 dimensions; a covariance needs more codes than dimensions"):
        prior_gap(torch.randn(5, 5))


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "5622710c")
def test_the_judge_prefers_pictures_to_noise():
    images = emoji_pictures(range(0, 60, 2), 32)
    judge = Judge(images, dims=6)
    assert judge(images) == pytest.approx(0, abs=1e-6) and judge.reference.shape == (60, 6)
    assert judge(images.flip(3)) < judge(torch.rand(60, 3, 32, 32)) / 2


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "187c9f24")
def test_examine_on_a_known_model():
    images, test = torch.rand(60, 3, 16, 16), torch.rand(30, 3, 16, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(16, latent=5, width=4).eval()
    judge = lambda x: x.mean().item()  # a judge that tells which pictures it was shown
    plain, pictures = examine(model, Setting(beta=0.0, noise=False), judge, images, test, 3)
    with torch.no_grad():
        output, mean, logvar = model(test)
        expected = model.decode(torch.randn(30, 5, generator=torch.Generator().manual_seed(3)))
    assert (
        [len(p) for p in pictures] == [30] * 4
        and torch.equal(pictures[2], expected)
        and torch.equal(pictures[1], output)
    )
    assert plain["frechet/prior"] == expected.mean().item() and plain["frechet/rebuilt"] == output.mean().item()
    assert "kl" not in plain and plain["mse"] == pytest.approx(F.mse_loss(output, test).item())
    cloudy, _ = examine(model, Setting(), judge, images, test, 3)
    assert (
        cloudy["kl"] == pytest.approx(gaussian_kl(mean, logvar).sum(1).mean().item()) and cloudy["gap"] < plain["gap"]
    )
    assert cloudy["frechet/prior"] == plain["frechet/prior"] and cloudy["frechet/fitted"] != plain["frechet/fitted"]


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "ead1b2ff")
def test_an_atlas_has_its_steps_in_order():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, images = VAE(16, latent=5, width=4).eval(), torch.rand(60, 3, 16, 16)
    found = atlas(model, images, (-1.0, 0.0, 1.0))
    assert found.shape == (3, 9 * 16, 3 * 16)
    with torch.no_grad():
        mean = model.encode(images)[0]
        values, vectors = torch.linalg.eigh(mean.T.cov())
        cell = lambda row, column: found[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        torch.testing.assert_close(cell(4, 1), model.decode(mean.mean(0, keepdim=True))[0])  # the middle of everything
        for place, direction in (((4, 2), -1), ((7, 1), -2), ((5, 1), -3)):  # one step of the 1st, 2nd, 3rd
            axis = vectors[:, direction] * values[direction].sqrt()
            axis = axis * axis[axis.abs().argmax()].sign()
            torch.testing.assert_close(cell(*place), model.decode(mean.mean(0) + axis[None])[0])


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "d03dc3dc")
def test_an_explorer_stands_alone():
    webp = to_webp(torch.rand(3, 36, 12))
    page = explorer(webp, (-1.0, 0.0, 1.0))
    assert (
        page.count('type="range"') == 3
        and page.count("<output>0.0</output>") == 3
        and base64.b64encode(webp).decode() in page
    )
    assert not re.search(r"https?:|src=|href=", page) and "50% 50.0% / 300% 900%" in page
    assert np.abs(np.array(Image.open(io.BytesIO(to_webp(torch.full((3, 8, 16), 0.5))))).astype(int) - 128).max() <= 2
    with pytest.raises(ValueError, match="the atlas has 12 x 36 pixels; 4 steps need a height of 4 times the width"):
        explorer(webp, (-1.0, 0.0, 1.0, 2.0))


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "c300e323")
def test_one_command_writes_a_file_a_row_and_seed():
    def few(indices, side=64):
        return torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(len(indices)))

    threads, small = (
        torch.get_num_threads(),
        {"ae": Setting(0.0, noise=False, steps=3, latent=5), "vae": Setting(steps=3, latent=5)},
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()) as said,
        mock.patch.multiple(main.__module__, emoji_pictures=few, ROWS=small),
    ):
        command = ["--results", folder, "--seeds", "0", "4"]
        main(command)
        lines = said.getvalue().splitlines()
        found = {(r["row"], r["seed"]): r for r in read_results(Path(folder), "vae")}
        pictures = {p.name: Image.open(p).size for p in Path(folder, "vae").glob("*.webp")}
        main(command)  # nothing is missing: nothing is run
        again = said.getvalue().splitlines()
        Path(folder, "vae", "vae-quick-s4.json").unlink()
        main(command)
        third = [line.split()[:3] for line in said.getvalue().splitlines()[len(again) :]]
    torch.set_num_threads(threads)
    assert (
        set(found) == {(row, seed) for row in ("controls", "ae", "vae") for seed in (0, 4)}
        and len(lines) == 6
        and again == lines
    )
    assert third == [["seed", "4", "controls"], ["seed", "4", "vae"]]
    assert set(pictures) == {"ae-sheet.webp", "vae-sheet.webp", "vae-atlas.webp"} and pictures["vae-sheet.webp"] == (
        192,
        64,
    )
    assert found["vae", 4]["metrics"]["bound"] != 0 and "kl" not in found["ae", 4]["metrics"]
    assert 0 <= found["controls", 4]["metrics"]["frechet/floor"] < found["controls", 4]["metrics"]["frechet/mean"]


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "3f7001b1")
def test_floor_of():
    def floor_of(features, size, rng):
        draws = [rng.permutation(len(features))[: 2 * size] for _ in range(20)]
        return float(np.mean([frechet_distance(features[i[:size]], features[i[size:]]) for i in draws]))

    features = np.random.default_rng(0).normal(size=(400, 6))
    few, many = (floor_of(features, size, np.random.default_rng(1)) for size in (20, 200))
    assert few > 4 * many > 1e-6  # ten times the pictures, about a tenth of the floor
    assert floor_of(features, 20, np.random.default_rng(1)) == few


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "3f7001b1")
def test_floor_of_starter_fails():
    def floor_of(features, size, rng):
        return frechet_distance(features[:size], features[:size])

    with pytest.raises(Exception):
        features = np.random.default_rng(0).normal(size=(400, 6))
        few, many = (floor_of(features, size, np.random.default_rng(1)) for size in (20, 200))
        assert few > 4 * many > 1e-6  # ten times the pictures, about a tenth of the floor
        assert floor_of(features, 20, np.random.default_rng(1)) == few


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "e37a21a8")
def test_whitened():
    def whitened(decode, codes):
        root = torch.linalg.cholesky(codes.T.cov())
        return lambda u: decode(codes.mean(0) + u @ root.T)

    codes = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3).double() + 2
    drawn = whitened(lambda z: z, codes)(torch.randn(100_000, 3, dtype=torch.float64))
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), rtol=0.05, atol=0.05 * codes.var(0).max().item())
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.05)


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "e37a21a8")
def test_whitened_starter_fails():
    def whitened(decode, codes):
        return lambda u: decode(codes.mean(0) + u)

    with pytest.raises(Exception):
        codes = torch.randn(500, 3, dtype=torch.float64) @ torch.randn(3, 3).double() + 2
        drawn = whitened(lambda z: z, codes)(torch.randn(100_000, 3, dtype=torch.float64))
        torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), rtol=0.05, atol=0.05 * codes.var(0).max().item())
        torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.05)


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "222c0378")
def test_tempered():
    def tempered(model, count, temperature, generator):
        return model.decode(temperature * torch.randn(count, model.latent, generator=generator))

    model, draw = VAE(16, latent=5, width=4), lambda t: tempered(model, 200, t, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(draw(0.0), model.decode(torch.zeros(200, 5)))  # cold: always the same
        torch.testing.assert_close(
            draw(1.0), model.decode(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
        )
        assert draw(2.0).var(0).mean() > draw(0.5).var(0).mean() > 0


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "222c0378")
def test_tempered_starter_fails():
    def tempered(model, count, temperature, generator):
        return temperature * model.decode(torch.randn(count, model.latent, generator=generator))

    with pytest.raises(Exception):
        model, draw = VAE(16, latent=5, width=4), lambda t: tempered(model, 200, t, torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(draw(0.0), model.decode(torch.zeros(200, 5)))  # cold: always the same
            torch.testing.assert_close(
                draw(1.0), model.decode(torch.randn(200, 5, generator=torch.Generator().manual_seed(0)))
            )
            assert draw(2.0).var(0).mean() > draw(0.5).var(0).mean() > 0


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "4a0d9b14")
def test_kernel_draws():
    def kernel_draws(codes, count, width, generator):
        picked = codes[torch.randint(len(codes), (count,), generator=generator)]
        return picked + width * torch.randn(picked.shape, generator=generator)

    codes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    drawn = kernel_draws(codes, 20_000, 0.5, torch.Generator().manual_seed(0))
    near = drawn[drawn[:, 0] < 5]
    assert 0.45 < len(near) / len(drawn) < 0.55 and near.std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)


@pytest.mark.nb("nbs/1_foundations/07a_vae_board.ipynb", "4a0d9b14")
def test_kernel_draws_starter_fails():
    def kernel_draws(codes, count, width, generator):
        return codes[torch.randint(len(codes), (count,), generator=generator)]

    with pytest.raises(Exception):
        codes = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
        drawn = kernel_draws(codes, 20_000, 0.5, torch.Generator().manual_seed(0))
        near = drawn[drawn[:, 0] < 5]
        assert 0.45 < len(near) / len(drawn) < 0.55 and near.std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.05)
