"""Generated from nbs/4_pretraining/18a_filip.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import tempfile
import torch
import torch.nn.functional as F
from dataclasses import replace
from torch import Tensor
from vlp_course.checkpoints import checkpoint_sha
from vlp_course.data.pairs import MASK
from vlp_course.data.pairs import SceneSet
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.models.clip import build as clip_build
from vlp_course.nn.backbone import WIDTH
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.train import Recipe
from vlp_course.train import fit
from vlp_course.models.filip import Config, FILIP, augmented, build, prompt_similarity


@pytest.fixture(scope="module")
def setup_10cb9c19():
    def toy(seed=0, **config):
        """A FILIP of width 12 with the words of some training captions."""
        vocabulary = Vocabulary(" ".join(SceneSet("train", 90).captions).split())
        torch.manual_seed(seed)
        return FILIP(
            ImageEncoder(12, 3),
            TextEncoder(torch.randn(len(vocabulary), 12), 3, 1),
            vocabulary,
            12,
            config=Config(**config),
        )

    made_up = np.random.default_rng(0).standard_normal((90, WIDTH)).astype(np.float16)
    draw = lambda seed=0: torch.Generator().manual_seed(seed)

    def some(model, rows=(0, 1, 2, 6, 9)):
        """A batch of toy scenes."""
        return SceneSet("train", 90, features=made_up).batch(np.array(rows), model.tokenize)

    def slow(image, text):
        """FILIP's two tables, pair by pair, padding thrown away."""
        tables = torch.zeros(2, len(image.tokens), len(text.tokens))
        for i, j in np.ndindex(*tables.shape[1:]):
            cosine = image.tokens[i][image.mask[i]] @ text.tokens[j][text.mask[j]].T
            tables[:, i, j] = torch.stack([cosine.amax(1).mean(), cosine.amax(0).mean()])
        return tables

    return draw, made_up, slow, some, toy


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "817b1031")
def test_equals_the_slow_twin(setup_10cb9c19):
    _, _, slow, some, toy = setup_10cb9c19
    model = toy()
    batch = some(model)
    image, text = (
        model.encode_image(batch),
        model.encode_text(model.tokenize(["a star", *batch.caption, "a big owl on a grey ground"])),
    )
    torch.testing.assert_close(torch.stack(model.tables(image, text)), slow(image, text))
    torch.testing.assert_close(model.similarity(image, text), slow(image, text).mean(0))
    text = model.encode_text(batch.text)
    torch.testing.assert_close(model.match(image, text), model.similarity(image, text).diagonal())
    torch.testing.assert_close(image.tokens.norm(dim=-1), torch.ones(5, 16))


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "0d38ff3b")
def test_each_direction_has_its_own_table_and_axis(setup_10cb9c19):
    draw, _, slow, some, toy = setup_10cb9c19
    model = toy()
    batch = some(model, (0, 1, 2, 6, 9, 30))
    to_text, to_image = 1 / 0.07 * slow(model.encode_image(batch), model.encode_text(batch.text))
    by_hand = -(to_text.log_softmax(1) + to_image.log_softmax(0)).diagonal().mean() / 2
    torch.testing.assert_close(model(batch, step=0, generator=draw()).losses["late"], by_hand)
    assert (by_hand + (to_text.log_softmax(0) + to_image.log_softmax(1)).diagonal().mean() / 2).abs() > 1e-3


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "ea0b97ba")
def test_padding_does_not_matter(setup_10cb9c19):
    draw, _, _, some, toy = setup_10cb9c19
    model = toy()
    batch = some(model)
    longer = replace(batch, text=Tokenized(F.pad(batch.text.ids, (0, 3)), F.pad(batch.text.mask, (0, 3))))
    assert longer.text.ids.shape[1] <= 24
    losses = [model(b, step=0, generator=draw()).losses["late"] for b in (batch, longer)]
    torch.testing.assert_close(*losses)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "a43f0c7b")
