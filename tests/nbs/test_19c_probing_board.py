"""Generated from nbs/4_pretraining/19c_probing_board.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import json
import numpy as np
import pytest
import torch
from pathlib import Path
from torch import nn
from vlp_course.downstream import STEPS as DRILL
from vlp_course.evaluate import retrieval
from vlp_course.probe_tasks import REPORT
from vlp_course.probe_tasks import probe_task
from vlp_course.rows import row_of
from vlp_course.probing_board import (
    LINES,
    RATE,
    TRANSFER,
    examine,
    first_hits,
    interval,
    line_of,
    main,
    resampled,
    run_unit,
    staged,
    task_of,
    transfer_unit,
    transferred,
    word_of,
)


@pytest.fixture(scope="module")
def setup_870fce9e():
    import tempfile
    from unittest import mock

    HERE = line_of.__module__
    return HERE, mock, tempfile


@pytest.fixture(scope="module")
def setup_a8cad7a2(setup_870fce9e):
    HERE, mock, _ = setup_870fce9e
    from vlp_course.data.pairs import SceneSet
    from vlp_course.nn.backbone import scene_features

    def few(count=324):
        """The board's tasks and scenes, cut to the first scenes."""
        scenes = SceneSet("test", count, features=scene_features(SceneSet("test", 6012))[:count])
        return mock.patch.multiple(HERE, task_of=lambda name: probe_task(name, count), test_set=lambda name: scenes)

    return SceneSet, few


