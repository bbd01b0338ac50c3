"""Generated from nbs/5_prompting/21c_text_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig
from transformers import BertModel
from transformers import LlamaConfig
from transformers import LlamaModel
from vlp_course.data.snippets import Snippets
from vlp_course.nn.language import LanguageModel
from vlp_course.verdicts import verdict
from vlp_course.prompts.text_board import (
    Classifier,
    FREE,
    METHODS,
    RATE_SEED,
    SEEDS,
    STEPS,
    Task,
    adapt,
    answers,
    row_name,
    train_classifier,
    units,
)


@pytest.fixture(scope="module")
def setup_3674f20f():
    class Pieces:
        """Whole words as tokens: enough of a tokenizer for the tests."""

        pad_token_id, cls_token_id, bos_token_id, unk_token_id = 0, 1, 0, None
        words = [
            "[PAD]",
            "[CLS]",
            "[SEP]",
            *"N/A [MASK] it was a great terrible movie good bad fine dull plot film . Overall, the It movie.".split(),
        ]

        def __call__(
            self, texts, add_special_tokens=True, return_tensors=None, padding=False, return_offsets_mapping=False
        ):
            rows = [texts] if isinstance(texts, str) else texts
            ids = [[self.words.index(w) for w in t.split()] for t in rows]
            ids = [[1, *r, 2] if add_special_tokens else r for r in ids]
            found = {"input_ids": ids[0] if isinstance(texts, str) else ids}
            if return_offsets_mapping:
                found["offset_mapping"] = [[(0, 0)] * len(r) for r in ids]
            if return_tensors:
                longest = max(map(len, ids))
                found = {
                    "input_ids": torch.tensor([r + [0] * (longest - len(r)) for r in ids]),
                    "attention_mask": torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in ids]),
                }
            return found

    def tiny_language(causal=False):
        torch.manual_seed(2)
        if causal:
            base = LlamaModel(
                LlamaConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=6,
                    num_key_value_heads=3,
                    intermediate_size=30,
                    vocab_size=6100,
                    max_position_embeddings=64,
                )
            )
        else:
            base = BertModel(
                BertConfig(
                    hidden_size=24,
                    num_hidden_layers=2,
                    num_attention_heads=3,
                    intermediate_size=30,
                    vocab_size=6100,
                    max_position_embeddings=64,
                ),
                add_pooling_layer=False,
            )
        return LanguageModel(base, Pieces(), causal).freeze(), Task(
            "{text}", ("It was a terrible movie.", "It was a great movie."), 20.0, 8
        ) if not causal else Task("{text} Overall, the movie was", ("terrible", "great"), 1.0, 4)

    return tiny_language


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


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "d95d0788")
def test_the_start_is_the_calibrated_prompt(setup_3674f20f):
    tiny_language = setup_3674f20f
    model = Classifier(*tiny_language())
    h = lambda text: model.states([text])[0]
    torch.testing.assert_close(
        model(["good film"])[0], torch.stack([20 * h(a) @ h("good film") for a in model.task.answers]), rtol=0, atol=0.3
    )  # bf16 has 8 bits
    plain = model(list(FREE)).mean(0)
    model.calibrate()
    torch.testing.assert_close(model(list(FREE)).mean(0), torch.zeros(2), rtol=0, atol=1e-4)
    assert abs(plain).max() > 0.1 and not model.train().training
    texts = ["good film", "dull plot it was a bad movie", "fine", "a great film it was"]
    torch.testing.assert_close(
        answers(model, texts, batch=3), torch.cat([model([t]) for t in texts]), rtol=0, atol=0.2
    )  # any order, any neighbours
    causal = Classifier(*tiny_language(True)).calibrate()
    torch.testing.assert_close(causal(texts), torch.cat([causal([t]) for t in texts]), rtol=0, atol=0.1)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "6a3bbfc1")
def test_what_each_method_trains_and_keeps(setup_3674f20f):
    tiny_language = setup_3674f20f
    D, L, head = 24, 2, 2 * 24 + 2
    biases = 24 + L * (4 * D + D + 30 + D + D)
    lstm = 8 * D + 2 * 4 * (D * 12 + 12 * 12 + 24) + 2 * 4 * (24 * 12 + 12 * 12 + 24) + 2 * (24 * 24 + 24)
    whole = sum(p.numel() for p in tiny_language()[0].base.parameters())
    expected = {
        "probe": (head, head),
        "prompt": (10 * D, 10 * D),
        "prefix": (4 * D + (D * 64 + 64) + (64 * 96 + 96), 4 * 96),
        "ptuning": (lstm, 8 * D),
        "deep": (4 * 96 + head,) * 2,
        "lora": (2 * 4 * 48 + head,) * 2,
        "bitfit": (biases + head,) * 2,
        "full": (whole + head,) * 2,
    }
    for method, (trained, kept) in expected.items():
        model = Classifier(*tiny_language()).calibrate()
        assert adapt(model, method, seed=1) == kept, method
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained, method
        assert model(["good film"]).shape == (1, 2)
    for init in ("sampled", "uniform", "normal"):
        assert adapt(Classifier(*tiny_language()), "prompt", 1, init, 5) == 5 * D
    with pytest.raises(ValueError, match="unknown method 'adapters': choose one of probe, prompt"):
        adapt(model, "adapters", 1)
    with pytest.raises(ValueError, match="unknown beginning 'zeros': choose one of labels, sampled, uniform, normal"):
        adapt(Classifier(*tiny_language()), "prompt", 1, "zeros")


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "dc1ab630")
def test_every_method_learns_four_texts(setup_3674f20f):
    tiny_language = setup_3674f20f
    data = Snippets(["good film", "bad plot", "fine movie good", "dull film bad"], torch.tensor([1, 0, 1, 0]))
    for method, lr in {
        "probe": 0.1,
        "prompt": 0.1,
        "prefix": 1e-2,
        "ptuning": 1e-2,
        "deep": 0.1,
        "lora": 3e-2,
        "bitfit": 1e-2,
        "full": 1e-3,
    }.items():
        model = Classifier(*tiny_language()).calibrate()
        adapt(model, method, seed=1)
        frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
        before = F.cross_entropy(model(data.texts), data.labels).item()
        train_classifier(model, data, 30, lr, 0)
        assert F.cross_entropy(model(data.texts), data.labels).item() < before, method
        assert all(p.equal(frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "26163f0b")
def test_units_have_names_of_their_own():
    names = [(row_name(**{k: v for k, v in u.items() if k != "seed"}), u["seed"]) for u in units()]
    assert len(names) == len(set(names)) == 4 + 8 * 6 * 3 + 2 * 2 * 3 + 6 * 3
    assert (
        row_name("lora", 16, True) == "smol-lora-16"
        and row_name("prompt", 64, length=3) == "prompt-len3-64"
        and row_name("full", 0) == "full-all"
    )
    assert row_name("hand", 0) == "hand" and max(STEPS.values()) <= 300 and RATE_SEED not in SEEDS
    few = units()[2:50]
    assert {u["labels"] for u in few} == {16, 0} and {u["method"] for u in few} == set(METHODS)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "10c0574c")
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


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "66e0aa58")
def test_deep_vectors():
    def deep_vectors(rank):
        return 2 * rank  # 2 L D P = 2 L r (D + D)

    for rank, L, D in ((2, 6, 384), (3, 2, 24)):
        assert deep_vectors(rank) * 2 * L * D == 2 * L * rank * (D + D)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "66e0aa58")
def test_deep_vectors_starter_fails():
    def deep_vectors(rank):
        return rank

    with pytest.raises(Exception):
        for rank, L, D in ((2, 6, 384), (3, 2, 24)):
            assert deep_vectors(rank) * 2 * L * D == 2 * L * rank * (D + D)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "e6ff2d84")
def test_changes():
    def changes(before, after, truth):
        moved = [(b == t, a == t) for b, a, t in zip(before, after, truth)]
        return moved.count((False, True)), moved.count((True, False))

    assert changes("0011", "0101", "0101") == (2, 0) and changes("01110", "01001", "11100") == (1, 2)


@pytest.mark.nb("nbs/5_prompting/21c_text_board.ipynb", "e6ff2d84")
def test_changes_starter_fails():
    def changes(before, after, truth):
        return sum(a != b for a, b in zip(before, after)), 0

    with pytest.raises(Exception):
        assert changes("0011", "0101", "0101") == (2, 0) and changes("01110", "01001", "11100") == (1, 2)
