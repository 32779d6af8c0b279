"""The command that draws: from a prompt, and from pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from . import screen
from .arguments import (
    Arena,
    DeviceOption,
    Hint,
    HintOption,
    Json,
    Model,
    Offline,
    PrecisionOption,
    Prepack,
    Revision,
    RuntimeCache,
    RuntimeOption,
    Static,
    Streams,
    Threads,
    Token,
    Variant,
    runtime_options,
)
from .cli_run import artifact_of, need
from .core.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from .pipelines.control import ControlNet, ControlUnit
    from .pipelines.diffusion import DiffusionPipeline

T = TypeVar("T")
_PICTURES = "Pictures that it starts from"
_CONTROL = "ControlNets; each option once for each of them"
_WORDS = "LoRAs and embeddings"


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to draw; (red:1.3) weighs words.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG; default: named after prompt and seed.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", "-n", help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the model's own number.")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(help="Classifier-free guidance; at 1 or less off, at half the cost. Default: the model's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: a random one, which is printed.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, euler_a, dpmpp_2m, ...")] = None,
    image: Annotated[Path | None, typer.Option(help="Picture to start from.", rich_help_panel=_PICTURES)] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Of the picture's size; white where something new is drawn.", rich_help_panel=_PICTURES),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much changes, up to 1; default 0.8, with a mask 1.", rich_help_panel=_PICTURES),
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(help="Picture that a ControlNet follows; one for each --controlnet.", rich_help_panel=_CONTROL),
    ] = None,
    controlnet: Annotated[
        list[str] | None, typer.Option(help="A ControlNet's artifact or folder.", rich_help_panel=_CONTROL)
    ] = None,
    control_from: Annotated[
        list[str] | None,
        typer.Option(
            help="Make the control picture of a photo: canny, lineart, or depth=FILE.onnx, pose=FILE.onnx.",
            rich_help_panel=_CONTROL,
        ),
    ] = None,
    control_strength: Annotated[
        list[float] | None, typer.Option(help="1 is as it was trained.", rich_help_panel=_CONTROL)
    ] = None,
    control_start: Annotated[
        list[float] | None, typer.Option(help="From which part of the steps, 0 to 1.", rich_help_panel=_CONTROL)
    ] = None,
    control_end: Annotated[
        list[float] | None, typer.Option(help="To which part of the steps, 0 to 1.", rich_help_panel=_CONTROL)
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or FILE, and strengths as NAME:0.8 or NAME:0.5:0.8; several times.", rich_help_panel=_WORDS
        ),
    ] = None,
    lora_folder: Annotated[
        Path | None, typer.Option(help="Where <lora:NAME:0.8> in a prompt is looked for.", rich_help_panel=_WORDS)
    ] = None,
    embedding: Annotated[
        list[Path] | None, typer.Option(help="A textual inversion's file; several times.", rich_help_panel=_WORDS)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="A bound as 6GB: components in turn, the VAE in tiles. What was done is told.")
    ] = None,
    vae_tile: Annotated[
        int | None, typer.Option(help="Side in pixels of the tiles that the VAE works in.", min=64)
    ] = None,
    hook: Annotated[
        list[str] | None, typer.Option(help="A plugin, as wildcards:folder=DIR; may be given several times.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures; the seed grows by 1 for each.", min=1)] = 1,
    rng: Annotated[str, typer.Option(help="cpu: torch's CPU numbers; philox: CUDA's.")] = "cpu",
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
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw pictures from a prompt, from noise or from a picture."""
    from . import __version__
    from .core.progress import Event
    from .pipelines.adapters import parse_lora
    from .pipelines.budget import parse_bytes
    from .pipelines.hooks import hooks_of
    from .pipelines.images import check_png_path, open_image, picture_paths, save_png
    from .pipelines.load import load
    from .pipelines.random import random_seed

    seed = random_seed() if seed is None else seed
    paths = picture_paths(output, prompt, seed, batch)
    for path in paths:
        check_png_path(path)
    start = open_image(image) if image is not None else None
    covered = open_image(mask) if mask is not None else None
    hooks = hooks_of(hook or [])
    bound = parse_bytes(memory) if memory is not None else None
    loras = dict(parse_lora(one) for one in lora or [])
    pictures = _control_pictures(control or [], control_from or [])
    options = runtime_options(threads, prepack, arena, runtime_cache, hint, streams, precision, static)
    with screen.progress() as report:
        artifact = artifact_of(model, revision, variant, token, offline, report)
        need(artifact, ("text2img", "inpaint"), "generate")
        opened = load(
            artifact, device, options=options, runtime=runtime, memory=bound, say=lambda s: screen.say(f"device: {s}")
        )
        pipeline = cast("DiffusionPipeline", opened)
        nets: list[ControlNet] = []
        try:
            pipeline.vae.tile = vae_tile
            pipeline.adapters.folder = lora_folder
            for file in embedding or []:
                pipeline.adapters.add_embedding(file)
            for name in controlnet or []:
                net = load(
                    artifact_of(name, None, None, token, offline, report), device, options=options, runtime=runtime
                )
                nets.append(_as_controlnet(opened, name))
            units = _units(pictures, nets, control_strength or [], control_start or [], control_end or [])
            result = pipeline.generate(
                prompt,
                negative_prompt=negative_prompt,
                width=width,
                height=height,
                steps=steps,
                guidance=guidance,
                seed=seed,
                scheduler=scheduler,
                batch=batch,
                rng=rng,
                image=start,
                mask=covered,
                strength=strength,
                control=units,
                loras=loras,
                hooks=hooks,
                on_step=lambda s: report(Event("step", s.number, s.total, "steps")),
            )
        finally:
            pipeline.close()
            for net in nets:
                net.close()
    made_by = {
        "model": artifact.name,
        "artifact": artifact.id,
        "source": artifact.model.get("source"),
        "revision": artifact.model.get("revision"),
        "version": __version__,
    }
    for path, drawn, parameters in zip(paths, result.images, result.parameters, strict=True):
        save_png(drawn, path, parameters | made_by)
    if json:
        images = [{"path": str(p), **t} for p, t in zip(paths, result.parameters, strict=True)]
        document = {"images": images, "timings": result.timings, "placement": result.placement}
        document |= {"notes": list(result.notes)} if result.notes else {}
        screen.print_json(document | ({"memory": result.memory} if result.memory else {}))
        return
    for note in result.notes:
        screen.say(note)
    if result.memory is not None:
        screen.say(_fitted(result.memory))
    for path, parameters in zip(paths, result.parameters, strict=True):
        ran = screen.placements(result.placement)
        print(f"{path}  seed {parameters['seed']}, {result.timings['total']:.2f} s, {ran}")


