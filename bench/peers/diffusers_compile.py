"""diffusers with torch.compile (Inductor, default mode) of the UNet and of the VAE's decoder, float32.

The first picture compiles. Inductor keeps what it compiled, so its cache must be empty for compile_s to be all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from .diffusers_eager import eager
from .diffusers_like import draw
from .drawing import Drawn, Job, Opened


def opener(job: Job) -> Callable[[], Opened]:
    import diffusers  # noqa: F401  (so that opening is timed without it)
    import torch
    from torch._dynamo.utils import calculate_time_spent

    def opened() -> Opened:
        pipeline = eager(job)
        pipeline.unet = torch.compile(pipeline.unet)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode)
        values: dict[str, float] = {}

        def drawn() -> Drawn:
            made = draw(pipeline, job)
            # Dynamo's own clock: tracing, lowering and the C++ compiler, of every graph so far
            values["compile_s"] = calculate_time_spent()["total_wall_time"]
            return made

        return Opened(drawn, values)

    return opened
