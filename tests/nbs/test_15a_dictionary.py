"""Generated from nbs/4_pretraining/15a_dictionary.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import numpy as np
import pytest
import tempfile
import torch
from torch import nn
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.nn.encoders import Out
from vlp_course.recipe import Recipe
from vlp_course.train import _merge
from vlp_course.train import fit
from vlp_course.nn.dictionary import (
    VisualDictionary,
    counted,
    kmeans,
    nearest,
    perplexity,
    pick,
    smoothed,
    straight_through,
)


@pytest.fixture(scope="module")
def setup_42be18f2():
    def slow_step(cells, codes, size, total, decay, smoothing):
        """Indices of the cells, then codes, sizes and sums after one step; lists of numbers, no tensor."""
        distance = lambda v, d: sum((a - b) ** 2 for a, b in zip(v, d))
        index = [min(range(len(codes)), key=lambda j: distance(v, codes[j])) for v in cells]  # noqa: B023
        for j in range(len(codes)):
            mine = [v for v, i in zip(cells, index) if i == j]
            size[j] = decay * size[j] + (1 - decay) * len(mine)
            for k in range(len(total[j])):
                total[j][k] = decay * total[j][k] + (1 - decay) * sum(v[k] for v in mine)
        everyone = sum(size)
        smooth = [(n + smoothing) / (everyone + len(size) * smoothing) * everyone for n in size]
        return index, [[x / n for x in row] for row, n in zip(total, smooth)], size, total

    return slow_step


@pytest.fixture(scope="module")
def setup_a1fd1ecb():
    def filled(codes, size=None, **options):
        """A dictionary that has started with these codes and sizes, in float64."""
        book = VisualDictionary(len(codes), len(codes[0]), **options).double()
        book.embed.copy_(torch.as_tensor(codes)), book.started.fill_(True)
        book.cluster_size.copy_(torch.ones(len(codes)) if size is None else torch.as_tensor(size))
        book.embed_sum.copy_(book.embed * book.cluster_size[:, None])
        return book

    def moved(book, cells, step=0):
        """The same dictionary after a step with these cells."""
        book.update(cells, book(cells)[1], step)
        return book

    return filled, moved


@pytest.fixture(scope="module")
def setup_a7395348():
    def reference_start(codes, dim, decay=0.4):
        """As in the released code: normal codes, sums and sizes of zero, no restarts."""
        book = VisualDictionary(codes, dim, decay=decay, dead=0)
        book.embed.copy_(torch.randn(codes, dim, generator=torch.Generator().manual_seed(0)))
        book.started.fill_(True)
        return book

    return reference_start


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "4bb29939")
def test_look_up_and_straight_through_by_hand():
    codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    cells = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0], [1.9, 0.0], [2.1, 0.0]], requires_grad=True)
    index = nearest(cells.detach(), codes)
    assert index.tolist() == [0, 1, 2, 0, 1]
    chosen = straight_through(cells, codes[index])
    torch.testing.assert_close(chosen.detach(), codes[index])  # the value is the code's
    weight = torch.randn(5, 2)
    (gradient,) = torch.autograd.grad((chosen * weight).sum(), cells)
    torch.testing.assert_close(gradient, weight)  # the gradient is the identity's


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "9c7f2a31")
def test_sizes_by_hand():
    size, sums = counted(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([2, 0, 2]), 4)
    assert size.tolist() == [1, 0, 2, 0] and sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    size = torch.tensor([6.0, 0.0, 2.0])
    torch.testing.assert_close(smoothed(size, 1.0), torch.tensor([7.0, 1.0, 3.0]) * 8 / 11)
    for smoothing in (1e-5, 0.1, 7):
        assert smoothed(size, smoothing).sum().item() == pytest.approx(8) and smoothed(size, smoothing).min() > 0
    assert perplexity(torch.ones(7)) == pytest.approx(7) and perplexity(torch.tensor([0.0, 5.0, 0.0])) == pytest.approx(
        1
    )
    assert perplexity(torch.tensor([4.0, 4.0, 0.0])) == pytest.approx(2) and 1 < perplexity(size) < 2


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "123e3ee7")
def test_kmeans_finds_clusters():
    centres = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [9.0, 9.0, 9.0]])
    cells = centres[torch.arange(200) % 4] + 0.1 * torch.randn(200, 3)
    best = min(
        (kmeans(cells, 4, seed) for seed in range(10)),
        key=lambda codes: (cells - codes[nearest(cells, codes)]).square().sum(),
    )
    assert torch.cdist(best, centres).min(1).values.max() < 0.1 and len(nearest(cells, best).unique()) == 4
    assert torch.equal(kmeans(cells, 5, 3), kmeans(cells, 5, 3)) and not torch.equal(
        kmeans(cells, 5, 3), kmeans(cells, 5, 4)
    )


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "424b8d82")
def test_picks_repeat_only_when_they_must():
    cells = torch.arange(6.0)[:, None]
    assert pick(cells, 6, 5).flatten().sort().values.tolist() == [0, 1, 2, 3, 4, 5] and len(pick(cells, 0, 5)) == 0
    assert torch.equal(pick(cells, 14, 5)[:6], pick(cells, 14, 5)[6:12]) and not torch.equal(
        pick(cells, 6, 5), pick(cells, 6, 6)
    )


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "75e5677a")
def test_two_codes_known_sums(setup_a1fd1ecb):
    filled, moved = setup_a1fd1ecb
    book = filled([[0.0, 0.0], [10.0, 0.0]], [4, 2], decay=0.75, smoothing=0, dead=0)
    moved(book, torch.tensor([[1.0, 1.0], [3.0, 1.0], [8.0, 2.0]]).double())
    assert book.cluster_size.tolist() == [0.75 * 4 + 0.25 * 2, 0.75 * 2 + 0.25]  # 3.5 and 1.75
    torch.testing.assert_close(
        book.embed_sum, torch.tensor([[1.0, 0.5], [17.0, 0.5]]).double()
    )  # 0.25 (4, 2); 0.75 (20, 0) + 0.25 (8, 2)
    torch.testing.assert_close(book.embed, torch.tensor([[1 / 3.5, 0.5 / 3.5], [17 / 1.75, 0.5 / 1.75]]).double())
    assert book.perplexity() == pytest.approx(math.exp(-2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)))


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "91618d4f")
def test_equals_the_slow_step(setup_a1fd1ecb, setup_42be18f2):
    filled, _ = setup_a1fd1ecb
    slow_step = setup_42be18f2
    book = filled(torch.randn(7, 3), torch.rand(7) + 0.2, decay=0.9, smoothing=0.01, dead=0)
    codes, size, total = (x.tolist() for x in (book.embed, book.cluster_size, book.embed_sum))
    for step in range(4):
        cells = torch.randn(11, 3).double()
        quantised, index = book(cells)
        slow, codes, size, total = slow_step(cells.tolist(), codes, size, total, 0.9, 0.01)
        assert index.tolist() == slow
        torch.testing.assert_close(quantised, book.embed[index])
        book.update(cells, index, step)
        for fast, twin in ((book.embed, codes), (book.cluster_size, size), (book.embed_sum, total)):
            torch.testing.assert_close(fast, torch.tensor(twin).double())


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "993c1ffc")
def test_looking_up_changes_nothing():
    book, before = VisualDictionary(5, 3), None
    cells = torch.randn(2, 4, 3, requires_grad=True)
    quantised, index = book(cells)
    assert quantised is cells and index.shape == (2, 4) and not index.any()  # not started: cells pass
    book.update(cells.detach().flatten(0, 1), index.flatten(), 0)
    before = {k: v.clone() for k, v in book.state_dict().items()}
    quantised, index = book(cells)
    assert (
        quantised.shape == (2, 4, 3)
        and torch.allclose(quantised, book.embed[index])
        and not torch.allclose(quantised, cells)
    )
    weight = torch.randn(2, 4, 3)
    torch.testing.assert_close(torch.autograd.grad((quantised * weight).sum(), cells)[0], weight)
    assert all(v.equal(before[k]) for k, v in book.state_dict().items()) and not list(book.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book(cells)[1], index)  # looked up in 32 bits


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "4a04bc94")
def test_starts_from_cells_with_more_codes_than_cells():
    book, cells = VisualDictionary(9, 3), torch.randn(6, 3)
    book.update(cells, torch.zeros(6, dtype=torch.long), 4)
    assert book.started and torch.cdist(book.embed, cells).min(1).values.max() < 1e-3  # every code is a cell
    assert (book.cluster_size >= 1).all() and torch.allclose(book(cells)[0], cells, atol=1e-3)
    for options, message in (
        ({"decay": 1.0}, "decay 1 must be at least 0 and below 1"),
        ({"codes": 1}, "1 codes: a dictionary needs at least two"),
    ):
        with pytest.raises(ValueError, match=message):
            VisualDictionary(**options)


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "a1f989c3")
def test_dead_codes_restart_at_cells(setup_a1fd1ecb):
    filled, moved = setup_a1fd1ecb
    options, cells = (
        {"decay": 0.5, "smoothing": 0, "dead": 0.1},
        torch.tensor([[1.0, 1.0], [1.2, 1.0], [0.8, 1.0]]).double(),
    )
    book = filled([[1.0, 1.0], [50.0, 50.0], [-50.0, 9.0]], [3, 0.2, 3], **options)
    moved(book, cells, step=7)
    mean = (3 + 0.1 + 1.5) / 3  # sizes after the step: 3, 0.1, 1.5
    assert any(book.embed[1].equal(c) for c in cells) and book.cluster_size[1].item() == pytest.approx(2 * 0.1 * mean)
    torch.testing.assert_close(book.embed_sum[1], book.embed[1] * book.cluster_size[1])
    assert book.embed[2].tolist() == [-50, 9] and book.cluster_size[2] == 1.5  # not yet dead
    twin = moved(filled([[1.0, 1.0], [50.0, 50.0], [-50.0, 9.0]], [3, 0.2, 3], **options), cells, step=7)
    assert torch.equal(book.embed, twin.embed)  # the step alone decides
    steps = {
        next(
            i
            for i, c in enumerate(cells)
            if c.equal(
                moved(filled([[1.0, 1.0], [50.0, 50.0], [-50.0, 9.0]], [3, 0.2, 3], **options), cells, s).embed[1]
            )
        )
        for s in range(12)
    }
    assert len(steps) > 1  # and another step decides otherwise


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "8c9f1d57")
def test_two_processes_move_as_one(setup_a1fd1ecb):
    filled, moved = setup_a1fd1ecb

    class Two:
        """An accelerator of two processes, one of which has the rows `other`."""

        def __init__(self, other):
            self.other = iter(other)

        def gather(self, rows):
            return torch.cat([rows, next(self.other)])

    cells = torch.randn(12, 3).double()
    codes, one = torch.randn(4, 3).double(), None
    for processes in (1, 2):
        book = filled(codes, decay=0.6)
        index = book(cells)[1]
        state = {"cells": cells, "index": index}
        if processes == 2:
            state = _merge([{"cells": cells[:5], "index": index[:5]}], Two([cells[5:], index[5:]]))
        book.update(state["cells"], state["index"], 0)
        one = book if one is None else one
    torch.testing.assert_close(book.embed, one.embed, rtol=0, atol=0)
    half = moved(filled(codes, decay=0.6), cells[:5])
    assert not torch.allclose(half.embed, one.embed)  # what a process without sums would do


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "63fd3784")
def test_killed_and_resumed_gives_the_same_bits():
    class Kill(Exception):
        pass

    class Cells(nn.Module):
        """An encoder of one layer behind which a dictionary sits; its outputs shall be small."""

        def __init__(self, seed=0):
            super().__init__()
            torch.manual_seed(seed)
            self.layer, self.book, self.shift = (
                nn.Linear(5, 3),
                VisualDictionary(4, 3, decay=0.7, dead=0.5),
                0.5 * torch.randn(9, 3),
            )

        def forward(self, batch, *, step, generator):
            cells = self.layer(batch) + self.shift[step]  # it drifts, so that codes die
            quantised, index = self.book(cells)
            return Out({"size": quantised.square().mean()}, {"cells": cells.detach(), "index": index})

        def after_step(self, state, step):
            self.book.update(state["cells"], state["index"], step)

    class Rows:
        groups = np.arange(60)

        def __init__(self, life=99):
            self.rows, self.life = torch.randn(60, 5, generator=torch.Generator().manual_seed(2)), life

        def batch(self, indices, tokenize=None):
            self.life -= 1
            if self.life < 0:
                raise Kill
            return self.rows[indices]

    recipe = Recipe(9, batch_size=6, seed=3, warmup=2)
    whole = fit(Cells(), Rows(), recipe, progress=False)
    with tempfile.TemporaryDirectory() as out:
        with pytest.raises(Kill):
            fit(Cells(), Rows(5), recipe, out, save_every=2, progress=False)
        model = Cells(seed=8)  # other weights, an empty dictionary: all comes from the file
        model.shift = Cells().shift
        resumed = fit(model, Rows(), recipe, out, save_every=2, progress=False)
    assert resumed.losses == whole.losses and checkpoint_sha(resumed.model) == checkpoint_sha(whole.model)
    assert resumed.model.book.started


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "4bcd64f1")
def test_the_reference_start_makes_zero_vectors(setup_a7395348):
    reference_start = setup_a7395348
    cells = torch.randn(30, 5)
    book = reference_start(64, 5)
    index = book(cells)[1]
    used = torch.zeros(64, dtype=torch.bool).index_fill(0, index, True)
    book.update(cells, index, 0)
    assert (
        not used.all() and (book.embed[~used] == 0).all() and (book.embed[used] != 0).any(1).all()
    )  # the documented failure
    ours = VisualDictionary(64, 5, decay=0.4)
    for step in range(40):
        ours.update(cells, ours(cells)[1], step)
        assert (ours.embed.norm(dim=1) > 0.1).all()  # with a start from cells and restarts


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "c4832ad8")
def test_dead_codes_shrink_without_restarts(setup_a1fd1ecb):
    filled, moved = setup_a1fd1ecb
    cells = torch.zeros(9, 2).double()
    fresh = lambda dead: filled([[0.0, 0.0], [4.0, 3.0]], [9, 1], decay=0.4, dead=dead)
    book = fresh(0)
    norms = [moved(book, cells, step).embed[1].norm().item() for step in range(30)]
    assert norms[3] > 4.9 and norms[12] < 3.5 and norms[-1] < 1e-4  # the documented failure
    assert moved(fresh(0.5), cells + 1).embed[1].tolist() == [1, 1]  # a restart: it is a cell


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "3bf3ad52")
def test_half_life():
    def half_life(decay):
        return math.log(0.5) / math.log(decay)

    assert half_life(0.5) == 1 and half_life(0.99) == pytest.approx(69, abs=0.1) and half_life(0.4) < 1


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "3bf3ad52")
def test_half_life_starter_fails():
    def half_life(decay):
        return 1 / (1 - decay)

    with pytest.raises(Exception):
        assert half_life(0.5) == 1 and half_life(0.99) == pytest.approx(69, abs=0.1) and half_life(0.4) < 1


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "531de1af")
def test_commitment():
    def commitment(cells, codes, beta=0.25):
        return beta * (cells - codes.detach()).square().sum(-1).mean()

    cells, codes = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True),
        torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True),
    )
    value = commitment(cells, codes, 0.5)
    value.backward()
    assert (
        value.item() == 0.5 * (5 + 25) / 2 and codes.grad is None and cells.grad.tolist() == [[0.5, 1.0], [-1.5, -2.0]]
    )


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "531de1af")
def test_commitment_starter_fails():
    def commitment(cells, codes, beta=0.25):
        return beta * (cells.detach() - codes).square().sum(-1).mean()

    with pytest.raises(Exception):
        cells, codes = (
            torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True),
            torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True),
        )
        value = commitment(cells, codes, 0.5)
        value.backward()
        assert (
            value.item() == 0.5 * (5 + 25) / 2
            and codes.grad is None
            and cells.grad.tolist() == [[0.5, 1.0], [-1.5, -2.0]]
        )


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "7ca59b6a")
def test_nearest_by_cosine():
    def nearest_by_cosine(cells, codes):
        unit = torch.nn.functional.normalize
        return nearest(unit(cells, dim=-1), unit(codes, dim=-1))

    cells, codes = torch.randn(20, 4), torch.randn(6, 4) * torch.tensor([0.1, 1, 1, 1, 1, 10])[:, None]
    assert torch.equal(
        nearest_by_cosine(cells, codes), torch.cosine_similarity(cells[:, None], codes[None], dim=-1).argmax(1)
    )


@pytest.mark.nb("nbs/4_pretraining/15a_dictionary.ipynb", "7ca59b6a")
def test_nearest_by_cosine_starter_fails():
    def nearest_by_cosine(cells, codes):
        return nearest(cells, codes)

    with pytest.raises(Exception):
        cells, codes = torch.randn(20, 4), torch.randn(6, 4) * torch.tensor([0.1, 1, 1, 1, 1, 10])[:, None]
        assert torch.equal(
            nearest_by_cosine(cells, codes), torch.cosine_similarity(cells[:, None], codes[None], dim=-1).argmax(1)
        )
