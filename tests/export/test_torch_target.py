"""PyTorch modules with weights in 8 and 4 bits: what their file holds, and that the runtime computes with just that."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
for library in ("diffusers", "bitsandbytes", "torchao"):
    pytest.importorskip(library, reason="needs vitrify[torch]")
ir = pytest.importorskip("onnx_ir", reason="needs vitrify[export]")

from safetensors import safe_open  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from vitrify.core.artifact import Artifact, Component, WeightFile, hash_file  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, UsageError  # noqa: E402
from vitrify.core.safetensors_header import TensorEntry, read_header, read_tensor  # noqa: E402
from vitrify.export.torch_target import find_layers, write_torch  # noqa: E402
from vitrify.proof.numeric import compared  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.quant.weights import NF4_LEVELS  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.torch import RUNTIME  # noqa: E402
from vitrify.runtimes.torch.quantized import NF4_STATE, layers_of  # noqa: E402

NF4, INT8, INT4 = "nf4-weights", "int8-weights", "int4-weights"
RECIPES = (NF4, "nf4-weights:group=32", INT8, "int8-weights:group=32,symmetric=no", INT4, "int4-weights:convs=int8",
           "int4-weights:group=32,symmetric=no")  # fmt: skip
SUBCLASSES = ("Params4bit", "IntxUnpackedToInt8Tensor")  # of the tensors that bitsandbytes and torchao compute with


def _traced(architecture: Any, changes: dict[str, Any], folder: Path) -> Any:
    """The architecture with other sizes, so large that its layers are worth quantizing."""
    from vitrify.export.graph import graph_from_module

    config = architecture.config | changes
    ir.save(graph_from_module(architecture.spec, config), folder / "model.onnx")
    return replace(architecture, config=config, graph=folder / "model.onnx")


@pytest.fixture(scope="module")
def wide(
    vit: Any, unet: Any, checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """wide("vit" or "unet", dtype) makes a checkpoint whose artifact has its config.json beside the graph.

    The ViT's rows hold whole groups of 64, the UNet's (48 in a linear layer, 432 in a convolution) do not.
    """
    made = {
        "vit": _traced(vit, {"hidden_size": 64, "intermediate_size": 128}, tmp_path_factory.mktemp("vit")),
        "unet": _traced(unet, {"block_out_channels": [48]}, tmp_path_factory.mktemp("unet")),
    }

    def make(name: str, dtype: str = "float32") -> Any:
        model = checkpoint(made[name], dtype)
        shutil.copy(model.source / "config.json", model.components["onnx"].graph_path.parent)
        return model

    return make


@pytest.fixture(scope="module")
def both(wide: Callable[..., Any]) -> dict[str, Any]:
    """For reading only."""
    return {name: wide(name) for name in ("vit", "unet")}


def written(component: Component, root: Path, quant: str | None) -> Component:
    return write_torch(component, root, recipe=None if quant is None else recipe(quant))


def opened(component: Component, overrides: dict[str, np.ndarray] | None = None) -> Any:
    return RUNTIME.open(component, Device("cpu"), Options(), overrides)


def weights_file(component: Component) -> Path:
    (weight,) = component.weights
    return component.root / weight.path


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Every weight of a file in float32, unpacked by plain arithmetic."""
    tensors = {n: read_tensor(e, "float32" if "F" in e.dtype else None) for n, e in read_header(path).items()}
    out = {}
    for name in [n for n in tensors if n.endswith(NF4_STATE)]:
        layer = name.removesuffix(f".{NF4_STATE}")
        said = json.loads(bytes(tensors.pop(name)))
        packed, levels = tensors.pop(f"{layer}.weight").reshape(-1), tensors.pop(f"{layer}.weight.quant_map")
        np.testing.assert_allclose(levels, NF4_LEVELS, atol=1e-7)
        values = NF4_LEVELS[np.stack([packed >> 4, packed & 15], -1).reshape(-1)]
        scales = np.repeat(tensors.pop(f"{layer}.weight.absmax"), said["blocksize"])[: values.size]
        out[f"{layer}.weight"] = (values * scales).reshape(said["shape"])
    for name in [n for n in tensors if n.endswith("._weight_qdata")]:
        layer = name.removesuffix("._weight_qdata")
        values = tensors.pop(name).astype(np.float32)
        scale, zero = (tensors.pop(f"{layer}._weight_{k}").astype(np.float32) for k in ("scale", "zero_point"))
        for axis, (size, blocks) in enumerate(zip(values.shape, scale.shape, strict=True)):
            scale, zero = (np.repeat(a, size // blocks, axis) for a in (scale, zero))
        out[f"{layer}.weight"] = (values - zero) * scale
    for name in [n for n in tensors if n.endswith(".weight.scale")]:
        key = name.removesuffix(".scale")
        packed, scale = tensors.pop(key), tensors.pop(name)
        values = np.stack([packed & 15, packed >> 4], -1).astype(np.int8)
        values = np.where(values > 7, values - 16, values).reshape(*scale.shape, -1).astype(np.float32)
        zero = tensors.pop(f"{key}.zero_point", np.zeros(scale.shape)).astype(np.float32)
        out[key] = (values - zero[..., None]) * scale[..., None]
    return out | tensors


def stands_for(model: Any, component: Component) -> dict[str, np.ndarray]:
    """The float32 weights that a component's file stands for, in the shapes of the module."""
    shapes = {n: t.shape for n, t in model.module.state_dict().items()}
    return {n: v.reshape(shapes[n]) for n, v in decoded(weights_file(component)).items()}


def quantized(component: Component, weights: dict[str, np.ndarray]) -> list[str]:
    kept = component.precision["kept"]
    return [n for n, v in weights.items() if v.ndim > 1 and n.removesuffix(".weight") not in kept]


@pytest.mark.parametrize("quant", RECIPES)
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_session_computes_with_what_the_file_stands_for(
    both: dict[str, Any], tmp_path: Path, name: str, quant: str
) -> None:
    """In float32: bfloat16 arithmetic, or a scale that belongs to the next row, would be far off."""
    model = both[name]
    made = written(model.components["onnx"], tmp_path, quant)
    plain, few = model.module.state_dict(), stands_for(model, made)
    assert set(few) == set(model.entries)
    noise, power = 0.0, 0.0
    for key in quantized(made, few):
        noise += float(np.square(few[key] - plain[key].numpy(), dtype=np.float64).sum())
        power += float(np.square(plain[key].numpy(), dtype=np.float64).sum())
    snr = 10 * np.log10(power / noise)
    assert made.proof["weights"]["snr_db"] == pytest.approx(snr, abs=0.01)
    low, high = {"nf4": (20, 22), "int8": (40, 50), "int4": (19, 26)}[made.precision["weights"]]
    assert low < snr < high
    session = opened(made)
    for check, sizes in enumerate(made.details["checks"]):
        inputs = sample_inputs(made, sizes, seed=check)
        expected, in_float = model.reference(inputs, few), model.reference(inputs)
        for key, value in session.run(inputs).items():
            spread = float(np.ptp(expected[key]))
            np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-4 * spread)
            assert np.abs(value - in_float[key]).max() > 2e-4 * spread, "the float weights would pass as well"


@pytest.mark.parametrize("quant", RECIPES)
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_every_layer_that_is_not_kept_is_quantized(both: dict[str, Any], tmp_path: Path, name: str, quant: str) -> None:
    model = both[name]
    made = written(model.components["onnx"], tmp_path, quant)
    session = opened(made)
    few = {
        n: m
        for n, m in session._module.module.named_modules()
        if hasattr(m, "parametrizations") or type(getattr(m, "weight", None)).__name__ in SUBCLASSES
    }
    wanted = {
        n
        for n, m in model.module.named_modules()
        if type(m) in (torch.nn.Linear, torch.nn.Conv2d) and m.weight.numel() >= 4096 and not recipe(quant).kept(n)
    }
    assert set(few) == wanted
    assert len(wanted) == made.precision["layers"] == made.proof["weights"]["quantized"]
    assert not wanted & set(made.precision["kept"])
    stored = made.precision["weights"]
    words = "int4 and int8" if quant.endswith("convs=int8") and name == "unet" else stored
    assert str(session.placement) == f"torch eager on cpu, float32 over {words}"
    # what is in memory is what is in the file: neither kept nor cached in float32
    private = sum(t.numel() * t.element_size() for m in few.values() for t in _tensors(m))
    elements = sum(model.module.get_submodule(n).weight.numel() for n in wanted)
    assert private / elements < {"nf4": 0.66, "int8": 1.3, "int4": 0.8 if words == stored else 1.1}[stored]


def _tensors(module: Any) -> list[Any]:
    if not hasattr(module, "parametrizations"):
        weight = module.weight
        if hasattr(weight, "qdata"):
            return [weight.qdata, weight.scale, weight.zero_point]
        return [weight, weight.quant_state.absmax]
    few = module.parametrizations.weight
    state = getattr(few[0], "_state", None)
    found = [few[0]._scale, few[0]._zeros] if state is None else [state.absmax]
    return [few.original, *(t for t in found if t is not None)]


@pytest.mark.parametrize(("quant", "least", "share"), [(NF4, 12, 0.2), (INT8, 35, 0.3), (INT4, 12, 0.21)])
def test_the_built_in_unet(diffusion_artifact: Path, tmp_path: Path, quant: str, least: float, share: float) -> None:
    source = Artifact.load(diffusion_artifact).components["unet"]
    made = written(source, tmp_path, quant)
    found, _ = compared(made, source, made.details["checks"])
    assert all(p.snr_db > least for p in found)
    elements = sum(e.elements for e in read_header(source.root / source.weights[0].path).values())
    assert made.weights[0].bytes < share * 4 * elements
    assert made.precision["layers"] > 60
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= set(made.precision["kept"])


FRESH = """
import sys
from pathlib import Path
import numpy as np
from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.registry import load_runtime
from vitrify.proof.parity import sample_inputs
from vitrify.runtimes.base import Options
component = Artifact.load(Path(sys.argv[1]), checksums=True).components["it"]
session = load_runtime("torch").open(component, Device("cpu"), Options(threads=1))
np.savez(sys.argv[2], **session.run(sample_inputs(component, component.details["checks"][0])))
"""


@pytest.mark.parametrize("quant", [None, NF4, INT8, INT4])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_new_process_computes_the_same(
    both: dict[str, Any], python: Callable[..., Any], tmp_path: Path, name: str, quant: str | None
) -> None:
    root = tmp_path / "artifact"
    made = written(both[name].components["onnx"], root, quant)
    told = {"architecture": "it", "source": "here"}, {"family": "it", "tasks": []}
    Artifact(root, "id", *told, {"it": made}).with_hashes().save()
    ran = python(FRESH, root, tmp_path / "out.npz")
    assert (ran.code, ran.err) == (0, ""), ran.err
    session = RUNTIME.open(made, Device("cpu"), Options(threads=1))
    with np.load(tmp_path / "out.npz") as out:
        for key, value in session.run(sample_inputs(made, made.details["checks"][0])).items():
            np.testing.assert_array_equal(out[key], value)


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_in_half_precision(wide: Callable[..., Any], tmp_path: Path, dtype: str, quant: str) -> None:
    model = wide("vit", dtype)
    made = written(model.components["onnx"], tmp_path, quant)
    inputs = sample_inputs(made, made.details["checks"][0])
    expected = model.reference(inputs, stands_for(model, made))
    for key, value in opened(made).run(inputs).items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-4 * np.ptp(expected[key]))


