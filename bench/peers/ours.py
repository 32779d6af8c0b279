"""vitrify itself, run as the others are.

variant: the runtime, "onnx" or "openvino", and what is not as usual: "precision=bfloat16", or an option of `generate`
such as "preset=fast" or "step_cache=3".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .drawing import Drawn, Job, Opened


def opener(job: Job) -> Callable[[], Opened]:
    from ...core.registry import load_runtime
    from ...pipelines.load import load
    from ...pipelines.presets import opened_with
    from ...runtimes.base import Options

    runtime, *words = job.variant.split()
    asked = dict(word.split("=", 1) for word in words)
    load_runtime(runtime)  # imports its library

    def opened() -> Opened:
        # as `vitrify generate` opens it: a graph for a size is compiled for the size that is drawn, and no usual one
        usual = Options(precision=asked.pop("precision", None), lazy=True, optional=("lazy",))
        options, offload = opened_with(asked.get("preset"), usual, "auto")
        pipeline: Any = load(
            job.model, "cpu", runtime=runtime, options=options, offload=offload,
            prompt_bytes=0,  # the others encode the prompt of each picture, too
        )  # fmt: skip

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
                **asked,
            )
            return Drawn(made.images[0], ends)

        return Opened(draw)

    return opened
