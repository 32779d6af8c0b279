"""Two sets of measurements -> how much they differ, an interval for that, and which differences stand together.

The unit is one value a process: calls of one process resemble each other, so that a hundred of them say little more
than one (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013, repeat at the highest level that
varies).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# a standard deviation of logarithms: what repeats to the last digit is not taken for free of noise
_LEAST = 1e-4


@dataclass(frozen=True)
class Gap:
    """B less A, with its standard error and degrees of freedom; of logarithms, so exp(mean) is the ratio B/A."""

    mean: float
    error: float
    freedom: float

    def p(self, margin: float) -> float:
        """How likely so large a gap is by chance where the true one is at most `margin`; 1 where it is no larger."""
        excess = abs(self.mean) - margin
        if excess <= 0:
            return 1.0
        return min(1.0, 2 * float(_t().sf(excess / self.error, self.freedom))) if self.error else 0.0

    def half(self, alpha: float) -> float:
        """Half the width of the interval that misses the true gap with probability alpha."""
        return float(_t().ppf(1 - alpha / 2, self.freedom)) * self.error


@dataclass(frozen=True)
class Own:
    """What two sets say themselves: the gap of their means, the variance of one value, its degrees of freedom.

    size: 1 / (1/n_a + 1/n_b), so that the squared standard error is variance / size.
    """

    mean: float
    variance: float
    freedom: float
    size: float


def gaps(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Gap | None]:
    """The gap of logarithms of each pair of sets; None where one is empty, or neither has two values.

    Two sets may differ in noise and size, so that theirs are Welch's error and degrees of freedom (Biometrika 1947).
    Few processes tell their variance badly, and the cells of a suite are measured on one machine in turns: each
    variance is moderated by those of the others, s'^2 = (d0 s0^2 + d s^2) / (d0 + d), with s0 and d0 from how they
    scatter (Smyth, "Linear models and empirical Bayes methods", 2004). Of few cells d0 is found badly and often too
    large, so what is borrowed counts for no more than the pair's own: d0 <= d.

    Args:
        pairs: positive numbers.
    """
    own = [own_of([math.log(v) for v in a], [math.log(v) for v in b]) for a, b in pairs]
    known = [one for one in own if one is not None]
    variance, freedom = prior_of([(one.variance, one.freedom) for one in known]) if known else (0.0, 0.0)
    return [None if one is None else moderated(one, variance, freedom) for one in own]


def own_of(a: Sequence[float], b: Sequence[float]) -> Own | None:
    """Welch's unequal variances; a set of one value has the other's."""
    if not a or not b or max(len(a), len(b)) < 2:
        return None
    found = [(statistics.variance(side), len(side) - 1) for side in (a, b) if len(side) > 1]
    (va, da), (vb, db) = found[0], found[-1]
    shares = max(va, _LEAST**2) / len(a), max(vb, _LEAST**2) / len(b)
    error = sum(shares)
    freedom = error**2 / (shares[0] ** 2 / da + shares[1] ** 2 / db) if len(found) == 2 else float(da)
    size = 1 / (1 / len(a) + 1 / len(b))
    return Own(statistics.fmean(b) - statistics.fmean(a), error * size, freedom, size)


def moderated(own: Own, variance: float, freedom: float) -> Gap:
    """With a prior's variance, worth `freedom` degrees of freedom but no more than its own."""
    borrowed = min(freedom, own.freedom)
    both = borrowed + own.freedom
    return Gap(own.mean, math.sqrt((borrowed * variance + own.freedom * own.variance) / both / own.size), both)


def prior_of(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The variance that variances scatter about, and the degrees of freedom that it is worth: inf where they agree.

    By the moments of their logarithms (Smyth 2004, section 6.2). One alone has no prior: 0 degrees.

    Args:
        found: variances and their degrees of freedom, one or more.
    """
    from scipy.special import digamma, polygamma

    if len(found) == 1:
        return found[0][0], 0.0
    centred = [math.log(v) - float(digamma(d / 2)) + math.log(d / 2) for v, d in found]
    scatter = statistics.variance(centred) - statistics.fmean(float(polygamma(1, d / 2)) for _, d in found)
    if scatter <= 0:  # they scatter no more than equal variances would
        return sum(v * d for v, d in found) / sum(d for _, d in found), math.inf
    half = _trigamma_inverse(scatter)
    return math.exp(statistics.fmean(centred) + float(digamma(half)) - math.log(half)), 2 * half


def paired(differences: Sequence[float]) -> Gap:
    """The gap of things that were measured on the same items, such as pictures of the same prompts: Student's t.

    Args:
        differences: two or more, B less A.
    """
    n = len(differences)
    return Gap(statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n), n - 1)


def holm(values: Sequence[float], alpha: float) -> list[float]:
    """The level at which each of several tests is to be read so that all together err with probability alpha.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the smallest p against alpha / m, the next
    against alpha / (m - 1), and so on; from the first that does not stand, none does.
    """
    levels = [alpha] * len(values)
    level, standing = alpha, True
    for rank, position in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if standing:
            level = alpha / (len(values) - rank)
            standing = values[position] <= level
        levels[position] = level
    return levels


def _trigamma_inverse(value: float) -> float:
    """x with trigamma(x) = value, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    if value > 1e7:
        return 1 / math.sqrt(value)
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        now = float(polygamma(1, x))
        step = now * (1 - now / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x


def _t() -> Any:
    from scipy.stats import t

    return t
