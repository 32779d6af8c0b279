"""diffusers as it is: PyTorch in eager mode, float32. It reads the model itself, so there is nothing to prepare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .diffusers_like import draw, quiet
from .drawing import Job, Opened


def opener(job: Job) -> Callable[[], Opened]:
    import diffusers  # noqa: F401  (so that opening is timed without it)
    import torch  # noqa: F401

    def opened() -> Opened:
        pipeline = eager(job)
        return Opened(lambda: draw(pipeline, job))

    return opened


def eager(job: Job) -> Any:
    """The model's pipeline, float32, on the CPU."""
    import diffusers
    import torch

    pipeline = diffusers.StableDiffusionPipeline
    return quiet(pipeline.from_pretrained(str(job.model), torch_dtype=torch.float32, local_files_only=True))
