"""A bench: its cases, what it compares them with, and how it is prepared. A new one is a file and a line in `first`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.progress import Event
from .measure import Case, measure
from .records import Sample
from .summary import Columns, Row, summarize

TIMEOUT = 3600.0


@dataclass(frozen=True)
class Comparison:
    """Cases in one table, and the one among them that the others are divided by.

    baseline: None divides nothing. cases: their names, all of the bench where empty; one may be in several tables.
    """

    title: str
    baseline: str | None
    cases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What is measured together, in turns.

    cases, prepare: of the folder that `--work` names. prepare is not measured.
    warmup, rounds: how often each case runs uncounted and counted. columns: what its tables show; None: everything.
    timeout: seconds for one run.
    """

    name: str
    cases: Callable[[Path], list[Case]]
    prepare: Callable[[Path], None]
    comparisons: tuple[Comparison, ...]
    warmup: int = 0
    rounds: int = 3
    columns: Columns | None = None
    timeout: float = TIMEOUT

    def run(self, work: Path, rounds: int | None = None, warmup: int | None = None) -> list[Sample]:
        """Prepare and measure; the samples are appended to WORK/NAME.jsonl.

        Raises:
            CaseFailed, BadInput: see `measure`, and what could not be prepared.
        """
        self.prepare(work)
        return measure(
            self.cases(work),
            rounds=self.rounds if rounds is None else rounds,
            warmup=self.warmup if warmup is None else warmup,
            report=_progress,
            out=work / f"{self.name}.jsonl",
            timeout=self.timeout,
        )

    def compare(self, samples: Sequence[Sample]) -> list[Row]:
        """The rows of its tables, from its samples. A case that failed has none; without its baseline, no ratios."""
        rows: list[Row] = []
        for one in self.comparisons:
            own = [replace(s, group=one.title) for s in samples if not one.cases or s.case in one.cases]
            measured = {s.case for s in own}
            rows += summarize(own, {one.title: one.baseline if one.baseline in measured else None}).rows if own else []
        return rows


def _progress(event: Event) -> None:
    if event.note:
        print(f"[{event.done:.0f}/{event.total or 0:.0f}] {event.note}", file=sys.stderr, flush=True)
