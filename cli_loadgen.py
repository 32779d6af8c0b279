"""The command that runs MLPerf's LoadGen over an artifact or a server."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import screen
from .arguments import DeviceOption, Json, Model, Offline, RuntimeOption, Threads

_LOAD, _SAMPLES, _HTTP = "Load", "Samples", "Server"
_KEY = "VITRIFY_KEY"


class Scenario(StrEnum):
    SINGLE_STREAM = "single-stream"
    OFFLINE = "offline"
    SERVER = "server"


class Mode(StrEnum):
    PERFORMANCE = "performance"
    ACCURACY = "accuracy"


def loadgen(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for LoadGen's logs and result.json.")],
    scenario: Annotated[
        Scenario, typer.Option(help="One query after the other; all at once; or as clients send them.")
    ] = Scenario.SINGLE_STREAM,
    mode: Annotated[
        Mode, typer.Option(help="Measure, or answer each sample once and keep the answers.")
    ] = Mode.PERFORMANCE,
    duration: Annotated[
        float | None, typer.Option(help="Least seconds; default MLPerf's 600.", rich_help_panel=_LOAD)
    ] = None,
    qps: Annotated[
        float | None,
        typer.Option(help="server: queries a second; offline: expected samples a second.", rich_help_panel=_LOAD),
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="server: what 99 % must stay within; default MLPerf's.", rich_help_panel=_LOAD),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="offline, server: samples in one call at most.", min=1, rich_help_panel=_LOAD),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(help="Folder, or one subfolder a label; default: some are drawn.", rich_help_panel=_SAMPLES),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file, one a line, for what draws.", rich_help_panel=_SAMPLES)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps; default 4.", min=1, rich_help_panel=_SAMPLES)
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask a server: http://HOST:PORT, its /v2/models/NAME/infer or its /models/NAME.", rich_help_panel=_HTTP
        ),
    ] = None,
    clients: Annotated[
        int | None, typer.Option(help="Connections at the same time; default 8.", min=1, rich_help_panel=_HTTP)
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Key of the server.", envvar=_KEY, show_envvar=True, rich_help_panel=_HTTP),
    ] = None,
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    threads: Threads = 0,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Run MLPerf's LoadGen over a model or a server. Exits with 3 where LoadGen calls the run INVALID."""
    from .bench.loadgen.plan import LoadPlan
    from .bench.loadgen.run import invalid, run_loadgen
    from .export.resolve import artifact_for

    with screen.progress() as report:
        artifact = artifact_for(model, offline=True if offline else None, report=report)
        plan = LoadPlan(
            artifact=str(artifact.root.absolute()),
            scenario=scenario.value,
            mode=mode.value,
            url=url,
            runtime=runtime,
            device=device,
            threads=threads,
            pictures=str(pictures) if pictures else None,
            prompts=str(prompts) if prompts else None,
            qps=qps,
            latency_ms=latency_ms,
            duration=duration,
            batch=batch,
            clients=clients,
            steps=steps,
            # one that the environment holds is not meant for a run without a server
            key=key if url or key != os.environ.get(_KEY) else None,
        )
        result = run_loadgen(plan, output, report)
    error = invalid(result)
    if json:
        screen.print_json(result | ({"error": screen.error_of(error)} if error else {}))
    else:
        for line in _lines(result, output):
            print(line)
    if error is not None:
        screen.print_error(error, as_json=False)  # the document, if one was asked for, has it
        raise typer.Exit(error.exit_code)


def _lines(result: dict[str, Any], output: Path) -> list[str]:
    """A result in a few lines."""
    if "accuracy" in result:
        found = result["accuracy"]
        lines = [f"{result['scenario']}, accuracy: {found['samples']} samples answered"]
        if found.get("accuracy") is not None:
            lines.append(f"right: {found['right']} of {found['known']}, {100 * found['accuracy']:.2f} %")
        return [*lines, f"answers: {output / 'answers.json'}", f"logs: {output}"]
    verdict = "VALID" if result["valid"] else "INVALID"
    rate = f"{result['samples_per_second']:.4g} samples/s" if result["samples_per_second"] else "no rate"
    lines = [f"{result['scenario']}: {verdict}, {result['samples']} samples, {rate}"]
    latency = result["latency_ms"]
    if result["scenario"] != "Offline":
        shown = [f"{q} % {latency[q]:.4g}" for q in ("50", "90", "95", "97", "99", "99.9") if latency[q] is not None]
        lines.append(f"latency, ms: {', '.join(shown)}")
    estimate = result.get("early_stopping_ms", {}).get("90")
    if estimate is not None:
        lines.append(f"early-stopping estimate of the 90th percentile: {estimate:.4g} ms")
    if "qps" in result["target"]:
        target = result["target"]
        lines.append(
            f"target: {target['qps']:.4g} queries/s, {target['percentile']:g} % in {target['latency_ms']:g} ms"
        )
    if not result["rule"]["met"]:
        lines.append(result["rule"]["what"])
    return [*lines, result["statement"], f"logs: {output}"]
