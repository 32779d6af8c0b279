"""Small models whose layers are worth quantizing, and what their files stand for, in plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrify.core.artifact import Component
from vitrify.core.safetensors_header import read_header, read_tensor
from vitrify.quant.weights import NF4_LEVELS

NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
# the ViT's rows hold whole groups of 64, the UNet's (48 in a linear layer, 432 in a convolution) do not
WIDER = {"vit": {"hidden_size": 64, "intermediate_size": 128}, "unet": {"block_out_channels": [48]}}


def wider(architecture: Any, folder: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The architecture with other sizes, by default `WIDER`, so large that its layers are worth quantizing."""
    import onnx_ir as ir

    from vitrify.export.graph import graph_from_module

    config = architecture.config | (WIDER[architecture.name] if changes is None else changes)
    ir.save(graph_from_module(architecture.spec, config), folder / "model.onnx")
    return replace(architecture, config=config, graph=folder / "model.onnx")


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Every weight of a file in float32, unpacked by plain arithmetic."""
    tensors = {n: read_tensor(e, "float32" if "F" in e.dtype else None) for n, e in read_header(path).items()}
    out = {}
    for name in [n for n in tensors if n.endswith(NF4_STATE)]:
        layer = name.removesuffix(f".{NF4_STATE}")
        said = json.loads(bytes(tensors.pop(name)))
        packed, levels = tensors.pop(f"{layer}.weight").reshape(-1), tensors.pop(f"{layer}.weight.quant_map")
        np.testing.assert_allclose(levels, NF4_LEVELS, atol=1e-7)
        values = NF4_LEVELS[np.stack([packed >> 4, packed & 15], -1).reshape(-1)]
        scales = np.repeat(tensors.pop(f"{layer}.weight.absmax"), said["blocksize"])[: values.size]
        out[f"{layer}.weight"] = (values * scales).reshape(said["shape"])
    for name in [n for n in tensors if n.endswith("._weight_qdata")]:
        layer = name.removesuffix("._weight_qdata")
        values = tensors.pop(name).astype(np.float32)
        scale, zero = (tensors.pop(f"{layer}._weight_{k}").astype(np.float32) for k in ("scale", "zero_point"))
        for axis, (size, blocks) in enumerate(zip(values.shape, scale.shape, strict=True)):
            scale, zero = (np.repeat(a, size // blocks, axis) for a in (scale, zero))
        out[f"{layer}.weight"] = (values - zero) * scale
    for name in [n for n in tensors if n.endswith(".weight.scale")]:
        key = name.removesuffix(".scale")
        packed, scale = tensors.pop(key), tensors.pop(name)
        values = np.stack([packed & 15, packed >> 4], -1).astype(np.int8)
        values = np.where(values > 7, values - 16, values).reshape(*scale.shape, -1).astype(np.float32)
        zero = tensors.pop(f"{key}.zero_point", np.zeros(scale.shape)).astype(np.float32)
        out[key] = (values - zero[..., None]) * scale[..., None]
    return out | tensors


def stands_for(model: Any, component: Component) -> dict[str, np.ndarray]:
    """The float32 weights that its file stands for, in the shapes of the module."""
    shapes = {n: t.shape for n, t in model.module.state_dict().items()}
    (weight,) = component.weights
    return {n: v.reshape(shapes[n]) for n, v in decoded(component.root / weight.path).items()}
