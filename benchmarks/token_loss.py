"""Time the token-wise contrastive loss, forward and backward, against the same loss written with einsum and max.

    python benchmarks/token_loss.py                     # prints the table, writes results/benchmarks/token_loss.json
    python benchmarks/token_loss.py --batch 64 --rounds 3 --threads 2 --device cuda

The contenders run in turn within each round; ratios are taken within a round, their median and quartiles over the
rounds are reported. Extra memory is the highest of one pass above what a fresh process (on a GPU: torch's allocator)
held before. Takes about half a minute on a quiet core.
"""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")     # before torch: spinning threads measure the neighbours
import argparse, json, platform, statistics, time
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from vlp_course.nn.late_interaction import token_similarities
from vlp_course.objectives import itc_loss

TARGET = Path(__file__).resolve().parents[1] / "results/benchmarks/token_loss.json"


def plain(image, text, image_mask, text_mask):
    """All cosines at once."""
    cosine = torch.einsum("ikd,jrd->ikjr", image, text)
    to_text = cosine.masked_fill(~text_mask, -torch.inf).max(3).values
    to_image = cosine.masked_fill(~image_mask[..., None, None], -torch.inf).max(1).values
    return ((to_text * image_mask[..., None]).sum(1) / image_mask.sum(1)[:, None],
            (to_image * text_mask).sum(2) / text_mask.sum(1))


def token_wise(*inputs):
    """Ours; on a GPU in larger blocks."""
    return token_similarities(*inputs, 1 << 27 if inputs[0].is_cuda else 1 << 20)


CONTENDERS = {"plain": plain, "token_similarities": token_wise}


def tokens(args, batch: int) -> list[torch.Tensor]:
    """Random unit tokens of pictures and captions, and masks without padding."""
    torch.manual_seed(0)
    sides = [torch.randn(batch, count, args.dim, device=args.device) for count in (args.patches, args.words)]
    masks = [torch.ones(x.shape[:2], dtype=torch.bool, device=args.device) for x in sides]
    return [F.normalize(x, dim=-1).requires_grad_() for x in sides] + masks


def seconds(name: str, inputs: list[torch.Tensor]) -> float:
    """Of a forward and backward pass: processor time; on a GPU, the clock's."""
    clock = time.perf_counter if inputs[0].is_cuda else time.process_time
    begin = clock()
    to_text, to_image = CONTENDERS[name](*inputs)
    itc_loss(14 * to_text, 14 * to_image.T).backward()
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    inputs[0].grad = inputs[1].grad = None
    return clock() - begin


def extra_mb(name: str, args) -> float:
    """The highest memory of a pass above what was held before, in MB; on a CPU, to be run in a process of its own."""
    seconds(name, tokens(args, 8))                                             # libraries take their own buffers first
    inputs = tokens(args, args.batch)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds(name, inputs)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    lines = lambda: Path("/proc/self/status").read_text().splitlines()
    held = lambda field: next(int(x.split()[1]) for x in lines() if x.startswith(field)) / 1e3
    Path("/proc/self/clear_refs").write_text("5")                              # Linux: the highest is counted from here
    before = held("VmRSS")
    seconds(name, inputs)
    return held("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in dict(batch=256, patches=64, words=16, dim=128, rounds=5, threads=1).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    apart = lambda *x: extra_mb(*x) if args.device == "cuda" else get_context("fork").Pool(1).apply(extra_mb, x)
    memory, inputs = {name: apart(name, args) for name in CONTENDERS}, tokens(args, args.batch)
    for name in CONTENDERS:
        seconds(name, inputs)                                                  # warm up
    rounds = [{name: seconds(name, inputs) for name in CONTENDERS} for _ in range(args.rounds)]
    ratios = sorted(r["plain"] / r["token_similarities"] for r in rounds)
    middle = lambda name: 1000 * statistics.median(r[name] for r in rounds)
    table = {name: {"ms": middle(name), "extra_mb": memory[name]} for name in CONTENDERS}
    print("| loss | ms | extra MB |\n|---|---|---|")
    for name, row in table.items():
        print(f"| {name} | {row['ms']:.1f} | {row['extra_mb']:.0f} |")
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    less = memory["plain"] / memory["token_similarities"]
    print(f"plain takes {quartiles[1]:.2f} times the time ({quartiles[0]:.2f} to {quartiles[2]:.2f}) "
          f"and {less:.0f} times the extra memory")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    result = {"setting": vars(args), "table": table, "speedup": quartiles, "memory": less, "torch": torch.__version__,
              "machine": platform.processor() or platform.machine()}
    TARGET.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
