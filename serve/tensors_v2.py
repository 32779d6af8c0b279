"""Tensors of the Open Inference Protocol: what it calls a type, and values held against what a model takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.tensors import Array, TensorSpec
from .errors import BadRequest, Unsupported

_NAMES = {
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16",
}  # fmt: skip
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # numpy's kind of a type -> kinds of JSON values that it takes


def datatype_of(dtype: str) -> str:
    """The protocol's name of numpy's."""
    return _NAMES.get(dtype, dtype.upper())


def tensor_of(
    name: str, spec: TensorSpec, datatype: str, shape: Sequence[int], values: Sequence[Any] | memoryview
) -> Array:
    """One input. values: numbers, flat or nested, or their bytes in little-endian and C order.

    Raises:
        BadRequest: the type is another one, or the values are not as many as the shape says, or no such numbers.
        Unsupported: the model takes bfloat16, which numpy has not.
    """
    expected = datatype_of(spec.dtype.value)
    if expected == "BF16":
        raise Unsupported(f"The input {name} is BF16, which cannot be sent here.", "Serve a model with FP32 inputs.")
    if datatype != expected:
        raise BadRequest(f"The input {name} is {datatype!r}; the model takes {expected}.", f"Send it as {expected}.")
    if len(shape) != len(spec.shape):
        raise BadRequest(
            f"The input {name} has the shape {_short(shape)}; the model takes {list(spec.shape)}.",
            "Give a size for each of them.",
        )
    count, dtype = math.prod(shape), np.dtype(spec.dtype.value)
    if isinstance(values, memoryview):
        size = count * dtype.itemsize
        if len(values) != size:
            raise BadRequest(
                f"The input {name} has {len(values)} bytes; {_short(shape)} of {expected} are {size}.",
                "Look at its shape and binary_data_size.",
            )
        flat = np.frombuffer(values, dtype.newbyteorder("<")).astype(dtype, copy=False)
        if dtype.kind == "b" and len(flat) and int(flat.view(np.uint8).max()) > 1:
            raise BadRequest(f"The input {name} has bytes that are no BOOL.", "Send 0 and 1.")
    else:
        flat = _numbers(name, dtype, values)
        if flat.size != count:
            raise BadRequest(
                f"The input {name} has {flat.size} values; {_short(shape)} are {count}.", "Look at its shape and data."
            )
    return flat.reshape(tuple(shape))


def _numbers_alone(values: Sequence[Any]) -> bool:
    """Of texts, numpy would give each the room of the longest."""
    left = [values]
    while left:
        for one in left.pop():
            if isinstance(one, list):
                left.append(one)
            elif not isinstance(one, int | float):
                return False
    return True


def _numbers(name: str, dtype: np.dtype[Any], values: Sequence[Any]) -> Array:
    """JSON's numbers as a flat array of this type; never rounded to whole numbers, never wrapped around.

    Raises:
        BadRequest: they are no numbers, nested unevenly, or too large.
    """
    no_numbers = BadRequest(
        f"The data of the input {name} are no numbers of {datatype_of(dtype.name)}.", "Send a flat list of numbers."
    )
    if not _numbers_alone(values):
        raise no_numbers
    try:
        given = np.array(values)
    except (ValueError, TypeError, OverflowError, MemoryError) as exc:
        raise no_numbers from exc
    if given.size and given.dtype.kind not in _KINDS[dtype.kind]:
        raise no_numbers
    if given.size and dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if int(given.min()) < bounds.min or int(given.max()) > bounds.max:
            raise no_numbers
    with np.errstate(over="ignore"):  # to infinity, as it is in binary
        return given.astype(dtype).ravel()


def _short(shape: Sequence[int]) -> str:
    text = str(list(shape))
    return text if len(text) <= 80 else f"{text[:77]}..."
