"""Generated from nbs/4_pretraining/16_prefix_lm.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import pytest
import torch
import torch.nn.functional as F
from vlp_course.data.pairs import PAD
from vlp_course.models.captioning import CaptionDecoder
from vlp_course.nn.attention import KeyValueCache
from vlp_course.nn.attention import causal_mask
from vlp_course.nn.prefix import (
    OneStack,
    TwoStacks,
    prefix_lm_loss,
    prefix_mask,
    sample_prefix,
    split_prefix,
    suffix_log_prob,
)


@pytest.fixture(scope="module")
def setup_da5c7355():
    def slow_two(model, row, k, image):
        """log p of each written token by an encoder and a decoder: one caption (no padding), one question at a time."""
        x = torch.cat([image, model.read(row[None, : k + 1])[0]])[None]
        memory, costs = model.encoder(x), []
        for t in range(k + 1, len(row)):
            states = model.decoder(model.embed(row[None, k:t]) + model.position[k:t], memory)
            costs.append(model.scores(states)[0, -1].log_softmax(-1)[row[t]])
        return torch.stack(costs)

    def slow_one(model, row, k, image):
        """The same by one stack, in two steps: the prefix at once and both ways, then each word with keys and values in memory."""
        x, caches, costs = (
            torch.cat([image, model.read(row[None, : k + 1])[0]])[None],
            [KeyValueCache() for _ in model.stack.layers],
            [],
        )
        for t in range(k + 1, len(row)):
            for layer, cache in zip(model.stack.layers, caches):
                x = layer(x, None, cache)
            costs.append(model.scores(model.stack.norm(x))[0, -1].log_softmax(-1)[row[t]])
            x = model.embed(row[None, t : t + 1]) + model.position[t]
        return torch.stack(costs)

    def small(kind, seed=0, **options):
        """Eleven words, width 12, three heads; all weights random and large, so that no norm or bias hides."""
        torch.manual_seed(seed)
        model = kind(torch.randn(11, 12), 3, context=9, **options)
        for p in model.parameters():
            p.data = 0.4 * torch.randn_like(p) + (p.ndim == 1)
        return model.double()

    IDS = torch.tensor([[2, 5, 7, 9, 6, 3], [2, 8, 3, 0, 0, 0], [2, 6, 10, 5, 3, 0]])
    PICTURE = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1)).double()
    CUTS = (torch.tensor([0, 0, 0]), torch.tensor([2, 0, 1]), torch.tensor([4, 1, 3]))
    BOTH = ((TwoStacks, slow_two, {"encoder_layers": 2, "decoder_layers": 2}), (OneStack, slow_one, {"layers": 2}))
    return BOTH, CUTS, IDS, PICTURE, small


@pytest.fixture(scope="module")
def setup_f8224527(setup_da5c7355):
    _, _, IDS, PICTURE, _ = setup_da5c7355

    def moved(model, words, place):
        """Which predictions (row 0) move when the token at a place of the caption changes."""
        other = IDS.clone()
        other[0, place] = 4
        (a, _), (b, _) = model(IDS, words, PICTURE), model(other, words, PICTURE)
        return ((a - b)[0].abs().amax(1) > 1e-9).tolist()

    return moved


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "835e4489")
def test_a_mask_by_hand():
    real = torch.tensor([[True] * 5, [True, True, True, True, False], [False, True, True, True, True]])
    found = prefix_mask(torch.tensor([2, 0, 3]), real).int().tolist()
    assert found[0] == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert found[1] == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]  # plain causal, one pad
    assert found[2] == [
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
    ]  # a picture that is not there
    with pytest.raises(ValueError, match="prefixes from 0 to 6 tokens do not fit into rows of 5"):
        prefix_mask(torch.tensor([2, 0, 6]), real)


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "8cffb2d2")
def test_a_cut_by_hand():
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0], [2, 5, 6, 3, 0]])
    cut = split_prefix(ids, torch.tensor([2, 0, 2]))
    assert cut.prefix.tolist() == [[2, 7, 8], [2, 0, 0], [2, 5, 6]]
    assert cut.suffix.tolist() == [[8, 9], [2, 6], [6, 0]] and cut.targets.tolist() == [[9, 3], [6, 3], [3, 0]]
    assert cut.places[:, 0].tolist() == [2, 0, 2] and cut.places[:2, 1].tolist() == [3, 1]
    with pytest.raises(ValueError, match="row 1 of 1 words cannot be cut after 2"):
        split_prefix(ids, torch.tensor([2, 2, 0]))
    with pytest.raises(ValueError, match="row 0 of 3 words cannot be cut after -1"):
        split_prefix(ids, torch.tensor([-1, 0, 0]))


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "246ea86b")
def test_nothing_is_lost_at_any_cut():
    ids = torch.tensor([[2, 7, 8, 9, 6, 3], [2, 6, 3, 0, 0, 0]])
    for k in range(5):
        words = torch.tensor([k, min(k, 1)])
        cut = split_prefix(ids, words)
        for row in range(2):
            whole = [t for t in cut.prefix[row].tolist() + cut.targets[row].tolist() if t != PAD]
            assert whole == [t for t in ids[row].tolist() if t != PAD]
    wide = F.pad(ids, (0, 3))  # more padding changes nothing
    assert all(torch.equal(a, b) for a, b in zip(split_prefix(ids, words), split_prefix(wide, words)))


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "5607af50")
def test_cuts_are_even_and_each_caption_has_its_own():
    ids = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]]).repeat(3000, 1)
    draws = sample_prefix(ids, torch.Generator().manual_seed(0))
    share = torch.bincount(draws[::2], minlength=4) / 3000
    assert share[3] == 0 and (share[:3] - 1 / 3).abs().max() < 0.04  # four deviations are 0.035
    assert (draws[1::2] == 0).all() and len(draws[::2].unique()) == 3
    written = (split_prefix(ids, draws).targets != PAD).sum(1)[::2].float().mean()
    assert abs(written - 3) < 0.1  # (n + 1) / 2 + 1 with n = 3, of 4
    half = sample_prefix(ids, torch.Generator().manual_seed(0), none=0.5)
    assert (
        abs((half[::2] == 0).float().mean() - 2 / 3) < 0.05
        and (sample_prefix(ids, torch.Generator(), none=1.0) == 0).all()
    )
    assert torch.equal(draws, sample_prefix(ids, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="row 1 holds 0 words"):
        sample_prefix(torch.tensor([[2, 7, 3], [2, 3, 0]]), torch.Generator())
    with pytest.raises(ValueError, match="none is 1.5"):
        sample_prefix(ids, torch.Generator(), none=1.5)


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "4c483252")
def test_a_loss_by_hand():
    logits = (
        torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], [[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]]])) + 5.0
    )  # a shift is no matter
    targets = torch.tensor([[1, 1], [2, PAD]])
    torch.testing.assert_close(suffix_log_prob(logits, targets), torch.tensor([0.25 * 0.8, 0.6]).log())
    torch.testing.assert_close(prefix_lm_loss(logits, targets), -torch.tensor(0.25 * 0.8 * 0.6).log() / 3)
    torch.testing.assert_close(
        prefix_lm_loss(logits, targets), F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD)
    )
    moved = logits.clone()
    moved[1, 1] = torch.tensor([9.0, -9.0, 3.0])  # where nothing is written
    assert torch.equal(prefix_lm_loss(moved, targets), prefix_lm_loss(logits, targets))
    with pytest.raises(ValueError, match=r"all targets are \[PAD\]: nothing is written"):
        prefix_lm_loss(logits, torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "7ffe01f5")
def test_fast_equals_slow(setup_da5c7355):
    BOTH, CUTS, IDS, PICTURE, small = setup_da5c7355
    for kind, slow, options in BOTH:
        model = small(kind, **options)
        for words in CUTS:
            for image in (PICTURE, PICTURE[:, :0]):  # with a picture, and text alone
                logits, targets = model(IDS, words, image if image.shape[1] else None)
                found = [slow(model, row[row != PAD], int(k), picture) for row, k, picture in zip(IDS, words, image)]
                torch.testing.assert_close(
                    suffix_log_prob(logits, targets), torch.stack([f.sum() for f in found]), rtol=0, atol=1e-9
                )
                torch.testing.assert_close(prefix_lm_loss(logits, targets), -torch.cat(found).mean(), rtol=0, atol=1e-9)


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "cec0a54d")
def test_a_masked_picture_is_no_picture(setup_da5c7355):
    BOTH, CUTS, IDS, PICTURE, small = setup_da5c7355
    for kind, _, options in BOTH:
        model, words = small(kind, **options), CUTS[1]
        alone, _ = model(IDS, words)
        seen, _ = model(IDS, words, PICTURE)
        mask = torch.tensor([[True] * 4, [False] * 4, [True] * 4])
        some, targets = model(IDS, words, PICTURE, mask)
        torch.testing.assert_close(some[[0, 2]], seen[[0, 2]], rtol=0, atol=1e-10)  # a batch may mix both kinds of rows
        torch.testing.assert_close(some[1][targets[1] != PAD], alone[1][targets[1] != PAD], rtol=0, atol=1e-10)
        assert not torch.allclose(some[0], alone[0])


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "6b2c9949")
def test_a_text_beyond_the_places(setup_da5c7355):
    BOTH, _, _, _, small = setup_da5c7355
    for kind, _, options in BOTH:
        with pytest.raises(
            ValueError, match="text of 1[01] tokens: this model has places for 9"
        ):  # an encoder-decoder never reads [EOS]
            small(kind, **options)(torch.tensor([[2, *[5] * 9, 3]]), torch.tensor([0]))


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "547e2e0e")
def test_the_same_information(setup_da5c7355, setup_f8224527):
    BOTH, _, IDS, PICTURE, small = setup_da5c7355
    moved = setup_f8224527
    for k in (0, 1, 3):
        words, tables = torch.tensor([k, 0, 0]), []
        for kind, _, options in BOTH:
            model = small(kind, **options)
            tables.append([moved(model, words, place)[: 5 - k] for place in range(5)])
        rule = [[place <= k or place <= k + t for t in range(5 - k)] for place in range(5)]
        assert tables[0] == tables[1] == rule
        assert torch.equal(*(small(kind, **options)(IDS, words, PICTURE)[1] for kind, _, options in BOTH))


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "f27a4a37")
def test_what_is_read_is_deaf_to_what_is_written(setup_da5c7355):
    _, _, IDS, PICTURE, small = setup_da5c7355
    model, words = small(OneStack), torch.tensor([2, 0, 1])
    other = IDS.clone()
    other[0, 3] = 4  # the first written word of row 0
    same = (model.states(IDS, words, PICTURE) - model.states(other, words, PICTURE))[0].abs().amax(1) < 1e-12
    assert same.tolist() == [True, True, True, False, False, False]
    early = IDS.clone()
    early[0, 2] = 4  # the last word that is read: all before it hear
    assert (
        not (model.states(IDS, words, PICTURE) - model.states(early, words, PICTURE))[0, :2]
        .abs()
        .amax(1)
        .lt(1e-6)
        .any()
    )


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "6122fea0")
def test_nothing_read_and_no_picture_is_a_language_model(setup_da5c7355):
    _, CUTS, IDS, _, small = setup_da5c7355
    two, one = small(TwoStacks, decoder_layers=2), small(OneStack, seed=1)
    one.load_state_dict(
        {
            name.replace("decoder", "stack"): value
            for name, value in two.state_dict().items()
            if not any(part in name for part in ("encoder", "cross"))
        }
    )
    for layer in two.layers:
        layer.cross.out.weight.data.zero_(), layer.cross.out.bias.data.zero_()
    (a, right), (b, _) = two(IDS, CUTS[0]), one(IDS, CUTS[0])
    torch.testing.assert_close(a[right != PAD], b[right != PAD], rtol=0, atol=1e-10)
    causal = one.scores(one.stack(one.read(IDS), causal_mask(6)))[:, :5]  # 03's mask and nothing else
    torch.testing.assert_close(b[right != PAD], causal[right != PAD], rtol=0, atol=1e-10)
    (a, right), (b, _) = two(IDS, CUTS[1]), one(IDS, CUTS[1])  # with a prefix they part
    assert not torch.allclose(a[0, 1], b[0, 1], atol=1e-3)


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "a5064afa")
def test_nothing_read_is_captioning(setup_da5c7355):
    _, CUTS, IDS, PICTURE, small = setup_da5c7355
    model = small(TwoStacks, decoder_layers=2)
    captioner = CaptionDecoder(torch.randn(11, 12), 3, 2, context=9).double()
    captioner.load_state_dict(
        {
            name.removeprefix("decoder."): value
            for name, value in model.state_dict().items()
            if not name.startswith("encoder")
        }
    )
    memory, _ = model.encode(IDS[:, :1], PICTURE)
    logits, targets = model(IDS, CUTS[0], PICTURE)
    plain = captioner(IDS[:, :-1], memory)
    torch.testing.assert_close(logits[targets != PAD], plain[targets != PAD], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        prefix_lm_loss(logits, targets), F.cross_entropy(plain.flatten(0, 1), IDS[:, 1:].flatten(), ignore_index=PAD)
    )


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "d5db0e28")
def test_gradients_reach_all_that_is_read(setup_da5c7355):
    BOTH, _, IDS, PICTURE, small = setup_da5c7355
    for kind, _, options in BOTH:
        model, picture = small(kind, **options), PICTURE.clone().requires_grad_(True)
        logits, targets = model(IDS, torch.tensor([2, 0, 1]), picture)
        prefix_lm_loss(logits, targets).backward()
        assert (picture.grad.abs().amax(2) > 0).all() and all(
            p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "key.bias" not in name
        )
        places = model.position.grad.abs().sum(1) > 0
        assert places.tolist() == [True] * 5 + [False] * 4  # not [EOS], which nobody reads


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "be0cf90d")
def test_written_share():
    def written_share(n):
        return ((n + 1) / 2 + 1) / (n + 1)

    for n in (1, 4, 7):
        ids = torch.tensor([[2, *[5] * n, 3]]).repeat(n, 1)
        written = (split_prefix(ids, torch.arange(n)).targets != PAD).float().sum()
        assert abs(written_share(n) - written / (n * (n + 1))) < 1e-6


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "be0cf90d")
def test_written_share_starter_fails():
    def written_share(n):
        return 0.5

    with pytest.raises(Exception):
        for n in (1, 4, 7):
            ids = torch.tensor([[2, *[5] * n, 3]]).repeat(n, 1)
            written = (split_prefix(ids, torch.arange(n)).targets != PAD).float().sum()
            assert abs(written_share(n) - written / (n * (n + 1))) < 1e-6


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "82e02547")
def test_gap(setup_da5c7355):
    BOTH, CUTS, IDS, _, small = setup_da5c7355

    def gap(model, ids, words):
        logits, targets = model(ids, torch.zeros_like(words))
        later = torch.arange(targets.shape[1]) >= words[:, None]
        return suffix_log_prob(logits, targets.where(later, PAD)) - suffix_log_prob(*model(ids, words))

    for kind, _, options in BOTH:
        model = small(kind, **options)
        torch.testing.assert_close(gap(model, IDS, CUTS[0]), torch.zeros(3).double())
        whole, first = suffix_log_prob(*model(IDS, CUTS[0])), model(IDS, CUTS[0])
        start = first[1].where(torch.arange(5) < CUTS[1][:, None], PAD)
        found = whole - suffix_log_prob(first[0], start) - suffix_log_prob(*model(IDS, CUTS[1]))
        torch.testing.assert_close(gap(model, IDS, CUTS[1]), found, rtol=0, atol=1e-9)
        assert gap(model, IDS, CUTS[1])[0].abs() > 1e-3


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "82e02547")
def test_gap_starter_fails(setup_da5c7355):
    BOTH, CUTS, IDS, _, small = setup_da5c7355

    def gap(model, ids, words):
        return torch.zeros(len(ids))

    with pytest.raises(Exception):
        for kind, _, options in BOTH:
            model = small(kind, **options)
            torch.testing.assert_close(gap(model, IDS, CUTS[0]), torch.zeros(3).double())
            whole, first = suffix_log_prob(*model(IDS, CUTS[0])), model(IDS, CUTS[0])
            start = first[1].where(torch.arange(5) < CUTS[1][:, None], PAD)
            found = whole - suffix_log_prob(first[0], start) - suffix_log_prob(*model(IDS, CUTS[1]))
            torch.testing.assert_close(gap(model, IDS, CUTS[1]), found, rtol=0, atol=1e-9)
            assert gap(model, IDS, CUTS[1])[0].abs() > 1e-3


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "b2dcd0df")
def test_unilm_prefix():
    def unilm_prefix(ids, generator):
        kind, words = torch.randint(3, (len(ids),), generator=generator), (ids != PAD).sum(1) - 2
        return torch.stack([torch.zeros_like(words), words - 1, sample_prefix(ids, generator)])[
            kind, torch.arange(len(ids))
        ]

    ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 5, 6, 3, 0, 0]]).repeat(2000, 1)
    share = torch.bincount(unilm_prefix(ids, torch.Generator().manual_seed(0))[::2], minlength=5) / 2000
    assert (share - torch.tensor([5, 1, 1, 5, 0]) / 12).abs().max() < 0.05


@pytest.mark.nb("nbs/4_pretraining/16_prefix_lm.ipynb", "b2dcd0df")
def test_unilm_prefix_starter_fails():
    def unilm_prefix(ids, generator):
        return sample_prefix(ids, generator)

    with pytest.raises(Exception):
        ids = torch.tensor([[2, 5, 6, 7, 8, 3], [2, 5, 6, 3, 0, 0]]).repeat(2000, 1)
        share = torch.bincount(unilm_prefix(ids, torch.Generator().manual_seed(0))[::2], minlength=5) / 2000
        assert (share - torch.tensor([5, 1, 1, 5, 0]) / 12).abs().max() < 0.05
