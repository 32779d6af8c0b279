"""Low-rank branches beside layers whose weights are stored in few bits, on every runtime that opens such components."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.errors import BadInput, MissingDependency, UsageError
from vitrify.core.registry import load_runtime
from vitrify.core.safetensors_header import read_tensor
from vitrify.proof.parity import sample_inputs
from vitrify.quant.recipes import recipe
from vitrify.runtimes.base import Options
from vitrify.runtimes.low_rank import LowRank, Override, only_whole
from vitrify.runtimes.stored import stored_weights

from ..few_bits import wider

pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

RANK = 3
# what LoRAs change: attention, feed-forward, convolutions (one of them with a stride), projections
PARTS = ("attn", "ff.net", "proj_in", "proj_out", "resnets", "downsamplers")
CONFIG = {
    "block_out_channels": [32, 64], "cross_attention_dim": 32, "attention_head_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A runtime, the format of what it opens, and a recipe. slow: left to make test-slow."""

    runtime: str
    format: str
    quant: str
    libraries: tuple[str, ...] = ()
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.runtime} {self.format} {self.quant}"


TARGETS = [
    Target("onnx", "onnx", "int8-weights"),
    Target("onnx", "onnx", "int4-weights:group=32,convs=int4,symmetric=no", slow=True),
    Target("onnx", "onnx", "int8-dynamic"),
    Target("onnx", "onnx", "int8-static:samples=3", ("nncf",)),
    Target("onnx", "onnx", "int8-static:samples=3,smooth=0.5", ("nncf",), slow=True),
    Target("openvino", "onnx", "int8-weights", ("openvino",)),
    Target("openvino", "onnx", "int4-weights:group=32,convs=int4,symmetric=no", ("openvino",), slow=True),
    Target("openvino", "onnx", "int8-static:samples=3,smooth=0.5", ("openvino", "nncf"), slow=True),
    Target("openvino", "openvino", "int8-weights", ("openvino",), slow=True),
    Target("openvino", "openvino", "int8-static:samples=3", ("openvino", "nncf")),
    Target("openvino", "openvino", "nf4-weights", ("openvino",), slow=True),
    Target("torch", "torch", "int8-weights", ("torchao",)),
    Target("torch", "torch", "int4-weights:group=32,symmetric=no", ("torch",)),
    Target("torch", "torch", "nf4-weights", ("bitsandbytes",)),
]


def params(targets: Iterable[Target]) -> list[Any]:
    return [pytest.param(one, marks=pytest.mark.slow if one.slow else (), id=str(one)) for one in targets]


@pytest.fixture(scope="session")
def wide(unet: Any, checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Component:
    """A UNet whose layers are worth quantizing, in float32."""
    model = checkpoint(wider(unet, tmp_path_factory.mktemp("wide"), CONFIG))
    component: Component = model.components["onnx"]
    shutil.copy(model.source / "config.json", component.graph_path.parent)
    return component


@pytest.fixture(scope="session")
def compiled(wide: Component, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Target], Component]:
    """compiled(target): the UNet in that form, made once."""
    made: dict[tuple[str, str], Component] = {}

    def make(target: Target) -> Component:
        for library in target.libraries:
            pytest.importorskip(library, reason=f"{target.quant} on {target.runtime} needs it")
        key = (target.format, target.quant)
        if key not in made:
            again = target.format == "openvino" and not target.quant.startswith("nf4")
            source = make(replace(target, format="onnx")) if again else wide
            made[key] = _compiled(source, target, tmp_path_factory.mktemp("compiled"))
        return made[key]

    return make


def _compiled(source: Component, target: Target, root: Path) -> Component:
    wanted = recipe(target.quant)
    if target.format == "torch":
        from vitrify.export.torch_target import write_torch

        return write_torch(source, root, recipe=wanted)
    if target.format == "openvino":
        from vitrify.export.ir import write_ir

        return write_ir(source, root, recipe=wanted if wanted.weights == "nf4" else None)
    if wanted.calibrated:
        from vitrify.export.static import quantize_static

        samples = [sample_inputs(source, sizes(source), seed=n) for n in range(wanted.samples)]
        return quantize_static(source, wanted, samples, root)
    if wanted.name == "int8-dynamic":
        from vitrify.export.dynamic import quantize_dynamic

        return quantize_dynamic(source, wanted, root)
    from vitrify.export.quantize import quantize_weights

    return quantize_weights(source, wanted, root)


def sizes(component: Component) -> dict[str, int]:
    return component.details["checks"][1] | {"height": 16, "width": 24}


