"""ControlNets (Zhang et al., arXiv 2302.05543): those for Stable Diffusion 1, 2 and XL, and their UNets.

For the transformers of other families see controlnet_flow.py; what is asked of any ControlNet is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.errors import BadInput, UsageError
from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .controlnet_flow import (
    CLASSES,
    check_flow_controlnet,
    flow_controlnet,
    flow_settings,
    takes_control,
    with_blocks,
)
from .sd import SD

F32 = DType.FLOAT32
CLASS = "ControlNetModel"
# what diffusers names the residuals of is known of these; others give more or fewer
_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
_REFUSED = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
_TIME_IDS = 6  # original size, crop, size of SDXL
_UNET = next(spec for spec in SD if spec.name == "unet")


def residual_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Residual -> (channels, level), in the order in which a UNet adds them; level n has 2**n fewer pixels a side.

    Args:
        config: of a UNet, or of the ControlNet that belongs to it.

    Raises:
        BadInput: blocks whose residuals are not known.
    """
    kinds = list(config["down_block_types"])
    unknown = [kind for kind in kinds if kind not in _BLOCKS]
    if unknown:
        raise BadInput(f"ControlNets for blocks of {unknown[0]} are not supported.", "Use another model.")
    channels = [int(c) for c in config["block_out_channels"]]
    layers = config.get("layers_per_block", 2)
    counts = [int(n) for n in layers] if isinstance(layers, list | tuple) else [int(layers)] * len(channels)
    rows = [(channels[0], 0)]
    for level, (width, count) in enumerate(zip(channels, counts, strict=True)):
        rows += [(width, level)] * count
        if level < len(channels) - 1:
            rows.append((width, level + 1))
    named = {f"down_residual_{number}": row for number, row in enumerate(rows)}
    return named | {"mid_residual": (channels[-1], len(channels) - 1)}


def with_control(spec: ComponentSpec) -> ComponentSpec:
    """The denoiser's spec with the residuals of a ControlNet as further inputs; of transformers, see `with_blocks`.

    Their batch, heights and widths are symbols of their own, shared among them: a call gives all of them in full, or
    all as [1, channels, 1, 1]. The graph is traced with the latter, so that nothing in it asks for their sizes and
    each is added by one Add that broadcasts.

    Raises:
        UsageError: the component is no denoiser.
    """
    if takes_control(spec):
        return with_blocks(spec)
    if not spec.kind.startswith("unet"):
        raise UsageError(f"{spec.name} is no denoiser, so it takes no ControlNet.", "Leave --control out.")

    def inputs(config: Config) -> dict[str, TensorSpec]:
        rows = residual_shapes(config).items()
        return spec.inputs(config) | {n: TensorSpec(F32, _dims(channels, level)) for n, (channels, level) in rows}

    def example(config: Config) -> dict[str, int]:
        return spec.example(config) | dict.fromkeys(_symbols(config), 1)

    def shapes(config: Config) -> dict[str, tuple[int, int, int]]:
        own = spec.shapes(config)
        made = dict(own) | {"control_batch": (1, own["batch"][1], own["batch"][2])}
        for level in range(len(config["block_out_channels"])):
            for side in ("height", "width"):
                _, usual, largest = own[side]
                made[f"control_{side}_{level}"] = (1, _halved(usual, level), _halved(largest, level))
        return made

    def checks(config: Config) -> list[dict[str, int]]:
        own = spec.checks(config)
        plain = dict.fromkeys(_symbols(config), 1)
        return [*(sizes | _sizes(config, sizes) for sizes in own), *(sizes | plain for sizes in own[-1:])]

    kind = spec.kind.replace("unet", "unet_control", 1)  # what is behind the name stays
    return replace(
        spec,
        kind=kind,
        inputs=inputs,
        example=example,
        shapes=shapes,
        checks=checks,
    )


def _dims(channels: int, level: int) -> tuple[str | int, ...]:
    return ("control_batch", channels, f"control_height_{level}", f"control_width_{level}")


def _symbols(config: Config) -> list[str]:
    levels = range(len(config["block_out_channels"]))
    return ["control_batch", *(f"control_{side}_{level}" for level in levels for side in ("height", "width"))]


def _sizes(config: Config, sizes: Mapping[str, int]) -> dict[str, int]:
    """The residuals' own sizes beside latents of these."""
    made = {"control_batch": sizes["batch"]}
    for level in range(len(config["block_out_channels"])):
        made |= {f"control_{side}_{level}": _halved(sizes[side], level) for side in ("height", "width")}
    return made


