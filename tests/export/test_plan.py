"""Plans: built for real, on the CPU, from the models' graphs and from small quantized ones; nothing here runs them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs vitrify[export]")

import onnx_ir as ir  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitrify.core.artifact import Artifact, Component, hash_file  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, MissingDependency, UsageError  # noqa: E402
from vitrify.core.progress import Event  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.half import compute_in_half  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def vit_plan(vit_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(vit_model.components["onnx"], tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def unet_plan(unet_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, list[Event]]:
    """Three inputs, one without dims, four symbols; and what its build told."""
    events: list[Event] = []
    plan = build_plan(unet_model.components["onnx"], tmp_path_factory.mktemp("plan"), report=events.append)
    return plan, events


def test_a_plan_describes_itself(unet_model: Any, unet_plan: tuple[Component, list[Event]]) -> None:
    source, plan = unet_model.components["onnx"], unet_plan[0]
    assert (plan.name, plan.format, plan.graph) == ("unet", "tensorrt-rtx", "unet/model.plan")
    assert plan.graph_path.is_file()
    assert [p.name for p in plan.graph_path.parent.iterdir()] == ["model.plan"]
    (weight,) = plan.weights
    data = plan.graph_path.read_bytes()
    assert (weight.path, weight.bytes, weight.sha256) == (plan.graph, len(data), hashlib.sha256(data).hexdigest())
    assert dict(plan.inputs) == dict(source.inputs)
    assert dict(plan.outputs) == dict(source.outputs)
    assert dict(plan.shapes) == dict(source.shapes)
    assert plan.precision == {"recipe": "fp32", "weights": "float32", "activations": "float32"}
    assert plan.requires == {
        "runtime": f"tensorrt-rtx=={trt.__version__}",
        "os": None,
        "compute_capability": "8.0+",
    }
    assert plan.proof == {"graph": "not run", "weights": "not run", "numeric": "not run"}
    assert plan.details["source"]["graph"] == hash_file(source.graph_path)
    assert plan.details["kind"] == source.details["kind"]


def test_its_manifest_is_loaded_with_checksums(vit_plan: Component, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    shutil.copytree(vit_plan.root, root)
    told = (
        {"architecture": "ViT", "source": "here"},
        {"family": "image-classification", "tasks": ["image-classification"]},
    )
    Artifact(root, "id", *told, {"model": vit_plan}).save()
    loaded = Artifact.load(root, checksums=True).components["model"]
    assert replace(loaded, root=vit_plan.root) == vit_plan
    path = root / vit_plan.graph
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"is not the file that was built"):
        Artifact.load(root, checksums=True)


def test_a_plan_is_an_engine_of_its_sizes_and_gpus(vit_model: Any, tmp_path: Path) -> None:
    """Without a GPU no engine opens: its header, and what differs between builds, is what can be read of it here."""
    source = replace(vit_model.components["onnx"], shapes={"batch": (1, 3, 12_345)})
    targets = {"all": None, "again": None, "ampere": "8.6", "both": "8.6,8.9"}
    plans = {n: build_plan(source, tmp_path / n, compute_capability=t) for n, t in targets.items()}
    data = {n: p.graph_path.read_bytes() for n, p in plans.items()}
    header = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).engine_header_size
    heads = {n: d[:16] + d[24:header] for n, d in data.items()}  # 16 to 24 is the plan's size
    assert {d[:4] for d in data.values()} == {b"vtrt"}
    assert heads["all"] == heads["again"]
    assert len(set(heads.values())) == 3
    assert [p.requires["compute_capability"] for p in plans.values()] == ["8.0+", "8.0+", "8.6", "8.6,8.9"]
    most = (12_345).to_bytes(8, "little")
    assert all(most in d for d in data.values())
    assert most not in build_plan(vit_model.components["onnx"], tmp_path / "less").graph_path.read_bytes()


def test_the_built_in_classifier_builds(emotions_artifact: Path, tmp_path: Path) -> None:
    source = Artifact.load(emotions_artifact).components["model"]
    single = build_plan(source, tmp_path / "float32")
    half = build_plan(source, tmp_path / "float16", precision="float16")
    stored = sum(w.bytes for w in source.weights)  # in float16
    assert single.weights[0].bytes > 2 * stored
    assert stored < half.weights[0].bytes < single.weights[0].bytes - 0.8 * stored
    assert half.precision == {"recipe": "fp16", "weights": "float16", "activations": "float16"}


def test_progress_grows_to_its_end(unet_plan: tuple[Component, list[Event]]) -> None:
    done = [e.done for e in unet_plan[1]]
    assert {(e.stage, e.total, e.unit) for e in unet_plan[1]} == {("build unet", 100, "%")}
    assert done == sorted(set(done))
    assert len(done) > 2
    assert done[-1] == 100


# float16 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_graph_in_float16_computes_the_same(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Any], name: str, dtype: str
) -> None:
    """As ONNX Runtime computes it on the CPU; the boundary stays in float32."""
    ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    from vitrify.proof.parity import sample_inputs

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


def test_a_mask_of_minus_infinity_becomes_float16s_least(tmp_path: Path) -> None:
    least = np.finfo(np.float32).min
    made = graph([node("Where", "m", "low", "x", to="y")], {"low": np.float32(least)}, {"x": ["b", 4], "m": ["b", 4]})
    made.graph.input[1].type.tensor_type.elem_type = TensorProto.BOOL
    model = ir.from_proto(made)
    compute_in_half(model)
    (value,) = [v.const_value.numpy() for v in model.graph.initializers.values()]
    assert (value.dtype, float(value)) == (np.dtype(np.float16), -65504.0)


def test_a_vae_stays_in_float32(vit_model: Any, vit_plan: Component, tmp_path: Path) -> None:
    source = vit_model.components["onnx"]
    vae = replace(source, details=source.details | {"kind": "vae_decoder"})
    events: list[Event] = []
    built = build_plan(vae, tmp_path, precision="float16", report=events.append)
    assert built.precision["activations"] == "float32"
    assert abs(built.weights[0].bytes - vit_plan.weights[0].bytes) < 1000
    assert [e.note for e in events if e.note] == ["model stays in float32: in float16 it is black."]


def test_a_graph_without_types_is_not_put_into_float16(vit_model: Any, tmp_path: Path) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    model = onnx.load(source.graph_path, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, source.graph_path)
    with pytest.raises(BadInput, match=r"cannot be put into float16: it does not say the type of .*in float32"):
        build_plan(source, tmp_path / "out", precision="float16")


def test_scales_keep_their_float32_where_only_weights_are_quantized() -> None:
    """TensorRT wants one type for both operands, so with quantized activations all of them become float16."""
    for nodes, kind in (([weight(axis=1), MATMUL], "FLOAT"), ([*STATIC, weight(axis=1), MULTIPLY], "FLOAT16")):
        model = ir.from_proto(graph(nodes, RANGE | {"w": int8(K, N), "s": scales(N)}, {"x": TOKENS}))
        compute_in_half(model)
        found = {n.inputs[1].dtype.name for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
        assert found == {kind}


# quantized graphs --------------------------------------------------------------------------------------------------

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


# what goes wrong ---------------------------------------------------------------------------------------------------


def copied(component: Component, tmp_path: Path) -> Component:
    shutil.copytree(component.root, tmp_path / "copy")
    return replace(component, root=tmp_path / "copy")


@pytest.mark.parametrize("damage", ["missing", "half", "noise"])
def test_a_damaged_graph_is_refused(vit_model: Any, tmp_path: Path, damage: str) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    data = source.graph_path.read_bytes()
    source.graph_path.unlink()
    if damage != "missing":
        source.graph_path.write_bytes(data[: len(data) // 2] if damage == "half" else RNG.bytes(len(data)))
    with pytest.raises(BadArtifact if damage == "missing" else BadInput) as caught:
        build_plan(source, tmp_path / "out")
    assert source.graph in caught.value.what
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_damaged_weights_are_refused(vit_model: Any, tmp_path: Path, damage: str) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    path = source.root / source.weights[0].path
    data = path.read_bytes()
    path.unlink()
    if damage == "half":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"cannot read model/model\.onnx"):
        build_plan(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {"inputs": {"pixels": next(iter(c.inputs.values()))}}, r"has the inputs pixel_values; the manifest"),
        (lambda c: {"outputs": {}}, r"has the outputs logits; the manifest says"),
        (lambda c: {"inputs": {"pixel_values": TensorSpec(DType.INT64, ("batch", 3, 8, 8))}}, r"is float32 .*int64"),
        (lambda c: {"inputs": {"pixel_values": TensorSpec(DType.FLOAT32, ("batch", 3, 8, 9))}}, r"\[.*8, 9\]"),
        (lambda c: {"shapes": {}}, r"gives no sizes for batch of pixel_values"),
        (lambda c: {"shapes": {"batch": (4, 2, 8)}}, r"MIN<=OPT<=MAX"),
        (lambda c: {"format": "openvino"}, r"plans are made from onnx"),
    ],
    ids=["input", "output", "dtype", "shape", "no sizes", "sizes", "format"],
)
def test_a_manifest_that_is_wrong_is_told(
    vit_model: Any, tmp_path: Path, change: Callable[[Any], dict[str, Any]], said: str
) -> None:
    source = vit_model.components["onnx"]
    with pytest.raises(BadInput, match=said):
        build_plan(replace(source, **change(source)), tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flavour": "tensorrt-lite"}, r"no 'tensorrt-lite'.*tensorrt-rtx or tensorrt"),
        ({"precision": "float8"}, r"float32 or float16, not float8"),
        ({"compute_capability": "9.9"}, r"9\.9 is no compute capability.*7\.5, 8\.0, 8\.6"),
        ({"compute_capability": "8.6,"}, r"8\.6, is no compute capability"),
        ({"compute_capability": "86"}, r"86 is no compute capability"),
    ],
)
def test_options_that_do_not_exist(vit_model: Any, tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_plan(vit_model.components["onnx"], tmp_path, **options)


def test_turing_wants_float16(vit_model: Any, tmp_path: Path) -> None:
    source = vit_model.components["onnx"]
    with pytest.raises(BadInput, match=r"Turing.*another precision"):
        build_plan(source, tmp_path, compute_capability="7.5")
    assert list((tmp_path / "model").iterdir()) == []
    assert build_plan(source, tmp_path, precision="float16", compute_capability="7.5").graph_path.is_file()


def test_ctrl_c_ends_a_build_and_leaves_nothing(unet_model: Any, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        build_plan(unet_model.components["onnx"], tmp_path, report=interrupt)
    assert list((tmp_path / "unet").iterdir()) == []
    assert [t.name for t in threading.enumerate() if t.name.startswith("build")] == []


def test_an_old_plan_survives_a_build_that_fails(unet_model: Any, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(event: Event) -> None:
        raise StopError

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.plan").write_bytes(b"old")
    with pytest.raises(StopError):
        build_plan(unet_model.components["onnx"], tmp_path, report=stop)
    assert [p.read_bytes() for p in (tmp_path / "unet").iterdir()] == [b"old"]


SMALL_DISK = """
import resource, sys
from pathlib import Path
from vitrify.core.artifact import Artifact
from vitrify.core.errors import DiskError
from vitrify.export.plan import build_plan
component = Artifact.load(Path(sys.argv[1])).components["model"]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    build_plan(component, Path(sys.argv[2]))
except DiskError as exc:
    print(exc.what)
"""


def test_a_disk_that_refuses_the_plan_is_told(python: Any, emotions_artifact: Path, tmp_path: Path) -> None:
    ran = python(SMALL_DISK, emotions_artifact, tmp_path)
    assert ran.out.startswith(f"Writing {tmp_path} failed"), ran.err
    assert list((tmp_path / "model").iterdir()) == []


def test_tensorrt_itself_is_asked_for_by_its_extra(vit_model: Any, tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependency, match=r'needs tensorrt.*pip install "vitrify\[tensorrt\]"'):
            build_plan(vit_model.components["onnx"], tmp_path, flavour="tensorrt")
    else:
        pytest.skip("tensorrt is installed")
