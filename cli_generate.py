"""The command that draws: from a prompt, and from pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    Offload,
    OffloadOption,
    Place,
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
from .cli_run import artifact_of, need
from .cli_saving import (
    DecoderOption,
    GuidanceEvery,
    GuidanceInterval,
    PresetOption,
    StepCacheOption,
)

if TYPE_CHECKING:
    from .pipelines.control import ControlNet, ControlUnit
    from .pipelines.diffusion import DiffusionPipeline


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
    memory: Annotated[
        str | None, typer.Option(help="A bound as 6GB: components in turn, the VAE in tiles. What was done is told.")
    ] = None,
    vae_tile: Annotated[
        int | None, typer.Option(help="Side in pixels of the tiles that the VAE works in.", min=64)
    ] = None,
    preset: PresetOption = None,
    memory_report: Annotated[
        bool,
        typer.Option("--memory-report", help="Tell what each component takes of memory; they open one by one then."),
    ] = False,
    prompt_cache: Annotated[
        bool, typer.Option("--prompt-cache", help="Keep encoded prompts on disk: known ones open no text encoder.")
    ] = False,
    free_text_encoders: Annotated[
        bool, typer.Option("--free-text-encoders", help="Close them once the prompt is encoded.")
    ] = False,
    step_cache: StepCacheOption = None,
    guidance_interval: GuidanceInterval = None,
    guidance_every: GuidanceEvery = None,
    decoder: DecoderOption = None,
    hook: Hooks = None,
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
    runtime_option: RuntimeOptions = None,
    place: Place = None,
    offload: OffloadOption = Offload.AUTO,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    config: ConfigFolder = None,
    prediction_type: PredictionType = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw pictures from a prompt, from noise or from a picture."""
    from . import __version__
    from .core.progress import Event
    from .pipelines.adapters import parse_lora
    from .pipelines.budget import parse_bytes
    from .pipelines.control import ControlUnit
    from .pipelines.guiding import parse_interval
    from .pipelines.hooks import hooks_of
    from .pipelines.images import check_png_path, open_image, picture_paths, save_png
    from .pipelines.load import load
    from .pipelines.memory_report import Watch
    from .pipelines.placing import parse_place
    from .pipelines.presets import opened_with
    from .pipelines.random import random_seed
    from .pipelines.saving import Saving

    seed = random_seed() if seed is None else seed
    paths = picture_paths(output, prompt, seed, batch)
    for path in paths:
        check_png_path(path)
    start = open_image(image) if image is not None else None
    covered = open_image(mask) if mask is not None else None
    hooks = hooks_of(hook or [])
    bound = parse_bytes(memory) if memory is not None else None
    loras = dict(parse_lora(one) for one in lora or [])
    controls = controls_given(control, controlnet, control_from, control_strength, control_start, control_end)
    between = parse_interval(guidance_interval) if guidance_interval is not None else None
    saving: dict[str, Any] = {"step_cache": step_cache, "guidance_interval": between, "guidance_every": guidance_every}
    saving |= {"decoder": decoder.value if decoder is not None else None, "preset": preset}
    Saving.of(**saving)  # told before a model is fetched for it
    options = runtime_options(threads, prepack, arena, runtime_cache, hint, streams, precision, static, runtime_option)
    options, shared = opened_with(preset, options, offload.value)
    placed = parse_place(place) if place is not None else None

    def chosen(line: str) -> None:
        screen.say(f"device: {line}")

    with screen.progress() as report:
        artifact = artifact_of(
            model, revision, variant, token, offline, report, config, prediction_type, control=bool(controls)
        )
        need(artifact, ("text2img", "img2img", "inpaint"), "generate")
        opened = load(
            artifact, device, options=options, runtime=runtime, memory=bound, place=placed, offload=shared,
            prompt_cache=prompt_cache, free_text_encoders=free_text_encoders,
            beside=not memory_report, watch=Watch() if memory_report else None, say=chosen,
        )  # fmt: skip
        pipeline = cast("DiffusionPipeline", opened)
        units: list[ControlUnit] = []
        try:
            pipeline.vae.tile = vae_tile
            pipeline.adapters.folder = lora_folder
            for file in embedding or []:
                pipeline.adapters.add_embedding(file)
            for one in controls:
                made = net_artifact(one.net, lambda name: artifact_of(name, None, None, token, offline, report))
                net = cast("ControlNet", load(made, device, options=options, runtime=runtime, say=chosen))
                try:
                    units.append(ControlUnit(one.picture, net, one.strength, one.start, one.end))
                except BaseException:
                    net.close()
                    raise
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
                **saving,
                hooks=hooks,
                on_step=lambda s: report(Event("step", s.number, s.total, "steps")),
            )
        finally:
            pipeline.close()
            for unit in units:
                unit.net.close()
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
        for name, one in result.memory.get("components", {}).items():
            told = {"opened": one["opened"], "peak of opening": one["opening"], "peak at work": one["peak"]}
            said = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in told.items() if size is not None)
            screen.say(f"memory: {name}: {said or 'not known'}")
    for path, parameters in zip(paths, result.parameters, strict=True):
        ran = screen.placements(result.placement, artifact.recipe)
        print(f"{path}  seed {parameters['seed']}, {result.timings['total']:.2f} s, {ran}")


def _fitted(memory: dict[str, Any]) -> str:
    """What was done to stay within a budget, in one line."""
    peak = f"{memory['peak'] / 1e9:.2f} GB at the peak" if memory["peak"] else "peak not known"
    bound, done = memory["budget"], ", ".join(memory["done"]) or "nothing was needed"
    if bound is None:
        return f"memory: {peak}; {done}"
    over = " (over it: draw smaller pictures)" if (memory["peak"] or 0) > bound else ""
    return f"memory: {peak} of {bound / 1e9:.2f} GB{over}; {done}"
