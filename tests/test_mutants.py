"""Every seeded mistake in an objective is found by the tests of its notebook; see mutants.py."""
import functools

import pytest
from mutants import Mutant, Notebook, load, seeded

# module -> its notebook, and for each function what to find in its source and what to put there.
# A new objective adds rows, a new module adds an entry.
TABLE = {
    "objectives": ("10b_objectives", {
        "same_caption": [   # all alike, case folded, not symmetric, compared by length, no twins at all
            ("len(first)", "0"),
            ("first.setdefault(caption,", "first.setdefault(caption.lower(),"),
            ("==", ">="),
            ("first.setdefault(caption, len(first))", "len(caption)"),
            ("ids[:, None] == ids[None, :]", "torch.eye(len(ids), dtype=torch.bool)"),
        ],
        "_drop": [   # the diagonal added, kept alone, the wrong cells dropped
            ("& ~torch.eye", "| torch.eye"),
            ("same & ~", "same & "),
            ("same & ~", "~"),
        ],
        "_need_square": [
            (" or matrix.shape[0] != matrix.shape[1]", ""),
            ("{argument}", "logits"),
        ],
        "itc_loss": [   # axes, directions, weights, targets, masks, checks
            ("F.cross_entropy(text_to_image, target)", "F.cross_entropy(image_to_text, target)"),
            ("F.cross_entropy(image_to_text, target) +", "F.cross_entropy(image_to_text.T, target) +"),
            ("F.cross_entropy(text_to_image, target)", "F.cross_entropy(text_to_image.T, target)"),
            (" + F.cross_entropy(text_to_image, target)) / 2", ")"),
            (") / 2", ")"),
            ("return (", "return -("),
            ("F.cross_entropy(text_to_image, target)", 'F.cross_entropy(text_to_image, target, reduction="sum")'),
            ("F.cross_entropy(text_to_image, target)", "F.cross_entropy(text_to_image.detach(), target)"),
            ("F.cross_entropy(image_to_text, target)", "F.cross_entropy(image_to_text, target, label_smoothing=0.1)"),
            ("F.cross_entropy(image_to_text, target)", "F.cross_entropy(10 * image_to_text, target)"),
            ("target = torch.arange(len(image_to_text)", "target = torch.zeros(len(image_to_text), dtype=torch.long"),
            ("if same is not None", "if False"),
            ("_drop(same), -math.inf", "same, -math.inf"),
            ("_drop(same), -math.inf", "_drop(same), 0.0"),
            ("_drop(same).T, -math.inf", "_drop(same), -math.inf"),
            ("text_to_image = text_to_image.masked_fill(_drop(same).T, -math.inf)", "pass"),
            ("len(image_to_text) < 2", "len(image_to_text) < 1"),
            ("_need_square(", "(lambda *a, **k: None)("),
        ],
        "siglip_loss": [   # signs, means, cells left out, masks, checks
            ("- 1  ", "- 0  "),
            ("2 * torch.eye", "-2 * torch.eye"),
            ("-F.logsigmoid", "F.logsigmoid"),
            ("sign * logits", "logits"),
            ("F.logsigmoid(sign * logits)", "torch.sigmoid(sign * logits)"),
            ("F.logsigmoid(sign * logits)", "(sign * logits).sigmoid().log()"),
            ("losses.sum() / len(logits)", "losses.mean()"),
            ("losses.sum() / len(logits)", "losses.sum()"),
            ("losses.sum()", "losses.diagonal().sum()"),
            ("if same is not None", "if False"),
            ("_drop(same)", "same"),
            ("_need_square(", "(lambda *a, **k: None)("),
        ],
        "_uniformity": [
            (".square()", ""),
            ("mul(-2)", "mul(-1)"),
            (".mean().log()", ".log().mean()"),
        ],
        "itc_health": [
            ("argmax(dim=0)", "argmax(dim=1)"),
            ("logit_scale * image", "image"),
            ("(image - text).square().sum(dim=1)", "(image - text).square()"),
            ("math.log(len(image))", "len(image)"),
            ("_uniformity(image) + _uniformity(text)", "2 * _uniformity(image)"),
            ("torch.cat([image, text]).norm", "image.norm"),
        ],
    }),
    "nn.transformer": ("04_transformer", {
        "smoothed_loss": [   # padding, weights, means, the bound, the check
            ("target != pad", "target == target"),
            ("(1 - smoothing) * right", "right"),
            ("smoothing * surprise.mean()", "smoothing * surprise.sum(-1).mean()"),
            (".clamp(min=math.log(torch.finfo(log_probs.dtype).tiny))", ""),
            ("target[real][:, None]).mean()", "target[real][:, None]).sum() / target.numel()"),
            ("not 0 <= smoothing < 1", "False"),
        ],
        "warmup_rate": [
            ("step**-0.5", "step**-1.0"),
            ("step * warmup**-1.5", "warmup**-1.5"),
            ("dim**-0.5 * ", ""),
        ],
        "TokenEmbedding": [   # scale, places of later tokens, dropout on the sum
            ("self.scale * self.table(ids)", "self.table(ids)"),
            ("self.table(ids), start)", "self.table(ids))"),
            ("self.dropout(self.places", "(self.places"),
        ],
        "DecoderState": [   # rows of the context, of its mask, of the caches
            ("self.context = self.context[rows]", "pass"),
            ("self.context_mask = self.context_mask[rows]", "pass"),
            ("cache.select(rows)", "pass"),
            ("ids[:, known:]", "ids"),
        ],
    }),
    "decoding": ("04a_decoding", {
        "length_norm": [("return ((5 + length)", "return (length"), ("** alpha", "* alpha")],
        "_extend": [   # too few candidates, ends below the beam, ends that go on, rows for tokens
            ("min(2 * beams,", "min(beams,"),
            ("top[:, :beams].masked_fill", "top.masked_fill"),
            ("ends.int().argsort(dim=1, stable=True)", "(1 - ends.int()).argsort(dim=1, stable=True)"),
            ("place_going // vocab", "place_going // alive"),
        ],
        "beam_search": [   # memory left behind, wrong rows, wrong norms, wrong ends
            ("state.select(rows)", "pass"),
            ("torch.cat([ids[rows],", "torch.cat([ids.repeat(len(rows) // len(ids), 1),"),
            ("first * alive + rows", "rows"),
            ("/ length_norm(length, length_penalty)", "/ 1"),
            ("max(found)[1]", "found[0][1]"),
            ("beams == 1 or max(found)[0] >= bound", "True"),
            ("max(found)[0] >= bound", "len(found) >= beams"),
            ("if found else words", "if found and not words else words"),
        ],
        "keep_nucleus": [
            ("better >= top_p", "better > 1 - top_p"),
            ("ordered.cumsum(-1) - ordered", "ordered.cumsum(-1)"),
            ("scatter(-1, order, better >= top_p)", "logical_or(better >= top_p)"),
        ],
        "nucleus": [("log_probs / temperature", "log_probs * temperature"), ("generator=generator", "generator=None")],
        "_write": [("row[:row.index(eos)] if eos in row else row", "row")],
    }),
    "models.vae": ("07_vae", {
        "gaussian_kl": [
            ("0.5 * (", "("),
            ("mean.square()", "mean.abs()"),
            ("logvar.exp()", "logvar"),
            (" - 1 - logvar", " - logvar"),
            ("- logvar)", "+ logvar)"),
        ],
        "gaussian_nll": [   # sums for means, twice the variance, the constant, the check
            (".sum(1)", ".mean(1)"),
            ("(2 * variance)", "variance"),
            ("squared.shape[1] / 2", "squared.shape[1]"),
            ("math.log(2 * math.pi * variance)", "math.log(2 * math.pi)"),
            ("if not variance > 0", "if variance < 0"),
        ],
        "best_variance": [(".mean()", ".sum()"), (".square()", ".abs()")],
        "elbo_losses": [   # the price on the wrong part, the floor in the report, before the mean, per code, checks
            ("reconstruction + beta * each.clamp", "beta * reconstruction + each.clamp"),
            (".clamp(min=free_bits)", ""),
            ("each.clamp(min=free_bits).sum()", "each.sum().clamp(min=free_bits)"),
            ('"kl": each.sum()', '"kl": each.clamp(min=free_bits).sum()'),
            (".mean(0)  ", ".sum(0)  "),
            ("free_bits).sum()", "free_bits).mean()"),
            ("if variance is None else variance).mean()", "if variance is None else variance).sum()"),
            ("best_variance(output, image) if", "0.5 if"),
            ("beta < 0 or ", ""),
            (" or free_bits < 0", ""),
        ],
        "draw_codes": [
            ("if not fitted", "if fitted"),
            ("noise * logvar", "logvar"),
            ("logvar.exp()", "(0.5 * logvar).exp()"),
            (".T\n", "\n"),
            ("mean.mean(0) + codes", "codes"),
        ],
    }),
}
AT_LEAST = 5
ROWS = [(module, Mutant(function, find, put)) for module, (_, functions) in TABLE.items()
        for function, rows in functions.items() for find, put in rows]


