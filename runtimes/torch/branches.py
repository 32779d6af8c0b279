"""Low-rank branches beside the layers of a module, for weights that are stored in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..low_rank import LowRank, no_layer, no_weight


def add_branches(module: torch.nn.Module, branches: Mapping[str, LowRank], device: torch.device) -> None:
    """Let each layer that has one of these weights add its branch to what it gives, in place.

    Args:
        module: the wrapper, which holds the library's module as `module`. branches: by that module's names.

    Raises:
        BadInput: no weight of that name, a weight of no layer, or a layer of other sizes.
    """
    names = {name for name, _ in module.named_modules()}
    for name, branch in branches.items():
        path = f"module.{name.removesuffix('.weight')}"
        if path not in names or not name.endswith(".weight"):
            raise no_weight(name, "the model")
        layer: Any = module.get_submodule(path)
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
            down, up = branch.for_conv(name, (layer.out_channels, layer.in_channels, *layer.kernel_size))
        elif isinstance(layer, torch.nn.Linear):
            down, up = branch.for_linear(name, layer.in_features, layer.out_features)
        else:
            raise no_layer(name, "the model")
        layer.register_forward_hook(_Branch(layer, _tensor(down, device), _tensor(up, device)))


class _Branch:
    """A hook: what its layer gives, and up(down(x)) added to it."""

    def __init__(self, layer: Any, down: torch.Tensor, up: torch.Tensor) -> None:
        self._down, self._up = down, up
        self._conv = isinstance(layer, torch.nn.Conv2d)
        self._settings = (layer.stride, layer.padding, layer.dilation) if self._conv else ()

    def __call__(self, layer: Any, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        x = given[0].float()
        if self._conv:
            return (out + F.conv2d(F.conv2d(x, self._down, None, *self._settings), self._up)).to(out.dtype)
        return (out + F.linear(F.linear(x, self._down), self._up)).to(out.dtype)


def _tensor(value: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32, order="C")).to(device)
