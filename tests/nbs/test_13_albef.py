"""Generated from nbs/3_fusion/13_albef.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import itertools
import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as clip_build
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.fusion import CrossEncoder
from vlp_course.models.albef import ALBEF, Config, Trunk, build


@pytest.fixture(scope="module")
def setup_caae73b9():
    class Toy:
        """Random features and captions of three words; captions repeat."""

        def __init__(self, count=24):
            draw = torch.Generator().manual_seed(5)
            self.features, self.groups = torch.randn(count, WIDTH, generator=draw), np.arange(count)
            self.captions = [
                f"{a} on {b}" for a, b in itertools.product(("fox", "owl", "cat"), ("sand", "snow", "grass", "stone"))
            ] * 2

        def batch(self, indices, tokenize=None):
            captions = [self.captions[i] for i in indices]
            return Pairs(None, captions, tokenize(captions), torch.as_tensor(indices), self.features[indices])

    def toy(seed=0, **changes):
        """ALBEF of width 12 with 3 heads, 5 words covered in ten, a queue of 11."""
        torch.manual_seed(seed)
        vocabulary = Vocabulary("fox owl cat on sand snow grass stone lies".split())
        trunk = Trunk(
            ImageEncoder(12, 3),
            TextEncoder(torch.randn(len(vocabulary), 12), 3),
            vocabulary,
            CrossEncoder(12, 3),
            len(vocabulary),
            12,
        )
        model = ALBEF(trunk, Config(queue=11, ramp=4, **changes), 12)
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                nn.init.normal_(p, std=0.4)  # default weights are so small that they hide errors
        with torch.no_grad():
            for slow in model.slow.parameters():
                slow.add_(0.1 * torch.randn_like(slow))
        return model

    def draw(seed=0):
        return torch.Generator().manual_seed(seed)

    return toy


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "5b139c42")
def test_clip_weights_fit_the_fast_towers():
    model, clip = build(seed=1), clip_build(seed=2)
    left = model.fast.load_state_dict(clip.state_dict(), strict=False)
    assert not left.unexpected_keys and {k.split(".")[0] for k in left.missing_keys} == {"fusion", "head"}
    with pytest.raises(ValueError, match="unknown size 'whole': models.albef has 'small'"):
        build("whole")


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "ddfed714")
def test_age(setup_caae73b9):
    toy = setup_caae73b9

    def age(queue: int, batch: int) -> int:
        """After how many steps a vector has left the queue."""
        return -(-queue // batch)  # rounded up: the last batch may be cut

    model = toy()
    for steps in range(1, 4):  # a queue of 11, batches of 4: the first is gone after three more
        model.after_step({"key": torch.full((4,), steps)}, 0)
    assert (model.key_queue == 1).sum() == 3 and age(11, 4) == 3
    model.after_step({"key": torch.full((4,), 4)}, 0)
    assert not (model.key_queue == 1).any() and age(630, 63) == 10


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "ddfed714")
def test_age_starter_fails(setup_caae73b9):
    toy = setup_caae73b9

    def age(queue: int, batch: int) -> int:
        """After how many steps a vector has left the queue."""
        return queue

    with pytest.raises(Exception):
        model = toy()
        for steps in range(1, 4):  # a queue of 11, batches of 4: the first is gone after three more
            model.after_step({"key": torch.full((4,), steps)}, 0)
        assert (model.key_queue == 1).sum() == 3 and age(11, 4) == 3
        model.after_step({"key": torch.full((4,), 4)}, 0)
        assert not (model.key_queue == 1).any() and age(630, 63) == 10


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "9e34334b")
def test_bias_free():
    def bias_free(slow: Tensor, start: Tensor, momentum: float, steps: int) -> Tensor:
        """The average of the weights since the start, without the start."""
        return (slow - momentum**steps * start) / (1 - momentum**steps)

    slow = start = torch.randn(5)
    weights = torch.randn(7, 5)
    for w in weights:
        slow = 0.9 * slow + 0.1 * w
    share = 0.1 * 0.9 ** torch.arange(6, -1, -1.0)
    torch.testing.assert_close(bias_free(slow, start, 0.9, 7), (share[:, None] * weights).sum(0) / share.sum())


@pytest.mark.nb("nbs/3_fusion/13_albef.ipynb", "9e34334b")
def test_bias_free_starter_fails():
    def bias_free(slow: Tensor, start: Tensor, momentum: float, steps: int) -> Tensor:
        """The average of the weights since the start, without the start."""
        return slow

    with pytest.raises(Exception):
        slow = start = torch.randn(5)
        weights = torch.randn(7, 5)
        for w in weights:
            slow = 0.9 * slow + 0.1 * w
        share = 0.1 * 0.9 ** torch.arange(6, -1, -1.0)
        torch.testing.assert_close(bias_free(slow, start, 0.9, 7), (share[:, None] * weights).sum(0) / share.sum())
