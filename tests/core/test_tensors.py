"""The one check of tensors: names, types, shapes, and symbols that agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput
from vitrify.core.tensors import DType, TensorSpec, check_tensors

SPECS = {
    "image": TensorSpec(DType.FLOAT32, ("batch", 3, "height", "height")),
    "step": TensorSpec(DType.INT64, ()),
    "text": TensorSpec(DType.FLOAT16, ("batch", "tokens")),
}


def good() -> dict[str, Any]:
    return {
        "image": np.zeros((2, 3, 8, 8), np.float32),
        "step": np.array(5, np.int64),
        "text": np.zeros((2, 77), np.float16),
    }


def test_sizes_of_symbols_are_returned() -> None:
    assert check_tensors(SPECS, good()) == {"batch": 2, "height": 8, "tokens": 77}


def test_a_numpy_scalar_is_a_tensor_without_dims() -> None:
    check_tensors(SPECS, good() | {"step": np.int64(5)})


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"step": np.array(5, np.int32)}, "Tensor step is int32, expected int64.", "step.astype('int64')"),
        ({"step": 5}, "Tensor step is a int, expected a numpy array.", "np.asarray(step, 'int64')"),
        ({"image": np.zeros((2, 3, 8, 9), np.float32)}, "Tensor image has shape [2, 3, 8, 9], expected", "any size"),
        ({"image": np.zeros((2, 4, 8, 8), np.float32)}, "[2, 4, 8, 8], expected ['batch', 3,", "any size"),
        ({"image": np.zeros((2, 3, 8), np.float32)}, "Tensor image has shape [2, 3, 8], expected", "any size"),
        ({"text": np.zeros((3, 77), np.float16)}, "Tensor text has shape [3, 77], expected ['batch', 'tokens']", "all"),
        ({"text": np.zeros((3, 77), np.float16)}, "with {'batch': 2", "all"),
        ({"text": np.zeros((2, 77), ">f2")}, "Tensor text is float16 in foreign byte order.", "text.astype('float16')"),
        ({"extra": np.zeros(1)}, "(unknown: extra)", "exactly: image, step, text."),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_tensors(SPECS, good() | change)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_missing_and_unknown_names_are_told_together() -> None:
    tensors = good()
    tensors["img"] = tensors.pop("image")
    with pytest.raises(BadInput, match=r"missing: image; unknown: img"):
        check_tensors(SPECS, tensors)


@pytest.mark.parametrize("dtype", DType)
def test_specs_survive_json(dtype: DType) -> None:
    spec = TensorSpec(dtype, ("batch", 3))
    assert TensorSpec.from_json(spec.to_json("x")) == spec


def test_element_sizes() -> None:
    assert {d.value: d.itemsize for d in DType} == {
        "float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
        "uint8": 1, "bool": 1,
    }  # fmt: skip
