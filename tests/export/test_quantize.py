"""Quantized graphs: every layer counted in each runtime's own compiled graph, and equal to the dequantized product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vitrify.core.artifact import Component
from vitrify.core.errors import BadInput, DiskError, ProofFailed
from vitrify.core.progress import Event
from vitrify.core.safetensors_header import read_header
from vitrify.core.safetensors_writer import SafetensorsWriter
from vitrify.proof.parity import sample_inputs
from vitrify.quant.recipes import recipe

onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")


from vitrify.export.quantize import prove_written, quantize_weights  # noqa: E402

LINEARS, CONVS = 46, 34  # of the built-in UNet, with 4096 weights or more and not sensitive
SIZES = {"batch": 2, "height": 8, "width": 16, "tokens": 77}
WEIGHTS = (  # recipe, element types of the weights of its convolutions and linear layers, zero points
    ("int8-weights", "INT8", "INT8", False),
    ("int8-weights:group=64", "INT8", "INT8", False),
    ("int4-weights:group=32", "INT4", "INT4", False),
    ("int4-weights", "INT4", "INT4", False),
    ("int4-weights:convs=int8", "INT8", "INT4", False),
    ("int4-weights:group=32,symmetric=no", "INT4", "INT4", True),
)
IDS = [row[0] for row in WEIGHTS]
Quantize = Callable[[Component, str], Component]
Count = Callable[[Component], Counter[Any]]


@pytest.mark.parametrize(("id", "convs", "linears", "asymmetric"), WEIGHTS, ids=IDS)
def test_every_layer_of_the_graph_has_the_weights_that_its_recipe_names(
    float_unet: Component,
    quantized: Quantize,
    onnx_operators: Count,
    id: str,
    convs: str,
    linears: str,
    asymmetric: bool,
) -> None:
    made = quantized(float_unet, id)
    found = onnx_operators(made)
    assert made.precision["layers"] == found["DequantizeLinear"] == LINEARS + CONVS
    wanted = Counter({f"{convs} weight": CONVS}) + Counter({f"{linears} weight": LINEARS})
    zeros = 2 if asymmetric else 1  # in groups, a zero point has as many axes as its weight
    assert {k: v for k, v in found.items() if k.startswith("INT")} == {
        **{k: v * zeros for k, v in wanted.items()},
    }
    assert found["Gemm"] + found["Conv"] == onnx_operators(float_unet)["Gemm"] + onnx_operators(float_unet)["Conv"]
    assert made.precision["recipe"] == id
    assert made.precision["activations"] == "float32"
    assert not any(recipe(id).applies_to(n) for n in ("vae_decoder", "vae_encoder"))


@pytest.mark.parametrize(("id", "convs", "linears", "asymmetric"), WEIGHTS, ids=IDS)
def test_onnx_runtime_computes_with_them(
    float_unet: Component,
    quantized: Quantize,
    ort_operators: Count,
    id: str,
    convs: str,
    linears: str,
    asymmetric: bool,
) -> None:
    found = ort_operators(quantized(float_unet, id))
    assert found["MatMulNBits"] == LINEARS, "each linear layer reads its few bits while it multiplies"
    assert found["DequantizeLinear"] == CONVS, "each convolution has its weight dequantized in front of it"
    assert found["MatMulNBits"] + found["DequantizeLinear"] == quantized(float_unet, id).precision["layers"]
    before = ort_operators(float_unet)
    assert before["MatMulNBits"] == before["DequantizeLinear"] == 0, "the count would not tell"
    assert found["Gemm"] == before["Gemm"] - LINEARS


@pytest.mark.parametrize(("id", "convs", "linears", "asymmetric"), WEIGHTS, ids=IDS)
def test_openvino_reads_them(
    float_unet: Component, quantized: Quantize, ov_constants: Count, id: str, convs: str, linears: str, asymmetric: bool
) -> None:
    found = ov_constants(quantized(float_unet, id))
    wanted = Counter({convs.replace("INT", "i"): CONVS}) + Counter({linears.replace("INT", "i"): LINEARS})
    zeros = 2 if asymmetric else 1
    assert {k: found[k] for k in ("i8", "i4")} == {k: wanted[k] * zeros for k in ("i8", "i4")}
    assert ov_constants(float_unet)["i8"] == ov_constants(float_unet)["i4"] == 0


@pytest.mark.parametrize(("id", "kind"), [("int8-weights", "i8"), ("int4-weights:group=32", "i4")])
def test_openvino_multiplies_with_them(
    float_unet: Component, quantized: Quantize, ov_layers: Count, id: str, kind: str
) -> None:
    found = ov_layers(quantized(float_unet, id))
    assert found["FullyConnected", kind] >= LINEARS  # it makes some of convolutions of one pixel too
    before = ov_layers(float_unet)
    assert before["FullyConnected", "f32"] > LINEARS
    assert before["FullyConnected", kind] == 0, "the count would not tell"


def test_a_classifier_is_counted_too(
    float_classifier: Component, quantized: Quantize, onnx_operators: Count, ort_operators: Count, ov_layers: Count
) -> None:
    made = quantized(float_classifier, "int8-weights")
    assert made.precision["layers"] == 36
    assert onnx_operators(made)["INT8 weight"] == onnx_operators(made)["DequantizeLinear"] == 36
    assert ort_operators(made)["MatMulNBits"] == 36
    assert ov_layers(made)["FullyConnected", "i8"] == 36
    assert made.precision["kept"] == [
        "classifier",
        "vit.embeddings.cls_token",
        "vit.embeddings.patch_embeddings.projection",
        "vit.embeddings.position_embeddings",
    ]


def test_each_weight_is_in_the_graph_or_among_the_kept(float_unet: Component, quantized: Quantize) -> None:
    made = quantized(float_unet, "int4-weights:group=32")
    (given,), (file,) = float_unet.weights, made.weights
    matrices = {
        n.removesuffix(".weight") for n, e in read_header(float_unet.root / given.path).items() if len(e.shape) > 1
    }
    tensors = read_header(made.root / file.path)
    done = {n.removesuffix(".weight.scale") for n in tensors if n.endswith(".scale")}
    assert done.isdisjoint(made.precision["kept"])
    assert done | set(made.precision["kept"]) == matrices
    assert len(done) == LINEARS + CONVS
    for part in ("time_embedding", "time_emb_proj", "conv_in", "conv_out", "conv_shortcut"):
        assert not any(part in n for n in done)
        assert any(part in n for n in made.precision["kept"])


@pytest.mark.parametrize(
    "id", [pytest.param(id, marks=pytest.mark.slow) if id == "int8-weights:group=64" else id for id in IDS]
)
def test_the_graph_computes_the_dequantized_product(
    float_unet: Component,
    quantized: Quantize,
    run: Callable[..., Any],
    tmp_path: Path,
    id: str,
    expected: Callable[..., Component],
    off: Callable[..., float],
) -> None:
    tensors = sample_inputs(float_unet, SIZES)
    right = run(expected(float_unet, id, tmp_path / "expected"), tensors)["out_sample"]
    made = quantized(float_unet, id)
    assert off(right, run(made, tensors)["out_sample"]) < 1e-4
    assert off(right, run(made, tensors, "openvino")["out_sample"]) < 1e-4
    assert off(right, run(float_unet, tensors)["out_sample"]) > 1e-3, "rounding changes something"


@pytest.mark.parametrize("id", IDS)
def test_the_file_is_valid_onnx(float_unet: Component, quantized: Quantize, id: str) -> None:
    onnx.checker.check_model(str(quantized(float_unet, id).graph_path))


def test_what_is_kept_is_the_sources_own_number(float_unet: Component, quantized: Quantize) -> None:
    given = load_file(float_unet.root / float_unet.weights[0].path)
    for id in ("int8-weights", "int4-weights:group=32,symmetric=no"):
        made = quantized(float_unet, id)
        stored = load_file(made.root / made.weights[0].path)
        for name in [*(f"{k}.weight" for k in made.precision["kept"]), "conv_in.bias", "conv_norm_out.weight"]:
            assert stored[name].dtype == given[name].dtype
            assert (stored[name] == given[name]).all(), name


def test_the_proof_is_of_what_lies_on_the_disk(float_unet: Component, quantized: Quantize) -> None:
    made = quantized(float_unet, "int8-weights")
    proof = made.proof["weights"]
    tensors = read_header(made.root / made.weights[0].path)
    assert proof["tensors"] == len(tensors)
    assert proof["quantized"] == LINEARS + CONVS
    assert 40 < proof["snr_db"] < 50
    assert made.proof["numeric"] == "not run"
    assert made.proof["graph"] == float_unet.proof["graph"]
    again = quantized(float_unet, "int8-weights:group=64").proof["weights"]
    assert again["sha256"] != proof["sha256"]
    assert again["snr_db"] > proof["snr_db"], "in groups less is lost"


def test_the_same_source_gives_the_same_bytes(float_encoder: Component, tmp_path: Path) -> None:
    made = [quantize_weights(float_encoder, recipe("int4-weights"), tmp_path / n) for n in ("one", "two")]
    assert made[0].weights == made[1].weights
    assert made[0].graph_path.read_bytes() == made[1].graph_path.read_bytes()


def test_its_file_is_smaller_by_what_the_recipe_says(float_unet: Component, quantized: Quantize) -> None:
    """The source is in float16: a quarter of float32 is half of that."""
    whole = float_unet.weights[0].bytes
    share = {id: quantized(float_unet, id).weights[0].bytes / whole for id in IDS}
    assert 0.5 < share["int8-weights"] < 0.6
    assert share["int4-weights"] < share["int4-weights:group=32"] < 0.42
    assert share["int4-weights"] < share["int4-weights:convs=int8"] < share["int8-weights"]


def test_progress_tells_each_tensor(float_encoder: Component, tmp_path: Path) -> None:
    events: list[Event] = []
    quantize_weights(float_encoder, recipe("int8-weights"), tmp_path, events.append)
    assert {e.stage for e in events} == {"quantize text_encoder"}
    assert [e.done for e in events] == list(range(events[0].total))


def tampered(path: Path, entries: dict[str, Any], name: str) -> None:
    data = bytearray(path.read_bytes())
    data[entries[name].offset + entries[name].length // 2] ^= 1
    path.write_bytes(data)


def test_a_disk_that_changes_a_byte_is_caught(tmp_path: Path) -> None:
    import hashlib

    tensors = {"a": np.arange(6, dtype=np.float32), "b.scale": np.ones(3, np.float32), "c": np.arange(9, dtype=np.int8)}
    path = tmp_path / "model.safetensors"
    kinds = {"float32": "F32", "int8": "I8"}
    with SafetensorsWriter(path, {n: (kinds[t.dtype.name], t.shape) for n, t in tensors.items()}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    digests = {n: hashlib.sha256(t.tobytes()).hexdigest() for n, t in tensors.items()}
    assert prove_written(path, writer.entries, digests)["tensors"] == 3
    whole = path.read_bytes()
    for name in tensors:
        tampered(path, writer.entries, name)
        with pytest.raises(ProofFailed, match=rf"Weight {name} in .* is not what was written.*disk"):
            prove_written(path, writer.entries, digests)
        path.write_bytes(whole)
    with pytest.raises(ProofFailed, match="Weight a "):
        prove_written(path, writer.entries, digests | {"a": digests["c"]})


MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, save
from vitrify.core.artifact import Component, WeightFile
from vitrify.core.safetensors_writer import SafetensorsWriter
from vitrify.core.tensors import DType, TensorSpec
from vitrify.export.quantize import quantize_weights
from vitrify.quant.recipes import recipe

root, id, side, layers = Path(sys.argv[1]), sys.argv[2], 2048, 24
names = [f"layers.{i}.weight" for i in range(layers)]
rng = np.random.default_rng(0)
(root / "made").mkdir()
with SafetensorsWriter(root / "made/weights.safetensors", {n: ("F32", (side, side)) for n in names}) as writer:
    for name in names:
        writer.write(name, rng.standard_normal((side, side), dtype=np.float32))
initializers = []
for name, entry in writer.entries.items():
    tensor = TensorProto(name=name, dims=entry.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", entry.file.name), ("offset", entry.offset), ("length", entry.length)):
        tensor.external_data.add(key=key, value=str(value))
    initializers.append(tensor)
nodes = [
    helper.make_node("Gemm", ["x" if i == 0 else f"h{i}", n], ["y" if i == layers - 1 else f"h{i + 1}"], transB=1)
    for i, n in enumerate(names)
]
spec = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", side])
model = helper.make_model(helper.make_graph(nodes, "made", [spec("x")], [spec("y")], initializers))
save(model, str(root / "made/model.onnx"))
size = (root / "made/weights.safetensors").stat().st_size
ours = TensorSpec(DType.FLOAT32, ("rows", side))
files = (WeightFile("made/weights.safetensors", size),)
given = Component("made", "onnx", "made/model.onnx", {"x": ours}, {"y": ours}, files, root=root)

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = memory("VmRSS")
made = quantize_weights(given, recipe(id), root / "out")
print(json.dumps([size, side * side * 4, memory("VmHWM") - before, made.precision["layers"]]))
"""


