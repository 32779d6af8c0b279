"""PyTorch components that are refused: damaged files, other weights than the manifest names, what cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")

from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, UsageError  # noqa: E402
from vitrify.core.safetensors_header import TensorEntry, read_header  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.runtimes.torch.quantized import NF4_STATE  # noqa: E402

NF4, INT8, INT4 = "nf4-weights", "int8-weights", "int4-weights"
Call = Callable[..., Any]


def weights_file(component: Component) -> Path:
    (weight,) = component.weights
    return component.root / weight.path


def quantized(component: Component, weights: dict[str, np.ndarray]) -> list[str]:
    kept = component.precision["kept"]
    return [n for n, v in weights.items() if v.ndim > 1 and n.removesuffix(".weight") not in kept]


@pytest.mark.parametrize(("given", "said"), [(None, NF4), (NF4, None), (INT8, NF4), (NF4, INT4)])
def test_other_weights_than_the_manifest_names_are_refused(
    both: dict[str, Any], tmp_path: Path, given: str | None, said: str | None, written: Call, opened: Call
) -> None:
    source = both["vit"].components["onnx"]
    made, other = written(source, tmp_path / "a", given), written(source, tmp_path / "b", said)
    with pytest.raises(BadArtifact, match=r"shall have \d+ layers in \w+; its files have"):
        opened(replace(made, precision=other.precision))


def changed(component: Component, change: Callable[[dict[str, np.ndarray]], object]) -> Component:
    path = weights_file(component)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return component


def test_one_layer_in_float_is_refused(both: dict[str, Any], tmp_path: Path, written: Call, opened: Call) -> None:
    model = both["vit"]
    made = written(model.components["onnx"], tmp_path, INT4)
    key = next(n for n in read_header(weights_file(made)) if n.endswith(".scale")).removesuffix(".scale")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop(f"{key}.scale")
        tensors[key] = model.module.state_dict()[key].numpy()

    layers = made.precision["layers"]
    with pytest.raises(BadArtifact, match=rf"shall have {layers} layers in int4; its files have {layers - 1} in int4"):
        opened(changed(made, change))


Q = "vit.layers.0.attention.q_proj"


def cut(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.update({name: tensors[name][:-1]})


def lose(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda tensors: tensors.update({name: make(tensors[name])})


def other_groups(said: np.ndarray) -> np.ndarray:
    return np.frombuffer(bytes(said).replace(b'"blocksize": 64', b'"blocksize": 48'), np.uint8)


DAMAGES = {
    "a bias": (NF4, lose(f"{Q}.bias"), r"lack .*\.bias"),
    "absmax": (NF4, cut(f"{Q}.weight.absmax"), "absmax is F32"),
    "packed": (NF4, cut(f"{Q}.weight"), "weight is U8"),
    "levels": (NF4, put(f"{Q}.weight.quant_map", lambda a: a[::-1].copy()), "does not hold the levels"),
    "groups": (NF4, put(f"{Q}.{NF4_STATE}", other_groups), "is described as"),
    "no JSON": (NF4, put(f"{Q}.{NF4_STATE}", np.zeros_like), "is not bitsandbytes'"),
    "int8's scale": (INT8, cut(f"{Q}._weight_scale"), r"_weight_zero_point is I8"),
    "int8's blocks": (INT8, put(f"{Q}._weight_scale", lambda a: a.reshape(8, 8)), r"_weight_zero_point is I8"),
    "int8's zeros": (INT8, lose(f"{Q}._weight_zero_point"), r"lack .*_weight_zero_point"),
    "int8's values": (INT8, put(f"{Q}._weight_qdata", lambda a: a.view(np.uint8)), "_weight_qdata is U8"),
    "int4's scale": (INT4, put(f"{Q}.weight.scale", lambda a: a.repeat(3, 1)), r"expected \[64, groups\]"),
    "int4's values": (INT4, cut(f"{Q}.weight"), "weight is U8"),
}


def test_scales_that_divide_nothing_are_refused(
    both: dict[str, Any], tmp_path: Path, written: Call, opened: Call
) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, INT8)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}._weight_scale"] = np.ones((64, 3), np.float32)
        tensors[f"{Q}._weight_zero_point"] = np.zeros((64, 3), np.int8)

    with pytest.raises(BadArtifact, match=r"_weight_scale has shape \[64, 3\], which divides no \[64, 64\]"):
        opened(changed(made, change))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tensor_is_refused(
    both: dict[str, Any], tmp_path: Path, damage: str, written: Call, opened: Call
) -> None:
    quant, change, message = DAMAGES[damage]
    made = written(both["vit"].components["onnx"], tmp_path, quant)
    with pytest.raises(BadArtifact, match=message) as caught:
        opened(changed(made, change))
    assert caught.value.fix


@pytest.mark.parametrize("quant", [None, NF4, INT8, INT4])
def test_a_truncated_file_is_refused(
    both: dict[str, Any], tmp_path: Path, quant: str | None, written: Call, opened: Call
) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, quant)
    path = weights_file(made)
    data = path.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadArtifact, match=path.name):
            opened(made)


def test_a_config_of_another_module_is_refused(
    both: dict[str, Any], tmp_path: Path, written: Call, opened: Call
) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, NF4)
    config = json.loads(made.graph_path.read_text())
    for changes, message in (({"hidden_size": 32}, "expected"), ({"model_type": "nothing"}, "does not load")):
        made.graph_path.unlink()
        made.graph_path.write_text(json.dumps(config | changes))
        with pytest.raises(BadArtifact, match=message):
            opened(made)


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_quantized_weight_takes_no_override(
    both: dict[str, Any], tmp_path: Path, name: str, quant: str, written: Call, opened: Call, stands_for: Call
) -> None:
    model = both[name]
    made = written(model.components["onnx"], tmp_path, quant)
    weights = stands_for(model, made)
    few = quantized(made, weights)
    for key in few:
        with pytest.raises(BadInput, match=rf"{key}: the weight is stored in {made.precision['weights']}") as caught:
            opened(made, {key: np.zeros(weights[key].shape, np.float32)})
        assert "keep=" in caught.value.fix
    kept = f"{made.precision['kept'][0]}.weight" if name == "unet" else "classifier.weight"
    bias = few[0].replace(".weight", ".bias") if name == "vit" else "conv_out.bias"
    changes = {kept: weights[kept] * 2, bias: weights[bias] + 1}
    inputs = sample_inputs(made, made.details["checks"][0])
    expected = model.reference(inputs, weights | changes)
    for key, value in opened(made, changes).run(inputs).items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-4 * np.ptp(expected[key]))


MISSING = """
import sys
from pathlib import Path
sys.modules["bitsandbytes"] = sys.modules["torchao"] = None  # as if they were not installed
from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.errors import MissingDependency
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
for root in sys.argv[1:]:
    try:
        load_runtime("torch").open(Artifact.load(Path(root)).components["it"], Device("cpu"), Options())
    except MissingDependency as exc:
        print(exc.what, exc.fix)
