"""Pipelines of diffusers, fresh for each test, and what they draw beside their wrapped twins."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")


@pytest.fixture(scope="session")
def fresh(diffusion_source: Path) -> Callable[..., Any]:
    """fresh(cls="StableDiffusionPipeline", folder=None, **given): a pipeline in float32 that nothing else uses."""

    def load(cls: str = "StableDiffusionPipeline", folder: Path | None = None, **given: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own, of its dependencies
            pipe = getattr(diffusers, cls).from_pretrained(
                folder or diffusion_source, **{"dtype": torch.float32, **given}
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture(scope="session")
def drawn() -> Callable[..., list[np.ndarray]]:
    """drawn(pipe, **arguments): what a pipeline draws with the seeds from 7 on, as arrays."""

    def draw(pipe: Any, seed: int = 7, count: int = 1, **arguments: Any) -> list[np.ndarray]:
        streams = [torch.Generator().manual_seed(seed + number) for number in range(count)]
        done = pipe(generator=streams if count > 1 else streams[0], **arguments)
        return [np.asarray(image) for image in done.images]

    return draw


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """64 x 64, smooth, with an edge."""
    y, x = np.mgrid[0:64, 0:64] / 63
    pixels = np.stack([x, y, (x + y > 1).astype(float)], axis=-1)
    return Image.fromarray((255 * pixels).astype(np.uint8))


@pytest.fixture(scope="session")
def mask() -> Image.Image:
    """White, where something new is drawn, in the middle."""
    pixels = np.zeros((64, 64), np.uint8)
    pixels[16:48, 16:48] = 255
    return Image.fromarray(pixels)
