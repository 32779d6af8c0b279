"""The commands that run an artifact: generate and classify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

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
    refuse_source_options,
    runtime_options,
)
from .core.errors import UsageError

if TYPE_CHECKING:
    from .core.artifact import Artifact
    from .core.progress import Report
    from .pipelines.classification import ClassificationPipeline
    from .pipelines.text_to_image import TextToImagePipeline


def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="What to draw; (red:1.3) weighs words.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="PNG; default: named after prompt and seed.")
    ] = None,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt", "-n", help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: the model's own.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 50,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; at 1 or less off, at half the cost.")
    ] = 7.5,
    seed: Annotated[int | None, typer.Option(help="Default: a random one, which is printed.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="ddim, euler, euler_a, dpmpp_2m, ...")] = None,
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
    """Draw pictures from a prompt."""
    from . import __version__
    from .core.progress import Event
    from .pipelines.images import check_png_path, picture_paths, save_png
    from .pipelines.load import load
    from .pipelines.random import random_seed

    seed = random_seed() if seed is None else seed
    paths = picture_paths(output, prompt, seed, batch)
    for path in paths:
        check_png_path(path)
    options = runtime_options(threads, prepack, arena, runtime_cache, hint, streams, precision, static)
    with screen.progress() as report:
        artifact = artifact_of(model, revision, variant, token, offline, report)
        _need(artifact, "text2img", "generate")
        opened = load(artifact, device, options=options, runtime=runtime, say=lambda s: screen.say(f"device: {s}"))
        pipeline = cast("TextToImagePipeline", opened)
        try:
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
                on_step=lambda s: report(Event("step", s.number, s.total, "steps")),
            )
        finally:
            pipeline.close()
    made_by = {
        "model": artifact.name,
        "artifact": artifact.id,
        "source": artifact.model.get("source"),
        "revision": artifact.model.get("revision"),
        "version": __version__,
    }
    for path, image, parameters in zip(paths, result.images, result.parameters, strict=True):
        save_png(image, path, parameters | made_by)
    if json:
        images = [{"path": str(p), **t} for p, t in zip(paths, result.parameters, strict=True)]
        screen.print_json({"images": images, "timings": result.timings, "placement": result.placement})
        return
    for path, parameters in zip(paths, result.parameters, strict=True):
        ran = screen.placements(result.placement)
        print(f"{path}  seed {parameters['seed']}, {result.timings['total']:.2f} s, {ran}")


def classify(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of them.")],
    top_k: Annotated[int, typer.Option(help="Labels a picture.")] = 5,
    threshold: Annotated[float | None, typer.Option(help="Every label with at least this score instead.")] = None,
    function: Annotated[str | None, typer.Option(help="softmax, sigmoid or none; default: the model's own.")] = None,
    faces: Annotated[bool, typer.Option("--faces", help="Find faces first and classify each of them.")] = False,
    detector: Annotated[Path | None, typer.Option(help="A YuNet ONNX file for --faces.")] = None,
    batch: Annotated[int, typer.Option(help="Pictures a run.", min=1)] = 8,
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    threads: Threads = 0,
    hint: HintOption = Hint.LATENCY,
    streams: Streams = 0,
    precision: PrecisionOption = None,
    prepack: Prepack = None,
    arena: Arena = None,
    runtime_cache: RuntimeCache = False,
    static: Static = False,
    revision: Revision = None,
    variant: Variant = None,
    token: Token = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Label pictures. Exits with 2 where one of several cannot be read; the others are labelled."""
    from .core.progress import Event
    from .pipelines.faces import open_detector
    from .pipelines.images import expand, open_image
    from .pipelines.load import load
    from .pipelines.picture_files import classify_files, failure

    if detector is not None and not faces:
        raise UsageError("--detector finds faces.", "Give --faces too.")
    paths = expand(images)
    if len(paths) == 1:
        open_image(paths[0])  # a lone picture that cannot be read is told before a model is fetched for it
    # few pictures: weights that stay mapped open at once; many: each run should be fast
    many = len(paths) > 16
    options = runtime_options(threads, prepack, arena, runtime_cache, hint, streams, precision, static, unsaid=many)
    with screen.progress() as report:
        artifact = artifact_of(model, revision, variant, token, offline, report)
        _need(artifact, "classify", "classify")
        eye = open_detector(detector) if faces else None
        opened = load(artifact, device, options=options, runtime=runtime, say=lambda s: screen.say(f"device: {s}"))
        pipeline = cast("ClassificationPipeline", opened)
        try:
            found, timings = classify_files(
                paths,
                lambda pictures: pipeline.run(
                    pictures,
                    top_k=top_k,
                    function=function,
                    threshold=threshold,
                    faces=faces,
                    detector=eye,
                    batch=batch,
                ),
                batch=batch,
                on_batch=lambda done, total: (
                    report(Event("classify", done, total, "pictures")) if total > batch else None
                ),
            )
            placement = pipeline.placement
        finally:
            pipeline.close()
    error = failure(found)
    if error is not None and len(found) == 1:
        raise error
    if json:
        kind = "faces" if faces else "labels"
        results = [
            {"image": str(f.path)} | ({"error": screen.error_of(f.error)} if f.error else {kind: f.answer})
            for f in found
        ]
        document = {"results": results, "timings": timings, "placement": placement}
        screen.print_json(document | ({"error": screen.error_of(error)} if error else {}))
    else:
        for one in found:
            screen.print_answer(one.path, one.answer, faces, one.error)
        screen.say(f"ran on {screen.placements(placement)}")
    if error is not None:
        screen.print_error(error, as_json=False)  # the document, if one was asked for, has it
        raise typer.Exit(error.exit_code)


def artifact_of(
    model: str, revision: str | None, variant: str | None, token: str | None, offline: bool, report: Report
) -> Artifact:
    """The artifact that a command's first argument names, exported first where it is a model."""
    from .export.resolve import artifact_for

    refuse_source_options(Path(model), revision, variant)
    # without --offline the environment decides
    named = True if offline else None
    artifact = artifact_for(model, revision=revision, variant=variant, token=token, offline=named, report=report)
    failed = screen.failure_of(artifact)
    if failed is not None:
        screen.say(f"warning: this artifact failed its proof: {failed}")
    return artifact


def _need(artifact: Artifact, task: str, command: str) -> None:
    if task not in _tasks(artifact):
        raise UsageError(f"{artifact.name} cannot {command}.", f"Use: vitrify {use(artifact)}.")


def use(artifact: Artifact) -> str:
    """How an artifact is run, as a command line."""
    if "classify" in _tasks(artifact):
        return "classify ARTIFACT picture.png"
    return 'generate ARTIFACT "a prompt" -o out.png'


def _tasks(artifact: Artifact) -> list[Any]:
    tasks = artifact.pipeline.get("tasks")
    return tasks if isinstance(tasks, list) else []  # a damaged manifest holds anything
