"""How a module computes: in which float, in which order of memory, and with which kernel of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from ...core.artifact import Component
from ...core.errors import DeviceError, UsageError
from .devices import instructions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# the options' names -> members of torch.nn.attention.SDPBackend
KERNELS = {
    "math": "MATH",
    "flash": "FLASH_ATTENTION",
    "efficient": "EFFICIENT_ATTENTION",
    "cudnn": "CUDNN_ATTENTION",
}
_AUTO = "auto"


def precision_of(component: Component, asked: str | None, place: torch.device) -> str:
    """What a component's floats are computed in: what was asked for, but for a VAE in float16, which gives black.

    Raises:
        UsageError: PyTorch has no such precision, or the weights are quantized, which compute in float32.
        DeviceError: the device does not compute in it.
    """
    if asked is None or asked == "float32":
        return "float32"
    if asked not in DTYPES:
        raise UsageError(f"PyTorch computes in {', '.join(DTYPES)}, not in {asked}.", "Give one of them.")
    if component.precision.get("layers", 0):
        stored = component.precision["weights"]
        raise UsageError(
            f"{component.name} has weights in {stored}, over which PyTorch computes in float32.",
            "Leave the precision out, or compile the model without --quant.",
        )
    if asked == "float16" and str(component.details.get("kind", "")).startswith("vae"):
        return "float32"
    _check(asked, place)
    return asked


def _check(asked: str, place: torch.device) -> None:
    if place.type == "cpu":
        if asked == "float16" and instructions(asked) is None:
            raise DeviceError(
                "This processor has no instructions for float16.",
                "Give precision=bfloat16, which needs no others to keep its range, or leave it out.",
            )
        return
    try:
        square = torch.ones(8, 8, dtype=DTYPES[asked], device=place)
        torch.mm(square, square).sum().item()
    except Exception as exc:  # whatever a device's library says
        raise DeviceError(f"{place} does not compute in {asked}: {exc}.", "Leave the precision out.") from exc


class InPrecision(torch.nn.Module):
    """A module whose weights are in a short float, between tensors in float32.

    Numbers without a width of their own, such as a timestep [] or [batch], go in as they are: a module makes features
    of them in float32, and bfloat16 does not tell step 981 from 980.
    """

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self._dtype = module, dtype

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [t.to(self._dtype) if t.is_floating_point() and t.dim() > 1 else t for t in tensors]
        return tuple(v.float() if v.is_floating_point() else v for v in self.inner(*given))


def in_precision(module: torch.nn.Module, precision: str) -> torch.nn.Module:
    """The module with its weights in this precision, changed in place; of float32 it is left as it is.

    In float16, the parts that their library keeps in float32 for their range are kept: T5's `wo`.
    """
    dtype = DTYPES[precision]
    if dtype is torch.float32:
        return module
    parts = [getattr(m, "_keep_in_fp32_modules", None) or () for m in module.modules()]
    kept = {part for names in parts for part in names} if dtype is torch.float16 else set()
    for path, owner in module.named_modules():
        if not kept & set(path.split(".")):
            _cast(owner, dtype)
    return InPrecision(module, dtype)


def _cast(owner: torch.nn.Module, dtype: torch.dtype) -> None:
    """The parameters and buffers that a module holds itself."""
    for parameter in owner._parameters.values():
        if parameter is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)  # in place, so that tied ones stay one
    for name, buffer in owner._buffers.items():
        if buffer is not None and buffer.is_floating_point():
            owner._buffers[name] = buffer.to(dtype)


class ChannelsLast(torch.nn.Module):
    """A module given its pictures and latents in NHWC memory, so that its convolutions never change the order."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
        values: tuple[torch.Tensor, ...] = self.inner(*given)
        return values


def in_channels_last(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its convolutions' weights in NHWC memory, changed in place; quantized ones stay as they are."""
    for layer in module.modules():
        weight = layer._parameters.get("weight") if isinstance(layer, torch.nn.Conv2d) else None
        if weight is not None and type(weight.data) is torch.Tensor and weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return ChannelsLast(module)


def kernel_of(asked: str | None, precision: str, place: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What is entered around each call, so that attention runs on the kernel that was asked for and no other.

    The choice is the process's while the call lasts. Whether the device has the kernel is found by trying it.

    Raises:
        UsageError: PyTorch has no such kernel.
        DeviceError: the device does not have it, or not for this precision.
    """
    if asked is None or asked == _AUTO:
        return nullcontext
    if asked not in KERNELS:
        raise UsageError(
            f"There is no attention {asked!r}.", f"Give attention={_AUTO}, or one of {', '.join(KERNELS)}."
        )
    trial = _trial(precision, place)
    reason = trial(asked)
    if reason is not None:
        have = [name for name in KERNELS if trial(name) is None]
        raise DeviceError(
            f"{place} has no {asked} attention for {precision}: {reason}",
            f"Give attention={_AUTO}, or one that it has: {', '.join(have)}.",
        )
    return lambda: _only(asked)


def _only(name: str) -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, KERNELS[name]))


def _trial(precision: str, place: torch.device) -> Callable[[str], str | None]:
    """What the library says against a kernel, tried on one head of 8 tokens; None where it ran."""
    states = torch.zeros(1, 1, 8, 64, dtype=DTYPES[precision], device=place)

    def tried(name: str) -> str | None:
        import warnings

        try:
            with warnings.catch_warnings(), _only(name), torch.no_grad():
                warnings.simplefilter("ignore")  # it warns of each kernel that it passes over
                F.scaled_dot_product_attention(states, states, states).sum().item()
        except Exception as exc:  # RuntimeError, and whatever a device's library raises
            return (str(exc).splitlines() or [type(exc).__name__])[0]
        return None

    return tried


def told(precision: str, stored: Mapping[str, str]) -> str:
    """The precision of a placement: with what the weights are stored in, where that is another."""
    kinds = " and ".join(sorted(set(stored.values())))
    return f"{precision} over {kinds}" if kinds else precision