def test_equal_captions_are_no_negatives(setup_10cb9c19):
    draw, _, slow, some, toy = setup_10cb9c19
    model = toy()
    batch = some(model)
    twin = replace(
        batch,
        caption=[batch.caption[0]] * 2 + batch.caption[2:],
        text=Tokenized(*(torch.cat([x[:1], x[:1], x[2:]]) for x in batch.text)),
    )
    to_text, to_image = 1 / 0.07 * slow(model.encode_image(twin), model.encode_text(twin.text))
    equal = torch.zeros(5, 5, dtype=torch.bool)
    equal[0, 1] = equal[1, 0] = True
    to_text, to_image = (table.masked_fill(equal, -torch.inf) for table in (to_text, to_image))
    by_hand = -(to_text.log_softmax(1) + to_image.log_softmax(0)).diagonal().mean() / 2
    torch.testing.assert_close(model(twin, step=0, generator=draw()).losses["late"], by_hand)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "6d33c4fb")
def test_forward_changes_nothing_and_gradients_reach_all_that_is_trained(setup_10cb9c19):
    draw, _, _, some, toy = setup_10cb9c19
    model = toy()
    before = checkpoint_sha(model)
    model(some(model), step=0, generator=draw()).losses["late"].backward()
    assert checkpoint_sha(model) == before
    for name, p in model.named_parameters():
        assert (p.grad is None) == (".pool." in name) == (not p.requires_grad), name
    model.logit_scale.data.fill_(9.0)
    model.after_step({}, 0)
    assert model.logit_scale.exp().item() == pytest.approx(100)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "4da37a8b")
def test_checkpointing_gives_the_same_bits(setup_10cb9c19):
    draw, _, _, some, toy = setup_10cb9c19
    results = []
    for again in (False, True):
        model = toy(checkpoint=again)
        loss = model(some(model), step=0, generator=draw()).losses["late"]
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "5fbfd865")
def test_economies(setup_10cb9c19):
    draw, _, _, some, toy = setup_10cb9c19
    model, exact = toy(), toy()(some(toy()), step=0, generator=draw()).losses["late"]
    for config in (Config(half=True), Config(share=0.25), Config(share=0.25, half=True)):
        model.config = config
        image, text = model.encode_image(some(model)), model.encode_text(some(model).text)
        tokens = model.compared(image, text)
        assert tokens[0].dtype == (torch.bfloat16 if config.half else torch.float32)
        assert tokens[2].sum(1).tolist() == [4 if config.share < 1 else 16] * 5
        loss = model(some(model), step=0, generator=draw()).losses["late"]
        assert torch.isfinite(loss) and loss != exact and (config.share < 1 or abs(loss - exact) < 0.05)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "ae27d660")
def test_killed_and_resumed_gives_the_same_bits(setup_10cb9c19):
    _, made_up, _, _, toy = setup_10cb9c19

    class Mortal(SceneSet):
        life = 99

        def batch(self, *args, **kwargs):
            self.life -= 1
            if self.life < 0:
                raise KeyboardInterrupt
            return super().batch(*args, **kwargs)

    recipe, data = Recipe(6, batch_size=9, seed=3, warmup=2), Mortal("train", 90, features=made_up)
    whole = fit(toy(augment=True), data, recipe, progress=False)
    with tempfile.TemporaryDirectory() as out:
        data.life = 3
        with pytest.raises(KeyboardInterrupt):
            fit(toy(augment=True), data, recipe, out, save_every=2, progress=False)
        data.life = 99
        resumed = fit(toy(seed=8, augment=True), data, recipe, out, save_every=2, progress=False)
    assert resumed.losses == whole.losses and checkpoint_sha(resumed.model) == checkpoint_sha(whole.model)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "a1f5373d")