def factors(wide: Component) -> dict[str, LowRank]:
    """For each layer that a LoRA may change, a change as large as a third of its weight."""
    rng, out = np.random.default_rng(5), {}
    for name, weight in stored_weights(wide).items():
        if any(part in name for part in PARTS) and weight.entry is not None and weight.shape is not None:
            down = rng.standard_normal((RANK, *weight.shape[1:])).astype(np.float32)
            up = rng.standard_normal((weight.shape[0], RANK)).astype(np.float32)
            size = read_tensor(weight.entry, "float32").std() / 3 / np.sqrt(RANK)
            out[name] = LowRank(down, up * np.float32(size))
    return out


def merged(weight: np.ndarray, change: LowRank) -> np.ndarray:
    return weight + (change.up @ change.down.reshape(RANK, -1)).reshape(weight.shape)


def overrides(component: Component, wide: Component, changes: dict[str, LowRank]) -> dict[str, Override]:
    """Whole weights where the component has them in float, branches where it does not."""
    entries = {name: weight.entry for name, weight in stored_weights(component).items()}
    return {n: c if (e := entries[n]) is None else merged(read_tensor(e, "float32"), c) for n, c in changes.items()}


def run(target: Target | None, component: Component, changed: Any = None, **options: Any) -> np.ndarray:
    session = load_runtime(target.runtime if target else "onnx").open(
        component, Device("cpu"), Options(threads=1, **options), changed
    )
    result: np.ndarray = session.run(sample_inputs(component, sizes(component), seed=9))["out_sample"]
    return result


def decibels(given: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).mean() / np.square(given - expected).mean()))


@pytest.fixture(scope="session")
def expected(wide: Component) -> tuple[np.ndarray, np.ndarray]:
    """What the UNet gives in float32, as it is and with the changes merged into its weights."""
    plain, changed = run(None, wide), run(None, wide, overrides(wide, wide, factors(wide)))
    assert decibels(plain, changed) < 15, "a change that is hardly seen would prove nothing"
    return plain, changed


@pytest.mark.parametrize("target", params(TARGETS))
def test_branches_change_a_quantized_model_as_they_change_the_model(
    target: Target, wide: Component, compiled: Callable[[Target], Component], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    component = compiled(target)
    changed = overrides(component, wide, factors(wide))
    branches = [n for n, c in changed.items() if isinstance(c, LowRank)]
    assert len(branches) >= 10
    assert any("attn" in n or "ff" in n for n in branches)
    assert target.quant == "int8-dynamic" or any("conv" in n for n in branches) or target.format == "openvino"
    before = run(target, component)
    given = run(target, component, changed)
    # rounding costs what it cost without the change, and the change is as right as in float32
    assert decibels(given, expected[1]) > decibels(before, expected[0]) - 3
    gc.collect()
    np.testing.assert_array_equal(run(target, component), before)


@pytest.mark.parametrize("target", params(t for t in TARGETS if t.format == "onnx" and "-weights" in t.quant))
def test_a_branch_adds_exactly_its_product(
    target: Target, wide: Component, compiled: Callable[[Target], Component]
) -> None:
    """The same numbers as the float32 graph with the rounded weights and the product merged into them."""
    import onnx_ir as ir

    from vitrify.export.quantize import external_weights, find_layers

    component, model = compiled(target), ir.load(wide.graph_path)
    entries = dict(external_weights(model, wide))
    rounded = {}
    for layer in find_layers(model, entries, recipe(target.quant)):
        weight = read_tensor(entries[layer.weight], "float32")
        rounded[layer.weight] = layer.quantize(weight).dequantized().reshape(weight.shape)
    stored = {n: w.entry for n, w in stored_weights(component).items()}
    kept = {n: e for n, e in stored.items() if e is not None and n in entries}
    changes = factors(wide)
    whole = {n: merged(w, changes[n]) if n in changes else w for n, w in rounded.items()}
    for name, entry in kept.items():
        weight = read_tensor(entry, "float32")
        weight = merged(weight, changes[name]) if name in changes else weight
        whole[name] = weight.astype(np.float16 if entry.dtype == "F16" else np.float32)
    given, wanted = run(target, component, overrides(component, wide, changes)), run(None, wide, whole)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-4 * np.ptp(wanted))


def test_onnx_runtime_fuses_what_it_fused_without_branches(
    wide: Component, compiled: Callable[[Target], Component], tmp_path: Path
) -> None:
    """Integer kernels stay integer kernels: the branches alone are added."""
    import onnx

    from vitrify.runtimes.ort_source import edited

    counts = []
    component = compiled(Target("onnx", "onnx", "int8-static:samples=3", ("nncf",)))
    for changed in ({}, overrides(component, wide, factors(wide))):
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        source = edited(component, changed, fewer=False)
        held = source.settle(settings)
        ort.InferenceSession(source.model, settings, providers=["CPUExecutionProvider"])
        del held
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        counts.append({op: sum(n.op_type == op for n in nodes) for op in ("QLinearConv", "QGemm")})
    assert counts[0] == counts[1]
    assert min(counts[0].values()) > 5


