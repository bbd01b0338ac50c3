"""A tiny training command for the tests of kills and of several processes; prints the model's hash.

    python tests/toy_run.py OUT [OUT ...] [--steps 60] [--save-every 3] [--seed 0] [--negatives local gathered ...] ...
"""
import argparse, itertools, os, random, signal, warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, dropout, normalize

from vlp_course.train import Recipe, checkpoint_sha, fit

warnings.filterwarnings("ignore", ".*all_gather is deprecated", FutureWarning)


class Out(NamedTuple):
    losses: dict
    state: dict


@dataclass
class Batch:
    image: torch.Tensor
    text: torch.Tensor

    def to(self, device):
        return Batch(self.image.to(device), self.text.to(device))


class Toy:
    """Pairs in families of three: a vector and a noisy linear map of it."""

    def __init__(self, families=30, dtype=torch.float32):
        draw = torch.Generator().manual_seed(7)
        self.groups = np.arange(3 * families) // 3
        self.image = torch.randn(3 * families, 7, generator=draw, dtype=dtype)
        self.text = self.image @ torch.randn(7, 5, generator=draw, dtype=dtype)

    def batch(self, indices, tokenize=None):
        return Batch(self.image[indices], self.text[indices])


class Towers(nn.Module):
    """Two linear towers, a momentum buffer and a queue; `noise` draws from all four streams of random numbers."""

    def __init__(self, dtype=torch.float32, negatives="local", noise=True, die_at=None):
        super().__init__()
        self.image, self.text = nn.Linear(7, 4, dtype=dtype), nn.Linear(5, 4, dtype=dtype)
        self.norm, self.logit_scale = nn.LayerNorm(4, dtype=dtype), nn.Parameter(torch.tensor(2.0, dtype=dtype))
        self.register_buffer("momentum", torch.zeros(4, dtype=dtype))
        self.register_buffer("queue", torch.zeros(12, 4, dtype=dtype))
        self.negatives, self.noise, self.die_at = negatives, noise, die_at

    def forward(self, batch, *, step, generator):
        image, text = self.norm(self.image(batch.image)), self.text(batch.text)
        if self.noise:
            own = torch.randn(text.shape, generator=generator, device=text.device)
            text = dropout(text, 0.1) + 0.1 * own * random.random() + 0.01 * np.random.rand()
        state = {"text": text}
        if self.negatives == "gathered" and distributed.is_initialized():
            image, text = torch.cat(all_gather(image)), torch.cat(all_gather(text))
        logits = self.logit_scale.exp() * normalize(image, dim=-1) @ normalize(text, dim=-1).T
        same = torch.arange(len(logits))
        return Out({"itc": (cross_entropy(logits, same) + cross_entropy(logits.T, same)) / 2}, state)

    def after_step(self, state, step):
        assert not state["text"].requires_grad and not torch.is_grad_enabled()
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.momentum.lerp_(state["text"].mean(0), 0.1)
        self.queue.copy_(torch.cat([state["text"], self.queue])[:12])


def train(out, steps=60, save_every=3, seed=0, negatives="local", accumulation=1, double=False, die_at=None) -> Towers:
    """A toy trained into `out`; `double`: float64 and no noise; `die_at`: SIGKILL itself at this step."""
    dtype = torch.float64 if double else torch.float32
    torch.manual_seed(seed)
    model = Towers(dtype, negatives, noise=not double, die_at=die_at)
    recipe = Recipe(steps, batch_size=12, warmup=4, seed=seed, accumulation=accumulation, lr=0.01)
    fit(model, Toy(dtype=dtype), recipe, out=out, save_every=save_every, progress=False)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="+", help="one run for each folder")
    parser.add_argument("--negatives", nargs="+", choices=["local", "gathered"], default=["local"])
    for name in ("steps", "save-every", "seed", "accumulation", "die-at"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--double", action="store_true")
    options = vars(parser.parse_args())
    for out, negatives in zip(options.pop("out"), itertools.cycle(options.pop("negatives"))):
        print(checkpoint_sha(train(out, negatives=negatives, **options)), flush=True)


if __name__ == "__main__":
    main()
