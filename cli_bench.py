"""The command that measures: a matrix, a comparison of two results, a report of several."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import screen
from .arguments import Json
from .core.errors import UsageError, VitrifyError

if TYPE_CHECKING:
    from .bench.results import Results

_MATRIX = "Matrix"
_RUN = "Measuring"
MEASURE = "run"


class _Default(TyperGroup):
    """`vitrify bench SPEC...` is `vitrify bench run SPEC...`: only the names of the other commands are taken."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [MEASURE, *args]
        return super().parse_args(ctx, args)


bench_app = typer.Typer(
    name="bench",
    help="Measure models on runtimes, in precisions, sizes and batches: vitrify bench SPEC... is vitrify bench run.",
    no_args_is_help=True,
    cls=_Default,
)


@bench_app.command(MEASURE)
def run(
    specs: Annotated[
        list[str], typer.Argument(metavar="SPEC...", help="Artifacts, model folders or hub ids; or one suite.toml.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for results, artifacts and report.")] = Path(
        "vitrify-bench"
    ),
    runtime: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="onnx,openvino,torch; default: those installed.", rich_help_panel=_MATRIX),
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option("--quant", help="Recipes, as fp32,int8-weights; default: fp32.", rich_help_panel=_MATRIX),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option("--size", help="As 512x512,768x512; default: the model's own.", rich_help_panel=_MATRIX),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help="Pictures a call, as 1,8.", rich_help_panel=_MATRIX)
    ] = None,
    threads: Annotated[
        list[str] | None,
        typer.Option("--threads", help="As 0,1,2; 0 leaves it to the runtime.", rich_help_panel=_MATRIX),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default: 20.", rich_help_panel=_MATRIX, min=1)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance; default: 7.5.", rich_help_panel=_MATRIX)] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", help="As none,fast: what of a picture's work is left out.", rich_help_panel=_MATRIX),
    ] = None,
    step_cache: Annotated[
        list[str] | None,
        typer.Option("--step-cache", help="As none,3,0.1.", rich_help_panel=_MATRIX),
    ] = None,
    guidance_every: Annotated[
        list[str] | None, typer.Option("--guidance-every", help="As 1,2.", rich_help_panel=_MATRIX)
    ] = None,
    guidance_interval: Annotated[
        list[str] | None,
        typer.Option("--guidance-interval", help="As none,0.1:0.8.", rich_help_panel=_MATRIX),
    ] = None,
    decoder: Annotated[
        list[str] | None, typer.Option("--decoder", help="As vae,preview.", rich_help_panel=_MATRIX)
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0, ...; default: cpu.", rich_help_panel=_MATRIX)] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Prompts or pictures for the recipes that need some.", rich_help_panel=_MATRIX),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Processes a cell; default: 5.", rich_help_panel=_RUN, min=1)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="How long each times calls; default: 1.", rich_help_panel=_RUN)
    ] = None,
    calls: Annotated[
        int | None, typer.Option(help="Calls that each times at least; default: 3.", rich_help_panel=_RUN, min=1)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds after which a process is stopped; default: 900.", rich_help_panel=_RUN),
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify", help="Measure quality; default: where it needs under 1 GB.", rich_help_panel=_RUN
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure every cell of a matrix, each in its own process, and write a report. Exits with 5 where one fails."""
    from .bench.report.drawing import check_matplotlib
    from .bench.runs import run_suite
    from .bench.suite_file import suite_of

    given: dict[str, Any] = {
        "runtime": split(runtime), "quant": recipes_in(quant), "size": split(size), "batch": _numbers(batch, "batch"),
        "threads": _numbers(threads, "threads"), "steps": steps, "guidance": guidance, "device": device,
        "preset": split(preset), "step_cache": split(step_cache), "guidance_every": split(guidance_every),
        "guidance_interval": split(guidance_interval), "decoder": split(decoder),
        "calibration": calibration, "rounds": rounds, "seconds": seconds, "calls": calls, "timeout": timeout,
    }  # fmt: skip
    suite = suite_of(specs, given)
    check_matplotlib()  # a report that cannot be drawn is told before hours of measuring
    with screen.progress() as report:
        try:
            results = run_suite(suite, output, report, verify, command=shlex.join(["vitrify", *sys.argv[1:]]))
        except KeyboardInterrupt:
            _report_what_is_there(output)
            raise
        page, _ = _write([results], output)
    if json:
        screen.print_json(_document([results], page))
    else:
        _print(results)
        print(f"Open {page}")
    if results.failed:
        raise typer.Exit(5)


def split(values: list[str] | None) -> list[str] | None:
    """Repeated options and lists with commas, both."""
    return None if values is None else [one for value in values for one in filter(None, re.split(r"[,\s]+", value))]


def recipes_in(values: list[str] | None) -> list[str] | None:
    """As `split`; an option of a recipe, such as keep=, stays with its recipe: int4-weights:group=32,keep=mid_block."""
    found: list[str] = []
    for one in split(values) or []:
        if "=" in one and ":" not in one and found:
            found[-1] += f",{one}"
        else:
            found.append(one)
    return None if values is None else found


def _numbers(values: list[str] | None, name: str) -> list[int] | None:
    try:
        return None if values is None else [int(one) for one in split(values) or []]
    except ValueError as exc:
        raise UsageError(f"--{name} is {', '.join(values or [])}.", f"Give whole numbers, as in --{name} 1,8.") from exc


def _write(results: list[Results], folder: Path) -> tuple[Path, Path]:
    from .bench.report import write_report

    return write_report(results, folder)


def _report_what_is_there(output: Path) -> None:
    """After Ctrl-C: the report of what was measured, where something was."""
    from .bench.results import read_results

    try:
        results = read_results(output)
        if results.measured:
            page, _ = _write([results], output)
            screen.say(f"What was measured until now: {page}")
    except VitrifyError:
        pass


def _document(results: list[Results], page: Path) -> dict[str, Any]:
    from .bench.results import to_json

    return {"report": str(page), "results": [to_json(one) for one in results]}


def _print(results: Results) -> None:
    """One table a model on stdout."""
    from .bench.results import rows

    for title, head, lines in rows(results):
        print(title)
        screen.table(lines, head)
    for cell in results.failed:
        screen.say(f"failed: {cell.name}: {cell.failure}")
    for line in results.skipped:
        print(f"skipped: {line['case']}: {line['what']}")


@bench_app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A results folder, or its results.jsonl.")],
    after: Annotated[Path, typer.Argument(help="Another, measured later or elsewhere.")],
    confidence: Annotated[float, typer.Option(help="Of all verdicts together.", min=0.5, max=0.9999)] = 0.95,
    json: Json = False,
) -> None:
    """Tell whether one run is slower, larger or worse than another. Exits with 3 where it is."""
    from .bench.compare import compare as compared
    from .bench.results import read_results

    found = compared(read_results(before), read_results(after), confidence=confidence)
    if json:
        screen.print_json(found.to_json())
    else:
        print(found.to_text())
    if found.regressed:
        raise typer.Exit(3)


@bench_app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Results folders of one machine or several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("vitrify-report"),
    json: Json = False,
) -> None:
    """Write one report of one or several results, such as those of several machines."""
    from .bench.results import read_results

    found = [read_results(path) for path in results]
    page, _ = _write(found, output)
    if json:
        screen.print_json(_document(found, page))
    else:
        print(f"Open {page}")
