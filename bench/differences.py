"""One thing that may differ between two results, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NO_DIFFERENCE, CANNOT_TELL, FAILS = "no difference", "cannot tell", "fails"
WORSE, BETTER = "worse", "better"
WORSE_WORDS = (WORSE, "slower", FAILS)


@dataclass(frozen=True)
class Metric:
    """What is compared.

    keys: values of a sample; the first that all have. margin: a share, below which a change is not called one.
    wanted: the change that an interval has to rule out before "no difference" is said. Of quality both are in dB.
    words: what more of it, and less of it, is called.
    """

    name: str
    keys: tuple[str, ...]
    unit: str
    margin: float
    wanted: float
    words: tuple[str, str] = (WORSE, BETTER)

    @property
    def log_margin(self) -> float:
        return math.log1p(self.margin)


@dataclass(frozen=True)
class Difference:
    """One metric of one cell.

    a, b: geometric means over the rounds, or the fact itself. change: B/A - 1, of quality B - A in its unit; low, high:
    its interval; None where chance has no say. p: of a change beyond the margin. why: in words, where it is not plain.
    needed: rounds with which it could be told.
    """

    cell: str
    metric: str
    verdict: str
    a: float | None = None
    b: float | None = None
    unit: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    rounds: tuple[int, int] | None = None
    needed: int | None = None
    gated: bool = False
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell,
            "metric": self.metric,
            "verdict": self.verdict,
            "a": self.a,
            "b": self.b,
            "unit": self.unit,
            "change": self.change,
            "interval": None if self.low is None else [self.low, self.high],
            "p": self.p,
            "rounds": None if self.rounds is None else list(self.rounds),
            "needed_rounds": self.needed,
            "gated": self.gated,
            "why": self.why,
        }


@dataclass(frozen=True)
class Comparison:
    """Every difference that was looked for, cell by cell.

    only_a, only_b: cells that the other one lacks. warnings: why the two may not compare.
    confidence: with which all verdicts on times and memory hold together.
    """

    a: str
    b: str
    confidence: float
    differences: Sequence[Difference]
    only_a: Sequence[str] = ()
    only_b: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def worse(self) -> list[Difference]:
        """What is gated and got worse."""
        return [d for d in self.differences if d.gated and d.verdict in WORSE_WORDS]

    @property
    def regressed(self) -> bool:
        return bool(self.worse)

    @property
    def differing(self) -> list[Difference]:
        """What is not the same, for better or worse."""
        return [d for d in self.differences if d.verdict not in (NO_DIFFERENCE, CANNOT_TELL)]

    @property
    def untold(self) -> list[Difference]:
        return [d for d in self.differences if d.verdict == CANNOT_TELL]

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "confidence": self.confidence,
            "regressed": self.regressed,
            "warnings": list(self.warnings),
            "differences": [d.to_json() for d in self.differences],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }

    def to_text(self) -> str:
        """Markdown: warnings, a row for each metric of each cell, and what that comes to."""
        from .compare_table import to_table

        return to_table(self)
