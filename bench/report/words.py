"""Figures in words: numbers, ranges, ratios, sizes and lists, the same in every part of a report."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..results import Cell
from ..summary import Figure


def number(value: float) -> str:
    """Three digits, and all of those before the point: "0.52", "41.2", "1,234"."""
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.0995 or size == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.0005 else f"{value:.2g}"


def span(found: Figure) -> str:
    """The lowest and the highest: "38.1–44.0"; nothing of one round, or where they are the same."""
    if found.count == 1:
        return ""
    low, high = number(found.low), number(found.high)
    return "" if low == high else f"{low}–{high}"


def measured(found: Figure, unit: str) -> str:
    """A median with its range: "41.2 ms (38.1–44.0)"."""
    between = span(found)
    return f"{number(found.median)} {unit}" + (f" ({between})" if between else "")


def about(found: Figure, unit: str) -> str:
    """A median, and its range only where that is wide: "212 MB", "212 MB (180–251)"."""
    return measured(found, unit) if found.noisy else f"{number(found.median)} {unit}"


def times(found: Figure) -> str:
    """A ratio with its range: "0.52 (0.50–0.55)"."""
    between = span(found)
    return number(found.median) + (f" ({between})" if between else "")


def share(value: float) -> str:
    """ "3.1 %", "52 %"."""
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def bytes_(value: float) -> str:
    """ "16.8 GB", "340 MB"; of 1000."""
    return f"{number(value / 1e9)} GB" if value >= 1e9 else f"{number(value / 1e6)} MB"


def many(count: int, noun: str) -> str:
    """ "1 round", "3 rounds"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def day(seconds: float) -> str:
    """ "24 November 2026, 20:51 UTC", in English whatever the locale."""
    at = time.gmtime(seconds)
    return f"{at.tm_mday} {_MONTHS[at.tm_mon - 1]} {at.tm_year}, {at.tm_hour:02d}:{at.tm_min:02d} UTC"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


def asked_in_words(cell: Cell) -> str:
    """What a call is: "64×64 pixels, 20 steps, batch 1"."""
    spec = cell.spec
    words = [] if spec.width is None else [f"{spec.width}×{spec.height} pixels"]
    words += [] if spec.steps is None else [many(spec.steps, "step")]
    words += [] if spec.guidance in (None, 7.5) else [f"guidance {spec.guidance:g}"]
    return ", ".join([*words, f"batch {spec.batch}"])
