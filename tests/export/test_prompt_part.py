"""A denoiser in two graphs: with what the prompt decides, the rest gives bit for bit what the whole graph does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

import onnx_ir as ir

import vitrify
from vitrify.core.artifact import Artifact, Component
from vitrify.core.device import Device
from vitrify.core.errors import BadInput, UsageError
from vitrify.core.registry import load_runtime
from vitrify.export.families.controlnet import with_control
from vitrify.export.families.sana import SANA
from vitrify.export.families.sd import SD
from vitrify.export.families.sd3 import SD3
from vitrify.export.families.sdxl import SDXL
from vitrify.export.job import export_model
from vitrify.export.prompt_part import cut_prompt_part, prompt_parts
from vitrify.export.quantize import quantize_weights
from vitrify.export.step_cache import cut_in_place
from vitrify.pipelines.prompt_part import GIVEN, PromptOnce, PromptParts
from vitrify.proof.parity import sample_inputs
from vitrify.quant.recipes import recipe
from vitrify.runtimes.base import Options
from vitrify.runtimes.stored import stored_weights

from .test_cut_transformer import CONFIGS as TRANSFORMERS
from .test_cut_transformer import own_copy

PROMPT = "a red apple"
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 1, "block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "cross_attention_dim": 24, "attention_head_dim": 4,
    "norm_num_groups": 8,
}  # fmt: skip
UNET_XL = UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True, "transformer_layers_per_block": [1, 2], "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 8 * 6,
}  # fmt: skip


def unet(specs: Any) -> Any:
    return next(spec for spec in specs if spec.name == "unet")


def transformer(specs: Any) -> Any:
    return next(spec for spec in specs if spec.name == "transformer")


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sd": (unet(SD), UNET),
    "control": (with_control(unet(SD)), UNET),
    "sdxl": (unet(SDXL), UNET_XL),
    "lcm": (unet(SD), UNET | {"time_cond_proj_dim": 16}),
    "sana": (transformer(SANA), TRANSFORMERS["sana"]),
    "sd3": (transformer(SD3), TRANSFORMERS["sd3"]),
}


@pytest.fixture(scope="module")
def made(checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Component]:
    """made(name): a component with random weights."""
    from vitrify.export.graph import graph_from_module

    known: dict[str, Component] = {}

    def make(name: str) -> Component:
        if name not in known:
            spec, config = MODELS[name]
            path = tmp_path_factory.mktemp("graph") / "model.onnx"
            ir.save(graph_from_module(spec, config), path)
            found = checkpoint(SimpleNamespace(name=name, spec=spec, config=config, graph=path))
            known[name] = found.components["onnx"]
        return known[name]

    return make


def session(component: Component, runtime: str = "onnx", changed: Any = None) -> Any:
    return load_runtime(runtime).open(component, Device("cpu"), Options(threads=1), changed or {})


def once(name: str, parts: dict[str, Component], runtime: str = "onnx", changed: Any = None) -> PromptOnce:
    """Both parts as one session."""
    found = PromptParts.of(name, parts)
    assert found is not None
    return found.open(lambda one, some: session(one, runtime, some), changed or {})


def both(
    whole: Component, parts: dict[str, Component], sizes: Any, runtime: str = "onnx", changed: Any = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the whole graph and its parts give for the same inputs."""
    one, other = session(whole, runtime, changed), once(whole.name, parts, runtime, changed)
    try:
        assert other.inputs == one.inputs
        assert other.outputs == one.outputs
        tensors = sample_inputs(whole, sizes, seed=1)
        expected = one.run(tensors)
        found = [other.run(tensors) for _ in range(2)]  # the second takes what the prompt decided from the first
        return [(got[name], expected[name]) for got in found for name in expected]
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("sd", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.k"),
        pytest.param("control", "mid_block.attentions.0.transformer_blocks.0.attn2.v", marks=pytest.mark.slow),
        pytest.param("sdxl", "add_embedding", marks=pytest.mark.slow),
        pytest.param("lcm", "time_embedding.cond_proj", marks=pytest.mark.slow),
        pytest.param("sana", "transformer_blocks.1.attn2.v", marks=pytest.mark.slow),
    ],
)
def test_the_parts_give_what_the_whole_graph_does(
    made: Callable[[str], Component], tmp_path: Path, name: str, named: str
) -> None:
    whole = own_copy(made(name), tmp_path)
    before = whole.graph_path.read_bytes()
    parts = cut_prompt_part(whole)
    assert whole.graph_path.read_bytes() == before
    prompt, step = (parts[whole.name + kind] for kind in ("_prompt", "_step"))
    assert named in prompt.outputs
    assert prompt.outputs == {n: step.inputs[n] for n in prompt.outputs}
    assert prompt.inputs.keys() <= set(GIVEN)
    assert not step.inputs.keys() & set(GIVEN)
    assert prompt.weights == step.weights == whole.weights
    stored = [set(stored_weights(one)) for one in (whole, prompt, step)]
    assert stored[0] == stored[1] | stored[2]
    assert not stored[1] & stored[2]
    keys = {n for n in stored[0] if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert keys
    assert keys <= stored[1]
    for sizes in whole.details["checks"]:
        for got, expected in both(whole, parts, sizes):
            assert np.ptp(expected) > 0.1, "zeros would prove nothing"
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_openvino_runs_them_too(made: Callable[[str], Component], tmp_path: Path, name: str) -> None:
    pytest.importorskip("openvino")
    whole = own_copy(made(name), tmp_path)
    for got, expected in both(whole, cut_prompt_part(whole), whole.details["checks"][0], "openvino"):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_a_shallow_graph_has_parts_of_its_own(made: Callable[[str], Component], tmp_path: Path) -> None:
    cuts = cut_in_place(own_copy(made("sd"), tmp_path), 1)
    parts = prompt_parts(cuts, "unet")
    assert list(parts) == ["unet_prompt", "unet_step", "unet_shallow_prompt", "unet_shallow_step"]
    assert parts["unet_step"].outputs.keys() == {"out_sample", "deep_features"}
    assert len(parts["unet_shallow_prompt"].outputs) < len(parts["unet_prompt"].outputs)
    for whole in cuts.values():
        for got, expected in both(whole, parts, {"batch": 2, "height": 8, "width": 8, "tokens": 77}):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("id", ["int8-weights", "int4-weights:group=16", "fp8"])
def test_a_quantized_graph_is_cut(float_unet: Component, tmp_path: Path, id: str) -> None:
    whole = quantize_weights(float_unet, recipe(id), tmp_path)
    parts = cut_prompt_part(whole)
    assert {n.rpartition(".")[2] for n in parts["unet_prompt"].outputs} == {"k", "v"}
    assert "DequantizeLinear" in {node.op_type for node in ir.load(parts["unet_prompt"].graph_path).graph}
    if id == "fp8":
        return  # which ONNX Runtime computes with on no processor
    for got, expected in both(whole, parts, {"batch": 2, "height": 8, "width": 8, "tokens": 77}):
        np.testing.assert_array_equal(got, expected)


def test_a_graph_in_calibrated_int8_is_cut(static_unet: Component, tmp_path: Path) -> None:
    whole = own_copy(static_unet, tmp_path)
    parts = cut_prompt_part(whole)
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn2.k" in parts["unet_prompt"].outputs
    for got, expected in both(whole, parts, {"batch": 2, "height": 8, "width": 8, "tokens": 77}):
        np.testing.assert_array_equal(got, expected)


def test_changed_weights_reach_the_part_that_has_them(made: Callable[[str], Component], tmp_path: Path) -> None:
    whole = own_copy(made("sd"), tmp_path)
    parts = cut_prompt_part(whole)
    sizes = {"batch": 2, "height": 8, "width": 8, "tokens": 77}
    plain = both(whole, parts, sizes)[0][1]
    rng = np.random.default_rng(0)
    for name in ("attn2.to_k", "attn2.to_q"):
        name = f"mid_block.attentions.0.transformer_blocks.0.{name}.weight"
        shape = stored_weights(whole)[name].shape
        changed = {name: rng.standard_normal(shape).astype(np.float32)}
        for got, expected in both(whole, parts, sizes, changed=changed):
            np.testing.assert_array_equal(got, expected)
            assert np.abs(expected - plain).max() > 1e-4
    with pytest.raises(BadInput, match="no such weight"):
        once("unet", parts, changed={"nothing.weight": np.zeros((2, 2), np.float32)})


def test_what_a_prompt_decides_is_computed_once(made: Callable[[str], Component], tmp_path: Path) -> None:
    whole = own_copy(made("sd"), tmp_path)
    parts, expected = cut_prompt_part(whole), session(whole)
    prompt, step = session(parts["unet_prompt"]), session(parts["unet_step"])
    calls, run = [], prompt.run

    def counted(tensors: Any) -> Any:
        calls.append(1)
        return run(tensors)

    prompt.run = counted
    found = PromptOnce(prompt, step)
    sizes = {"batch": 2, "height": 8, "width": 8, "tokens": 77}
    tensors = [sample_inputs(whole, sizes, seed=seed) for seed in range(2)]
    for one in (tensors[0], tensors[0], tensors[1], {n: v.copy() for n, v in tensors[0].items()}):
        np.testing.assert_array_equal(found.run(one)["out_sample"], expected.run(one)["out_sample"])
    assert len(calls) == 2, "known again by its numbers"
    tensors[0]["encoder_hidden_states"] *= 2  # the same array with others in it
    np.testing.assert_array_equal(found.run(tensors[0])["out_sample"], expected.run(tensors[0])["out_sample"])
    assert len(calls) == 3
    for _ in range(33):
        found.run(tensors[0])
    assert len(found._kept) == 1, "others are forgotten"
    assert len(calls) == 3
    found.run(tensors[1])
    assert len(calls) == 4
    found.close()
    expected.close()


def test_what_has_no_such_part_is_refused(
    made: Callable[[str], Component], vit_model: Any, emotions_source: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"takes no prompt.*Leave --prompt-once out"):
        cut_prompt_part(vit_model.components["onnx"])
    with pytest.raises(UsageError, match=r"no denoiser that takes a prompt.*Leave --prompt-once out"):
        export_model(emotions_source, tmp_path / "out", prompt_once=True)


@pytest.mark.slow
def test_joint_attention_is_refused(made: Callable[[str], Component], tmp_path: Path) -> None:
    whole = own_copy(made("sd3"), tmp_path)
    with pytest.raises(BadInput, match="no cross-attention whose keys and values a prompt decides"):
        cut_prompt_part(whole)
    assert [path.name for path in whole.graph_path.parent.glob("*.onnx")] == ["model.onnx"]


@pytest.fixture(scope="module")
def exported(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("once") / "emoji"
    export_model(diffusion_source, target, step_cache=1, prompt_once=True, verify=True)
    return target


def test_an_export_proves_both_and_says_how_it_was_made(exported: Path, diffusion_artifact: Path) -> None:
    artifact = Artifact.load(exported)
    for name in ("unet_step", "unet_shallow_step"):
        numeric = artifact.components[name].proof["numeric"]
        assert numeric["max_abs"] == 0
        assert numeric["reference"] == f"{name.removesuffix('_step')} of the same artifact"
    assert artifact.components["unet_prompt"].proof["numeric"] == "with unet_step"
    assert artifact.components["unet_prompt"].proof["weights"] == artifact.components["unet"].proof["weights"]
    assert artifact.model["prompt_once"] is True
    assert "--prompt-once" in artifact.built["command"].split()
    assert "True" not in artifact.built["command"]
    plain = Artifact.load(diffusion_artifact).components["unet"]
    assert artifact.components["unet"].inputs == plain.inputs, "the whole one is laid out as ever"


def test_it_draws_the_same_pictures(exported: Path, diffusion_artifact: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"steps": 4, "guidance": 3, "seed": 2, "batch": 2}
    plain: Any = vitrify.load(diffusion_artifact, "cpu")
    pipeline: Any = vitrify.load(exported, "cpu")
    expected = plain.generate(PROMPT, **asked)
    found = pipeline.generate(PROMPT, **asked)
    assert isinstance(pipeline.sessions["unet"], PromptOnce)
    for mine, other in zip(found.images, expected.images, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert found.placement["unet"] == expected.placement["unet"]
    whole = Artifact.load(exported).components["unet"]
    kept = pipeline.generate(PROMPT, step_cache="2", **asked).images
    pipeline.close()
    shutil.copytree(exported, tmp_path / "whole")
    manifest = Artifact.load(tmp_path / "whole")
    names = [name for name in manifest.components if not name.endswith(("_prompt", "_step"))]
    manifest = type(manifest)(**{**vars(manifest), "components": {n: manifest.components[n] for n in names}})
    assert whole.outputs.keys() == {"out_sample", "deep_features"}
    wholes: Any = vitrify.load(manifest, "cpu")
    for mine, other in zip(kept, wholes.generate(PROMPT, step_cache="2", **asked).images, strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    wholes.close()
    plain.close()


def test_a_lora_reaches_keys_and_values(exported: Path, diffusion_artifact: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    rng, stored = np.random.default_rng(0), stored_weights(Artifact.load(exported).components["unet"])
    matrices = {}
    for part in ("attn2.to_k", "attn2.to_v", "attn1.to_q"):
        name = f"up_blocks.2.attentions.1.transformer_blocks.0.{part}"
        shape = stored[f"{name}.weight"].shape
        assert shape is not None
        matrices[f"unet.{name}.lora_A.weight"] = rng.standard_normal((2, shape[1])).astype(np.float32)
        matrices[f"unet.{name}.lora_B.weight"] = rng.standard_normal((shape[0], 2)).astype(np.float32)
    save_file(matrices, tmp_path / "strong.safetensors")
    drawn = []
    for artifact in (exported, diffusion_artifact):
        pipeline: Any = vitrify.load(artifact, "cpu")
        asked: dict[str, Any] = {"steps": 3, "guidance": 3, "seed": 2}
        first = np.asarray(pipeline.generate(PROMPT, **asked).images[0])
        changed = pipeline.generate(PROMPT, loras={str(tmp_path / "strong.safetensors"): 1.0}, **asked)
        again = np.asarray(pipeline.generate(PROMPT, **asked).images[0])
        pipeline.close()
        drawn.append(np.asarray(changed.images[0]))
        assert np.abs(drawn[-1].astype(int) - first).max() > 10
        np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(*drawn)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "quant"),
    [
        ("onnx", "int8-weights"),
        pytest.param("openvino", "fp32", marks=pytest.mark.slow),
        pytest.param("openvino", "nf4-weights", marks=pytest.mark.slow),
        ("torch", "fp32"),
    ],
)
def test_compiling_keeps_the_parts(exported: Path, tmp_path: Path, to: str, quant: str) -> None:
    pytest.importorskip(to.replace("onnx", "onnxruntime"))
    from vitrify.export.compile import compile_model

    made = compile_model(exported, tmp_path / "made", to=to, quant=quant, verify=to != "torch")
    if to == "torch":  # whose module is called whole
        assert {name for name in made.components if name.startswith("unet")} == {"unet"}
        return
    assert {"unet_prompt", "unet_step", "unet_shallow_prompt", "unet_shallow_step"} <= made.components.keys()
    assert "--prompt-once" in made.built["command"]
    for name in ("unet_step", "unet_shallow_step"):
        assert made.components[name].proof["numeric"]["relative"] <= (0 if to == "onnx" else 1e-5)
        if to == "openvino":
            files = {(made.root / made.components[n].weights[0].path).stat().st_ino for n in (name, "unet")}
            assert len(files) == 1, "a second copy of the weights"
    pipeline: Any = vitrify.load(made, "cpu")
    assert pipeline.generate(PROMPT, steps=2, guidance=3, seed=2).images[0].size == (64, 64)
    assert isinstance(pipeline.sessions["unet"], PromptOnce)
    pipeline.close()


def test_verify_traces_the_weights_of_the_parts(exported: Path, tmp_path: Path, vitrify: Callable[..., Any]) -> None:
    shutil.copytree(exported, tmp_path / "copy")
    assert vitrify("verify", tmp_path / "copy", "--json").code == 0
    proved = Artifact.load(tmp_path / "copy").components
    assert proved["unet_step"].proof["weights"]["tensors"] == proved["unet"].proof["weights"]["tensors"]
    assert proved["unet_step"].proof["numeric"]["max_abs"] == 0
