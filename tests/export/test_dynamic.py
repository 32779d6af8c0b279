"""Dynamic int8: every linear layer multiplies integers, in the file and in ONNX Runtime's own graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vitrify.core.artifact import Component
from vitrify.core.errors import BadInput
from vitrify.core.safetensors_header import read_header
from vitrify.proof.parity import sample_inputs
from vitrify.quant.recipes import recipe

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

from onnx import helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from vitrify.export.dynamic import quantize_dynamic  # noqa: E402

DYNAMIC = recipe("int8-dynamic")
Count = Callable[[Component], Counter[str]]


@pytest.fixture(scope="module")
def encoder(float_encoder: Component, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return quantize_dynamic(float_encoder, DYNAMIC, tmp_path_factory.mktemp("dynamic"))


@pytest.fixture(scope="module")
def classifier(float_classifier: Component, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return quantize_dynamic(float_classifier, DYNAMIC, tmp_path_factory.mktemp("dynamic"))


def test_every_linear_layer_multiplies_integers(
    encoder: Component, classifier: Component, onnx_operators: Count, float_classifier: Component
) -> None:
    for made, layers in ((encoder, 12), (classifier, 36)):
        found = onnx_operators(made)
        assert made.precision["layers"] == found["MatMulInteger"] == found["INT8 weight"] == layers
        assert 0 < found["DynamicQuantizeLinear"] < layers, "layers that share an input share its rounding"
        assert found["DequantizeLinear"] == 0
        assert made.precision["activations"] == "int8-dynamic"
        assert made.proof["weights"]["quantized"] == layers
        assert 30 < made.proof["weights"]["snr_db"] < 45
    assert onnx_operators(classifier)["Gemm"] == 1, "the last layer is kept"
    assert onnx_operators(classifier)["Conv"] == onnx_operators(float_classifier)["Conv"] == 1
    assert "classifier" in classifier.precision["kept"]


def test_onnx_runtime_fuses_every_one(
    encoder: Component, classifier: Component, ort_operators: Count, float_classifier: Component
) -> None:
    kernels = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
    for made in (encoder, classifier):
        found = ort_operators(made)
        assert sum(found[k] for k in kernels) == made.precision["layers"]
        assert found["MatMulInteger"] == 0, "it would be followed by three more operators"
    assert sum(ort_operators(float_classifier)[k] for k in kernels) == 0


@pytest.mark.parametrize("name", ["encoder", "classifier"])
def test_its_numbers_are_near_those_in_float(
    name: str, request: pytest.FixtureRequest, run: Callable[..., Any]
) -> None:
    made, given = request.getfixturevalue(name), request.getfixturevalue(f"float_{name}")
    tensors = sample_inputs(given, {"batch": 2, "tokens": 77})
    output = next(iter(given.outputs))
    right, got = run(given, tensors)[output], run(made, tensors)[output]
    snr = 10 * np.log10(np.square(right).mean() / np.square(right - got).mean())
    assert 20 < snr < 60


def test_weights_have_seven_bits(encoder: Component) -> None:
    """On processors without VNNI two products of 8 bits overflow 16."""
    stored = load_file(encoder.root / encoder.weights[0].path)
    values = [v for v in stored.values() if v.dtype == np.int8]
    assert len(values) == 12
    assert {int(np.abs(v.astype(int)).max()) for v in values} == {63}


def linear(layout: str) -> tuple[list[Any], dict[str, np.ndarray]]:
    if layout == "MatMul":
        return [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])], {}
    if layout == "bias":
        return [helper.make_node("Gemm", ["x", "fc.weight", "b"], ["y"], transB=1)], {
            "b": np.arange(96, dtype=np.float32)
        }
    return [helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1)], {}


@pytest.mark.parametrize("layout", ["Gemm", "bias", "MatMul"])
def test_it_computes_what_onnx_defines(
    component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path, layout: str
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64)).astype(np.float32) + 0.3
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    nodes, constants = linear(layout)
    stored = np.ascontiguousarray(weight.T) if layout == "MatMul" else weight
    made = quantize_dynamic(component(nodes, {"fc.weight": stored}, constants), DYNAMIC, tmp_path / "out")
    got = run(made, {"x": x})["y"]
    (defined,) = ReferenceEvaluator(onnx.load(str(made.graph_path))).run(None, {"x": x})
    reach = float(defined.max() - defined.min())
    assert np.abs(got - defined).max() < 1e-5 * reach
    right = x @ weight.T + constants.get("b", 0)
    assert 1e-4 * reach < np.abs(got - right).max() < 0.02 * reach


def test_the_graphs_output_keeps_its_name_and_a_shared_input_is_rounded_once(
    component: Callable[..., Component], onnx_operators: Count, run: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    weights = {f"{n}.weight": rng.standard_normal((64, 64)).astype(np.float32) for n in ("q", "k", "out")}
    nodes = [
        helper.make_node("Gemm", ["x", "q.weight"], ["q"], transB=1),
        helper.make_node("Gemm", ["x", "k.weight"], ["k"], transB=1),
        helper.make_node("Add", ["q", "k"], ["h"]),
        helper.make_node("Gemm", ["h", "out.weight"], ["y"], transB=1),
    ]
    given = component(nodes, weights)
    made = quantize_dynamic(given, DYNAMIC, tmp_path / "out")
    found = onnx_operators(made)
    assert (found["MatMulInteger"], found["DynamicQuantizeLinear"]) == (3, 2)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    right, got = run(given, {"x": x})["y"], run(made, {"x": x})["y"]
    assert np.abs(right - got).max() < 0.04 * (right.max() - right.min())


def test_layers_that_are_named_are_kept(float_encoder: Component, onnx_operators: Count, tmp_path: Path) -> None:
    made = quantize_dynamic(float_encoder, recipe("int8-dynamic:keep=mlp.*"), tmp_path)
    assert made.precision["layers"] == onnx_operators(made)["MatMulInteger"] == 8
    assert onnx_operators(made)["Gemm"] == 4
    assert sum("mlp" in n for n in made.precision["kept"]) == 4


def test_without_a_linear_layer_it_is_refused(
    component: Callable[..., Component], float_encoder: Component, encoder: Component, tmp_path: Path
) -> None:
    weight = np.random.default_rng(2).standard_normal((64, 8, 3, 3)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "conv.weight"], ["y"])
    given = component([conv], {"conv.weight": weight}, given=("rows", 8, 8, 8), rank=4)
    with pytest.raises(BadInput, match="made has no linear layer that int8-dynamic would quantize"):
        quantize_dynamic(given, DYNAMIC, tmp_path / "out")
    with pytest.raises(BadInput, match="text_encoder is quantized already"):
        quantize_dynamic(encoder, DYNAMIC, tmp_path / "out")


def test_a_weight_that_is_no_number_is_refused(component: Callable[..., Component], tmp_path: Path) -> None:
    weight = np.full((96, 64), np.nan, np.float32)
    with pytest.raises(BadInput, match="NaN"):
        quantize_dynamic(component(linear("Gemm")[0], {"fc.weight": weight}), DYNAMIC, tmp_path / "out")


def test_the_file_is_valid_onnx(encoder: Component, classifier: Component) -> None:
    for made in (encoder, classifier):
        onnx.checker.check_model(str(made.graph_path))


def test_no_scale_is_left_without_a_use(encoder: Component) -> None:
    graph = onnx.load(str(encoder.graph_path), load_external_data=False).graph
    used = {name for node in graph.node for name in node.input}
    assert {t.name for t in graph.initializer} <= used
    assert set(read_header(encoder.root / encoder.weights[0].path)) == {
        t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL
    }
