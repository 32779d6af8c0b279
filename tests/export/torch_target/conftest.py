"""What the tests of PyTorch components share: small models, written and opened, their files in plain arithmetic."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.safetensors_header import read_header, read_tensor
from vitrify.quant.recipes import recipe
from vitrify.quant.weights import NF4_LEVELS
from vitrify.runtimes.base import Options

NF4_STATE = "weight.quant_state.bitsandbytes__nf4"


@pytest.fixture(autouse=True)
def libraries() -> None:
    for name in ("torch", "diffusers", "bitsandbytes", "torchao"):
        pytest.importorskip(name, reason="needs vitrify[torch]")


def _traced(architecture: Any, changes: dict[str, Any], folder: Path) -> Any:
    """The architecture with other sizes, so large that its layers are worth quantizing."""
    import onnx_ir as ir

    from vitrify.export.graph import graph_from_module

    config = architecture.config | changes
    ir.save(graph_from_module(architecture.spec, config), folder / "model.onnx")
    return replace(architecture, config=config, graph=folder / "model.onnx")


@pytest.fixture(scope="session")
def wide(
    vit: Any, unet: Any, checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """wide("vit" or "unet", dtype) makes a checkpoint whose artifact has its config.json beside the graph.

    The ViT's rows hold whole groups of 64, the UNet's (48 in a linear layer, 432 in a convolution) do not.
    """
    made = {
        "vit": _traced(vit, {"hidden_size": 64, "intermediate_size": 128}, tmp_path_factory.mktemp("vit")),
        "unet": _traced(unet, {"block_out_channels": [48]}, tmp_path_factory.mktemp("unet")),
    }

    def make(name: str, dtype: str = "float32") -> Any:
        model = checkpoint(made[name], dtype)
        shutil.copy(model.source / "config.json", model.components["onnx"].graph_path.parent)
        return model

    return make


@pytest.fixture(scope="session")
def both(wide: Callable[..., Any]) -> dict[str, Any]:
    """For reading only."""
    return {name: wide(name) for name in ("vit", "unet")}


@pytest.fixture(scope="session")
def written() -> Callable[..., Component]:
    """written(component, folder, recipe's id or None) in the format torch."""

    def write(component: Component, root: Path, quant: str | None) -> Component:
        from vitrify.export.torch_target import write_torch

        return write_torch(component, root, recipe=None if quant is None else recipe(quant))

    return write


@pytest.fixture(scope="session")
def opened() -> Callable[..., Any]:
    """opened(component, changed weights): a session."""

    def open(component: Component, overrides: dict[str, np.ndarray] | None = None, threads: int = 0) -> Any:
        from vitrify.runtimes.torch import RUNTIME

        return RUNTIME.open(component, Device("cpu"), Options(threads=threads), overrides)

    return open


def _decoded(path: Path) -> dict[str, np.ndarray]:
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


@pytest.fixture(scope="session")
def decoded() -> Callable[[Path], dict[str, np.ndarray]]:
    return _decoded


@pytest.fixture(scope="session")
def stands_for() -> Callable[..., dict[str, np.ndarray]]:
    """stands_for(model, component): the float32 weights that its file stands for, in the shapes of the module."""

    def read(model: Any, component: Component) -> dict[str, np.ndarray]:
        shapes = {n: t.shape for n, t in model.module.state_dict().items()}
        (weight,) = component.weights
        return {n: v.reshape(shapes[n]) for n, v in _decoded(component.root / weight.path).items()}

    return read
