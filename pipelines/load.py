"""From a folder to a pipeline: read the manifest, choose a device, open the sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.artifact import Artifact, is_artifact
from ..core.errors import BadArtifact, BadInput
from ..runtimes.base import Options, Session
from .families import FAMILIES as DIFFUSION
from .memory_report import Watch
from .offload import Wish
from .opening import open_components
from .prompt_cache import DEFAULT_BYTES, Remember, is_text_encoder, remember_prompts
from .prompt_part import PromptParts
from .settings import PREVIEW
from .step_cache import SHALLOW


class Pipeline(Protocol):
    """What the pipelines of all families have; what else one does (`generate`, `classify`) is its family's.

    A Protocol, so that a family needs no base class.
    """

    sessions: Mapping[str, Session]

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it."""

    def close(self) -> None: ...


class Build(Protocol):
    """A family's pipeline class."""

    def __call__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> Pipeline: ...


@dataclass(frozen=True)
class Family:
    """A pipeline class and the components that it opens: at once, and those of `optional` when they are needed.

    build: gives the class. It is imported while the components open, and no other family's is.
    """

    build: Callable[[], Build]
    components: tuple[str, ...]
    optional: tuple[str, ...] = ()


def _diffusion() -> Build:
    from .diffusion import DiffusionPipeline

    return DiffusionPipeline


def _classification() -> Build:
    from .classification import ClassificationPipeline

    return ClassificationPipeline


def _controlnet() -> Build:
    from .control import ControlNet

    return ControlNet


_OTHERS = {
    "image-classification": Family(_classification, ("model",)),
    "controlnet": Family(_controlnet, ("controlnet",)),
}


def open_artifact(path: str | Path) -> Artifact:
    """The artifact in a folder: ours, or one that Optimum wrote, whose manifest is made on the fly.

    Raises:
        BadInput: no such folder.
        BadArtifact: damaged, unsafe, or no artifact at all.
    """
    root = Path(path)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise BadInput(f"{root} {kind}.", "Give an artifact's folder, as `vitrify export` writes it.")
    if not is_artifact(root):
        from .foreign import foreign_artifact, is_foreign  # knows every family by its class

        if is_foreign(root):
            return foreign_artifact(root)
    return Artifact.load(root)


def pipeline_of(artifact: Artifact, sessions: Mapping[str, Session]) -> Pipeline:
    """The pipeline of an artifact's family over sessions that are open.

    Raises:
        BadArtifact: what the manifest says of the pipeline is incomplete or wrong.
        BadInput: its tokenizer or preprocessing cannot be read.
    """
    try:
        return family_of(artifact).build()(sessions, artifact.pipeline, artifact.root)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise BadArtifact(
            f"The manifest of {artifact.root} describes no pipeline that can run ({type(exc).__name__}: {exc}).",
            "Copy the whole folder again or export the model again.",
        ) from exc


def family_of(artifact: Artifact) -> Family:
    """The pipeline class of an artifact and the components that it opens.

    Raises:
        BadArtifact: this version does not know the family, or a component is missing.
    """
    name = artifact.pipeline.get("family")
    if not isinstance(name, str) or not (name in DIFFUSION or name in _OTHERS):
        raise BadArtifact(
            f"{artifact.root} is of the family {name!r}; this version runs {', '.join((*DIFFUSION, *_OTHERS))}.",
            "pip install --upgrade vitrify",
        )
    if name in _OTHERS:
        family = _OTHERS[name]
    else:
        kind = DIFFUSION[name]
        family = Family(_diffusion, kind.required, (*kind.optional, PREVIEW, kind.denoiser + SHALLOW))
    missing = [c for c in family.components if c not in artifact.components]
    if missing:
        raise BadArtifact(f"{artifact.root} has no {', '.join(missing)}.", "Export the model again.")
    return family


def load(
    path: str | Path | Artifact,
    device: str | None = None,
    *,
    options: Options | None = None,
    runtime: str | None = None,
    memory: int | None = None,
    place: Mapping[str, str] | None = None,
    offload: str = "auto",
    beside: bool = False,
    watch: Watch | None = None,
    prompt_bytes: int = DEFAULT_BYTES,
    prompt_cache: bool = False,
    free_text_encoders: bool = False,
    say: Callable[[str], None] | None = None,
) -> Pipeline:
    """Open an artifact's pipeline.

    Args:
        device: a name such as "cpu" or "cuda:1": that device runs it or it is an error. None: the best one that works.
        options: threads, prepacking, arena, cache, ...
        runtime: a name such as "onnx": that runtime runs every component or it is an error. None: for each component
            the first that opens its format.
        memory: bytes that the process, or a GPU, may hold, about: components are then opened in turn and closed
            again, the VAE works in tiles, and guidance in two calls. None: no bound.
        place: component -> device, for those that shall not run on `device`; "vae", "text_encoders" and "denoiser"
            stand for what they say.
        offload: "auto", "none", "components" or "weights"; see `pipelines.offload.Offload`.
        beside: return while components are still being opened, where nothing else is tried when one does not open;
            what goes wrong with one is then raised by the call that needs it first. For one picture, soonest.
        watch: is told what each component takes of the process's memory; they are then opened one after the other.
        prompt_bytes: of encoded prompts that are kept in memory, so that one that comes again is not encoded; 0: none.
        prompt_cache: keep them in the cache folder too; text encoders are then opened for new prompts alone.
        free_text_encoders: close the text encoders once a request's prompts are encoded, until there is a new prompt.
        say: is told, in a line each, which device was chosen, what stays on it, and why, and what is left out of the
            options that are optional; some of it from threads that open components.

    Returns:
        A pipeline with `generate` or `classify`.

    Raises:
        UsageError: the runtime does not open a component's format, or there is none of that name.
        DeviceError: no device is usable, or the one that was named is not.
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    artifact = path if isinstance(path, Artifact) else open_artifact(path)
    family = family_of(artifact)
    known = [artifact.components[n] for n in (*family.components, *family.optional) if n in artifact.components]
    once = {c.name: parts for c in known if (parts := PromptParts.of(c.name, artifact.components)) is not None}
    remember = Remember(prompt_bytes, prompt_cache, free_text_encoders)
    sessions = open_components(
        known, family.components, device,
        place=place, options=options, runtime=runtime, wish=Wish.of(offload, memory), beside=beside, watch=watch,
        late=[c.name for c in known if remember.late and is_text_encoder(c.name)], once=once, say=say,
    )  # fmt: skip
    try:
        pipeline = pipeline_of(artifact, sessions)
        remember_prompts(pipeline, sessions, artifact.pipeline, remember, say)
        return pipeline
    except BaseException:
        sessions.close()
        raise
