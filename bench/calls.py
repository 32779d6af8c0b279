"""The one call that a bench makes of a pipeline, again and again: pictures from a prompt, or labels of pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .spec import PICTURE, Spec

PROMPT, NEGATIVE = "a red apple", "blurry"
SEED = 0

Series = dict[str, list[float]]


def call_of(pipeline: Any, spec: Spec) -> tuple[Callable[[], object], Series]:
    """A function that makes the call, and the stages whose ms it adds to at each."""
    return (_drawing if spec.draws else _labelling)(pipeline, spec)


def _drawing(pipeline: Any, spec: Spec) -> tuple[Callable[[], object], Series]:
    """One prompt with a negative one; a model that only changes pictures gets one, and a mask where it wants that."""
    from ..pipelines.pictures_in import made_up

    parts: Series = {"encode_ms": [], "step_ms": [], "decode_ms": []}
    height, width = pipeline.settings["size"]
    height, width = height if spec.height is None else spec.height, width if spec.width is None else spec.width
    start = made_up(pipeline.settings["tasks"], (height, width))

    def call() -> object:
        result = pipeline.generate(
            PROMPT,
            negative_prompt=NEGATIVE,
            width=width,
            height=height,
            steps=spec.steps,
            guidance=spec.guidance,
            seed=SEED,
            batch=spec.batch,
            **spec.saving,
            **start,
        )
        timings = result.timings
        parts["encode_ms"].append((timings["encode"] + timings.get("encode_picture", 0.0)) * 1e3)
        parts["step_ms"] += [seconds * 1e3 for seconds in timings["steps"]]
        parts["decode_ms"].append(timings["decode"] * 1e3)
        return result

    return call, parts


def _labelling(pipeline: Any, spec: Spec) -> tuple[Callable[[], object], Series]:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(SEED)
    coarse = rng.integers(0, 256, (spec.batch, 24, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(one).resize(PICTURE, Image.Resampling.BICUBIC) for one in coarse]
    parts: Series = {"preprocess_ms": []}

    def call() -> object:
        result = pipeline.run(pictures, batch=spec.batch)
        parts["preprocess_ms"].append(result.timings["preprocess"] * 1e3)
        return result

    return call, parts
