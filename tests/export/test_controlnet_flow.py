"""ControlNets of transformers: what they and their transformers take and give, and which are refused.

That they compute what diffusers' modules do is shown in tests/pipelines/families/test_control_flow.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.export.families.controlnet import check_controlnet, controlnet_settings, controlnet_specs, with_control
from vitrify.export.families.pipelines import SPECS

SIZES: dict[str, dict[str, Any]] = {
    "sd3": {
        "in_channels": 16, "patch_size": 2, "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 4,
        "joint_attention_dim": 32, "pooled_projection_dim": 20, "pos_embed_max_size": 12, "caption_projection_dim": 24,
    },
    "flux": {
        "in_channels": 64, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 3, "num_single_layers": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 20, "axes_dims_rope": [2, 4, 4], "guidance_embeds": True,
    },
    "sana": {
        "in_channels": 4, "num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 3, "caption_channels": 32,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
    },
}  # fmt: skip
CLASSES = {"sd3": "SD3ControlNetModel", "flux": "FluxControlNetModel", "sana": "SanaControlNetModel"}


def net(family: str, **changed: Any) -> dict[str, Any]:
    return SIZES[family] | {"_class_name": CLASSES[family]} | changed


def transformer(family: str) -> Any:
    return next(spec for spec in SPECS[family] if spec.name == "transformer")


@pytest.mark.parametrize(("family", "double", "single"), [("sd3", 3, 0), ("flux", 3, 2), ("sana", 2, 0)])
def test_a_transformer_takes_one_residual_a_block(family: str, double: int, single: int) -> None:
    config, plain, spec = SIZES[family], transformer(family), with_control(transformer(family))
    assert spec.kind == f"{plain.kind}_control"
    more = {n: v.shape for n, v in spec.inputs(config).items() if n not in plain.inputs(config)}
    width = config["num_attention_heads"] * config["attention_head_dim"]
    assert more == {
        **{f"block_residual_{n}": ("control_batch", "control_tokens", width) for n in range(double)},
        **{f"single_residual_{n}": ("single_batch", "single_tokens", width) for n in range(single)},
    }
    symbols = {d for shape in more.values() for d in shape if isinstance(d, str)}
    assert {n: spec.example(config)[n] for n in symbols} == dict.fromkeys(symbols, 1)
    assert symbols <= spec.shapes(config).keys()
    first, *_, last = spec.checks(config)
    tokens = first["image_tokens"] if "image_tokens" in first else first["height"] * first["width"]
    assert first["control_tokens"] == tokens // config.get("patch_size", 1) ** 2
    assert {last[n] for n in symbols} == {1}
    assert last["batch"] > 1


@pytest.mark.parametrize(("family", "double", "single"), [("sd3", 4, 0), ("flux", 3, 2), ("sana", 3, 0)])
def test_a_controlnet_takes_what_its_transformer_does(family: str, double: int, single: int) -> None:
    config = net(family)
    check_controlnet("net", config)
    (spec,) = controlnet_specs(config)
    inputs = transformer(family).inputs(config)
    assert [*spec.inputs(config)] == [*inputs, "controlnet_cond", "conditioning_scale"]
    assert spec.inputs(config)["controlnet_cond"] == inputs["hidden_states"]
    names = [*(f"block_residual_{n}" for n in range(double)), *(f"single_residual_{n}" for n in range(single))]
    assert [*spec.outputs(config)] == names
    assert controlnet_settings(config)["control"]["residuals"] == double + single


@pytest.mark.parametrize(
    ("config", "drawn", "shifted", "zeros"),
    [
        (net("sd3"), False, False, ["pooled_projections"]),
        (net("sd3", force_zeros_for_pooled_projection=False), False, True, []),
        (net("flux"), True, True, []),
        (net("sana"), False, True, []),
    ],
)
def test_settings_say_how_its_picture_is_encoded(config: Any, drawn: bool, shifted: bool, zeros: list[str]) -> None:
    control = controlnet_settings(config)["control"]
    assert control["encoded"] == {"drawn": drawn, "shifted": shifted}
    assert (control["zeros"], control["pooled"], "scale" in control) == (zeros, False, False)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (net("flux", num_mode=10), "10 kinds of control pictures behind a switch"),
        (net("flux", conditioning_embedding_channels=16), "pixels instead of its latents"),
        (net("sd3", extra_conditioning_channels=1), "for inpainting"),
        (net("sd3", use_pos_embed=False), "no positions of its own"),
        (net("sd3", joint_attention_dim=None), "reads no text"),
        (net("sd3") | {"_class_name": "HunyuanDiT2DControlNetModel"}, "not supported"),
    ],
)
def test_what_needs_more_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        check_controlnet("net", config)
