"""An artifact's sessions inside diffusers' own pipelines.

    pipe = StableDiffusionPipeline.from_pretrained("sd15")
    vitrify.bridge.wrap(pipe, "sd15-openvino")
    pipe("a red fox").images[0].save("fox.png")

Schedulers, callbacks and every pipeline class stay diffusers'; denoiser, text encoders and autoencoder run compiled.
This room needs torch and diffusers; the names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..core.errors import MissingDependency

if TYPE_CHECKING:
    from .compiled import compile_pipeline as compile_pipeline
    from .made import pipeline as pipeline
    from .wrapped import wrap as wrap

_WHERE = {"compile_pipeline": ".compiled", "pipeline": ".made", "wrap": ".wrapped"}

__all__ = ["compile_pipeline", "pipeline", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith(__name__.partition(".")[0]):
            raise
        raise MissingDependency(
            f"vitrify.bridge needs {exc.name}, which is not installed.", 'pip install "vitrify[torch]"'
        ) from exc


def __dir__() -> list[str]:
    return sorted(__all__)
