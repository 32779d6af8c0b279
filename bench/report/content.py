"""What a report says, and in which order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence

from ..results import Results
from ..summary import figure
from . import figures, machines, tables
from .answers import answer, bar_in_words
from .choice import Bar, groups
from .command import commands, timing
from .document import Block, Column, Document, Entry, Heading, Paragraph, Strong, Table, Verbatim
from .pictures import gallery
from .words import asked_in_words, day, listed, many, measured, number, share

_BUSY = 0.2  # cores that others used, on average of a run, above which it is said


def build(results: Sequence[Results], bar: Bar) -> Document:
    """The report of one machine, or of several side by side."""
    models = list(dict.fromkeys(c.spec.model for r in results for c in r.cells)) or ["nothing"]
    where = machines.names(results)
    cells = sum(len(r.cells) for r in results)
    rounds = max((int(r.plan.get("rounds", 1)) for r in results), default=1)
    title = listed(models) if len(results) == 1 else f"{listed(models)} on {len(results)} machines"
    subtitle = f"{'; '.join(where)}. {many(cells, 'cell')}, {many(rounds, 'round')}, {day(results[0].started)}."
    blocks = [*_answers(results, where, bar), *_machines(results)]
    if len(results) > 1:
        blocks += _side_by_side(results)
    for i, one in enumerate(results):
        blocks += _measurements(one, "" if len(results) == 1 else machines.letter(i))
    for one, name in zip(results, where, strict=True):
        blocks += _pictures(one, name if len(results) > 1 else "")
    blocks += _not_measured(results, where)
    blocks += _how(results, where)
    return Document(title, subtitle, blocks)


def _answers(results: Sequence[Results], where: Sequence[str], bar: Bar) -> Iterator[Block]:
    yield Heading(2, "What to choose")
    several = len(results) > 1
    for model in dict.fromkeys(c.spec.model for r in results for c in r.cells):
        yield Heading(3, model)
        known = False
        for one, name in zip(results, where, strict=True):
            for (owner, _), cells in groups(one.measured).items():
                if owner != model:
                    continue
                known = True
                question = asked_in_words(cells[0])
                lead = question[0].upper() + question[1:] + (f", on machine {name}" if several else "")
                yield Paragraph([Strong(f"{lead}. "), *answer(cells, bar)], "answer")
        if not known:
            yield Paragraph(["Nothing of it was measured."], "answer")
    asked = [words for task in ("text2img", "classify") if (words := bar_in_words(bar, task))]
    if asked:
        yield Paragraph([f"Asked of quality: {listed(asked)}."], "note")
    else:
        yield Paragraph(["No bar of quality was set: whatever passed its proof is in the running."], "note")


def _machines(results: Sequence[Results]) -> Iterator[Block]:
    yield Heading(2, "The machines" if len(results) > 1 else "The machine")
    for warning in machines.warnings(results):
        yield Paragraph([Strong("Unlike machines. "), warning], "warning")
    yield machines.facts_table(results)


def _side_by_side(results: Sequence[Results]) -> Iterator[Block]:
    shared = machines.shared_groups(results)
    yield Heading(2, "Side by side")
    if not shared:
        yield Paragraph(["No two machines measured the same model with the same question."])
    for key in shared:
        cells = next(cells for r in results if (cells := groups(r.measured).get(key)))
        what = f"{key[0]}, {asked_in_words(cells[0])}"
        yield Heading(3, what)
        yield machines.side_by_side(*key, results, f"{what}: the same cells on each machine")
        yield figures.machines(_slug(what), what, key, results)


def _measurements(results: Results, machine: str) -> Iterator[Block]:
    yield Heading(2, f"Measured on machine {machine}" if machine else "Measurements")
    found = groups(results.measured)
    if not found:
        yield Paragraph(["Nothing was measured."])
    for (model, _), cells in found.items():
        what = f"{model}, {asked_in_words(cells[0])}"
        name = _slug(f"{machine} {what}")
        yield Heading(3, what)
        yield tables.main_table(f"{what}: what each cell takes", cells, results.peak_gflops)
        yield tables.parts_table(f"{what}: where the time goes", cells)
        yield figures.bars(name, what, cells)
        plot = figures.front(name, what, cells)
        yield plot or Paragraph(["Fewer than two cells have a known quality, so there is no front to draw."], "note")


def _pictures(results: Results, machine: str) -> Iterator[Block]:
    folder = results.path.parent
    shown = [
        made
        for model in dict.fromkeys(c.spec.model for c in results.cells)
        if (made := gallery(model, [c for c in results.cells if c.spec.model == model], folder))
    ]
    if shown:
        yield Heading(2, f"Sample pictures of machine {machine}" if machine else "Sample pictures")
        yield from shown


def _not_measured(results: Sequence[Results], where: Sequence[str]) -> Iterator[Block]:
    several = len(results) > 1
    skipped = [(name, line) for r, name in zip(results, where, strict=True) for line in r.skipped]
    unreached = [
        (name, cell)
        for r, name in zip(results, where, strict=True)
        for cell in r.cells
        if cell.failure is None and not cell.samples
    ]
    failed = [(name, cell) for r, name in zip(results, where, strict=True) for cell in r.failed]
    if skipped:
        yield Heading(2, "Skipped")
        columns = [Column(title, words=True) for title in ("cell", "why", "what would change that")]
        rows = [
            [
                Entry(str(line.get("case")), name if several else ""),
                *(Entry(str(line.get(k, ""))) for k in ("what", "fix")),
            ]
            for name, line in skipped
        ]
        yield Table("Cells that cannot be", columns, rows)
    if unreached:
        yield Heading(2, "Not reached")
        said = listed([cell.name + (f" on machine {name}" if several else "") for name, cell in unreached])
        yield Paragraph([f"The run ended before it came to {said}."])
    if failed:
        yield Heading(2, "Failed")
        for name, cell in failed:
            yield Paragraph([Strong(cell.name), f", on machine {name}:" if several else ":"])
            yield Verbatim(str(cell.failure))


def _how(results: Sequence[Results], where: Sequence[str]) -> Iterator[Block]:
    yield Heading(2, "How it was measured")
    for one, name in zip(results, where, strict=True):
        lead = [Strong(f"{name}. ")] if len(results) > 1 else []
        yield Paragraph([*lead, *_method(one)])
        if found := commands(one):
            yield Paragraph(["To measure it again:"])
            yield Verbatim("\n".join(found))
    if len(results) == 1:
        versions = ", ".join(f"{name} {version}" for name, version in results[0].versions.items())
        yield Paragraph([f"Versions: {versions}."], "note")
    else:
        yield machines.versions_table(results)


def _method(results: Results) -> list[str]:
    counts = sorted({len(c.samples) for c in results.measured}) or [0]
    turns = many(counts[0], "round") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} rounds"
    said = [
        f"Each run is a process of its own. Cells take turns in {turns}, every second one backwards, "
        "so that a machine whose speed drifts slows all alike; ratios are taken within a round. "
    ]
    if len(counts) > 1:
        said.append("What a search gave up early was measured for less time. ")
    elif held := timing(results):
        seconds, calls = held
        said.append(
            f"A process opens the artifact, calls once, warms up, and times calls for {seconds} s, at least {calls}. "
        )
    samples = [s for c in results.measured for s in c.samples]
    sticks = [s.values["yardstick_ms"] for s in samples if "yardstick_ms" in s.values]
    if sticks:
        found = figure(sticks)
        said.append(
            f"Between the calls a fixed matrix product was timed: {measured(found, 'ms')} over all processes. "
            + ("The machine was not equally quick throughout. " if found.noisy else "The machine was steady. ")
        )
    busy = [s.others_cores for s in samples if s.others_cores > _BUSY]
    if busy:
        said.append(
            f"In {share(len(busy) / len(samples))} of the runs other processes used over {_BUSY:g} cores, "
            f"{number(max(busy))} at most. "
        )
    return said


def _slug(text: str) -> str:
    """A name for a file; texts that differ get names that differ."""
    return f"{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:40]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
