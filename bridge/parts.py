"""One component of a pipeline, made of an artifact's sessions: which kind it is, its class, its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from ..core.errors import BadArtifact
from ..pipelines.control import MIDDLE, is_residual
from ..runtimes.base import Session
from .configs import AUTOENCODER, names_in
from .denoising import controlnet_call, denoiser_call
from .encoding import autoencoder_calls, text_call
from .opened import Opened
from .stand_in import Method, Place, stand_in

LATE = "vae_encoder"  # opened when a picture is encoded, which most pipelines never do


def made_part(
    cls: type[torch.nn.Module],
    config: Any,
    component: str,
    opened: Opened,
    original: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """The stand-in of a component that an artifact runs.

    Args:
        cls, config: of the component that it stands in for.
        original: the component itself, where there is one: its dtype and device are taken over.

    Raises:
        BadArtifact: its graph is not that of a denoiser, a ControlNet, a text encoder or an autoencoder.
    """
    first = names_in(opened.artifact, component)[0]

    def told() -> str:
        placed = opened.placement.get(first)
        return "not opened" if placed is None else "{runtime} {provider} on {device}, {precision}".format(**placed)

    methods = _methods(cls, config, component, opened)
    dtype, device = (torch.float32, "cpu") if original is None else _place(original)
    module = stand_in(cls, config, methods, name=component, told=told, dtype=dtype, device=device)
    _insides(module, original)
    return module


def _place(original: Any) -> tuple[torch.dtype, torch.device | str]:
    """Its dtype and device; of one whose weights are moved elsewhere between calls, the CPU."""
    device: torch.device = original.device
    return original.dtype, "cpu" if device.type == "meta" else device


def _methods(
    cls: type[torch.nn.Module], config: Any, component: str, opened: Opened
) -> Callable[[Place], Mapping[str, Method]]:
    names = names_in(opened.artifact, component)
    graph = opened.artifact.components[names[0]]

    def ask(name: str) -> Callable[[], Session]:
        return lambda: opened.session(name)

    if names[0] in AUTOENCODER:
        channels = int(config.latent_channels)
        return lambda place: autoencoder_calls(cls, channels, *(ask(n) for n in reversed(AUTOENCODER)))
    if "input_ids" in graph.inputs:
        hidden = bool(getattr(config, "output_hidden_states", False))
        return lambda place: {"forward": text_call(ask(names[0]), component, place, hidden)}
    if MIDDLE in graph.outputs:
        pooled = bool(getattr(config, "global_pool_conditions", False))
        return lambda place: {"forward": controlnet_call(cls, ask(names[0]), component, pooled)}
    if "timestep" in graph.inputs and not any(map(is_residual, graph.outputs)):  # else of a transformer's ControlNet
        return lambda place: {"forward": denoiser_call(cls, ask(names[0]), component)}
    raise BadArtifact(
        f"{component} of {opened.artifact.root} takes {', '.join(graph.inputs)}: no part of a diffusers pipeline.",
        "Name the components to wrap, without that one (components=...).",
    )


def _insides(module: Any, original: torch.nn.Module | None) -> None:
    """Give a stand-in what pipelines ask of a component's insides: sizes, and the last norm of a text encoder."""
    config = module.config
    if getattr(config, "projection_class_embeddings_input_dim", None):
        first = SimpleNamespace(in_features=int(config.projection_class_embeddings_input_dim))
        module.add_embedding = SimpleNamespace(linear_1=first)
    if hasattr(type(module), "decode"):
        # pipelines that widen a half-precision VAE ask one of its layers for its dtype
        module.post_quant_conv = torch.nn.ParameterList(module.parameters())
    norm = None if original is None else _last_norm(original)
    if norm is not None:  # clip_skip applies it to the states of an earlier layer
        module.text_model = torch.nn.ModuleDict({"final_layer_norm": norm})


def _last_norm(original: torch.nn.Module) -> torch.nn.Module | None:
    for path in ("text_model.final_layer_norm", "final_layer_norm"):
        try:
            return original.get_submodule(path)
        except AttributeError:
            continue
    return None
