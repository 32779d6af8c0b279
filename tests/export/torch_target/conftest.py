"""What the tests of PyTorch components share: small models, written and opened, their files in plain arithmetic."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.quant.recipes import recipe
from vitrify.runtimes.base import Options

from ... import few_bits


@pytest.fixture(autouse=True)
def libraries() -> None:
    for name in ("torch", "diffusers", "bitsandbytes", "torchao"):
        pytest.importorskip(name, reason="needs vitrify[torch]")


@pytest.fixture(scope="session")
def wide(
    vit: Any, unet: Any, checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """wide("vit" or "unet", dtype) makes a checkpoint whose artifact has its config.json beside the graph."""
    made = {one.name: few_bits.wider(one, tmp_path_factory.mktemp(one.name)) for one in (vit, unet)}

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


@pytest.fixture(scope="session")
def decoded() -> Callable[[Path], dict[str, np.ndarray]]:
    return few_bits.decoded


@pytest.fixture(scope="session")
def stands_for() -> Callable[..., dict[str, np.ndarray]]:
    return few_bits.stands_for
