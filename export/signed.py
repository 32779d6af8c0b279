"""Rounded activations as int8 without a zero point, which is how TensorRT takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir


def make_signed(model: ir.Model) -> None:
    """Turn uint8 around 128 into int8 around 0, which are the same numbers, in place. Other zero points stay."""
    import onnx_ir as ir

    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
            continue
        given, zero = node.inputs[0], node.inputs[2]
        if zero is None or zero.const_value is None or (given is not None and given.const_value is not None):
            continue
        if zero.dtype == ir.DataType.UINT8 and (zero.const_value.numpy() == 128).all():
            zero.const_value = ir.tensor(np.zeros(zero.const_value.numpy().shape, np.int8), name=zero.name)
            zero.dtype = ir.DataType.INT8
    for node in model.graph:
        zero = node.inputs[2] if node.op_type == "QuantizeLinear" and len(node.inputs) > 2 else None
        if zero is not None and zero.dtype is not None:
            node.outputs[0].dtype = zero.dtype
