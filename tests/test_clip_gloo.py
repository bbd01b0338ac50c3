"""CLIP in two processes takes the steps that one process takes: negatives and equal captions are gathered."""
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vlp_course.data.pairs import Pairs, SceneSet, Vocabulary
from vlp_course.models.clip import CLIP
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder, TextEncoder
from vlp_course.train import Recipe, fit, latest_checkpoint


class Scenes(SceneSet):
    """Forty-eight scenes with made-up features in double precision; every fourth caption is that of scene 0."""

    def __init__(self):
        rows = np.random.default_rng(0).standard_normal((48, WIDTH)).astype(np.float16)
        super().__init__("train", 48, families=0.5, features=rows)
        self.captions = [self.captions[0] if i % 4 == 0 else caption for i, caption in enumerate(self.captions)]

    def batch(self, indices, tokenize=None) -> Pairs:
        pairs = super().batch(indices, tokenize)
        pairs.features = pairs.features.double()
        return pairs


class Local(CLIP):
    """The mistake: every process sees the quiz of its own half alone."""

    def forward(self, batch, *, step, generator):
        cosine = self.similarity(self.encode_image(batch), self.encode_text(batch.text))
        same = torch.tensor([[a == b for b in batch.caption] for a in batch.caption])
        return type(super().forward(batch, step=step, generator=generator))({"itc": self.loss(cosine, same)}, {})


def train(kind: str, out: str) -> None:
    """Six steps of a CLIP of width 8 in double precision."""
    warnings.filterwarnings("ignore", ".*all_gather is deprecated", FutureWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scenes, model = Scenes(), {"clip": CLIP, "local": Local}[kind]
    words = Vocabulary(" ".join(scenes.captions).split())
    model = model(ImageEncoder(8, 2), TextEncoder(torch.randn(len(words), 8), 2, 1), words, 8).double()
    fit(model, scenes, Recipe(6, batch_size=24, lr=1e-2, warmup=1), out, progress=False)


def weights(kind: str, out: Path, processes: int) -> dict[str, torch.Tensor]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, __file__, kind, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(latest_checkpoint(out) / "model.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one = weights("clip", tmp_path / "one", 1)
    assert distance(one, weights("clip", tmp_path / "two", 2)) < 1e-9
    assert distance(one, weights("local", tmp_path / "local", 2)) > 1e-3


if __name__ == "__main__":
    train(*sys.argv[1:])
