"""What the command line shows: progress on stderr, results on stdout, errors as one line with its fix."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .core.errors import VitrifyError
from .core.progress import Event, Report


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=1, default=str) + "\n")


def print_error(exc: VitrifyError, as_json: bool) -> None:
    """The error on stderr; with `as_json` also as {"error": {code, what, fix}} on stdout."""
    if as_json:
        print_json({"error": {"code": exc.code, "what": exc.what, "fix": exc.fix}})
    print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)


def say(line: str) -> None:
    """One line for the reader, on stderr."""
    print(line, file=sys.stderr)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A `Report` that draws a live line on a terminal, and plain lines where stderr is a file."""
    if quiet:
        yield lambda event: None
        return
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(event: Event) -> None:
            if event.note:
                bar.console.print(event.note, highlight=False, markup=False)
            name = event.unit or "stage"
            if name not in tasks:
                tasks[name] = bar.add_task(event.stage, total=event.total)
            bar.update(tasks[name], description=event.stage, total=event.total, completed=event.done)

        yield draw


def _plain() -> Report:
    start = time.monotonic()
    shown: list[str] = []

    def line(event: Event) -> None:
        if event.note:
            say(event.note)
        elif event.stage not in shown[-1:]:  # a step counter would fill a log file
            shown.append(event.stage)
            say(f"[{time.monotonic() - start:5.1f} s] {event.stage}")

    return line


def table(rows: list[list[str]], head: list[str]) -> None:
    """Rows on stdout, in columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        drawn.add_row(*(cell.replace("[", "\\[") for cell in row))
    # a pipe has no width; a wrapped table cannot be read by grep
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


def proofs_of(artifact: Any) -> dict[str, Any]:
    """Component -> its three proofs."""
    return {n: c.proof for n, c in artifact.components.items()}


def print_proofs(artifact: Any) -> None:
    """What was proved, on stdout."""

    def figure(proof: Any) -> str:
        if not isinstance(proof, dict):
            return str(proof)
        if "tensors" in proof:
            return f"{proof['tensors']} tensors traced"
        return f"max error {proof['max_abs']:.1e} ({proof['relative']:.1e} of the range)"

    rows = [
        [n, *(figure(c.proof.get(k, "not run")) for k in ("graph", "weights", "numeric"))]
        for n, c in artifact.components.items()
    ]
    table(rows, ["component", "graph proof", "weights proof", "numeric proof"])
    images, labels = artifact.proof.get("images"), artifact.proof.get("labels")
    if isinstance(images, dict):
        worst = images["min_psnr_db"]
        print(
            f"pictures: {images['pictures']} drawn, "
            + ("identical" if worst is None else f"PSNR at least {worst:.1f} dB")
        )
    if isinstance(labels, dict):
        print(f"labels: {labels['pictures']} pictures, scores within {labels['max_score_difference']:.1e}")


def scores(labels: list[dict[str, Any]]) -> str:
    """Labels and their scores on one line."""
    return "  ".join(f"{x['label']} {x['score']:.3f}" for x in labels) or "no label reaches the threshold"


def shapes(specs: Any) -> str:
    """Names and shapes on one line."""
    return " ".join(f"{n}[{','.join(map(str, s.shape))}]" for n, s in specs.items())


def megabytes(count: int) -> str:
    """Bytes as MB with one decimal."""
    return f"{count / 1e6:.1f}"
