"""Generated from nbs/4_pretraining/15b_soho.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import math
import pytest
import torch
import torch.nn.functional as F
from vlp_course.data.pairs import Pairs
from vlp_course.data.pairs import Tokenized
from vlp_course.data.pairs import Vocabulary
from vlp_course.lab import row_of
from vlp_course.models.fusion import build_single
from vlp_course.nn.dictionary import VisualDictionary
from vlp_course.nn.encoders import ImageEncoder
from vlp_course.nn.encoders import TextEncoder
from vlp_course.nn.encoders import Tokens
from vlp_course.objectives_fused import mask_words
from vlp_course.models.soho import SOHO, build, mask_cells, mvm_loss


@pytest.fixture(scope="module")
def setup_26ac2a1c():
    def slow_losses(model, batch, ask, covered, chosen, hidden):
        one = lambda tokens, i: Tokens(*(x[int(i) : int(i) + 1] for x in tokens))
        grid, index = model.dictionary(model.cells(batch))
        image, text = model.look(grid), model.encode_text(batch.text)
        answer = lambda i, j: model.itm(model.fuse(one(image, i), one(text, j)).pooled)[0].log_softmax(0)
        itm = [-answer(i, i)[1] - answer(ask.wrong.image[i], i)[0] - answer(i, ask.wrong.text[i])[0] for i in ask.pairs]
        mlm, mvm = [], []
        for row, t in chosen.nonzero().tolist():
            i = int(ask.words[row])
            state = model.fuse(one(image, i), one(model.encode_text(covered), row)).tokens[0, t]
            mlm.append(-model.head(state, model.text_encoder.embed.weight).log_softmax(0)[batch.text.ids[i, t]])
        for row, i in enumerate(ask.cells.tolist()):
            masked = torch.stack([model.cover if hidden[row, c] else grid[i, c] for c in range(16)])
            stream, _ = model.fusion.stream(model.look(masked[None]), one(text, i))
            for c in hidden[row].nonzero()[:, 0].tolist():
                state = model.see(stream[0, batch.text.ids.shape[1] + c])
                cosines = torch.stack([torch.cosine_similarity(state, code, dim=0) for code in model.dictionary.embed])
                mvm.append(-(cosines / model.temperature).log_softmax(0)[index[i, c]])
        return {"itm": sum(itm) / (3 * len(itm)), "mlm": sum(mlm) / len(mlm), "mvm": sum(mvm) / max(1, len(mvm))}

    return slow_losses


@pytest.fixture(scope="module")
def setup_d00eaadb():
    WORDS = [f"w{i}" for i in range(9)]
    CAPTIONS = ["w0 w1", "w2 w3 w4 w5", "w6", "w7 w8 w0", "w1 w1 w2"]

    def toy(seed=0, started=True, **options):
        torch.manual_seed(seed)
        vocabulary = Vocabulary([*WORDS, "other"])
        model = SOHO(
            ImageEncoder(12, 3),
            TextEncoder(torch.randn(len(vocabulary), 12), 3),
            vocabulary,
            14,
            VisualDictionary(7, 12),
            dim=12,
            heads=3,
            **options,
        )
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
        if started:
            model.dictionary.embed.copy_(torch.randn(7, 12)), model.dictionary.started.fill_(True)
        return model.double()

    def toy_batch(captions=CAPTIONS, seed=1):
        torch.manual_seed(seed)
        text = Vocabulary([*WORDS, "other"]).tokenize(captions)
        return Pairs(
            None,
            list(captions),
            text,
            torch.arange(len(captions)),
            torch.randn(len(captions), 12288, dtype=torch.float64),
        )

    def run(model, batch, seed=3):
        return model(batch, step=0, generator=torch.Generator().manual_seed(seed))

    return run, toy, toy_batch


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "160df27d")
def test_every_cell_of_one_index():
    index = torch.tensor([[3, 3, 1, 3], [0, 2, 2, 5], [4, 4, 4, 4]])
    seen = [set() for _ in index]
    for seed in range(60):
        hidden = mask_cells(index, torch.Generator().manual_seed(seed))
        for row, (mask, found) in enumerate(zip(hidden, seen)):
            codes = index[row][mask].unique()
            assert len(codes) == 1 and torch.equal(mask, index[row] == codes)  # one code, all of its cells
            found.add(int(codes))
    assert seen == [{1, 3}, {0, 2, 5}, {4}]
    often = torch.stack([mask_cells(index, torch.Generator().manual_seed(s))[0, 0] for s in range(400)]).float().mean()
    assert 0.68 < often < 0.82  # three of four places hold code 3


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "8dd18dbc")
def test_mvm_by_hand_and_when_nothing_is_masked():
    codes = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    states = torch.tensor([[3.0, 0.0], [0.0, 0.1]], requires_grad=True)
    e = math.exp
    assert mvm_loss(states, codes, torch.tensor([0, 1]), 0.5).item() == pytest.approx(
        (math.log(1 + e(-2) + e(-4)) + math.log(1 + 2 * e(-2))) / 2, abs=1e-6
    )  # cosines 1, 0, -1 and 0, 1, 0
    nothing = mvm_loss(states[:0], codes, torch.tensor([], dtype=torch.long))
    nothing.backward()
    assert nothing.item() == 0 and (states.grad == 0).all()
    plain = F.cross_entropy(torch.zeros(0, 3), torch.tensor([], dtype=torch.long))
    assert plain.isnan()  # the documented failure: a mean of nothing
    with torch.autocast("cpu", torch.bfloat16):
        assert mvm_loss(states, codes, torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "a2f28652")
def test_losses_equal_a_loop(setup_d00eaadb, setup_26ac2a1c):
    run, toy, toy_batch = setup_d00eaadb
    slow_losses = setup_26ac2a1c
    for seed, masked in ((0, 0.5), (1, 0.2), (2, 0.0)):
        model, batch, generator = toy(seed, masked=masked), toy_batch(), torch.Generator().manual_seed(3)
        ask = model.ask(batch.caption, generator, "cpu")  # the same draws again
        covered, chosen = mask_words(Tokenized(*(x[ask.words] for x in batch.text)), 14, 0.5, generator)
        hidden = mask_cells(model.dictionary(model.cells(batch))[1][ask.cells], generator)
        assert sorted([*ask.cells.tolist(), *ask.words.tolist()]) == [0, 1, 2, 3, 4] and len(ask.cells) == round(
            5 * masked
        )
        found, slow = run(model, batch).losses, slow_losses(model, batch, ask, covered, chosen, hidden)
        for name in ("itm", "mlm", "mvm"):
            torch.testing.assert_close(found[name], torch.as_tensor(slow[name], dtype=torch.float64))
        assert (found["mvm"] == 0) == (masked == 0)


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "ba7f1a18")
def test_before_the_start_cells_pass_and_nobody_is_asked_for_them(setup_d00eaadb):
    run, toy, toy_batch = setup_d00eaadb
    model, batch = toy(started=False), toy_batch()
    out = run(model, batch)
    assert out.losses["mvm"] == 0 and out.losses["mlm"] > 0 and sum(out.losses.values()).isfinite()
    image = model.encode_image(batch)
    torch.testing.assert_close(image.tokens, model.image_encoder(batch.features).tokens)  # as the shared tower sees it
    model.after_step(out.state, 0)
    assert model.dictionary.started and run(model, batch).losses["mvm"] > 0
    assert not torch.allclose(model.encode_image(batch).tokens, image.tokens)


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "fb2aebb0")
def test_who_learns_what(setup_d00eaadb):
    run, toy, toy_batch = setup_d00eaadb
    model, batch = toy(), toy_batch()
    losses, reached = run(model, batch).losses, {}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        reached[name] = {
            key.split(".")[0]
            for (key, _), g in zip(model.named_parameters(), grads)
            if g is not None and g.abs().max() > 0
        }
    both = {"image_encoder", "text_encoder", "fusion"}
    assert reached == {"itm": both | {"itm"}, "mlm": both | {"head"}, "mvm": both | {"cover", "see"}}
    grads = torch.autograd.grad(losses["itm"], model.image_encoder.project.weight)[0]
    assert grads.abs().sum() > 0  # straight through the codes
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, again = run(model, batch), run(model, batch)
    assert all(first.losses[k] == again.losses[k] for k in losses) and all(
        v.equal(before[k]) for k, v in model.state_dict().items()
    )
    with pytest.raises(ValueError, match="item 0 of a batch of 2 has no wrong partner to draw"):
        run(model, toy_batch(["w0 w1", "w0 w1"]))


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "49e46629")
def test_what_is_masked_does_not_reach_the_answer(setup_d00eaadb):
    run, toy, toy_batch = setup_d00eaadb
    model, batch, looked = toy(masked=1.0, asked=0.2), toy_batch(), []
    model.look = lambda grid: looked.append(grid) or SOHO.look(model, grid)
    run(model, batch)
    index = model.dictionary(model.cells(batch))[1]
    grid = looked[0]
    assert len(looked[0]) == 9  # five open pictures, four masked
    for row, masked in zip(model.ask(batch.caption, torch.Generator().manual_seed(3), "cpu").cells, grid[5:]):
        covered = (masked == model.cover).all(1)
        codes = index[row][covered].unique()
        assert len(codes) == 1 and torch.equal(covered, index[row] == codes)  # not one cell of this code is left


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "fd2b5ae1")
def test_the_row_of_the_board():
    model, plain, row = build(seed=3), build_single(3), row_of("soho")
    assert (row.title, row.builder, row.sets, row.families) == ("SOHO", "soho:build", ("seen",), 1.0)
    for tower in ("image_encoder", "text_encoder"):
        assert all(
            a.equal(b)
            for a, b in zip(getattr(model, tower).parameters(), getattr(plain, tower).parameters(), strict=True)
        )
    assert model.image_encoder.project.lr_scale == model.top.lr_scale == 0.1 and not hasattr(
        plain.image_encoder.project, "lr_scale"
    )
    assert "dictionary.embed" in model.state_dict() and model.dictionary.embed.shape == (256, 128)
    with pytest.raises(ValueError, match="unknown size 'huge': models.soho has 'small'"):
        build("huge")


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "6138d131")
def test_floor():
    def floor(codes, temperature=1.0):
        return math.log(1 + (codes - 1) * math.exp(-1 / temperature))

    codes = torch.eye(12)
    for temperature in (1.0, 0.1):
        assert floor(12, temperature) == pytest.approx(
            mvm_loss(3 * codes, codes, torch.arange(12), temperature).item(), abs=1e-6
        )
    assert math.log(2048) - floor(2048) < 1  # less than one nat of 7.6


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "6138d131")
def test_floor_starter_fails():
    def floor(codes, temperature=1.0):
        return math.log(1 + (codes - 1) * math.exp(-temperature))

    with pytest.raises(Exception):
        codes = torch.eye(12)
        for temperature in (1.0, 0.1):
            assert floor(12, temperature) == pytest.approx(
                mvm_loss(3 * codes, codes, torch.arange(12), temperature).item(), abs=1e-6
            )
        assert math.log(2048) - floor(2048) < 1  # less than one nat of 7.6


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "5838bd30")
def test_leak():
    def leak(index, hidden):
        same = index[:, :, None] == index[:, None]  # batch cells cells
        return (same & ~hidden[:, None]).any(2)[hidden].float().mean()

    index = torch.tensor([[1, 1, 2, 3], [4, 4, 4, 4]])
    one = torch.tensor([[True, False, True, False], [False, False, False, True]])
    assert leak(index, one).item() == pytest.approx(2 / 3)  # a 1 and a 4 are open, no 2 is
    grid = torch.randint(0, 9, (50, 16), generator=torch.Generator().manual_seed(0))
    assert leak(grid, mask_cells(grid, torch.Generator().manual_seed(1))) == 0


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "5838bd30")
def test_leak_starter_fails():
    def leak(index, hidden):
        return hidden.float().mean()

    with pytest.raises(Exception):
        index = torch.tensor([[1, 1, 2, 3], [4, 4, 4, 4]])
        one = torch.tensor([[True, False, True, False], [False, False, False, True]])
        assert leak(index, one).item() == pytest.approx(2 / 3)  # a 1 and a 4 are open, no 2 is
        grid = torch.randint(0, 9, (50, 16), generator=torch.Generator().manual_seed(0))
        assert leak(grid, mask_cells(grid, torch.Generator().manual_seed(1))) == 0


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "d9f06b59")
def test_without_dictionary(setup_d00eaadb):
    _, toy, toy_batch = setup_d00eaadb

    def without_dictionary(model, batch):
        return model.look(model.cells(batch))

    model, batch = toy(), toy_batch()
    torch.testing.assert_close(without_dictionary(model, batch).tokens, toy(started=False).encode_image(batch).tokens)
    assert model.dictionary.started


@pytest.mark.nb("nbs/4_pretraining/15b_soho.ipynb", "d9f06b59")
def test_without_dictionary_starter_fails(setup_d00eaadb):
    _, toy, toy_batch = setup_d00eaadb

    def without_dictionary(model, batch):
        return model.encode_image(batch)

    with pytest.raises(Exception):
        model, batch = toy(), toy_batch()
        torch.testing.assert_close(
            without_dictionary(model, batch).tokens, toy(started=False).encode_image(batch).tokens
        )
        assert model.dictionary.started
