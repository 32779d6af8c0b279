"""The weights that a plan takes from files: what the manifest says of each, and its bytes, changed or not.

No library is needed for it: the same bytes go into a refit, or into the inputs of a plan whose weights are apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.errors import BadArtifact
from ..core.tensors import Array
from .initializers import Initializer, state_name, stored_like
from .low_rank import Override, no_weight, only_whole

# number of ONNX's TensorProto.DataType -> our name, of what a plan's weights are stored in
TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 10: "float16", 16: "bfloat16",
         17: "float8_e4m3fn", 22: "int4"}  # fmt: skip
_NUMBERS = {name: number for number, name in TYPES.items()}
_BYTES = ("bfloat16", "float8_e4m3fn", "int4")  # numpy has no such type: their bits


@dataclass(frozen=True)
class PlanWeight:
    """One weight in a file: path from the artifact's folder, dtype, shape, and where its first byte is."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        if self.dtype == "int4":
            return (self.count + 1) // 2
        return self.count * {"bfloat16": 2, "float8_e4m3fn": 1}.get(self.dtype, 0) or (
            self.count * np.dtype(self.dtype).itemsize
        )


def weights_json(keeps: str, weights: Mapping[str, PlanWeight]) -> dict[str, Any]:
    """For the manifest: the files once, and of each weight its file's number, dtype, shape and offset."""
    files = list(dict.fromkeys(w.path for w in weights.values()))
    table = {n: [files.index(w.path), w.dtype, list(w.shape), w.offset] for n, w in weights.items()}
    return {"keeps": keeps, "files": files, "table": table}


def kept_as(component: Component) -> str:
    """ "inside", "refit", "strip" or "apart": see `PlanOptions`."""
    return str(dict(component.details.get("outside", {})).get("keeps", "inside"))


def plan_weights(component: Component) -> dict[str, PlanWeight]:
    """The weights that a plan takes or may take from files, by name; none of a plan that holds its own.

    Raises:
        BadArtifact: the manifest's table is damaged, or names a file that the manifest does not list.
    """
    told = component.details.get("outside")
    if told is None:
        return {}
    listed = {w.path: w.bytes for w in component.weights}
    found: dict[str, PlanWeight] = {}
    try:
        files = [str(path) for path in told["files"]]
        for name, (file, dtype, shape, offset) in told["table"].items():
            weight = PlanWeight(files[file], str(dtype), tuple(int(d) for d in shape), int(offset))
            if weight.dtype not in _NUMBERS or weight.offset < 0 or min(weight.shape, default=0) < 0:
                raise ValueError(name)
            if weight.path not in listed or weight.offset + weight.nbytes > listed[weight.path]:
                raise ValueError(f"{name} lies outside {weight.path}")
            found[name] = weight
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        raise BadArtifact(
            f"The manifest's weights of {component.name} are damaged ({type(exc).__name__}: {exc}).",
            "Copy the whole folder again or compile the artifact again.",
        ) from exc
    return found


def stored_bytes(component: Component, weight: PlanWeight) -> Array:
    """A weight as its file has it, mapped: bfloat16, fp8 and int4 as their bytes.

    Raises:
        BadArtifact: the file is missing or ends before the weight does.
    """
    path = component.root / weight.path
    plain = weight.dtype not in _BYTES
    try:
        return np.memmap(
            path,
            np.dtype(weight.dtype) if plain else np.dtype(np.uint8),
            "r",
            weight.offset,
            weight.shape or (1,) if plain else (weight.nbytes,),
        )
    except (OSError, ValueError) as exc:
        raise BadArtifact(
            f"{weight.path} cannot be read up to its end: {exc}.", "Copy the whole folder again or compile again."
        ) from exc


def changed_bytes(component: Component, name: str, weight: PlanWeight, value: Array) -> Array:
    """A changed weight as the plan takes it: rounded to the type that its file stores.

    Raises:
        BadInput: another shape, or a weight in few bits.
    """
    known = {name: Initializer(_NUMBERS[weight.dtype], weight.shape, weight.path, weight.offset)}
    return np.ascontiguousarray(stored_like(component.graph, known, name, value)[1])


def changed_weights(
    component: Component, weights: Mapping[str, PlanWeight], overrides: Mapping[str, Override], title: str
) -> Iterator[tuple[str, PlanWeight, Array]]:
    """(name, weight, bytes) of each weight that an override changes, one at a time.

    Raises:
        UsageError: an override is a branch.
        BadInput: the plan has no weight of that name and shape.
    """
    for name in overrides:
        weight = weights.get(name)
        if weight is None or name != state_name(name):
            only_whole({name: overrides[name]}, title)
            raise no_weight(name, component.graph)
        value = only_whole({name: overrides[name]}, title)[name]
        yield name, weight, changed_bytes(component, name, weight, value)
