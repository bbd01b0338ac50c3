"""Seeded mistakes in recipe, checkpoints and trainer are found by the tests of their notebooks; see mutants.py.

Left out: what only a crash, several processes or a GPU would show (test_train_faults.py has those).
"""

import functools

import pytest
from mutants import Mutant, Notebook, load, seeded

TABLE = {
    "recipe": (
        "10c1_recipe",
        {
            "Recipe": [  # thawed, unchecked, JSON's lists kept
                ("frozen=True", "frozen=False"),
                ("if not holds", "if False and not holds"),
                ("except TypeError", "except KeyError"),
                ("if self.batch_size % self.accumulation", "if False"),
                ('tuple(entries["betas"])', 'entries["betas"]'),
            ],
            "learning_rate": [  # off by one, wrong shape, wrong length
                ("step + 1", "step"),
                ("< recipe.warmup", "<= recipe.warmup"),
                ("* 0.5 *", "*"),
                ("1 + math.cos", "1 - math.cos"),
                ("- recipe.warmup) /", "- 0) /"),
                ("recipe.steps - recipe.warmup", "recipe.steps"),
                ("max(1, ", "("),
            ],
            "_epoch": [  # families torn, order not of the epoch or not of the seed, batches of a wrong size
                ("sizes[f] > room", "sizes[f] >= room"),
                ("(seed, epoch)", "(seed, 0)"),
                ("(seed, epoch)", "(0, epoch)"),
                ("room -= sizes[f]", "room -= 1"),
                ("            room = batch_size\n", ""),
                (" or sizes.max() > batch_size", ""),
            ],
            "batch_indices": [(".copy()", ""), ("len(groups) // batch_size)", "len(groups) // batch_size + 1)")],
        },
    ),
    "seeds": (
        "10c2_checkpoints",
        {
            "random_state": [
                ("math.nan if gauss is None else gauss", "math.nan"),
                ("*rest]", "rest[0], 0, 0.0]"),
                ('"run": generator.get_state()', '"run": torch.Generator().get_state()'),
            ],
            "set_random_state": [
                ('set_rng_state(state["torch"].clone())', "get_rng_state()"),
                ("int(has_gauss)", "0"),
                ("None if math.isnan(gauss) else gauss", "None"),
            ],
        },
    ),
    "seeds/trainer": (                # the same module, seen by the trainer's tests
        "10c_trainer",
        {
            "seed_everything": [("int(seed), int(rank)", "int(seed), 0"), ("int(seed), int(rank)", "0, int(rank)")],
            "_seed": [
                ("random.seed(python)", "0"),
                ("torch.default_generator.manual_seed(torchs)", "0"),
                ("manual_seed(own)", "manual_seed(torchs)"),
            ],
        },
    ),
    "checkpoints": (
        "10c2_checkpoints",
        {
            "checkpoint_sha": [
                ("{name} ", ""),
                ("{tuple(value.shape)}", ""),
                ("{value.dtype}", ""),
                ("sorted(", "list("),
            ],
            "_write": [("        os.fsync(file.fileno())\n", "")],
            "_sync_folder": [("    os.fsync(handle)\n", "")],
            "latest_checkpoint": [("max(", "min("), ("step-*", "*")],
            "clean": [
                ("[:-1]", ""),
                (".tmp-*", ".tmp-new*"),
                ('old.rename(old.with_name(f".tmp-old-{old.name}"))', "old"),
            ],
            "save_checkpoint": [
                ("    clean(out)\n    name", "    name"),
                ("    clean(out)\n    return", "    return"),
                (".clone()", ""),
                (".contiguous()", ""),
                ("    _sync_folder(work)\n", ""),
            ],
            "_read": [("!= sha", "== 0")],
            "_difference": [
                ("there.keys() | here.keys()", "there.keys()"),
                ("there.keys() | here.keys()", "here.keys()"),
            ],
            "load_checkpoint": [
                ("if wrong:", "if False:"),
                ('    model.load_state_dict(tensors["model"])\n', ""),
                ("optimizer is not None", "False"),
                ('_difference("tensor", there, here) or', "False or"),
            ],
        },
    ),
    "train": (
        "10c_trainer",
        {
            "param_groups": [
                ("p.ndim > 1", "p.ndim > 0"),
                ("scale.get(p, 1.0)", "1.0"),
                ("if p.requires_grad", ""),
                ("else 0.0", "else weight_decay"),
            ],
            "_accelerator": [
                ("AcceleratorState._reset_state(", "(lambda _: None)("),
                ('recipe.device == "cuda" and not', "False and not"),
                ("gradient_accumulation_steps=recipe.accumulation", "gradient_accumulation_steps=1"),
                ("mixed_precision=recipe.precision", 'mixed_precision="no"'),
            ],
            "_merge": [
                (".detach()", ""),
                ("torch.cat(values)", "values[-1]"),
                ("torch.stack(values).mean()", "values[-1]"),
            ],
            "_step": [
                ("recipe.clip or math.inf", "math.inf"),
                ("[*losses.values(), norm]", "[*losses.values()]"),
                ("[*losses.values(), norm]", "[norm]"),
                ('getattr(model, "tokenize", None)', "None"),
                ("            optimizer.zero_grad()\n", ""),
                ("_merge([out.state for out in outs], acc)", "outs[-1].state"),
            ],
            "_resume": [
                ("optimizer, identity)\n", "None, identity)\n"),
                ("optimizer, identity)\n", "optimizer)\n"),
                ("set_random_state(", "(lambda *_: None)("),
                ("vars(run).update(", "dict(**"),
            ],
            "fit": [
                ("param_groups(model, recipe.weight_decay)", "model.parameters()"),
                ("betas=recipe.betas", "betas=(0.9, 0.999)"),
                ("* learning_rate(recipe, step)", "* recipe.lr"),
                ('group["lr_scale"] * ', ""),
                ("with torch.no_grad():", "if True:"),
                ("- run.cpu_s,", "- 0,"),
                ("run.steps == recipe.steps or", "False or"),
                ("recipe.batch_size, recipe.seed)", "recipe.batch_size, 0)"),
                ("    acc.unwrap_model(net, keep_fp32_wrapper=False)", "    0"),
                ("model.train()", "model"),
                ("data.groups.tobytes()", 'b""'),
                ("hasattr(data,", "hasattr(None,"),
            ],
        },
    ),
}
ROWS = [
    (module, Mutant(function, find, put))
    for module, (_, functions) in TABLE.items()
    for function, rows in functions.items()
    for find, put in rows
]


@functools.cache
def notebook(module: str) -> Notebook:
    return Notebook(TABLE[module][0])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module, mutant", ROWS, ids=[f"{m}-{n}-{x.function}" for n, (m, x) in enumerate(ROWS)])
def test_mutant_is_found(module, mutant):
    with seeded(load(module.split("/")[0]), mutant):
        failed = notebook(module).failures(stop=True)
    assert failed, f"all tests of {TABLE[module][0]} pass although {module}.{mutant.function} says {mutant.put!r}"
