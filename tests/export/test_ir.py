"""OpenVINO IR: the same numbers, weights in the types that the recipe names, files where other tools look for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component, hash_file
from vitrify.core.device import Device
from vitrify.core.errors import BadArtifact, BadInput, DiskError, ProofFailed
from vitrify.core.registry import load_runtime
from vitrify.core.safetensors_header import open_checkpoint, read_tensor
from vitrify.core.tensors import DType
from vitrify.proof.parity import sample_inputs
from vitrify.quant.recipes import recipe
from vitrify.quant.weights import NF4_LEVELS, fitting_group, quantize_nf4
from vitrify.runtimes.base import Options

ov = pytest.importorskip("openvino", reason="needs vitrify[openvino]")
pytest.importorskip("onnx_ir", reason="needs vitrify[export]")

from onnx import helper  # noqa: E402

from vitrify.export import ir  # noqa: E402
from vitrify.export.ir import write_ir  # noqa: E402

LINEARS, CONVS = 46, 34  # of the built-in UNet, with 4096 weights or more and not sensitive
SIZES = {"batch": 2, "height": 8, "width": 16, "tokens": 77}
Count = Callable[[Component], Counter[Any]]
NF4 = recipe("nf4-weights:group=32")


@pytest.fixture(scope="module")
def plain(float_unet: Component, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return write_ir(float_unet, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def nf4(float_unet: Component, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return write_ir(float_unet, tmp_path_factory.mktemp("nf4"), recipe=NF4)


def off(expected: np.ndarray, given: np.ndarray) -> float:
    """The largest difference, as a share of the range."""
    return float(np.abs(expected - given).max() / (expected.max() - expected.min()))


def test_it_describes_itself(plain: Component, float_unet: Component) -> None:
    assert (plain.name, plain.format, plain.graph) == ("unet", "openvino", "unet/openvino_model.xml")
    assert sorted(p.name for p in (plain.root / "unet").iterdir()) == ["openvino_model.bin", "openvino_model.xml"]
    (weights,) = plain.weights
    file = plain.root / "unet/openvino_model.bin"
    assert (weights.path, weights.bytes) == ("unet/openvino_model.bin", file.stat().st_size)
    assert weights.sha256 == hash_file(file)
    assert dict(plain.inputs) == dict(float_unet.inputs)
    assert dict(plain.outputs) == dict(float_unet.outputs)
    assert plain.precision == float_unet.precision
    assert plain.requires["runtime"].startswith("openvino>=")
    assert plain.details["source"] == {"format": "onnx", "graph": hash_file(float_unet.graph_path)}
    assert plain.details["kind"] == "unet"
    assert plain.proof["weights"] == float_unet.proof["weights"]
    assert plain.proof["numeric"] == "not run"


def test_it_computes_what_its_source_computes(plain: Component, float_unet: Component, run: Callable[..., Any]) -> None:
    tensors = sample_inputs(float_unet, SIZES)
    right = run(float_unet, tensors)["out_sample"]
    assert off(right, run(plain, tensors, "openvino")["out_sample"]) < 1e-4


def test_a_timestep_is_declared_as_others_give_it_and_taken_as_float(
    plain: Component, float_unet: Component, run: Callable[..., Any]
) -> None:
    model = ov.Core().read_model(str(plain.graph_path))
    declared = {p.output(0).get_any_name(): p for p in model.get_parameters()}["timestep"]
    assert (declared.get_element_type(), list(declared.get_partial_shape().to_shape())) == (ov.Type.i64, [1])
    assert plain.inputs["timestep"] == float_unet.inputs["timestep"]
    tensors = sample_inputs(float_unet, SIZES)
    whole, between = (tensors | {"timestep": np.array(t, np.float32)} for t in (20, 20.7))
    right = run(float_unet, between)["out_sample"]
    assert off(right, run(plain, between, "openvino")["out_sample"]) < 1e-4
    assert off(right, run(plain, whole, "openvino")["out_sample"]) > 1e-3, "no fraction is cut off"


def test_a_component_without_a_timestep_keeps_its_inputs(float_encoder: Component, tmp_path: Path) -> None:
    model = ov.Core().read_model(str(write_ir(float_encoder, tmp_path).graph_path))
    assert [(i.get_any_name(), i.get_element_type(), i.partial_shape.rank.get_length()) for i in model.inputs] == [
        ("input_ids", ov.Type.i64, 2)
    ]


def test_a_manifest_that_says_float_of_whole_numbers_is_refused(float_encoder: Component, tmp_path: Path) -> None:
    """What is not converted at once stays whole numbers."""
    made = write_ir(float_encoder, tmp_path)
    wrong = replace(made, inputs={n: replace(s, dtype=DType.FLOAT32) for n, s in made.inputs.items()})
    with pytest.raises(BadArtifact, match="input_ids as int64; the manifest says float32"):
        load_runtime("openvino").open(wrong, Device("cpu"), Options())


def test_nothing_is_rounded_on_the_way(component: Callable[..., Component], tmp_path: Path) -> None:
    """Left to itself, the library stores float32 in float16."""
    weight = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1)], {"fc.weight": weight})
    made = write_ir(given, tmp_path / "out")
    assert weight.tobytes() in (made.root / made.weights[0].path).read_bytes()


@pytest.mark.parametrize(
    ("folder", "graph"), [("", "openvino_model.xml"), ("deep/down", "deep/down/openvino_model.xml")]
)
def test_it_lies_where_it_is_told(
    component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path, folder: str, graph: str
) -> None:
    weight = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    given = component([helper.make_node("Gemm", ["x", "fc.weight"], ["y"], transB=1)], {"fc.weight": weight})
    made = write_ir(given, tmp_path / "out", folder=folder)
    assert made.graph == graph
    assert made.weights[0].path == graph.replace(".xml", ".bin")
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    assert off(x @ weight.T, run(made, {"x": x}, "openvino")["y"]) < 1e-5


@pytest.mark.parametrize(
    ("id", "convs", "linears"),
    [("int8-weights", "i8", "i8"), ("int4-weights:group=32", "i4", "i4"), ("int4-weights:convs=int8", "i8", "i4")],
)
def test_quantized_weights_stay_what_they_are(
    float_unet: Component, quantized: Callable[[Component, str], Component], run: Callable[..., Any],
    ov_constants: Count, tmp_path: Path, id: str, convs: str, linears: str,
) -> None:  # fmt: skip
    source = quantized(float_unet, id)
    made = write_ir(source, tmp_path)
    wanted = Counter({convs: CONVS}) + Counter({linears: LINEARS})
    found = ov_constants(made)
    assert {k: found[k] for k in ("i8", "i4")} == {k: wanted[k] for k in ("i8", "i4")}
    assert made.precision == source.precision
    assert made.precision["layers"] == LINEARS + CONVS
    assert made.weights[0].bytes < 1.05 * source.weights[0].bytes
    tensors = sample_inputs(float_unet, SIZES)
    assert off(run(source, tensors)["out_sample"], run(made, tensors, "openvino")["out_sample"]) < 1e-4


def test_nf4_counts_its_layers(nf4: Component, plain: Component, ov_constants: Count, ov_layers: Count) -> None:
    assert ov_constants(nf4)["nf4"] == nf4.precision["layers"] == nf4.proof["weights"]["quantized"] == LINEARS + CONVS
    assert ov_constants(plain)["nf4"] == 0
    assert ov_layers(nf4)["FullyConnected", "nf4"] >= LINEARS
    assert ov_layers(plain)["FullyConnected", "nf4"] == 0
    assert nf4.precision["weights"] == "nf4"
    assert nf4.precision["recipe"] == "nf4-weights:group=32"
    assert nf4.weights[0].bytes < 0.45 * plain.weights[0].bytes, "of float16, a quarter and the scales"
    assert 20 < nf4.proof["weights"]["snr_db"] < 24


def test_nf4_keeps_what_the_other_recipes_keep(
    nf4: Component, float_unet: Component, quantized: Callable[[Component, str], Component]
) -> None:
    assert nf4.precision["kept"] == quantized(float_unet, "int4-weights:group=32").precision["kept"]


def as_nf4(weight: np.ndarray, group: int) -> np.ndarray:
    """What OpenVINO computes: levels times scales, which are stored in float16."""
    done = quantize_nf4(weight.astype(np.float32), group)
    scales = done.spread(done.scales.astype(np.float16)).astype(np.float32)
    return np.asarray(NF4_LEVELS[done.values] * scales)


def test_nf4_computes_the_dequantized_product(
    nf4: Component, plain: Component, float_unet: Component, run: Callable[..., Any], tmp_path: Path
) -> None:
    """Its weights are put into the plain IR one by one."""
    entries = open_checkpoint(float_unet.root / "unet", ("diffusion_pytorch_model",))
    core = ov.Core()
    model = core.read_model(str(plain.graph_path))
    changed = 0
    for op in model.get_ordered_ops():
        name = op.get_friendly_name()
        entry = entries.get(name)
        if op.get_type_name() != "Constant" or entry is None or len(entry.shape) < 2 or entry.elements < 4096:
            continue
        if NF4.kept(name.removesuffix(".weight")):
            continue
        weight = as_nf4(read_tensor(entry, "float32"), fitting_group(entry.shape[1], 32))
        constant = ov.opset13.constant(weight.reshape(op.get_output_shape(0)))
        for user in op.output(0).get_target_inputs():
            user.replace_source_output(constant.output(0))
        changed += 1
    assert changed == LINEARS + CONVS
    ov.save_model(model, str(tmp_path / "openvino_model.xml"), compress_to_fp16=False)
    tensors = sample_inputs(float_unet, SIZES)
    compiled = core.compile_model(
        core.read_model(tmp_path / "openvino_model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    right = compiled(tensors | {"timestep": tensors["timestep"].astype(np.int64).reshape(1)})["out_sample"]
    assert off(right, run(nf4, tensors, "openvino")["out_sample"]) < 5e-4  # convolutions fold it in float16
    assert off(run(float_unet, tensors)["out_sample"], right) > 0.01


def linears(*shapes: tuple[int, int]) -> tuple[list[Any], dict[str, np.ndarray]]:
    rng, nodes, weights = np.random.default_rng(2), [], {}
    for number, shape in enumerate(shapes):
        weights[f"fc{number}.weight"] = rng.standard_normal(shape).astype(np.float32)
        names = ["x" if not number else f"h{number}", f"fc{number}.weight"]
        out = "y" if number == len(shapes) - 1 else f"h{number + 1}"
        nodes.append(helper.make_node("Gemm", names, [out], transB=1))
    return nodes, weights


def test_a_layer_that_no_group_fits_is_kept_and_said(
    component: Callable[..., Component], ov_constants: Count, run: Callable[..., Any], tmp_path: Path
) -> None:
    nodes, weights = linears((72, 64), (64, 72), (96, 64))  # 72 has no group
    given = component(nodes, weights)
    made = write_ir(given, tmp_path / "out", recipe=NF4)
    assert made.precision["layers"] == ov_constants(made)["nf4"] == 2
    assert made.precision["kept"] == ["fc1"]
    x = np.random.default_rng(3).standard_normal((3, 64)).astype(np.float32)
    right = x @ as_nf4(weights["fc0.weight"], 32).T @ weights["fc1.weight"].T @ as_nf4(weights["fc2.weight"], 32).T
    assert off(right, run(made, {"x": x}, "openvino")["y"]) < 1e-4


def test_weights_of_nothing_but_zeros_stay_zeros(
    component: Callable[..., Component], run: Callable[..., Any], tmp_path: Path
) -> None:
    nodes, weights = linears((96, 64))
    made = write_ir(component(nodes, {n: 0 * w for n, w in weights.items()}), tmp_path / "out", recipe=NF4)
    assert "snr_db" not in made.proof["weights"]
    assert (run(made, {"x": np.ones((3, 64), np.float32)}, "openvino")["y"] == 0).all()


def test_what_nf4_cannot_quantize_is_refused(component: Callable[..., Component], tmp_path: Path) -> None:
    nodes, weights = linears((60, 64))
    given = component(nodes, weights)
    with pytest.raises(BadInput, match=r"made has no layer that nf4-weights:group=32 would quantize"):
        write_ir(given, tmp_path / "out", recipe=NF4)


def test_a_weight_that_is_no_number_is_refused(component: Callable[..., Component], tmp_path: Path) -> None:
    nodes, weights = linears((96, 64))
    weights["fc0.weight"][3, 3] = np.inf
    with pytest.raises(BadInput, match="NaN or infinity"):
        write_ir(component(nodes, weights), tmp_path / "out", recipe=NF4)


def test_a_graph_that_does_not_load_is_told(component: Callable[..., Component], tmp_path: Path) -> None:
    given = component(*linears((96, 64)))
    given.graph_path.write_bytes(b"\0" * 100)
    with pytest.raises(BadArtifact, match=r"made/model\.onnx.* load"):
        write_ir(given, tmp_path / "out")


def test_a_full_disk_is_told(float_unet: Component, small_disk: Callable[[int], Path]) -> None:
    with pytest.raises(DiskError, match="full"):
        write_ir(float_unet, small_disk(1_000_000))


def test_a_constant_that_did_not_reach_the_file_is_named(
    float_encoder: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = ir.save_ir

    def failing(model: Any, path: Path) -> None:
        """As a disk does that loses a bit."""
        save(model, path)
        data = bytearray(path.with_suffix(".bin").read_bytes())
        data[len(data) // 2] ^= 1
        path.with_suffix(".bin").write_bytes(data)

    monkeypatch.setattr(ir, "save_ir", failing)
    with pytest.raises(ProofFailed, match=r"Constant .* in .*openvino_model.xml is not what was written"):
        write_ir(float_encoder, tmp_path)


def test_a_timestep_of_any_length_is_left_as_it_is(component: Callable[..., Component], tmp_path: Path) -> None:
    import onnx

    given = component([helper.make_node("Abs", ["x"], ["y"])], {}, given=("steps",), rank=1)
    model = onnx.load(str(given.graph_path))
    model.graph.input[0].name = model.graph.node[0].input[0] = "timestep"
    onnx.save(model, str(given.graph_path))
    made = write_ir(replace(given, inputs={"timestep": given.inputs["x"]}), tmp_path / "out")
    session = load_runtime("openvino").open(made, Device("cpu"), Options())
    np.testing.assert_array_equal(session.run({"timestep": np.float32([-1, 2.5])})["y"], np.float32([1, 2.5]))
    session.close()
