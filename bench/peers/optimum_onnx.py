"""Optimum ONNX: ORTStableDiffusionPipeline on ONNX Runtime's CPU provider, on what its own exporter writes."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from .diffusers_like import draw, quiet
from .drawing import Job, Opened


def opener(job: Job) -> Callable[[], Opened]:
    library = importlib.import_module("optimum.onnxruntime")

    def opened() -> Opened:
        pipeline = quiet(library.ORTStableDiffusionPipeline.from_pretrained(str(job.model), local_files_only=True))
        return Opened(lambda: draw(pipeline, job))

    return opened
