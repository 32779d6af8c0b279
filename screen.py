"""What the command line shows: progress on stderr, results on stdout, errors as one line with its fix."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .core.errors import VitrifyError
from .core.progress import Event, Report

FAILED = "failed"


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=1, default=str) + "\n")


def print_error(exc: VitrifyError, as_json: bool) -> None:
    """The error on stderr; with `as_json` also as {"error": {code, what, fix}} on stdout."""
    if as_json:
        print_json({"error": error_of(exc)})
    print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)


def error_of(exc: VitrifyError) -> dict[str, str]:
    """An error as every JSON document holds it."""
    return {"code": exc.code, "what": exc.what, "fix": exc.fix}


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
    for column in drawn.columns:
        column.overflow = "fold"  # a name that is cut off says less than one on two lines
    # a pipe has no width; a wrapped table cannot be read by grep
    Console(width=None if sys.stdout.isatty() else 200).print(drawn)


def proofs_of(artifact: Any) -> dict[str, Any]:
    """Component -> its three proofs."""
    return {n: c.proof for n, c in artifact.components.items()}


def failure_of(artifact: Any) -> str | None:
    """What the proof said that an artifact failed and was published all the same; None of any other."""
    if artifact.proof.get("status") != FAILED:
        return None
    return str(artifact.proof.get("what") or "it does not say how")


def print_proofs(artifact: Any) -> None:
    """What was proved, on stdout."""
    from .proof.words import in_words

    rows = [
        [n, *(in_words(c.proof.get(k, "not run")) for k in ("graph", "weights", "numeric"))]
        for n, c in artifact.components.items()
    ]
    table(rows, ["component", "graph proof", "weights proof", "numeric proof"])
    labels = artifact.proof.get("labels")
    print_pictures(artifact)
    if isinstance(labels, dict):
        print(f"labels: {in_words(labels)}")
    failed = failure_of(artifact)
    if failed is not None:
        print(f"FAILED: {failed}")


def print_pictures(artifact: Any) -> None:
    """How near the pictures of a proof were, on stdout."""
    from .proof.words import in_words

    images = artifact.proof.get("images")
    if isinstance(images, dict):
        print(f"pictures: {in_words(images)}")


def changes(artifact: Any) -> list[str]:
    """What the export changed of the source, one line each."""
    model = artifact.model
    told = [f"merges {model['tome']} of the UNet's tokens"] if model.get("tome") else []
    told += [f"VAE from {model['vae']}"] if model.get("vae") else []
    return told + ([f"previews are drawn by {model['preview_vae']}"] if model.get("preview_vae") else [])


def plans(artifact: Any) -> list[str]:
    """What TensorRT said of each plan when it was built, one line each."""
    kept = {"refit": "can be refitted", "strip": "come from files by a refit", "apart": "come from files as inputs"}
    told = []
    for component in artifact.components.values():
        engine = component.details.get("engine")
        if isinstance(engine, dict):
            outside = dict(component.details.get("outside", {}))
            words = [f"{megabytes(engine.get('bytes', 0))} MB", f"{engine.get('layers')} layers"]
            words += [f"{len(outside.get('table', ()))} weights {kept[outside['keeps']]}"] if outside else []
            words += [str(flag).lower().replace("_", " ") for flag in engine.get("flags", ())]
            told.append(f"plan of {component.name}: {', '.join(words)}; inspector {engine.get('inspector')}")
    return told


def print_recipes(recipes: dict[str, Any]) -> None:
    """Which recipe runs on which target, and what speaks against it, on stdout."""
    from .quant.support import WHAT_WAS_MEASURED

    targets = list(dict.fromkeys(target for row in recipes.values() for target in row["targets"]))
    rows = [
        [name, *("yes" if row["targets"][t]["runs"] else "no" for t in targets), row["buys"]]
        for name, row in recipes.items()
    ]
    table(rows, ["recipe", *targets, "what it buys"])
    measured = [
        [name, target, *(f"{cell['measured'][share]:.2f}" for share in ("disk", "memory", "time"))]
        for name, row in recipes.items()
        for target, cell in row["targets"].items()
        if cell.get("measured")
    ]
    if measured:
        print(f"As shares of float32's, of {WHAT_WAS_MEASURED}:")
        table(measured, ["recipe", "target", "disk", "memory", "time"])
    plans = [t for t in targets if t.startswith("tensorrt")]
    if plans:
        print(f"What a recipe buys on {' and '.join(plans)} was not measured.")
    for name, row in recipes.items():
        refused: dict[str, list[str]] = {}
        for target, cell in row["targets"].items():
            if not cell["runs"]:
                refused.setdefault(cell["why"], []).append(target)
        for why, where in refused.items():
            print(f"{name} not on {' and '.join(where)}: {why}")
        for line in row["here"]:
            print(f"on this machine: {line}")


def placements(placement: dict[str, dict[str, str]], recipe: str = "fp32") -> str:
    """What ran the components, on one line; each kind of placement once.

    recipe: that of the artifact, told where what it computes in does not say it.
    """
    lines = (
        f"{p.get('runtime')} {p.get('provider')} on {p.get('device')}, {p.get('precision')}" for p in placement.values()
    )
    shown = "; ".join(dict.fromkeys(lines))
    return shown if recipe == "fp32" or recipe in shown else f"{shown} ({recipe})"


def checksums(hashed: int, unhashed: list[str]) -> str:
    """What the hashes say, where all that are recorded were right."""
    if not hashed:
        return "not recorded in this folder"
    line = f"{hashed} files are those that were built"
    if unhashed:
        more = f" and {len(unhashed) - 5} more" if len(unhashed) > 5 else ""
        line += f"; {len(unhashed)} have no recorded hash: {', '.join(unhashed[:5])}{more}"
    return line


def print_answer(path: Path, answer: list[dict[str, Any]], faces: bool, error: VitrifyError | None) -> None:
    """The labels of a picture, or of each face in it, on stdout; the error that it met on stderr."""
    if error is not None:
        say(f"{path}  {error.what}")
    elif not faces:
        print(f"{path}  {scores(answer)}")
    elif not answer:
        print(f"{path}  no face found")
    else:
        for face in answer:
            box = face["box"]
            print(f"{path}  {box['left']},{box['top']} {box['width']}x{box['height']}  {scores(face['labels'])}")


def scores(labels: list[dict[str, Any]]) -> str:
    """Labels and their scores on one line."""
    said = (f"{x.get('label')} {x['score']:.3f}" if x.get("score") is not None else str(x.get("label")) for x in labels)
    return "  ".join(said) or "no label reaches the threshold"


def shapes(specs: Any) -> str:
    """Names and shapes on one line."""
    return " ".join(f"{n}[{','.join(map(str, s.shape))}]" for n, s in specs.items())


def megabytes(count: int) -> str:
    """Bytes as MB with one decimal."""
    return f"{count / 1e6:.1f}"
