"""The command that labels pictures, and what the commands that run an artifact share."""

from __future__ import annotations

from collections.abc import Sequence
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
    RuntimeOptions,
    Static,
    Streams,
    Threads,
    Token,
    Variant,
    runtime_options,
)
from .core.errors import UsageError

if TYPE_CHECKING:
    from .core.artifact import Artifact
    from .core.progress import Report
    from .export.changed import Changes
    from .pipelines.classification import ClassificationPipeline


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
    runtime_option: RuntimeOptions = None,
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
    options = runtime_options(
        threads, prepack, arena, runtime_cache, hint, streams, precision, static, runtime_option, unsaid=many
    )
    with screen.progress() as report:
        artifact = artifact_of(model, revision, variant, token, offline, report)
        need(artifact, ("classify",), "classify")
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
        screen.say(f"ran on {screen.placements(placement, artifact.recipe)}")
    if error is not None:
        screen.print_error(error, as_json=False)  # the document, if one was asked for, has it
        raise typer.Exit(error.exit_code)


def artifact_of(
    model: str,
    revision: str | None,
    variant: str | None,
    token: str | None,
    offline: bool,
    report: Report,
    config: str | None = None,
    prediction_type: str | None = None,
    control: bool = False,
    changes: Changes | None = None,
) -> Artifact:
    """The artifact that a command's first argument names, exported first where it is a model.

    control: its denoiser shall take a ControlNet's residuals. changes: what else its export changes.
    The rest is as the options of these names have it.
    """
    from .export.given import given_artifact

    artifact = given_artifact(
        model,
        revision=revision,
        variant=variant,
        config=config,
        prediction_type=prediction_type,
        control=control,
        changes=changes,
    )
    if artifact is None:
        from .export.changed import NO_CHANGES
        from .export.resolve import artifact_for

        artifact = artifact_for(
            model,
            revision=revision,
            variant=variant,
            token=token,
            offline=True if offline else None,  # without --offline the environment decides
            config=config,
            prediction_type=prediction_type,
            control=control,
            changes=changes or NO_CHANGES,
            report=report,
        )
    failed = screen.failure_of(artifact)
    if failed is not None:
        screen.say(f"warning: this artifact failed its proof: {failed}")
    return artifact


def need(artifact: Artifact, tasks: Sequence[str], command: str) -> None:
    """Refuse an artifact that can do none of `tasks`.

    Raises:
        UsageError: says the command that it is for.
    """
    if not set(tasks) & set(map(str, _tasks(artifact))):
        raise UsageError(f"{artifact.name} cannot {command}.", f"Use: vitrify {use(artifact)}.")


def use(artifact: Artifact) -> str:
    """How an artifact is run, as a command line."""
    if "classify" in _tasks(artifact):
        return "classify ARTIFACT picture.png"
    if artifact.pipeline.get("family") == "controlnet":
        return 'generate MODEL "a prompt" --controlnet ARTIFACT --control picture.png -o out.png'
    if "text2img" in _tasks(artifact):
        return 'generate ARTIFACT "a prompt" -o out.png'
    mask = "" if "img2img" in _tasks(artifact) else " --mask mask.png"
    return f'generate ARTIFACT "a prompt" --image picture.png{mask} -o out.png'


def _tasks(artifact: Artifact) -> list[Any]:
    tasks = artifact.pipeline.get("tasks")
    return tasks if isinstance(tasks, list) else []  # a damaged manifest holds anything
