"""Generated from nbs/1_foundations/04a_decoding.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import itertools
import math
import pytest
import torch
from vlp_course.nn.transformer import Decoder
from vlp_course.nn.transformer import DecoderState
from vlp_course.nn.transformer import TextDecoder
from vlp_course.nn.transformer import TokenEmbedding
from vlp_course.decoding import beam_search, greedy, keep_nucleus, length_norm, nucleus


@pytest.fixture(scope="module")
def setup_7c0caa1d():
    EOS = 3

    class Oracle:
        """Scores from a table of prefixes, made up at random on first sight; complains if rows are not where it was told."""

        def __init__(self, seed=0, vocab=4, sharpness=1.5):
            self.seed, self.vocab, self.sharpness, self.seen = seed, vocab, sharpness, None

        def of(self, prefix):
            g = torch.Generator().manual_seed(hash((self.seed, *prefix)) % 2**31)
            return self.sharpness * torch.randn(self.vocab, generator=g, dtype=torch.float64)

        def logits(self, ids):
            if self.seen is not None:
                assert ids.shape[1] == self.seen.shape[1] + 1 and ids[:, :-1].equal(self.seen), (
                    "these are not the rows that were selected"
                )
            self.seen = ids
            return torch.stack([self.of(row) for row in ids.tolist()])

        def select(self, rows):
            self.seen = self.seen[rows]

    class Table(Oracle):
        """Probabilities written by hand: {words so far: {word: probability}}."""

        def __init__(self, table, vocab=4):
            self.table, self.vocab, self.seen = table, vocab, None

        def of(self, prefix):
            p = torch.zeros(self.vocab, dtype=torch.float64)
            for word, value in self.table.get(tuple(prefix[1:]), {EOS: 1.0}).items():
                p[word] = value
            return p.log()

    def score(oracle, start, words, ended, alpha):
        """Sum of log-probabilities of the words after a start, and of the end, over the length norm."""
        total, prefix = 0.0, list(start)
        for word in [*words, *[EOS] * ended]:
            total, prefix = total + oracle.of(prefix).log_softmax(-1)[word].item(), [*prefix, word]
        return total / length_norm(len(words) + ended, alpha)

    def exhaustive(oracle, start, limit, alpha):
        """The best ended sequence of all."""
        others = [w for w in range(oracle.vocab) if w != EOS]
        every = [words for n in range(limit) for words in itertools.product(others, repeat=n)]
        return list(max(every, key=lambda words: score(oracle, start, words, True, alpha)))

    return EOS, Oracle, Table, exhaustive, score


@pytest.fixture(scope="module")
def setup_5d8bb063():
    class Forgetful:
        """The same contract without a memory: all of every prefix is computed each time."""

        def __init__(self, model):
            self.model = model

        def logits(self, ids):
            return self.model(ids)[:, -1]

        def select(self, rows):
            pass

    def language_model(vocab, dim=32, heads=4, layers=2, places=64):
        return TextDecoder(TokenEmbedding(vocab, dim, places), Decoder(dim, heads, layers, cross=False)).eval()

    return Forgetful, language_model


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "f52a4f42")
def test_greedy_by_hand(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d
    table = {(): {0: 0.6, 1: 0.4}, (0,): {0: 0.3, 1: 0.3, 2: 0.25, EOS: 0.15}, (1,): {EOS: 1.0}, (0, 0): {EOS: 1.0}}
    start = torch.tensor([[9], [9]])
    assert greedy(Table(table), start, EOS, 5) == [[0, 0], [0, 0]]  # 0.6 * 0.3 = 0.18 ...
    assert beam_search(Table(table), start, EOS, 5, beams=2, length_penalty=0) == [[1], [1]]  # ... and 0.4 was there
    assert greedy(Table(table), start, EOS, 1) == [[0], [0]]  # cut at the limit


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "8cf15a38")
def test_rows_end_apart(setup_7c0caa1d):
    EOS, Oracle, _, _, _ = setup_7c0caa1d
    for seed in range(20):
        starts = torch.tensor([[5, 1], [5, 2], [6, 0]])
        for search in (greedy, beam_search):
            together = search(Oracle(seed), starts, EOS, 6)
            assert together == [
                search(Oracle(seed), row[None], EOS, 6)[0] for row in starts
            ]  # neighbours change nothing
            assert all(EOS not in words and len(words) <= 6 for words in together)


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "6398d3b1")
def test_one_beam_is_greedy(setup_7c0caa1d):
    EOS, Oracle, _, _, _ = setup_7c0caa1d
    for seed in range(30):
        start = torch.tensor([[5], [6]])
        assert beam_search(Oracle(seed), start, EOS, 6, beams=1) == greedy(Oracle(seed), start, EOS, 6)


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "13b2ad16")
def test_unlikely_ends_do_not_crowd_out_the_sentence(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d
    right = {(): 1, (1,): 2, (1, 2): 1, (1, 2, 1): EOS}
    chain = {
        prefix: {w: 0.97 if w == word else 0.02 if w == EOS else 0.005 for w in range(4)}
        for prefix, word in right.items()
    }
    for beams in (1, 2, 3, 4):  # each word almost certain, an end of 2 % before each
        assert beam_search(Table(chain), torch.tensor([[0]]), EOS, 6, beams=beams, length_penalty=0) == [[1, 2, 1]], (
            beams
        )


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "0e28b5c7")
def test_many_beams_are_exhaustive(setup_7c0caa1d):
    EOS, Oracle, _, exhaustive, _ = setup_7c0caa1d
    found = set()
    for seed in range(12):
        for alpha in (0.0, 0.6, 2.0):
            start = torch.tensor([[5], [6]])
            best = [exhaustive(Oracle(seed), row, 4, alpha) for row in start.tolist()]
            assert beam_search(Oracle(seed), start, EOS, 4, beams=100, length_penalty=alpha) == best
            found |= {len(words) for words in best}
    assert len(found) > 2  # short and long ones


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "20302dce")
def test_more_beams_find_better(setup_7c0caa1d):
    EOS, Oracle, _, _, score = setup_7c0caa1d

    def mean_score(beams):
        scores = []
        for seed in range(60):
            words = beam_search(Oracle(seed), torch.tensor([[5]]), EOS, 8, beams, 0)[0]
            scores.append(score(Oracle(seed), [5], words, len(words) < 8, 0))
        return sum(scores) / len(scores)

    assert mean_score(1) + 0.2 < mean_score(2) and mean_score(2) + 0.02 < mean_score(8)


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "f9af6b4c")
def test_length_norm_by_hand(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d
    assert length_norm(1, 0.6) == 1 and length_norm(7, 1) == 2 and length_norm(7, 0) == 1
    table = {
        (): {EOS: 0.4, 0: 0.6},
        (0,): {0: 1.0},
        (0, 0): {0: 0.55, 1: 0.45},
        (0, 0, 0): {EOS: 1.0},
        (0, 0, 1): {EOS: 1.0},
    }
    start = torch.tensor([[9]])
    assert beam_search(Table(table), start, EOS, 6, 3, 0) == [[]]  # log 0.4 against log 0.33
    assert beam_search(Table(table), start, EOS, 6, 3, 1) == [
        [0, 0, 0]
    ]  # log 0.4 against log 0.33 * 6 / 9: -0.92, -0.74
    assert beam_search(Table({(): {0: 1.0}, (0,): {0: 0.9, EOS: 0.1}}), start, EOS, 2, 2, 0) == [[0]]  # ended beats cut
    assert beam_search(Table({(): {0: 0.9, 1: 0.1}}), start, EOS, 1, 2, 0) == [[0]]  # nothing has ended


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "2599dc90")
def test_nucleus_by_hand():
    log_probs = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    kept = lambda p: keep_nucleus(log_probs, p).isfinite().int().tolist()
    assert kept(0.5) == [[1, 0, 0, 0], [0, 0, 1, 1]] and kept(0.51) == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert (
        kept(0.75) == [[1, 1, 0, 0], [0, 1, 1, 1]]
        and kept(1.0) == [[1] * 4] * 2
        and kept(1e-9) == [[1, 0, 0, 0], [0, 0, 0, 1]]
    )
    assert keep_nucleus(torch.full((1, 5000), -math.log(5000)), 1.0).isfinite().all()  # no token is lost to rounding
    assert keep_nucleus(log_probs[:, [2, 0, 3, 1]], 0.75)[0].isfinite().tolist() == [
        False,
        True,
        False,
        True,
    ]  # unsorted


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "e80456f9")
def test_nucleus_draws_the_model(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d
    p, rows = {0: 0.5, 1: 0.3, 2: 0.15, EOS: 0.05}, 8000

    def shares(**options):
        drawn = nucleus(
            Table({(): p}), torch.full((rows, 1), 9), EOS, 1, generator=torch.Generator().manual_seed(1), **options
        )
        return torch.tensor([words[0] if words else EOS for words in drawn]).bincount(minlength=4) / rows

    probability = torch.tensor(list(p.values()))
    four_errors = 4 * (0.25 / rows) ** 0.5
    for options, expected in (
        ({"top_p": 1}, probability),
        ({"top_p": 0.75}, torch.tensor([0.5, 0.3, 0, 0]) / 0.8),
        ({"top_p": 1, "temperature": 2.0}, probability.sqrt() / probability.sqrt().sum()),
        ({"top_p": 1, "temperature": 0.5}, probability.square() / probability.square().sum()),
        ({"top_p": 0.6, "temperature": 2.0}, torch.tensor([0.5, 0.3, 0, 0]).sqrt() / (0.5**0.5 + 0.3**0.5)),
    ):
        assert (shares(**options) - expected).abs().max() < four_errors, options


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "81a0a062")
def test_nucleus_repeats_itself(setup_7c0caa1d):
    EOS, Oracle, _, _, _ = setup_7c0caa1d
    start = torch.tensor([[5], [6], [7]])
    draw = lambda seed, **options: nucleus(
        Oracle(), start, EOS, 9, generator=torch.Generator().manual_seed(seed), **options
    )
    assert draw(1) == draw(1) and draw(1) != draw(2)
    assert draw(1, top_p=1e-9) == draw(2, temperature=1e-3) == greedy(Oracle(), start, EOS, 9)


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "5b59acb6")
def test_misuse_of_search(setup_7c0caa1d):
    EOS, Oracle, Table, _, _ = setup_7c0caa1d
    start = torch.tensor([[5]])
    for search in (greedy, beam_search, nucleus):
        with pytest.raises(ValueError, match="0 start tokens and a limit of 4: each must be at least 1"):
            search(Oracle(), start[:, :0], EOS, 4)
        with pytest.raises(ValueError, match="1 start tokens and a limit of 0: each must be at least 1"):
            search(Oracle(), start, EOS, 0)
        with pytest.raises(
            ValueError, match=r"scores of shape \(1, 4\) for 1 rows and the end token 7: .* a vocabulary that holds 7"
        ):
            search(Oracle(), start, 7, 4)
        with pytest.raises(ValueError, match=r"the scores after 1 tokens hold NaN or allow no token \(row 0\)"):
            search(Table({(): {}}), start, EOS, 4)
    with pytest.raises(ValueError, match="0 beams and a length penalty of 0.6: expected at least 1 and 0"):
        beam_search(Oracle(), start, EOS, 4, beams=0)
    with pytest.raises(ValueError, match="4 beams and a length penalty of -1: expected"):
        beam_search(Oracle(), start, EOS, 4, length_penalty=-1)
    with pytest.raises(ValueError, match="top_p 0: expected a probability above 0 and at most 1"):
        nucleus(Oracle(), start, EOS, 4, top_p=0)
    with pytest.raises(ValueError, match="top_p 1.5: expected"):
        nucleus(Oracle(), start, EOS, 4, top_p=1.5)
    with pytest.raises(ValueError, match="temperature 0: expected a number above 0"):
        nucleus(Oracle(), start, EOS, 4, temperature=0)


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "ba5a0fbb")
def test_cache_changes_no_word(setup_5d8bb063):
    Forgetful, language_model = setup_5d8bb063
    start = torch.tensor([[1, 5], [1, 7], [1, 2]])
    for search in (greedy, beam_search, lambda *a: nucleus(*a, generator=torch.Generator().manual_seed(3))):
        lengths = set()
        for seed in range(4):
            torch.manual_seed(seed)
            model = language_model(11).double()
            for p in model.parameters():
                p.data = p.data * 2
            model.embed.places.table = model.embed.places.table.double()
            words = search(DecoderState(model), start, 2, 20)
            assert words == search(Forgetful(model), start, 2, 20)
            lengths |= {len(w) for w in words}
        assert len(lengths) > 1  # rows ended apart


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "c0c8f04a")
def test_cache_bytes(setup_5d8bb063):
    _, language_model = setup_5d8bb063

    def cache_bytes(layers, dim, tokens, rows, bytes_each=4):
        return 2 * layers * dim * tokens * rows * bytes_each  # keys and values

    state = DecoderState(language_model(11, 12, 3, 2))
    state.logits(torch.ones(5, 7, dtype=torch.long))
    held_bytes = sum(
        t.numel() * t.element_size()
        for pair in state.caches
        for cache in pair
        if len(cache)
        for t in (cache.keys, cache.values)
    )
    assert cache_bytes(2, 12, 7, 5) == held_bytes


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "c0c8f04a")
def test_cache_bytes_starter_fails(setup_5d8bb063):
    _, language_model = setup_5d8bb063

    def cache_bytes(layers, dim, tokens, rows, bytes_each=4):
        return layers * dim * tokens * rows * bytes_each

    with pytest.raises(Exception):
        state = DecoderState(language_model(11, 12, 3, 2))
        state.logits(torch.ones(5, 7, dtype=torch.long))
        held_bytes = sum(
            t.numel() * t.element_size()
            for pair in state.caches
            for cache in pair
            if len(cache)
            for t in (cache.keys, cache.values)
        )
        assert cache_bytes(2, 12, 7, 5) == held_bytes


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "d9414616")
def test_no_repeat(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d

    class NoRepeat:
        def __init__(self, state):
            self.state, self.select = state, state.select

        def logits(self, ids):
            scores = self.state.logits(ids).clone()
            for row, words in enumerate(ids.tolist()):
                banned = [after for before, after in zip(words, words[1:]) if before == words[-1]]
                scores[row, banned] = -torch.inf
            return scores

    loop = {
        (): {0: 0.9, 1: 0.1},
        (0,): {1: 0.9, 2: 0.1},
        (0, 1): {0: 0.9, 2: 0.1},
        (0, 1, 0): {1: 0.9, 2: 0.1},
        (0, 1, 0, 1): {0: 0.9, EOS: 0.1},
    }
    start = torch.tensor([[9]])
    assert greedy(Table(loop), start, EOS, 5) == [[0, 1, 0, 1, 0]]  # round and round
    assert greedy(NoRepeat(Table(loop)), start, EOS, 5) == [[0, 1, 0, 2]]  # 0 may come twice, "0 1" may not
    assert beam_search(NoRepeat(Table(loop)), start, EOS, 5, 1) == [[0, 1, 0, 2]]


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "d9414616")
def test_no_repeat_starter_fails(setup_7c0caa1d):
    EOS, _, Table, _, _ = setup_7c0caa1d

    class NoRepeat:
        def __init__(self, state):
            self.state, self.select = state, state.select

        def logits(self, ids):
            return self.state.logits(ids).scatter(1, ids, -torch.inf)  # forbids every token that was used

    with pytest.raises(Exception):
        loop = {
            (): {0: 0.9, 1: 0.1},
            (0,): {1: 0.9, 2: 0.1},
            (0, 1): {0: 0.9, 2: 0.1},
            (0, 1, 0): {1: 0.9, 2: 0.1},
            (0, 1, 0, 1): {0: 0.9, EOS: 0.1},
        }
        start = torch.tensor([[9]])
        assert greedy(Table(loop), start, EOS, 5) == [[0, 1, 0, 1, 0]]  # round and round
        assert greedy(NoRepeat(Table(loop)), start, EOS, 5) == [[0, 1, 0, 2]]  # 0 may come twice, "0 1" may not
        assert beam_search(NoRepeat(Table(loop)), start, EOS, 5, 1) == [[0, 1, 0, 2]]


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "133b15f1")
def test_best_of(setup_7c0caa1d):
    EOS, Oracle, _, _, score = setup_7c0caa1d

    def best_of(draws, cost):
        return [min(each, key=lambda words: cost(row, words)) for row, each in enumerate(zip(*draws))]

    start, g = torch.tensor([[5], [6]]), torch.Generator().manual_seed(0)
    draws = [nucleus(Oracle(), start, EOS, 4, 1.0, generator=g) for _ in range(60)]
    price = lambda row, words: -score(Oracle(), start[row].tolist(), words, len(words) < 4, 0.0)
    best = best_of(draws, price)
    assert all(price(row, best[row]) == min(price(row, draw[row]) for draw in draws) for row in range(2))
    assert best != draws[0]


@pytest.mark.nb("nbs/1_foundations/04a_decoding.ipynb", "133b15f1")
def test_best_of_starter_fails(setup_7c0caa1d):
    EOS, Oracle, _, _, score = setup_7c0caa1d

    def best_of(draws, cost):
        return draws[0]

    with pytest.raises(Exception):
        start, g = torch.tensor([[5], [6]]), torch.Generator().manual_seed(0)
        draws = [nucleus(Oracle(), start, EOS, 4, 1.0, generator=g) for _ in range(60)]
        price = lambda row, words: -score(Oracle(), start[row].tolist(), words, len(words) < 4, 0.0)
        best = best_of(draws, price)
        assert all(price(row, best[row]) == min(price(row, draw[row]) for draw in draws) for row in range(2))
        assert best != draws[0]
