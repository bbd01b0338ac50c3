"""Generated from nbs/5_prompting/22_coop.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import copy
import math
import pytest
import tempfile
import torch
import torch.nn.functional as F
import weakref
from pathlib import Path
from safetensors.torch import load_file
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import CLIP
from vlp_course.models.clip_whole import CLIP as WholeCLIP
from vlp_course.models.clip_whole import CLIPConfig
from vlp_course.models.clip_whole import rename
from vlp_course.nn.clip_towers import TowerConfig
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.prompts.coop import (
    CoCoOp,
    CoOp,
    POSITIONS,
    base_and_new,
    class_vectors,
    course_tower,
    fit,
    harmonic_mean,
    lay_out,
    load_context,
    nearest_words,
    published_tower,
    save_context,
)


@pytest.fixture(scope="module")
def setup_15231267():
    WORDS = "a photo of big cat dog red panda sea lion bird".split()

    def course_clip(dim=16, seed=0):
        torch.manual_seed(seed)
        vocabulary = Vocabulary(WORDS)  # its [EOS] has id 3: smaller than every word's
        return CLIP(ImageEncoder(dim), TextEncoder(torch.randn(len(vocabulary), dim)), vocabulary, dim).double()

    def simple_tokenizer(words=WORDS, start=2, end=5):
        known = {w: i for i, w in enumerate(words, 6)}

        def tokenize(texts):
            rows = [[start, *(known[w] for w in t.split()), end] for t in texts]
            width = max(map(len, rows))
            mask = torch.tensor([[k < len(r) for k in range(width)] for r in rows])
            return Tokenized(torch.tensor([r + [end] * (width - len(r)) for r in rows]), mask)

        return tokenize

    def their_clip(seed=0):
        sizes = dict(num_hidden_layers=2, num_attention_heads=2)
        config = TheirConfig(
            text_config=dict(
                hidden_size=12,
                intermediate_size=20,
                vocab_size=19,
                max_position_embeddings=14,
                bos_token_id=2,
                eos_token_id=5,
                pad_token_id=5,
                **sizes,
            ),
            vision_config=dict(hidden_size=16, intermediate_size=24, image_size=8, patch_size=4, **sizes),
            projection_dim=10,
        )
        torch.manual_seed(seed)
        model = CLIPModel(config).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p) * (0.5 if p.ndim > 1 else 0.2) + (1.0 if p.ndim == 1 else 0.0))
            model.logit_scale.fill_(1.5)
        return model

    def published_clip(theirs):
        image, text = TowerConfig(16, 2, 2, 24), TowerConfig(12, 2, 2, 20)
        model = WholeCLIP(CLIPConfig(image, text, 8, 4, 14, 19, 10, eos_id=5), simple_tokenizer()).double()
        model.load_state_dict(rename(theirs.state_dict()))
        return model

    NAMES = ["cat", "red panda", "sea lion", "big bird", "dog"]
    return NAMES, WORDS, course_clip, published_clip, simple_tokenizer, their_clip


@pytest.fixture(scope="module")
def setup_3cb673f3():
    @torch.no_grad()
    def slow_logits(tower, scale, images, ctx, names, position="end", shift=lambda image: 0.0):
        out = torch.zeros(len(images), len(names), dtype=images.dtype)
        for b, image in enumerate(images):
            for c, name in enumerate(names):
                start, *words, end = tower.ids(name)
                mine = list((ctx[c] if ctx.ndim == 3 else ctx) + shift(image))
                cut = {"end": len(mine), "middle": len(mine) // 2, "front": 0}[position]
                name_vectors = [tower.embed.weight[i] for i in words]
                row = [tower.embed.weight[start], *mine[:cut], *name_vectors, *mine[cut:], tower.embed.weight[end]]
                ids = torch.tensor([[start, *[start] * cut, *words, *[start] * (len(mine) - cut), end]])
                vector = tower.encode(torch.stack(row)[None], ids, torch.ones_like(ids, dtype=torch.bool))[0]
                out[b, c] = scale * image @ vector
        return out

    return slow_logits


@pytest.fixture(scope="module")
def setup_56f8aa4b():
    class Peak(TorchDispatchMode):
        """Counts the bytes of tensors made inside that are alive at once."""

        def __init__(self):
            super().__init__()
            self.alive, self.peak, self.known = 0, 0, set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
                if storage is not None and (key := storage._cdata) not in self.known:
                    self.known.add(key)
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self.gone, key, storage.nbytes())
            self.peak = max(self.peak, self.alive)
            return out

        def gone(self, key, size):
            self.known.discard(key)
            self.alive -= size

    def peak_bytes(learner, images, labels):
        with Peak() as peak:
            F.cross_entropy(learner(images), labels).backward()
        learner.zero_grad()
        return peak.peak

    return peak_bytes


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "0b995bec")
def test_the_way_in_gives_what_the_front_door_gives(setup_15231267):
    NAMES, _, course_clip, published_clip, _, their_clip = setup_15231267
    for model, tower_of in ((course_clip(), course_tower), (published_clip(their_clip()), published_tower)):
        tower, texts = tower_of(model), [f"a photo of a {name}" for name in NAMES]
        tokens = tower.tokenize(texts)
        torch.testing.assert_close(
            tower.encode(tower.embed(tokens.ids), tokens.ids, tokens.mask), model.encode_text(tokens).pooled
        )
        assert not any(p.requires_grad for p in model.parameters()) and not model.training
        assert tower.ids("red panda")[1:-1] == tower.ids("a red panda")[2:-1] and len(tower.ids("sea lion")) == 4


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "4aff288a")
def test_the_end_is_found_by_id(setup_15231267):
    _, _, _, published_clip, _, their_clip = setup_15231267
    model = published_clip(their_clip())
    tower = published_tower(model)
    tokens = tower.tokenize(["a cat", "a photo of a red panda"])
    assert (
        tokens.ids[0].argmax() != 3 and tokens.ids[0, 3] == 5 and tokens.ids.max() > 5
    )  # the end is neither last nor largest
    found = tower.encode(tower.embed(tokens.ids), tokens.ids, tokens.mask)
    alone = tower.tokenize(["a cat"])
    torch.testing.assert_close(found[:1], tower.encode(tower.embed(alone.ids), alone.ids, alone.mask))
    wrong = tokens.ids.argmax(1)
    hidden = F.normalize(model.text(tokens.ids, tokens.mask)[torch.arange(2), wrong], dim=-1)
    assert (hidden - found).abs().max() > 0.1  # what argmax would have read


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "cb4e2c27")
def test_layouts_by_hand():
    prompts = lay_out([[2, 11, 5], [2, 12, 13, 5]], 3, "middle")
    assert prompts.slot.tolist() == [[-1, 0, -1, 1, 2, -1, -1], [-1, 0, -1, -1, 1, 2, -1]]
    assert prompts.ids.tolist() == [[2, 2, 11, 2, 2, 5, 5], [2, 2, 12, 13, 2, 2, 5]]
    assert prompts.mask.tolist() == [[True] * 6 + [False], [True] * 7]
    assert lay_out([[2, 11, 5]], 2, "end").slot.tolist() == [[-1, 0, 1, -1, -1]] and lay_out(
        [[2, 11, 5]], 2, "front"
    ).slot.tolist() == [[-1, -1, 0, 1, -1]]
    with pytest.raises(ValueError, match="unknown position 'back' of the class name: choose one of end, middle, front"):
        lay_out([[2, 11, 5]], 2, "back")


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "3611c749")
def test_words_give_the_hand_prompts_logits(setup_15231267):
    NAMES, _, course_clip, published_clip, _, their_clip = setup_15231267
    for model, tower_of, dim in (
        (course_clip(), course_tower, 16),
        (published_clip(their_clip()), published_tower, 10),
    ):
        tower, images = tower_of(model), F.normalize(torch.randn(3, dim, dtype=torch.double), dim=-1)
        hand = model.encode_text(model.tokenize([f"a photo of a {name}" for name in NAMES])).pooled
        for per_class in (False, True):
            learner = CoOp(tower, 7.0, NAMES, words="a photo of a", per_class=per_class)
            torch.testing.assert_close(learner(3 * images), 7.0 * images @ hand.T)  # the length of x does not matter
        behind = model.encode_text(model.tokenize([f"{name} a photo of a" for name in NAMES])).pooled
        torch.testing.assert_close(
            CoOp(tower, 7.0, NAMES, words="a photo of a", position="front")(images), 7.0 * images @ behind.T
        )
        assert (hand - behind).abs().max() > 0.01


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "af2c9fe0")
def test_as_the_slow_version(setup_15231267, setup_3cb673f3):
    NAMES, _, course_clip, published_clip, _, their_clip = setup_15231267
    slow_logits = setup_3cb673f3
    for model, tower_of, dim in (
        (course_clip(), course_tower, 16),
        (published_clip(their_clip()), published_tower, 10),
    ):
        tower, images = tower_of(model), F.normalize(torch.randn(3, dim, dtype=torch.double), dim=-1)
        for position in POSITIONS:
            for per_class in (False, True):
                learner = CoOp(tower, 4.0, NAMES, length=3, position=position, per_class=per_class, std=1.0, seed=1)
                expected = slow_logits(tower, 4.0, images, learner.ctx, NAMES, position)
                torch.testing.assert_close(learner(images), expected)
                learner.chunk = 2
                torch.testing.assert_close(learner(images), expected)
            learner = CoCoOp(tower, 4.0, NAMES, length=3, position=position, std=1.0)
            shift = lambda image: learner.meta(image[None])[0]
            expected = slow_logits(tower, 4.0, images, learner.ctx, NAMES, position, shift)
            torch.testing.assert_close(learner(images), expected)
            assert (expected - slow_logits(tower, 4.0, images, learner.ctx, NAMES, position)).abs().max() > 1e-3


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "7fb84942")
def test_logits_and_gradients_of_transformers(setup_15231267):
    NAMES, _, _, published_clip, simple_tokenizer, their_clip = setup_15231267
    theirs = their_clip()
    tower = published_tower(published_clip(theirs))
    learner = CoOp(tower, math.exp(1.5), NAMES, length=4, per_class=True, std=0.5, seed=3)
    tokens = simple_tokenizer()(["a a a a " + name for name in NAMES])  # slots are places 1 to 4
    twin = learner.ctx.detach().clone().requires_grad_()
    hook = theirs.text_model.embeddings.token_embedding.register_forward_hook(
        lambda module, given, out: torch.cat([out[:, :1], twin, out[:, 5:]], 1)
    )
    pixels = torch.randn(3, 3, 8, 8, dtype=torch.double)
    out = theirs(input_ids=tokens.ids, attention_mask=tokens.mask.long(), pixel_values=pixels)
    hook.remove()
    mine = learner(out.image_embeds.detach())
    torch.testing.assert_close(mine, out.logits_per_image)
    labels = torch.tensor([4, 0, 2])
    F.cross_entropy(mine, labels).backward()
    F.cross_entropy(out.logits_per_image, labels).backward()
    torch.testing.assert_close(learner.ctx.grad, twin.grad)
    assert twin.grad.norm() > 1e-2


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "ac96614c")
def test_parameters_by_formula(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    tower = course_tower(course_clip(32))  # D = joint = 32, waist 2
    count = lambda learner: sum(p.numel() for p in learner.parameters())
    assert (
        count(CoOp(tower, 1.0, NAMES, length=3)) == 3 * 32
        and count(CoOp(tower, 1.0, NAMES, length=3, per_class=True)) == 5 * 3 * 32
    )
    assert count(CoCoOp(tower, 1.0, NAMES, length=3)) == 3 * 32 + (32 * 2 + 2) + (2 * 32 + 32)
    assert set(CoOp(tower, 1.0, NAMES, length=3).state_dict()) == {"ctx"}
    random = CoOp(tower, 1.0, NAMES, length=400 // 50, per_class=True).ctx
    assert random.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "12219f92")
def test_prompts_are_encoded_once_a_step(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    tower, rows = course_tower(course_clip()), []
    counting = tower._replace(encode=lambda x, ids, mask: (rows.append(len(x)), tower.encode(x, ids, mask))[1])
    images = torch.randn(7, 16, dtype=torch.double)
    CoOp(counting, 1.0, NAMES, length=2)(images)
    assert rows == [5]  # not 7 * 5
    learner, rows[:] = CoCoOp(counting, 1.0, NAMES, length=2), []
    learner(images)
    assert rows == [35]


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "00c5023b")
def test_what_cannot_be_built(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    tower = course_tower(course_clip())
    for options in ({}, {"words": "a photo", "length": 2}, {"length": 0}):
        with pytest.raises(ValueError, match="give words or a length of at least 1, and a class"):
            CoOp(tower, 1.0, NAMES, **options)
    with pytest.raises(ValueError, match="length=2, 0 classes"):
        CoOp(tower, 1.0, [], length=2)
    with pytest.raises(ValueError, match="a prompt of 34 tokens: the context of this tower holds 24"):
        CoOp(tower, 1.0, NAMES, length=30)
    with pytest.raises(ValueError, match="one context for all classes: per_class must be false"):
        CoCoOp(tower, 1.0, NAMES, length=2, per_class=True)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "7a4c93a3")
def test_only_the_context_moves(setup_15231267):
    NAMES, _, course_clip, published_clip, _, their_clip = setup_15231267
    for model, tower_of, dim in (
        (course_clip(), course_tower, 16),
        (published_clip(their_clip()), published_tower, 10),
    ):
        before, labels = copy.deepcopy(model.state_dict()), torch.arange(5).repeat(2)
        images = F.normalize(torch.randn(5, dim, dtype=torch.double), dim=-1).repeat(2, 1)
        for learner in (
            CoOp(tower_of(model), 10.0, NAMES, length=4, std=0.5, per_class=True),
            CoCoOp(tower_of(model), 10.0, NAMES, length=4, std=0.5),
        ):
            start = copy.deepcopy(learner.state_dict())
            losses = fit(learner, images, labels, 60, lr=0.1)  # 10 pictures, a batch of 32: they are used
            assert losses[-1] < losses[0] - 0.05 and all(
                (start[k] != v).any() for k, v in learner.state_dict().items() if k != "meta.0.bias"
            )
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()) and learner.scale == 10.0


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "417f353b")
def test_training_by_hand(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    tower = course_tower(course_clip())
    learner, twin = (CoOp(tower, 3.0, NAMES, length=2, std=1.0) for _ in range(2))
    images, labels = torch.randn(4, 16, dtype=torch.double), torch.tensor([0, 4, 2, 1])
    fit(learner, images, labels, 2, lr=0.5, weight_decay=0.1)  # one warm-up step, then half of a cosine's way
    velocity = torch.zeros_like(twin.ctx)
    for rate in (1e-5, 0.25):
        (gradient,) = torch.autograd.grad(F.cross_entropy(twin(images), labels), twin.ctx)
        velocity = 0.9 * velocity + gradient + 0.1 * twin.ctx.detach()
        twin.ctx.data -= rate * velocity
    torch.testing.assert_close(learner.ctx, twin.ctx)
    with pytest.raises(ValueError, match="labels from 0 to 5: expected 0 to 4"):
        fit(learner, images, torch.tensor([0, 5, 1, 1]), 1)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "09f37eea")
def test_memory_stays_bounded(setup_15231267, setup_56f8aa4b):
    _, WORDS, course_clip, _, _, _ = setup_15231267
    peak_bytes = setup_56f8aa4b
    tower = course_tower(course_clip())
    images, labels = torch.randn(3, 16, dtype=torch.double), torch.tensor([0, 2, 1])
    for kind, options in ((CoOp, {}), (CoCoOp, {}), (CoOp, {"per_class": True})):
        few, many = ([f"{a} {b}" for a in WORDS[:n] for b in WORDS] for n in (2, 11))  # 22 and 121 classes
        whole = [peak_bytes(kind(tower, 1.0, names, length=4, **options), images, labels) for names in (few, many)]
        parts = [
            peak_bytes(kind(tower, 1.0, names, length=4, chunk=11, **options), images, labels) for names in (few, many)
        ]
        assert 4.5 < whole[1] / whole[0] < 6 and parts[1] < 0.4 * whole[1], (whole, parts)
        assert parts[1] / parts[0] < 0.5 * whole[1] / whole[0]
        a, b = (kind(tower, 1.0, many, length=4, chunk=chunk, **options) for chunk in (None, 11))
        for learner in (a, b):
            F.cross_entropy(learner(images), labels).backward()
        for p, q in zip(a.parameters(), b.parameters()):
            torch.testing.assert_close(p.grad, q.grad)  # the same numbers for less memory


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "288b7521")
def test_nearest_words_by_hand():
    table = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    found = nearest_words(torch.tensor([[0.0, 0.0], [3.0, 3.0]]), table, ["here", "far", "near"], 2)
    assert found == [[("here", 0.0), ("near", 1.0)], [("far", 1.0), ("near", pytest.approx(13**0.5))]]


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "63c8f5b0")
def test_a_file_carries_the_context_to_other_classes(setup_15231267, setup_3cb673f3):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    slow_logits = setup_3cb673f3
    tower, images = course_tower(course_clip()), F.normalize(torch.randn(3, 16, dtype=torch.double), dim=-1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "prompt.safetensors")
        learned = CoOp(tower, 1.0, NAMES[:3], length=2, std=1.0, seed=9)
        save_context(learned, path)
        assert set(load_file(path)) == {"ctx"}
        other = CoOp(tower, 1.0, NAMES[2:] + ["panda"], length=2)
        load_context(other, path)
        expected = slow_logits(tower, 1.0, images, learned.ctx, NAMES[2:] + ["panda"])
        torch.testing.assert_close(other(images), expected)  # its own names, the learned context
        learned = CoCoOp(tower, 1.0, NAMES[:3], length=2)
        save_context(learned, path)
        other = CoCoOp(tower, 1.0, NAMES, length=2, seed=5)
        load_context(other, path)
        assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), other.parameters()))


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "1ad99072")
def test_files_that_do_not_belong(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    tower = course_tower(course_clip())
    with tempfile.TemporaryDirectory() as folder:
        path, unified = Path(folder, "prompt.safetensors"), CoOp(tower, 1.0, NAMES[:3], length=2)
        save_file(
            {"ctx": unified.ctx.detach(), "token_prefix": torch.zeros(3, 1, 16), "token_suffix": torch.zeros(3, 4, 16)},
            path,
        )
        with pytest.raises(
            ValueError,
            match=r"\(token_prefix, token_suffix in one alone\): what belongs to class names is never loaded",
        ):
            load_context(unified, path)
        save_context(CoOp(tower, 1.0, NAMES[:3], length=2, per_class=True), path)
        with pytest.raises(
            ValueError,
            match=r"for position 'end' and 3 classes \(cat, ...\), this learner has 'end' and 3 \(dog, ...\)",
        ):
            load_context(CoOp(tower, 1.0, NAMES[::-1][:3], length=2, per_class=True), path)
        save_context(unified, path)
        with pytest.raises(ValueError, match="for position 'end' and 3 classes"):
            load_context(CoOp(tower, 1.0, NAMES[:3], length=2, position="front"), path)
        with pytest.raises(ValueError, match=r"ctx of the file is \(2, 16\), this learner's \(4, 16\)"):
            load_context(CoOp(tower, 1.0, NAMES[:3], length=4), path)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "e1d0b9f0")
def test_halves_by_hand():
    (base, base_labels), (new, new_labels) = base_and_new(torch.tensor([4, 0, 2, 3, 1, 3]), 5)
    assert base.tolist() == [1, 2, 4] and base_labels.tolist() == [0, 2, 1]
    assert new.tolist() == [0, 3, 5] and new_labels.tolist() == [1, 0, 0]
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3) and harmonic_mean(0.0, 0.9) == 0.0 == harmonic_mean(0.0, 0.0)
    assert harmonic_mean(82.69, 63.22) == pytest.approx(
        71.66, abs=0.005
    )  # CoOp's averages, as MaPLe's authors list them
    with pytest.raises(ValueError, match="1 class: base and new need one each"):
        base_and_new(torch.tensor([0]), 1)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "b7b162d7")
def test_cost():
    def cost(images, classes, length, dim, joint, kind):
        waist = joint // 16
        net = joint * waist + waist + waist * dim + dim
        return length * dim * (classes if kind == "per_class" else 1) + (net if kind == "cocoop" else 0), classes * (
            images if kind == "cocoop" else 1
        )

    assert cost(32, 1000, 16, 512, 512, "unified") == (8192, 1000) and cost(32, 1000, 16, 512, 512, "per_class") == (
        8_192_000,
        1000,
    )
    assert cost(3, 1000, 4, 512, 512, "cocoop") == (33_312 + 2048, 3000)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "b7b162d7")
def test_cost_starter_fails():
    def cost(images, classes, length, dim, joint, kind):
        waist = joint // 16
        return length * dim * (classes if kind == "per_class" else 1) + (
            joint * waist + waist * dim if kind == "cocoop" else 0
        ), classes

    with pytest.raises(Exception):
        assert cost(32, 1000, 16, 512, 512, "unified") == (8192, 1000) and cost(
            32, 1000, 16, 512, 512, "per_class"
        ) == (8_192_000, 1000)
        assert cost(3, 1000, 4, 512, 512, "cocoop") == (33_312 + 2048, 3000)


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "78133318")
def test_drift(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267

    def drift(learner, hand):
        vectors = class_vectors(learner.tower, learner.prompts, learner.context(None))[0]
        return (1 - (vectors * F.normalize(hand, dim=-1)).sum(-1)).mean()

    model = course_clip()
    hand = model.encode_text(model.tokenize([f"a photo of a {name}" for name in NAMES])).pooled
    learner = CoOp(course_tower(model), 1.0, NAMES, words="a photo of a")
    assert drift(learner, 2 * hand).item() == pytest.approx(0, abs=1e-12)
    learner.ctx.data += torch.randn_like(learner.ctx)  # a constant would not do: layer norms take it away
    drift(learner, hand).backward()
    assert 0.001 < drift(learner, hand).item() < 2 and learner.ctx.grad.norm() > 0


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "78133318")
def test_drift_starter_fails(setup_15231267):
    NAMES, _, course_clip, _, _, _ = setup_15231267

    def drift(learner, hand):
        return learner.ctx.square().mean()

    with pytest.raises(Exception):
        model = course_clip()
        hand = model.encode_text(model.tokenize([f"a photo of a {name}" for name in NAMES])).pooled
        learner = CoOp(course_tower(model), 1.0, NAMES, words="a photo of a")
        assert drift(learner, 2 * hand).item() == pytest.approx(0, abs=1e-12)
        learner.ctx.data += torch.randn_like(learner.ctx)  # a constant would not do: layer norms take it away
        drift(learner, hand).backward()
        assert 0.001 < drift(learner, hand).item() < 2 and learner.ctx.grad.norm() > 0


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "224d2fbe")
def test_shuffled(setup_15231267, setup_3cb673f3):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    slow_logits = setup_3cb673f3

    def shuffled(learner, order):
        other = copy.copy(learner)
        other._parameters = {"ctx": nn.Parameter(learner.ctx.detach()[..., order, :].clone())}
        return other

    tower, images = course_tower(course_clip()), F.normalize(torch.randn(3, 16, dtype=torch.double), dim=-1)
    learner = CoOp(tower, 1.0, NAMES, length=3, std=1.0)
    before, other = learner.ctx.detach().clone(), shuffled(learner, [2, 0, 1])
    assert torch.equal(learner.ctx, before) and torch.equal(other.ctx, before[[2, 0, 1]])
    torch.testing.assert_close(other(images), slow_logits(tower, 1.0, images, before[[2, 0, 1]], NAMES))


@pytest.mark.nb("nbs/5_prompting/22_coop.ipynb", "224d2fbe")
def test_shuffled_starter_fails(setup_15231267, setup_3cb673f3):
    NAMES, _, course_clip, _, _, _ = setup_15231267
    slow_logits = setup_3cb673f3

    def shuffled(learner, order):
        learner.ctx.data = learner.ctx.data[..., order, :]
        return learner

    with pytest.raises(Exception):
        tower, images = course_tower(course_clip()), F.normalize(torch.randn(3, 16, dtype=torch.double), dim=-1)
        learner = CoOp(tower, 1.0, NAMES, length=3, std=1.0)
        before, other = learner.ctx.detach().clone(), shuffled(learner, [2, 0, 1])
        assert torch.equal(learner.ctx, before) and torch.equal(other.ctx, before[[2, 0, 1]])
        torch.testing.assert_close(other(images), slow_logits(tower, 1.0, images, before[[2, 0, 1]], NAMES))
