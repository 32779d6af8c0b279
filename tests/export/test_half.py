"""Graphs in float16: they compute the same, the time stays apart, and the boundary stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs vitrify[export]")

import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from vitrify.export.half import compute_in_half
from vitrify.proof.parity import sample_inputs


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_graph_in_float16_computes_the_same(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Any], name: str, dtype: str
) -> None:
    """As ONNX Runtime computes it on the CPU; the boundary stays in float32."""
    ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    model = checkpoint(request.getfixturevalue(name), dtype=dtype)
    component = model.components["onnx"]
    graph = ir.load(component.graph_path)
    compute_in_half(graph)
    kinds = {v.dtype for node in graph.graph for v in node.outputs}
    assert ir.DataType.FLOAT16 in kinds
    singles = {n.op_type for n in graph.graph if any(v.dtype is ir.DataType.FLOAT for v in n.outputs)}
    assert singles <= {"Cast", "Sin", "Cos", "Mul", "Unsqueeze", "Expand"}, "the time's frequencies, and no more"
    path = component.graph_path.with_name("half.onnx")
    ir.save(graph, path)
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    inputs = sample_inputs(component, component.details["checks"][1], seed=1)
    for key, expected in model.reference(inputs).items():
        (given,) = session.run([key], inputs)
        assert given.dtype == np.float32
        assert 0 < np.abs(given - expected).max() < 0.01 * np.ptp(expected)


def test_float16_keeps_a_late_time_apart(unet_model: Any) -> None:
    """999 times a frequency is rounded to 0.5 in float16, and its sine to anything."""
    graph = ir.load(unet_model.components["onnx"].graph_path)
    compute_in_half(graph)
    (sine,) = [n for n in graph.graph if n.op_type == "Sin"]
    waiting, seen = list(sine.inputs), set()
    while waiting:
        value = waiting.pop()
        assert value.dtype is not ir.DataType.FLOAT16
        seen.add(value.name)
        if value.producer() is not None and value.producer().op_type != "Shape":
            waiting += value.producer().inputs
    assert "timestep" in seen


def test_a_mask_of_minus_infinity_becomes_float16s_least() -> None:
    least = np.finfo(np.float32).min
    kinds = {"m": TensorProto.BOOL, "x": TensorProto.FLOAT, "y": TensorProto.FLOAT}
    m, x, y = (helper.make_tensor_value_info(name, kind, ["b", 4]) for name, kind in kinds.items())
    low = numpy_helper.from_array(np.array(least), "low")
    made = helper.make_graph([helper.make_node("Where", ["m", "low", "x"], ["y"])], "g", [m, x], [y], [low])
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    compute_in_half(model)
    (value,) = [v.const_value.numpy() for v in model.graph.initializers.values()]
    assert (value.dtype, float(value)) == (np.dtype(np.float16), -65504.0)