# in float -------------------------------------------------------------------------------------------------------------


def test_float_weights_are_linked_where_their_names_are_the_modules(both: dict[str, Any], tmp_path: Path) -> None:
    source = both["unet"].components["onnx"]
    made = written(source, tmp_path, None)
    assert (made.format, made.graph, made.weights) == ("torch", "unet/config.json", source.weights)
    assert weights_file(made).samefile(source.root / source.weights[0].path)
    assert made.proof == {"graph": "not run", "weights": source.proof["weights"], "numeric": "not run"}
    assert str(opened(made).placement) == "torch eager on cpu, float32"


def test_float_weights_are_copied_where_they_are_not(both: dict[str, Any], tmp_path: Path) -> None:
    """transformers names a ViT's layers otherwise in files than in modules."""
    model = both["vit"]
    made = written(model.components["onnx"], tmp_path, None)
    entries = read_header(weights_file(made))
    assert set(entries) == set(model.entries) != {e.name for e in model.entries.values()}
    for name, entry in model.entries.items():
        assert read_tensor(entries[name]).tobytes() == read_tensor(entry).tobytes()
    assert made.proof["weights"]["tensors"] == len(entries)
    inputs = sample_inputs(made, made.details["checks"][1])
    for key, value in opened(made).run(inputs).items():
        np.testing.assert_allclose(value, model.reference(inputs)[key], rtol=0, atol=1e-6)


