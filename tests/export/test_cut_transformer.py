"""The transformers of SD 3, 3.5, Flux and Sana cut in two, beside diffusers' modules cut by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

import onnx_ir as ir  # noqa: E402

from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadInput  # noqa: E402
from vitrify.core.registry import load_runtime  # noqa: E402
from vitrify.export.families.controlnet_flow import with_blocks  # noqa: E402
from vitrify.export.families.flux import FLUX  # noqa: E402
from vitrify.export.families.sana import SANA  # noqa: E402
from vitrify.export.families.sd3 import SD3  # noqa: E402
from vitrify.export.step_cache import cut_in_place, forget_deep  # noqa: E402
from vitrify.pipelines.control import BLOCK, SINGLE  # noqa: E402
from vitrify.pipelines.step_cache import DEEP, Interval  # noqa: E402
from vitrify.proof.cut import prove_cut  # noqa: E402
from vitrify.proof.parity import TOLERANCE, sample_inputs  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402

WIDTH = 64
ROUNDING = 1e-6  # of two graphs that differ in two operations; 2e-7 was seen
CONFIGS: dict[str, dict[str, Any]] = {
    "sd3": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 16, "patch_size": 2, "in_channels": 16,
        "out_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 40, "caption_projection_dim": WIDTH, "pooled_projection_dim": 24,
        "pos_embed_max_size": 24,
    },
    "flux": {
        "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 2,
        "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 40,
        "pooled_projection_dim": 24, "guidance_embeds": True, "axes_dims_rope": [4, 6, 6],
    },
    "sana": {
        "_class_name": "SanaTransformer2DModel", "in_channels": 4, "out_channels": 4, "num_attention_heads": 8,
        "attention_head_dim": 8, "num_layers": 3, "num_cross_attention_heads": 4, "cross_attention_head_dim": 16,
        "cross_attention_dim": WIDTH, "caption_channels": 32, "mlp_ratio": 2.5, "sample_size": 16, "patch_size": 1,
    },
}  # fmt: skip
# its first blocks look at the picture twice, and the last one does not
CONFIGS["sd3.5"] = CONFIGS["sd3"] | {"num_layers": 3, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1]}
FAMILIES = {"sd3": SD3, "sd3.5": SD3, "flux": FLUX, "sana": SANA}
# a double block of Flux, its last one, and a single one behind it
DEPTHS = [
    pytest.param("sd3", 1, marks=pytest.mark.slow),  # one more graph to trace
    ("sd3.5", 1), ("sd3.5", 2), ("flux", 1), ("flux", 2), ("flux", 3),
    pytest.param("sana", 1, marks=pytest.mark.slow), pytest.param("sana", 2, marks=pytest.mark.slow),
]  # fmt: skip
THREE = ["sd3.5", "flux", pytest.param("sana", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def made(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """made(name): the module with random weights and its component; control: one that takes residuals."""
    from vitrify.core.cache import Cache
    from vitrify.core.progress import silent
    from vitrify.export.graphs import graph_for

    known: dict[tuple[str, bool], Any] = {}

    def make(name: str, control: bool = False) -> Any:
        if (name, control) not in known:
            spec = next(spec for spec in FAMILIES[name] if spec.name == "transformer")
            spec = with_blocks(spec) if control else spec
            path = tmp_path_factory.mktemp("graph") / "model.onnx"
            ir.save(graph_for(spec, CONFIGS[name], Cache(), silent).model, path)
            known[name, control] = checkpoint(SimpleNamespace(name=name, spec=spec, config=CONFIGS[name], graph=path))
        return known[name, control]

    return make


def own_copy(component: Component, root: Path) -> Component:
    """The component in a folder of its own, to be cut."""
    from vitrify.core.publish import link_or_copy

    for path in (component.graph, *(weight.path for weight in component.weights)):
        link_or_copy(component.root / path, root / path)
    return replace(component, root=root)


@contextmanager
def opened(parts: dict[str, Component], runtime: str = "onnx", **more: Any) -> Iterator[tuple[Any, Any]]:
    """The sessions of both graphs; more: name -> overrides of its weights."""
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    adapter = load_runtime(runtime)
    both = [adapter.open(c, Device("cpu"), Options(threads=1), more.get(n, {})) for n, c in parts.items()]
    try:
        yield both[0], both[1]
    finally:
        for one in both:
            one.close()


def shallow_of(session: Any, tensors: dict[str, Any], deep: np.ndarray) -> np.ndarray:
    given = {n: deep if n == DEEP else tensors[n] for n in session.inputs}
    out: np.ndarray = session.run(given)["out_hidden_states"]
    return out


def by_hand(
    model: Any, depth: int, tensors: dict[str, Any], deep: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """diffusers' output and what the blocks behind the first `depth` add; deep: what they are taken to add instead."""
    module, seen = model.module, {}
    blocks = [*module.transformer_blocks, *getattr(module, "single_transformer_blocks", [])]

    def first(block: Any, given: Any, out: Any) -> None:
        seen["first"] = out[-1] if isinstance(out, tuple) else out

    def last(norm: Any, given: Any) -> Any:
        added = given[0] - seen["first"] if deep is None else torch.from_numpy(deep)
        seen["added"] = added.numpy().copy()
        return given if deep is None else (seen["first"] + added, *given[1:])

    hooks = [blocks[depth - 1].register_forward_hook(first), module.norm_out.register_forward_pre_hook(last)]
    try:
        return model.reference(tensors)["out_hidden_states"], seen["added"]
    finally:
        for hook in hooks:
            hook.remove()