@functools.cache
def notebook(module: str) -> Notebook:
    return Notebook(TABLE[module][0])


@pytest.mark.parametrize("module", TABLE)
def test_right_functions_pass(module):
    assert not notebook(module).failures()


@pytest.mark.parametrize("module", TABLE)
def test_every_objective_has_enough_mutants(module):
    own = [n for n, f in vars(load(module)).items() if getattr(f, "__module__", "") == f"vlp_course.{module}"]
    for name in (n for n in own if n.endswith("_loss")):
        found = len(TABLE[module][1].get(name, []))
        assert found >= AT_LEAST, f"{module}.{name} has {found} mutants; add rows until it has {AT_LEAST}"


@pytest.mark.parametrize("module, mutant", ROWS, ids=[f"{m}-{n}-{x.function}" for n, (m, x) in enumerate(ROWS)])
def test_mutant_is_found(module, mutant):
    with seeded(load(module), mutant):
        failed = notebook(module).failures(stop=True)
    assert failed, f"all tests of {TABLE[module][0]} pass although {module}.{mutant.function} says {mutant.put!r}"


def test_a_mutant_needs_its_text():
    lost = Mutant("itc_loss", "nowhere", "")
    with pytest.raises(LookupError, match="stands there 0 times"), seeded(load("objectives"), lost):
        pass
