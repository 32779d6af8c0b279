"""What every drawing of a report shares: matplotlib, its style, and SVG that takes its colours from the page around it.

Text is drawn as outlines of the font that comes with matplotlib, so that a drawing looks the same everywhere and its
labels keep the places that were found for them.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import MissingDependency
from ..summary import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing


# Colours that stand for variables of the page; what is written between them is what matplotlib writes.
INK, SOFT, LINE, GROUND, BEATEN = "#010101", "#020202", "#030303", "#040404", "#050505"
# Okabe and Ito, "Color Universal Design" (2008), darkened for white paper; the page has lighter ones for a dark ground
SERIES = ("#110001", "#110002", "#110003", "#110004", "#110005", "#110006")
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "rule", GROUND: "paper", BEATEN: "beaten"} | {
    c: f"c{i}" for i, c in enumerate(SERIES, 1)
}
LIGHT = {
    **{"ink": "#1a1a1a", "soft": "#5d6066", "rule": "#c9c9c6", "paper": "#ffffff", "beaten": "#b3b5b9"},
    **{"c1": "#0072b2", "c2": "#d55e00", "c3": "#00866a", "c4": "#b0568f", "c5": "#9a6b00", "c6": "#4b4f58"},
}
DARK = {
    **{"ink": "#e9e7e2", "soft": "#a3a6ad", "rule": "#43474f", "paper": "#16181c", "beaten": "#70757e"},
    **{"c1": "#56b4e9", "c2": "#f08a4b", "c3": "#2fbf98", "c4": "#dd8fc0", "c5": "#e0ac2b", "c6": "#b9bec8"},
}
MARKS = ("o", "s", "^", "D", "v", "P")
WIDE, NARROW = 10.4, 3.9  # inches
_DPI = 72  # an SVG's points
_STYLE = {"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "vitrify"}
LOG = 8.0  # longest / shortest time above which its axis is logarithmic


@dataclass(frozen=True)
class Value:
    """A median with the lowest and highest."""

    median: float
    low: float
    high: float


def check_matplotlib() -> None:
    """For what measures first and draws later.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import matplotlib.style  # noqa: F401
    except ImportError as exc:
        raise MissingDependency("A report's plots need matplotlib.", 'pip install "vitrify[bench]"') from exc


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own style, whatever this user's is, with our font."""
    check_matplotlib()
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def drawing(size: tuple[float, float]) -> Drawing:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    figure.patch.set_visible(False)
    return figure


def bare(ax: Axes, both: bool = False) -> None:
    ax.patch.set_visible(False)
    for side in ("top", "right", "left", "bottom"):
        ax.spines[side].set_visible(side == "bottom" or (both and side == "left"))
        ax.spines[side].set(color=LINE, linewidth=0.8)
    ax.tick_params(colors=SOFT, labelsize=7.5, length=2.5, width=0.7)
    for label in ax.get_xticklabels():
        label.set_parse_math(False)


def logarithmic(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def wrapped(label: str, narrow: bool) -> str:
    """A name on one line or two; what does not fit is cut, so that it leaves room for the drawing."""
    lines = textwrap.wrap(label, 32 if narrow else 46, max_lines=2, placeholder=" …")
    return "\n".join(lines)


def names(ax: Axes, labels: Sequence[str], narrow: bool) -> None:
    """Write the names of rows, the first on top."""
    ax.set_yticks(range(len(labels)))
    for text in ax.set_yticklabels([wrapped(label, narrow) for label in labels], fontsize=8, linespacing=0.9):
        text.set_parse_math(False)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(len(labels) - 0.5, -0.5)


def legend(figure: Drawing, used: Sequence[int] | range, names: Sequence[str], marks: Sequence[str]) -> None:
    """Names of the colours over the drawing, where there is more than one."""
    if len(used) < 2:
        return
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], ls="", marker=marks[i % len(marks)], ms=5.5, color=SERIES[i % len(SERIES)]) for i in used]
    labels = [wrapped(names[i], False) for i in used]
    room = figure.get_figwidth() * _DPI - sum(5.5 * len(label) + 25 for label in labels)
    box = figure.legend(
        handles=handles,
        labels=labels,
        loc="outside upper left",
        ncols=len(handles) if room > 0 else 1,
        frameon=False,
        fontsize=8,
        handletextpad=0.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text in box.get_texts():
        text.set(color=INK, parse_math=False)


def svg_of(figure: Drawing) -> str:
    """The drawing as an <svg> element whose colours are variables, with nothing of when or by what it was made."""
    packed = io.StringIO()
    figure.savefig(packed, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = packed.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text


def prefixed(svg: str, prefix: str) -> str:
    """The drawing with ids of its own, so that several stand in one page."""
    rules: Mapping[str, Callable[[re.Match[str]], str]] = {
        r'\bid="([^"]+)"': lambda m: f'id="{prefix}-{m[1]}"',
        r'href="#([^"]+)"': lambda m: f'href="#{prefix}-{m[1]}"',
        r"url\(#([^)]+)\)": lambda m: f"url(#{prefix}-{m[1]})",
    }
    for pattern, rule in rules.items():
        svg = re.sub(pattern, rule, svg)
    return svg


def standalone(svg: str) -> str:
    """The same drawing as a file of its own, on white."""
    found = re.sub(r"var\(--(\w+)\)", lambda m: LIGHT[m[1]], svg)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n' + found.replace("<svg ", '<svg style="background:#fff" ', 1) + "\n"
    )


def value_of(found: Figure | None) -> Value | None:
    """A figure as a drawing takes it."""
    return None if found is None else Value(found.median, found.low, found.high)
