"""What a denoiser and a ControlNet are called with in diffusers, as the named tensors of their graphs.

No table of families: an argument goes to the input of its name, under the signature of the component's own class. An
argument that the graph has no input for is refused, for leaving it out would draw another picture.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ..core.errors import BadInput
from ..core.tensors import Array, TensorSpec
from ..pipelines.control import DOWN, MIDDLE, is_residual, zero_residual
from ..pipelines.families.base import check_finite
from ..runtimes.base import Session
from .values import fit_rank, to_array, to_tensor

Ask = Callable[[], Session]

SCALE = "conditioning_scale"
_NESTED = ("added_cond_kwargs", "cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
_WHY = {
    "scale": "A LoRA's scale is part of the compiled weights: compile the pipeline with the LoRA fused.",
    "image_embeds": "IP-Adapters are not compiled: keep the UNet in PyTorch (components=...).",
    DOWN: "Export the model with its ControlNet inputs: vitrify export --control.",
    MIDDLE: "Export the model with its ControlNet inputs: vitrify export --control.",
    **dict.fromkeys(
        ("block_controlnet_hidden_states", "controlnet_block_samples", "controlnet_single_block_samples"),
        "A transformer's ControlNet does not run inside diffusers with it: use vitrify generate --controlnet.",
    ),
}


def denoiser_call(cls: type[torch.nn.Module], ask: Ask, name: str) -> Callable[..., Any]:
    """The `forward` of a UNet's or a transformer's stand-in.

    Args:
        cls: the component's class; the arguments are those of its forward.
        ask: gives the session. name: of the component, for errors.
    """
    signature = inspect.signature(cls.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, return_dict = arguments(signature, args, kwargs)
        session = ask()
        main = next(iter(given.values()))
        out = session.run(tensors_of(name, given, session.inputs))
        (key, array), *_ = out.items()
        check_finite(name, array, "in a step")
        sample = to_tensor(array, main)
        if not return_dict:
            return (sample,)
        return (UNet2DConditionOutput if key == "out_sample" else Transformer2DModelOutput)(sample=sample)

    return forward


def controlnet_call(cls: type[torch.nn.Module], ask: Ask, name: str, pooled: bool) -> Callable[..., Any]:
    """The `forward` of a ControlNet's stand-in.

    Args:
        pooled: `global_pool_conditions` of its config.
    """
    signature = inspect.signature(cls.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, return_dict = arguments(signature, args, kwargs)
        scale, guess = float(given.pop("conditioning_scale", 1.0)), given.pop("guess_mode", False) and not pooled
        session = ask()
        main = next(iter(given.values()))
        if SCALE in session.inputs:
            given[SCALE] = 1.0 if guess else scale
        out = session.run(tensors_of(name, given, session.inputs))
        for array in out.values():
            check_finite(name, array, "in a step")
        residuals = [to_tensor(array, main) for key, array in out.items() if key != MIDDLE]
        residuals.append(to_tensor(out[MIDDLE], main))
        if guess:  # deeper blocks steer more, from 0.1 to 1, as diffusers' ControlNetModel has it
            factors = torch.logspace(-1, 0, len(residuals), device=main.device) * scale
            residuals = [one * factor for one, factor in zip(residuals, factors, strict=True)]
        elif SCALE not in session.inputs:
            residuals = [one * scale for one in residuals]
        *down, middle = residuals
        if not return_dict:
            return down, middle
        return ControlNetOutput(down_block_res_samples=tuple(down), mid_block_res_sample=middle)

    return forward


def arguments(signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """What was given and says something, by the names of graph inputs, in the signature's order; and `return_dict`.

    None, empty tables and what equals its default say nothing. Tables of tensors and lists of residuals are laid flat.
    """
    bound = signature.bind(None, *args, **kwargs).arguments
    flat: dict[str, Any] = {}
    for name, value in list(bound.items())[1:]:
        default = signature.parameters[name].default
        if value is None or (isinstance(value, dict | list | tuple) and not value):
            continue
        if isinstance(value, bool | int | float) and value == default:
            continue
        if name in _NESTED and isinstance(value, Mapping):
            flat |= {key: entry for key, entry in value.items() if entry is not None}
        elif name == "down_block_additional_residuals":
            flat |= {f"{DOWN}{number}": entry for number, entry in enumerate(value)}
        else:
            flat[MIDDLE if name == "mid_block_additional_residual" else name] = value
    return_dict = bool(flat.pop("return_dict", True))
    return flat, return_dict


def tensors_of(name: str, given: Mapping[str, Any], inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """The arrays of one call, one for each input of a graph.

    Raises:
        BadInput: something was given that the graph does not take, or it takes something that was not given.
    """
    for key in given:
        if key not in inputs:
            stem = key.rstrip("0123456789")
            fix = _WHY.get(key) or _WHY.get(stem) or f"Leave it out, or keep {name} in PyTorch (components=...)."
            raise BadInput(f"{key} was given, and the graph of {name} has no such input.", fix)
    batch = len(next(iter(given.values())))
    ready: dict[str, Array] = {}
    for key, spec in inputs.items():
        if key in given:
            array = to_array(key, given[key], spec)
            if key in ("img_ids", "txt_ids") and array.ndim == len(spec.shape) + 1:
                array = array[0]  # the same for every picture; older pipelines repeat them
            ready[key] = fit_rank(key, array, spec, batch)
        elif is_residual(key):
            ready[key] = zero_residual(spec)  # nothing to add
        else:
            raise BadInput(
                f"The graph of {name} takes {key}, and the pipeline gives none.",
                "Use the pipeline class of the model that the artifact was made from.",
            )
    return ready
