"""Hand-made layers of every layout, quantized: each computes what its few bits stand for, or is kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.errors import BadInput
from vitrify.core.safetensors_header import read_header
from vitrify.quant.recipes import recipe

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

from onnx import helper  # noqa: E402

from vitrify.export.quantize import quantize_weights  # noqa: E402

Count = Callable[[Component], Counter[Any]]
Call = Callable[..., Any]


def gemm(weight: str, out: str = "y", given: str = "x", **attributes: Any) -> Any:
    return helper.make_node("Gemm", [given, weight], [out], name=out, **attributes)


X = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
W = np.random.default_rng(2).standard_normal((96, 64)).astype(np.float32)  # [out, in]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("id", ["int8-weights", "int8-weights:symmetric=no", "int4-weights:group=16,symmetric=no"])
@pytest.mark.parametrize("layout", ["transB", "Gemm", "MatMul", "bias", "float16", "bfloat16"])
def test_a_linear_layer_in_every_layout(
    component: Call, run: Call, tmp_path: Path, layout: str, id: str, runtime: str, dequantized: Call, off: Call
) -> None:
    weight, stored, nodes, bias = W, W, [gemm("fc.weight", transB=1)], np.zeros(96, np.float32)
    constants = {}
    if layout == "Gemm":
        nodes, stored = [gemm("fc.weight")], np.ascontiguousarray(W.T)
    elif layout == "MatMul":
        nodes, stored = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])], np.ascontiguousarray(W.T)
    elif layout == "bias":
        bias = np.arange(96, dtype=np.float32)
        nodes, constants = [helper.make_node("Gemm", ["x", "fc.weight", "b"], ["y"], transB=1)], {"b": bias}
    elif "float16" in layout:  # stored in half precision, cast where it is used
        nodes = [helper.make_node("Cast", ["fc.weight"], ["w"], to=onnx.TensorProto.FLOAT), gemm("w", transB=1)]
        if layout == "float16":
            stored, weight = W.astype(np.float16), W.astype(np.float16).astype(np.float32)
        else:
            bits = (W.view(np.uint32) >> 16).astype(np.uint16)
            stored, weight = bits, (bits.astype(np.uint32) << 16).view(np.float32)
    made = quantize_weights(component(nodes, {"fc.weight": stored}, constants), recipe(id), tmp_path / "out")
    assert made.precision["layers"] == 1
    assert made.precision["kept"] == []
    right = X @ dequantized(weight, False, id).T + bias
    assert off(right, run(made, {"x": X}, runtime)["y"]) < 1e-5


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_an_odd_number_of_zero_points_is_packed(
    component: Call, run: Call, tmp_path: Path, runtime: str, dequantized: Call, off: Call
) -> None:
    weight = np.random.default_rng(3).standard_normal((65, 64)).astype(np.float32)
    id = "int4-weights:symmetric=no"  # one group of 64: 65 zero points in 33 bytes
    made = quantize_weights(component([gemm("fc.weight", transB=1)], {"fc.weight": weight}), recipe(id), tmp_path / "o")
    assert read_header(made.root / made.weights[0].path)["fc.weight.zero_point"].length == 33
    assert off(X @ dequantized(weight, False, id).T, run(made, {"x": X}, runtime)["y"]) < 1e-5


def test_a_group_that_does_not_fit_is_halved_and_where_none_does_there_are_eight_bits(
    component: Call, run: Call, tmp_path: Path, dequantized: Call, off: Call
) -> None:
    rng, id = np.random.default_rng(4), "int4-weights:group=64"
    shapes = {"whole.weight": (96, 64), "half.weight": (72, 96), "none.weight": (60, 72)}
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        gemm("whole.weight", "a", transB=1),
        gemm("half.weight", "b", "a", transB=1),
        gemm("none.weight", "y", "b", transB=1),
    ]
    made = quantize_weights(component(nodes, weights), recipe(id), tmp_path / "out")
    graph = onnx.load(str(made.graph_path), load_external_data=False).graph
    groups = {
        n.input[0]: [a.i for a in n.attribute if a.name == "block_size"]
        for n in graph.node
        if n.op_type == "DequantizeLinear"
    }
    assert groups == {"whole.weight": [64], "half.weight": [32], "none.weight": []}
    kinds = {t.name: t.data_type for t in graph.initializer}
    assert [kinds[n] for n in shapes] == [onnx.TensorProto.INT4, onnx.TensorProto.INT4, onnx.TensorProto.INT8]
    right = X
    for weight in weights.values():
        right = right @ dequantized(weight, False, id).T
    assert off(right, run(made, {"x": X})["y"]) < 1e-5


@pytest.mark.parametrize(("channels", "kind"), [(7, "INT8"), (16, "INT4")])
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_convolution_alone(
    component: Call,
    onnx_operators: Count,
    run: Call,
    tmp_path: Path,
    channels: int,
    kind: str,
    runtime: str,
    expected: Call,
    off: Call,
) -> None:
    weight = np.random.default_rng(4).standard_normal((72, channels, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "conv.weight"], ["y"], pads=[1, 1, 1, 1])
    given = component([conv], {"conv.weight": weight}, given=("rows", channels, 8, 8), rank=4)
    made = quantize_weights(given, recipe("int4-weights"), tmp_path / "out")
    assert onnx_operators(made)[f"{kind} weight"] == made.precision["layers"] == 1
    x = {"x": np.random.default_rng(5).standard_normal((2, channels, 8, 8)).astype(np.float32)}
    right = run(expected(given, "int4-weights", tmp_path / "expected"), x)["y"]
    assert off(right, run(made, x, runtime)["y"]) < 1e-5


def test_a_weight_that_two_layers_share_is_stored_once(
    component: Call, onnx_operators: Count, run: Call, tmp_path: Path, dequantized: Call, off: Call
) -> None:
    square = np.random.default_rng(6).standard_normal((64, 64)).astype(np.float32)
    nodes = [gemm("fc.weight", "h", transB=1), gemm("fc.weight", given="h", transB=1)]
    made = quantize_weights(component(nodes, {"fc.weight": square}), recipe("int8-weights"), tmp_path / "out")
    assert onnx_operators(made)["DequantizeLinear"] == made.precision["layers"] == 1
    rounded = dequantized(square, False, "int8-weights")
    assert off(X @ rounded.T @ rounded.T, run(made, {"x": X})["y"]) < 1e-5


def test_what_is_not_a_plain_matrix_of_one_layer_is_kept(component: Call, run: Call, tmp_path: Path, off: Call) -> None:
    rng = np.random.default_rng(7)
    weights = {
        "both.weight": rng.standard_normal((64, 64)).astype(np.float32),  # once as it is, once turned
        "many.weight": rng.standard_normal((1, 64, 64)).astype(np.float32),  # a batch of matrices
        "added.weight": rng.standard_normal((64, 64)).astype(np.float32),  # also added to something
        "small.weight": rng.standard_normal((60, 64)).astype(np.float32),
        "fc.weight": rng.standard_normal((64, 64)).astype(np.float32),
    }
    nodes = [
        gemm("both.weight", "a", transB=1),
        gemm("both.weight", "b", "a"),
        helper.make_node("MatMul", ["b", "many.weight"], ["c"]),
        helper.make_node("Squeeze", ["c", "axes"], ["d"]),
        gemm("added.weight", "e", "d", transB=1),
        helper.make_node("MatMul", ["e", "added.weight"], ["f"]),
        helper.make_node("ReduceSum", ["added.weight", "axes"], ["row"], keepdims=0),
        helper.make_node("Add", ["f", "row"], ["g"]),
        gemm("fc.weight", "h", "g", transB=1),
        gemm("small.weight", "y", "h", transB=1),
    ]
    given = component(nodes, weights, {"axes": np.array([0], np.int64)})
    made = quantize_weights(given, recipe("int8-weights"), tmp_path / "out")
    assert made.precision["layers"] == 1
    assert made.precision["kept"] == ["added", "both", "many", "small"]
    assert off(run(given, {"x": X})["y"], run(made, {"x": X})["y"]) < 0.03


def test_numbers_that_float16_cannot_hold_stay_in_float32(
    component: Call, run: Call, tmp_path: Path, off: Call
) -> None:
    rng = np.random.default_rng(8)
    weights = {
        "fc.weight": rng.standard_normal((64, 64)).astype(np.float32),
        "conv_in.huge": (rng.standard_normal((64, 64)) * 1e5).astype(np.float32),
        "conv_in.tiny": (rng.standard_normal((64, 64)) * 1e-6).astype(np.float32),
        "conv_in.usual": rng.standard_normal((64, 64)).astype(np.float32),
    }
    nodes = [
        gemm("fc.weight", "a", transB=1),
        gemm("conv_in.huge", "b", "a"),
        gemm("conv_in.tiny", "c", "b"),
        gemm("conv_in.usual", "y", "c"),
    ]
    given = component(nodes, weights)
    made = quantize_weights(given, recipe("int8-weights"), tmp_path / "out")
    stored = read_header(made.root / made.weights[0].path)
    assert {n: stored[n].dtype for n in weights} == {
        "fc.weight": "I8", "conv_in.huge": "F32", "conv_in.tiny": "F32", "conv_in.usual": "F16",
    }  # fmt: skip
    assert off(run(given, {"x": X})["y"], run(made, {"x": X})["y"]) < 0.02


def test_a_group_of_zeros_computes_zeros(component: Call, run: Call, tmp_path: Path) -> None:
    weight = W.copy()
    weight[:48] = 0
    made = quantize_weights(
        component([gemm("fc.weight", transB=1)], {"fc.weight": weight}), recipe("int4-weights"), tmp_path / "out"
    )
    y = run(made, {"x": X})["y"]
    assert (y[:, :48] == 0).all()
    assert np.abs(y[:, 48:]).max() > 1
    zero = np.zeros_like(W)
    (tmp_path / "made").rename(tmp_path / "first")
    made = quantize_weights(
        component([gemm("fc.weight", transB=1)], {"fc.weight": zero}), recipe("int8-weights"), tmp_path / "zeros"
    )
    assert "snr_db" not in made.proof["weights"], "of nothing there is no ratio"
    assert (run(made, {"x": X})["y"] == 0).all()


def refused(what: str, *arguments: Any) -> BadInput:
    with pytest.raises(BadInput, match=what) as caught:
        quantize_weights(*arguments)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("id", ["int8-weights", "int4-weights", "int8-weights:symmetric=no"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_no_number_is_refused(component: Call, tmp_path: Path, id: str, bad: float) -> None:
    weight = W.copy()
    weight[3, 5] = bad
    given = component([gemm("fc.weight", transB=1)], {"fc.weight": weight})
    refused("NaN or infinity", given, recipe(id), tmp_path / "out")


def test_a_component_without_such_layers_is_refused(component: Call, float_unet: Component, tmp_path: Path) -> None:
    given = component([gemm("fc.weight", transB=1)], {"fc.weight": W[:60]})
    refused(r"made has no layer that int8-weights would quantize", given, recipe("int8-weights"), tmp_path / "out")
    refused(r"unet has no layer", float_unet, recipe("int8-weights:keep=*"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_snr_is_that_of_the_weights(component: Call, tmp_path: Path, dequantized: Call) -> None:
    made = quantize_weights(
        component([gemm("fc.weight", transB=1)], {"fc.weight": W}), recipe("int4-weights:group=16"), tmp_path / "out"
    )
    noise = np.square(W - dequantized(W, False, "int4-weights:group=16")).sum()
    assert made.proof["weights"]["snr_db"] == pytest.approx(10 * math.log10(np.square(W).sum() / noise), abs=1e-3)