def test_same_towers_as_clip():
    a, b = build(seed=2).state_dict(), clip_build(seed=2).state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="unknown size 'huge': models.filip has 'small'"):
        build("huge")


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "76e86284")
def test_similarities_are_averaged_not_embeddings(setup_10cb9c19):
    _, _, _, some, toy = setup_10cb9c19
    model = toy()
    image, labels = model.encode_image(some(model)), ["star", "owl"]
    one, two = (
        model.similarity(image, model.encode_text(model.tokenize([t.format(x) for x in labels])))
        for t in ("a {}", "a big {} on a grey ground")
    )
    torch.testing.assert_close(
        prompt_similarity(model, image, labels, ["a {}", "a big {} on a grey ground"]), (one + two) / 2
    )
    torch.testing.assert_close(prompt_similarity(model, image, labels, ["a {}"]), one)
    for wrong in ([], ["a star"]):
        with pytest.raises(ValueError, match="give at least one, each with {} where the label goes"):
            prompt_similarity(model, image, labels, wrong)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "872a8523")
def test_augmentation_keeps_what_captions_name(setup_10cb9c19):
    draw, _, _, some, toy = setup_10cb9c19
    model, data = toy(), SceneSet("train", 12)
    batch = data.batch(range(12), model.tokenize)
    other = augmented(batch, draw())
    assert torch.equal(other.image, augmented(batch, draw()).image) and not torch.equal(
        other.image, augmented(batch, draw(1)).image
    )
    assert (
        other.image.min() >= 0
        and other.image.max() <= 1
        and ((other.image - batch.image).abs().mean((1, 2, 3)) > 1e-4).all()
    )
    for a, b in zip(batch.image, other.image):  # the same layout: pixels still go together
        assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.85
    covered = other.text.ids != batch.text.ids
    assert covered.any() and (other.text.ids[covered] == MASK).all() and (batch.text.ids[covered] > MASK).all()
    features = some(model)
    assert torch.equal(augmented(features, draw()).features, features.features)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "15919d05")
def test_top_word_share():
    def top_word_share(maps: Tensor) -> Tensor:
        """Share of patches that choose the most chosen word; maps has axes batch, words, patches."""
        return F.one_hot(maps.argmax(1), maps.shape[1]).double().mean(1).amax(1)

    maps = torch.zeros(2, 3, 4)
    maps[0, 1] = 1  # all four patches choose word 1
    maps[1, [0, 0, 1, 2], [0, 1, 2, 3]] = 1  # two choose word 0, one each the others
    assert top_word_share(maps).tolist() == [1.0, 0.5]


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "15919d05")
def test_top_word_share_starter_fails():
    def top_word_share(maps: Tensor) -> Tensor:
        """Share of patches that choose the most chosen word; maps has axes batch, words, patches."""
        return maps.amax(1).mean(1)

    with pytest.raises(Exception):
        maps = torch.zeros(2, 3, 4)
        maps[0, 1] = 1  # all four patches choose word 1
        maps[1, [0, 0, 1, 2], [0, 1, 2, 3]] = 1  # two choose word 0, one each the others
        assert top_word_share(maps).tolist() == [1.0, 0.5]


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "471b7db6")
def test_without_marks(setup_10cb9c19):
    _, _, _, _, toy = setup_10cb9c19

    def without_marks(text: Tokens) -> Tokens:
        """The tokens with the first and the last real one masked out."""
        place, last = text.mask.cumsum(1), text.mask.sum(1, keepdim=True)
        return text._replace(mask=text.mask & (place > 1) & (place < last))

    model = toy()
    text = model.encode_text(model.tokenize(["a big owl", "a star"]))
    inner = without_marks(text)
    assert inner.mask.tolist() == [[False, True, True, True, False], [False, True, True, False, False]]
    assert torch.equal(inner.tokens, text.tokens)


@pytest.mark.nb("nbs/4_pretraining/18a_filip.ipynb", "471b7db6")
def test_without_marks_starter_fails(setup_10cb9c19):
    _, _, _, _, toy = setup_10cb9c19

    def without_marks(text: Tokens) -> Tokens:
        """The tokens with the first and the last real one masked out."""
        return text

    with pytest.raises(Exception):
        model = toy()
        text = model.encode_text(model.tokenize(["a big owl", "a star"]))
        inner = without_marks(text)
        assert inner.mask.tolist() == [[False, True, True, True, False], [False, True, True, False, False]]
        assert torch.equal(inner.tokens, text.tokens)