def _control_pictures(paths: Sequence[Path], made: Sequence[str]) -> list[Image.Image]:
    """The control pictures, each made from a photo where `made` says how."""
    from .pipelines.control_pictures import control_picture
    from .pipelines.images import open_image

    found = []
    for path, way in zip(paths, _each(made or ["picture"], len(paths), "--control-from"), strict=True):
        kind, _, estimator = way.partition("=")
        found.append(control_picture(open_image(path), kind, estimator or None))
    return found


def _units(
    pictures: Sequence[Image.Image],
    nets: Sequence[ControlNet],
    strengths: Sequence[float],
    starts: Sequence[float],
    ends: Sequence[float],
) -> list[ControlUnit]:
    from .pipelines.control import ControlUnit

    if len(pictures) != len(nets):
        raise UsageError(
            f"There are {len(pictures)} control pictures for {len(nets)} ControlNets.",
            "Give one --control for each --controlnet.",
        )
    given = (
        _each(strengths or [1.0], len(nets), "--control-strength"),
        _each(starts or [0.0], len(nets), "--control-start"),
        _each(ends or [1.0], len(nets), "--control-end"),
    )
    return [ControlUnit(p, net, *rest) for p, net, *rest in zip(pictures, nets, *given, strict=True)]


def _each(given: Sequence[T], count: int, option: str) -> list[T]:
    """One for each ControlNet, where one alone is for all of them."""
    if len(given) not in (1, count) and count:
        raise UsageError(f"{option} is given {len(given)} times for {count} ControlNets.", "Give it once, or for each.")
    return list(given) * count if len(given) == 1 else list(given)


def _as_controlnet(opened: object, name: str) -> ControlNet:
    from .pipelines.control import ControlNet

    if not isinstance(opened, ControlNet):
        raise UsageError(f"{name} is no ControlNet.", "Give the folder of one, or what `vitrify export` made of it.")
    return opened


def _fitted(memory: dict[str, Any]) -> str:
    """What was done to stay within a budget, in one line."""
    peak = f"{memory['peak'] / 1e9:.2f} GB at the peak" if memory["peak"] else "peak not known"
    over = " (over it: draw smaller pictures)" if (memory["peak"] or 0) > memory["budget"] else ""
    return (
        f"memory: {peak} of {memory['budget'] / 1e9:.2f} GB{over}; {', '.join(memory['done']) or 'nothing was needed'}"
    )
