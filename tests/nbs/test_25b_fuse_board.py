"""Generated from nbs/5_prompting/25b_fuse_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from collections import Counter
from pathlib import Path
from vlp_course.lab import result_path
from vlp_course.lab import save_json
from vlp_course.prompts.fuse_methods import CHOICES
from vlp_course.prompts.fuse_methods import contestant
from vlp_course.prompts.fuse_methods import draw
from vlp_course.verdicts import verdict
from vlp_course.prompts.fuse_board import RATE_SEED, answer, best_rate, looked_at, train


@pytest.fixture(scope="module")
def setup_af486296():
    def rights(results, row):
        """By seed: 1 for each right answer to the test questions of a row."""
        truth = draw("test", 240).answers.numpy()
        return {
            r["seed"]: (np.array(list(r["answers"][0]), int) == truth).astype(float) for r in results if r["row"] == row
        }

    def gap(results, a, b):
        """Verdict of row a against row b in points, and what its pairs are; None where no seed is common."""
        x, y = rights(results, a), rights(results, b)
        common = sorted(x.keys() & y.keys())
        if not common:
            return None, "no common seed"
        left, right = (100 * np.stack([z[s] for s in common]) for z in (x, y))
        by_seed = len(common) >= 5
        return verdict(
            *(z.mean(1 if by_seed else 0) for z in (left, right))
        ), f"{len(common)} seeds" if by_seed else f"questions, mean of {len(common)} seed{'s' * (len(common) > 1)}"

    def frequent():
        """Share right of the most frequent answer of each slot, mean over slots."""
        test = draw("test", 240)
        counts = [Counter(a for a, t in zip(test.answers.tolist(), test.slots) if t == slot) for slot in CHOICES]
        return float(np.mean([max(c.values()) / c.total() for c in counts]))

    def claim_21(results, margin=5):
        """The word of the rule, and the reasons."""
        gaps = {n: gap(results, f"frozen-{n}", f"promptfuse-{n}") for n in (128, 512)}
        sees, pairs = gap(results, "frozen-128", "frozenblack-128")
        if sees is None:  # else against the control of the prompts
            sees, pairs = gap(results, "frozen-128", "black-128")
        if sees is None or any(g is None for g, _ in gaps.values()):
            return "open here", "runs are missing"
        best, most = (
            max(
                np.mean(list(rights(results, f"{m}-{n}").values()))
                for m in ("frozen", "promptfuse")
                for n in (128, 512)
            ),
            frequent(),
        )
        if best <= most:
            return (
                "open here",
                f"neither has learned the task: the best mean is {100 * best:.1f} %, the most frequent answers get {100 * most:.1f} %",
            )
        close = [g.high < margin for g, _ in gaps.values()]
        why = "; ".join(
            [
                *(f"{n} examples, Frozen minus PromptFuse: {g} of {w}" for n, (g, w) in gaps.items()),
                f"Frozen minus black control: {sees} of {pairs}",
            ]
        )
        word = (
            "holds"
            if all(close) and sees.word == "better"
            else "does not hold here"
            if all(g.low > margin for g, _ in gaps.values())
            else "depends"
        )
        if all(close) and word == "depends":
            why += "; comparable, but Frozen is not above its control: neither needs the picture"
        return word, why

    return claim_21, frequent


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "d52adf5b")
def test_rates_are_chosen_by_validation():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with pytest.raises(
            ValueError, match="'promptfuse' is not tuned in .*: run python -m vlp_course.prompts.fuse_board --tune"
        ):
            best_rate("black", folder)
        for lr, right in ((1e-2, 0.4), (5e-2, 0.5)):
            r = {
                "row": f"promptfuse-128@{lr:g}",
                "seed": RATE_SEED,
                "budget": "quick",
                "config": {"method": "promptfuse", "lr": lr},
                "metrics": {"all": right},
            }
            save_json(result_path(folder, "prompts-fuse-rates", r), r)
        assert (
            best_rate("blindprompt", folder) == 5e-2
            and best_rate("full", folder) == 1e-4
            and best_rate("zero", folder) == 0
        )


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "3615d980")
def test_training_moves_what_it_should():
    import copy
    from transformers import LlamaConfig, LlamaForCausalLM
    from vlp_course.nn.encoders import ImageEncoder
    from vlp_course.nn.language import wrap
    from vlp_course.prompts import fuse_methods

    class Letters:
        """A tokenizer that reads letters; its pieces of answers are told apart by two of them."""

        bos_token_id = 35

        def __call__(self, texts, **_):
            if isinstance(texts, str):
                return {"input_ids": [(7 * ord(texts[1]) + 3 * ord(texts[-1]) + len(texts)) % 97]}
            ids = torch.zeros(len(texts), 12, dtype=torch.long)
            for row, text in zip(ids, texts):
                row[:] = torch.tensor([ord(c) % 97 for c in text[10:22]])
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    torch.manual_seed(0)
    lm = wrap(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=24,
                num_hidden_layers=1,
                num_attention_heads=3,
                num_key_value_heads=1,
                intermediate_size=16,
                tie_word_embeddings=True,
            )
        ),
        Letters(),
    )
    fake = np.broadcast_to(np.linspace(-1, 1, 12288, dtype=np.float16), (16002, 12288))
    cached, fuse_methods.features_of = fuse_methods.features_of, lambda part: fake
    try:
        model, items = (
            contestant("blindprompt", lm, ImageEncoder(8, 2), 0, torch.randn(30, 12288)),
            draw("train", 16, 0),
        )
        before = copy.deepcopy(model.state_dict())
        curve = train(model, items, 25, 0.05, 0)
        assert [n for n, v in model.state_dict().items() if not torch.equal(v, before[n])] == ["prompts"]
        assert np.mean(curve[-5:]) < np.mean(curve[:5]) and set(answer(model, "test", items).tolist()) <= set(range(8))
        for picture, prompt in looked_at(model, "test", items):
            assert 0 < picture < 1 and 0 < prompt < 1 and picture + prompt < 1
    finally:
        fuse_methods.features_of = cached


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "50442425")
def test_rule_of_claim_21(setup_af486296):
    claim_21, frequent = setup_af486296

    def fake(row, share, seed):
        truth = draw("test", 240).answers
        wrong = np.arange(240) >= share * 240
        return {
            "row": row,
            "seed": seed,
            "answers": ["".join(str(int(a) if not w else 9) for a, w in zip(truth, wrong))],
        }

    made = lambda frozen, fused, black: [
        fake(row, s + 0.004 * k, k)
        for row, s in (
            ("frozen-128", frozen),
            ("frozen-512", frozen),
            ("promptfuse-128", fused),
            ("promptfuse-512", fused),
            ("frozenblack-128", black),
        )
        for k in range(5)
    ]
    assert claim_21(made(0.6, 0.6, 0.3))[0] == "holds" and claim_21(made(0.6, 0.3, 0.3))[0] == "does not hold here"
    assert (
        claim_21(made(0.5, 0.5, 0.5))[0] == "depends"
        and "neither needs the picture" in claim_21(made(0.5, 0.5, 0.5))[1]
    )
    assert claim_21([])[0] == "open here" and 0.25 < frequent() < 0.5
    assert (
        claim_21(made(0.2, 0.2, 0.2))[0] == "open here"
        and "neither has learned the task" in claim_21(made(0.2, 0.2, 0.2))[1]
    )


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "f280af94")
def test_passes():
    def passes(steps, batch, count):
        return steps * batch / count

    assert passes(100, 8, 128) == 6.25 and passes(100, 8, 512) == 1.5625


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "f280af94")
def test_passes_starter_fails():
    def passes(steps, batch, count):
        return steps / count

    with pytest.raises(Exception):
        assert passes(100, 8, 128) == 6.25 and passes(100, 8, 512) == 1.5625


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "ef9a6f5f")
def test_agreement():
    def agreement(seen, black):
        return sum(a == b for a, b in zip(seen, black)) / len(seen)

    assert agreement("0123", "0103") == 0.75 and agreement("77", "77") == 1


@pytest.mark.nb("nbs/5_prompting/25b_fuse_board.ipynb", "ef9a6f5f")
def test_agreement_starter_fails():
    def agreement(seen, black):
        return float(seen == black)

    with pytest.raises(Exception):
        assert agreement("0123", "0103") == 0.75 and agreement("77", "77") == 1
