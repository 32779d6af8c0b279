"""PyTorch modules with weights in 8 and 4 bits: what their file holds, and that the runtime computes with just that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")

from vitrify.core.artifact import Artifact, Component, WeightFile, hash_file  # noqa: E402
from vitrify.core.safetensors_header import TensorEntry, read_header, read_tensor  # noqa: E402
from vitrify.export.torch_target import find_layers, write_torch  # noqa: E402
from vitrify.proof.numeric import compared  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.runtimes.torch.quantized import NF4_STATE, layers_of  # noqa: E402

NF4, INT8, INT4 = "nf4-weights", "int8-weights", "int4-weights"
RECIPES = (NF4, "nf4-weights:group=32", INT8, "int8-weights:group=32,symmetric=no", INT4, "int4-weights:convs=int8",
           "int4-weights:group=32,symmetric=no")  # fmt: skip
SUBCLASSES = ("Params4bit", "IntxUnpackedToInt8Tensor")  # of the tensors that bitsandbytes and torchao compute with
Call = Callable[..., Any]


def weights_file(component: Component) -> Path:
    (weight,) = component.weights
    return component.root / weight.path


def quantized(component: Component, weights: dict[str, np.ndarray]) -> list[str]:
    kept = component.precision["kept"]
    return [n for n, v in weights.items() if v.ndim > 1 and n.removesuffix(".weight") not in kept]


@pytest.mark.parametrize("quant", RECIPES)
@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_session_computes_with_what_the_file_stands_for(
    both: dict[str, Any], tmp_path: Path, name: str, quant: str, written: Call, opened: Call, stands_for: Call
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
def test_every_layer_that_is_not_kept_is_quantized(
    both: dict[str, Any], tmp_path: Path, name: str, quant: str, written: Call, opened: Call
) -> None:
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
def test_the_built_in_unet(
    diffusion_artifact: Path, tmp_path: Path, quant: str, least: float, share: float, written: Call
) -> None:
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
for root in sorted(Path(sys.argv[1]).iterdir()):
    component = Artifact.load(root, checksums=True).components["it"]
    session = load_runtime("torch").open(component, Device("cpu"), Options(threads=1))
    np.savez(root / "out.npz", **session.run(sample_inputs(component, component.details["checks"][0])))
"""


def test_a_new_process_computes_the_same(
    both: dict[str, Any], python: Call, tmp_path: Path, written: Call, opened: Call
) -> None:
    made = {}
    for name, quant in product(both, (None, NF4, INT8, INT4)):
        root = tmp_path / f"{name}-{quant}"
        made[root] = written(both[name].components["onnx"], root, quant)
        told = {"architecture": "it", "source": "here"}, {"family": "it", "tasks": []}
        Artifact(root, "id", *told, {"it": made[root]}).with_hashes().save()
    ran = python(FRESH, tmp_path)
    assert (ran.code, ran.err) == (0, ""), ran.err
    for root, component in made.items():
        session = opened(component, threads=1)
        with np.load(root / "out.npz") as out:
            for key, value in session.run(sample_inputs(component, component.details["checks"][0])).items():
                np.testing.assert_array_equal(out[key], value, err_msg=root.name)


@pytest.mark.parametrize("quant", [NF4, INT8, INT4])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_in_half_precision(
    wide: Call, tmp_path: Path, dtype: str, quant: str, written: Call, opened: Call, stands_for: Call
) -> None:
    model = wide("vit", dtype)
    made = written(model.components["onnx"], tmp_path, quant)
    inputs = sample_inputs(made, made.details["checks"][0])
    expected = model.reference(inputs, stands_for(model, made))
    for key, value in opened(made).run(inputs).items():
        np.testing.assert_allclose(value, expected[key], rtol=0, atol=1e-4 * np.ptp(expected[key]))


def test_float_weights_are_linked_where_their_names_are_the_modules(
    both: dict[str, Any], tmp_path: Path, written: Call, opened: Call
) -> None:
    source = both["unet"].components["onnx"]
    made = written(source, tmp_path, None)
    assert (made.format, made.graph, made.weights) == ("torch", "unet/config.json", source.weights)
    assert weights_file(made).samefile(source.root / source.weights[0].path)
    assert made.proof == {"graph": "not run", "weights": source.proof["weights"], "numeric": "not run"}
    assert str(opened(made).placement) == "torch eager on cpu, float32"


def test_float_weights_are_copied_where_they_are_not(
    both: dict[str, Any], tmp_path: Path, written: Call, opened: Call
) -> None:
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


def test_what_a_component_does_not_use_is_not_asked_for(
    diffusion_artifact: Path, tmp_path: Path, written: Call
) -> None:
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


def test_bitsandbytes_reads_its_layers(both: dict[str, Any], tmp_path: Path, written: Call, decoded: Call) -> None:
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


def test_torchao_reads_its_layers(both: dict[str, Any], tmp_path: Path, written: Call, decoded: Call) -> None:
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
