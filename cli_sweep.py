"""The command that sweeps: pictures over up to three axes in, a labelled grid and a table out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import screen
from .arguments import (
    Arena,
    ConfigFolder,
    DeviceOption,
    Hint,
    HintOption,
    Json,
    Model,
    Offline,
    PrecisionOption,
    PredictionType,
    Prepack,
    Revision,
    RuntimeCache,
    RuntimeOption,
    RuntimeOptions,
    Static,
    Streams,
    Threads,
    Token,
    Variant,
    runtime_options,
)
from .cli_pictures import (
    ControlEnds,
    ControlFrom,
    ControlNets,
    ControlPictures,
    ControlStarts,
    ControlStrengths,
    Embeddings,
    Hooks,
    ImageOption,
    LoraFolder,
    LoraOption,
    MaskOption,
    StrengthOption,
    controls_given,
    net_artifact,
)
from .cli_run import artifact_of
from .cli_saving import DecoderOption, GuidanceEvery, GuidanceInterval, PresetOption, StepCacheOption
from .core.errors import UsageError

_AXES = "Axes"
_OWN = "default: the model's own."


def sweep(
    context: typer.Context,
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; left out where an axis is the prompt.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for grids, table and pictures; an earlier sweep in it goes on."),
    ] = None,
    x: Annotated[
        str | None, typer.Option(help="Columns: NAME=VALUES, as in steps=5,10,20.", rich_help_panel=_AXES)
    ] = None,
    y: Annotated[str | None, typer.Option(help="Rows, as in scheduler=ddim,euler.", rich_help_panel=_AXES)] = None,
    z: Annotated[
        str | None, typer.Option(help="A grid for each value, as in seed=1..3.", rich_help_panel=_AXES)
    ] = None,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", "-n", help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help=f"Pixels; {_OWN}")] = None,
    height: Annotated[int | None, typer.Option(help=f"Pixels; {_OWN}")] = None,
    steps: Annotated[int | None, typer.Option(help=f"Denoising steps; {_OWN}")] = None,
    guidance: Annotated[
        float | None, typer.Option(help=f"Classifier-free guidance; at 1 or less off, at half the cost; {_OWN}")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of every picture; default: the folder's earlier one, else a random one.")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, euler_a, dpmpp_2m, ...")] = None,
    image: ImageOption = None,
    mask: MaskOption = None,
    strength: StrengthOption = None,
    control: ControlPictures = None,
    controlnet: ControlNets = None,
    control_from: ControlFrom = None,
    control_strength: ControlStrengths = None,
    control_start: ControlStarts = None,
    control_end: ControlEnds = None,
    lora: LoraOption = None,
    lora_folder: LoraFolder = None,
    embedding: Embeddings = None,
    hook: Hooks = None,
    preset: PresetOption = None,
    step_cache: StepCacheOption = None,
    guidance_interval: GuidanceInterval = None,
    guidance_every: GuidanceEvery = None,
    decoder: DecoderOption = None,
    rng: Annotated[str, typer.Option(help="cpu: torch's CPU numbers; philox: CUDA's.")] = "cpu",
    calibration: Annotated[
        Path | None, typer.Option(help="A file of prompts, one a line, for recipes that need some.")
    ] = None,
    warm_up: Annotated[
        bool | None,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="Before the first picture of a size; default: with axes of runtimes, recipes, threads or less work.",
        ),
    ] = None,
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    threads: Threads = 0,
    hint: HintOption = Hint.LATENCY,
    streams: Streams = 0,
    precision: PrecisionOption = None,
    prepack: Prepack = True,
    arena: Arena = True,
    runtime_cache: RuntimeCache = False,
    static: Static = False,
    runtime_option: RuntimeOptions = None,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    config: ConfigFolder = None,
    prediction_type: PredictionType = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw pictures over up to three axes, with a labelled grid and a table. Exits with 0 where one could be drawn."""
    from .bench.saved import saved
    from .bench.sweep.axes import check_option, parse_axes, sets
    from .bench.sweep.given import Control, Given
    from .bench.sweep.job import SweepJob
    from .bench.sweep.plan import Settings
    from .bench.sweep.results import TABLE
    from .quant.recipes import recipe

    if output is None:
        raise UsageError("Nothing says where the pictures go.", "Give a folder with -o.")
    axes = parse_axes(x, y, z)
    swept = {name: axis for axis in axes for name in sets(axis.name)}
    for name, axis in swept.items():
        if _given(context, name):
            what = "the prompt" if name == "prompt" else f"--{name.replace('_', '-')}"
            raise UsageError(f"--{axis.letter} {axis.name} sets {name}, and {what} was given too.", "Leave one out.")
    if prompt is None and "prompt" not in swept:
        raise UsageError("There is no prompt.", 'Give it after the model, or as an axis: --x prompt="a dog","a cat".')
    if calibration is not None and not any(recipe(r).calibrated for a in axes if a.name == "recipe" for r in a.values):
        raise UsageError("No recipe that is swept needs calibration.", "Leave --calibration out.")
    for name in ("steps", "guidance", "seed", "width", "height", "scheduler", "rng", "runtime", "strength"):
        check_option(name, context.params[name])
    left_out: dict[str, Any] = {
        "preset": preset, "step_cache": step_cache, "guidance_interval": guidance_interval,
        "guidance_every": guidance_every, "decoder": decoder and decoder.value,
    }  # fmt: skip
    given_too = {name: value for name, value in left_out.items() if value is not None}
    saving: dict[str, Any] = {n: saved(n, str(v), f"--{n.replace('_', '-')}") for n, v in given_too.items()}
    base = Settings(
        prompt or "",
        negative_prompt,
        width,
        height,
        steps,
        guidance,
        seed,
        scheduler,
        rng,
        threads,
        runtime,
        image=None if image is None else str(image),
        mask=None if mask is None else str(mask),
        strength=strength,
        lora=tuple(lora or ()),
        **saving,
    )
    controls = controls_given(control, controlnet, control_from, control_strength, control_start, control_end)
    options = runtime_options(
        0, prepack, arena, runtime_cache, hint, streams, precision, static, runtime_option
    )  # threads may be swept
    with screen.progress() as report:
        artifact = artifact_of(
            model, revision, variant, token, offline, report, config, prediction_type, control=bool(controls)
        )
        nets = [
            net_artifact(one.net, lambda name: artifact_of(name, None, None, token, offline, report))
            for one in controls
        ]
        given = Given(
            [Control(net, o.picture, o.strength, o.start, o.end) for net, o in zip(nets, controls, strict=True)],
            lora_folder,
            embedding or (),
            hook or (),
        )
        made = SweepJob(artifact, output, axes, base, options, device, calibration, warm_up, given, report).run()
    if json:
        screen.print_json(made)
        return
    counts = made["counts"]
    said = [f"{counts['drawn']} drawn"]
    said += [f"{counts['reused']} reused"] if counts["reused"] else []
    said += [f"{counts['failed']} failed (their cells say why)"] if counts["failed"] else []
    total = len(made["pictures"])
    print(f"{total} picture{'s' * (total > 1)}: {', '.join(said)}")
    for name in (*made["grids"], TABLE):
        print(output / name)


def _given(context: typer.Context, name: str) -> bool:
    """Whether a parameter is on the command line, be it with its default's value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"
