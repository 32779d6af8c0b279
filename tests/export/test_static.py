"""Calibrated int8: which layers get integers, in the file and in the runtimes' own graphs, and from what inputs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vitrify.core.artifact import Artifact, Component
from vitrify.core.errors import BadInput, MissingDependency
from vitrify.core.safetensors_header import read_header
from vitrify.quant.recipes import recipe

onnx = pytest.importorskip("onnx", reason="needs vitrify[quant]")
pytest.importorskip("onnx_ir", reason="needs vitrify[quant]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

from onnx import helper  # noqa: E402

from vitrify.export.calibrate import record_inputs  # noqa: E402
from vitrify.export.static import quantize_static  # noqa: E402

LINEARS, CONVS = 46, 34  # of the built-in UNet, with 4096 weights or more and not sensitive
AFTER = 2  # shortcuts, kept in float, that read what a quantized convolution gave
STATIC, HYBRID = recipe("int8-static"), recipe("int8-hybrid")
Count = Callable[[Component], Counter[Any]]
Samples = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def nncf() -> None:
    pytest.importorskip("nncf", reason="needs vitrify[quant]")


@pytest.fixture(scope="module")
def static(static_unet: Component) -> Component:
    return static_unet


@pytest.fixture(scope="module")
def hybrid(nncf: None, float_unet: Component, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return quantize_static(float_unet, HYBRID, samples, tmp_path_factory.mktemp("hybrid"))


def layers(component: Component) -> dict[str, tuple[str, bool, bool]]:
    """Of each product: its kind, whether its first input was rounded, and whether its second was."""
    graph = onnx.load(str(component.graph_path), load_external_data=False).graph
    made = {out: node for node in graph.node for out in node.output}

    def rounded(name: str) -> bool:
        node = made.get(name)
        while node is not None and node.op_type in ("Reshape", "Transpose", "Cast"):
            node = made.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    found = {}
    for node in graph.node:
        if node.op_type in ("Gemm", "Conv", "MatMul"):
            found[node.name] = (node.op_type, rounded(node.input[0]), rounded(node.input[1]))
    return found


def test_every_layer_has_rounded_weights_and_inputs_and_attention_has_none(
    static: Component, float_unet: Component
) -> None:
    found, before = Counter(layers(static).values()), Counter(kind for kind, _, _ in layers(float_unet).values())
    assert found == {
        ("Gemm", True, True): LINEARS,
        ("Gemm", False, False): before["Gemm"] - LINEARS,
        ("Conv", True, True): CONVS,
        ("Conv", False, False): before["Conv"] - CONVS - AFTER,
        ("Conv", True, False): AFTER,
        ("MatMul", False, False): before["MatMul"],
    }


def test_in_a_hybrid_linear_layers_keep_float_inputs(hybrid: Component, float_unet: Component) -> None:
    found, before = Counter(layers(hybrid).values()), Counter(kind for kind, _, _ in layers(float_unet).values())
    assert found == {
        ("Gemm", False, True): LINEARS,
        ("Gemm", False, False): before["Gemm"] - LINEARS,
        ("Conv", True, True): CONVS,
        ("Conv", False, False): before["Conv"] - CONVS - AFTER,
        ("Conv", True, False): AFTER,
        ("MatMul", False, False): before["MatMul"],
    }
    assert hybrid.precision["layers"] == LINEARS + CONVS


@pytest.mark.parametrize("name", ["static", "hybrid"])
def test_what_the_manifest_says_is_what_the_file_has(
    name: str, request: pytest.FixtureRequest, onnx_operators: Count
) -> None:
    made = request.getfixturevalue(name)
    found = onnx_operators(made)
    assert made.precision["layers"] == found["INT8 weight"] == made.proof["weights"]["quantized"] == LINEARS + CONVS
    assert made.precision["quantized_activations"] == found["QuantizeLinear"]
    assert found["DequantizeLinear"] == found["QuantizeLinear"] + found["INT8 weight"]
    assert found["QuantizeLinear"] >= (CONVS if name == "hybrid" else 60), "layers may share an input"
    assert made.proof["weights"]["calibrated_on"] == 8
    assert made.precision["recipe"] == f"int8-{name}"
    tensors = read_header(made.root / made.weights[0].path)
    assert made.proof["weights"]["tensors"] == len(tensors)
    assert sum(e.dtype == "I8" and len(e.shape) > 1 for e in tensors.values()) == LINEARS + CONVS


@pytest.mark.parametrize("name", ["static", "hybrid"])
def test_activations_are_symmetric_around_128_and_weights_around_0(name: str, request: pytest.FixtureRequest) -> None:
    """What ONNX Runtime's integer kernels read, and what is int8 without a zero point once 128 is taken off."""
    path = request.getfixturevalue(name).graph_path
    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    nodes = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes
    for node in nodes:
        if node.input[0] not in stored:
            zero = stored[node.input[2]]
            assert (zero.data_type, onnx.numpy_helper.to_array(zero).tolist()) == (onnx.TensorProto.UINT8, 128)
        elif len(node.input) > 2:
            assert stored[node.input[2]].data_type == onnx.TensorProto.INT8
            assert not onnx.numpy_helper.to_array(stored[node.input[2]]).any()
    onnx.checker.check_model(str(path))


