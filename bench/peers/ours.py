"""vitrify itself, run as the others are.

variant: the runtime, "onnx" or "openvino", and after a blank the precision to compute in, where it is not the
artifact's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .drawing import Drawn, Job, Opened


def opener(job: Job) -> Callable[[], Opened]:
    from ...core.registry import load_runtime
    from ...pipelines.load import load
    from ...runtimes.base import Options

    runtime, _, precision = job.variant.partition(" ")
    load_runtime(runtime)  # imports its library

    def opened() -> Opened:
        pipeline: Any = load(job.model, "cpu", runtime=runtime, options=Options(precision=precision or None))

        def draw() -> Drawn:
            ends: list[float] = []
            made = pipeline.generate(
                job.prompt,
                width=job.side,
                height=job.side,
                steps=job.steps,
                guidance=job.guidance,
                seed=job.seed,
                scheduler="euler",
                on_step=lambda step: ends.append(time.perf_counter()),
            )
            return Drawn(made.images[0], ends)

        return Opened(draw)

    return opened
