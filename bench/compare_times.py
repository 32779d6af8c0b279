"""Times, memory and energy of two results: what differs between processes, so that chance has a say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from .differences import CANNOT_TELL, NO_DIFFERENCE, Difference, Metric
from .intervals import Gap, gaps, holm
from .results import Cell

LATENCY = Metric("latency", ("own_ms", "latency_ms"), "ms", 0.03, 0.10, ("slower", "faster"))
COLD = Metric("cold start", ("cold_own_s", "cold_s"), "s", 0.10, 0.25, ("slower", "faster"))
MEMORY = Metric("peak memory", ("peak_mb",), "MB", 0.03, 0.06)
ENERGY = Metric("energy", ("joules",), "J", 0.05, 0.15)
TIMED = (LATENCY, COLD, MEMORY, ENERGY)
_YARDSTICK = "yardstick_ms"
_TOO_MANY = 100  # rounds beyond which nobody would wait


def compare_times(
    cells: Sequence[tuple[Cell, Cell]], metrics: Sequence[Metric], alpha: float, alike: bool
) -> list[Difference]:
    """Every metric of every pair of cells, so that all together err with probability alpha.

    Args:
        alike: whether both were measured on one kind of machine: then the yardstick takes out how that drifted.
    """
    rows: list[tuple[Cell, Metric, list[float], list[float], Gap | None]] = []
    for metric in metrics:
        key = next((k for k in metric.keys if _have(cells, k)), None)
        if key is None:
            continue
        sides = [(a, _values(a, key), _values(b, key)) for a, b in cells]
        if metric.name == LATENCY.name and alike and _have(cells, _YARDSTICK):
            sides = _steadied(cells, key)
        found = gaps([(first, second) for _, first, second in sides])
        rows += [(a, metric, first, second, gap) for (a, first, second), gap in zip(sides, found, strict=True)]
    levels = holm([1.0 if gap is None else gap.p(m.log_margin) for _, m, _, _, gap in rows], alpha)
    return [_difference(*row, level) for row, level in zip(rows, levels, strict=True)]


def _values(cell: Cell, key: str) -> list[float]:
    return [value for value in cell.per_round(key).values() if value > 0]


def _have(cells: Sequence[tuple[Cell, Cell]], key: str) -> bool:
    """Whether every round of every cell has it: two ways to measure one thing are not compared with each other."""
    return bool(cells) and all(
        len(_values(cell, key)) == len({s.round for s in cell.samples}) for pair in cells for cell in pair
    )


def _steadied(cells: Sequence[tuple[Cell, Cell]], key: str) -> list[tuple[Cell, list[float], list[float]]]:
    """Each value as it would be where a core was worth what it was on average; what a GPU computes is left as it is."""
    sticks = [value for pair in cells for cell in pair for value in _values(cell, _YARDSTICK)]
    usual = statistics.geometric_mean(sticks)

    def steady(cell: Cell) -> list[float]:
        if cell.spec.device != "cpu":
            return _values(cell, key)
        both = zip(_values(cell, key), _values(cell, _YARDSTICK), strict=True)
        return [value * usual / stick for value, stick in both]

    return [(a, steady(a), steady(b)) for a, b in cells]


def _difference(
    cell: Cell, metric: Metric, a: Sequence[float], b: Sequence[float], gap: Gap | None, level: float
) -> Difference:
    typical = [statistics.geometric_mean(side) for side in (a, b)]
    row = Difference(cell.name, metric.name, CANNOT_TELL, typical[0], typical[1], metric.unit, rounds=(len(a), len(b)))
    row = replace(row, change=typical[1] / typical[0] - 1)
    if gap is None:
        return replace(row, why="one round does not show the noise", needed=5)
    half = gap.half(level)
    row = replace(row, low=math.exp(gap.mean - half) - 1, high=math.exp(gap.mean + half) - 1)
    row = replace(row, p=gap.p(metric.log_margin))
    if abs(gap.mean) - half > metric.log_margin:
        return replace(row, verdict=metric.words[gap.mean < 0])
    wanted = math.log1p(metric.wanted)
    if abs(gap.mean) + half <= wanted:
        return replace(row, verdict=NO_DIFFERENCE)
    # the width falls with the root of the rounds, until it fits beside what the estimate itself may be off by
    rounds = math.ceil(max(len(a), len(b)) * (half / (wanted - min(abs(gap.mean), wanted / 2))) ** 2)
    why = f"{row.low:+.0%} to {row.high:+.0%} is possible".replace("%", " %")
    if rounds > _TOO_MANY:
        return replace(row, why=f"{why}, and the machine too noisy to tell")
    rounds = max(rounds, max(len(a), len(b)) + 1)
    return replace(row, why=f"{why}; {rounds} rounds would do", needed=rounds)
