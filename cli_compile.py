"""The command that compiles: an artifact or a model in, an artifact for a runtime out, perhaps quantized."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import screen
from .arguments import (
    ConfigFolder,
    Control,
    Force,
    Json,
    Model,
    Offline,
    PredictionType,
    PreviewVae,
    PromptOnce,
    Revision,
    StepCacheGraph,
    Token,
    Tome,
    Vae,
    Variant,
    Verify,
)
from .cli_run import artifact_of, use
from .core.errors import UsageError
from .quant.recipes import RECIPES, Recipe, recipe
from .quant.support import TARGETS, WHAT_WAS_MEASURED, cell, check_target

if TYPE_CHECKING:
    from .core.artifact import Artifact, Component
    from .core.progress import Event, Report

Target = StrEnum("Target", {name: name for name in TARGETS})  # type: ignore[misc]  # what quant.support has
_QUANT = "Quantizing"
_PLAN = "Plans"


class PlanPrecision(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Compatible(StrEnum):
    NONE = "none"
    AMPERE = "ampere+"
    SAME = "same-capability"


def compile(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The new artifact's folder; default: NAME-TO-RECIPE.")
    ] = None,
    to: Annotated[
        Target | None, typer.Option("--to", help="What it is compiled for; default with --quant: onnx.")
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            help=f"A recipe: {', '.join(RECIPES)}; with options, as in int4-weights:group=32.",
            metavar="RECIPE",
            rich_help_panel=_QUANT,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A file of prompts, one a line, or a folder of pictures.", rich_help_panel=_QUANT),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Inputs to calibrate with; default: the recipe's.", rich_help_panel=_QUANT)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Layers to keep in float, by a part of their name; * is anything.", rich_help_panel=_QUANT),
    ] = None,
    keep_failed: Annotated[
        bool,
        typer.Option(
            "--keep-failed", help="Publish also what fails its proof, marked as such.", rich_help_panel=_QUANT
        ),
    ] = False,
    control: Control = False,
    tome: Tome = None,
    vae: Vae = None,
    preview_vae: PreviewVae = None,
    step_cache: StepCacheGraph = None,
    prompt_once: PromptOnce = False,
    verify: Verify = None,
    force: Force = False,
    precision: Annotated[
        PlanPrecision | None, typer.Option(help="What floats are computed in.", rich_help_panel=_PLAN)
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="The GPUs to build for, as in 8.6,8.9.", rich_help_panel=_PLAN)
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Weights can be changed; needs a GPU to build.", rich_help_panel=_PLAN)
    ] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="As --refit, without the weights in the plan.", rich_help_panel=_PLAN)
    ] = False,
    apart: Annotated[
        bool,
        typer.Option("--apart", help="Weights stay in the model's files, as inputs.", rich_help_panel=_PLAN),
    ] = False,
    weight_streaming: Annotated[
        bool,
        typer.Option("--weight-streaming", help="Some weights may stay off the GPU.", rich_help_panel=_PLAN),
    ] = False,
    hardware_compatible: Annotated[
        Compatible | None, typer.Option(help="TensorRT: also for GPUs like this one.", rich_help_panel=_PLAN)
    ] = None,
    timing_cache: Annotated[
        bool | None,
        typer.Option("--timing-cache/--no-timing-cache", help="TensorRT: keep timings.", rich_help_panel=_PLAN),
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="TensorRT: 0 builds soonest, 5 searches most.", rich_help_panel=_PLAN)
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(help="Bytes of the GPU that one layer may use.", rich_help_panel=_PLAN)
    ] = None,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    config: ConfigFolder = None,
    prediction_type: PredictionType = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Compile an artifact or a model for a runtime, quantize it, and prove it. Exits with 3 where the proof fails."""
    target = _target(to, quant)
    wanted = _recipe(quant, samples, keep)
    check_target(wanted, target)
    given: dict[str, Any] = {
        "precision": precision and precision.value,
        "compute_capability": compute_capability,
        "refit": refit or None,
        "strip": strip or None,
        "apart": apart or None,
        "weight_streaming": weight_streaming or None,
        "hardware_compatible": hardware_compatible and hardware_compatible.value,
        "timing_cache": timing_cache,
        "optimization_level": optimization_level,
        "workspace": workspace,
    }
    plan = {name: value for name, value in given.items() if value is not None}
    _refuse(wanted, target, calibration, plan)

    from .export.changed import Changes
    from .export.compile import CompileJob
    from .export.plan_options import PlanOptions

    built = PlanOptions(**plan)
    if target.startswith("tensorrt"):
        built.check(target)

    changes = Changes(tome, vae, preview_vae, step_cache, prompt_once)
    changes.check()
    with screen.progress() as report:
        told: list[str] = []
        artifact = artifact_of(
            model, revision, variant, token, offline, report, config, prediction_type, control, changes
        )
        folder = output or Path(_name(artifact.name, target, wanted))
        done = CompileJob(
            artifact,
            folder,
            target,
            wanted,
            calibration,
            verify,
            force,
            keep_failed,
            built,
            report=_remembering(report, told),
        ).run()
    bought = cell(wanted, target)
    old, new = artifact.components, done.artifact.components
    sizes = {name: _sizes([old[name]], [made]) for name, made in new.items()}
    if len(sizes) > 1:
        sizes["all"] = _sizes(old.values(), new.values())
    if json:
        screen.print_json(
            {
                "artifact": str(folder),
                "to": target,
                "recipe": wanted.id,
                "buys": bought.buys,
                "measured": dict(bought.measured),
                "notes": done.notes,
                "sizes": sizes,
                "manifest": done.artifact.to_json(),
            }
        )
        return
    # those that came while it worked were told then, and a proof that failed is told with the proofs
    told.append(f"FAILED: {screen.failure_of(done.artifact)}")
    for note in done.notes:
        if note not in told:
            print(note)
    _print_sizes(sizes, done.artifact)
    screen.print_proofs(done.artifact)
    if not wanted.lossless:
        shares = ", ".join(f"{value:.2f} of its {what}" for what, value in bought.measured.items())
        print(f"{wanted.id}: {bought.buys}" + (f" (beside float32: {shares}; {WHAT_WAS_MEASURED})" if shares else ""))
    print(f"{folder} is ready: vitrify {use(done.artifact)}".replace("ARTIFACT", str(folder)))


