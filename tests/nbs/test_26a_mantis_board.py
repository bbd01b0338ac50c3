"""Generated from nbs/5_prompting/26a_mantis_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from torch import nn
from unittest import mock
from vlp_course.data.grammar import grammar_words
from vlp_course.data.pairs import Vocabulary
from vlp_course.lab import read_results
from vlp_course.models.mantis import Products
from vlp_course.models.mantis import build
from vlp_course.mantis_board import (
    KINDS,
    RATE_SEED,
    READING,
    ROWS,
    Row,
    describe_all,
    main,
    products,
    run_unit,
    trained,
)


@pytest.fixture(scope="module")
def setup_36eb3299():
    HERE = products.__module__
    return HERE


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "1cb76885")
def test_frozen_and_trained_rows(setup_36eb3299):
    HERE = setup_36eb3299

    def small(split, count, reads, style="noto", of=0):
        return Products(
            split,
            63,
            reads,
            style=style,
            families=0.0,
            features=np.random.default_rng(0).normal(size=(63, 12288)).astype(np.float16),
        )

    with (
        mock.patch(f"{HERE}.products", small),
        mock.patch(f"{HERE}.language_model", lambda seed, steps=0: (build(seed=seed), {"lm": [float(steps)]})),
    ):
        first = build(seed=3).state_dict()
        model, losses = trained(Row("f", "", frozen=True, steps=2), 3, 1e-2)
        moved = {n.split(".")[0] for n, p in model.state_dict().items() if not torch.equal(p, first[n])}
        assert moved == {"image_encoder", "kind"} and len(losses["lm"]) == 2 and losses["reading"] == [READING]
        model, losses = trained(Row("s", "", ("title",), pretrained=False, steps=2), 3, 1e-2)
        moved = {n.split(".")[0] for n, p in model.state_dict().items() if not torch.equal(p, first[n])}
        assert (
            {"embed", "stack", "bias", "kind"} <= moved and "image_encoder" not in moved and losses["reading"] == [0.0]
        )
        assert trained(ROWS["prior"], 3, 1e-2)[1]["lm"] == []


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "070caff8")
def test_strangers_pictures_are_strangers():
    class Echo(nn.Module):
        """Says the first feature of each picture it is shown."""

        def generate(self, batch):
            return [str(int(f[0])) for f in batch.features]

    scenes = Products("test", 7, features=np.arange(7, dtype=np.float16)[:, None].repeat(3, 1))
    assert describe_all(Echo(), scenes, size=3) == list("0123456") and describe_all(Echo(), scenes, 3, size=3) == list(
        "3456012"
    )


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "0e9a0fa5")
def test_units_and_command(setup_36eb3299):
    HERE = setup_36eb3299

    class Reciter(nn.Module):
        """Knows the test's captions by heart."""

        kind, vocabulary = nn.Parameter(torch.zeros(1)), Vocabulary(grammar_words())

        def generate(self, batch):
            return batch.caption

        def tokenize(self, texts):
            return self.vocabulary.tokenize(texts)

        def log_prob(self, batch):
            return -1.0 * (batch.text.ids[:, 1:] > 4)  # one nat a word

    featureless = lambda split, count, reads, style="noto", of=0: Products(
        split, count, tuple(r for r in reads if r != "picture"), style=style, families=0.0
    )
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch(f"{HERE}.products", featureless),
        mock.patch(f"{HERE}.trained", lambda row, seed, lr: (Reciter(), {"lm": [lr] * 11})),
    ):
        with pytest.raises(
            ValueError, match="row 'both' is not tuned in .*: run python -m vlp_course.mantis_board --tune"
        ):
            run_unit("scratch", 0, Path(name))
        main(["--tune", "--rows", "both@0.001", "both@0.003", "both@0.006", "--results", name])
        main(["--rows", "scratch", "prior", "--seeds", "2", "--results", name])
        tuned, (prior, unit) = (
            read_results(Path(name), "mantis-rates"),
            sorted(read_results(Path(name), "mantis"), key=lambda r: r["row"]),
        )
    assert {r["row"] for r in tuned} == {"both@0.001", "both@0.003", "both@0.006"} and all(
        r["seed"] == RATE_SEED for r in tuned
    )
    assert (
        unit["config"]["lr"] == 1e-3 and unit["curves"]["lm"] == [1e-3] * 2 and prior["config"]["lr"] == 0
    )  # equal marks: the first
    assert (
        unit["metrics"]["seen/exact"] == unit["metrics"]["nouns/noun"] == 1.0
        and unit["metrics"]["twemoji/bleu"] == pytest.approx(1)
        and len(unit["samples"]) == 24
    )
    assert {unit["metrics"][f"nats/{kind}"] for kind in (*KINDS, "other")} == {1.0}


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "30679298")
def test_either():
    def either(a, b):
        return 1 - (1 - a) * (1 - b)

    assert either(0.5, 0.5) == 0.75 and either(0, 0.3) == pytest.approx(0.3) and either(1, 0.2) == 1


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "30679298")
def test_either_starter_fails():
    def either(a, b):
        return a + b

    with pytest.raises(Exception):
        assert either(0.5, 0.5) == 0.75 and either(0, 0.3) == pytest.approx(0.3) and either(1, 0.2) == 1


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "9ec25307")
def test_believed():
    def believed(text, own, strange):
        words = set(text.split())
        return len(words & own) / len(own), len(words & strange) / len(strange)

    assert believed("a small cat left of a big tent on a grey ground", {"cat", "dog"}, {"tent"}) == (
        0.5,
        1.0,
    ) and believed("two suns", {"cat"}, {"dog", "owl"}) == (0, 0)


@pytest.mark.nb("nbs/5_prompting/26a_mantis_board.ipynb", "9ec25307")
def test_believed_starter_fails():
    def believed(text, own, strange):
        words = set(text.split())
        return len(words & own), len(words & strange)

    with pytest.raises(Exception):
        assert believed("a small cat left of a big tent on a grey ground", {"cat", "dog"}, {"tent"}) == (
            0.5,
            1.0,
        ) and believed("two suns", {"cat"}, {"dog", "owl"}) == (0, 0)