def test_what_a_component_does_not_use_is_not_asked_for(diffusion_artifact: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    for name, unused in (
        ("vae_decoder", ["encoder.", "quant_conv."]),
        ("vae_encoder", ["decoder.", "post_quant_conv."]),
    ):
        source = artifact.components[name]
        made = written(source, tmp_path, None)
        assert made.details["unused"] == unused
        found, _ = compared(made, source, made.details["checks"])
        assert all(p.passed for p in found)


# others read it -------------------------------------------------------------------------------------------------------


def test_bitsandbytes_reads_its_layers(both: dict[str, Any], tmp_path: Path) -> None:
    import bitsandbytes as bnb

    made = written(both["vit"].components["onnx"], tmp_path, NF4)
    tensors = {n: torch.from_numpy(t) for n, t in load_file(weights_file(made)).items()}
    expected, count = decoded(weights_file(made)), 0
    for name in [n for n in tensors if n.endswith(NF4_STATE)]:
        key = name.removesuffix(NF4_STATE.removeprefix("weight"))
        stats = {n.removeprefix(f"{key}."): t for n, t in tensors.items() if n.startswith(f"{key}.")}
        # a copy: it takes the description out
        weight = bnb.nn.Params4bit.from_prequantized(tensors[key], dict(stats), device="cpu")
        own = weight.quant_state.as_dict(packed=True)
        assert {n: t.numpy().tobytes() for n, t in own.items()} == {n: t.numpy().tobytes() for n, t in stats.items()}
        plain = bnb.functional.dequantize_4bit(weight.data, weight.quant_state).numpy()
        np.testing.assert_allclose(plain, expected[key], rtol=1e-6)
        count += 1
    assert count == made.precision["layers"]


def test_torchao_reads_its_layers(both: dict[str, Any], tmp_path: Path) -> None:
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    for name, model in both.items():
        made = written(model.components["onnx"], tmp_path / name, INT8)
        with safe_open(weights_file(made), "pt") as file:
            tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
        state, left = support.unflatten_tensor_state_dict(tensors, metadata)
        assert not left
        expected = decoded(weights_file(made))
        assert set(state) == set(expected)
        few = {n: t for n, t in state.items() if hasattr(t, "dequantize") and hasattr(t, "qdata")}
        assert len(few) == made.precision["layers"]
        for key, tensor in few.items():
            np.testing.assert_allclose(tensor.dequantize().numpy(), expected[key], rtol=1e-6)


# what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "said"), [(None, NF4), (NF4, None), (INT8, NF4), (NF4, INT4)])
def test_other_weights_than_the_manifest_names_are_refused(
    both: dict[str, Any], tmp_path: Path, given: str | None, said: str | None
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


def test_one_layer_in_float_is_refused(both: dict[str, Any], tmp_path: Path) -> None:
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


def test_scales_that_divide_nothing_are_refused(both: dict[str, Any], tmp_path: Path) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, INT8)

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{Q}._weight_scale"] = np.ones((64, 3), np.float32)
        tensors[f"{Q}._weight_zero_point"] = np.zeros((64, 3), np.int8)

    with pytest.raises(BadArtifact, match=r"_weight_scale has shape \[64, 3\], which divides no \[64, 64\]"):
        opened(changed(made, change))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tensor_is_refused(both: dict[str, Any], tmp_path: Path, damage: str) -> None:
    quant, change, message = DAMAGES[damage]
    made = written(both["vit"].components["onnx"], tmp_path, quant)
    with pytest.raises(BadArtifact, match=message) as caught:
        opened(changed(made, change))
    assert caught.value.fix


@pytest.mark.parametrize("quant", [None, NF4, INT8, INT4])
def test_a_truncated_file_is_refused(both: dict[str, Any], tmp_path: Path, quant: str | None) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, quant)
    path = weights_file(made)
    data = path.read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadArtifact, match=path.name):
            opened(made)


