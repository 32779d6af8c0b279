"""Bars and dots: what the cells of one machine take, and the same cells on several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .drawing import (
    GROUND,
    INK,
    LINE,
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
    names,
    style,
    svg_of,
    wrapped,
)
from .words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Bar:
    """A row of bars. values: by panel; None where it was not measured. series: which colour."""

    label: str
    series: int
    values: Sequence[Value | None]
    reference: bool = False


def bars(rows: Sequence[Bar], panels: Sequence[str], series: Sequence[str]) -> tuple[str, str]:
    """Horizontal bars from 0 with their ranges, a panel a figure; the reference's value is a line through its panel.

    Args:
        panels: titles with units, as many as each row has values. series: names of the colours.

    Returns:
        SVG for a wide page, its panels side by side, and for a narrow one, its panels one below another.

    Raises:
        MissingDependency: matplotlib is not installed.
    """

    def draw(narrow: bool) -> str:
        row = 0.3 if any("\n" in wrapped(r.label, narrow) for r in rows) else 0.25
        high = len(rows) * row + 0.55
        shape = (len(panels), 1) if narrow else (1, len(panels))
        size = (NARROW, high * len(panels) + 0.4) if narrow else (WIDE, high + 0.4)
        figure = drawing(size)
        axes = figure.subplots(*shape, sharey=not narrow, squeeze=False).flatten()
        for number_, (ax, title) in enumerate(zip(axes, panels, strict=True)):
            _panel(ax, rows, number_, title, narrow)
        legend(figure, sorted({r.series for r in rows}), series, ("s",) * len(MARKS))
        return svg_of(figure)

    with style():
        return draw(False), draw(True)


def dots(
    labels: Sequence[str], machines: Sequence[str], values: Sequence[Sequence[Value | None]], title: str
) -> tuple[str, str]:
    """A row a label, a dot with its range a machine, on a common axis.

    Args:
        values: by label, then by machine.

    Raises:
        MissingDependency: matplotlib is not installed.
    """

    def draw(narrow: bool) -> str:
        figure = drawing((NARROW if narrow else WIDE, len(labels) * 0.3 + 0.95))
        ax = figure.subplots()
        bare(ax)
        known = [v for row in values for v in row if v is not None]
        least, longest = min((v.low for v in known), default=0.0), max((v.high for v in known), default=1.0)
        if longest > LOG * least > 0:
            logarithmic(ax)
        else:
            ax.set_xlim(0, longest * 1.06)
        for y, row in enumerate(values):
            ax.axhline(y, color=LINE, lw=0.5, zorder=0)
            for k, value in enumerate(row):
                if value is not None:
                    colour, at = SERIES[k % len(SERIES)], y + (k - (len(row) - 1) / 2) * 0.22
                    ax.plot([value.low, value.high], [at, at], color=colour, lw=1.2, solid_capstyle="butt")
                    ax.plot(value.median, at, MARKS[k % len(MARKS)], color=colour, ms=5, mec=GROUND, mew=0.6)
        names(ax, labels, narrow)
        ax.set_xlabel(title, fontsize=8, color=SOFT)
        legend(figure, range(len(machines)), machines, MARKS)
        return svg_of(figure)

    with style():
        return draw(False), draw(True)


def _panel(ax: Axes, rows: Sequence[Bar], panel: int, title: str, narrow: bool) -> None:
    bare(ax)
    shown = [(y, r, v) for y, r in enumerate(rows) if (v := r.values[panel]) is not None]
    top = max((v.high for _, _, v in shown), default=1.0) or 1.0
    for y, row, value in shown:
        ax.barh(y, value.median, height=0.62, color=SERIES[row.series % len(SERIES)], lw=0)
        if value.high > value.low:
            ax.plot([value.low, value.high], [y, y], color=INK, lw=0.9, solid_capstyle="butt")
        said = ax.text(value.high + top * 0.02, y, number(value.median), va="center", fontsize=7.5, color=INK, zorder=6)
        said.set_bbox({"facecolor": GROUND, "edgecolor": "none", "pad": 0.8})  # over the baseline's line
        said.set_parse_math(False)
        if row.reference:
            ax.axvline(value.median, color=INK, lw=0.7, ls=(0, (3, 2)), zorder=0)
    for y, _ in ((y, r) for y, r in enumerate(rows) if r.values[panel] is None):
        ax.text(top * 0.015, y, "not measured", va="center", fontsize=7.5, color=SOFT)
    ax.set_xlim(0, top * 1.17)
    ax.set_title(title, fontsize=8.5, color=INK, loc="left", pad=6)
    names(ax, [r.label for r in rows], narrow)
    ax.tick_params(axis="y", labelleft=narrow or panel == 0)