@pytest.mark.parametrize(
    "id", ["int8-weights", pytest.param("int4-weights:group=32,symmetric=no", marks=pytest.mark.slow)]
)
def test_memory_is_that_of_the_largest_tensor_and_not_of_the_model(
    python: Callable[..., Any], tmp_path: Path, id: str
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc, which tells a process its peak")
    done = python(MEMORY, tmp_path, id)
    assert done.code == 0, done.err
    model, largest, grown, layers = done.json
    assert layers == 24
    assert model > 400_000_000
    assert grown < model / 2
    assert grown < 10 * largest


def refused(what: str, *arguments: Any) -> BadInput:
    with pytest.raises(BadInput, match=what) as caught:
        quantize_weights(*arguments)
    assert caught.value.fix
    return caught.value


def test_what_is_quantized_already_is_refused(float_unet: Component, quantized: Quantize, tmp_path: Path) -> None:
    for id, kind in (("int8-weights", "int8"), ("int4-weights", "int4")):
        error = refused(
            rf"unet is quantized already: .* is {kind}", quantized(float_unet, id), recipe("int8-weights"), tmp_path
        )
        assert "vitrify export" in error.fix


def test_layers_that_are_named_are_kept(float_unet: Component, quantized: Quantize, tmp_path: Path) -> None:
    made = quantize_weights(float_unet, recipe("int8-weights:keep=mid_block.*+*.to_q"), tmp_path)
    before = set(quantized(float_unet, "int8-weights").precision["kept"])
    asked = set(made.precision["kept"]) - before
    assert {n for n in asked if n.startswith("mid_block.")}
    assert {n for n in asked if n.endswith(".to_q")}
    assert all(n.startswith("mid_block.") or n.endswith(".to_q") for n in asked)
    scaled = {n.removesuffix(".weight.scale") for n in read_header(made.root / made.weights[0].path)}
    assert not [n for n in scaled if n.startswith("mid_block.") and n in asked]
    assert made.precision["layers"] == LINEARS + CONVS - len(asked)


def test_a_full_disk_is_told(small_disk: Callable[[int], Path], float_unet: Component) -> None:
    with pytest.raises(DiskError, match="full"):
        quantize_weights(float_unet, recipe("int8-weights"), small_disk(1_000_000))
