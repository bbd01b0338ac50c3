"""Generated from nbs/5_prompting/21d_text_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from torch import nn
from vlp_course.data.snippets import DOMAINS
from vlp_course.data.snippets import Snippets
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.verdicts import verdict
from vlp_course.prompts.text_board import (
    RATE_SEED,
    ROWS,
    SEEDS,
    STEPS,
    TRIALS,
    best_rate,
    held_texts,
    main,
    measure,
    row_name,
)


@pytest.fixture(scope="module")
def setup_32bbc98a():
    NAMES = {
        "prompt": "prompt tuning",
        "prefix": "prefix tuning",
        "ptuning": "P-tuning v1",
        "deep": "P-tuning v2",
        "lora": "LoRA",
        "bitfit": "BitFit",
        "full": "full fine-tuning",
        "probe": "linear probe",
    }
    RANGES = {"4 and 16 labels": (4, 16), "64 and 256 labels": (64, 256), "1,024 and all labels": (1024, 0)}

    def runs_of(results, method, **config):
        """Results of a method on MiniLM, by labels and seed; sweeps have a beginning or length of their own."""
        wanted = {"causal": False, "init": "labels", "length": None} | config
        return {
            (r["config"]["labels"], r["seed"]): r
            for r in results
            if r["config"]["method"] == method and all(r["config"][k] == v for k, v in wanted.items())
        }

    def compared(a, b, sizes, value):
        """Paired verdict of two methods' runs at some sizes, in points, or None with fewer than 5 pairs."""
        keys = sorted(k for k in a.keys() & b.keys() if k[0] in sizes)
        return verdict([100 * value(a[k]) for k in keys], [100 * value(b[k]) for k in keys]) if len(keys) >= 5 else None

    film = lambda r: r["metrics"]["film"]
    shift = lambda r: r["metrics"]["film"] - np.mean([r["metrics"][d] for d in ("tweets", "products", "news")])
    prior = lambda r: np.mean([r["metrics"][f"{d}/as before"] for d in ("film", "tweets", "products", "news")])

    def claim_16(results, method):
        """Word and reasons for one method, by the rule above."""
        a, full = runs_of(results, method), runs_of(results, "full")
        much, few = compared(full, a, (1024, 0), film), compared(a, full, (4, 16), film)
        if much is None or few is None:
            return "open here", f"{len(a)} of 18 runs of it are recorded, {len(full)} of 18 of full fine-tuning"
        close, wins = much.mean <= 2 and much.low <= 2, few.word == "better"
        share = next(iter(a.values()))["kept"] / next(iter(full.values()))["kept"]
        word = "holds" if close and wins and share <= 1e-3 else "depends" if close or wins else "does not hold here"
        return (
            word,
            f"behind full fine-tuning by {much.mean:+.1f} points with many labels, before it by {few.mean:+.1f} with few ({few.word}), keeps {1000 * share:.2f} thousandths",
        )

    def claim_17(results, method):
        """Word and reasons for one method against the calibrated prompt."""
        a, hand = runs_of(results, method), runs_of(results, "calibrated")
        found = {
            name: compared(a, {k: r for k in a for r in hand.values()}, sizes, film) for name, sizes in RANGES.items()
        }
        if None in found.values():
            return "open here", f"{len(a)} of 18 runs are recorded"
        better = sum(v.word == "better" for v in found.values())
        return {0: "does not hold here", 3: "holds"}.get(better, "depends"), "; ".join(
            f"{name}: {v.mean:+.1f}, {v.word}" for name, v in found.items()
        )

    def prior_rule(results):
        """Prompting against fine-tuning: agreement with the start, and loss under shift."""

        def mean(methods, value):
            tables = [runs_of(results, m) for m in methods]
            return {k: np.mean([value(t[k]) for t in tables]) for k in set.intersection(*map(set, tables))}

        soft, tuned = ("prompt", "prefix", "ptuning"), ("lora", "full")
        same = lambda x: x
        agree = compared(mean(soft, prior), mean(tuned, prior), STEPS, same)
        loss = compared(mean(tuned, shift), mean(soft, shift), STEPS, same)
        if agree is None or loss is None:
            return "open here", f"{len(mean(soft, film))} of 18 places are recorded"
        word = {2: "holds", 0: "does not hold here"}.get((agree.word == "better") + (loss.word == "better"), "depends")
        return (
            word,
            f"agreement {agree.mean:+.1f} points ({agree.word}), loss under shift smaller by {loss.mean:+.1f} ({loss.word})",
        )

    return claim_16, claim_17, prior_rule


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "227ad4c2")
def test_shares_by_hand():
    class Longer(nn.Module):
        """Positive is what has more than one word; sure of it."""

        def forward(self, texts):
            return torch.tensor([[0.0, 2.0] if " " in t else [2.0, 0.0] for t in texts])

    tests = {
        "film": Snippets(["good film", "dull", "so good", "fine"], torch.tensor([1, 0, 0, 1])),
        "news": Snippets(["up a lot", "down"], torch.tensor([1, 0])),
    }
    metrics, given = measure(Longer(), tests, {"film": torch.tensor([1, 1, 1, 0]), "news": torch.tensor([0, 1])})
    assert (metrics["film"], metrics["film/as before"], metrics["news"], metrics["news/as before"]) == (
        0.5,
        0.75,
        1.0,
        0.0,
    ) and given == {"film": "1010", "news": "10"}
    assert metrics["news/loss"] == pytest.approx(np.log(1 + np.exp(-2))) and metrics["film/loss"] == pytest.approx(
        np.log(1 + np.exp(-2)) + 1
    )
    assert set(held_texts(True, "test")) == set(DOMAINS) and [
        len(s.texts) for s in held_texts(False, "dev").values()
    ] == [400]


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "35af467f")
def test_units_have_names_of_their_own():
    assert len(ROWS) == 4 + 8 * 6 + 2 * 2 + 6 and len(TRIALS) == 8 * 3 + 2 * 2 and not ROWS.keys() & TRIALS.keys()
    assert (
        row_name("lora", 16, True) == "smol-lora-16"
        and row_name("prompt", 64, length=3) == "prompt-len3-64"
        and row_name("full", 0) == "full-all"
    )
    assert row_name("hand", 0) == "hand" and max(STEPS.values()) <= 300 and RATE_SEED not in SEEDS


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "ae66c52c")
def test_rates_are_chosen_by_dev_texts():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pytest.raises(
            ValueError, match="'lora' is not tuned in .*: run python -m vlp_course.prompts.text_board --tune"
        ):
            best_rate("lora", folder)
        for lr, film, loss in ((1e-3, 0.7, 0.5), (3e-3, 0.8, 0.6), (1e-2, 0.8, 0.4)):
            r = {
                "row": f"lora-64@{lr:g}",
                "seed": RATE_SEED,
                "budget": "quick",
                "config": {"lr": lr},
                "metrics": {"film": film, "film/loss": loss},
            }
            save_json(result_path(folder, "prompts-text-rates", r), r)
        assert best_rate("lora", folder) == 1e-2  # as many right, less loss
        with pytest.raises(ValueError, match="'lora' is not tuned"):
            best_rate("lora", folder, causal=True)


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "c3283705")
def test_what_is_recorded_is_kept():
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            for seed in SEEDS[:1] if row in ("hand", "calibrated", "smol-hand", "smol-calibrated") else SEEDS:
                path = result_path(Path(folder), "prompts-text", {"row": row, "budget": "quick", "seed": seed})
                path.parent.mkdir(exist_ok=True), path.write_text("{}")
        main(["--results", folder])  # nothing to do: no model is loaded
        assert all(p.read_text() == "{}" for p in Path(folder, "prompts-text").iterdir())


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "10c0574c")
def test_rules_by_hand(setup_32bbc98a):
    claim_16, claim_17, prior_rule = setup_32bbc98a

    def made(method, at, as_before=0.8, far=0.7, kept=3840):
        return [
            {
                "seed": s,
                "kept": kept,
                "config": {"method": method, "labels": n, "causal": False, "init": "labels", "length": None},
                "metrics": {"film": at(n) + 0.001 * s}
                | dict.fromkeys(("tweets", "products", "news"), far)
                | {f"{d}/as before": as_before for d in ("film", "tweets", "products", "news")},
            }
            for n in STEPS
            for s in range(3)
        ]

    full = made("full", lambda n: 0.8 if n in (1024, 0) else 0.6, 0.6, 0.6, 22_600_000)
    hand = [made("calibrated", lambda n: 0.7)[0]]
    good, weak = made("prompt", lambda n: 0.79), made("prefix", lambda n: 0.6)
    assert claim_16(full + good, "prompt")[0] == "holds" and claim_16(full + weak, "prefix")[0] == "does not hold here"
    assert claim_16(full + made("deep", lambda n: 0.79, kept=30_000), "deep")[0] == "depends"  # too many numbers
    assert claim_16(full + good[:3], "prompt") == (
        "open here",
        "3 of 18 runs of it are recorded, 18 of 18 of full fine-tuning",
    )
    assert claim_17(hand + good, "prompt")[0] == "holds" and claim_17(hand + weak, "prefix")[0] == "does not hold here"
    assert (
        claim_17(hand + made("ptuning", lambda n: 0.6 if n < 64 and n else 0.8), "ptuning")[0] == "depends"
        and claim_17(hand, "prompt")[0] == "open here"
    )
    board = (
        full
        + made("lora", lambda n: 0.75, 0.6, 0.5)
        + good
        + made("prefix", lambda n: 0.75)
        + made("ptuning", lambda n: 0.75)
    )
    assert prior_rule(board)[0] == "holds" and prior_rule(full)[0] == "open here"


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "e8ab4252")
def test_paired_error():
    def paired_error(b, c, texts):
        return ((b + c) / texts - ((b - c) / texts) ** 2) ** 0.5 / texts**0.5

    moved = np.array([1] * 30 + [-1] * 10 + [0] * 360)
    assert paired_error(30, 10, 400) == pytest.approx(moved.std() / 20) and paired_error(0, 0, 50) == 0


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "e8ab4252")
def test_paired_error_starter_fails():
    def paired_error(b, c, texts):
        return (b + c) ** 0.5 / texts**0.5

    with pytest.raises(Exception):
        moved = np.array([1] * 30 + [-1] * 10 + [0] * 360)
        assert paired_error(30, 10, 400) == pytest.approx(moved.std() / 20) and paired_error(0, 0, 50) == 0


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "b70e2bd6")
def test_changes():
    def changes(before, after, truth):
        moved = [(b == t, a == t) for b, a, t in zip(before, after, truth)]
        return moved.count((False, True)), moved.count((True, False))

    assert changes("0011", "0101", "0101") == (2, 0) and changes("01110", "01001", "11100") == (1, 2)


@pytest.mark.nb("nbs/5_prompting/21d_text_board.ipynb", "b70e2bd6")
def test_changes_starter_fails():
    def changes(before, after, truth):
        return sum(a != b for a, b in zip(before, after)), 0

    with pytest.raises(Exception):
        assert changes("0011", "0101", "0101") == (2, 0) and changes("01110", "01001", "11100") == (1, 2)