@pytest.fixture(scope="module")
def setup_0b5785d6():
    def made_run(share, seed, names=("size", "binding")):
        """A run whose hits are coins: `share` with matched pictures, a half with others."""
        rng, hits = np.random.default_rng(seed), {}
        for name in names:
            count = int((task_of(name).parts == REPORT).sum())
            for kind, p in (("matched", share), ("mismatched", 0.5)):
                hits[f"{name}/{kind}"] = "".join("01"[int(x < p)] for x in rng.random(count))
        return {"hits": hits}

    return made_run


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "0d2f294a")
def test_lines_by_name():
    assert (
        line_of("clip") == ("clip", "")
        and line_of("e2e-vlp-nlvr") == ("e2e-vlp", "nlvr")
        and line_of("clip-untrained") == ("clip", "untrained")
    )
    assert line_of("clip-random-batches") == ("clip-random-batches", "") and len(set(LINES)) == len(LINES)
    assert all(row_of(line_of(line)[0]) for line in LINES if line not in ("trunk", "words"))


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "ebc955e8")
def test_models_of_a_line(setup_870fce9e):
    HERE, mock, tempfile = setup_870fce9e
    from vlp_course.models.clip import build as build_clip

    with (
        tempfile.TemporaryDirectory() as runs,
        mock.patch(f"{HERE}.run_row") as train,
        mock.patch(f"{HERE}.load_row") as load,
        mock.patch(f"{HERE}.finetune") as tune,
    ):

        def made(name, budget, seed, out, score):
            folder = Path(out) / f"step-{row_of(name).steps(budget):08d}"
            folder.mkdir(parents=True)
            (folder / "state.json").write_text('{"run": {"steps": 5, "cpu_s": 7.0, "other": 1}}')

        train.side_effect, load.side_effect = made, lambda name, folder: build_clip()
        tune.side_effect = lambda model, task, steps, lr, seed: mock.Mock(
            model=mock.Mock(model=model.train()), steps=steps, cpu_s=3.0
        )
        model, cost = staged("clip", 1, "full", Path(runs))
        assert (
            cost == {"steps": 5, "cpu_s": 7.0}
            and not model.training
            and load.call_args.args == ("clip", Path(runs, "clip-full-s1"))
        )
        model, cost = staged("clip-nlvr", 1, "full", Path(runs))
        assert (
            train.call_count == 1
            and cost["tuning_cpu_s"] == 3.0
            and not model.training
            and tune.call_args.args[1:] == ("nlvr", DRILL["nlvr"], RATE, 1)
        )
        staged("clip", 1, "quick", Path(runs))
        assert train.call_count == 2 and load.call_args.args == ("clip", Path(runs, "clip-s1"))
        assert staged("clip-untrained", 2, "full", Path(runs))[1]["steps"] == 0 and train.call_count == 2


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "f932e3af")
def test_shares_and_hits():
    task = probe_task("position", 324)
    slots, reported = np.array(task.slots), task.parts == REPORT
    turned = np.where(reported & (slots == "place"), 1 - task.labels, task.labels)  # wrong on purpose
    x = torch.nn.functional.one_hot(torch.as_tensor(turned), 5).float()
    found, hits = examine(task, "matched", x, range(2))
    assert found["position.place/linear/matched"] == [0, 0] and found["position.relation/linear/matched"] == [1, 1]
    assert (
        min(found["position.relation/mlp/matched"]) > 0.9
        and [c == "1" for c in hits] == (slots[reported] != "place").tolist()
    )
    assert found["position/linear/matched"] == [np.mean(slots[reported] != "place")] * 2


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "4d98097d")
def test_a_unit(setup_a8cad7a2):
    _, few = setup_a8cad7a2
    with few():
        result = run_unit("clip-untrained", 3, "full", Path("nowhere"), range(1), ("shade", "binding"))
        rest = {
            line: set(run_unit(line, 0, "full", Path("nowhere"), range(1), ("shade", "binding"))["hits"])
            for line in ("trunk", "words")
        }
    assert (
        rest == {"trunk": {"shade/image", "binding/image"}, "words": {"binding/text"}} and not Path("nowhere").exists()
    )
    assert (
        set(result["hits"]) == {"shade/image", "binding/matched", "binding/mismatched"}
        and result["row"] == "clip-untrained"
    )
    for key, bits in result["hits"].items():
        name, shown = key.split("/")
        assert result["metrics"][f"{name}/linear/{shown}"] == pytest.approx(bits.count("1") / len(bits))
        assert len(bits) == (probe_task(name, 324).parts == REPORT).sum()


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "7dc54215")
def test_first_hits_are_recall_at_one():
    draw = torch.Generator().manual_seed(4)
    similarity = (4 * torch.rand(9, 9, generator=draw)).round()  # with ties
    captions = list("abcdabcee")
    hits, want = first_hits(similarity, captions), retrieval(similarity, captions)
    assert {way: h.count("1") / 9 for way, h in hits.items()} == pytest.approx(
        {way: want[f"{way}_r1"] for way in ("t2i", "i2t")}
    )
    assert first_hits(torch.eye(9), list("abcdefghi")) == {"t2i": "1" * 9, "i2t": "1" * 9} and "1" not in "".join(
        first_hits(torch.zeros(9, 9), list("abcdefghi")).values()
    )
    assert first_hits(torch.tensor([[0.0, 1.0], [0.5, 0.8]]), ["a", "b"]) == {
        "t2i": "00",
        "i2t": "01",
    }  # not the same thing


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "df40c18a")
def test_a_transfer_unit(setup_870fce9e, setup_a8cad7a2):
    HERE, mock, _ = setup_870fce9e
    SceneSet, _ = setup_a8cad7a2

    class Knower(nn.Module):
        """Knows every picture's caption but the last."""

        encode_image = lambda self, batch: batch.caption
        similarity = lambda self, images, texts: torch.tensor(
            [[float(i == t and i != texts[-1]) for t in texts] for i in images]
        )

    scenes = SceneSet("test", 12)
    names = dict(
        trained=lambda *a: (Knower(), {"steps": 5}),
        test_set=lambda name: scenes,
        GALLERY=9,
        encode_images=lambda model, scenes, indices: [scenes.captions[i] for i in indices],
        encode_texts=lambda model, texts: texts,
    )
    with mock.patch.multiple(HERE, **names):
        unit = transfer_unit("lm", 2, "full", Path("there"))
    assert (
        unit["row"] == "lm"
        and unit["steps"] == 5
        and set(unit["hits"]) == {f"{name}/{way}" for name in TRANSFER for way in ("t2i", "i2t")}
    )
    assert all(r == pytest.approx(8 / 9) for r in unit["metrics"].values()) and set(unit["metrics"]) == {
        "twemoji/r1",
        "openmoji/r1",
        "nouns/r1",
    }
    assert json.loads(json.dumps(unit["metrics"])) == unit["metrics"]


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "9bc18a8c")
def test_records_once(setup_870fce9e):
    HERE, mock, tempfile = setup_870fce9e
    with tempfile.TemporaryDirectory() as folder, mock.patch(f"{HERE}.run_unit") as unit:
        unit.side_effect = lambda line, seed, budget, runs: {"row": line, "seed": seed, "budget": budget, "metrics": {}}
        main(["--rows", "clip", "lm-vqa", "--seeds", "2", "--results", folder, "--runs", "there"])
        main(["--rows", "clip", "--seeds", "2", "3", "--results", folder])
        assert [call.args for call in unit.call_args_list] == [
            ("clip", 2, "full", Path("there")),
            ("lm-vqa", 2, "full", Path("there")),
            ("clip", 3, "full", Path("runs")),
        ]
        assert sorted(p.name for p in Path(folder, "probes").iterdir()) == [
            "clip-full-s2.json",
            "clip-full-s3.json",
            "lm-vqa-full-s2.json",
        ]
        with mock.patch(f"{HERE}.transfer_unit", unit):
            main(["--transfer", "--rows", "lm", "--seeds", "1", "--results", folder])
        assert [p.name for p in Path(folder, "transfer").iterdir()] == ["lm-full-s1.json"]


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "7f96fcfe")
def test_gaps_by_a_slow_twin(setup_0b5785d6):
    made_run = setup_0b5785d6
    runs = [made_run(0.8, 0), made_run(0.7, 1)]
    points = resampled(runs, ("size", "binding"), draws=300)
    assert points.shape == (301, 2)
    share = lambda run, key: run["hits"][key].count("1") / len(run["hits"][key])
    for column, name in enumerate(("size", "binding")):
        want = np.mean([share(r, f"{name}/matched") - share(r, f"{name}/mismatched") for r in runs])
        assert points[0, column] == pytest.approx(100 * want)
        mean, low, high = interval(points[:, column])
        assert low < mean < high and abs(mean - 25) < 5 and word_of(points[:, column]) == "above"
    assert word_of(resampled([made_run(0.5, 2)], ("size",), draws=300)[:, 0]) == "open"
    assert resampled(runs, ("size",), {"matched": 1}, 50) - resampled(
        runs, ("size",), {"mismatched": 1}, 50
    ) == pytest.approx(resampled(runs, ("size",), draws=50))


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "2474711c")
def test_transfer_by_hand():
    rng = np.random.default_rng(3)
    runs = [
        {
            "hits": {
                f"{name}/{way}": "".join("01"[int(x < p)] for x in rng.random(501))
                for name, p in zip(TRANSFER, (0.9, 0.8, 0.3))
                for way in ("t2i", "i2t")
            }
        }
        for _ in range(2)
    ]
    points = transferred(runs, draws=400)
    assert points.shape == (401, 3)
    for column, name in enumerate(TRANSFER):
        assert points[0, column] == pytest.approx(
            100
            * np.mean([h.count("1") / 501 for run in runs for key, h in run["hits"].items() if key.startswith(name)])
        )
        mean, low, high = interval(points[:, column])
        assert low < mean < high < low + 12
    assert (transferred(runs, 50) == transferred(runs, 50)).all()  # the same draws each time: two rows can be compared


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "3038c1d5")
def test_families_make_intervals_wider():
    """If siblings are right or wrong together, there are a third as many independent draws."""
    task = task_of("order")
    family = task.scenes[task.parts == REPORT] // 3
    rng = np.random.default_rng(0)
    alone, together = rng.random(len(family)) < 0.5, (rng.random(family.max() + 1) < 0.5)[family]
    width = []
    for bits in (alone, together):
        _, low, high = interval(
            resampled([{"hits": {"order/text": "".join("01"[int(b)] for b in bits)}}], ("order",), {"text": 1})[:, 0]
        )
        width.append(high - low)
    assert 1.4 < width[1] / width[0] < 2.1 and width[0] == pytest.approx(
        2 * 196 * (0.25 / len(family)) ** 0.5, rel=0.15
    )


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "0525b5ef")
def test_false_falls():
    def false_falls(tests, level=0.95):
        """Probability of at least one interval below 0, of so many independent ones without an effect."""
        return 1 - (1 - (1 - level) / 2) ** tests

    assert (
        false_falls(1) == pytest.approx(0.025)
        and false_falls(22) == pytest.approx(0.427, abs=1e-3)
        and false_falls(22, 0.998) < 0.025
    )


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "0525b5ef")
def test_false_falls_starter_fails():
    def false_falls(tests, level=0.95):
        """Probability of at least one interval below 0, of so many independent ones without an effect."""
        return 1 - level**tests

    with pytest.raises(Exception):
        assert (
            false_falls(1) == pytest.approx(0.025)
            and false_falls(22) == pytest.approx(0.427, abs=1e-3)
            and false_falls(22, 0.998) < 0.025
        )


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "ea174614")
def test_share_of_ceiling():
    def share_of_ceiling(matched, mismatched, classes):
        """The gap as a share of what it could be."""
        return (matched - mismatched) / (1 - mismatched) if matched > 1 / classes else 0.0

    assert (
        share_of_ceiling(0.75, 0.5, 2) == pytest.approx(0.5)
        and share_of_ceiling(0.34, 0.12, 8) == pytest.approx(0.25)
        and share_of_ceiling(0.49, 0.47, 2) == 0
    )


@pytest.mark.nb("nbs/4_pretraining/19c_probing_board.ipynb", "ea174614")
def test_share_of_ceiling_starter_fails():
    def share_of_ceiling(matched, mismatched, classes):
        """The gap as a share of what it could be."""
        return matched - mismatched

    with pytest.raises(Exception):
        assert (
            share_of_ceiling(0.75, 0.5, 2) == pytest.approx(0.5)
            and share_of_ceiling(0.34, 0.12, 8) == pytest.approx(0.25)
            and share_of_ceiling(0.49, 0.47, 2) == 0
        )
