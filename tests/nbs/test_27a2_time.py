"""Generated from nbs/5_prompting/27a2_time.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.models.frames import Conv1D, Frames, Joint, MeanP, Shift, Transf, shifted


@pytest.fixture(scope="module")
def setup_759f0e15():
    def slow_shift(x, share=8):
        """Channels of (frames, dim) from the neighbouring frames, one number at a time."""
        frames, dim = x.shape
        out = torch.zeros(frames, dim)
        for t in range(frames):
            for c in range(dim):
                source = t - 1 if c < dim // share else t + 1 if c < 2 * (dim // share) else t
                if 0 <= source < frames:
                    out[t, c] = x[source, c]
        return out

    return slow_shift


@pytest.fixture(scope="module")
def setup_a9093729():
    def all_videos(tower, dim=16, frames=5):
        """One of each of the five, with new weights that are not small."""
        videos = {
            "meanp": Frames(tower, MeanP()),
            "conv1d": Frames(tower, Conv1D(dim)),
            "transf": Frames(tower, Transf(dim, 2, 1, frames)),
            "shift": Shift(tower),
            "joint": Joint(tower, frames),
        }
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in [p for v in videos.values() for n, p in v.named_parameters() if "tower" not in n]:
                p.copy_(0.5 * torch.randn(p.shape, generator=g))
        return videos

    return all_videos


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "9ec161fd")
def test_who_can_know_the_order(setup_a9093729):
    all_videos = setup_a9093729
    torch.manual_seed(0)
    tower, features = ImageEncoder(16, 2), torch.randn(2, 5, 12288, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, video in all_videos(tower).items():
            moved = (video(features) - video(features.flip(1))).abs().max()
            assert video(features).shape == (2, 16) and (moved < 1e-5 if name == "meanp" else moved > 1e-3), name
        mean = tower(features.flatten(0, 1)).pooled.unflatten(0, (2, 5)).mean(1)
        torch.testing.assert_close(Frames(tower, MeanP())(features), mean, rtol=1e-5, atol=1e-5)
        for video in (Shift(tower), Frames(tower, Conv1D(16)), Frames(tower, Transf(16, 2, 1)), Joint(tower)):
            assert not torch.allclose(video(features), mean, atol=1e-3)  # as they begin, none is the mean of pictures
    with pytest.raises(ValueError, match="clip of 5 frames: there are positions for 4"):
        Transf(16, 2, 1, 4)(torch.zeros(1, 5, 16))


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "d70ca2b8")
def test_channels_come_from_the_neighbours(setup_759f0e15):
    slow_shift = setup_759f0e15
    x = torch.randn(2, 4, 3, 16, generator=torch.Generator().manual_seed(2))
    found = shifted(x, 8)
    for t in range(4):
        torch.testing.assert_close(found[:, t, :, :2], x[:, t - 1, :, :2] if t else torch.zeros(2, 3, 2))
        torch.testing.assert_close(found[:, t, :, 2:4], x[:, t + 1, :, 2:4] if t < 3 else torch.zeros(2, 3, 2))
    assert torch.equal(found[..., 4:], x[..., 4:])
    slow = torch.stack([torch.stack([slow_shift(x[b, :, n]) for n in range(3)], 1) for b in range(2)])
    torch.testing.assert_close(found, slow)


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "b83ef0ff")
def test_a_view_is_no_transpose():
    x = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(4))
    head = Conv1D(6)
    k = torch.tensor([0, 1, 1, 1, 1, 2])  # as it begins: a quarter of six is one channel either way
    late, early = F.pad(x, (0, 0, 1, 0))[:, :-1], F.pad(x, (0, 0, 0, 1))[:, 1:]
    torch.testing.assert_close(head(x), (x + torch.where(k == 0, late, torch.where(k == 2, early, x))).mean(1))
    nn.init.normal_(head.conv.weight)
    slow = (x + sum(F.pad(x, (0, 0, 1, 1))[:, t : t + 4] * head.conv.weight[:, 0, t] for t in range(3))).mean(1)
    torch.testing.assert_close(head(x), slow)
    between = x[:, [0, 2, 1, 3]]  # it is linear: only who is first and who is last can matter
    torch.testing.assert_close(head(between), head(x))
    assert not torch.allclose(head(x[:, [3, 1, 2, 0]]), head(x), atol=1e-3)
    assert not torch.allclose(
        x.view(2, 6, 4), x.transpose(1, 2)
    )  # what the authors' code does, and what it means to do


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "4969ecae")
def test_weights():
    def weights(a, b, c, frames):
        return [a + b] + [a + b + c] * (frames - 2) + [b + c]

    x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(7))
    head = Conv1D(4)
    with torch.no_grad():
        head.conv.weight.copy_(torch.tensor([0.5, 2.0, -1.0]).expand(4, 1, 3))
    given = torch.tensor(weights(0.5, 2.0, -1.0, 5))
    torch.testing.assert_close(head(x)[0], ((1 + given)[:, None] * x[0]).mean(0))


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "4969ecae")
def test_weights_starter_fails():
    def weights(a, b, c, frames):
        return [a + b + c] * frames

    with pytest.raises(Exception):
        x = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(7))
        head = Conv1D(4)
        with torch.no_grad():
            head.conv.weight.copy_(torch.tensor([0.5, 2.0, -1.0]).expand(4, 1, 3))
        given = torch.tensor(weights(0.5, 2.0, -1.0, 5))
        torch.testing.assert_close(head(x)[0], ((1 + given)[:, None] * x[0]).mean(0))


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "6ccde3a5")
def test_rolled():
    def rolled(x, share=8):
        k = x.shape[-1] // share
        return torch.cat([x[..., :k].roll(1, 1), x[..., k : 2 * k].roll(-1, 1), x[..., 2 * k :]], -1)

    x = torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(8))
    found = rolled(x)
    assert (
        torch.equal(found[:, 0, :, :2], x[:, 4, :, :2])
        and torch.equal(found[:, 4, :, 2:4], x[:, 0, :, 2:4])
        and torch.equal(found[:, 1:4], shifted(x)[:, 1:4])
    )


@pytest.mark.nb("nbs/5_prompting/27a2_time.ipynb", "6ccde3a5")
def test_rolled_starter_fails():
    def rolled(x, share=8):
        return shifted(x, share)

    with pytest.raises(Exception):
        x = torch.randn(2, 5, 3, 16, generator=torch.Generator().manual_seed(8))
        found = rolled(x)
        assert (
            torch.equal(found[:, 0, :, :2], x[:, 4, :, :2])
            and torch.equal(found[:, 4, :, 2:4], x[:, 0, :, 2:4])
            and torch.equal(found[:, 1:4], shifted(x)[:, 1:4])
        )
