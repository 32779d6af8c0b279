"""Whether an artifact is as near to its source as another, and as small: facts, that no noise of the machine is in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .differences import CANNOT_TELL, NO_DIFFERENCE, WORSE, Difference, Metric
from .intervals import paired
from .results import Cell

DISK = Metric("disk", ("disk_mb",), "MB", 0.01, 0.01)
# dB of PSNR, percent of labels; more of it is better
QUALITY = Metric("quality", (), "dB", 0.5, 0.5, ("better", WORSE))
_EQUAL = 100.0  # dB that two equal pictures count as, as in a proof's mean
_OF_LABELS = "% of labels"


def compare_disk(a: Cell, b: Cell, metric: Metric) -> list[Difference]:
    """Disk of the two artifacts; nothing where one is not known."""
    first, second = (cell.facts.get(metric.keys[0]) for cell in (a, b))
    if not first or not second:
        return []
    change = float(second) / float(first) - 1
    verdict = NO_DIFFERENCE if abs(change) <= metric.margin else metric.words[change < 0]
    return [Difference(a.name, metric.name, verdict, float(first), float(second), metric.unit, change)]


def compare_quality(a: Cell, b: Cell, metric: Metric, alpha: float) -> list[Difference]:
    """PSNR or labels of the two proofs; nothing where neither has one."""
    for kind, compared in (("images", _images), ("labels", _labels)):
        first, second = (_proof(cell, kind) for cell in (a, b))
        if first is not None and second is not None:
            return [compared(a.name, first, second, metric, alpha)]
    if a.quality is None and b.quality is None:
        return []
    which = "A" if a.quality is None else "B"
    return [Difference(a.name, metric.name, CANNOT_TELL, unit=metric.unit, why=f"{which} has no proof")]


def _proof(cell: Cell, kind: str) -> Mapping[str, Any] | None:
    quality = cell.facts.get("quality")
    found = quality.get(kind) if isinstance(quality, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _images(cell: str, a: Mapping[str, Any], b: Mapping[str, Any], metric: Metric, alpha: float) -> Difference:
    """The mean of the differences, prompt by prompt: pictures of one prompt and seed are drawn from the same noise.

    The same artifact draws the same pictures, so that any difference is one of the artifacts. Its interval is for other
    prompts of the kind.
    """
    first, second = _psnr(a), _psnr(b)
    if a == b:  # older proofs list no pictures
        mean = a.get("mean_psnr_db", _EQUAL)
        return Difference(cell, metric.name, NO_DIFFERENCE, mean, mean, metric.unit, 0.0)
    if not first or list(first) != list(second) or a.get("steps") != b.get("steps"):
        return Difference(cell, metric.name, CANNOT_TELL, unit=metric.unit, why="the proofs drew other pictures")
    steps = [second[key] - first[key] for key in first]
    means = [sum(side.values()) / len(side) for side in (first, second)]
    row = Difference(cell, metric.name, NO_DIFFERENCE, means[0], means[1], "dB", means[1] - means[0])
    if not any(steps):
        return row
    change = means[1] - means[0]
    if len(steps) < 2:
        return _with(row, CANNOT_TELL, why="one picture does not show how prompts differ")
    gap = paired(steps)
    half = gap.half(alpha)
    row = _with(row, NO_DIFFERENCE, low=change - half, high=change + half)
    if abs(change) <= metric.margin:
        return row
    if abs(change) - half > 0:
        return _with(row, metric.words[change < 0])
    return _with(row, CANNOT_TELL, why=f"{len(steps)} prompts do not agree on it")


def _psnr(images: Mapping[str, Any]) -> dict[tuple[Any, ...], float]:
    """By what was drawn. Older proofs do not say, and drew the same prompts in the same order."""
    values = images.get("psnr_db") or []
    drawn = images.get("drawn") or [{}] * len(values)
    found = {}
    for number, (entry, value) in enumerate(zip(drawn, values, strict=False)):
        key = (number, *(entry.get(word) for word in ("prompt", "seed", "width", "height")))
        found[key] = _EQUAL if value is None else min(float(value), _EQUAL)
    return found


def _labels(cell: str, a: Mapping[str, Any], b: Mapping[str, Any], metric: Metric, alpha: float) -> Difference:
    """Pictures whose label is the source's. Both saw the same, so those that only one gets right decide (McNemar 1947).

    A proof names the pictures that changed most, those of another label first; where it names all of these, the test is
    the exact binomial one of the pictures that changed sides, else Fisher's exact test of two counts.
    """
    count = a.get("pictures")
    if not count or count != b.get("pictures"):
        return Difference(cell, metric.name, CANNOT_TELL, unit=_OF_LABELS, why="the proofs labelled other pictures")
    wrong = [round((1 - float(p.get("agreement", 1.0))) * count) for p in (a, b)]
    rates = [100 * (1 - w / count) for w in wrong]
    change = rates[1] - rates[0]
    row = Difference(cell, metric.name, NO_DIFFERENCE, rates[0], rates[1], _OF_LABELS, change)
    first, second = _wrong(a), _wrong(b)
    known = [len(first), len(second)] == wrong
    if known and first == second:
        return row
    p = _mcnemar(first, second) if known else _fisher(wrong[0], wrong[1], count)
    row = _with(row, NO_DIFFERENCE, p=p)
    if abs(change) <= metric.margin:
        return row
    if p <= alpha:
        return _with(row, metric.words[change < 0])
    least = math.ceil(1 - math.log2(alpha))  # labels that all change sides one way: 2 * 0.5^n <= alpha
    return _with(row, CANNOT_TELL, why=f"{abs(wrong[1] - wrong[0])} of {count} labels; chance makes up to {least - 1}")


def _wrong(labels: Mapping[str, Any]) -> set[int]:
    return {row["picture"] for row in labels.get("most_changed") or () if row["reference"] != row["artifact"]}


def _mcnemar(a: set[int], b: set[int]) -> float:
    from scipy.stats import binomtest

    lost, won = len(b - a), len(a - b)
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _fisher(a: int, b: int, count: int) -> float:
    from scipy.stats import fisher_exact

    return float(fisher_exact([[a, count - a], [b, count - b]]).pvalue)


def _with(row: Difference, verdict: str, **values: Any) -> Difference:
    return replace(row, verdict=verdict, **values)