def assert_close(given: np.ndarray, wanted: np.ndarray, share: float = TOLERANCE) -> None:
    """Within a share of what the values span; `ROUNDING` where both are of the same graph."""
    assert np.ptp(wanted) > 0.1, "zeros would prove nothing"
    np.testing.assert_allclose(given, wanted, rtol=0, atol=share * np.ptp(wanted))


@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_deep_features_are_what_the_blocks_behind_add(made: Any, tmp_path: Path, name: str, depth: int) -> None:
    model = made(name)
    parts = cut_in_place(own_copy(model.components["onnx"], tmp_path), depth)
    whole, shallow = parts["transformer"], parts["transformer_shallow"]
    assert shallow.weights == whole.weights
    uncut = load_runtime("onnx").open(model.components["onnx"], Device("cpu"), Options(threads=1))
    count = {n: sum(1 for _ in ir.load(c.graph_path).graph) for n, c in parts.items()}
    assert count["transformer_shallow"] < count["transformer"]
    with opened(parts) as (one, other):
        for number, sizes in enumerate(shallow.details["checks"]):
            tensors = sample_inputs(whole, sizes, seed=number)
            out = one.run(tensors)
            wanted, added = by_hand(model, depth, tensors)
            assert_close(out["out_hidden_states"], wanted)
            # not to the bit: ONNX Runtime fuses a sum with the norm behind it where nothing else reads it
            assert_close(out["out_hidden_states"], uncut.run(tensors)["out_hidden_states"], ROUNDING)
            assert out[DEEP].shape == tuple(sizes.get(d, d) for d in shallow.inputs[DEEP].shape)
            assert_close(out[DEEP], added)
            assert_close(shallow_of(other, tensors, out[DEEP]), out["out_hidden_states"], ROUNDING)
            # at another step, around what is kept
            later = tensors | {"timestep": 0.5 * tensors["timestep"] + np.float32(0.1)}
            assert_close(shallow_of(other, later, out[DEEP]), by_hand(model, depth, later, added)[0])


@pytest.mark.parametrize("name", THREE)
def test_openvino_runs_both(made: Any, tmp_path: Path, name: str) -> None:
    model = made(name)
    parts = cut_in_place(own_copy(model.components["onnx"], tmp_path), 1)
    tensors = sample_inputs(parts["transformer"], parts["transformer"].details["checks"][1], seed=3)
    with opened(parts, "openvino") as (one, other):
        out = one.run(tensors)
        assert_close(out[DEEP], by_hand(model, 1, tensors)[1])
        assert_close(shallow_of(other, tensors, out[DEEP]), out["out_hidden_states"], ROUNDING)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("name", THREE)
