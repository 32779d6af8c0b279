"""Which cell to choose: those above a bar of quality, the best of them by an objective, and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import UsageError
from ..results import OBJECTIVES, Cell, Results, baseline_of
from ..summary import Figure, figure


@dataclass(frozen=True)
class Bar:
    """The least quality that is accepted. An empty one accepts whatever did not fail its proof.

    psnr_db: on average over the pictures that were drawn. agreement: share of pictures with the source's best label.
    """

    psnr_db: float | None = None
    agreement: float | None = None

    def is_met(self, cell: Cell) -> bool:
        """Whether a cell is good enough. One whose quality is not known is not, where something is asked of it."""
        asked = self.psnr_db if cell.spec.draws else self.agreement
        if asked is None:
            return "failed_proof" not in cell.facts
        if cell.quality is None:
            return False
        found = cell.quality.mean_psnr_db if cell.spec.draws else cell.quality.agreement
        return found is not None and found >= asked


@dataclass(frozen=True)
class Choice:
    """The best cell of one model and question by one objective.

    cell: None where no measured cell meets the bar; nearest: the one that comes nearest to it then.
    baseline: the first float32 cell; None where none was measured. ratio: cell / baseline, paired by round; None where
    they are the same or there is no baseline.
    level: other cells above the bar that the rounds do not tell from it, each with its ratio to `cell`.
    """

    model: str
    asked: str
    objective: str
    cell: Cell | None
    baseline: Cell | None = None
    ratio: Figure | None = None
    level: Sequence[tuple[Cell, Figure]] = ()
    nearest: Cell | None = None

    @property
    def better(self) -> bool:
        """Whether it is better than the baseline in every round."""
        return self.ratio is not None and self.ratio.high < 1

    @property
    def figure(self) -> Figure | None:
        """What the objective is read from."""
        return None if self.cell is None else self.cell.figure(OBJECTIVES[self.objective])


def choose(
    results: Results | Iterable[Cell], bar: Bar | None = None, objectives: Iterable[str] = tuple(OBJECTIVES)
) -> list[Choice]:
    """The best cell by each objective, for each model and each question that it was asked.

    Cells that failed, or lack the figure, are out of it.

    Raises:
        UsageError: an objective that there is not.
    """
    cells = results.measured if isinstance(results, Results) else list(results)
    wanted = list(objectives)
    for objective in wanted:
        if objective not in OBJECTIVES:
            raise UsageError(f"There is no objective {objective!r}.", f"Objectives are {', '.join(OBJECTIVES)}.")
    held = bar or Bar()
    return [_choice(group, held, objective) for group in groups(cells).values() for objective in wanted]


def groups(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Cell]]:
    """(model, what is asked) -> its cells: only those compare. In the order in which they are given."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.spec.model, cell.spec.asked), []).append(cell)
    return found


def relative(cell: Cell, other: Cell, metric: str) -> Figure | None:
    """cell / other in each round that both have; of a fact, which has no rounds, once. None: one of them lacks it."""
    above, below = cell.per_round(metric), other.per_round(metric)
    ratios = [above[number] / below[number] for number in above if below.get(number)]
    if not ratios:
        a, b = cell.figure(metric), other.figure(metric)
        if above or below or a is None or b is None or not b.median:
            return None
        ratios = [a.median / b.median]
    return figure(ratios)


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The front of (cost, quality) points: those that none other beats in one without losing in the other.

    Returns:
        Their positions, from the least cost to the most; of equal points all.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    best: tuple[float, float] | None = None  # the last that was kept: the highest quality so far
    for i in order:
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
            best = points[i]
    return front


def _choice(cells: Sequence[Cell], bar: Bar, objective: str) -> Choice:
    metric = OBJECTIVES[objective]
    spec, baseline = cells[0].spec, baseline_of(cells)
    measured = [(found.median, c) for c in cells if (found := c.figure(metric)) is not None]
    good = [(median, c) for median, c in measured if bar.is_met(c)]
    if not good:
        scored = [c for _, c in measured if c.quality is not None]
        nearest = max(scored, key=lambda c: c.quality.score if c.quality else 0.0, default=None)
        return Choice(spec.model, spec.asked, objective, None, baseline, nearest=nearest)
    cell = min(good, key=lambda found: found[0])[1]
    ratio = None if baseline is None or baseline is cell else relative(cell, baseline, metric)
    level = []
    for _, other in good:
        beside = None if other is cell else relative(other, cell, metric)
        if beside is not None and beside.low <= 1:
            level.append((other, beside))
    return Choice(spec.model, spec.asked, objective, cell, baseline, ratio, level)
