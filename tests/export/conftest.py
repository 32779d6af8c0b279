"""What the tests of quantization share: operators counted in runtimes' own compiled graphs, hand-made components."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Artifact, Component, WeightFile
from vitrify.core.device import Device
from vitrify.core.dtypes import NAMES, ONNX
from vitrify.core.registry import load_runtime
from vitrify.core.safetensors_writer import SafetensorsWriter
from vitrify.core.tensors import DType, TensorSpec
from vitrify.quant.recipes import recipe
from vitrify.quant.weights import fitting_group, quantize_integers
from vitrify.runtimes.base import Options

_SAFETENSORS = {known: name for name, known in NAMES.items()} | {"uint16": "BF16"}  # numpy has no bfloat16


@pytest.fixture(scope="session")
def float_unet(diffusion_artifact: Path) -> Component:
    """The built-in diffusion model's UNet, as it was exported."""
    return Artifact.load(diffusion_artifact).components["unet"]


@pytest.fixture(scope="session")
def float_encoder(diffusion_artifact: Path) -> Component:
    return Artifact.load(diffusion_artifact).components["text_encoder"]


@pytest.fixture(scope="session")
def float_classifier(emotions_artifact: Path) -> Component:
    return Artifact.load(emotions_artifact).components["model"]


@pytest.fixture(scope="session")
def drawing(diffusion_artifact: Path) -> Artifact:
    return Artifact.load(diffusion_artifact)


@pytest.fixture(scope="session")
def labelling(emotions_artifact: Path) -> Artifact:
    return Artifact.load(emotions_artifact)


@pytest.fixture(scope="session")
def labels(labelling: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The classifier in int8 for ONNX Runtime, as a compilation proved it. For reading only."""
    from vitrify.export.compile import CompileJob

    made = recipe("int8-weights")
    return CompileJob(labelling, tmp_path_factory.mktemp("labels") / "out", recipe=made, verify=True).run()


@pytest.fixture(scope="session")
def pictures(drawing: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The diffusion pipeline in int8 for OpenVINO, as a compilation proved it. For reading only."""
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    from vitrify.export.compile import CompileJob

    return CompileJob(drawing, tmp_path_factory.mktemp("pictures") / "out", "openvino", recipe("int8-weights")).run()


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Component, str], Component]:
    """quantized(component, recipe's id), made once a session: for reading only."""
    made: dict[tuple[Path, str, str], Component] = {}

    def quantize(component: Component, id: str) -> Component:
        from vitrify.export.quantize import quantize_weights

        key = (component.root, component.name, id)
        if key not in made:
            made[key] = quantize_weights(component, recipe(id), tmp_path_factory.mktemp("quantized"))
        return made[key]

    return quantize


@pytest.fixture(scope="session")
def samples(diffusion_artifact: Path) -> list[dict[str, np.ndarray]]:
    """Eight inputs of the UNet, recorded while it draws."""
    from vitrify.export.calibrate import record_inputs

    return record_inputs(Artifact.load(diffusion_artifact), ["unet"], 8)["unet"]


@pytest.fixture(scope="session")
def static_unet(
    float_unet: Component, samples: list[dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Component:
    """The UNet in calibrated int8, made once a session: for reading only."""
    pytest.importorskip("nncf", reason="needs vitrify[quant]")
    from vitrify.export.static import quantize_static

    return quantize_static(float_unet, recipe("int8-static"), samples, tmp_path_factory.mktemp("static"))


@pytest.fixture(scope="session")
def onnx_operators() -> Callable[[Component], Counter[str]]:
    """How many operators of each kind the graph's file has; constants as `INT8 weight`, by their element type."""

    def count(component: Component) -> Counter[str]:
        import onnx

        return _operators(onnx.load(str(component.graph_path), load_external_data=False))

    return count


def _operators(model: Any) -> Counter[str]:
    import onnx

    kinds = onnx.TensorProto.DataType
    weights = Counter(f"{kinds.Name(t.data_type)} weight" for t in model.graph.initializer if len(t.dims) > 1)
    return Counter(node.op_type for node in model.graph.node) + weights


@pytest.fixture(scope="session")
def ort_operators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Component], Counter[str]]:
    """The same of the graph that ONNX Runtime made of it and runs, with the settings of our adapter."""

    def count(component: Component) -> Counter[str]:
        import onnx
        import onnxruntime as ort

        path = tmp_path_factory.mktemp("optimized") / "model.onnx"
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        level = str(component.precision.get("accuracy_level", 0))
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.data")
        settings.optimized_model_filepath = str(path)
        ort.InferenceSession(str(component.graph_path), settings, providers=["CPUExecutionProvider"])
        return _operators(onnx.load(str(path), load_external_data=False))

    return count


@pytest.fixture(scope="session")
def ov_constants() -> Callable[[Component], Counter[str]]:
    """How many constants of each element type the graph has as OpenVINO reads it, those of one axis left out."""

    def count(component: Component) -> Counter[str]:
        ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")
        model = ov.Core().read_model(str(component.graph_path))
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        return Counter(op.get_element_type().get_type_name() for op in constants if len(op.get_output_shape(0)) > 1)

    return count