def test_every_so_many_steps_one_is_whole(made: Any, tmp_path: Path, name: str, runtime: str) -> None:
    """A walk of seven steps, as a scheduler takes them, beside the same one with diffusers' module cut by hand."""
    model = made(name)
    parts = cut_in_place(own_copy(model.components["onnx"], tmp_path), 1)
    start = sample_inputs(parts["transformer"], parts["transformer"].details["checks"][0], seed=5)
    top = {"sd3.5": 1000, "flux": 1, "sana": 999}[name]

    def walk(interval: int, call: Callable[[dict[str, Any], Any], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        policy, sample, deep = Interval(interval), start["hidden_states"], None
        for step in range(7):
            now = np.full_like(start["timestep"], top * (1 - step / 8))
            out, given = call(start | {"hidden_states": sample, "timestep": now}, None if policy.whole() else deep)
            deep, sample = given, sample - np.float32(0.1) * out
        return sample

    with opened(parts, runtime) as (one, other):

        def ours(tensors: dict[str, Any], deep: Any) -> tuple[np.ndarray, np.ndarray]:
            if deep is not None:
                return shallow_of(other, tensors, deep), deep
            out = one.run(tensors)
            return out["out_hidden_states"], out[DEEP]

        theirs = partial(by_hand, model, 1)
        found = {interval: walk(interval, ours) for interval in (1, 3)}
        for interval, drawn in found.items():
            assert_close(drawn, walk(interval, theirs))
    assert np.abs(found[1] - found[3]).max() > 1e-2 * np.ptp(found[1]), "kept features change what is drawn"


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("sd3.5", "int8-weights"),
        ("flux", "int8-dynamic"),
        pytest.param("sana", "int8-weights", marks=pytest.mark.slow),
    ],
)
def test_a_quantized_graph_is_cut_too(made: Any, tmp_path: Path, name: str, quant: str) -> None:
    from vitrify.export.dynamic import quantize_dynamic
    from vitrify.export.quantize import quantize_weights

    cut = cut_in_place(own_copy(made(name).components["onnx"], tmp_path / "float"), 1)["transformer"]
    quantize = quantize_dynamic if quant == "int8-dynamic" else quantize_weights
    parts = cut_in_place(quantize(cut, recipe(quant), tmp_path / "int8"), 1)
    assert [n for n in parts["transformer"].outputs] == ["out_hidden_states", DEEP]
    differences = [n for n in ir.load(parts["transformer"].graph_path).graph if n.outputs[0].name == DEEP]
    assert len(differences) == 1, "that of the first cut is gone"
    # of rounded activations a number at the edge of a step may fall over it; of float ones all is rounding
    share = 2e-2 if quant == "int8-dynamic" else ROUNDING
    with opened(parts) as (one, other):
        tensors = sample_inputs(parts["transformer"], parts["transformer"].details["checks"][1], seed=3)
        out = one.run(tensors)
        assert_close(shallow_of(other, tensors, out[DEEP]), out["out_hidden_states"], share)


