"""The machines that were measured on: their facts side by side, what differs, and the same cell on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..machine import differences, fingerprint, version_differences
from ..results import Cell, Results, baseline_of
from ..summary import Figure
from .choice import groups, relative
from .document import NOTHING, Column, Entry, Table
from .words import bytes_, number, span

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# facts in bytes
_SIZES = ("memory", "swap")
_CALLED = {"cpu": "processor", "isa": "instruction sets", "gpus": "GPUs", "max mhz": "highest MHz"}


def names(results: Sequence[Results]) -> list[str]:
    """What each machine is called in a report: its processor, with a letter before it where there are several."""
    said = [_short(r.machine) for r in results]
    return said if len(said) == 1 else [f"{letter(i)}: {name}" for i, name in enumerate(said)]


def letter(position: int) -> str:
    """A, B, C and so on."""
    return _LETTERS[position] if position < len(_LETTERS) else str(position + 1)


def facts_table(results: Sequence[Results]) -> Table:
    """A row a fact, a column a machine."""
    columns = [{"fingerprint": fingerprint(r.machine), **flat(r.machine), **_reached(r)} for r in results]
    keys = dict.fromkeys(key for facts in columns for key in facts)
    rows = [[Entry(_CALLED.get(key, key)), *(Entry(facts.get(key, "–")) for facts in columns)] for key in keys]
    return Table("The machine" + "s" * (len(results) > 1), _columns("fact", results), rows)


def warnings(results: Sequence[Results]) -> list[str]:
    """What differs between the first machine and each other, and decides speed."""
    said = []
    for i, other in enumerate(results[1:], 1):
        first = results[0]
        apart, libraries = (
            differences(first.machine, other.machine),
            version_differences(first.versions, other.versions),
        )
        if apart:
            said.append(f"A and {letter(i)} differ in {'; '.join(apart)}. ")
        if libraries:
            said.append(f"A and {letter(i)} have other versions of {'; '.join(libraries)}. ")
    return said


def versions_table(results: Sequence[Results]) -> Table:
    """A row a library, a column a machine."""
    keys = dict.fromkeys(key for r in results for key in r.versions)
    rows = [[Entry(key), *(Entry(str(r.versions.get(key, "–"))) for r in results)] for key in keys]
    return Table("Versions of libraries", _columns("library", results), rows)


def side_by_side(model: str, asked: str, results: Sequence[Results], caption: str) -> Table:
    """The cells of one group: on each machine latency, its ratio to that machine's baseline, and to the first machine.

    Ratios between machines are of medians, since no round was run on both; their range is the widest that the rounds of
    both allow.
    """
    found = [groups(r.measured).get((model, asked), []) for r in results]
    bases = [baseline_of(cells) for cells in found]
    hows = list(dict.fromkeys(c.spec.how for cells in found for c in cells))
    columns = [Column("cell", words=True)]
    for i in range(len(results)):
        where = f"machine {letter(i)}"
        titles = ["latency, ms", "÷ its baseline", *(["÷ A"] if i else []), "memory, MB", "quality"]
        columns += [Column(title, where, alone=f"{letter(i)}: {title}") for title in titles]
    rows = []
    for how in hows:
        cells = [next((c for c in group if c.spec.how == how), None) for group in found]
        row = [Entry(how)]
        for i, (cell, base) in enumerate(zip(cells, bases, strict=True)):
            own = cell.figure("latency_ms") if cell else None
            row += [_entry(own), _entry(relative(cell, base, "latency_ms") if cell and base else None)]
            if i:
                row.append(_entry(between(own, cells[0].figure("latency_ms") if cells[0] else None)))
            peak = cell.figure("peak_mb") if cell else None
            row += [Entry(number(peak.median)) if peak else NOTHING, _quality(cell)]
        rows.append(row)
    notes = [
        "Each baseline is that machine's first fp32 cell. ÷ A compares medians: no round was run on two machines, "
        "so its range is the widest that the rounds of both allow."
    ]
    return Table(caption, columns, rows, notes)


def between(above: Figure | None, below: Figure | None) -> Figure | None:
    """The ratio of two medians that share no round, with the widest range that both ranges allow."""
    if above is None or below is None or not below.low or not below.median:
        return None
    low, high = above.low / below.high, above.high / below.low
    return Figure(above.median / below.median, low, high, min(above.count, below.count), False)


def shared_groups(results: Sequence[Results]) -> list[tuple[str, str]]:
    """(model, what is asked) of those that two machines or more measured."""
    counts: dict[tuple[str, str], int] = {}
    for one in results:
        for key in groups(one.measured):
            counts[key] = counts.get(key, 0) + 1
    return [key for key, count in counts.items() if count > 1]


def _reached(results: Results) -> dict[str, str]:
    peak = results.peak_gflops
    return {} if peak is None else {"matrix product, best": f"{number(peak)} GFLOP/s in float32"}


def _columns(first: str, results: Sequence[Results]) -> list[Column]:
    if len(results) == 1:
        return [Column("", words=True), Column("", words=True)]
    titles = [f"machine {letter(i)}" for i in range(len(results))]
    return [Column(first, words=True), *(Column(title, words=True) for title in titles)]


def _entry(found: Figure | None) -> Entry:
    return NOTHING if found is None else Entry(number(found.median), span(found))


def _quality(cell: Cell | None) -> Entry:
    if cell is None:
        return NOTHING
    return Entry("not run" if cell.quality is None else cell.quality.label)


def _short(machine: Mapping[str, Any]) -> str:
    cpu = " ".join(str(machine.get("cpu") or "unknown machine").split())
    cores = machine.get("usable_cores") or machine.get("cores")
    return f"{cpu}, {cores} core{'' if cores == 1 else 's'}" if cores else cpu


def flat(facts: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Facts within facts by names of several words; lists as one line."""
    found: dict[str, str] = {}
    for key, value in facts.items():
        name = " ".join([above, str(key).replace("_", " ")]).strip()
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif value is None or value in ("", []):
            continue
        elif isinstance(value, bool):
            found[name] = "yes" if value else "no"
        elif isinstance(value, list | tuple):
            found[name] = ", ".join(
                " ".join(str(v) for v in one.values()) if isinstance(one, Mapping) else str(one) for one in value
            )
        elif key in _SIZES and isinstance(value, int | float):
            found[name] = bytes_(value) if value else "none"
        else:
            found[name] = str(value)
    return found