def _target(to: Target | None, quant: str | None) -> str:
    if to is not None:
        return str(to.value)
    if quant is None:
        raise UsageError("Nothing says what to compile for.", f"Give --to ({', '.join(TARGETS)}) or --quant RECIPE.")
    return "onnx"


def _recipe(quant: str | None, samples: int | None, keep: list[str] | None) -> Recipe:
    """The recipe with the options that have a name of their own on the command line."""
    options = [f"samples={samples}"] if samples is not None else []
    if keep:
        options.append("keep=" + "+".join(re.sub(r"[,\s]+", "+", pattern) for pattern in keep))
    if quant is None:
        if options:
            raise UsageError("--samples and --keep belong to a recipe.", f"Give --quant ({', '.join(RECIPES)}).")
        return recipe("fp32")
    given = ",".join([quant, *options]) if ":" in quant else ":".join([quant, ",".join(options)]).rstrip(":")
    return recipe(given)


def _refuse(
    wanted: Recipe,
    target: str,
    calibration: Path | None,
    plan: Iterable[str],
) -> None:
    """Options that would change nothing are not dropped without a word."""
    given = [f"--{name.replace('_', '-')}" for name in plan]
    if given and not target.startswith("tensorrt"):
        verb = "is" if len(given) == 1 else "are"
        raise UsageError(f"{' and '.join(given)} {verb} for plans, not for {target}.", "Leave them out.")
    if calibration is not None and not wanted.calibrated:
        raise UsageError(f"{wanted.name} needs no calibration.", "Leave --calibration out.")


def _name(name: str, target: str, wanted: Recipe) -> str:
    """The default folder: emoji-onnx, which export names so, becomes emoji-openvino-int8-static."""
    parts = [name.removesuffix("-onnx"), target, *([] if wanted.lossless else [wanted.id])]
    return re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-")


def _remembering(report: Report, told: list[str]) -> Report:
    def also(event: Event) -> None:
        if event.note:
            told.append(event.note)
        report(event)

    return also


def _sizes(before: Iterable[Component], after: Iterable[Component]) -> dict[str, Any]:
    old, new = _bytes(before), _bytes(after)
    return {"before_bytes": old, "after_bytes": new, "ratio": new / old}


def _bytes(components: Iterable[Component]) -> int:
    """Graphs and weights. A file counts once: a plan is both, and the halves of a VAE may share their weights."""
    sizes: dict[tuple[int, int], int] = {}
    for component in components:
        for path in (component.graph, *(w.path for w in component.weights)):
            stat = (component.root / path).stat()
            sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values())


def _print_sizes(sizes: dict[str, dict[str, Any]], artifact: Artifact) -> None:
    rows = [
        [
            name,
            _precision(artifact.components[name]) if name in artifact.components else "",
            screen.megabytes(row["before_bytes"]),
            screen.megabytes(row["after_bytes"]),
            f"{row['ratio']:.2f}",
        ]
        for name, row in sizes.items()
    ]
    screen.table(rows, ["component", "weights, activations", "MB before", "MB after", "ratio"])


def _precision(component: Component) -> str:
    return f"{component.precision.get('weights')}, {component.precision.get('activations')}"
