"""What a session of ONNX Runtime is opened from: a graph of a file or an edited one, and weights given by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from ..core.artifact import Component
from ..core.errors import BadArtifact, MissingDependency
from ..core.tensors import Array
from .initializers import BFLOAT16, FLOAT, external_bytes, external_initializers, stored_like
from .low_rank import LowRank, Override
from .ort_branches import add_branches
from .ort_winograd import fewer_products, worth_it

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Source:
    """model: what `ort.InferenceSession` takes, a path or an edited model, whose external data is in `folder`.

    values: type and values of external initializers that are given in place of those in the files, or are in none.
    winograd: how many convolutions compute fewer products. kept: the folder where the model lies optimized, which then
    only has to be opened. grown: bytes of weights that it has more than its files.
    """

    model: bytes | str
    folder: str = ""
    values: Mapping[str, tuple[int, Array]] = field(default_factory=dict)
    winograd: int = 0
    kept: Path | None = None
    grown: int = 0

    def settle(self, settings: ort.SessionOptions) -> list[Any]:
        """Give the values to a session's settings. What is returned must live until it is open."""
        if isinstance(self.model, bytes):
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", self.folder)
        if not self.values:
            return []
        given = [
            ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
            if kind == BFLOAT16
            else ort.OrtValue.ortvalue_from_numpy(array)
            for kind, array in self.values.values()
        ]
        settings.add_external_initializers(list(self.values), given)
        return [self.values, given]


def can_be_fewer(component: Component) -> tuple[bool, str]:
    """Whether its convolutions are worth fewer products and can be rewritten; where they cannot, why.

    Raises:
        BadArtifact: the graph does not load.
    """
    if not worth_it(component):
        return False, ""
    try:
        import onnx.shape_inference  # noqa: F401
    except ImportError as exc:
        return False, f"it needs onnx (pip install onnx), which does not import: {exc}"
    return True, ""


def edited(component: Component, overrides: Mapping[str, Override], *, fewer: bool) -> Source:
    """With external initializers replaced by name, branches beside the layers of those that cannot be, and, with
    `fewer`, large convolutions by fewer products.

    Raises:
        BadArtifact: the graph or a weight does not load.
        BadInput: an override has no weight of its name and shape.
        MissingDependency: a branch needs onnx, which is not installed.
    """
    stored: dict[str, tuple[int, Array]] = {}
    branches: dict[str, LowRank] = {}
    known = external_initializers(component.graph_path) if overrides else {}
    for name, value in overrides.items():  # one at a time: each may be computed when it is asked for
        if isinstance(value, LowRank):
            branches[name] = value
        else:
            stored[name] = stored_like(component.graph_path.name, known, name, value)
    path = component.graph_path
    if not branches and not fewer:
        return Source(str(path), values=stored)
    model = _loaded(path)
    if branches:
        stored |= {name: (FLOAT, value) for name, value in add_branches(model, path.name, branches).items()}
    made = fewer_products(model, component, {n: value for n, (_, value) in stored.items()}) if fewer else None
    if made is None:
        return Source(model.SerializeToString() if branches else str(path), str(path.parent), stored)
    grown = sum(value.nbytes for value in made.values.values()) - external_bytes(path, made.gone)
    stored = {n: one for n, one in stored.items() if n not in made.gone}
    stored |= {name: (FLOAT, value) for name, value in made.values.items()}
    return Source(model.SerializeToString(), str(path.parent), stored, made.layers, grown=grown)


def _loaded(path: Path) -> onnx.ModelProto:
    """A graph without its external data, to be edited."""
    try:
        import onnx
    except ImportError as exc:
        raise MissingDependency(
            f"Changing a weight that is stored in few bits needs onnx, which does not import: {exc}.",
            'pip install "vitrify[lora]"',
        ) from exc
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as exc:  # protobuf has its own errors
        raise BadArtifact(f"{path} does not load: {exc}", "Copy the whole folder again or export again.") from exc
