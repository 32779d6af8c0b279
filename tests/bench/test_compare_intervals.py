"""Intervals and tests on numbers that others computed: textbooks, and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vitrify.bench.compare_quality import _fisher, _mcnemar
from vitrify.bench.intervals import Gap, _trigamma_inverse, gaps, holm, moderated, own_of, paired, prior_of

stats = pytest.importorskip("scipy.stats", reason="needs vitrify[bench]")
special = pytest.importorskip("scipy.special", reason="needs vitrify[bench]")

# Student, "The probable error of a mean", Biometrika 1908: additional hours of sleep by two drugs, ten patients
DEXTRO = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
LAEVO = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_without_anything_borrowed_it_is_welch() -> None:
    """R's t.test(extra ~ group, data = sleep): t = -1.8608, df = 17.776, p = 0.07939."""
    own = own_of(DEXTRO, LAEVO)
    assert own is not None
    gap = moderated(own, 1.0, 0.0)
    assert gap.mean == pytest.approx(1.58)
    assert gap.mean / gap.error == pytest.approx(1.8608, abs=1e-4)
    assert gap.freedom == pytest.approx(17.776, abs=1e-3)
    assert gap.p(0.0) == pytest.approx(0.07939, abs=1e-5)
    assert (gap.mean - gap.half(0.05), gap.mean + gap.half(0.05)) == pytest.approx((-0.2054832, 3.3654832))


def test_paired_is_students() -> None:
    """R's t.test(extra ~ group, data = sleep, paired = TRUE): t = -4.0621, df = 9, p = 0.002833."""
    gap = paired([b - a for a, b in zip(DEXTRO, LAEVO, strict=True)])
    assert gap.freedom == 9
    assert gap.mean / gap.error == pytest.approx(4.0621, abs=1e-4)
    assert gap.p(0.0) == pytest.approx(0.002833, abs=1e-6)
    assert (gap.mean - gap.half(0.05), gap.mean + gap.half(0.05)) == pytest.approx((0.7001142, 2.4598858))


def test_a_change_within_the_margin_is_never_significant() -> None:
    gap = Gap(0.04, 0.001, 8)
    assert gap.p(0.0) < 1e-8
    assert gap.p(0.05) == 1.0
    # p falls under alpha exactly where the interval leaves the margin
    for mean in (0.06, 0.08, 0.10):
        gap = Gap(mean, 0.01, 8)
        assert (gap.p(0.05) < 0.05) == (gap.mean - gap.half(0.05) > 0.05)


def test_holm_stops_at_the_first_that_does_not_stand() -> None:
    """0.005 < 0.05/4 and 0.01 < 0.05/3 stand; 0.03 > 0.05/2 does not, and so 0.04 < 0.05 does not either."""
    values = [0.01, 0.04, 0.03, 0.005]
    levels = holm(values, 0.05)
    assert levels == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    assert [p <= level for p, level in zip(values, levels, strict=True)] == [True, False, False, True]
    assert holm([], 0.05) == []


@pytest.mark.parametrize("x", [1e-5, 0.01, 0.5, 1.0, 7.3, 400.0, 1e8])
def test_trigamma_is_inverted(x: float) -> None:
    assert _trigamma_inverse(float(special.polygamma(1, x))) == pytest.approx(x, rel=1e-4)


def test_the_prior_is_found_again() -> None:
    """Variances drawn as the model says: s0^2 d0 / chi^2(d0), and of each a few values."""
    rng = np.random.default_rng(1)
    variances = 0.04 * 8 / rng.chisquare(8, 4000)
    variance, freedom = prior_of([(float(np.var(rng.normal(0, math.sqrt(v), 5), ddof=1)), 4.0) for v in variances])
    assert freedom == pytest.approx(8, rel=0.15)
    assert variance == pytest.approx(0.04, rel=0.05)


def test_equal_variances_are_pooled() -> None:
    """The sum of squares by the sum of degrees of freedom."""
    assert prior_of([(1.0, 2.0), (1.0, 2.0), (1.3, 4.0)]) == (pytest.approx(1.15), math.inf)
    assert prior_of([(1.0, 2.0)]) == (1.0, 0.0)


def test_what_is_borrowed_counts_for_no_more_than_its_own() -> None:
    own = own_of([0.0, 0.02, 0.04], [0.1, 0.12, 0.14])
    assert own is not None
    assert own.freedom == pytest.approx(4)
    assert own.variance == pytest.approx(4e-4)
    gap = moderated(own, 16e-4, math.inf)
    assert gap.freedom == pytest.approx(8)
    assert gap.error == pytest.approx(math.sqrt(10e-4 * 2 / 3))


def test_one_value_has_the_others_noise_and_two_have_none() -> None:
    (gap,) = [g for g in gaps([([10.0], [10.1, 9.9, 10.2])]) if g is not None]
    assert math.exp(gap.mean) == pytest.approx(1.0066, abs=1e-3)
    assert gap.error == pytest.approx(0.0154 * math.sqrt(4 / 3), rel=0.02)
    assert gap.freedom == pytest.approx(2)
    assert gaps([([10.0], [11.0]), ([], [1.0, 2.0])]) == [None, None]
    assert gaps([]) == []


def test_values_that_never_vary_are_told_apart() -> None:
    (gap,) = [g for g in gaps([([100.0] * 3, [104.0] * 3)]) if g is not None]
    assert gap.p(math.log1p(0.03)) < 0.01
    assert gap.p(math.log1p(0.05)) == 1.0


@pytest.mark.parametrize("rounds", [3, 5])
def test_a_suite_that_did_not_change_is_seldom_said_to_have(rounds: int) -> None:
    """600 suites of 12 figures whose noise differs, no margin: about 5 % of them may have one that stands."""
    rng = np.random.default_rng(rounds)
    wrong = 0
    for _ in range(600):
        noise = 0.03 * np.sqrt(10 / rng.chisquare(10, 12))
        pairs = [tuple(list(np.exp(rng.normal(4, s, rounds))) for _ in range(2)) for s in noise]
        p = [gap.p(0.0) for gap in gaps(pairs) if gap is not None]
        wrong += any(value <= level for value, level in zip(p, holm(p, 0.05), strict=True))
    assert wrong <= 600 * 0.05 + 2 * math.sqrt(600 * 0.05 * 0.95)


def test_pictures_that_change_sides_are_mcnemars() -> None:
    assert _mcnemar(set(), {1, 2, 3, 4, 5, 6}) == pytest.approx(2 * 0.5**6)
    assert _mcnemar({1, 2}, {2, 3, 4}) == pytest.approx(1.0)  # 1 one way, 2 the other
    assert _mcnemar({7}, {7}) == 1.0


def test_counts_are_fishers() -> None:
    """Fisher, "The design of experiments", 1935: the lady tasting tea, three of four cups right."""
    assert _fisher(3, 1, 4) == pytest.approx(0.4857, abs=1e-4)
