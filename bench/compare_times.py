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
_YARDSTICK, _CROWDED = "yardstick_ms", "crowded"
_FREE = 0.1  # of the time that some thread waited for a core: below it a process had the cores that it wanted
ALL = "all cells together"
_TOO_MANY = 100  # rounds beyond which nobody would wait


def compare_times(
    cells: Sequence[tuple[Cell, Cell]], metrics: Sequence[Metric], alpha: float, alike: bool
) -> list[Difference]:
    """Every metric of every pair of cells, so that all together err with probability alpha.

    Args:
        alike: whether both were measured on one kind of machine: then the yardstick takes out how that drifted.
    """
    rows: list[tuple[str, Metric, Sequence[float], Sequence[float], Gap | None]] = []
    for metric in metrics:
        key = next((k for k in metric.keys if _have(cells, k)), None)
        if key is None:
            continue
        compared = [_under_one_condition(*pair) for pair in cells] if metric.name == LATENCY.name else list(cells)
        if metric.name in (LATENCY.name, COLD.name) and alike and _have(cells, _YARDSTICK):
            sides = _steadied(compared, key)
        else:
            sides = [(_values(a, key), _values(b, key)) for a, b in compared]
        found = gaps(sides)
        rows += [(a.name, metric, *side, gap) for (a, _), side, gap in zip(cells, sides, found, strict=True)]
        whole = _together(sides)
        if whole is not None:
            rows += [(ALL, metric, *whole, gaps([whole])[0])]
    levels = holm([1.0 if gap is None else gap.p(m.log_margin) for _, m, _, _, gap in rows], alpha)
    return [_difference(*row, level) for row, level in zip(rows, levels, strict=True)]


def _together(sides: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[list[float], list[float]] | None:
    """The geometric mean over all cells in each round: what is done to all of them stands out of their noise.

    None of one cell, and where a cell lacks a round.
    """
    if len(sides) < 2 or any(len({len(pair[which]) for pair in sides}) > 1 for which in (0, 1)):
        return None
    first, second = (
        [statistics.geometric_mean(values) for values in zip(*(pair[which] for pair in sides), strict=True)]
        for which in (0, 1)
    )
    return (first, second) if first and second else None


def _values(cell: Cell, key: str) -> list[float]:
    return [value for value in cell.per_round(key).values() if value > 0]


def _have(cells: Sequence[tuple[Cell, Cell]], key: str) -> bool:
    """Whether every round of every cell has it: two ways to measure one thing are not compared with each other."""
    return bool(cells) and all(
        len(_values(cell, key)) == len({s.round for s in cell.samples}) for pair in cells for cell in pair
    )


def _under_one_condition(a: Cell, b: Cell) -> tuple[Cell, Cell]:
    """The two cells with those of their rounds in which a core was free for each thread, or with those in which not.

    Own time leaves out what the calling thread waits, but where another of the runtime's threads has no core the caller
    does its work too: one thread is slower than two. The condition is taken that more rounds of both were under.
    """
    if a.spec.threads == 1 or not all(_CROWDED in s.values for s in (*a.samples, *b.samples)):
        return a, b
    free, crowded = (
        [replace(cell, samples=[s for s in cell.samples if (s.values[_CROWDED] > _FREE) == taken]) for cell in (a, b)]
        for taken in (False, True)
    )
    best = max((free, crowded), key=lambda pair: min(len(cell.samples) for cell in pair))
    return best[0], best[1]


def _steadied(cells: Sequence[tuple[Cell, Cell]], key: str) -> list[tuple[list[float], list[float]]]:
    """Each value as it would be where a core was worth what it was on average; what a GPU computes is left as it is."""
    sticks = [value for pair in cells for cell in pair for value in _values(cell, _YARDSTICK)]
    usual = statistics.geometric_mean(sticks) if sticks else 1.0

    def steady(cell: Cell) -> list[float]:
        if cell.spec.device != "cpu":
            return _values(cell, key)
        both = zip(_values(cell, key), _values(cell, _YARDSTICK), strict=True)
        return [value * usual / stick for value, stick in both]

    return [(steady(a), steady(b)) for a, b in cells]


def _difference(
    cell: str, metric: Metric, a: Sequence[float], b: Sequence[float], gap: Gap | None, level: float
) -> Difference:
    if not a or not b:
        alone, beside = ("A", "B") if a else ("B", "A")
        why = f"{alone} had the cores for itself, {beside} shared them" if a or b else "it was not measured"
        return Difference(cell, metric.name, CANNOT_TELL, unit=metric.unit, why=why)
    typical = [statistics.geometric_mean(side) for side in (a, b)]
    row = Difference(cell, metric.name, CANNOT_TELL, typical[0], typical[1], metric.unit, rounds=(len(a), len(b)))
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
