"""The Pareto front drawn: quality against cost, every point with its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from .choice import pareto
from .drawing import (
    BEATEN,
    GROUND,
    INK,
    LOG,
    MARKS,
    NARROW,
    SERIES,
    SOFT,
    WIDE,
    Value,
    bare,
    drawing,
    legend,
    logarithmic,
    style,
    svg_of,
    wrapped,
)
from .labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

# dB above which nobody sees a difference in 8-bit pictures: that part of the axis is drawn so many times closer
_SEEN, _CLOSER = 50.0, 5.0


@dataclass(frozen=True)
class Point:
    """A point of the front."""

    label: str
    series: int
    cost: Value
    quality: float


def front(
    points: Sequence[Point], across: str, along: str, series: Sequence[str], most: str = "100"
) -> tuple[str, str]:
    """Quality against cost; the points that nothing beats are joined by a stair, the others grey.

    Args:
        across, along: titles of the axes. series: names of the colours. most: what a quality of 100 is called.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    with style():
        texts = (across, along, most)
        return _grown(points, texts, series, False), _grown(points, texts, series, True)


def _grown(points: Sequence[Point], texts: tuple[str, str, str], series: Sequence[str], narrow: bool) -> str:
    """The front, drawn higher until each label has a place of its own."""
    width, height = (NARROW, 3.6) if narrow else (WIDE, 4.2)
    points = [replace(p, label=wrapped(p.label, narrow)) for p in points]
    for factor in (1.0, 1.3, 1.7):
        figure, clean = _front(points, texts, series, (width, height * factor), 6.6 if narrow else 7.8)
        if clean:
            break
    return svg_of(figure)


def _front(
    points: Sequence[Point],
    texts: tuple[str, str, str],
    series: Sequence[str],
    size: tuple[float, float],
    font: float,
) -> tuple[Drawing, bool]:
    best = pareto([(p.cost.median, p.quality) for p in points])
    order = [*best, *(i for i in range(len(points)) if i not in best)]
    figure = drawing(size)
    ax = figure.subplots()
    bare(ax, both=True)
    least, longest = min(p.cost.low for p in points), max(p.cost.high for p in points)
    if longest > LOG * least > 0:
        logarithmic(ax)
        ax.set_xlim(least / 1.4, longest * 1.9)
    else:
        ax.set_xlim(0, longest * 1.22)
    low, high = min(p.quality for p in points), max(p.quality for p in points)
    room = 0.16 * (high - low) or 1.0
    closer = low < _SEEN < high and texts[2] != "100"
    if closer:
        ax.set_yscale("function", functions=(_squeeze, _stretch))
        room = 0.16 * (_squeeze(high) - low)
        ax.set_yticks([*range(int(low // 5) * 5, int(_SEEN) + 1, 5), 100])
    ax.set_ylim(low - room, _stretch(_squeeze(high) + room) if closer else high + room)
    ticks = [t for t in ax.get_yticks() if low - room <= t <= 100]  # there is no more
    ax.set_yticks(ticks, [texts[2] if t == 100 else f"{t:g}" for t in ticks])
    stair = [(points[i].cost.median, points[i].quality) for i in best]
    ax.step(*zip(*stair, strict=True), where="post", color=INK, lw=1.0, zorder=1)
    for i, point in enumerate(points):
        on = i in best
        colour = SERIES[point.series % len(SERIES)] if on else BEATEN
        ax.plot([point.cost.low, point.cost.high], [point.quality] * 2, color=colour, lw=1.0, zorder=2.5 if on else 2)
        mark = MARKS[point.series % len(MARKS)]
        ax.plot(
            point.cost.median, point.quality, mark, color=colour, ms=6.5, mec=GROUND, mew=0.7, zorder=4 if on else 3
        )
    ax.set_xlabel(texts[0], fontsize=8.5, color=SOFT)
    ax.set_ylabel(texts[1], fontsize=8.5, color=SOFT)
    legend(figure, sorted({p.series for p in points}), series, MARKS)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes stay where the labels' places are found
    return figure, _write_labels(figure, ax, points, order, len(best), font, stair)


def _squeeze(quality: Any) -> Any:
    """dB (a number or an array) -> height on the axis."""
    import numpy as np

    return np.where(quality > _SEEN, _SEEN + (quality - _SEEN) / _CLOSER, quality)


def _stretch(height: Any) -> Any:
    """The inverse of `_squeeze`."""
    import numpy as np

    return np.where(height > _SEEN, _SEEN + (height - _SEEN) * _CLOSER, height)


def _write_labels(
    figure: Drawing,
    ax: Axes,
    points: Sequence[Point],
    order: Sequence[int],
    best: int,
    font: float,
    stair: Sequence[tuple[float, float]],
) -> bool:
    """Put each point's name beside it; returns whether no two overlap."""
    from matplotlib.transforms import IdentityTransform

    own = IdentityTransform()  # places are in the drawing's points
    texts = [ax.text(0, 0, points[i].label, fontsize=font, transform=own, va="bottom", zorder=5) for i in order]
    for rank, text in enumerate(texts):
        text.set(color=INK if rank < best else SOFT, parse_math=False)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    sizes = [(box.width, box.height) for box in (t.get_window_extent(renderer) for t in texts)]
    at = [tuple(ax.transData.transform((points[i].cost.median, points[i].quality))) for i in order]
    whole = ax.get_window_extent(renderer)
    inside = Box(whole.x0, whole.y0, whole.width, whole.height)
    steps = [tuple(ax.transData.transform(p)) for p in stair]
    obstacles = []
    for (x0, y0), (x1, y1) in pairwise(steps):
        obstacles += [Box(x0, y0 - 0.5, x1 - x0, 1.0), Box(x1 - 0.5, min(y0, y1), 1.0, abs(y1 - y0))]
    for p in points:
        ends = [ax.transData.transform((x, p.quality)) for x in (p.cost.low, p.cost.high)]
        obstacles.append(Box(ends[0][0], ends[0][1] - 0.6, ends[1][0] - ends[0][0], 1.2))
    placed, clean = place(at, sizes, inside, 4.0, obstacles)
    for text, point, found in zip(texts, at, placed, strict=True):
        text.set_position((found.box.x, found.box.y))
        if found.anchor is not None:
            across, along = zip(point, found.anchor, strict=True)
            ax.plot(across, along, color=SOFT, lw=0.5, zorder=2, transform=own)
    return clean