def test_a_config_of_another_module_is_refused(both: dict[str, Any], tmp_path: Path) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, NF4)
    config = json.loads(made.graph_path.read_text())
    for changes, message in (({"hidden_size": 32}, "expected"), ({"model_type": "nothing"}, "does not load")):
        made.graph_path.unlink()
        made.graph_path.write_text(json.dumps(config | changes))
        with pytest.raises(BadArtifact, match=message):
            opened(made)


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_quantized_weight_takes_no_override(both: dict[str, Any], tmp_path: Path, name: str, quant: str) -> None:
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
sys.modules[sys.argv[2]] = None  # as if it were not installed
from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.errors import MissingDependency
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
try:
    load_runtime("torch").open(Artifact.load(Path(sys.argv[1])).components["it"], Device("cpu"), Options())
except MissingDependency as exc:
    print(exc.what, exc.fix)
"""


@pytest.mark.parametrize(("quant", "library"), [(NF4, "bitsandbytes"), (INT8, "torchao")])
def test_a_missing_library_is_told(
    both: dict[str, Any], python: Callable[..., Any], tmp_path: Path, quant: str, library: str
) -> None:
    made = written(both["vit"].components["onnx"], tmp_path, quant)
    told = {"architecture": "it", "source": "here"}, {"family": "it", "tasks": []}
    Artifact(tmp_path, "id", *told, {"it": made}).save()
    ran = python(MISSING, tmp_path, library)
    assert f"need {library}" in ran.out, ran.err
    assert 'pip install "vitrify[torch]"' in ran.out


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
def test_a_weight_that_is_no_number_is_refused(wide: Callable[..., Any], tmp_path: Path, quant: str) -> None:
    model = wide("unet")
    entry: TensorEntry = model.entries["mid_block.resnets.0.conv1.weight"]
    path = model.components["onnx"].graph_path.parent / entry.file.name
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(BadInput, match="NaN"):
        written(model.components["onnx"], tmp_path, quant)


def test_what_cannot_be_written_says_why(both: dict[str, Any], wide: Callable[..., Any], tmp_path: Path) -> None:
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


def test_a_row_without_groups_gets_8_bits() -> None:
    """One scale for a whole channel would lose too much in 4."""
    module = torch.nn.ModuleDict({"whole": torch.nn.Linear(64, 128), "odd": torch.nn.Linear(40, 128)})
    weights = {f"{n}.weight": TensorEntry("", "F32", tuple(m.weight.shape), 0, 0, Path()) for n, m in module.items()}
    found = {r.name: (r.kind, r.group) for r in find_layers(layers_of(module), weights, recipe(INT4))}
    assert found == {"whole": ("int4", 64), "odd": ("int8", 0)}


def test_a_shared_weight_is_not_quantized() -> None:
    module = torch.nn.ModuleDict({n: torch.nn.Linear(64, 64) for n in "abc"})
    module["b"].weight = module["a"].weight
    assert list(layers_of(module)) == ["c"]


def test_progress_and_files(both: dict[str, Any], tmp_path: Path) -> None:
    events: list[Any] = []
    source = both["unet"].components["onnx"]
    made = write_torch(source, tmp_path, recipe=recipe(NF4), report=events.append)
    assert [e.done for e in events if e.total] == list(range(len(both["unet"].entries)))
    path = weights_file(made)
    assert made.weights == (WeightFile("unet/model.safetensors", path.stat().st_size, hash_file(path)),)
    assert sorted(p.name for p in (tmp_path / "unet").iterdir()) == ["config.json", "model.safetensors"]
    kinds = Counter(e.dtype for e in read_header(weights_file(made)).values())
    assert kinds["U8"] == 2 * made.precision["layers"]
    with safe_open(weights_file(made), "np") as file:
        assert file.metadata() == {"format": "pt", "recipe": NF4}
