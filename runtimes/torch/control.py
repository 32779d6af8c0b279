"""ControlNets, and denoisers that take what they give, as flat functions of tensors; see modules.py.

How many residuals there are follows from the config, so the wrappers take them as a list at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .called import Called

_OWN = ("sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale")  # in their order


class UnetControl(torch.nn.Module):
    """sample [batch, 4, height, width], timestep [], encoder_hidden_states [batch, tokens, dim][, timestep_cond]
    [, text_embeds, time_ids], then the residuals of each level and that of the middle -> out_sample.

    A residual is added to what the UNet's own first half gives there (Zhang et al., arXiv 2302.05543). One of
    [1, channels, 1, 1] is the same for every pixel and picture; zeros of that shape change nothing.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        config: Any = module.config
        self._guidance = 1 if config.time_cond_proj_dim else 0
        self._added = _added(module)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sample, timestep, states, *rest = tensors
        guidance, rest = rest[: self._guidance], rest[self._guidance :]
        added, residuals = rest[: len(self._added)], rest[len(self._added) :]
        out: tuple[torch.Tensor, ...] = self.module(
            sample,
            timestep,
            states,
            timestep_cond=guidance[0] if guidance else None,
            added_cond_kwargs=dict(zip(self._added, added, strict=True)) or None,
            down_block_additional_residuals=residuals[:-1],
            mid_block_additional_residual=residuals[-1],
            return_dict=False,
        )
        return out


class ControlNet(torch.nn.Module):
    """sample [batch, 4, height, width], timestep [], encoder_hidden_states [batch, tokens, dim], controlnet_cond
    [batch, 3, pixels, pixels] in 0..1, conditioning_scale [][, text_embeds, time_ids] -> the residuals of each level,
    then that of the middle.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self._added = _added(module)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(_OWN)
        down, middle = self.module(
            *tensors[:count],
            added_cond_kwargs=dict(zip(self._added, tensors[count:], strict=True)) or None,
            return_dict=False,
        )
        return (*down, middle)


def _added(module: Any) -> tuple[str, ...]:
    """What the module's time embedding takes beside the timestep: SDXL's pooled text and sizes."""
    return ("text_embeds", "time_ids") if module.config.addition_embed_type == "text_time" else ()


class ControlledTransformer(Called):
    """A transformer's own tensors in the order of `names`, then what is added behind each of its blocks, [batch,
    tokens, width] -> its first output.

    A residual of [1, 1, width] is the same for every token and picture; zeros of that shape change nothing.
    """

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(self.names)
        own = dict(zip(self.names, tensors[:count], strict=True))
        out: tuple[torch.Tensor, ...] = self.module(**own, **self.added(tensors[count:]), return_dict=False)
        return out[:1]

    def added(self, residuals: Sequence[torch.Tensor]) -> dict[str, Any]:
        """The residuals, as the module's own keywords."""
        raise NotImplementedError


class Sd3Control(ControlledTransformer):
    """An SD3Transformer2DModel: one residual for each block but the last, behind which nothing is added."""

    def added(self, residuals: Sequence[torch.Tensor]) -> dict[str, Any]:
        # it spreads what it gets over all blocks, and looks at no residual for the last
        return {"block_controlnet_hidden_states": [*residuals, residuals[-1]]}


class FluxControl(ControlledTransformer):
    """A FluxTransformer2DModel: one residual for each double block, then one for each single block."""

    def added(self, residuals: Sequence[torch.Tensor]) -> dict[str, Any]:
        config: Any = self.module.config
        double, single = residuals[: config.num_layers], residuals[config.num_layers :]
        return {"controlnet_block_samples": double or None, "controlnet_single_block_samples": single or None}


class SanaControl(ControlledTransformer):
    """A SanaTransformer2DModel: one residual for each block but the first, behind which nothing is added."""

    def added(self, residuals: Sequence[torch.Tensor]) -> dict[str, Any]:
        return {"controlnet_block_samples": residuals}


class TransformerControlNet(Called):
    """A ControlNet's tensors in the order of `names`, controlnet_cond in the shape of its latents, conditioning_scale
    [] -> what is added behind the blocks, [batch, tokens, width]: double ones, then single ones.
    """

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        names = (*self.names, "controlnet_cond", "conditioning_scale")
        lists = self.module(**dict(zip(names, tensors, strict=True)), return_dict=False)
        return tuple(residual for residuals in lists if residuals is not None for residual in residuals)