@pytest.fixture(scope="session")
def ov_layers() -> Callable[[Component], Counter[tuple[str, str]]]:
    """How many (layer, precision) OpenVINO's compiled graph has, compiled as our adapter compiles it."""

    def count(component: Component) -> Counter[tuple[str, str]]:
        ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        if component.precision["activations"] != "int8":
            settings["EXECUTION_MODE_HINT"] = "ACCURACY"
        core = ov.Core()
        compiled = core.compile_model(core.read_model(str(component.graph_path)), "CPU", settings)
        told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ops()]
        return Counter((t["layerType"].value, t["runtimePrecision"].value) for t in told)

    return count


Run = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def run() -> Run:
    """run(component, tensors, runtime): the outputs, from our adapter."""

    def run(component: Component, tensors: Mapping[str, np.ndarray], runtime: str = "onnx") -> dict[str, np.ndarray]:
        if runtime == "openvino":
            pytest.importorskip("openvino", reason="needs vitrify[openvino]")
        session = load_runtime(runtime).open(component, Device("cpu"), Options())
        try:
            return {n: np.array(v) for n, v in session.run(tensors).items()}
        finally:
            session.close()

    return run


@pytest.fixture(scope="session")
def dequantized() -> Callable[[np.ndarray, bool, str], np.ndarray]:
    """dequantized(weight [out, in, ...], whether of a convolution, recipe's id): what its few bits stand for."""

    def dequantize(weight: np.ndarray, conv: bool, id: str) -> np.ndarray:
        made = recipe(id)
        kind = (made.convs or made.weights) if conv else made.weights
        flat = weight.reshape(len(weight), -1)
        group = fitting_group(flat.shape[1], made.group) if made.group and kind == made.weights else 0
        bits = 4 if kind == "int4" and group else 8
        done = quantize_integers(flat, bits, group, made.symmetric).dequantized()
        assert np.abs(done - flat).max() > 0
        return done.reshape(weight.shape)

    return dequantize


@pytest.fixture(scope="session")
def expected(dequantized: Callable[..., np.ndarray]) -> Callable[[Component, str, Path], Component]:
    """expected(component, recipe's id, folder): the component in float32, its weights what the few bits stand for."""

    def make(component: Component, id: str, to: Path) -> Component:
        import onnx
        from onnx import numpy_helper

        copy = shutil.copytree(component.graph_path.parent, to / "copy")  # onnx reads no file that has two names
        model, made = onnx.load(str(copy / component.graph_path.name)), recipe(id)
        casts = {n.input[0]: n for n in model.graph.node if n.op_type == "Cast"}
        users = {i: n for n in model.graph.node if n.op_type in ("Gemm", "Conv") for i in n.input[1:2]}
        for tensor in model.graph.initializer:
            cast = casts.get(tensor.name)
            name = cast.output[0] if cast is not None else tensor.name
            node, weight = users.get(name), numpy_helper.to_array(tensor)
            if node is not None and weight.size >= 4096 and not made.kept(tensor.name.removesuffix(".weight")):
                weight = dequantized(weight.astype(np.float32), node.op_type == "Conv", id)
            if cast is not None:
                model.graph.node.remove(cast)
                weight = weight.astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weight, name))
        onnx.save(model, str(to / "model.onnx"))
        return replace(component, root=to, graph="model.onnx", weights=())

    return make


@pytest.fixture(scope="session")
def off() -> Callable[[np.ndarray, np.ndarray], float]:
    """off(expected, given): the largest difference, as a share of the range."""
    return lambda expected, given: float(np.abs(expected - given).max() / (expected.max() - expected.min()))


@pytest.fixture
def component(tmp_path: Path) -> Callable[..., Component]:
    """component(nodes, weights, constants): a graph from `x`, float32 [rows, ...], to `y`, its weights in a file.

    weights: by name; float32, float16, int8, or uint16 for the bits of bfloat16. constants: embedded in the graph.
    """

    def make(
        nodes: Sequence[Any],
        weights: Mapping[str, np.ndarray],
        constants: Mapping[str, np.ndarray] | None = None,
        given: tuple[Any, ...] = ("rows", 64),
        rank: int = 2,
    ) -> Component:
        from onnx import TensorProto, helper, numpy_helper, save

        (tmp_path / "made").mkdir()
        plan = {n: (_SAFETENSORS[w.dtype.name], w.shape) for n, w in weights.items()}
        with SafetensorsWriter(tmp_path / "made/weights.safetensors", plan) as writer:
            for name, weight in weights.items():
                writer.write(name, weight)
        initializers = [numpy_helper.from_array(c, n) for n, c in (constants or {}).items()]
        for name, entry in writer.entries.items():
            tensor = TensorProto(name=name, dims=entry.shape, data_type=TensorProto.DataType.Value(ONNX[entry.dtype]))
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", entry.file.name), ("offset", entry.offset), ("length", entry.length)):
                tensor.external_data.add(key=key, value=str(value))
            initializers.append(tensor)
        out = ("rows", *[f"d{i}" for i in range(rank - 1)])
        graph = helper.make_graph(
            nodes,
            "made",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
            initializers,
        )
        save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
            str(tmp_path / "made/model.onnx"),
        )
        return Component(
            name="made",
            format="onnx",
            graph="made/model.onnx",
            inputs={"x": TensorSpec(DType.FLOAT32, given)},
            outputs={"y": TensorSpec(DType.FLOAT32, out)},
            weights=(WeightFile("made/weights.safetensors", writer.path.stat().st_size),),
            shapes={"rows": (1, 3, 64)},
            root=tmp_path,
        )

    return make
