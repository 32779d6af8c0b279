"""OpenVINO GenAI: Text2ImagePipeline on the CPU, for a fixed size, on the folder that Optimum Intel exports for it.

variant: as in `optimum_intel`. It is C++ and needs no PyTorch; noise of one's own comes through its Generator class.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from .drawing import Drawn, Job, Opened
from .optimum_intel import precision


def opener(job: Job) -> Callable[[], Opened]:
    import numpy

    openvino = importlib.import_module("openvino")
    library = importlib.import_module("openvino_genai")

    class Noise(library.Generator):  # type: ignore[misc, name-defined]
        def next(self) -> float:
            raise RuntimeError("more noise is asked for than the picture starts from")

        def randn_tensor(self, shape: Any) -> Any:
            noise = numpy.load(job.noise)
            if list(shape) != list(noise.shape):
                raise RuntimeError(f"noise of shape {list(shape)} is asked for; there is {list(noise.shape)}")
            return openvino.Tensor(noise)

    def opened() -> Opened:
        pipeline = library.Text2ImagePipeline(str(job.model))
        pipeline.reshape(1, job.side, job.side, job.guidance)
        before = time.perf_counter()
        pipeline.compile("CPU", **precision(job))
        compiled = time.perf_counter() - before

        def draw() -> Drawn:
            ends = []

            def at_the_end(step: int, steps: int, latent: Any) -> bool:
                ends.append(time.perf_counter())
                return False  # go on

            made = pipeline.generate(
                job.prompt,
                width=job.side,
                height=job.side,
                num_inference_steps=job.steps,
                guidance_scale=job.guidance,
                generator=Noise(),
                callback=at_the_end,
            )
            return Drawn(numpy.array(made.data[0]), ends)

        return Opened(draw, {"compile_s": compiled})

    return opened
