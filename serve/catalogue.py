"""What is served, read from the manifests alone: the server itself opens no runtime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import UsageError
from ..core.tensors import TensorSpec
from ..pipelines.load import family_of, open_artifact
from ..pipelines.schedulers import scheduler_names
from .models import weights_of
from .requests import ClassifyRequest, GenerateRequest, InferRequest


@dataclass(frozen=True)
class ModelInfo:
    """A model as its clients see it.

    kinds: of requests that it takes. labels: of a classifier, in the order of its outputs. size: its own width and
    height in pixels; unit: what both must be multiples of. inputs, outputs: of a classifier's graph.
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

    def to_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "name": self.name, "id": self.id, "architecture": self.architecture, "kinds": list(self.kinds),
            "precision": self.precision, "bytes": self.bytes,
        }  # fmt: skip
        if self.labels:
            said["labels"] = list(self.labels)
        if self.unit:
            said |= {"width": self.size[0], "height": self.size[1], "multiple_of": self.unit}
            said["schedulers"] = scheduler_names()
        return said


def catalogue(folders: Iterable[Path]) -> dict[str, ModelInfo]:
    """Name -> what is served; the name is the folder's.

    Raises:
        UsageError: two folders of one name. BadInput, BadArtifact: a folder is no artifact that can be run.
    """
    found: dict[str, ModelInfo] = {}
    for folder in folders:
        info = info_of(open_artifact(folder))
        if info.name in found:
            raise UsageError(
                f"{folder} and {found[info.name].path} would both be served as {info.name!r}.",
                "Rename one of the folders.",
            )
        found[info.name] = info
    return found


def info_of(artifact: Artifact) -> ModelInfo:
    """Raises BadArtifact for what this version cannot run."""
    family_of(artifact)
    settings = artifact.pipeline
    recipes = sorted({str(c.precision.get("recipe", "fp32")) for c in artifact.components.values()} - {"fp32"})
    common: dict[str, Any] = {
        "name": artifact.root.resolve().name,
        "path": artifact.root.resolve(),
        "id": artifact.id,
        "architecture": str(artifact.model.get("architecture") or settings.get("family")),
        "precision": "+".join(recipes) or "fp32",
        "bytes": weights_of(artifact),
    }
    if "classify" in settings["tasks"]:
        graph = artifact.components["model"]
        return ModelInfo(
            **common, kinds=(ClassifyRequest.kind, InferRequest.kind), labels=tuple(settings["labels"]),
            inputs=graph.inputs, outputs=graph.outputs,
        )  # fmt: skip
    height, width = (int(side) for side in settings["size"])
    unit = int(settings["latents"]["scale"]) * int(settings["latents"].get("multiple", 1))
    return ModelInfo(**common, kinds=(GenerateRequest.kind,), size=(width, height), unit=unit)