WEIGHTS = [t for t in TARGETS if t.quant in ("int8-weights", "nf4-weights")]


@pytest.mark.parametrize("target", params(WEIGHTS))
def test_a_branch_that_fits_no_layer_is_named(
    target: Target, wide: Component, compiled: Callable[[Target], Component]
) -> None:
    component, changes = compiled(target), factors(wide)
    name = next(n for n in overrides(component, wide, changes) if n.endswith("ff.net.2.weight"))
    out, inputs = changes[name].shape
    for wrong in ((inputs, out), (out, inputs + 1)):
        branch = LowRank(np.zeros((2, wrong[1]), np.float32), np.zeros((wrong[0], 2), np.float32))
        with pytest.raises(BadInput, match=rf"{name} has shape \[{wrong[0]}, {wrong[1]}\], expected \[{out}, {inputs}"):
            run(target, component, {name: branch})
    branch = changes[name]
    with pytest.raises(BadInput, match=r"down_blocks\.9\.weight: .* has no such weight"):
        run(target, component, {"down_blocks.9.weight": branch})
    with pytest.raises(BadInput, match=r"conv_norm_out\.weight: .* no weight of a linear layer or convolution"):
        run(target, component, {"conv_norm_out.weight": branch})


def test_without_onnx_a_branch_says_what_to_install(
    wide: Component, compiled: Callable[[Target], Component], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("onnx", "onnx", "int8-weights")
    component = compiled(target)
    changed = overrides(component, wide, factors(wide))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependency) as caught:
        run(target, component, changed)
    assert caught.value.fix == 'pip install "vitrify[lora]"'
    run(target, component, {n: c for n, c in changed.items() if not isinstance(c, LowRank)})


def test_openvinos_cache_never_serves_another_branch(
    wide: Component, compiled: Callable[[Target], Component], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("openvino", "onnx", "int8-weights", ("openvino",))
    component = compiled(target)
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    changed = overrides(component, wide, factors(wide))
    name = next(n for n, c in changed.items() if isinstance(c, LowRank))
    branch = changed[name]
    assert isinstance(branch, LowRank)
    plain = run(target, component, cache=True)
    seen = [plain]
    for up in (branch.up, branch.up * 2):
        other = {name: LowRank(branch.down, up)}
        given = run(target, component, other, cache=True)
        np.testing.assert_allclose(given, run(target, component, other), rtol=0, atol=1e-5 * np.ptp(given))
        np.testing.assert_array_equal(run(target, component, other, cache=True), given)
        assert all(np.abs(given - one).max() > 1e-3 for one in seen)
        seen.append(given)
    np.testing.assert_array_equal(run(target, component, cache=True), plain)


def test_onnx_runtimes_cache_is_not_used_with_a_branch(
    wide: Component, compiled: Callable[[Target], Component], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("onnx", "onnx", "int8-weights")
    component = compiled(target)
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    changed = overrides(component, wide, factors(wide))
    wanted = run(target, component, changed)
    np.testing.assert_array_equal(run(target, component, changed, cache=True), wanted)
    assert not (tmp_path / "cache").exists()
    plain = run(target, component, cache=True)
    np.testing.assert_array_equal(run(target, component, changed, cache=True), wanted)
    np.testing.assert_array_equal(run(target, component, cache=True), plain)
    assert np.abs(plain - wanted).max() > 0.1


def test_several_changes_of_one_layer_add_up() -> None:
    rng = np.random.default_rng(0)
    parts = [LowRank(rng.standard_normal((r, 6, 1, 1)), rng.standard_normal((5, r))) for r in (2, 3)]
    joined = LowRank.joined([parts[0], LowRank(parts[1].down[:, :, 0, 0], parts[1].up)])
    assert joined.shape == (5, 6, 1, 1)
    wanted = sum(p.up @ p.down.reshape(-1, 6) for p in parts)
    np.testing.assert_allclose(joined.up @ joined.down.reshape(-1, 6), wanted, atol=1e-12)


def test_an_adapter_without_branches_refuses_them() -> None:
    whole = {"a.weight": np.zeros((2, 2), np.float32)}
    assert only_whole(whole, "this one") == whole
    with pytest.raises(UsageError, match=r"this one adds nothing beside a layer, which b\.weight would need"):
        only_whole({**whole, "b.weight": LowRank(np.zeros((1, 2)), np.zeros((2, 1)))}, "this one")
