"""Modules called with their own keywords, as flat functions of tensors; see modules.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Called(torch.nn.Module):
    """The library's module, called with its own keywords: tensors in the order of `names` -> its first output.

    names: keywords of the module's forward, which are the component's inputs too.
    """

    def __init__(self, module: torch.nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.module(**dict(zip(self.names, tensors, strict=True)), return_dict=False)
        return out[:1]


def called(*names: str) -> Callable[[torch.nn.Module], torch.nn.Module]:
    """A wrapper for `KINDS`: the module called with these keywords."""
    return lambda module: Called(module, names)


def told(*names: str) -> Callable[[Any], tuple[str, ...]]:
    """The keywords of a module that is also told the guidance where its config says so: Flux dev, Sana Sprint."""
    return lambda config: (*names, "guidance") if getattr(config, "guidance_embeds", False) else names


def named(names: Callable[[Any], tuple[str, ...]], wrapper: type[Called]) -> Callable[[torch.nn.Module], Called]:
    """A wrapper for `KINDS`: the module called with the keywords that `names` gives for its config."""
    return lambda module: wrapper(module, names(module.config))
