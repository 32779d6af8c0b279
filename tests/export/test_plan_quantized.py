"""Plans of small quantized graphs: every form that TensorRT takes builds, every other one is named with its node."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs vitrify[export]")

import onnx_ir as ir  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.errors import BadInput  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.half import compute_in_half  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402

RNG = np.random.default_rng(0)
K, N = 64, 48


def node(kind: str, *inputs: str, to: str, **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), [to], **attributes)


def graph(nodes: list[Any], weights: dict[str, Any], inputs: dict[str, list[Any]]) -> Any:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def int8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def int4(*shape: int) -> np.ndarray:
    return RNG.integers(-7, 8, shape).astype(ml_dtypes.int4)


def scales(*shape: int) -> np.ndarray:
    return RNG.uniform(0.001, 0.01, shape).astype(np.float32)


def weight(**attributes: Any) -> Any:
    return node("DequantizeLinear", "w", "s", to="d", **attributes)


STATIC = [node("QuantizeLinear", "x", "xs", "z", to="q"), node("DequantizeLinear", "q", "xs", "z", to="xd")]
RANGE = {"xs": np.float32(0.02), "z": np.int8(0)}
MATMUL = node("MatMul", "x", "d", to="y")
MULTIPLY = node("MatMul", "xd", "d", to="y")
CONV = {"pads": [1, 1, 1, 1]}
CAST = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64)
ROWS, TOKENS, PIXELS = ["b", K], ["b", "t", K], ["b", 16, "h", "w"]

ACCEPTED: dict[str, tuple[list[Any], dict[str, Any], list[Any]]] = {
    "int8 MatMul": ([weight(axis=1), MATMUL], {"w": int8(K, N), "s": scales(N)}, TOKENS),
    "int8 Gemm": (
        [weight(axis=1), node("Gemm", "x", "d", "b", to="y")],
        {"w": int8(K, N), "s": scales(N), "b": scales(N)},
        ROWS,
    ),
    "int8 Gemm transB": (
        [weight(axis=0), node("Gemm", "x", "d", "b", to="y", transB=1)],
        {"w": int8(N, K), "s": scales(N), "b": scales(N)},
        ROWS,
    ),
    "int8 Conv": (
        [weight(axis=0), node("Conv", "x", "d", "b", to="y", **CONV)],
        {"w": int8(24, 16, 3, 3), "s": scales(24), "b": scales(24)},
        PIXELS,
    ),
    "int8 Gather": (
        [weight(axis=0), CAST, node("Gather", "d", "i", to="y")],
        {"w": int8(K, N), "s": scales(K)},
        ["b"],
    ),
    "int4 MatMul, blocks of 32": (
        [weight(axis=0, block_size=32), MATMUL],
        {"w": int4(K, N), "s": scales(K // 32, N)},
        TOKENS,
    ),
    "int4 MatMul, blocks of 64": (
        [weight(axis=0, block_size=64), MATMUL],
        {"w": int4(K, N), "s": scales(K // 64, N)},
        TOKENS,
    ),
    "int4 Gemm": (
        [weight(axis=0, block_size=32), node("Gemm", "x", "d", "b", to="y")],
        {"w": int4(K, N), "s": scales(K // 32, N), "b": scales(N)},
        ROWS,
    ),
    "int4 Gemm transB": (
        [weight(axis=1, block_size=32), node("Gemm", "x", "d", "b", to="y", transB=1)],
        {"w": int4(N, K), "s": scales(N, K // 32), "b": scales(N)},
        ROWS,
    ),
    "int4 Conv, per channel": (
        [weight(axis=0), node("Conv", "x", "d", to="y", **CONV)],
        {"w": int4(24, 16, 3, 3), "s": scales(24)},
        PIXELS,
    ),
    "static int8 MatMul": (
        [*STATIC, weight(axis=1), MULTIPLY],
        RANGE | {"w": int8(K, N), "s": scales(N)},
        TOKENS,
    ),
    "static int8 Gemm transB": (
        [*STATIC, weight(axis=0), node("Gemm", "xd", "d", "b", to="y", transB=1)],
        RANGE | {"w": int8(N, K), "s": scales(N), "b": scales(N)},
        ROWS,
    ),
    "static int8 Conv": (
        [*STATIC, weight(axis=0), node("Conv", "xd", "d", "b", to="y", **CONV)],
        RANGE | {"w": int8(24, 16, 3, 3), "s": scales(24), "b": scales(24)},
        PIXELS,
    ),
}
ZERO = node("DequantizeLinear", "w", "s", "z", to="d", axis=1)
REFUSED: dict[str, tuple[list[Any], dict[str, Any], list[Any], str]] = {
    "a zero point": (
        [ZERO, MATMUL],
        {"w": int8(K, N), "s": scales(N), "z": np.full(N, 3, np.int8)},
        TOKENS,
        r"at the node DequantizeLinear.*Non-zero zero point is not supported",
    ),
    "uint8 weights": (
        [ZERO, MATMUL],
        {"w": int8(K, N).view(np.uint8), "s": scales(N), "z": np.full(N, 128, np.uint8)},
        TOKENS,
        r"at the node DequantizeLinear.*unsupported input type of UINT8",
    ),
    "a block that is not whole": (
        [weight(axis=0, block_size=32), MATMUL],
        {"w": int4(80, N), "s": scales(3, N)},
        ["b", "t", 80],
        r"must divide into whole blocks",
    ),
    "blocks along a Conv": (
        [weight(axis=1, block_size=8), node("Conv", "x", "d", to="y", **CONV)],
        {"w": int4(24, 16, 3, 3), "s": scales(24, 2, 3, 3)},
        PIXELS,
        r"blocking dimension must be the last or second to last",
    ),
    "an int32 bias": (
        [*STATIC, weight(axis=0), node("DequantizeLinear", "bq", "s", to="b", axis=0),
         node("Conv", "xd", "d", "b", to="y", **CONV)],
        RANGE | {"w": int8(24, 16, 3, 3), "s": scales(24), "bq": np.arange(24, dtype=np.int32)},
        PIXELS,
        r"has type Int32 but must have type",
    ),
    "dynamic activations": (
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
         node("DequantizeLinear", "q", "qs", "qz", to="y")],
        {},
        TOKENS,
        r"at the node DynamicQuantizeLinear",
    ),
}  # fmt: skip


def quantized(folder: Path, nodes: Iterable[Any], weights: dict[str, Any], shape: list[Any]) -> Component:
    """A hand-made graph as a component."""
    model = graph(list(nodes), weights, {"x": shape})
    onnx.save(model, folder / "model.onnx")
    dims = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    specs = {"x": TensorSpec(DType.FLOAT32, tuple(shape))}, {"y": TensorSpec(DType.FLOAT32, tuple(dims))}
    shapes = {d: (1, 2, 32) for d in shape if isinstance(d, str)}
    precision = {"recipe": "int8-weights", "weights": "int8", "activations": "float32"}
    return Component("g", "onnx", "model.onnx", *specs, shapes=shapes, precision=precision, root=folder)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_quantized_graph_builds(tmp_path: Path, name: str, precision: str) -> None:
    nodes, weights, shape = ACCEPTED[name]
    plan = build_plan(quantized(tmp_path, nodes, weights, shape), tmp_path / "out", precision=precision)
    assert plan.graph_path.stat().st_size == plan.weights[0].bytes > 0
    assert plan.precision == {"recipe": "int8-weights", "weights": "int8", "activations": precision}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_its_node(tmp_path: Path, name: str) -> None:
    nodes, weights, shape, said = REFUSED[name]
    with pytest.raises(BadInput, match=said) as caught:
        build_plan(quantized(tmp_path, nodes, weights, shape), tmp_path / "out")
    assert "TensorRT-RTX" in caught.value.what
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_quantized_weights_stay_small_in_the_plan(tmp_path: Path, kind: str, bits: int, precision: str) -> None:
    size = 1024
    how: dict[str, Any] = {"axis": 1} if kind == "int8" else {"axis": 0, "block_size": 64}
    weights = {"w": int8(size, size), "s": scales(size)} if kind == "int8" else {"w": int4(size, size)}
    weights.setdefault("s", scales(size // 64, size))
    source = quantized(tmp_path, [weight(**how), MATMUL], weights, ["b", "t", size])
    plan = build_plan(source, tmp_path / "out", precision=precision)
    assert bits / 8 * size**2 < plan.weights[0].bytes < bits / 8 * size**2 + 600_000


def test_scales_keep_their_float32_where_only_weights_are_quantized() -> None:
    """TensorRT wants one type for both operands, so with quantized activations all of them become float16."""
    for nodes, kind in (([weight(axis=1), MATMUL], "FLOAT"), ([*STATIC, weight(axis=1), MULTIPLY], "FLOAT16")):
        model = ir.from_proto(graph(nodes, RANGE | {"w": int8(K, N), "s": scales(N)}, {"x": TOKENS}))
        compute_in_half(model)
        found = {n.inputs[1].dtype.name for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
        assert found == {kind}
