"""What to choose and why, in sentences that are built from the figures alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..results import OBJECTIVES, Cell
from ..spec import DRAWING
from ..summary import Figure
from .choice import Bar, Choice, choose, relative
from .document import Strong
from .words import about, listed, many, measured, number, share, span, times

_NAMED = 3  # cells that a sentence names before it counts the others


def answer(cells: Sequence[Cell], bar: Bar) -> list[str]:
    """The paragraph of one group of measured cells."""
    fastest, memory, disk = choose(cells, bar, OBJECTIVES)
    if fastest.cell is None:
        return _unmet(fastest, bar)
    said = [*_fastest(fastest, len(cells), bar), *_remarks(fastest)]
    named, least = _least(
        memory, fastest.cell, fastest.cell, "needs the least memory", "needs less memory", "at its peak"
    )
    _, smallest = _least(disk, fastest.cell, named, "is the smallest on disk", "is smaller on disk", "")
    return [*said, *least, *smallest, *_full_precision(cells, fastest.cell, bar)]


def quality_in_words(cell: Cell) -> str:
    """How near its pictures or labels are to the source's."""
    found = cell.quality
    if found is None:
        return "its quality was not measured"
    if found.identical:
        return "its pictures are identical to the source's"
    if found.mean_psnr_db is not None:
        return f"its pictures are {found.label} from the source's"
    return f"{share(found.agreement or 0.0)} of its labels are the source's"


def bar_in_words(bar: Bar, task: str) -> str:
    """What is asked of quality; empty where nothing is."""
    if task in DRAWING:
        return "" if bar.psnr_db is None else f"{bar.psnr_db:g} dB to the source's pictures"
    return "" if bar.agreement is None else f"the source's label for {share(bar.agreement)} of the pictures"


def _unmet(choice: Choice, bar: Bar) -> list[str]:
    asked = choice.nearest or choice.baseline
    what = bar_in_words(bar, asked.spec.task) if asked else ""
    said = [f"Nothing that was measured reaches {what}. " if what else "Nothing that was measured passed its proof. "]
    if choice.nearest is not None:
        said += [Strong(choice.nearest.spec.how), f" comes nearest: {quality_in_words(choice.nearest)}. "]
    return said


def _fastest(choice: Choice, count: int, bar: Bar) -> list[str]:
    cell, base, own = choice.cell, choice.baseline, choice.figure
    if cell is None or own is None:
        return []
    name, took = Strong(cell.spec.how), measured(own, "ms")
    asked = bar_in_words(bar, cell.spec.task)
    among = f" of those that reach {asked}" if asked else f" of {many(count, 'cell')}"
    if base is None:
        return [name, f" is the fastest{among} with {took} a call; {quality_in_words(cell)}. ", _ALONE]
    if cell is base:
        return ["Stay with the baseline, ", name, f": nothing{among} is faster than its {took} a call. "]
    before = base.figure("latency_ms")
    beside = f"the baseline {base.spec.how}" + (f", which takes {measured(before, 'ms')}" if before else "")
    if choice.ratio is None:
        return [name, f" is the fastest{among} with {took} a call; it shares no round with {beside}. "]
    if choice.better:
        why = f"with {took} a call it is the fastest{among}, {times(choice.ratio)} of the time of {beside}; "
        return ["Choose ", name, f": {why}{quality_in_words(cell)}. "]
    unclear = f" has the lowest median{among}, {took} a call, but the rounds do not tell it from {beside}"
    return [name, f"{unclear}: the ratio is {times(choice.ratio)}. Nothing is shown to be faster. "]


_ALONE = "No fp32 cell was measured that it could be compared with. "


def _remarks(choice: Choice) -> list[str]:
    """What weakens it: others that are as good, noise, too few rounds."""
    said = []
    others = [
        f"{cell.spec.how} (ratio {_inside(beside)})" for cell, beside in choice.level if cell is not choice.baseline
    ]
    if others and choice.cell is not choice.baseline:
        shown = others[:_NAMED] + ([many(len(others) - _NAMED, "other")] if len(others) > _NAMED else [])
        said.append(f"The rounds do not tell it from {listed(shown)}. ")
    elif choice.level and choice.cell is choice.baseline:
        shown = [f"{cell.spec.how} (ratio {_inside(beside)})" for cell, beside in choice.level[:_NAMED]]
        said.append(f"The rounds do not tell {listed(shown)} from it. ")
    own = choice.figure
    if own is not None and own.count == 1:
        said.append("That is one round: nothing says how far another would be from it. ")
    elif own is not None and own.noisy:
        said.append(f"Its figure is noisy, for the rounds spread by {share(own.spread)} of the median. ")
    if choice.ratio is not None and choice.ratio.noisy:
        said.append("The ratio is noisy too: measure again where nothing else runs. ")
    return said


def _inside(ratio: Figure) -> str:
    """A ratio within brackets: "1.01, 0.97–1.05"."""
    return ", ".join(filter(None, (number(ratio.median), span(ratio))))


def _full_precision(cells: Sequence[Cell], fastest: Cell, bar: Bar) -> list[str]:
    """Of the cells that lose nothing by their recipe the fastest, where the fastest of all is none of them."""
    recipe = "fp32"
    if fastest.spec.recipe == recipe:
        return []
    choice = next(iter(choose([c for c in cells if c.spec.recipe == recipe], bar, ["latency"])), None)
    if choice is None or choice.cell is None or choice.figure is None:
        return []
    if choice.cell is choice.baseline:
        return ["In full precision nothing is faster than the baseline. "]
    took = measured(choice.figure, "ms")
    if not choice.better or choice.ratio is None:
        return ["In full precision nothing is shown to be faster than the baseline. "]
    return ["In full precision ", Strong(choice.cell.spec.how), f" is the fastest: {took}, {times(choice.ratio)}. "]


def _least(choice: Choice, fastest: Cell, named: Cell, what: str, compared: str, where: str) -> tuple[Cell, list[str]]:
    """The sentence of memory or disk, and the cell that it is of.

    named: the cell that the sentence before is of, which "it" stands for.
    """
    cell, base, metric = choice.cell, choice.baseline, OBJECTIVES[choice.objective]
    if cell is None:
        return named, []
    # a tie is no reason for another cell
    if fastest is not cell and (level := relative(fastest, cell, metric)) and level.median <= 1:
        cell = fastest
    own, before = cell.figure(metric), base.figure(metric) if base else None
    ratio = None if base is None or base is cell else relative(cell, base, metric)
    if own is None:
        return named, []
    had = f"{about(own, 'MB')} {where}".strip()
    if base is not None and (cell is base or (ratio is not None and ratio.median >= 1)):
        return base, [f"Nothing {compared} than the baseline{' either' if named is base else ''}: {had}. "]
    name: list[str] = ["It also"] if cell is named else [Strong(cell.spec.how)]
    beside = ""
    if ratio is not None and before is not None:
        part = times(ratio) if ratio.noisy or ratio.high >= 1 else number(ratio.median)
        beside = f", {part} of the baseline's {about(before, 'MB')}"
        beside += "" if ratio.high < 1 else ", which the rounds do not tell from it"
    slower = ""
    if cell not in (fastest, named) and (took := cell.figure("latency_ms")):
        slower = f"; a call takes {measured(took, 'ms')}, and {quality_in_words(cell)}"
    return cell, [*name, f" {what}: {had}{beside}{slower}. "]
