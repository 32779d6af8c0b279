"""The command that finds the best artifact of a model for this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import screen
from .arguments import Json
from .cli_bench import recipes_in, split
from .core.errors import ProofFailed, UsageError

_SEARCH = "Search"


class Objective(StrEnum):
    LATENCY = "latency"
    MEMORY = "memory"
    DISK = "disk"


def tune(
    source: Annotated[str, typer.Argument(help="A model's folder, a hub id, or an artifact of `vitrify export`.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder; default: NAME-tuned.")] = None,
    objective: Annotated[Objective, typer.Option(help="What is made small.")] = Objective.LATENCY,
    min_psnr: Annotated[
        float | None, typer.Option(help="dB that pictures must reach beside float32's, on average; default: 30.")
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Share of pictures whose best label must stay; default: 0.99.", min=0, max=1),
    ] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="The most that a call may take.")] = None,
    max_memory_mb: Annotated[float | None, typer.Option(help="The most peak memory.")] = None,
    max_disk_mb: Annotated[float | None, typer.Option(help="The largest artifact.")] = None,
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Those to try; default: all that are installed.")
    ] = None,
    quant: Annotated[list[str] | None, typer.Option("--quant", help="Recipes to try; default: all.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, ...")] = "cpu",
    size: Annotated[str | None, typer.Option(help="As 512x512; default: the model's own.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a call.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: 20.", min=1)] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance; default: 7.5.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Prompts or pictures; a classifier's int8-static needs some.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="After which nothing new is tried.", min=0, rich_help_panel=_SEARCH)
    ] = None,
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Measure and prove everything: slow.", rich_help_panel=_SEARCH),
    ] = False,
    json: Json = False,
) -> None:
    """Find the fastest or smallest artifact above a bar of quality, and publish it. Exits with 3 where none reaches it.

    Run again with the same folder, it goes on where it was; after Ctrl-C the best so far is in it.
    """
    from .bench.report.drawing import check_matplotlib
    from .bench.suite_file import suite_of
    from .bench.tune.goal import Goal
    from .bench.tune.outcome import publish
    from .bench.tune.search import Search

    given: dict[str, Any] = {
        "runtime": split(runtime), "quant": recipes_in(quant), "size": size, "batch": batch, "steps": steps,
        "guidance": guidance, "device": device, "calibration": calibration,
    }  # fmt: skip
    models = suite_of([source], given).models
    if len(models) > 1:
        raise UsageError(f"{source} names {len(models)} models.", "Tune one at a time.")
    model = models[0]
    limits = {"latency_ms": max_latency_ms, "peak_mb": max_memory_mb, "disk_mb": max_disk_mb}
    goal = Goal(objective.value, min_psnr, min_agreement, {k: v for k, v in limits.items() if v is not None})
    check_matplotlib()  # a report that cannot be drawn is told before minutes of measuring
    with screen.progress() as report:
        search = Search(model, goal, output or Path(f"{model.name}-tuned"), report, exhaustive, minutes)
        try:
            winner = search.run()
        except KeyboardInterrupt:
            best = search.best()
            if best is not None:
                publish(search, best, interrupted=True)
                screen.say(f"The best so far is {best.spec.how}: {search.out / 'best'}")
            raise
        except ProofFailed:
            publish(search, None)
            _report(search)
            raise
        found = publish(search, winner)
        page = _report(search)
    if json:
        screen.print_json({**found, "report": str(page)})
        return
    screen.table(*_table(search, winner.name))
    print(f"{found['artifact']} is {winner.spec.how}, {winner.quality.label if winner.quality else 'as exported'}")
    print(f"{found['use']}\nOpen {page}")


def _report(search: Any) -> Path:
    from .bench.report import Bar, write_report

    page, _ = write_report([search.results], search.out, Bar(search.goal.min_psnr, search.goal.min_agreement))
    return page


def _table(search: Any, winner: str) -> tuple[list[list[str]], list[str]]:
    """Every candidate, the best first."""
    cells = sorted(search.results.cells, key=search.goal.value)
    rows = []
    for cell in cells:
        figures = [cell.figure(name) for name in ("latency_ms", "peak_mb", "disk_mb")]
        quality = cell.quality.label if cell.quality else "not proved"
        said = "winner" if cell.name == winner else "failed" if cell.failure else ""
        rows.append([cell.spec.how, *("-" if f is None else f"{f.median:.4g}" for f in figures), quality, said])
    return rows, ["candidate", "latency ms", "memory MB", "disk MB", "quality", ""]
