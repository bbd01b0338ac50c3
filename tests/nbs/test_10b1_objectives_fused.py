"""Generated from nbs/3_fusion/10b1_objectives_fused.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from collections import Counter
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import PAD
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.objectives import itc_loss
from vlp_course.objectives_fused import (
    hard_negatives,
    itm_loss,
    itm_plateau,
    mask_words,
    mlm_loss,
    soft_itc_loss,
    soft_targets,
)


@pytest.fixture(scope="module")
def setup_a580fb12():
    def slow_itm(right, wrong):
        losses = [-pair.softmax(0)[1].log() for pair in right] + [-pair.softmax(0)[0].log() for pair in wrong]
        return sum(losses) / len(losses)

    def slow_mlm(logits, target, teacher=None, alpha=0.0):
        total = 0.0
        for t, word in enumerate(target.tolist()):
            p = logits[t].exp() / logits[t].exp().sum()
            y = torch.zeros_like(p)
            y[word] = 1
            if teacher is not None:
                y = (1 - alpha) * y + alpha * teacher[t].exp() / teacher[t].exp().sum()
            total -= sum(y[w] * p[w].log() for w in range(len(p)))
        return total / len(target)

    return slow_itm, slow_mlm


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "31f97eb7")
def test_itm_by_hand():
    yes, no = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, -1.0], [2.0, 0.0]])
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 3
    assert itm_loss(yes, no).item() == pytest.approx(expected)
    prior = torch.tensor([[math.log(2 / 3), math.log(1 / 3)]])  # answers one third to everything
    assert itm_loss(prior, prior.expand(2, 2)).item() == pytest.approx(itm_plateau()) == pytest.approx(0.6365, abs=5e-5)
    assert itm_plateau(1) == pytest.approx(math.log(2))


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "e9eefd19")
def test_itm_equals_loop(setup_a580fb12):
    slow_itm, _ = setup_a580fb12
    right, wrong = torch.randn(5, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    torch.testing.assert_close(itm_loss(right, wrong), slow_itm(right, wrong), rtol=0, atol=1e-12)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: itm_loss(x[:1], x[1:]), x)
    assert itm_loss(right.bfloat16(), wrong.bfloat16()).dtype == torch.float32  # 8 bits are too few for a loss


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "c6932a6f")
def test_negatives_follow_the_formula():
    logits = torch.tensor([[9.0, 2.0, 1.0, 0.0], [0.0, 9.0, 0.0, 3.0], [1.0, 1.0, 9.0, 1.0], [0.0, 1.0, 2.0, 9.0]])
    right = torch.eye(4, dtype=torch.bool)
    right[0, 2] = True  # picture 0 has a second right caption
    generator, draws = torch.Generator().manual_seed(0), 20_000
    found = [hard_negatives(logits, right, generator, floor=0.01) for _ in range(draws)]
    for name, table, hidden in (("text", logits, right), ("image", logits.T, right.T)):
        expected = (table.softmax(1) + 0.01).masked_fill(hidden, 0)
        expected = expected / expected.sum(1, keepdim=True)
        counts = F.one_hot(torch.stack([getattr(f, name) for f in found]), 4).float().mean(0)
        assert not counts[hidden].any()
        torch.testing.assert_close(counts, expected, rtol=0, atol=0.015)


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "3fa1c2ec")
def test_negatives_where_the_softmax_is_zero():
    sure = 1e4 * torch.eye(6)  # softmax: exactly one on the diagonal, zero off it
    same = torch.eye(6, dtype=torch.bool)
    found = hard_negatives(sure, same, torch.Generator().manual_seed(0))
    assert (found.text != torch.arange(6)).all() and (found.image != torch.arange(6)).all()
    assert (sure.softmax(1).masked_fill(same, 0).sum(1) == 0).all()  # without the floor there is nothing to draw
    with pytest.raises(RuntimeError):
        hard_negatives(sure, same, floor=0.0)
    a, b = (
        hard_negatives(
            torch.randn(6, 6, generator=torch.Generator().manual_seed(1)), same, torch.Generator().manual_seed(2)
        )
        for _ in range(2)
    )
    assert all(x.equal(y) for x, y in zip(a, b))  # the generator decides, nothing else


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "74fc91d3")
def test_negatives_even_when_similarity_says_nothing():
    generator, flat = torch.Generator().manual_seed(0), torch.zeros(5, 5)
    counts = Counter(int(hard_negatives(flat, torch.eye(5, dtype=torch.bool), generator).text[0]) for _ in range(4000))
    assert set(counts) == {1, 2, 3, 4} and max(counts.values()) - min(counts.values()) < 200


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "aaa66ae3")
def test_no_negative_is_one_clear_line():
    with pytest.raises(ValueError, match="item 0 of a batch of 3 has no wrong partner"):
        hard_negatives(torch.zeros(3, 3), torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="item 0 of a batch of 1"):
        hard_negatives(torch.zeros(1, 1), torch.eye(1, dtype=torch.bool))


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "5e4cafbd")
def test_mask_words_by_counting():
    vocabulary = Vocabulary(f"w{i}" for i in range(95))  # 100 with the marks
    text = vocabulary.tokenize([" ".join(f"w{(i * 7 + j) % 95}" for j in range(5 + i % 12)) for i in range(3000)])
    covered, chosen = mask_words(text, 100, 0.15, torch.Generator().manual_seed(0))
    real = text.ids > MASK
    assert not chosen[~real].any() and covered.mask.equal(text.mask) and covered.ids[~chosen].equal(text.ids[~chosen])
    assert chosen.sum().item() / real.sum().item() == pytest.approx(0.15, abs=0.01)
    shares = [
        (covered.ids[chosen] == MASK).float().mean().item(),
        (covered.ids[chosen] == text.ids[chosen]).float().mean().item(),
    ]
    assert shares == pytest.approx([0.8, 0.1 + 0.1 / 95], abs=0.02)  # a random word may be the same one
    other = covered.ids[chosen & (covered.ids != MASK) & (covered.ids != text.ids)]
    assert 5 <= other.min() <= 6 and 98 <= other.max() <= 99  # any word, never a mark


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "df7818e9")
def test_mask_words_always_one():
    vocabulary = Vocabulary(["cat", "dog"])
    text = vocabulary.tokenize(["cat dog"])
    for seed in range(30):
        assert 1 <= mask_words(text, len(vocabulary), 1e-6, torch.Generator().manual_seed(seed))[1].sum() <= 2
    assert mask_words(text, len(vocabulary), 1)[1].equal(text.ids > MASK)
    with pytest.raises(ValueError, match="share 0 must lie above 0"):
        mask_words(text, len(vocabulary), 0)
    with pytest.raises(ValueError, match="marks and padding only"):
        mask_words(Tokenized(torch.tensor([[CLS, EOS, PAD]]), torch.tensor([[True, True, False]])), len(vocabulary))


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "ea8d3fb8")
def test_mlm_equals_loops(setup_a580fb12):
    _, slow_mlm = setup_a580fb12
    logits, teacher, target = (
        torch.randn(6, 11, dtype=torch.float64),
        torch.randn(6, 11, dtype=torch.float64),
        torch.randint(11, (6,)),
    )
    torch.testing.assert_close(mlm_loss(logits, target), slow_mlm(logits, target), rtol=0, atol=1e-12)
    for alpha in (0.0, 0.4, 1.0):
        torch.testing.assert_close(
            mlm_loss(logits, target, teacher, alpha), slow_mlm(logits, target, teacher, alpha), rtol=0, atol=1e-12
        )


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "46964826")
def test_mlm_axis_and_minimum():
    logits, target = torch.randn(6, 11, dtype=torch.float64), torch.randint(11, (6,))
    torch.testing.assert_close(
        mlm_loss(logits + torch.randn(6, 1), target, logits + 3, 0.7), mlm_loss(logits, target, logits, 0.7)
    )
    assert not torch.allclose(
        mlm_loss(logits + torch.randn(1, 11), target, logits, 0.7), mlm_loss(logits, target, logits, 0.7)
    )
    student, teacher = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    mlm_loss(student, target, teacher, 1.0).backward()
    assert student.grad.abs().max() < 1e-12 and teacher.grad is None  # at the minimum; the teacher learns nothing here
    with pytest.raises(ValueError, match="alpha 1.2 must lie between 0 and 1"):
        mlm_loss(logits, target, logits, 1.2)


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "bafa7f67")
def test_soft_itc_is_itc_where_targets_are_hard():
    logits, same = torch.randn(6, 6, dtype=torch.float64), torch.eye(6, dtype=torch.bool)
    targets = soft_targets(same).double()
    torch.testing.assert_close(soft_itc_loss(logits, logits.T, targets, targets), itc_loss(logits, logits.T))
    expected = -0.5 * sum(
        (torch.tensor([0.5, 0.5, 0.0]) * row.log_softmax(0)).sum()
        for row in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 4.0, 0.0]))
    )
    shared = soft_targets(torch.tensor([[True, True, False]]))
    torch.testing.assert_close(
        soft_itc_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 4.0, 0.0]]), shared, shared), expected
    )


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "e901bc07")
def test_soft_targets_mix():
    right, teacher = torch.rand(5, 9) < 0.3, torch.randn(5, 9, requires_grad=True)
    right[:, 0] = True
    found = soft_targets(right, teacher, 0.4)
    assert not found.requires_grad
    torch.testing.assert_close(found.sum(1), torch.ones(5))
    torch.testing.assert_close(found, 0.6 * right / right.sum(1, keepdim=True) + 0.4 * teacher.detach().softmax(1))
    assert soft_targets(right, teacher, 0.0).equal(soft_targets(right))
    with pytest.raises(ValueError, match="row 2 of 3 has no right candidate"):
        soft_targets(torch.tensor([[True, False], [False, True], [False, False]]))


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "e61d3179")
def test_false_negative_gradient():
    logits = torch.tensor([[5.0, 5.0, 0.0]], dtype=torch.float64, requires_grad=True)  # both right captions found
    for both, pull in ((False, True), (True, False)):
        target = soft_targets(torch.tensor([[True, both, False]])).double()
        (gradient,) = torch.autograd.grad(soft_itc_loss(logits, logits, target, target), logits)
        assert (gradient[0, 1] > 0.4) == pull and (
            gradient[0, 0] < -0.4
        ) == pull  # pushes the second away, or leaves both


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "d1b2da64")
def test_plateau_accuracy():
    def accuracy_of_plateau() -> float:
        return 2 / 3  # always "no"

    prior = torch.tensor([math.log(2 / 3), math.log(1 / 3)]).expand(3000, 2)
    truth = torch.arange(3000) < 1000
    assert accuracy_of_plateau() == pytest.approx((prior.argmax(1).bool() == truth).float().mean().item())


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "d1b2da64")
def test_plateau_accuracy_starter_fails():
    def accuracy_of_plateau() -> float:
        return 0.5

    with pytest.raises(Exception):
        prior = torch.tensor([math.log(2 / 3), math.log(1 / 3)]).expand(3000, 2)
        truth = torch.arange(3000) < 1000
        assert accuracy_of_plateau() == pytest.approx((prior.argmax(1).bool() == truth).float().mean().item())


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "b0ff84f0")
def test_slots():
    def mask_slots(text, slots, generator=None):
        chosen = torch.isin(text.ids, slots) & (torch.rand(text.ids.shape, generator=generator) < 0.5)
        return Tokenized(text.ids.masked_fill(chosen, MASK), text.mask), chosen

    vocabulary = Vocabulary(["red", "blue", "cat", "left", "of"])
    text = vocabulary.tokenize(["red cat left of blue cat"] * 400)
    slots = torch.tensor([vocabulary.index["red"], vocabulary.index["blue"]])
    covered, chosen = mask_slots(text, slots, generator=torch.Generator().manual_seed(0))
    assert torch.isin(text.ids[chosen], slots).all() and (covered.ids[chosen] == MASK).all()
    assert chosen.sum().item() / 800 == pytest.approx(0.5, abs=0.06)


@pytest.mark.nb("nbs/3_fusion/10b1_objectives_fused.ipynb", "b0ff84f0")
def test_slots_starter_fails():
    def mask_slots(text, slots, generator=None):
        return mask_words(text, 100, 0.5, generator)

    with pytest.raises(Exception):
        vocabulary = Vocabulary(["red", "blue", "cat", "left", "of"])
        text = vocabulary.tokenize(["red cat left of blue cat"] * 400)
        slots = torch.tensor([vocabulary.index["red"], vocabulary.index["blue"]])
        covered, chosen = mask_slots(text, slots, generator=torch.Generator().manual_seed(0))
        assert torch.isin(text.ids[chosen], slots).all() and (covered.ids[chosen] == MASK).all()
        assert chosen.sum().item() / 800 == pytest.approx(0.5, abs=0.06)
