"""What a search is for: an objective to make small, a bar of quality, and limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...core.errors import UsageError
from ..results import OBJECTIVES, Cell, Quality
from ..spec import DRAWING

UNITS = {"latency_ms": "ms", "peak_mb": "MB", "disk_mb": "MB"}
MIN_PSNR, MIN_AGREEMENT = 30.0, 0.99


@dataclass(frozen=True)
class Goal:
    """What is asked of the winner.

    min_psnr: dB of its pictures beside those of the exported model, on average. min_agreement: share of pictures with
    the same best label. limits: metric -> the most that is allowed.
    """

    objective: str = "latency"
    min_psnr: float | None = None
    min_agreement: float | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return OBJECTIVES[self.objective]

    def of_task(self, task: str) -> Goal:
        """The same for a model of this task, with the default bar where none was given.

        Raises:
            UsageError: the bar is one of another task, or the objective is unknown.
        """
        if self.objective not in OBJECTIVES:
            raise UsageError(f"There is no objective {self.objective!r}.", f"Objectives are {', '.join(OBJECTIVES)}.")
        drawing = task in DRAWING
        if not drawing and self.min_psnr is not None:
            raise UsageError("A classifier draws nothing that a PSNR could be told of.", "Give --min-agreement.")
        if drawing and self.min_agreement is not None:
            raise UsageError("A diffusion pipeline has no labels that could agree.", "Give --min-psnr.")
        psnr = (MIN_PSNR if self.min_psnr is None else self.min_psnr) if drawing else None
        agree = None if drawing else (MIN_AGREEMENT if self.min_agreement is None else self.min_agreement)
        return Goal(self.objective, psnr, agree, self.limits)

    @property
    def bar(self) -> str:
        """In words."""
        said = f"{self.min_psnr:g} dB" if self.min_psnr is not None else f"{self.min_agreement:.1%} of labels"
        most = [f"at most {value:g} {UNITS[name]} of {_WORDS[name]}" for name, value in self.limits.items()]
        return ", ".join([said, *most])

    def reaches(self, quality: Quality | None) -> bool:
        """Whether the bar is met; what was not measured meets none."""
        return self.shortfall(quality) <= 0

    def shortfall(self, quality: Quality | None) -> float:
        """How far below the bar: dB, or percent of labels; infinite where nothing was measured."""
        if quality is None:
            return math.inf
        if self.min_psnr is not None:
            mean = quality.mean_psnr_db
            return -math.inf if quality.identical else math.inf if mean is None else self.min_psnr - mean
        return 100 * ((self.min_agreement or 0.0) - (quality.agreement or 0.0))

    def value(self, cell: Cell) -> float:
        """What is made small; infinite where it was not measured, or a limit is broken."""
        found = cell.figure(self.metric)
        return math.inf if found is None or self.broken(cell) else found.median

    def broken(self, cell: Cell) -> list[str]:
        """The limits that a cell does not keep, in words."""
        said = []
        for name, most in self.limits.items():
            found = cell.figure(name)
            if found is not None and found.median > most:
                said.append(f"{found.median:.4g} {UNITS[name]} of {_WORDS[name]}, at most {most:g} is asked for")
        return said

    def excess(self, cell: Cell) -> float:
        """How many times over the limits a cell is, by the one that it breaks most; 1 where it keeps them all."""
        found = [(cell.figure(name), most) for name, most in self.limits.items()]
        return max((figure.median / most for figure, most in found if figure is not None and most > 0), default=1.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "min_psnr": self.min_psnr,
            "min_agreement": self.min_agreement,
            "limits": dict(self.limits),
        }


_WORDS = {"latency_ms": "latency", "peak_mb": "memory", "disk_mb": "disk"}
