"""Generated from nbs/6_lab/29e_base_models.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import contextlib
import hashlib
import io
import json
import numpy as np
import pytest
import tempfile
import torch
from pathlib import Path
from safetensors.torch import save
from vlp_course.checkpoints import TrainError
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.rows import build_model
from vlp_course.rows import row_of
from vlp_course.bases import BASES, LEDGER, base_folder, halved, load_base, main, rounded, save_base


@pytest.fixture(scope="module")
def setup_dd02d8ce():
    def slow_half(x: float) -> float:
        """The float16 next to x, for 2 ** -14 <= |x| < 65504."""
        step = 2.0 ** (np.floor(np.log2(abs(x))) - 10)
        return float(np.round(x / step) * step)  # NumPy rounds ties to even

    return slow_half


@pytest.fixture(scope="module")
def setup_fbe104a2():
    def toy_run(folder, name="linear"):
        """A run folder of a row whose model was never trained."""
        from vlp_course.checkpoints import save_checkpoint

        model = build_model(row_of(name).builder, 3)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        save_checkpoint(
            folder, model, optimiser, {"torch": torch.get_rng_state()}, {"step": 7, "recipe": {}, "run": {}}
        )
        return model

    return toy_run


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "bbfa2b4f")
def test_half_by_hand(setup_dd02d8ce):
    slow_half = setup_dd02d8ce
    values = [0.1, 1 / 3, -7.25, 2049.0, 2051.0, 2**-14, 65503.0]
    assert halved({"x": torch.tensor(values)})["x"].tolist() == [slow_half(x) for x in values]
    kept = {"count": torch.tensor([3]), "on": torch.tensor([True]), "ramp": torch.tensor(0.1, dtype=torch.float64)}
    assert all(torch.equal(x, kept[name]) and x.dtype == kept[name].dtype for name, x in halved(kept).items())


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "81f09efd")
def test_a_number_out_of_reach():
    with pytest.raises(ValueError, match="tensor 'scale' holds 70000: float16 ends at 65504"):
        halved({"scale": torch.tensor([7e4])})
    assert halved({"mask": torch.tensor([-torch.inf])})["mask"].isinf().all()  # a mask may hold infinities


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "43c86ea4")
def test_there_and_back(setup_fbe104a2):
    toy_run = setup_fbe104a2
    with tempfile.TemporaryDirectory() as folder:
        model = toy_run(Path(folder, "run"))
        path = save_base("linear", Path(folder, "run"), Path(folder, "kept"))
        there = load_base("linear", Path(folder, "kept"))
        assert not there.training and path.stat().st_size < 0.55 * sum(
            4 * x.numel() for x in model.state_dict().values()
        )
        for name, x in model.state_dict().items():
            assert there.state_dict()[name].dtype == x.dtype
            torch.testing.assert_close(there.state_dict()[name], x, rtol=2**-11, atol=2**-24)
        entry = json.loads(Path(folder, "kept", LEDGER).read_text())["linear"]
        assert entry["checkpoint_sha"] == checkpoint_sha(model) != checkpoint_sha(there)


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "e3539e11")
def test_what_is_refused(setup_fbe104a2):
    toy_run = setup_fbe104a2
    with tempfile.TemporaryDirectory() as folder:
        toy_run(Path(folder, "run"))
        path = save_base("linear", Path(folder, "run"), Path(folder))
        with pytest.raises(
            TrainError,
            match="no base model 'clip' in .*: there are linear; `python -m vlp_course.bases --rows clip` makes it",
        ):
            load_base("clip", Path(folder))
        payload = bytearray(path.read_bytes())
        payload[-1] ^= 1  # one bit of one weight
        path.write_bytes(payload)
        with pytest.raises(TrainError, match="is not the file of the ledger .* get it again"):
            load_base("linear", Path(folder))
        other = save({"weight": torch.zeros(2).half()})
        path.write_bytes(other)
        ledger = json.loads(Path(folder, LEDGER).read_text())
        ledger["linear"]["sha256"] = hashlib.sha256(other).hexdigest()
        Path(folder, LEDGER).write_text(json.dumps(ledger))
        with pytest.raises(TrainError, match="is of another model"):
            load_base("linear", Path(folder))
        with pytest.raises(TrainError, match="holds no checkpoint"):
            save_base("clip", Path(folder, "nothing"), Path(folder))


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "0b429927")
def test_the_ledger_keeps_what_it_knew(setup_fbe104a2):
    toy_run = setup_fbe104a2
    with tempfile.TemporaryDirectory() as folder:
        toy_run(Path(folder, "run"))
        Path(folder, LEDGER).write_text('{"lm": {"sha256": "0"}}')
        save_base("linear", Path(folder, "run"), Path(folder), "quick", 5)
        ledger = json.loads(Path(folder, LEDGER).read_text())
        assert set(ledger) == {"lm", "linear"} and ledger["linear"]["command"].startswith(
            "vlp pretrain linear --budget quick --seed 5 --out "
        )
        assert [p.name for p in Path(folder).glob(".*")] == []  # nothing half-written stays


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "d73237e6")
def test_the_command_says_what_to_do(setup_fbe104a2):
    toy_run = setup_fbe104a2
    with tempfile.TemporaryDirectory() as folder:
        toy_run(Path(folder, "linear-full-s0"))
        with contextlib.redirect_stdout(io.StringIO()) as said:
            main(["--rows", "linear", "--runs", folder, "--folder", folder])
        assert said.getvalue().strip() == str(Path(folder, "linear.safetensors"))
        assert (
            load_base("linear", Path(folder)).state_dict().keys()
            == build_model(row_of("linear").builder, 0).state_dict().keys()
        )
        with pytest.raises(SystemExit) as stopped:
            main(["--rows", "clip", "--runs", folder, "--folder", folder])
        assert stopped.value.code == 1 and not Path(folder, "clip.safetensors").exists()


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "ecf9f7f7")
def test_kept_models_come_from_recorded_runs():
    root = next(place for place in [Path.cwd(), *Path.cwd().parents] if (place / "results/scenes").is_dir())
    entries = json.loads((base_folder() / LEDGER).read_text())
    for name, entry in entries.items():
        receipt = json.loads((root / f"results/scenes/{name}-{entry['budget']}-s{entry['seed']}.json").read_text())
        assert receipt["checkpoint_sha"] == entry["checkpoint_sha"], name
        load_base(name)  # the bytes are those of the ledger, and fit the model
    assert set(entries) <= set(BASES) and sum(entry["mb"] for entry in entries.values()) < 60


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "cad8fea2")
def test_rounding_to_few_bits():
    x = torch.tensor([[0.0, 0.3, -0.6, 1.4], [10.0, -2.0, 0.0, 3.0]])
    torch.testing.assert_close(
        rounded(x, 3), torch.tensor([[0.0, 1.4 / 3, -1.4 / 3, 1.4], [10.0, -10 / 3, 0.0, 10 / 3]])
    )  # steps of a third
    assert len(rounded(torch.randn(5, 400), 4).unique(dim=1)[0].unique()) <= 15 and torch.equal(rounded(x[0], 3), x[0])
    assert (rounded(x, 8) - x).abs().max() <= 10 / 127 / 2 and torch.equal(
        rounded(torch.zeros(2, 3), 4), torch.zeros(2, 3)
    )


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "b4a70e70")
def test_trusted():
    def trusted(path, ledger_text, pinned):
        """Whether file and ledger are those that were pinned."""
        if (
            hashlib.sha256(ledger_text.encode()).hexdigest() != pinned
        ):  # else who changes the file changes the ledger too
            return False
        entry = json.loads(ledger_text)[Path(path).stem]
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() == entry["sha256"]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.safetensors")
        write = lambda payload: (
            path.write_bytes(payload),
            json.dumps({"clip": {"sha256": hashlib.sha256(payload).hexdigest()}}),
        )[1]
        ledger = write(b"weights")
        pinned = hashlib.sha256(ledger.encode()).hexdigest()
        assert trusted(path, ledger, pinned)
        forged = write(b"other weights")
        assert not trusted(path, forged, pinned) and not trusted(path, ledger, pinned)


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "b4a70e70")
def test_trusted_starter_fails():
    def trusted(path, ledger_text, pinned):
        """Whether file and ledger are those that were pinned."""
        entry = json.loads(ledger_text)[Path(path).stem]
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() == entry["sha256"]

    with pytest.raises(Exception):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "clip.safetensors")
            write = lambda payload: (
                path.write_bytes(payload),
                json.dumps({"clip": {"sha256": hashlib.sha256(payload).hexdigest()}}),
            )[1]
            ledger = write(b"weights")
            pinned = hashlib.sha256(ledger.encode()).hexdigest()
            assert trusted(path, ledger, pinned)
            forged = write(b"other weights")
            assert not trusted(path, forged, pinned) and not trusted(path, ledger, pinned)


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "ace13dab")
def test_lean():
    def lean(tensors, outputs):
        """The tensors on which outputs(tensors) depends."""
        read = lambda name: outputs(tensors | {name: torch.full_like(tensors[name], torch.nan)}).isnan().any()
        return {name: x for name, x in tensors.items() if not x.is_floating_point() or read(name)}

    weights = {"a": torch.ones(2), "momentum": torch.ones(2), "b": torch.zeros(1), "count": torch.tensor([3])}
    assert set(lean(weights, lambda w: w["a"].sum() * 2 + w["b"])) == {"a", "b", "count"}


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "ace13dab")
def test_lean_starter_fails():
    def lean(tensors, outputs):
        """The tensors on which outputs(tensors) depends."""
        return dict(tensors)

    with pytest.raises(Exception):
        weights = {"a": torch.ones(2), "momentum": torch.ones(2), "b": torch.zeros(1), "count": torch.tensor([3])}
        assert set(lean(weights, lambda w: w["a"].sum() * 2 + w["b"])) == {"a", "b", "count"}


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "4ace61ec")
def test_damage():
    def damage(tensors, names, bits, outputs):
        """Mean squared change of outputs(tensors) when the named matrices are rounded."""
        changed = {n: rounded(x, bits) if n in names else x for n, x in tensors.items()}
        return float((outputs(changed) - outputs(tensors)).square().mean())

    g = torch.Generator().manual_seed(0)
    weights = {"small": torch.randn(4, 6, generator=g), "large": 10 * torch.randn(4, 6, generator=g)}
    total = lambda w: w["small"].sum(1) + w["large"].sum(1)
    assert (
        0 < damage(weights, {"small"}, 3, total) < damage(weights, {"large"}, 3, total)
        and damage(weights, set(), 3, total) == 0
    )


@pytest.mark.nb("nbs/6_lab/29e_base_models.ipynb", "4ace61ec")
def test_damage_starter_fails():
    def damage(tensors, names, bits, outputs):
        """Mean squared change of outputs(tensors) when the named matrices are rounded."""
        return float((outputs({n: rounded(x, bits) for n, x in tensors.items()}) - outputs(tensors)).square().mean())

    with pytest.raises(Exception):
        g = torch.Generator().manual_seed(0)
        weights = {"small": torch.randn(4, 6, generator=g), "large": 10 * torch.randn(4, 6, generator=g)}
        total = lambda w: w["small"].sum(1) + w["large"].sum(1)
        assert (
            0 < damage(weights, {"small"}, 3, total) < damage(weights, {"large"}, 3, total)
            and damage(weights, set(), 3, total) == 0
        )
