"""Token merging: what it computes, as plain loops do, and its graph beside PyTorch on both runtimes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.errors import BadArtifact, BadInput, UsageError
from vitrify.core.registry import load_runtime
from vitrify.export.families.controlnet import with_control
from vitrify.export.families.merging import check_merges, ratio_of, with_merging
from vitrify.export.families.sd import SD
from vitrify.export.families.sdxl import SDXL
from vitrify.runtimes.base import Options

pytestmark = pytest.mark.slow  # traces several UNets
torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 1, "block_out_channels": [8, 16], "cross_attention_dim": 12, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 4,
}  # fmt: skip
# as SDXL's: it attends at the second level and below, and there several times
SIZES = UNET | {
    "block_out_channels": [8, 16, 16], "attention_head_dim": [1, 2, 2], "transformer_layers_per_block": [1, 2, 1],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}  # fmt: skip


def spec_of(config: dict[str, Any]) -> Any:
    return next(s for s in (SDXL if "addition_embed_type" in config else SD) if s.name == "unet")


def merged_by_loops(tokens: np.ndarray, grid: tuple[int, int], gone: int, corner: int) -> list[list[int]]:
    """Groups of tokens [n, channels] that become one, as the paper describes it; each begins with who stays."""
    height, width = grid
    stays = [(y + corner // 2) * width + x + corner % 2 for y in range(0, height, 2) for x in range(0, width, 2)]
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    best = {}
    for one in set(range(height * width)) - set(stays):
        likeness = [float(unit[one] @ unit[other]) for other in stays]
        best[one] = max(likeness), stays[int(np.argmax(likeness))]
    groups = {one: [one] for one in stays}
    for one in sorted(best, key=lambda one: -best[one][0])[:gone]:
        groups[best[one][1]].append(one)
    alone = [[one] for one in best if not any(one in group for group in groups.values())]
    return [*groups.values(), *alone]


@pytest.mark.parametrize("corner", range(4))
@pytest.mark.parametrize("share", [Fraction(1, 4), Fraction(2, 5), Fraction(3, 4)])
def test_the_most_alike_become_their_average_and_get_it_back(share: Fraction, corner: int) -> None:
    from vitrify.runtimes.torch.merging import Merge

    grid, gone = (4, 6), 24 * share.numerator // share.denominator
    tokens = torch.from_numpy(np.random.default_rng(corner).standard_normal((2, 24, 5)).astype(np.float32))
    merge = Merge(tokens, grid, share, corner)
    merged, counts = merge.merged()
    assert merged.shape == (2, 24 - gone, 5)
    back = merge.restored(merged).numpy()
    for row in range(2):
        groups = merged_by_loops(tokens[row].numpy(), grid, gone, corner)
        assert sorted(counts[row].tolist()) == sorted(float(len(group)) for group in groups)
        for group in groups:
            mean = tokens[row].numpy()[group].mean(0)
            np.testing.assert_allclose(back[row, group], np.repeat(mean[None], len(group), 0), atol=1e-6)


def test_merging_equal_tokens_changes_nothing(off: Any) -> None:
    """Attention counts a key for as many tokens as it stands for: else a surface of one colour would lose weight."""
    from vitrify.runtimes.torch.merging import merge_tokens

    module, generator = lively(UNET), torch.Generator().manual_seed(1)
    block = module.down_blocks[0].attentions[0]
    states = torch.randn(2, 7, 12, generator=generator)
    fields = torch.randn(2, 8, 2, 3, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noise = torch.randn(fields.shape, generator=generator)

    def attended(pixels: Any) -> Any:
        with torch.no_grad():
            return block(pixels, encoder_hidden_states=states, return_dict=False)[0].numpy()

    plain = [attended(pixels) for pixels in (fields, noise)]
    merge_tokens(module, 0.75)
    assert off(plain[0], attended(fields)) < 1e-5
    assert off(plain[1], attended(noise)) > 1e-2, "the comparison can fail"


def lively(config: dict[str, Any]) -> Any:
    from vitrify.export.twin import random_module

    return random_module(spec_of(config), config)


def test_only_the_largest_size_that_attends_is_changed() -> None:
    from vitrify.runtimes.torch.merging import MergedSelfAttention, merge_tokens

    module = lively(SIZES)
    names = list(module.state_dict())
    merge_tokens(module, 0.5)
    assert list(module.state_dict()) == names
    changed = {n for n, p in module.attn_processors.items() if isinstance(p, MergedSelfAttention)}
    levels = Counter(name.partition(".attentions")[0] for name in changed)
    # a transformer of two blocks going down, two of them going up
    assert levels == {"down_blocks.1": 2, "up_blocks.1": 4}
    assert all(".attn1." in name for name in changed)


def traced(config: dict[str, Any], ratio: float, folder: Path, *, control: bool = False) -> tuple[Any, Any, Any, Any]:
    """The spec, the graph's proof, the ONNX component over random weights, and PyTorch's reference of it."""
    import onnx_ir as ir

    from vitrify.core.cache import Cache
    from vitrify.core.progress import silent
    from vitrify.core.safetensors_header import open_checkpoint
    from vitrify.export.graph import quiet
    from vitrify.export.graphs import graph_for
    from vitrify.export.link import link_weights
    from vitrify.export.names import bind_module
    from vitrify.runtimes.torch.modules import no_bars

    spec = with_merging(spec_of(config), ratio)
    spec = with_control(spec) if control else spec
    module = lively(config)
    with quiet(), no_bars():
        module.save_pretrained(folder / "source")
    graph = graph_for(spec, config, Cache(), silent)
    bindings = bind_module(module, open_checkpoint(folder / "source", (spec.stem,)))
    weights, _ = link_weights(graph.model, bindings.linked, folder / "artifact", spec.name)
    ir.save(graph.model, folder / "artifact" / spec.name / "model.onnx")
    made = spec.component(config, "onnx", f"{spec.name}/model.onnx", folder / "artifact", tuple(weights))
    return spec, graph, made, spec.component(config, "torch", "config.json", folder / "source", ())


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return traced(UNET, 0.5, tmp_path_factory.mktemp("half"))


def run(component: Component, tensors: dict[str, Any], runtime: str | None = None, **changed: Any) -> Any:
    session = load_runtime(runtime or component.format).open(component, Device("cpu"), Options(), changed or None)
    try:
        return session.run(tensors)["out_sample"]
    finally:
        session.close()


def inputs_at(component: Component, sizes: dict[str, int]) -> dict[str, Any]:
    from vitrify.proof.parity import sample_inputs

    return sample_inputs(component, sizes, 5)


def check_runtime(made: Any, runtime: str, off: Any) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    spec, _, component, reference = made
    plain = replace(reference, details=reference.details | {"kind": spec.kind.partition(":")[0]})
    sizes = [*spec.checks({}), {"batch": 1, "height": 24, "width": 28, "tokens": 9}]
    for one in sizes:
        tensors = inputs_at(component, one)
        expected = run(reference, tensors)
        assert off(expected, run(component, tensors, runtime)) < 1e-5
        assert off(expected, run(plain, tensors)) > 1e-3, "merging changes something"


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_it_computes_what_pytorch_does_at_every_size(half: Any, runtime: str, off: Any) -> None:
    check_runtime(half, runtime, off)


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize(("name", "ratio"), [("sd", 0.75), ("sdxl", 0.3)])
def test_other_ratios_and_sdxl(name: str, ratio: float, runtime: str, off: Any, tmp_path: Path) -> None:
    check_runtime(traced(SIZES if name == "sdxl" else UNET, ratio, tmp_path), runtime, off)


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("config", [UNET, SIZES])
def test_a_narrow_twin_has_the_same_operators(config: dict[str, Any]) -> None:
    from vitrify.export.graph import graph_from_module, operators
    from vitrify.export.twin import prove_graph

    spec = with_merging(spec_of(config), 0.5)
    wide = config | {"block_out_channels": [4 * c for c in config["block_out_channels"]], "norm_num_groups": 8}
    proof = prove_graph(spec, wide, operators(graph_from_module(spec, wide)))
    assert proof["relative"] <= 1e-4


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_it_goes_together_with_controlnets(runtime: str, off: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    spec, _, component, reference = traced(UNET, 0.5, tmp_path, control=True)
    assert spec.kind == "unet_control:tome=0.5"
    for sizes in spec.checks(UNET):
        tensors = inputs_at(component, sizes)
        assert off(run(reference, tensors), run(component, tensors, runtime)) < 1e-5


def test_the_graph_holds_no_weights_and_the_proof_is_of_the_merging_module(half: Any) -> None:
    _, graph, component, _ = half
    assert component.graph_path.stat().st_size < 300_000
    stored = {n for n, v in graph.model.graph.initializers.items() if type(v.const_value).__name__ == "ExternalTensor"}
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight" in stored
    assert graph.proof["relative"] <= 1e-4
    assert {"TopK", "ArgMax", "ScatterElements"} <= {node.op_type for node in graph.model.graph}


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_weights_are_changed_by_name(half: Any, runtime: str, off: Any) -> None:
    """As a LoRA does."""
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    spec, _, component, reference = half
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    tensors = inputs_at(component, spec.checks({})[0])
    value = np.random.default_rng(4).standard_normal((8, 8)).astype(np.float32)
    changed = run(reference, tensors, None, **{name: value})
    assert off(changed, run(component, tensors, runtime, **{name: value})) < 1e-5
    assert off(changed, run(component, tensors, runtime)) > 1e-3


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_plan_is_built(half: Any, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
    from vitrify.export.plan import build_plan

    _, _, component, _ = half
    plan = build_plan(component, tmp_path, precision=precision)
    assert plan.weights[0].bytes > 10_000
    assert plan.details["kind"] == "unet:tome=0.5"


def test_products_that_choose_stay_in_float(half: Any, tmp_path: Path, off: Any) -> None:
    """In int8 the likeness of tokens, and the sums of those that are merged, are left alone."""
    pytest.importorskip("nncf", reason="needs vitrify[quant]")
    import onnx_ir as ir

    from vitrify.export.static import quantize_static
    from vitrify.quant.recipes import recipe

    spec, graph, component, _ = half
    plain = Counter(node.op_type for node in graph.model.graph)
    samples = [inputs_at(component, spec.checks({})[0])]
    made = quantize_static(component, recipe("int8-static"), samples, tmp_path)
    counts = Counter(node.op_type for node in ir.load(made.graph_path).graph)
    assert counts["QuantizeLinear"] > 0
    assert [counts[op] for op in ("TopK", "ArgMax")] == [plain[op] for op in ("TopK", "ArgMax")]
    quantized = ir.load(made.graph_path).graph
    for node in quantized:
        if node.op_type in ("ArgMax", "ReduceMax"):
            product = node.inputs[0].producer()
            assert product.op_type == "MatMul"
            assert all(value.producer().op_type != "DequantizeLinear" for value in product.inputs)
    tensors = inputs_at(component, spec.checks({})[1])
    assert off(run(component, tensors), run(made, tensors)) < 0.2


@pytest.mark.parametrize("ratio", [-0.1, 0.76, 1.0, float("nan"), float("inf")])
def test_a_share_that_cannot_be_merged(ratio: float) -> None:
    with pytest.raises(UsageError, match=r"is not from 0 to 0\.75"):
        with_merging(spec_of(UNET), ratio)


def test_the_kind_names_the_share() -> None:
    spec = spec_of(UNET)
    assert with_merging(spec, 0) is spec
    assert ratio_of(spec.kind) == 0
    assert with_merging(spec, 0.5).kind == "unet:tome=0.5"
    assert with_control(with_merging(spec, 0.25)).kind == "unet_control:tome=0.25"
    assert ratio_of("unet_control:tome=0.25") == 0.25


@pytest.mark.parametrize("kind", ["unet:tome=2", "unet:tome=", "unet:other=0.5", "vae_decoder:tome=0.5", "thing"])
def test_a_kind_that_this_version_does_not_know(kind: str) -> None:
    from vitrify.runtimes.torch.modules import is_kind, kind_named

    assert not is_kind(kind)
    with pytest.raises(BadArtifact, match="no kind of component"):
        kind_named(kind)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"down_block_types": ["DownBlock2D"] * 2}, "no self-attention"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "no self-attention"),
        ({"only_cross_attention": True}, "no self-attention"),
        ({"only_cross_attention": [False, True]}, "no self-attention"),
        ({"dual_cross_attention": True}, "no self-attention"),
        (
            {
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            },
            "smallest size alone",
        ),
    ],
)
def test_unets_that_have_nothing_to_merge(changed: dict[str, Any], said: str) -> None:
    check_merges("model", UNET | {"only_cross_attention": [False, False], "dual_cross_attention": False})
    with pytest.raises(BadInput, match=said):
        check_merges("model", UNET | changed)
