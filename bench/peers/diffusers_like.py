"""Drawing with a pipeline that has diffusers' interface: its own, Optimum's and Optimum Intel's."""

from __future__ import annotations

import time
from typing import Any

from .drawing import Drawn, Job


def draw(pipeline: Any, job: Job) -> Drawn:
    """One picture from the job's noise. The pixels stay floats, so that NaN can be seen."""
    import numpy
    import torch

    ends = []

    def at_the_end(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(time.perf_counter())
        return {}

    made = pipeline(
        job.prompt,
        width=job.side,
        height=job.side,
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        latents=torch.from_numpy(numpy.load(job.noise)),
        output_type="np",
        callback_on_step_end=at_the_end,
    )
    return Drawn(made.images[0], ends)


def quiet(pipeline: Any) -> Any:
    """The pipeline without its progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
