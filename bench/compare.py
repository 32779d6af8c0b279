"""Two results of one suite side by side: what differs, how sure that is, and whether B got worse.

docs/bench-compare.md says how it is decided, and how often it was right.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import BadInput, UsageError
from .compare_quality import DISK, QUALITY, compare_disk, compare_quality
from .compare_times import ALL, ENERGY, TIMED, compare_times
from .differences import FAILS, Comparison, Difference, Metric
from .machine import differences, version_differences
from .results import Cell, Results

METRICS = (*TIMED, DISK, QUALITY)
GATED = tuple(m.name for m in METRICS if m is not ENERGY)
_BUSY_CORES = 0.5  # of others, by which two runs differ, that are worth a warning


def compare(
    a: Results,
    b: Results,
    *,
    confidence: float = 0.95,
    margin: Mapping[str, float] | None = None,
    gate: Collection[str] = GATED,
) -> Comparison:
    """B beside A: every metric of every cell that both have.

    Args:
        margin: metric -> the change below which it is not called one: a share, dB of quality. Others keep their own.
        gate: the metrics that B may not be worse in.

    Raises:
        BadInput: they have no cell in common, or are one file.
        UsageError: no such metric, or a number that makes no sense.
    """
    metrics = _with_margins(margin or {})
    unknown = [name for name in gate if name not in metrics]
    if unknown:
        raise UsageError(f"There is no metric {unknown[0]!r} to gate.", f"Metrics are {', '.join(metrics)}.")
    if not 0.5 <= confidence < 1:
        raise UsageError(f"A confidence of {confidence:g} makes no sense.", "Give one such as 0.95.")
    if a.path.resolve() == b.path.resolve():
        raise BadInput(f"{a.path} would be compared with itself, which proves nothing.", "Name two runs.")
    cells = _matched(a, b)
    alpha = 1 - confidence
    alive = [(first, second) for first, second in cells if second.failure is None]
    alike = not differences(a.machine, b.machine)
    found = compare_times(alive, [metrics[m.name] for m in TIMED], alpha, alike)
    for first, second in cells:
        if second.failure is not None:
            found.append(Difference(first.name, "runs", FAILS, gated=True, why=second.failure))
        else:
            found += compare_disk(first, second, metrics[DISK.name])
            found += compare_quality(first, second, metrics[QUALITY.name], alpha)
    order = {cell.name: number for number, (cell, _) in enumerate(cells)} | {ALL: len(cells)}
    shown = ["runs", *metrics]
    found = [d if d.metric == "runs" else replace(d, gated=d.metric in gate) for d in found]
    found.sort(key=lambda d: (order[d.cell], shown.index(d.metric)))
    first_names, second_names = ([c.name for c in r.cells if c.samples or c.failure] for r in (a, b))
    return Comparison(
        str(a.path),
        str(b.path),
        confidence,
        found,
        [name for name in first_names if name not in second_names],
        [name for name in second_names if name not in first_names],
        _warnings(a, b, cells),
    )


def _with_margins(margin: Mapping[str, float]) -> dict[str, Metric]:
    metrics = {m.name: m for m in METRICS}
    for name, value in margin.items():
        if name not in metrics:
            raise UsageError(f"There is no metric {name!r}.", f"Metrics are {', '.join(metrics)}.")
        if not 0 <= value < math.inf:
            raise UsageError(f"A margin of {value:g} makes no sense.", "Give 0 or more, such as 0.05.")
        known = metrics[name]
        # what has to be told grows with what is let pass
        metrics[name] = replace(known, margin=value, wanted=max(known.wanted, 2 * value))
    return metrics


def _matched(a: Results, b: Results) -> list[tuple[Cell, Cell]]:
    """Cells that A measured, with B's of the same name, measured or failed."""
    others = {cell.name: cell for cell in b.cells if cell.failure is not None or cell.samples}
    cells = [(cell, others[cell.name]) for cell in a.measured if cell.name in others]
    if cells:
        return cells
    if not a.measured:
        raise BadInput(f"{a.path} has no cell that was measured.", "Run its suite again.")
    name = a.measured[0].name
    near = difflib.get_close_matches(name, others, 1, cutoff=0.0)
    hint = f" Nearest to {name!r} is {near[0]!r}." if near else ""
    raise BadInput(f"{a.path} and {b.path} have no cell in common.{hint}", "Run the same suite for both.")


def _warnings(a: Results, b: Results, cells: Iterable[tuple[Cell, Cell]]) -> list[str]:
    found = [f"The machines differ: {text}." for text in differences(a.machine, b.machine)]
    found += [f"Libraries differ: {text}." for text in version_differences(a.versions, b.versions)]
    for word in ("rounds", "seconds a process", "calls at least"):
        first, second = (_asked(r.plan).get(word) for r in (a, b))
        if first != second:
            found.append(f"They were not measured alike, {word}: {first} and {second}.")
    busy = [_busy(cell for pair in cells for cell in pair[side : side + 1]) for side in (0, 1)]
    if abs(busy[0] - busy[1]) > _BUSY_CORES:
        found.append(f"Other processes used {busy[0]:.1f} cores beside A and {busy[1]:.1f} beside B.")
    return found


def _busy(cells: Iterable[Cell]) -> float:
    """Cores that other processes used on average beside the cells' samples."""
    cores = [s.others_cores for cell in cells for s in cell.samples]
    return sum(cores) / len(cores) if cores else 0.0


def _asked(plan: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was asked to measure: of the commands of its cells the last two words are seconds and calls."""
    commands = [case.get("command", []) for case in plan.get("cases", [])]
    cells = [c[-2:] for c in commands if "vitrify.bench.worker" in c and len(c) > 2]
    seconds, calls = cells[0] if cells else (None, None)
    return {"rounds": plan.get("rounds"), "seconds a process": seconds, "calls at least": calls}