@pytest.mark.slow  # NNCF takes long to start
@pytest.mark.parametrize("name", THREE)
def test_a_calibrated_graph_is_cut_too(made: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("nncf", reason="needs vitrify[quant]")
    from vitrify.export.static import quantize_static

    cut = cut_in_place(own_copy(made(name).components["onnx"], tmp_path / "float"), 1)["transformer"]
    samples = [sample_inputs(cut, sizes, seed=n) for n, sizes in enumerate(cut.details["checks"] * 2)]
    parts = cut_in_place(quantize_static(cut, recipe("int8-static"), samples, tmp_path / "int8"), 1)
    with opened(parts) as (one, other):
        out = one.run(samples[1])
        assert_close(shallow_of(other, samples[1], out[DEEP]), out["out_hidden_states"], 2e-2)


def test_a_proof_holds_it_to_rounding(made: Any, tmp_path: Path) -> None:
    parts = cut_in_place(own_copy(made("flux").components["onnx"], tmp_path), 1)
    artifact = Artifact(tmp_path, "id", {}, {"family": "flux"}, parts)
    proved, found = prove_cut(parts["transformer_shallow"], artifact)
    assert len(found) == 2
    assert 0 < proved.proof["numeric"]["relative"] < 1e-5
    assert proved.proof["numeric"]["reference"] == "transformer of the same artifact"


def test_what_is_said_of_the_shallow_graph(made: Any, tmp_path: Path) -> None:
    parts = cut_in_place(own_copy(made("sd3.5").components["onnx"], tmp_path), 1)
    shallow = parts["transformer_shallow"]
    assert shallow.inputs[DEEP].shape == ("batch", "image_tokens", WIDTH)
    assert shallow.shapes["image_tokens"] == (1, 24 * 24, 24 * 24)
    assert [sizes["image_tokens"] for sizes in shallow.details["checks"]] == [24, 45]
    assert shallow.details["step_cache"] == {"depth": 1, "of": "transformer"}
    flux = cut_in_place(own_copy(made("flux").components["onnx"], tmp_path / "flux"), 1)["transformer_shallow"]
    assert flux.inputs[DEEP].shape == ("batch", "image_tokens", WIDTH)
    assert flux.shapes == made("flux").components["onnx"].shapes


@pytest.mark.parametrize("name", ["sd3.5", "flux"])
def test_a_graph_that_was_cut_is_cut_again_and_made_whole(made: Any, tmp_path: Path, name: str) -> None:
    component = own_copy(made(name).components["onnx"], tmp_path)
    before = [node.op_type for node in ir.load(component.graph_path).graph]
    once = cut_in_place(component, 1)["transformer"]
    parts = cut_in_place(once, 2)
    with opened(parts) as (one, other):
        tensors = sample_inputs(parts["transformer"], parts["transformer"].details["checks"][0], seed=3)
        out = one.run(tensors)
        assert_close(out[DEEP], by_hand(made(name), 2, tensors)[1])
        assert_close(shallow_of(other, tensors, out[DEEP]), out["out_hidden_states"], ROUNDING)
    model = ir.load(parts["transformer"].graph_path)
    assert forget_deep(parts["transformer"], model).outputs == component.outputs
    assert [node.op_type for node in model.graph] == before


def test_more_blocks_than_there_are_and_graphs_of_another_form(made: Any, tmp_path: Path) -> None:
    component = own_copy(made("sd3.5").components["onnx"], tmp_path)
    before = component.graph_path.read_bytes()
    with pytest.raises(BadInput, match="transformer has 3 blocks, so a graph of the first 3") as caught:
        cut_in_place(component, 3)
    assert caught.value.fix == "Give --step-cache 2 or less."
    assert component.graph_path.read_bytes() == before
    model = ir.load(component.graph_path)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    last = norms[-1].inputs[0]
    assert last is not None
    producer = last.producer()
    assert producer is not None
    producer.op_type = "Max"  # its blocks add to nothing
    component.graph_path.unlink()
    ir.save(model, component.graph_path)
    with pytest.raises(BadInput, match="where the blocks of transformer begin and end") as caught:
        cut_in_place(component, 1)
    assert "transformers of SD 3, Flux and Sana" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "depth", "taken"),
    [
        ("sd3.5", 1, [f"{BLOCK}0"]),
        ("sd3.5", 2, [f"{BLOCK}0", f"{BLOCK}1"]),
        ("flux", 1, [f"{BLOCK}0"]),
        ("flux", 3, [f"{BLOCK}0", f"{BLOCK}1", f"{SINGLE}0"]),
        ("sana", 1, []),  # nothing is added behind its first block
        ("sana", 2, [f"{BLOCK}0"]),
    ],
)
@pytest.mark.slow  # three more graphs to trace
def test_what_a_controlnet_adds_to_the_first_blocks_is_taken(
    made: Any, tmp_path: Path, name: str, depth: int, taken: list[str]
) -> None:
    parts = cut_in_place(own_copy(made(name, control=True).components["onnx"], tmp_path), depth)
    whole, shallow = parts["transformer"], parts["transformer_shallow"]
    assert [n for n in shallow.inputs if n.startswith((BLOCK, SINGLE))] == taken
    with opened(parts) as (one, other):
        for number, sizes in enumerate(shallow.details["checks"]):
            tensors = sample_inputs(whole, sizes, seed=number)
            out = one.run(tensors)
            assert_close(shallow_of(other, tensors, out[DEEP]), out["out_hidden_states"], ROUNDING)
            for residual in taken[-1:]:  # which is not in the deep features
                changed = shallow_of(other, tensors | {residual: 2 * tensors[residual]}, out[DEEP])
                assert np.abs(changed - out["out_hidden_states"]).max() > 1e-2


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_lora_reaches_both_graphs(made: Any, tmp_path: Path, runtime: str) -> None:
    from safetensors.numpy import save_file

    from vitrify.pipelines.lora.changes import LoraUse, lora_overrides
    from vitrify.pipelines.lora.files import read_lora

    rng = np.random.default_rng(0)
    parts = cut_in_place(own_copy(made("flux").components["onnx"], tmp_path), 1)
    tensors = {}
    for block in ("transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"):
        for side, shape in (("A", (2, WIDTH)), ("B", (WIDTH, 2))):
            drawn = rng.standard_normal(shape).astype(np.float32)
            tensors[f"transformer.{block}.attn.to_v.lora_{side}.weight"] = 0.3 * drawn
    save_file(tensors, tmp_path / "style.safetensors")
    changes = lora_overrides(parts, [LoraUse(read_lora(tmp_path / "style.safetensors"))])
    assert {n: len(c) for n, c in changes.items()} == {"transformer": 3, "transformer_shallow": 1}
    given = sample_inputs(parts["transformer"], parts["transformer"].details["checks"][0], seed=3)
    with opened(parts, runtime) as (plain, _), opened(parts, runtime, **changes) as (one, other):
        out = one.run(given)
        assert np.abs(out["out_hidden_states"] - plain.run(given)["out_hidden_states"]).max() > 0.1
        assert_close(shallow_of(other, given, out[DEEP]), out["out_hidden_states"], ROUNDING)