def test_weights_have_seven_bits(static: Component) -> None:
    """On processors without VNNI two products of 8 bits overflow 16."""
    stored = load_file(static.root / static.weights[0].path)
    largest = [int(np.abs(v.astype(int)).max()) for v in stored.values() if v.dtype == np.int8 and v.ndim > 1]
    assert len(largest) == LINEARS + CONVS
    assert max(largest) <= 64
    assert min(largest) >= 60


def test_the_kept_layers_are_those_of_the_weights_recipes(
    static: Component, hybrid: Component, float_unet: Component, quantized: Callable[[Component, str], Component]
) -> None:
    wanted = quantized(float_unet, "int8-weights").precision["kept"]
    assert static.precision["kept"] == wanted
    assert hybrid.precision["kept"] == wanted


def test_openvino_computes_every_layer_in_integers(static: Component, float_unet: Component, ov_layers: Count) -> None:
    found, before = ov_layers(static), ov_layers(float_unet)
    integers = [("Convolution", "u8"), ("Convolution", "i8"), ("FullyConnected", "u8"), ("FullyConnected", "i8")]
    assert sum(found[k] for k in integers) == static.precision["layers"] == LINEARS + CONVS
    assert sum(before[k] for k in integers) == 0, "the count would not tell"
    assert found["FullyConnected", "f32"] == before["FullyConnected", "f32"] - LINEARS
    assert found["Convolution", "f32"] == before["Convolution", "f32"] - CONVS


def test_openvino_computes_a_hybrids_convolutions_in_integers(hybrid: Component, ov_layers: Count) -> None:
    found = ov_layers(hybrid)
    assert found["Convolution", "u8"] + found["Convolution", "i8"] == CONVS


def test_onnx_runtime_computes_every_layer_in_integers(
    static: Component, hybrid: Component, float_unet: Component, ort_operators: Count
) -> None:
    """Its optimizer computes in float32 what it does not recognize, and says nothing."""
    found, mixed, before = ort_operators(static), ort_operators(hybrid), ort_operators(float_unet)
    assert (found["QGemm"], found["QLinearConv"]) == (LINEARS, CONVS)
    assert (mixed["MatMulNBits"], mixed["QLinearConv"]) == (LINEARS, CONVS)
    assert before["QGemm"] + before["QLinearConv"] + before["MatMulNBits"] == 0, "the count would not tell"
    convolutions = sum(n for op, n in before.items() if str(op).endswith("Conv"))
    assert found["Conv"] + found["FusedConv"] == convolutions - CONVS
    assert found["Gemm"] == before["Gemm"] - LINEARS


@pytest.mark.parametrize("name", ["static", "hybrid"])
def test_its_numbers_are_near_those_in_float_and_alike_on_both_runtimes(
    name: str, request: pytest.FixtureRequest, float_unet: Component, samples: Samples, run: Callable[..., Any]
) -> None:
    made = request.getfixturevalue(name)
    right = run(float_unet, samples[3])["out_sample"]
    ours, theirs = run(made, samples[3])["out_sample"], run(made, samples[3], "openvino")["out_sample"]

    def snr(a: np.ndarray, b: np.ndarray) -> float:
        return float(10 * np.log10(np.square(a).mean() / np.square(a - b).mean()))

    assert 25 < snr(right, ours) < 60
    assert 25 < snr(right, theirs) < 60
    assert snr(ours, theirs) > 25


