"""A suite measured: artifacts made, cells run in turns, the results written line by line."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput, UsageError, VitrifyError
from ..core.progress import Event, Report, silent
from ..core.publish import locked
from ..pipelines.load import open_artifact
from .cells import Builder, Built, exported, facts, operations
from .matrix import Skipped, expand
from .measure import MARK, Case, CaseFailed, header, measure
from .preparing import OFFLINE
from .records import Writer
from .results import RESULTS, Results, read_results
from .spec import Spec
from .suite_file import Model, Suite

_EMPTY = "It printed no figures."


@dataclass(frozen=True)
class Job:
    """A cell that can be run: its artifact lies there."""

    spec: Spec
    built: Built
    source: Path  # the exported artifact, in whose graphs its operations are counted


def run_suite(
    suite: Suite, out: Path, report: Report = silent, verify: bool | None = None, command: str | None = None
) -> Results:
    """Measure every cell of a suite into OUT/results.jsonl, and read that.

    Older results in OUT are kept beside it, under their date. Artifacts in OUT/artifacts are used again where they
    were made of the same things. What cannot be made or run is a failure in the results; the other cells go on.

    Args:
        verify: see `Builder`. command: what was typed, which the report repeats.

    Raises:
        BadInput: OUT is a file; no model can be opened.
        UsageError: no cell can be run; with each reason.
        Busy: another run writes there.
        KeyboardInterrupt: passed on; what was measured is in OUT.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file.", "Give a folder with -o.")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / RESULTS):
        file = out / RESULTS
        set_aside(file)
        builder = Builder(out, report, verify)
        jobs, skipped, failed = prepare(suite, builder)
        for one in skipped:
            report(Event("skip", note=f"skipped: {one.spec.name}: {one.what} {one.fix}"))
        if not jobs and not failed:
            why = "\n".join(f"{s.spec.name}: {s.what} {s.fix}" for s in skipped)
            raise UsageError(f"No cell of this matrix can be run.\n{why}", "Choose other runtimes or recipes.")
        gflop = operations(lambda line: report(Event("count operations", note=line)))
        with Writer(file) as writer:
            writer.line("header", header({"rounds": suite.rounds}))
            for job in jobs:
                writer.line("cell", facts(job.spec, job.built, out, gflop(job.spec, job.source)))
            for one in skipped:
                writer.line("skipped", one.to_json())
            for spec, error in failed:
                writer.line("cell", {"case": spec.name, "spec": spec.to_json(), "quality": "not run", "pictures": []})
                writer.line("failure", {"case": spec.name, "what": error.what, "fix": error.fix})
        if not jobs:
            raise failed[0][1]
        with suppress(CaseFailed):  # each is a line of the results
            measure(
                [case_of(job.spec, job.built.root, suite.seconds, suite.calls) for job in jobs],
                rounds=suite.rounds,
                warmup=0,  # each process warms up, and the first calls are figures of their own
                report=report,
                out=file,
                timeout=suite.timeout,
                about={"command": command} if command else None,
            )
        return read_results(file)


def prepare(suite: Suite, builder: Builder) -> tuple[list[Job], list[Skipped], list[tuple[Spec, VitrifyError]]]:
    """The cells that can be run with their artifacts, those that cannot be, and those whose artifact was not made."""
    found, broken = exported(suite.models, builder)
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    failed: list[tuple[Spec, VitrifyError]] = []
    for model in suite.models:
        if model.name in broken:
            failed.append((_unopened(model, builder, broken[model.name]), broken[model.name]))
            continue
        try:
            matrix = expand(model.name, model.source, open_artifact(found[model.name].root), model.axes)
        except VitrifyError as exc:
            failed.append((_unopened(model, builder, exc), exc))
            continue
        skipped += matrix.skipped
        for spec in matrix.specs:
            try:
                jobs.append(Job(spec, builder.cell(model, found[model.name], spec), found[model.name].root))
            except VitrifyError as exc:
                builder.report(Event("compile", note=f"failed: {spec.name}: {exc.what}"))
                failed.append((spec, exc))
    return jobs, skipped, failed


def _unopened(model: Model, builder: Builder, error: VitrifyError) -> Spec:
    """What stands for all cells of a model of which none is known."""
    builder.report(Event("open", note=f"failed: {model.name}: {error.what}"))
    return Spec(model.name, model.source, "unknown", "any", "any")


def case_of(spec: Spec, artifact: Path, seconds: float, calls: int) -> Case:
    """A cell as the harness runs it; one that prints nothing is a failure."""

    def printed(stdout: str) -> dict[str, float]:
        if MARK not in stdout:
            raise CaseFailed(_EMPTY, "Run it alone.")
        return {}

    command = [sys.executable, "-P", "-m", "vitrify.bench.worker", str(artifact), json.dumps(spec.to_json())]
    return Case(spec.name, [*command, str(seconds), str(calls)], OFFLINE, group=spec.asked, after=printed)


def set_aside(file: Path) -> None:
    """Give older results the name of the day and second at which they were written."""
    if file.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(file.stat().st_mtime))
        file.rename(file.with_name(f"{file.stem}-{stamp}{file.suffix}"))
