"""What a component says of its weights, read with no library: their names, shapes, and the bytes of those in float.

A change of weights must know which can be replaced whole and which are stored in few bits, before a session is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.artifact import Component
from ..core.dtypes import FLOATS, ONNX_TYPES
from ..core.errors import UsageError
from ..core.safetensors_header import TensorEntry, read_header
from .initializers import initializers, state_name
from .ir_constants import constants
from .plan_weights import plan_weights

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
_IR_NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64"}
_SMOOTHED = "smooth="  # in the id of a recipe that moves a part of the activations into the weights
# what quantized PyTorch files call a layer's weight
_TORCH = re.compile(r"(?P<layer>.+?)\.(?:weight|_weight_qdata)$")


@dataclass(frozen=True)
class StoredWeight:
    """A weight with two dims or more.

    name: in the state dict. shape: as it is stored, which of few bits may be transposed; None where it is packed.
    entry: its bytes, where they are floats in a file, so that it can be replaced by name; else None.
    """

    name: str
    shape: tuple[int, ...] | None
    entry: TensorEntry | None


def stored_weights(component: Component) -> dict[str, StoredWeight]:
    """Every weight of a component with two dims or more, by its name in the state dict.

    Raises:
        UsageError: the component is a plan that holds its weights for good, or a reference that names no weights.
        BadArtifact: the graph does not load.
        BadInput: a file of weights is damaged.
    """
    readers = {
        "onnx": _onnx, "openvino": _openvino, "torch": _torch, "aotinductor": _torch,
        "tensorrt-rtx": _plan, "tensorrt": _plan,
    }  # fmt: skip
    if component.format not in readers:
        raise UsageError(
            f"{component.name} is of the format {component.format}, whose weights cannot be changed.",
            "Run the artifact that it was compiled from, or compile a model that the change was merged into.",
        )
    weights = (w for w in readers[component.format](component) if w.shape is None or len(w.shape) > 1)
    if _SMOOTHED in str(component.precision.get("recipe", "")):
        weights = (replace(w, entry=None) for w in weights)  # kept layers too hold a part of what they are given
    return {w.name: w for w in weights}


def _onnx(component: Component) -> Iterator[StoredWeight]:
    for name, one in initializers(component.graph_path).items():
        kind = _NAMES.get(ONNX_TYPES.get(one.type, ""))
        file = component.graph_path.parent / one.location
        known = kind is not None and one.external and name == state_name(name)
        yield StoredWeight(
            state_name(name), one.shape, _entry(name, str(kind), one.shape, one.offset, file) if known else None
        )


def _openvino(component: Component) -> Iterator[StoredWeight]:
    file = component.graph_path.with_suffix(".bin")
    for name, one in constants(component.graph_path).items():
        kind = _IR_NAMES.get(one.type)
        known = kind is not None and name == state_name(name)
        yield StoredWeight(
            state_name(name), one.shape, _entry(name, str(kind), one.shape, one.offset, file) if known else None
        )


def _torch(component: Component) -> Iterator[StoredWeight]:
    if not component.weights:
        raise UsageError(
            f"{component.name} is the library's own module, which names no weights here.",
            "Export the model first, or change its weights with its own library.",
        )
    for weight in component.weights:
        if weight.path == component.graph:  # a package of AOTInductor, whose weights lie beside it
            continue
        entries = read_header(component.root / weight.path)
        for name, entry in entries.items():
            match = _TORCH.fullmatch(name)
            if match is None:
                continue
            plain = entry.dtype in FLOATS and f"{name}.scale" not in entries
            packed = entry.dtype == "U8"
            yield StoredWeight(f"{match['layer']}.weight", None if packed else entry.shape, entry if plain else None)


def _plan(component: Component) -> Iterator[StoredWeight]:
    weights = plan_weights(component)
    if not weights:
        raise UsageError(
            f"{component.name} is a plan of {component.format}, whose weights cannot be changed.",
            "Run the artifact that it was compiled from, compile it with --refit (on a GPU) or --apart, or compile a "
            "model that the change was merged into.",
        )
    for name, one in weights.items():
        kind = _NAMES.get(one.dtype)
        known = kind is not None and name == state_name(name)
        entry = _entry(name, str(kind), one.shape, one.offset, component.root / one.path) if known else None
        yield StoredWeight(state_name(name), one.shape, entry)


def _entry(name: str, dtype: str, shape: tuple[int, ...], offset: int, file: Path) -> TensorEntry:
    size = {"F32": 4, "F64": 8}.get(dtype, 2)
    return TensorEntry(name, dtype, shape, offset, math.prod(shape) * size, file)
