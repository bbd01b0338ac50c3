"""Generated from nbs/5_prompting/26_mantis.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import torch
from dataclasses import replace
from torch import nn
from transformers import GPT2Config
from transformers import GPT2LMHeadModel
from vlp_course.data.families import family
from vlp_course.data.pairs import CLS
from vlp_course.data.pairs import EOS
from vlp_course.data.pairs import PAD
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Vocabulary
from vlp_course.finetune import freeze
from vlp_course.nn.attention import causal_mask
from vlp_course.nn.encoders import Tokens
from vlp_course.models.mantis import Mantis, Products, Writing, build


@pytest.fixture(scope="module")
def setup_03c99e81():
    class Grid(nn.Module):
        """A picture of 6 numbers to 3 tokens, as a tower would."""

        def __init__(self, dim):
            super().__init__()
            self.map = nn.Linear(2, dim)

        def forward(self, x):
            tokens = self.map(x.unflatten(-1, (3, 2)))
            return Tokens(tokens.mean(1), tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))

    def toy(seed=0, dtype=torch.float64, scale=0.4):
        """A small Mantis whose every weight is drawn anew: zeros and ones hide errors."""
        g = torch.Generator().manual_seed(seed)
        vocabulary = Vocabulary("a small big cat dog owl and left of on ground".split())
        model = Mantis(
            torch.randn(len(vocabulary), 12, generator=g), Grid(12), vocabulary, heads=3, layers=2, context=9
        ).to(dtype)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(scale * torch.randn(p.shape, generator=g, dtype=dtype))
        return model

    def products(model, titles=("cat and owl", "dog"), captions=("a small cat left of owl", "a dog"), pictures=True):
        """Two products of the toy world."""
        g = torch.Generator().manual_seed(7)
        features = torch.randn(len(captions), 6, generator=g, dtype=model.kind.dtype) if pictures else None
        return Pairs(
            None,
            list(captions),
            model.tokenize(list(captions)),
            torch.arange(len(captions)),
            features,
            {"title": None if titles is None else list(titles)},
        )

    def loss_of(model, batch):
        return model(batch, step=0, generator=torch.Generator())[0]["lm"]

    return loss_of, products, toy


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "0c51f021")
def test_titles_name_things_and_nothing_else():
    scenes = Products("train", 12, features=np.zeros((12, 12288), np.float16))
    batch = scenes.batch(range(12))
    for i, title in enumerate(batch.targets["title"]):
        spec = family("train", 0, i // 3)[i % 3].spec
        assert title.split(" and ") == sorted({t.noun for t in spec.things})
        words = set(title.split()) - {"and"}
        assert not words & {"small", "big", "left", "right", "above", "top", "two", "red", "white"} and words <= {
            t.noun for t in spec.things
        }
    assert batch.features.shape == (12, 12288)
    alone = Products("train", 12, ("title",), features=scenes.features).batch([1, 4])
    assert alone.features is None and alone.image is None and len(alone.targets["title"]) == 2
    neither = Products("train", 12, (), features=scenes.features).batch([1])
    assert neither.features is None and neither.targets == {"title": None}
    with pytest.raises(ValueError, match="a product has no price: choose from picture, title"):
        Products("train", 12, ("price", "title"))


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "dfdb8b46")
def test_loss_is_the_slow_one(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81

    def one_by_one(model, image, title, description):
        parts = [] if image is None else [image + model.kind[0]]
        if title is not None:
            parts.append(model.read(torch.tensor([model.vocabulary.encode(title)]))[0] + model.kind[1])
        ids = torch.tensor(model.vocabulary.encode(description))
        x = torch.cat([*parts, model.read(ids[None, :-1])[0] + model.kind[2]])[None]
        log_p = model.scores(model.stack(x, causal_mask(x.shape[1])))[0, -(len(ids) - 1) :].log_softmax(-1)
        return -log_p[torch.arange(len(ids) - 1), ids[1:]]

    model = toy()
    for titles, pictures in (
        (("cat and owl", "dog"), True),
        (None, True),
        (("cat and owl", "dog"), False),
        (None, False),
    ):
        batch = products(model, titles, pictures=pictures)
        images = model.image_encoder(batch.features).tokens if pictures else [None, None]
        slow = torch.cat(
            [one_by_one(model, images[i], None if titles is None else titles[i], batch.caption[i]) for i in range(2)]
        )
        assert len(slow) == 7 + 3  # every word of both descriptions, and their ends
        torch.testing.assert_close(loss_of(model, batch), slow.mean(), rtol=1e-10, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "b3e8188c")
def test_gradient_reaches_all_that_is_read_and_prefix_is_not_predicted(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81
    model = toy(1)
    loss_of(model, products(model)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model = toy(1)
    batch = products(model)
    first = model.vocabulary.index["a"]
    with torch.no_grad():  # the first word is predicted from the prefix alone
        before = model.prefix(batch)
        scores = Writing(model, before).logits(torch.full((2, 1), CLS))
        changed = replace(batch, targets={"title": ["owl", "dog"]})
        assert not torch.allclose(scores[0], Writing(model, model.prefix(changed)).logits(torch.full((2, 1), CLS))[0])
        one = replace(batch, caption=["a", "a"], text=model.tokenize(["a", "a"]))
        ended = Writing(model, before).logits(torch.tensor([[CLS, first], [CLS, first]])).log_softmax(-1)[:, EOS]
        by_hand = -(scores.log_softmax(-1)[:, first] + ended).sum() / 4
    torch.testing.assert_close(loss_of(model, one), by_hand, rtol=1e-10, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "7f581831")
def test_what_is_not_read_does_not_matter(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81
    model = toy(2)
    batch = products(model, pictures=False)
    other = replace(products(model), features=None)
    assert torch.equal(loss_of(model, batch), loss_of(model, other))  # title alone: no picture gets in
    assert not torch.allclose(loss_of(model, batch), loss_of(model, products(model)))
    alone = products(model, titles=("dog",), captions=("a dog",))  # the padding of other titles and texts does nothing
    both = products(model, titles=("dog", "cat and owl"), captions=("a dog", "a small cat left of owl"))
    with torch.no_grad():
        short, long = (
            Writing(model, model.prefix(b)).logits(torch.full((len(b.caption), 1), CLS))
            for b in (replace(alone, features=both.features[:1]), both)
        )
    torch.testing.assert_close(short[0], long[0], rtol=1e-10, atol=1e-10)


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "d51b2fa4")
def test_several_pictures(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81
    model = toy(3)
    batch = products(model)
    g = torch.Generator().manual_seed(9)
    more = torch.randn(2, 2, 6, generator=g, dtype=torch.double)
    with_more = lambda seen: replace(batch, targets=batch.targets | {"more": more, "seen": torch.tensor(seen)})
    three, first = with_more([[True, True]] * 2), with_more([[False, False]] * 2)
    assert (
        model.prefix(three).x.shape == (2, 9 + 5, 12)
        and model.prefix(three).real[0, :9].all()
        and not model.prefix(first).real[:, 3:9].any()
    )
    torch.testing.assert_close(
        loss_of(model, first), loss_of(model, batch), rtol=1e-10, atol=1e-10
    )  # pictures that are not there are not seen
    assert not torch.allclose(loss_of(model, three), loss_of(model, batch))


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "fd6042d1")
def test_writing_is_reading_word_by_word(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81
    model = toy(4)
    batch = products(model)
    texts, words = model.generate(batch), model.vocabulary.words
    for i, text in enumerate(texts):
        said, image = [CLS], model.image_encoder(batch.features[i : i + 1]).tokens[0]
        while said[-1] != EOS and len(said) < len(model.position):
            ids = model.vocabulary.encode(batch.targets["title"][i])
            x = torch.cat(
                [
                    image + model.kind[0],
                    model.read(torch.tensor([ids]))[0] + model.kind[1],
                    model.read(torch.tensor([said]))[0] + model.kind[2],
                ]
            )[None]
            said.append(int(model.scores(model.stack(x, causal_mask(x.shape[1])))[0, -1].argmax()))
        assert text == " ".join(words[k] for k in said[1:] if k != EOS)
    with pytest.raises(ValueError, match="caption of 8 words, the context holds 7"):
        loss_of(
            model, products(model, titles=("cat and owl and dog and cat and"[:-4], "dog and cat and owl and a dog"))
        )


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "684476f9")
def test_equals_gpt2(setup_03c99e81):
    _, products, toy = setup_03c99e81
    model = toy(5)
    config = GPT2Config(
        vocab_size=len(model.vocabulary),
        n_embd=12,
        n_layer=2,
        n_head=3,
        n_positions=32,
        activation_function="gelu",
        layer_norm_epsilon=1e-5,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        tie_word_embeddings=False,
    )
    theirs = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        theirs.transformer.wpe.weight.zero_(), theirs.lm_head.weight.copy_(model.embed.weight * 12**-0.5)
        theirs.transformer.ln_f.load_state_dict(model.stack.norm.state_dict())
        for mine, block in zip(model.stack.layers, theirs.transformer.h):
            block.ln_1.load_state_dict(mine.norm1.state_dict()), block.ln_2.load_state_dict(mine.norm2.state_dict())
            a = mine.attention
            block.attn.c_attn.weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]).T)
            block.attn.c_attn.bias.copy_(torch.cat([a.query.bias, a.key.bias, a.value.bias]))
            for conv, linear in (
                (block.attn.c_proj, a.out),
                (block.mlp.c_fc, mine.feed_forward.up),
                (block.mlp.c_proj, mine.feed_forward.down),
            ):
                conv.weight.copy_(linear.weight.T), conv.bias.copy_(linear.bias)
        batch = products(model)
        before, ids = model.prefix(batch), batch.text.ids[:, :-1]
        x, real = torch.cat([before.x, model.read(ids) + model.kind[2]], 1), torch.cat([before.real, ids != PAD], 1)
        expected = (theirs(inputs_embeds=x, attention_mask=real.long()).logits + model.bias)[:, before.x.shape[1] :]
    torch.testing.assert_close(model.after(batch)[ids != PAD], expected[ids != PAD], rtol=1e-9, atol=1e-9)
    assert model.log_prob(batch)[0, 0].item() == pytest.approx(
        expected[0, 0].log_softmax(-1)[batch.text.ids[0, 1]].item()
    )


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "1884de44")
def test_a_frozen_language_model_stays(setup_03c99e81):
    loss_of, products, toy = setup_03c99e81
    model = freeze(toy(6, torch.float32), "embed", "position", "bias", "stack")
    kept = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss_of(model, products(model)).backward(), optimiser.step()
    assert {n.split(".")[0] for n in kept} == {"embed", "position", "bias", "stack"} and all(
        torch.equal(dict(model.named_parameters())[n], p) for n, p in kept.items()
    )
    assert model.image_encoder.map.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="unknown size 'whole': models.mantis has 'small'"):
        build("whole")


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "cbeb50e1")
def test_counted():
    def counted(prefix, words):
        return [(prefix + i, i) for i in range(words + 1)]  # row `prefix` holds [CLS]: it says the first word

    assert counted(16, 2) == [(16, 0), (17, 1), (18, 2)] and len(counted(0, 5)) == 6


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "cbeb50e1")
def test_counted_starter_fails():
    def counted(prefix, words):
        return [(prefix + i, i) for i in range(words)]

    with pytest.raises(Exception):
        assert counted(16, 2) == [(16, 0), (17, 1), (18, 2)] and len(counted(0, 5)) == 6


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "af0ba585")
def test_spoiled():
    def spoiled(title, nouns, rng):
        words = title.split(" and ")
        words[int(rng.integers(len(words)))] = str(rng.choice([n for n in nouns if n not in words]))
        return " and ".join(sorted(words))

    nouns = ["ant", "bee", "cat", "dog", "owl"]
    for seed in range(20):
        found = spoiled("cat and dog", nouns, np.random.default_rng(seed)).split(" and ")
        assert (
            len(set(found)) == 2
            and len(set(found) & {"cat", "dog"}) == 1
            and found == sorted(found)
            and set(found) <= set(nouns)
        )
        assert len(set(spoiled("owl", nouns, np.random.default_rng(seed)).split()) & {"owl"}) == 0


@pytest.mark.nb("nbs/5_prompting/26_mantis.ipynb", "af0ba585")
def test_spoiled_starter_fails():
    def spoiled(title, nouns, rng):
        return " and ".join(sorted(rng.choice(nouns, len(title.split(" and ")), replace=False)))

    with pytest.raises(Exception):
        nouns = ["ant", "bee", "cat", "dog", "owl"]
        for seed in range(20):
            found = spoiled("cat and dog", nouns, np.random.default_rng(seed)).split(" and ")
            assert (
                len(set(found)) == 2
                and len(set(found) & {"cat", "dog"}) == 1
                and found == sorted(found)
                and set(found) <= set(nouns)
            )
            assert len(set(spoiled("owl", nouns, np.random.default_rng(seed)).split()) & {"owl"}) == 0
