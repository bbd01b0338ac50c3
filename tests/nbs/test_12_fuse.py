"""Generated from nbs/3_fusion/12_fuse.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
from vlp_course.nn.encoders import Tokens
from vlp_course.nn.fusion import CrossEncoder


@pytest.mark.nb("nbs/3_fusion/12_fuse.ipynb", "85a8b1c0")
def test_cross_encoder_sees_the_picture_and_no_padding():
    torch.manual_seed(0)
    fuse, words = CrossEncoder(12, 3), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    image = lambda x: Tokens(x.mean(1), x, torch.ones(x.shape[:2], dtype=torch.bool))
    a, b = image(torch.randn(2, 7, 12)), image(torch.randn(2, 7, 12))
    found = fuse(a, Tokens(words.mean(1), words, mask))
    assert found.pooled.shape == (2, 12) and not torch.allclose(
        found.pooled, fuse(b, Tokens(words.mean(1), words, mask)).pooled
    )
    other = words.clone()
    other[1, 3:] = 9.0
    torch.testing.assert_close(fuse(a, Tokens(words.mean(1), other, mask)).pooled, found.pooled)
