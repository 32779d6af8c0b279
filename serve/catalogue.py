"""What is served, read from the manifests alone: the server itself opens no runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import BadInput, UsageError
from ..core.tensors import TensorSpec
from ..pipelines.control import misfit, residual_inputs
from ..pipelines.families import FAMILIES
from ..pipelines.load import family_of, open_artifact
from ..pipelines.schedulers import scheduler_from_config, scheduler_names
from ..pipelines.settings import PREVIEW
from ..pipelines.step_cache import SHALLOW
from .errors import Unsupported
from .loras import lora_files
from .requests import ClassifyRequest, GenerateRequest, InferRequest

_FROM_PICTURES = ("img2img", "inpaint")


@dataclass(frozen=True)
class ModelInfo:
    """A model as its clients see it.

    kinds: of requests that it takes; none of a ControlNet (control), which works inside another model's jobs.
    labels: of a classifier, in the order of its outputs. inputs, outputs: of a classifier's graph.

    Of one that draws: size: its own width and height in pixels; unit: what both must be multiples of. family: whose
    counts of steps hold. tasks: text2img, img2img, inpaint, as far as it does them. steps, guidance: where a client
    names none. scheduler: its own options; schedulers: names of those that draw with it. controlnets: names of served
    ControlNets that fit it; misfits: of those that do not, and why. lora_folder: None: there are no LoRAs.
    hooks: names of the server's. step_cache: whether a step can take features of an earlier one. preview_decoder:
    whether it has a small decoder. preset: the server's own, of requests that name none.
    """

    name: str
    path: Path
    id: str
    architecture: str
    kinds: tuple[str, ...]
    precision: str
    bytes: int
    labels: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    unit: int = 0
    inputs: Mapping[str, TensorSpec] | None = None
    outputs: Mapping[str, TensorSpec] | None = None
    control: bool = False
    family: str = ""
    tasks: tuple[str, ...] = ()
    steps: int = 0
    guidance: float = 0.0
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    schedulers: tuple[str, ...] = ()
    controlnets: tuple[str, ...] = ()
    misfits: Mapping[str, str] = field(default_factory=dict)
    lora_folder: Path | None = None
    hooks: tuple[str, ...] = ()
    step_cache: bool = False
    preview_decoder: bool = False
    preset: str | None = None

    @property
    def draws(self) -> bool:
        return GenerateRequest.kind in self.kinds

    @property
    def loras(self) -> tuple[str, ...]:
        """Names of the LoRAs that are in the folder now."""
        return tuple(lora_files(self.lora_folder)) if self.draws else ()

    def check(self, kind: str) -> None:
        """Raises Unsupported where it takes no requests of this kind."""
        if kind in self.kinds:
            return
        if self.control:
            raise Unsupported(
                f"{self.name} is a ControlNet: by itself it does nothing.",
                "Name it in `control` of a job for a model that lists it in `controlnets`.",
            )
        raise Unsupported(f"{self.name} does not {kind}.", f"It can {' and '.join(self.kinds)}.")

    def steps_skipped(self, steps: int, strength: float) -> int:
        """How many of the steps a picture that is changed with this strength does not go through."""
        return FAMILIES[self.family].skipped_steps(steps, strength)

    def to_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "name": self.name, "id": self.id, "architecture": self.architecture, "kinds": list(self.kinds),
            "precision": self.precision, "bytes": self.bytes,
        }  # fmt: skip
        if self.labels:
            said["labels"] = list(self.labels)
        if self.control:
            said["control"] = True
        if self.draws:
            said |= {
                "width": self.size[0], "height": self.size[1], "multiple_of": self.unit, "tasks": list(self.tasks),
                "steps": self.steps, "guidance": self.guidance, "schedulers": list(self.schedulers),
                "controlnets": list(self.controlnets), "loras": list(self.loras), "hooks": list(self.hooks),
                "step_cache": self.step_cache, "preview_decoder": self.preview_decoder, "preset": self.preset,
            }  # fmt: skip
        return said


def catalogue(
    folders: Iterable[Path],
    *,
    lora_folder: Path | None = None,
    hooks: Iterable[str] = (),
    preset: str | None = None,
) -> dict[str, ModelInfo]:
    """Name -> what is served; the name is the folder's.

    Args:
        lora_folder, hooks, preset: of the server; hooks by their names.

    Raises:
        UsageError: two folders of one name. BadInput, BadArtifact: a folder is no artifact that can be run.
    """
    found: dict[str, ModelInfo] = {}
    own_hooks = tuple(hooks)
    artifacts: dict[str, Artifact] = {}
    for folder in folders:
        artifact = open_artifact(folder)
        info = info_of(artifact)
        if info.name in found:
            raise UsageError(
                f"{folder} and {found[info.name].path} would both be served as {info.name!r}.",
                "Rename one of the folders.",
            )
        found[info.name], artifacts[info.name] = info, artifact
    nets = {name: artifacts[name] for name, info in found.items() if info.control}
    for name, info in found.items():
        if info.draws:
            why = {net: _misfit(one, artifacts[name]) for net, one in nets.items()}
            found[name] = replace(
                info,
                controlnets=tuple(net for net, wrong in why.items() if wrong is None),
                misfits={net: wrong for net, wrong in why.items() if wrong is not None},
                lora_folder=lora_folder,
                hooks=own_hooks,
                preset=preset,
            )
    return found


def info_of(artifact: Artifact) -> ModelInfo:
    """Raises BadArtifact for what this version cannot run."""
    family_of(artifact)
    settings = artifact.pipeline
    common: dict[str, Any] = {
        "name": artifact.root.resolve().name,
        "path": artifact.root.resolve(),
        "id": artifact.id,
        "architecture": str(artifact.model.get("architecture") or settings.get("family")),
        "precision": artifact.recipe,
        "bytes": artifact.weight_bytes,
    }
    if settings["family"] not in FAMILIES:
        return _other_info(artifact, common)
    family, defaults = FAMILIES[settings["family"]], settings.get("defaults", {})
    height, width = (int(side) for side in settings["size"])
    encodes = "vae_encoder" in artifact.components
    return ModelInfo(
        **common,
        kinds=(GenerateRequest.kind,),
        size=(width, height),
        unit=int(settings["latents"]["scale"]) * int(settings["latents"].get("multiple", 1)),
        family=settings["family"],
        tasks=tuple(task for task in settings["tasks"] if encodes or task not in _FROM_PICTURES),
        steps=int(defaults.get("steps", family.steps)),
        guidance=float(defaults.get("guidance", family.guidance)),
        scheduler=dict(settings["scheduler"]),
        schedulers=fitting(settings["scheduler"]),
        step_cache=family.denoiser + SHALLOW in artifact.components,
        preview_decoder="preview" in settings and PREVIEW in artifact.components,
    )


def fitting(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the schedulers that draw with a model of these options."""

    def fits(name: str) -> bool:
        try:
            scheduler_from_config(config, name)
        except BadInput:  # an option that it does not have
            return False
        return True

    return tuple(name for name in scheduler_names(config) if fits(name))


def _other_info(artifact: Artifact, common: Mapping[str, Any]) -> ModelInfo:
    """Of a ControlNet, or of a classifier."""
    settings = artifact.pipeline
    if "control" in settings["tasks"]:
        return ModelInfo(**common, kinds=(), control=True)
    graph = artifact.components["model"]
    return ModelInfo(
        **common, kinds=(ClassifyRequest.kind, InferRequest.kind), labels=tuple(settings["labels"]),
        inputs=graph.inputs, outputs=graph.outputs,
    )  # fmt: skip


def _misfit(net: Artifact, model: Artifact) -> str | None:
    """Why a ControlNet does not fit a model; None where it does."""
    denoiser = model.components[FAMILIES[model.pipeline["family"]].denoiser]
    if not residual_inputs(denoiser):
        return "the model takes none, since it was exported without --control"
    scale = int(model.pipeline["latents"]["scale"])
    return misfit(net.components["controlnet"], net.pipeline["control"].get("scale"), denoiser, scale)