def _halved(size: int, times: int) -> int:
    """Rounded up, as a convolution of 3 with a stride of 2 and padding of 1 does."""
    return -(-size // (1 << times))


def _scale(config: Config) -> int:
    """Pixels of the control picture for one latent, along a side: one convolution a width halves, but the first's."""
    return int(2 ** (len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1))


def _inputs(config: Config) -> dict[str, TensorSpec]:
    channels = int(config.get("conditioning_channels") or 3)
    made = _UNET.inputs(config) | {
        "controlnet_cond": TensorSpec(F32, ("batch", channels, "picture_height", "picture_width")),
        "conditioning_scale": TensorSpec(F32, ()),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = int(config["projection_class_embeddings_input_dim"])
        pooled -= _TIME_IDS * int(config["addition_time_embed_dim"])
        made["text_embeds"] = TensorSpec(F32, ("batch", pooled))
        made["time_ids"] = TensorSpec(F32, ("batch", _TIME_IDS))
    return made


def _outputs(config: Config) -> dict[str, TensorSpec]:
    pooled = bool(config.get("global_pool_conditions"))

    def dims(level: int) -> tuple[str | int, str | int]:
        if pooled:
            return 1, 1
        return (f"height_{level}", f"width_{level}") if level else ("height", "width")

    rows = residual_shapes(config).items()
    return {name: TensorSpec(F32, ("batch", channels, *dims(level))) for name, (channels, level) in rows}


def _with_pictures(config: Config, sizes: Mapping[str, int]) -> dict[str, int]:
    return {**sizes, **{f"picture_{side}": sizes[side] * _scale(config) for side in ("height", "width")}}


def _example(config: Config) -> dict[str, int]:
    return _with_pictures(config, _UNET.example(config))


def _checks(config: Config) -> list[dict[str, int]]:
    return [_with_pictures(config, sizes) for sizes in _UNET.checks(config)]


def _shapes(config: Config) -> dict[str, tuple[int, int, int]]:
    made = dict(_UNET.shapes(config))
    for side in ("height", "width"):
        least, usual, most = (size * _scale(config) for size in made[side])
        made[f"picture_{side}"] = (least, usual, most)
    return made


CONTROLNET = (
    ComponentSpec(
        name="controlnet",
        kind="controlnet",
        folder="",
        stem="diffusion_pytorch_model",
        library="diffusers",
        inputs=_inputs,
        outputs=_outputs,
        example=_example,
        shapes=_shapes,
        checks=_checks,
        narrow=_UNET.narrow,
        samples=lambda c: {"timestep": [0, 999]},
    ),
)


def controlnet_specs(config: Config) -> tuple[ComponentSpec, ...]:
    """The one component of a ControlNet, by its config."""
    return (flow_controlnet(config),) if str(config.get("_class_name")) in CLASSES else CONTROLNET


def is_controlnet(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one of diffusers' ControlNets, of any kind."""
    return "ControlNet" in str(config.get("_class_name"))


def check_controlnet(given: str, config: Mapping[str, Any]) -> None:
    """Refuse ControlNets whose call needs more than ours gives.

    Raises:
        BadInput: another class, or an embedding that is not supported.
    """
    name = str(config.get("_class_name"))
    if name in CLASSES:
        return check_flow_controlnet(given, config)
    if name != CLASS:
        why = "which holds several ControlNets behind a switch" if "Union" in name else "which is not supported"
        raise BadInput(f"{given} is a {name}, {why}.", f"Use a {', '.join((CLASS, *CLASSES[:-1]))} or {CLASSES[-1]}.")
    channels = int(config.get("conditioning_channels") or 3)
    if channels != 3:
        raise BadInput(f"{given}: its pictures have {channels} channels, not 3.", "Use another ControlNet.")
    for key in _REFUSED:
        if config.get(key):
            raise BadInput(f"{given}: its {key} is {config[key]!r}, which is not supported.", "Use another ControlNet.")
    kind = config.get("addition_embed_type")
    if kind not in (None, "text_time"):
        raise BadInput(f"{given}: its addition_embed_type is {kind!r}, which is not supported.", "Use another one.")


def controlnet_settings(config: Config) -> dict[str, Any]:
    """The manifest's `pipeline` part of a ControlNet.

    control: how many residuals it gives; scale: pixels of its picture for one latent; pooled: whether one number stands
    for a whole residual, and then it is added to the wanted half alone. Of transformers' ControlNets: `flow_settings`.
    """
    if str(config.get("_class_name")) in CLASSES:
        control = flow_settings(config)
    else:
        control = {
            "residuals": len(residual_shapes(config)),
            "scale": _scale(config),
            "pooled": bool(config.get("global_pool_conditions")),
        }
    return {"family": "controlnet", "tasks": ["control"], "control": control, "files": {"config": "config.json"}}
