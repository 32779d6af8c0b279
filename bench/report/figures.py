"""The plots of a report, from cells: bars of what a call takes, the front of quality against latency, and machines."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Cell, Results, baseline_of
from . import plots, scatter
from .choice import groups, pareto
from .document import Plot
from .drawing import value_of
from .machines import letter, names
from .words import listed, number

_PANELS = {"latency_ms": "latency, ms", "peak_mb": "peak memory, MB", "disk_mb": "on disk, MB"}


def bars(name: str, what: str, cells: Sequence[Cell]) -> Plot:
    """Latency, memory and disk of each cell, the quickest first."""
    order = sorted(cells, key=_latency)
    series = _runtimes(cells)
    base = baseline_of(cells)
    rows = [
        plots.Bar(
            c.spec.how,
            series.index(c.spec.runtime),
            [value_of(c.figure(metric)) for metric in _PANELS],
            c is base,
        )
        for c in order
    ]
    wide, narrow = plots.bars(rows, list(_PANELS.values()), series)
    said = "medians over rounds; the thin line is from the lowest to the highest"
    said += f", the dashed one the baseline, {base.spec.how}" if base else ""
    text = f"Bar chart of {what}, quickest first: " + "; ".join(
        f"{c.spec.how} {number(f.median)} ms" for c in order if (f := c.figure("latency_ms"))
    )
    return Plot(f"{name}-bars", f"{what}: latency, memory and disk; {said}.", text, wide, narrow)


def front(name: str, what: str, cells: Sequence[Cell]) -> Plot | None:
    """Quality against latency; None where fewer than two cells have both."""
    series = _runtimes(cells)
    shown = [c for c in cells if c.quality is not None and c.figure("latency_ms") is not None]
    if len(shown) < 2:
        return None
    points = []
    for cell in shown:
        cost = value_of(cell.figure("latency_ms"))
        if cost is None or cell.quality is None:
            continue
        points.append(scatter.Point(cell.spec.how, series.index(cell.spec.runtime), cost, cell.quality.score))
    labels = shown[0].quality is not None and shown[0].quality.mean_psnr_db is None
    along = "labels that are the source's, %" if labels else "PSNR to the source's pictures, dB"
    most = "100" if labels else "identical"
    wide, narrow = scatter.front(points, "latency of a call, ms", along, series, most)
    best = pareto([(p.cost.median, p.quality) for p in points])
    hows = listed([points[i].label for i in best])
    said = f"{what}: the Pareto front of quality against latency. Nothing measured is both quicker and nearer to the "
    said += "source than a cell on the line; grey ones are beaten."
    if not labels:
        said += " Identical pictures count as 100 dB; above 50 dB, where no difference is seen, the scale is closer."
    if len(shown) < len(cells):
        said += " Cells without a known quality are left out."
    return Plot(f"{name}-front", said, f"Scatter plot of {what}. On the front: {hows}.", wide, narrow)


def machines(name: str, what: str, key: tuple[str, str], results: Sequence[Results]) -> Plot:
    """The latency of each cell on each machine."""
    found = [groups(r.measured).get(key, []) for r in results]
    hows = list(dict.fromkeys(c.spec.how for cells in found for c in cells))
    values = []
    for how in hows:
        cells = [next((c for c in group if c.spec.how == how), None) for group in found]
        values.append([value_of(c.figure("latency_ms")) if c else None for c in cells])
    wide, narrow = plots.dots(hows, names(results), values, "latency of a call, ms")
    letters = listed([letter(i) for i in range(len(results))])
    text = f"Dot plot of {what} on machines {letters}; the table above has its figures."
    return Plot(f"{name}-machines", f"{what}: latency on each machine, with the range over rounds.", text, wide, narrow)


def _latency(cell: Cell) -> float:
    found = cell.figure("latency_ms")
    return found.median if found else float("inf")


def _runtimes(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(c.spec.runtime for c in cells))
