"""Optimum Intel: OVStableDiffusionPipeline on OpenVINO's CPU plugin, for a fixed size, on what its own exporter writes.

variant: OpenVINO's name of the precision to compute in, "f32" or "bf16". Left to itself it takes bfloat16 where the
processor has that, which is another computation.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

from .diffusers_like import draw, quiet
from .drawing import Job, Opened


def precision(job: Job) -> dict[str, str]:
    return {"INFERENCE_PRECISION_HINT": job.variant}


def opener(job: Job) -> Callable[[], Opened]:
    library = importlib.import_module("optimum.intel")

    def opened() -> Opened:
        pipeline = quiet(
            library.OVStableDiffusionPipeline.from_pretrained(
                str(job.model), compile=False, ov_config=precision(job), local_files_only=True
            )
        )
        pipeline.reshape(batch_size=1, height=job.side, width=job.side, num_images_per_prompt=1)
        before = time.perf_counter()
        pipeline.compile()
        return Opened(lambda: draw(pipeline, job), {"compile_s": time.perf_counter() - before})

    return opened
