"""A comparison as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .differences import CANNOT_TELL, FAILS, NO_DIFFERENCE, Comparison, Difference


def to_table(found: Comparison) -> str:
    """Markdown: warnings, a row for each metric of each cell, and what that comes to."""
    parts = ["\n".join(f"warning: {line}" for line in found.warnings)] if found.warnings else []
    parts.append(_table(found.differences))
    lines = [
        f"only in {which}: {', '.join(names)}" for which, names in (("A", found.only_a), ("B", found.only_b)) if names
    ]
    parts += ["\n".join(lines)] if lines else []
    parts.append("\n".join(answer(found)))
    return "\n\n".join(parts)


def answer(found: Comparison) -> list[str]:
    """What it comes to, in sentences: what got worse, what else differs, what could not be told."""
    total = len(found.differences)
    better = [d for d in found.differing if d not in found.worse]
    lines = [f"B is worse: {_listed(found.worse)}."] if found.worse else []
    if better:
        lines.append(f"Differs, and is not held against B: {_listed(better)}.")
    if not found.differing:
        lines.append(f"No difference was found in {total} figures, at {found.confidence:.0%} for all together.")
    if found.untold:
        needed = [d.needed for d in found.untold if d.needed]
        rounds = f" {max(needed)} rounds would tell what more rounds can." if needed else ""
        lines.append(f"Of {len(found.untold)} of {total} figures it cannot be told.{rounds}")
    return lines


def _listed(rows: Sequence[Difference]) -> str:
    return "; ".join(f"{d.cell}, {d.metric}{_by(d)}" for d in rows)


def _by(row: Difference) -> str:
    return f" {_change(row, row.change)}" if row.change is not None else f" ({row.verdict})"


def _table(rows: Sequence[Difference]) -> str:
    lines = [
        "| cell | metric | A | B | change | between | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += ["| " + " | ".join(text.replace("|", "\\|") for text in _row(row)) + " |" for row in rows]
    return "\n".join(lines)


def _row(row: Difference) -> list[str]:
    between = "" if row.low is None else f"{_change(row, row.low)} and {_change(row, row.high)}"
    why = f": {row.why.splitlines()[0]}" if row.why else ""
    verdict = row.verdict if row.verdict in (NO_DIFFERENCE, CANNOT_TELL) else f"**{row.verdict}**"
    sides = [_figure(row, value) for value in (row.a, row.b)]
    return [
        row.cell,
        row.metric,
        *sides,
        "" if row.verdict == FAILS else _change(row, row.change),
        between,
        verdict + why,
    ]


def _figure(row: Difference, value: float | None) -> str:
    return "" if value is None else f"{_number(value)}{'' if row.unit.startswith('%') else ' '}{row.unit}"


def _change(row: Difference, value: float | None) -> str:
    """ "+15.2 %", of quality "-3.1 dB" and "-6.3 points"."""
    if value is None:
        return ""
    if row.unit == "dB":
        return f"{value:+.1f} dB"
    return f"{value:+.1f} points" if row.unit.startswith("%") else f"{value:+.1%}".replace("%", " %")


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
