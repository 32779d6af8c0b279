"""ControlNets as artifacts, and UNets that take their residuals: tiny random ones, beside diffusers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.errors import BadInput, UsageError
from vitrify.core.registry import load_runtime
from vitrify.export.families.controlnet import (
    CONTROLNET,
    check_controlnet,
    controlnet_settings,
    residual_shapes,
    with_control,
)
from vitrify.export.families.sd import SD
from vitrify.quant.recipes import recipe
from vitrify.runtimes.base import Options

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")

pytestmark = pytest.mark.slow  # traces many graphs: minutes on an empty cache

UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 1, "block_out_channels": [8, 16], "cross_attention_dim": 12, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "norm_num_groups": 4,
}  # fmt: skip
SIZES = UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [1, 2], "use_linear_projection": True, "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 10 + 6 * 4,
}  # fmt: skip
DEEP = UNET | {
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 2,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "block_out_channels": [8, 16, 16],
}  # fmt: skip
MODELS = {"sd": UNET, "sdxl": SIZES}


def control_config(unet: dict[str, Any], **changed: Any) -> dict[str, Any]:
    left = {k: v for k, v in unet.items() if k not in ("sample_size", "out_channels", "up_block_types", "_class_name")}
    named = {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [8, 8, 16]}
    return left | named | changed


def unet_spec(config: dict[str, Any]) -> Any:
    if "addition_embed_type" not in config:
        return with_control(next(s for s in SD if s.name == "unet"))
    sdxl = pytest.importorskip("vitrify.export.families.sdxl", reason="SDXL's export")
    return with_control(next(s for s in sdxl.SDXL if s.name == "unet"))


def inputs_at(component: Component, sizes: dict[str, int], seed: int = 0) -> dict[str, Any]:
    from vitrify.proof.parity import sample_inputs

    return sample_inputs(component, sizes, seed)


def traced(spec: Any, config: dict[str, Any], folder: Path) -> tuple[Any, Component, Component]:
    """A random module, its proved graph over its own weights, and the reference."""
    import onnx_ir as ir

    from vitrify.core.cache import Cache
    from vitrify.core.progress import silent
    from vitrify.core.safetensors_header import open_checkpoint
    from vitrify.export.graph import quiet
    from vitrify.export.graphs import graph_for
    from vitrify.export.link import link_weights
    from vitrify.export.names import bind_module
    from vitrify.export.twin import random_module
    from vitrify.runtimes.torch.modules import no_bars

    module = random_module(spec, config)
    with quiet(), no_bars():
        module.save_pretrained(folder / "source")
    graph = graph_for(spec, config, Cache(), silent)
    bindings = bind_module(module, open_checkpoint(folder / "source", (spec.stem,)))
    weights, _ = link_weights(graph.model, bindings.linked, folder / "artifact", spec.name)
    ir.save(graph.model, folder / "artifact" / spec.name / "model.onnx")
    made = spec.component(config, "onnx", f"{spec.name}/model.onnx", folder / "artifact", tuple(weights))
    return graph, made, spec.component(config, "torch", "config.json", folder / "source", ())


@pytest.fixture(scope="module", params=MODELS)
def control_unet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = MODELS[request.param]
    return config, *traced(unet_spec(config), config, tmp_path_factory.mktemp(f"unet-{request.param}"))


def run(component: Component, tensors: dict[str, Any], runtime: str | None = None) -> dict[str, Any]:
    session = load_runtime(runtime or component.format).open(component, Device("cpu"), Options())
    try:
        return session.run(tensors)
    finally:
        session.close()


@pytest.mark.parametrize("unet", [UNET, SIZES, DEEP])
@pytest.mark.parametrize("size", [16, 20])
def test_residuals_are_those_that_a_controlnet_gives(unet: dict[str, Any], size: int) -> None:
    from vitrify.export.families.controlnet import _halved

    config = control_config(unet)
    net = diffusers.ControlNetModel.from_config(config).eval()
    added = {"text_embeds": torch.zeros(1, 10), "time_ids": torch.zeros(1, 6)} if unet is SIZES else None
    with torch.no_grad():
        down, mid = net(
            torch.zeros(1, 4, size, size), 1, torch.zeros(1, 7, 12), torch.zeros(1, 3, size * 4, size * 4),
            added_cond_kwargs=added, return_dict=False,
        )  # fmt: skip
    found = [(c, _halved(size, level)) for c, level in residual_shapes(config).values()]
    assert found == [tuple(t.shape[1:3]) for t in (*down, mid)]


def test_residuals_of_stable_diffusion_1() -> None:
    full = {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "layers_per_block": 2}
    rows = residual_shapes(full | {"block_out_channels": [320, 640, 1280, 1280]})
    assert list(rows)[-2:] == ["down_residual_11", "mid_residual"]
    assert [c for c, _ in rows.values()] == [320] * 4 + [640] * 3 + [1280] * 6
    assert [level for _, level in rows.values()] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def test_each_residual_is_read_by_one_plain_add(control_unet: Any) -> None:
    config, graph, component, _ = control_unet
    named = {v.name: v for v in graph.model.graph.inputs}
    for name, (channels, _) in residual_shapes(config).items():
        users = [node for node, _ in named[name].uses()]
        assert [node.op_type for node in users] == ["Add"], name
        assert list(component.inputs[name].shape)[1] == channels
        assert isinstance(component.inputs[name].shape[2], str)


def test_sums_with_residuals_stay_in_float(control_unet: Any) -> None:
    """In int8: while inputs are recorded they are zeros, and no range for what they will be."""
    from vitrify.export.static import _stays

    config, graph, _, _ = control_unet
    sums = [node for node in graph.model.graph if node.op_type == "Add"]
    reads = [any(v is not None and v.name in residual_shapes(config) for v in node.inputs) for node in sums]
    assert [_stays(node, recipe("int8-static"), set()) for node in sums] == reads
    assert sum(reads) == len(residual_shapes(config)) < len(sums)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_it_computes_what_diffusers_does(control_unet: Any, runtime: str, off: Any) -> None:
    """At full size, and spread over pixels and pictures."""
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    config, _, component, reference = control_unet
    for sizes in unet_spec(config).checks(config):
        tensors = inputs_at(component, sizes)
        expected, got = run(reference, tensors)["out_sample"], run(component, tensors, runtime)["out_sample"]
        assert off(expected, got) < 1e-4
    module = diffusers.UNet2DConditionModel.from_pretrained(reference.root)
    tensors = inputs_at(component, unet_spec(config).checks(config)[0])
    given = {n: torch.from_numpy(np.array(v)) for n, v in tensors.items()}
    names = list(residual_shapes(config))
    added = {n: given[n] for n in ("text_embeds", "time_ids") if n in given}
    with torch.no_grad():
        own = module(
            given["sample"], given["timestep"], given["encoder_hidden_states"], added_cond_kwargs=added or None,
            down_block_additional_residuals=[given[n] for n in names[:-1]],
            mid_block_additional_residual=given[names[-1]],
        ).sample.numpy()  # fmt: skip
    assert off(own, run(component, tensors, runtime)["out_sample"]) < 1e-4
    changed = tensors | {names[0]: tensors[names[0]] * 0}
    assert off(own, run(component, changed, runtime)["out_sample"]) > 1e-3, "the comparison can fail"


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_zeros_of_one_pixel_are_no_controlnet(control_unet: Any, runtime: str, off: Any) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    config, _, component, reference = control_unet
    sizes = unet_spec(config).checks(config)[-1]
    assert sizes["control_batch"] == sizes["control_height_1"] == 1
    assert sizes["batch"] > 1
    tensors = {n: v * 0 if n in residual_shapes(config) else v for n, v in inputs_at(component, sizes).items()}
    module = diffusers.UNet2DConditionModel.from_pretrained(reference.root)
    given = {n: torch.from_numpy(np.array(v)) for n, v in tensors.items()}
    added = {n: given[n] for n in ("text_embeds", "time_ids") if n in given}
    with torch.no_grad():
        plain = module(
            given["sample"], given["timestep"], given["encoder_hidden_states"], added_cond_kwargs=added or None
        ).sample.numpy()
    assert off(plain, run(component, tensors, runtime)["out_sample"]) < 1e-4


def test_residuals_of_mixed_sizes_are_refused(control_unet: Any) -> None:
    config, _, component, _ = control_unet
    tensors = inputs_at(component, unet_spec(config).checks(config)[0])
    tensors["mid_residual"] = tensors["mid_residual"][:, :, :1, :1]
    with pytest.raises(BadInput, match="mid_residual"):
        run(component, tensors)


def test_the_proof_of_a_control_unet_compares_both_forms(control_unet: Any) -> None:
    _, graph, _, _ = control_unet
    assert graph.proof["relative"] <= 1e-4
    assert [s["control_height_1"] for s in graph.proof["shapes"]] == [8, 4, 1]


def test_a_plan_is_built_of_a_control_unet(control_unet: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
    from vitrify.export.plan import build_plan

    _, _, component, _ = control_unet
    plan = build_plan(component, tmp_path)
    assert plan.weights[0].bytes > 10_000
    assert plan.inputs == component.inputs


NETS = {
    "sd": control_config(UNET),
    "sdxl": control_config(SIZES),
    "other": control_config(UNET, controlnet_conditioning_channel_order="bgr", global_pool_conditions=True),
}


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = NETS[request.param]
    return config, *traced(CONTROLNET[0], config, tmp_path_factory.mktemp(f"net-{request.param}"))[1:]


@pytest.mark.parametrize("runtime", ["onnx", "openvino", "torch"])
def test_a_controlnet_computes_what_diffusers_does(net: Any, runtime: str, off: Any) -> None:
    config, component, reference = net
    pytest.importorskip({"onnx": "onnxruntime"}.get(runtime, runtime))
    module = diffusers.ControlNetModel.from_pretrained(reference.root)
    for sizes in CONTROLNET[0].checks(config):
        tensors = inputs_at(component, sizes)
        given = {n: torch.from_numpy(np.array(v)) for n, v in tensors.items()}
        added = {n: given.pop(n) for n in ("text_embeds", "time_ids") if n in given}
        with torch.no_grad():
            down, mid = module(**given, added_cond_kwargs=added or None, return_dict=False)
        got = run(reference if runtime == "torch" else component, tensors, runtime)
        assert list(got) == [*residual_shapes(config)]
        for expected, (key, value) in zip((*down, mid), got.items(), strict=True):
            assert off(expected.numpy(), value) < 1e-4, key


def test_strength_scales_what_a_controlnet_gives(net: Any) -> None:
    config, component, _ = net
    tensors = inputs_at(component, CONTROLNET[0].checks(config)[0])
    one, half = (run(component, tensors | {"conditioning_scale": np.float32(s)}) for s in (1, 0.5))
    for name, value in one.items():
        np.testing.assert_allclose(value, 2 * half[name], rtol=1e-5, atol=1e-5)


def test_settings_say_what_a_controlnet_needs() -> None:
    config = control_config(UNET, global_pool_conditions=True)
    assert controlnet_settings(config)["control"] == {"residuals": 5, "scale": 4, "pooled": True}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"_class_name": "ControlNetUnionModel"}, "several ControlNets behind a switch"),
        ({"_class_name": "HunyuanDiT2DControlNetModel"}, "not supported"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
        ({"addition_embed_type": "text"}, "addition_embed_type"),
        ({"conditioning_channels": 4}, "4 channels"),
    ],
)
def test_other_controlnets_are_refused(changed: dict[str, Any], said: str) -> None:
    check_controlnet("net", control_config(UNET))
    with pytest.raises(BadInput, match=said):
        check_controlnet("net", control_config(UNET, **changed))


def test_what_is_no_denoiser_takes_no_control() -> None:
    with pytest.raises(UsageError, match="is no denoiser"):
        with_control(SD[0])
    with pytest.raises(BadInput, match="KDownBlock2D"):
        residual_shapes(UNET | {"down_block_types": ["KDownBlock2D"] * 2})
