"""gather_with_grad in two gloo processes: the same rows on both, and gradients that reach both."""
import os
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from vlp_course.nn.encoders import gather_with_grad
from vlp_course.objectives import itc_loss

RANKS, ROWS, DIM = 2, 3, 5


def rows(name: str) -> torch.Tensor:
    """All rows of a modality, the same in every process."""
    made = torch.Generator().manual_seed({"image": 1, "text": 2}[name])
    return F.normalize(torch.randn(RANKS * ROWS, DIM, dtype=torch.float64, generator=made), dim=1)


def weight(rank: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(10 + rank)
    return torch.randn(RANKS * ROWS, DIM, dtype=torch.float64, generator=made)


def gathered(rank: int) -> list[torch.Tensor]:
    """The gathered rows of one process, its gradient of a loss of its own, and those of the contrastive loss."""
    image, text = (rows(name)[rank * ROWS:(rank + 1) * ROWS].clone().requires_grad_() for name in ("image", "text"))
    whole = gather_with_grad(image)
    linear, = torch.autograd.grad((weight(rank) * whole).sum(), image)         # another loss in each process
    every_image, every_text = gather_with_grad(image), gather_with_grad(text)
    logits = 10 * every_image @ every_text.T
    itc = torch.autograd.grad(itc_loss(logits, logits.T), (image, text))
    return [whole.detach(), linear, *itc]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.save(gathered(rank), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)     # gloo's threads let go of tensors a little later, and abort if the interpreter is being taken down


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    mp.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="gloo by file")]


def test_both_see_all_rows_in_rank_order(results):
    for whole, *_ in results:
        assert whole.equal(rows("image"))


def test_gradient_is_the_sum_over_processes(results):
    expected = sum(weight(rank) for rank in range(RANKS)).split(ROWS)
    for rank, (_, linear, *_) in enumerate(results):
        torch.testing.assert_close(linear, expected[rank], rtol=0, atol=1e-12)


def test_contrastive_gradient_is_that_of_one_process(results):
    """Each process computes the whole loss, so the sum over processes is RANKS times the gradient; averaging
    it, as data-parallel training does with parameters, gives the gradient of one process with all rows."""
    image, text = (rows(name).requires_grad_() for name in ("image", "text"))
    logits = 10 * image @ text.T
    expected = torch.autograd.grad(itc_loss(logits, logits.T), (image, text))
    for which in (0, 1):
        found = torch.cat([result[2 + which] for result in results]) / RANKS
        torch.testing.assert_close(found, expected[which], rtol=0, atol=1e-12)


def test_one_process_keeps_its_tensor():
    x = torch.randn(2, 5, requires_grad=True)
    assert gather_with_grad(x) is x
