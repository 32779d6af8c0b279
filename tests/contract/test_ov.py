"""What is OpenVINO's own: its exceptions, devices, precisions, and what it says of a graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")

import openvino.frontend  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import (  # noqa: E402
    BadArtifact,
    BadInput,
    DeviceError,
    RuntimeFailure,
    UsageError,
    VitrifyError,
)
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.ov import RUNTIME, _devices, _ours  # noqa: E402
from vitrify.runtimes.ov_model import translated  # noqa: E402

EXCEPTIONS = [
    v
    for module in (ov, openvino.frontend, ov._pyopenvino)
    for v in vars(module).values()
    if isinstance(v, type) and issubclass(v, BaseException)
]
# what pybind11 makes of the C++ standard's exceptions
STANDARD = [RuntimeError, ValueError, IndexError, KeyError, OverflowError, MemoryError]
CAPABILITIES = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
X = TensorSpec(DType.FLOAT32, ("n", 3))
CPU = Device("cpu")


def graph(
    path: Path, nodes: list[Any], outputs: dict[str, Any], weights: list[Any] = (), x: TensorSpec = X, opset: int = 21
) -> Component:
    """A graph of x and its component."""
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s.shape)) for n, s in outputs.items()],
        list(weights),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return Component("g", "onnx", path.name, {"x": x}, outputs, root=path.parent)


def identity(path: Path) -> Component:
    return graph(path / "g.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"y": X})


# Exceptions.


@pytest.mark.parametrize("device", [None, "cpu", "gpu"], ids=["running", "opening", "opening on a GPU"])
@pytest.mark.parametrize("exception", EXCEPTIONS + STANDARD, ids=lambda e: e.__name__)
def test_every_exception_of_the_library_is_translated(exception: type[BaseException], device: str | None) -> None:
    component = Component("unet", "onnx", "unet/model.onnx", {}, {})
    with (
        pytest.raises(VitrifyError) as caught,
        translated(component, Device(device) if device else None),
    ):
        raise exception("the library's words")
    assert isinstance(caught.value.__cause__, exception)
    assert "the library's words" in caught.value.what
    assert "unet" in caught.value.what
    assert caught.value.fix


def test_there_are_exceptions_to_translate() -> None:
    assert {"GeneralFailure", "OpConversionFailure", "OpValidationFailure"} <= {e.__name__ for e in EXCEPTIONS}


def test_memory_that_runs_out_says_so(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Mul", ["s", "many"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["z"]),
        helper.make_node("Add", ["z", "one"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([1 << 13, 1 << 13, 1 << 14]), "many"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    component = graph(tmp_path / "huge.onnx", nodes, {"y": TensorSpec(DType.FLOAT32, ("a", "b", "c"))}, weights)
    session = RUNTIME.open(component, CPU, Options())
    with pytest.raises(RuntimeFailure, match=r"g ran out of memory: .*smaller size or batch"):
        session.run({"x": np.ones((1, 3), np.float32)})


def test_sizes_that_do_not_fit_are_the_inputs_fault(tmp_path: Path) -> None:
    component = graph(
        tmp_path / "g.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        {"y": X},
        [numpy_helper.from_array(np.ones((5, 3), np.float32), "w")],
    )
    for static in (False, True):
        session = RUNTIME.open(component, CPU, Options(static=static))
        with pytest.raises(BadInput, match=r"g refused the sizes of its inputs: .*Check the sizes"):
            session.run({"x": np.ones((2, 3), np.float32)})
        np.testing.assert_array_equal(session.run({"x": np.ones((5, 3), np.float32)})["y"], 2)


@pytest.mark.parametrize(
    ("node", "error", "said"),
    [
        (helper.make_node("NoSuchOp", ["x"], ["y"]), RuntimeFailure, "no such operator.*NoSuchOp.*--runtime onnx"),
        (helper.make_node("Odd", ["x"], ["y"], domain="com.microsoft"), RuntimeFailure, r"com.microsoft.Odd"),
        (helper.make_node("Add", ["x", "nothing"], ["y"]), BadArtifact, "nothing"),
    ],
    ids=["operator", "contrib operator", "dangling input"],
)
def test_a_graph_that_it_cannot_read_is_named(tmp_path: Path, node: Any, error: type[VitrifyError], said: str) -> None:
    with pytest.raises(error, match=said):
        RUNTIME.open(graph(tmp_path / "g.onnx", [node], {"y": X}), CPU, Options())


def test_a_graph_that_the_manifest_does_not_describe_is_refused(tmp_path: Path) -> None:
    component = identity(tmp_path)
    half = TensorSpec(DType.FLOAT16, X.shape)
    for changed, said in (
        ({"inputs": {"x": X, "mask": X}}, r"has the inputs x; the manifest says x, mask"),
        ({"inputs": {"z": X}}, r"has the inputs x; the manifest says z"),
        ({"outputs": {"z": X}}, r"has the outputs y; the manifest says z"),
        ({"inputs": {"x": half}}, r"has x as float32; the manifest says float16"),
    ):
        with pytest.raises(BadArtifact, match=said):
            RUNTIME.open(replace(component, **changed), CPU, Options())


def test_outputs_that_alias_an_input_or_a_weight_belong_to_the_caller(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["z"])]
    outputs = {"y": X, "z": TensorSpec(DType.FLOAT32, (2, 3))}
    component = graph(tmp_path / "g.onnx", nodes, outputs, [numpy_helper.from_array(weight, "w")])
    session = RUNTIME.open(component, CPU, Options())
    given = np.ones((2, 3), np.float32)
    first = session.run({"x": given})
    for value in first.values():
        value[...] = 7
    np.testing.assert_array_equal(given, 1)
    np.testing.assert_array_equal(session.run({"x": given})["z"], weight)


# Devices.


def test_devices_bear_our_names() -> None:
    assert _ours(["CPU", "GPU", "NPU"]) == ["cpu", "gpu", "npu"]
    assert _ours(["CPU", "GPU.0", "GPU.1"]) == ["cpu", "gpu", "gpu:1"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("gpu", ["GPU.0"]),
        ("gpu:0", ["GPU.0"]),
        ("GPU.1", ["GPU.1"]),
        ("npu", ["NPU"]),
        ("auto", ["CPU", "GPU.0", "GPU.1", "NPU"]),
        ("auto:GPU.1,CPU", ["GPU.1", "CPU"]),
        ("hetero:gpu,cpu", ["GPU.0", "CPU"]),
    ],
)
def test_a_device_is_found_among_those_there(asked: str, found: list[str]) -> None:
    assert _devices(Device.parse(asked), ["CPU", "GPU.0", "GPU.1", "NPU"]) == found


@pytest.mark.parametrize("asked", ["gpu", "gpu:1", "auto:GPU,CPU", "hetero:CPU,NPU", "auto:cuda", "auto:CPU,"])
def test_a_list_with_a_device_that_is_not_there_is_an_error(asked: str) -> None:
    with pytest.raises(DeviceError, match=rf"cannot run on {Device.parse(asked)} here; it has cpu\.") as caught:
        _devices(Device.parse(asked), ["CPU"])
    assert caught.value.fix


def test_hetero_wants_a_list(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"hetero names no devices.*hetero:GPU,CPU"):
        RUNTIME.open(identity(tmp_path), Device("hetero"), Options())


@pytest.mark.parametrize("device", ["auto:CPU", "hetero:CPU"])
@pytest.mark.parametrize("options", [Options(), Options(threads=1, streams=1), Options(cache=True)], ids=str)
def test_a_list_runs_and_says_what_ran(vit_model: Any, device: str, options: Options) -> None:
    component = vit_model.components["onnx"]
    session = RUNTIME.open(component, Device.parse(device), options)
    placement = session.placement
    assert (placement.provider, placement.device, placement.precision) == ("CPU", device, "float32")
    assert session.details == {"cache": "off", "compiled": 1, "winograd": 0}
    x = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}
    plain = RUNTIME.open(component, CPU, Options()).run(x)
    np.testing.assert_allclose(session.run(x)["logits"], plain["logits"], atol=1e-5)


def test_auto_says_what_it_chose(vit_model: Any) -> None:
    placement = RUNTIME.open(vit_model.components["onnx"], Device("auto"), Options()).placement
    assert placement.device == "auto"
    assert placement.provider in ov.Core().available_devices


def test_probe_says_what_the_devices_can() -> None:
    probe = RUNTIME.probe()
    assert probe.devices[0] == "cpu"
    assert probe.devices[-1] == "auto"
    cpu = probe.details["devices"]["cpu"]
    assert cpu["name"]
    assert "FP32" in cpu["capabilities"]


# Precision and other options.


def test_nothing_is_computed_in_less_than_the_artifact_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    spec = TensorSpec(DType.FLOAT32, ("n", 64))
    component = graph(
        tmp_path / "g.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"y": spec},
        [numpy_helper.from_array(weight, "w")],
        spec,
    )
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    exact = x.astype(np.float64) @ weight
    for options in (Options(), Options(static=True), Options(cache=True), Options(cache=True)):
        session = RUNTIME.open(component, CPU, options)
        np.testing.assert_allclose(session.run({"x": x})["y"], exact, atol=1e-4)
        assert session.placement.precision == "float32"
    assert session.details["cache"] == "hit"
    half = replace(component, precision={"activations": "float16"})
    session = RUNTIME.open(half, CPU, Options())
    if "FP16" not in CAPABILITIES:
        np.testing.assert_allclose(session.run({"x": x})["y"], exact, atol=1e-4)
        assert session.placement.precision == "float32"
        with pytest.raises(DeviceError, match=r"cpu does not compute in float16; it does in float32"):
            RUNTIME.open(component, CPU, Options(precision="float16"))
    if "BF16" in CAPABILITIES:
        session = RUNTIME.open(component, CPU, Options(precision="bfloat16"))
        assert session.placement.precision == "bfloat16"
        error = np.abs(session.run({"x": x})["y"] - exact).max()
        assert 1e-3 < error < 1
        rounded = replace(component, precision={"activations": "bfloat16"})
        assert RUNTIME.open(rounded, CPU, Options()).placement.precision == "bfloat16"


@pytest.mark.parametrize("bits", [8, 4])
def test_activations_in_front_of_quantized_weights_stay_float(tmp_path: Path, bits: int) -> None:
    rows, columns, group = 256, 64, 32
    rng = np.random.default_rng(0)
    top = 2 ** (bits - 1) - 1
    values = rng.integers(-top, top + 1, (rows, columns))
    if bits == 8:
        scale = rng.uniform(0.01, 0.02, columns).astype(np.float32)
        matrix, how = values * scale, {"axis": 1}
        stored = numpy_helper.from_array(values.astype(np.int8), "q")
    else:
        scale = rng.uniform(0.1, 0.2, (rows // group, columns)).astype(np.float32)
        matrix, how = values * np.repeat(scale, group, 0), {"axis": 0, "block_size": group}
        stored = helper.make_tensor("q", TensorProto.INT4, values.shape, values.flatten().tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], **how),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x_spec, y_spec = TensorSpec(DType.FLOAT32, ("n", rows)), TensorSpec(DType.FLOAT32, ("n", columns))
    weights = [stored, numpy_helper.from_array(scale, "s")]
    component = graph(tmp_path / "g.onnx", nodes, {"y": y_spec}, weights, x_spec)
    x = rng.standard_normal((16, rows)).astype(np.float32)
    expected = x @ matrix.astype(np.float32)
    np.testing.assert_allclose(
        RUNTIME.open(component, CPU, Options()).run({"x": x})["y"], expected, atol=1e-4 * np.ptp(expected)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [(Options(precision="int8"), "'int8' is no precision"), (Options(hint="speed"), "'speed' is no hint")],
    ids=["precision", "hint"],
)
def test_a_wish_that_does_not_exist_is_an_error(tmp_path: Path, options: Options, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        RUNTIME.open(identity(tmp_path), CPU, options)


def test_threads_streams_and_hint_reach_the_library(tmp_path: Path) -> None:
    session = RUNTIME.open(identity(tmp_path), CPU, Options(threads=2, streams=2, hint="throughput"))
    compiled = next(iter(session._variants.values())).compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("NUM_STREAMS") == 2
    assert compiled.get_property("PERFORMANCE_HINT") == "THROUGHPUT"


# Changed weights.


def test_a_weight_inside_the_graph_cannot_be_changed_by_name(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((3,), np.float32), "w")
    component = graph(tmp_path / "g.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], {"y": X}, [weight])
    with pytest.raises(BadInput, match=r"Override w: g.onnx has no such weight"):
        RUNTIME.open(component, CPU, Options(), {"w": np.zeros((3,), np.float32)})


def test_a_quantized_weight_is_not_replaced_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), helper.make_node("Add", ["x", "w"], ["y"])]
    weights = [
        numpy_helper.from_array(np.ones(3, np.int8), "q"),
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
    ]
    plain = graph(tmp_path / "g.onnx", nodes, {"y": X}, weights)
    ov.save_model(ov.Core().read_model(plain.graph_path), tmp_path / "g.xml", compress_to_fp16=False)
    component = replace(plain, format="openvino", graph="g.xml")
    np.testing.assert_array_equal(
        RUNTIME.open(component, CPU, Options()).run({"x": np.ones((1, 3), np.float32)})["y"], 1.5
    )
    with pytest.raises(BadInput, match=r"Override q: the graph stores it as i8, which is not replaced by name"):
        RUNTIME.open(component, CPU, Options(), {"q": np.zeros((3,), np.float32)})


# What a graph says of itself.


def test_describe_reads_what_the_manifest_would_say(vit_model: Any, unet_model: Any, tmp_path: Path) -> None:
    for model in (vit_model, unet_model):
        component = model.components["onnx"]
        ir = tmp_path / f"{component.name}.xml"
        ov.save_model(ov.Core().read_model(component.graph_path), ir, compress_to_fp16=False)
        for path in (component.graph_path, ir):
            inputs, outputs = RUNTIME.describe(path)
            assert inputs == {n: unnamed(n, s) for n, s in component.inputs.items()}
            # OpenVINO does not find out every size of an output that the exporter knows
            assert list(outputs) == list(component.outputs)
            for name, spec in component.outputs.items():
                assert outputs[name].dtype == spec.dtype
                assert len(outputs[name].shape) == len(spec.shape)


def unnamed(name: str, spec: TensorSpec) -> TensorSpec:
    """The same where no size has a name that tensors share."""
    return TensorSpec(spec.dtype, tuple(d if isinstance(d, int) else f"{name}_{i}" for i, d in enumerate(spec.shape)))


@pytest.mark.parametrize("name", ["g.onnx", "g.xml"])
def test_describe_refuses_what_does_not_load(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<?xml version='1.0'?><net")
    with pytest.raises(BadArtifact, match="load"):
        RUNTIME.describe(tmp_path / name)
    with pytest.raises(BadArtifact, match=r"nothing\.\w+"):
        RUNTIME.describe(tmp_path / f"nothing.{name[2:]}")