@pytest.mark.parametrize(("name", "precision"), [("static", "float32"), ("static", "float16"), ("hybrid", "float16")])
def test_a_tensorrt_plan_is_built_of_it(
    name: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
    from vitrify.export.plan import build_plan

    made = request.getfixturevalue(name)
    plan = build_plan(made, tmp_path, flavour="tensorrt-rtx", precision=precision, compute_capability="8.9")
    assert plan.precision["activations"] == made.precision["activations"].replace("float32", precision)
    assert plan.graph_path.stat().st_size > 0


def test_signed_integers_are_the_same_numbers(component: Callable[..., Component]) -> None:
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator

    from vitrify.export.signed import make_signed

    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    given = component(nodes, {}, {"scale": np.float32(0.03), "zero": np.array(128, np.uint8)})
    model = ir.load(given.graph_path)
    make_signed(model)
    signed = ir.to_proto(model)
    assert [t.data_type for t in signed.graph.initializer if t.name == "zero"] == [onnx.TensorProto.INT8]
    x = {"x": np.random.default_rng(4).uniform(-6, 6, (8, 64)).astype(np.float32)}
    right, got = (ReferenceEvaluator(m).run(None, x)[0] for m in (onnx.load(str(given.graph_path)), signed))
    assert (right.min(), right.max()) == pytest.approx((-128 * 0.03, 127 * 0.03)), "both ends are met"
    np.testing.assert_array_equal(got, right)


def test_unsigned_weights_are_left_as_they_are(component: Callable[..., Component]) -> None:
    """Their numbers would have to change with their zero point."""
    import onnx_ir as ir

    from vitrify.export.signed import make_signed

    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    constants = {"w": np.ones((64, 8), np.uint8), "scale": np.float32(0.1), "zero": np.array(128, np.uint8)}
    model = ir.load(component(nodes, {}, constants).graph_path)
    make_signed(model)
    assert {n: v.dtype.name for n, v in model.graph.initializers.items()} == {
        "w": "UINT8", "scale": "FLOAT", "zero": "UINT8",
    }  # fmt: skip


def test_ranges_come_from_the_samples(nncf: None, component: Callable[..., Component], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1, name="fc")], {"fc.weight": weight})
    x = rng.uniform(-1, 1, (4, 64)).astype(np.float32)
    x[0, 0] = 1
    scales = []
    for number, size in enumerate((1.0, 50.0)):
        made = quantize_static(given, STATIC, [{"x": size * x}], tmp_path / str(number))
        graph = onnx.load(str(made.graph_path)).graph
        (node,) = (n for n in graph.node if n.op_type == "QuantizeLinear")
        values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        scales.append(float(values[node.input[1]]))
    assert scales[0] == pytest.approx(1 / 127, rel=0.02)
    assert scales[1] == pytest.approx(50 / 127, rel=0.02)


def test_what_a_convolution_gives_is_rounded_to_its_range(
    nncf: None, component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((64, 64, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], pads=[1, 1, 1, 1], name="conv")
    given = component([node], {"conv.weight": weight}, given=("rows", 64, 8, 8), rank=4)
    samples = [{"x": size * rng.standard_normal((2, 64, 8, 8)).astype(np.float32)} for size in (1.0, 3.0)]
    made = quantize_static(given, STATIC, samples, tmp_path / "out")
    graph = onnx.load(str(made.graph_path)).graph
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    (last,) = (n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "y.float32")
    peaks = [float(np.abs(run(given, sample)["y"]).max()) for sample in samples]
    assert float(values[last.input[1]]) == pytest.approx(np.mean(peaks) / 127, rel=1e-5)
    right = run(given, samples[0])["y"]
    for runtime in ("onnx", "openvino"):
        error = run(made, samples[0], runtime)["y"] - right
        assert 25 < 10 * np.log10(np.square(right).mean() / np.square(error).mean()) < 50


def test_between_two_convolutions_it_is_rounded_once(
    nncf: None, component: Callable[..., Component], ort_operators: Count, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    weights = {f"{n}.weight": rng.standard_normal((64, 64, 3, 3)).astype(np.float32) for n in ("first", "second")}
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["h"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node("Conv", ["h", "second.weight"], ["y"], pads=[1, 1, 1, 1], name="second"),
    ]
    given = component(nodes, weights, given=("rows", 64, 8, 8), rank=4)
    made = quantize_static(given, STATIC, [{"x": rng.standard_normal((2, 64, 8, 8), np.float32)}], tmp_path / "out")
    assert made.precision["quantized_activations"] == 3
    assert ort_operators(made)["QLinearConv"] == 2


def test_a_convolution_by_channels_computes_on_both_runtimes(
    nncf: None, component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path
) -> None:
    """Its channels get ranges of their own."""
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((128, 1, 7, 7)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], pads=[3, 3, 3, 3], group=128, name="conv")
    given = component([node], {"conv.weight": weight}, given=("rows", 128, 8, 8), rank=4)
    x = {"x": rng.standard_normal((2, 128, 8, 8), np.float32) * np.arange(1, 129, dtype=np.float32).reshape(-1, 1, 1)}
    made, right = quantize_static(given, STATIC, [x], tmp_path / "out"), run(given, x)["y"]
    for runtime in ("onnx", "openvino"):
        error = run(made, x, runtime)["y"] - right
        assert 10 * np.log10(np.square(right).mean() / np.square(error).mean()) > 25


def test_what_is_never_negative_fits_the_signed_half(
    nncf: None, component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((96, 64)).astype(np.float32)
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="relu"),
        helper.make_node("Gemm", ["h", "fc.weight"], ["y"], transB=1, name="fc"),
    ]
    given = component(nodes, {"fc.weight": weight})
    x = rng.standard_normal((8, 64)).astype(np.float32)
    made = quantize_static(given, STATIC, [{"x": x}], tmp_path / "out")
    right = run(given, {"x": x})["y"]
    reach = right.max() - right.min()
    for runtime in ("onnx", "openvino"):
        assert np.abs(run(made, {"x": x}, runtime)["y"] - right).max() < 0.03 * reach, "a positive range was cut"


