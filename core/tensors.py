"""Tensors at the boundary: what a component takes and gives, and the one check of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BadInput

Array = npt.NDArray[Any]
Dim = int | str


class DType(StrEnum):
    """Element types, named as numpy and safetensors users know them."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 2 if self is DType.BFLOAT16 else np.dtype(self.value).itemsize


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: element type and shape; a dim is a number or a symbol that several tensors may share."""

    dtype: DType
    shape: tuple[Dim, ...]

    def to_json(self, name: str) -> dict[str, Any]:
        return {"name": name, "dtype": self.dtype.value, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        return cls(DType(data["dtype"]), tuple(data["shape"]))


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor that lies on a session's device.

    owner: the runtime and the device, such as "onnx cuda:0", whose sessions read it. value: that library's own object.
    """

    dtype: DType
    shape: tuple[int, ...]
    owner: str
    value: Any


def check_owner(tensor: DeviceTensor, owner: str) -> None:
    """Refuse a tensor that lies elsewhere.

    Raises:
        BadInput: names both places.
    """
    if tensor.owner != owner:
        raise BadInput(
            f"The tensor lies on {tensor.owner}, expected {owner}.", "Copy it with its own session's to_host."
        )


def check_tensors(
    specs: Mapping[str, TensorSpec], tensors: Mapping[str, Array | DeviceTensor], owner: str | None = None
) -> dict[str, int]:
    """Hold `tensors` against `specs`: names, dtypes, shapes, and symbols that agree.

    Args:
        owner: of the device tensors that are taken; None: arrays alone.

    Returns:
        The size that each symbol got.

    Raises:
        BadInput: names the tensor, what was given and what is expected.
    """
    missing = [n for n in specs if n not in tensors]
    unknown = [n for n in tensors if n not in specs]
    if missing or unknown:
        what = "; ".join(
            [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unknown: {', '.join(unknown)}"] * bool(unknown)
        )
        raise BadInput(f"Wrong tensor names ({what}).", f"Give exactly: {', '.join(specs)}.")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        tensor = tensors[name]
        if isinstance(tensor, DeviceTensor):
            if tensor.owner != owner:
                here = f"on {owner}" if owner else "as an array"
                raise BadInput(
                    f"Tensor {name} lies on {tensor.owner}, expected {here}.",
                    "Copy it with that session's to_host first.",
                )
        elif not isinstance(tensor, np.ndarray | np.generic):
            raise BadInput(
                f"Tensor {name} is a {type(tensor).__name__}, expected a numpy array.",
                f"Convert it: np.asarray({name}, '{spec.dtype.value}').",
            )
        elif not tensor.dtype.isnative:  # the libraries read its bytes as they lie
            raise BadInput(
                f"Tensor {name} is {tensor.dtype.name} in foreign byte order.",
                f"Convert it: {name}.astype('{spec.dtype.value}').",
            )
        dtype = tensor.dtype.value if isinstance(tensor, DeviceTensor) else tensor.dtype.name
        if dtype != spec.dtype.value:
            raise BadInput(
                f"Tensor {name} is {dtype}, expected {spec.dtype.value}.",
                f"Convert it: {name}.astype('{spec.dtype.value}').",
            )
        fits = len(tensor.shape) == len(spec.shape)
        for given, dim in zip(tensor.shape, spec.shape, strict=False):
            fits = fits and given == (sizes.setdefault(dim, given) if isinstance(dim, str) else dim)
        if not fits:
            known = {s: sizes[s] for s in spec.shape if isinstance(s, str) and s in sizes}
            raise BadInput(
                f"Tensor {name} has shape {list(tensor.shape)}, expected {list(spec.shape)}"
                + (f" with {known}." if known else "."),
                "Give a tensor of that shape; a name stands for any size that all tensors share.",
            )
    return sizes
