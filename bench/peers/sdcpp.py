"""stable-diffusion.cpp through its Python binding, on a GGUF file that it makes itself.

It takes no latents. With its `cpu` generator it draws the numbers that torch draws on the CPU from the same seed, and
its `discrete` schedule visits the timesteps of diffusers' `linspace` spacing.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

from .drawing import Drawn, Job, Opened

FILE = "model.gguf"


def opener(job: Job) -> Callable[[], Opened]:
    library = importlib.import_module("stable_diffusion_cpp")
    bare = importlib.import_module("stable_diffusion_cpp.stable_diffusion_cpp")
    # the library's own default; the binding would take half of the cores
    threads = bare.sd_get_num_physical_cores()

    def opened() -> Opened:
        model = library.StableDiffusion(
            model_path=str(job.model / FILE), n_threads=threads, rng_type="cpu", sampler_rng_type="cpu", verbose=False
        )

        def draw() -> Drawn:
            ends = []

            def at_the_end(step: int, steps: int, seconds: float) -> None:
                if step and steps == job.steps:
                    ends.append(time.perf_counter())

            made = model.generate_image(
                prompt=job.prompt,
                width=job.side,
                height=job.side,
                sample_steps=job.steps,
                cfg_scale=job.guidance,
                sample_method="euler",
                scheduler="discrete",
                seed=job.seed,
                progress_callback=at_the_end,
            )
            return Drawn(made[0], ends)

        return Opened(draw)

    return opened