def test_a_classifier_is_calibrated_with_a_folder_of_pictures(
    nncf: None,
    emotions_artifact: Path,
    tmp_path: Path,
    onnx_operators: Count,
    ov_layers: Count,
    run: Callable[..., Any],
) -> None:
    artifact, rng = Artifact.load(emotions_artifact), np.random.default_rng(2)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64)).save(tmp_path / f"pictures/{number}.png")
    seen = record_inputs(artifact, ["model"], 64, tmp_path / "pictures")["model"]
    made = quantize_static(artifact.components["model"], STATIC, seen, tmp_path / "out")
    assert made.precision["layers"] == onnx_operators(made)["INT8 weight"] == 36
    assert made.proof["weights"]["calibrated_on"] == 4
    found = ov_layers(made)
    assert found["FullyConnected", "i8"] + found["FullyConnected", "u8"] == 36
    right, got = run(artifact.components["model"], seen[0])["logits"], run(made, seen[0])["logits"]
    assert right.argmax() == got.argmax()


def test_without_samples_it_is_refused(float_unet: Component, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"unet has no recorded inputs to calibrate with.*prompts or pictures"):
        quantize_static(float_unet, STATIC, [], tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_no_number_names_the_component_and_the_input(
    float_unet: Component, samples: Samples, tmp_path: Path, bad: float
) -> None:
    broken = [dict(s) for s in samples]
    broken[5]["encoder_hidden_states"] = broken[5]["encoder_hidden_states"].copy()
    broken[5]["encoder_hidden_states"][0, 3, 1] = bad
    with pytest.raises(BadInput, match="calibration sample of unet holds NaN in encoder_hidden_states"):
        quantize_static(float_unet, STATIC, broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_no_number_is_refused(nncf: None, component: Callable[..., Component], tmp_path: Path) -> None:
    weight = np.ones((96, 64), np.float32)
    weight[2, 3] = np.nan
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1, name="fc")], {"fc.weight": weight})
    with pytest.raises(BadInput, match="NaN"):
        quantize_static(given, STATIC, [{"x": np.ones((2, 64), np.float32)}], tmp_path / "out")


def test_a_component_without_such_layers_is_refused(
    nncf: None, component: Callable[..., Component], tmp_path: Path
) -> None:
    weight = np.ones((60, 64), np.float32)
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1, name="fc")], {"fc.weight": weight})
    with pytest.raises(BadInput, match="made has no layer that int8-static would quantize"):
        quantize_static(given, STATIC, [{"x": np.ones((2, 64), np.float32)}], tmp_path / "out")


def test_what_is_quantized_already_is_refused(
    float_unet: Component, quantized: Callable[[Component, str], Component], samples: Samples, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="unet is quantized already"):
        quantize_static(quantized(float_unet, "int8-weights"), STATIC, samples, tmp_path)


def test_a_missing_nncf_is_named_with_its_extra(
    component: Callable[..., Component], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    weight = np.ones((96, 64), np.float32)
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1, name="fc")], {"fc.weight": weight})
    with pytest.raises(MissingDependency, match=r"int8-static needs nncf.*vitrify\[quant\]"):
        quantize_static(given, STATIC, [{"x": np.ones((2, 64), np.float32)}], tmp_path / "out")
