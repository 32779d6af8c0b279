"""A module that stands in for a component of a pipeline: of the component's own class, without its weights.

The very class, not one made from it: `from_pipe` of diffusers takes over a component only where its type is exactly
the one that the new pipeline names, and ControlNet pipelines ask for theirs by isinstance.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch

from ..core.errors import UsageError

Method = Callable[..., Any]
Place = Callable[[], torch.Tensor]

MARK = "_vitrify"  # on every stand-in: the name of the component that it stands in for
PLACE = "place"  # a parameter without elements; its dtype and device are the stand-in's
# what a pipeline may ask of a component without changing what is computed: switching off what is not on
_OFF = (
    *("disable_tiling", "disable_slicing", "disable_freeu", "disable_xformers_memory_efficient_attention"),
    *("disable_gradient_checkpointing", "disable_cache", "unfuse_qkv_projections"),
)
_HARMLESS = ("cache_context",)
_WEIGHTS = ("state_dict", "load_state_dict", "save_pretrained", "push_to_hub")
_ADAPTERS = ("lora", "adapter", "attn_procs", "textual_inversion")


def stand_in(
    cls: type[torch.nn.Module],
    config: Any,
    methods: Callable[[Place], Mapping[str, Method]],
    *,
    name: str,
    told: Callable[[], str],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.nn.Module:
    """An instance of `cls` that has `config` and computes with `methods`, such as forward, encode and decode.

    It follows `to` like any module: what it is given and gives has its dtype and device. Methods of the class that
    would change weights or how they are computed say that they do not apply.

    Args:
        methods: gives them, given what tells the stand-in's dtype and device.
        name: of the component in the pipeline. told: says what runs it, for its repr.
    """
    module = cls.__new__(cls)
    torch.nn.Module.__init__(module)
    if hasattr(cls, "config_name"):  # diffusers' models give their config from there
        module._internal_dict = config
    else:
        module.config = config
    module.register_parameter(
        PLACE, torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)
    )
    itself = weakref.ref(module)  # a circle would keep the sessions open until Python looks for circles

    def place() -> torch.Tensor:
        alive = itself()
        if alive is None:
            raise ReferenceError(f"The stand-in of {name} is gone.")
        return place_of(alive)

    own = dict(methods(place))
    table: dict[str, Any] = {MARK: name, "extra_repr": lambda: f"compiled: {told()}"}
    table |= {method: _refusal(cls, method) for method in _refused(cls) if method not in own}
    for key, value in (table | own).items():
        object.__setattr__(module, key, value)
    return module.eval()


def is_stand_in(module: Any) -> bool:
    return isinstance(module, torch.nn.Module) and MARK in module.__dict__


def place_of(module: torch.nn.Module) -> torch.Tensor:
    """An empty tensor of the stand-in's dtype and device."""
    return module.get_parameter(PLACE)


def _refused(cls: type) -> list[str]:
    """The public methods of a class that are not those of any module."""
    found = [n for n in dir(cls) if not n.startswith("_") and not hasattr(torch.nn.Module, n)]
    methods = [n for n in found if isinstance(inspect.getattr_static(cls, n), FunctionType)]
    return [*(n for n in methods if n not in _HARMLESS), "state_dict", "load_state_dict"]


def _refusal(cls: type, method: str) -> Method:
    def off(*args: Any, **kwargs: Any) -> None:
        return None

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise UsageError(f"{method} does not apply: this {cls.__name__} is compiled.", _fix(method))

    return off if method in _OFF else refuse


def _fix(method: str) -> str:
    if method in _WEIGHTS:
        return (
            "Its weights are in the artifact: copy that folder, and open it with vitrify.bridge.pipeline(folder). "
            "Or save the pipeline before it is wrapped."
        )
    if any(word in method for word in _ADAPTERS):
        return "Load and fuse it before the pipeline is compiled: load_lora_weights, fuse_lora, unload_lora_weights."
    return "Leave the call out; how a compiled component runs is said by the runtime's options."
