"""From a folder to a pipeline: read the manifest, choose a device, open the sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.artifact import Artifact, Component, is_artifact
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, UsageError
from ..core.registry import load_runtime, runtime_for
from ..runtimes.base import Options, Session
from .classification import ClassificationPipeline
from .foreign import foreign_artifact, is_foreign
from .text_to_image import TextToImagePipeline

# the best first; a device that a library merely lists may still fail to open, and then the reason is told
_PREFERENCE = ("cuda", "rocm", "directml", "coreml", "xpu", "gpu", "cpu")


class Build(Protocol):
    """A family's pipeline class."""

    def __call__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> Any: ...


@dataclass(frozen=True)
class Family:
    """A pipeline class and the components that it opens."""

    build: Build
    components: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "sd": Family(TextToImagePipeline, ("text_encoder", "unet", "vae_decoder")),
    "image-classification": Family(ClassificationPipeline, ("model",)),
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
    if not is_artifact(root) and is_foreign(root):
        return foreign_artifact(root)
    return Artifact.load(root)


def pipeline_of(artifact: Artifact, sessions: Mapping[str, Session]) -> Any:
    """The pipeline of an artifact's family over sessions that are open."""
    return family_of(artifact).build(sessions, artifact.pipeline, artifact.root)


def family_of(artifact: Artifact) -> Family:
    """The pipeline class of an artifact and the components that it opens.

    Raises:
        BadArtifact: this version does not know the family, or a component is missing.
    """
    name = artifact.pipeline.get("family")
    if name not in FAMILIES:
        raise BadArtifact(
            f"{artifact.root} is of the family {name!r}; this version runs {', '.join(FAMILIES)}.",
            "pip install --upgrade vitrify",
        )
    missing = [c for c in FAMILIES[name].components if c not in artifact.components]
    if missing:
        raise BadArtifact(f"{artifact.root} has no {', '.join(missing)}.", "Export the model again.")
    return FAMILIES[name]


def load(
    path: str | Path | Artifact,
    device: str | None = None,
    *,
    options: Options | None = None,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Open an artifact's pipeline.

    Args:
        device: a name such as "cpu" or "cuda:1": that device runs it or it is an error. None: the best one that works.
        options: threads, prepacking, arena, cache.
        say: is told, in one line, which device was chosen and why.

    Returns:
        A pipeline with `generate` or `classify`.

    Raises:
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    artifact = path if isinstance(path, Artifact) else open_artifact(path)
    family = family_of(artifact)
    needed = [artifact.components[n] for n in family.components]
    options = options or Options()
    if device is not None:
        sessions = _open_all(needed, Device.parse(device), options)
    else:
        sessions, reason = _best(needed, options)
        if say is not None:
            say(reason)
    try:
        return family.build(sessions, artifact.pipeline, artifact.root)
    except BaseException:
        for session in sessions.values():
            session.close()
        raise


def _open_all(components: Sequence[Component], device: Device, options: Options) -> dict[str, Session]:
    opened: dict[str, Session] = {}
    try:
        for component in components:
            opened[component.name] = load_runtime(runtime_for(component.format)).open(component, device, options)
    except BaseException:
        for session in opened.values():
            session.close()
        raise
    return opened


def _best(components: Sequence[Component], options: Options) -> tuple[dict[str, Session], str]:
    """Sessions on the best device that every component's runtime has and that opens; and why it was chosen."""
    probes = [load_runtime(name).probe() for name in dict.fromkeys(runtime_for(c.format) for c in components)]
    common = [d for d in probes[0].devices if all(d in p.devices for p in probes)]
    known = [Device.parse(d) for d in common]
    ranked = sorted((d for d in known if d.kind in _PREFERENCE), key=lambda d: _PREFERENCE.index(d.kind))
    failed: list[str] = []
    last: DeviceError | None = None
    for device in ranked:
        try:
            sessions = _open_all(components, device, options)
        except DeviceError as exc:
            failed.append(f"{device} did not open: {exc.what}")
            last = exc
            continue
        names = " and ".join(f"{p.runtime} {p.version}" for p in probes)
        why = "; ".join(failed) or ("the best device there" if len(ranked) > 1 else "the only device there")
        return sessions, f"{device} with {names} ({why})"
    if last is not None:
        raise last
    raise UsageError("No device is usable.", "Run `vitrify doctor`.")