"""


def test_a_missing_library_is_told(both: dict[str, Any], python: Call, tmp_path: Path, written: Call) -> None:
    for quant in (NF4, INT8):
        made = written(both["vit"].components["onnx"], tmp_path / quant, quant)
        told = {"architecture": "it", "source": "here"}, {"family": "it", "tasks": []}
        Artifact(tmp_path / quant, "id", *told, {"it": made}).save()
    ran = python(MISSING, tmp_path / NF4, tmp_path / INT8)
    for line, library in zip(ran.out.splitlines(), ("bitsandbytes", "torchao"), strict=True):
        assert f"need {library}" in line, ran.err
        assert 'pip install "vitrify[torch]"' in line


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
def test_a_weight_that_is_no_number_is_refused(wide: Call, tmp_path: Path, quant: str, written: Call) -> None:
    model = wide("unet")
    entry: TensorEntry = model.entries["mid_block.resnets.0.conv1.weight"]
    path = model.components["onnx"].graph_path.parent / entry.file.name
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(BadInput, match="NaN"):
        written(model.components["onnx"], tmp_path, quant)


def test_what_cannot_be_written_says_why(both: dict[str, Any], wide: Call, tmp_path: Path, written: Call) -> None:
    source = both["vit"].components["onnx"]
    with pytest.raises(UsageError, match=r"no groups of 16\. Groups are 32, 64"):
        written(source, tmp_path, "nf4-weights:group=16")
    with pytest.raises(BadInput, match="no layer"):
        written(source, tmp_path, "int8-weights:keep=*")
    with pytest.raises(BadInput, match="does not say which module"):
        written(replace(source, details={}), tmp_path, NF4)
    model = wide("vit")
    bare = model.components["onnx"]
    config = bare.graph_path.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 0}))
    with pytest.raises(BadInput, match="describes another module"):
        written(bare, tmp_path, NF4)
    config.unlink()
    with pytest.raises(BadInput, match="does not say which module"):
        written(bare, tmp_path, NF4)
