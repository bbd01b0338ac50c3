"""Generated from nbs/6_lab/29a_verdicts.ipynb by tools/make_tests.py: edit the notebook, not this file."""

import numpy as np
import pytest
import statistics
from scipy import stats
from vlp_course.verdicts import band, paired_bootstrap, summary, verdict


@pytest.fixture(scope="module")
def setup_4d13d30f():
    T_975 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}  # Student's t by degrees of freedom

    def slow_summary(values):
        """Mean and half-width of the 95 % interval, in loops."""
        n, mean = len(values), sum(values) / len(values)
        variance = 0.0
        for x in values:
            variance += (x - mean) ** 2 / (n - 1)
        return mean, T_975[n - 1] * variance**0.5 / n**0.5

    return slow_summary


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "215309df")
def test_interval(setup_4d13d30f):
    slow_summary = setup_4d13d30f
    assert summary([0.9, 0.92, 0.94]) == pytest.approx((0.92, 4.30265 * 0.02 / 3**0.5), rel=1e-4)  # by hand
    for values in ([1.0, 4.0], [0.5, 0.2, 0.9], [3.0, 3.5, 2.0, 8.0], [1.0, 1.1, 0.7, 0.9, 2.0]):
        mean, half = summary(values)
        assert (mean, half) == pytest.approx(slow_summary(values), rel=1e-4)
        low, high = stats.t.interval(0.95, len(values) - 1, statistics.mean(values), stats.sem(values))  # SciPy's own
        assert (mean - half, mean + half) == pytest.approx((low, high))
    mean, half = summary([0.7])
    assert mean == 0.7 and np.isnan(half)  # one seed: no interval


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "3f4ea942")
def test_paired_by_hand():
    assert paired_bootstrap([3.0] * 5, [1.0] * 5) == (2.0, 2.0, 2.0)  # every resample is the same
    base = np.array([10.0, 50.0, 20.0, 90.0, 60.0])  # splits differ by far more than the methods
    mean, low, high = paired_bootstrap(base + [1, 2, 1, 2, 1.5], base)
    assert mean == pytest.approx(1.5) and 1 <= low < mean < high <= 2
    assert paired_bootstrap(base, base + 1) == (-1, -1, -1)  # the other way round
    assert paired_bootstrap(base, base[::-1]) == paired_bootstrap(base, base[::-1])  # seeded
    reference = stats.bootstrap(([1, 2, 1, 2, 1.5],), np.mean, method="percentile", rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval), abs=0.1)  # SciPy's own


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "1f0d6939")
def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="4 pairs: a paired verdict needs at least 5"):
        paired_bootstrap([1, 2, 3, 4], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="6 values against 5: a pair needs one of each"):
        paired_bootstrap(range(6), range(5))


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "51391f39")
def test_verdict_has_three_words():
    base = np.array([40.0, 70.0, 55.0, 62.0, 80.0])
    better, worse = verdict(base + [1, 2, 1, 2, 1.5], base), verdict(base - 1, base)
    assert better.word == "better" and (worse.word, worse.mean, worse.low, worse.high) == ("worse", -1, -1, -1)
    assert (better.mean, better.mean - better.low) == pytest.approx(summary([1, 2, 1, 2, 1.5]))  # few pairs: Student's
    assert verdict(base + [3, -2, 1, -1, 0.5], base).word == "open"
    assert verdict(base + 2, base, margin=3).word == "open" and verdict(base + 4, base, margin=3).word == "better"
    assert str(worse) == "worse (-1.0, 95 % interval -1.0 to -1.0, 5 pairs)"
    many = np.random.default_rng(0).normal(0.5, 1, 40)
    assert verdict(many, np.zeros(40))[:3] == paired_bootstrap(many, np.zeros(40))  # many pairs: resampled
    with pytest.raises(ValueError, match="3 pairs: a paired verdict needs at least 5"):
        verdict([1, 2, 3], [1, 1, 1])


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "23de7cd9")
def test_band_by_hand():
    low, high = band([90.0, 92.0, 94.0])
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((92, 4.30265 * 2 * (4 / 3) ** 0.5), rel=1e-4)
    mean, half = summary([90.0, 92.0, 94.0])
    assert (high - low) / 2 == pytest.approx(half * 2)  # sqrt(n + 1) times the mean's interval: here 2
    assert band([90.0, 92.0, 94.0], alpha=0.01)[0] < low
    with pytest.raises(ValueError, match="2 runs: a band needs at least 3"):
        band([1.0, 2.0])


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "8aa8ed37")
def test_back_to_deviation():
    def deviation(half, seeds):
        """The standard deviation over seeds behind a half-width."""
        return half * seeds**0.5 / stats.t.ppf(0.975, seeds - 1)

    for values in ([0.90, 0.92, 0.94], [0.3, 0.5], [0.1, 0.4, 0.2, 0.3, 0.9]):
        assert deviation(summary(values)[1], len(values)) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "8aa8ed37")
def test_back_to_deviation_starter_fails():
    def deviation(half, seeds):
        """The standard deviation over seeds behind a half-width."""
        return half / 1.96  # neither the factor nor the root

    with pytest.raises(Exception):
        for values in ([0.90, 0.92, 0.94], [0.3, 0.5], [0.1, 0.4, 0.2, 0.3, 0.9]):
            assert deviation(summary(values)[1], len(values)) == pytest.approx(np.std(values, ddof=1))


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "c8d936b6")
def test_welch():
    def unpaired(a, b):
        """Mean difference and half-width of its 95 % interval, without pairs (Welch 1947)."""
        u, v = (np.var(x, ddof=1) / len(x) for x in (a, b))
        freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
        return np.mean(a) - np.mean(b), stats.t.ppf(0.975, freedom) * (u + v) ** 0.5

    a, b = [90.0, 92.0, 91.0, 95.0, 90.5], [88.0, 80.0, 86.0, 89.0, 84.0]
    mean, half = unpaired(a, b)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((low, high))


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "c8d936b6")
def test_welch_starter_fails():
    def unpaired(a, b):
        """Mean difference and half-width of its 95 % interval, without pairs."""
        return summary(np.asarray(a, float) - np.asarray(b, float))

    with pytest.raises(Exception):
        a, b = [90.0, 92.0, 91.0, 95.0, 90.5], [88.0, 80.0, 86.0, 89.0, 84.0]
        mean, half = unpaired(a, b)
        low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
        assert (mean - half, mean + half) == pytest.approx((low, high))


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "f01cf971")
def test_seeds_needed():
    def seeds_needed(gap, sd):
        """Smallest number of seeds whose half-width lies below the gap."""
        n = 2
        while stats.t.ppf(0.975, n - 1) * sd / n**0.5 >= gap:
            n += 1
        return n

    # With gap = sd it takes 7 seeds, with gap = 3 sd three are enough: small boards can settle large differences only.
    assert [seeds_needed(gap, 1.0) for gap in (10, 3, 1)] == [2, 3, 7]
    assert seeds_needed(0.2, 1.0) > 90


@pytest.mark.nb("nbs/6_lab/29a_verdicts.ipynb", "f01cf971")
def test_seeds_needed_starter_fails():
    def seeds_needed(gap, sd):
        """Smallest number of seeds whose half-width lies below the gap."""
        return int((1.96 * sd / gap) ** 2) + 1  # the normal factor flatters few seeds

    with pytest.raises(Exception):
        assert [seeds_needed(gap, 1.0) for gap in (10, 3, 1)] == [2, 3, 7]
        assert seeds_needed(0.2, 1.0) > 90
