"""From a folder to a pipeline: read the manifest, choose a device, open the sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.artifact import Artifact, Component, is_artifact
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure
from ..core.registry import load_runtime, runtime_for
from ..runtimes.base import Options, Probe, Session
from .classification import ClassificationPipeline
from .foreign import foreign_artifact, is_foreign
from .text_to_image import TextToImagePipeline

# The best first, then any other, then the CPU. A device that a library merely lists may still fail to open, and then
# the reason is told.
_PREFERENCE = ("cuda", "rocm", "directml", "coreml", "xpu", "gpu")
_LAST = "cpu"
_CHOOSERS = ("auto", "hetero")  # no devices: they choose one themselves, which only a user may leave to them


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


def pipeline_of(artifact: Artifact, sessions: Mapping[str, Session]) -> Pipeline:
    """The pipeline of an artifact's family over sessions that are open.

    Raises:
        BadArtifact: what the manifest says of the pipeline is incomplete or wrong.
        BadInput: its tokenizer or preprocessing cannot be read.
    """
    try:
        return family_of(artifact).build(sessions, artifact.pipeline, artifact.root)
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
    if not isinstance(name, str) or name not in FAMILIES:
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
    runtime: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Pipeline:
    """Open an artifact's pipeline.

    Args:
        device: a name such as "cpu" or "cuda:1": that device runs it or it is an error. None: the best one that works.
        options: threads, prepacking, arena, cache, ...
        runtime: a name such as "onnx": that runtime runs every component or it is an error. None: for each component
            the first that opens its format.
        say: is told, in one line, which device was chosen and why.

    Returns:
        A pipeline with `generate` or `classify`.

    Raises:
        UsageError: the runtime does not open a component's format, or there is none of that name.
        DeviceError: no device is usable, or the one that was named is not.
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    artifact = path if isinstance(path, Artifact) else open_artifact(path)
    opened_by = [(c, runtime_for(c.format, runtime)) for c in _needed(artifact)]
    options = options or Options()
    if device is not None:
        sessions = _open_all(opened_by, Device.parse(device), options)
    else:
        sessions, reason = _best(opened_by, options)
        if say is not None:
            say(reason)
    try:
        return pipeline_of(artifact, sessions)
    except BaseException:
        for session in sessions.values():
            session.close()
        raise


def _needed(artifact: Artifact) -> list[Component]:
    return [artifact.components[name] for name in family_of(artifact).components]


def _open_all(components: Sequence[tuple[Component, str]], device: Device, options: Options) -> dict[str, Session]:
    """Each component opened by the runtime of this name; all of them, or none stays open."""
    opened: dict[str, Session] = {}
    try:
        for component, runtime in components:
            opened[component.name] = load_runtime(runtime).open(component, device, options)
    except BaseException:
        for session in opened.values():
            session.close()
        raise
    return opened


def _best(components: Sequence[tuple[Component, str]], options: Options) -> tuple[dict[str, Session], str]:
    """Sessions on the best device that every component's runtime has and that opens; and why it was chosen."""
    probes: list[Probe] = [load_runtime(name).probe() for name in dict.fromkeys(name for _, name in components)]
    ranked = _devices(probes)
    if not ranked:
        problems = [(f"{p.runtime}: {p.problem}", p.fix) for p in probes if p.problem]
        names = " and ".join(p.runtime for p in probes)
        why = " ".join(what for what, _ in problems) or "They have none in common." * (len(probes) > 1)
        fix = problems[0][1] if problems else "Run `vitrify doctor`."
        raise DeviceError(f"No device is usable with {names}. {why}".strip(), fix)
    failed: list[str] = []
    for device in ranked:
        try:
            sessions = _open_all(components, device, options)
        except (DeviceError, RuntimeFailure) as exc:  # no such card, no memory left on it, no kernel for it
            if device == ranked[-1]:
                raise
            failed.append(f"{device} did not open: {exc.what}")
            continue
        names = " and ".join(f"{p.runtime} {p.version}" for p in probes)
        why = "; ".join(failed) or ("the best device there" if len(ranked) > 1 else "the only device there")
        return sessions, f"{device} with {names} ({why})"
    raise AssertionError("the last device opens or raises")


def _devices(probes: Sequence[Probe]) -> list[Device]:
    """The devices that every runtime has, the best first.

    One runtime lists "cuda" and another "cuda:0": a device without a number stands for any of its kind.
    """
    parsed = [[Device.parse(name) for name in probe.devices] for probe in probes]
    listed = [[device for device in devices if device.kind not in _CHOOSERS] for devices in parsed]

    def has(devices: Sequence[Device], wanted: Device) -> bool:
        numbers = [d.index for d in devices if d.kind == wanted.kind]
        return bool(numbers) and (wanted.index is None or wanted.index in numbers or None in numbers)

    common = dict.fromkeys(d for devices in listed for d in devices if all(has(other, d) for other in listed))
    numbered = {d.kind for d in common if d.index is not None}
    apart = [d for d in common if d.index is not None or d.kind not in numbered]  # not "cuda" and "cuda:0" both

    def rank(device: Device) -> int:
        if device.kind == _LAST:
            return len(_PREFERENCE) + 1
        return _PREFERENCE.index(device.kind) if device.kind in _PREFERENCE else len(_PREFERENCE)

    return sorted(apart, key=rank)
