"""What a session of ONNX Runtime is opened from: a graph of a file or an edited one, and weights given by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort

from ..core.artifact import Component
from ..core.tensors import Array
from .initializers import BFLOAT16, FLOAT, external_bytes, external_initializers, stored_like
from .low_rank import LowRank, Override
from .ort_branches import with_branches
from .ort_winograd import fewer_products, worth_it


@dataclass(frozen=True)
class Source:
    """model: what `ort.InferenceSession` takes, a path or an edited model, whose external data is in `folder`.

    values: type and values of external initializers that are given in place of those in the files, or are in none.
    winograd: how many convolutions compute fewer products. ready: it is optimized, and only has to be opened.
    grown: bytes of weights that it has more than its files.
    """

    model: bytes | str
    folder: str = ""
    values: Mapping[str, tuple[int, Array]] = field(default_factory=dict)
    winograd: int = 0
    ready: bool = False
    grown: int = 0

    def settle(self, settings: ort.SessionOptions) -> list[Any]:
        """Give the values to a session's settings. What is returned must live until it is open."""
        if self.folder:
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
    graph, layers, grown = None, 0, 0
    if branches:
        graph, added = with_branches(component.graph_path, branches)
        stored |= {name: (FLOAT, value) for name, value in added.items()}
    made = fewer_products(component, {n: value for n, (_, value) in stored.items()}, graph) if fewer else None
    if made is not None:
        graph, layers = made.graph, made.layers
        grown = sum(value.nbytes for value in made.values.values()) - external_bytes(component.graph_path, made.gone)
        stored = {n: one for n, one in stored.items() if n not in made.gone}
        stored |= {name: (FLOAT, value) for name, value in made.values.items()}
    path = component.graph_path
    if graph is None:
        return Source(str(path), "", stored)
    return Source(graph, str(path.parent), stored, layers, grown=grown)
