"""vitrify: diffusion pipelines and image classifiers as compiled artifacts.

    import vitrify
    pipeline = vitrify.load("sd15-onnx")
    pipeline.generate("a red fox", seed=7).images[0].save("fox.png")

The names below are imported when they are first used: `import vitrify` alone loads no heavy library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bridge.compiled import compile_pipeline as compile_pipeline
    from .core.artifact import Artifact as Artifact
    from .export.compile import compile_model as compile_model
    from .export.job import export_model as export_model
    from .pipelines.load import load as load

_WHERE = {
    "Artifact": ".core.artifact",
    "VitrifyError": ".core.errors",
    "compile_model": ".export.compile",
    "compile_pipeline": ".bridge",
    "export_model": ".export.job",
    "load": ".pipelines.load",
}

__all__ = ["Artifact", "VitrifyError", "__version__", "compile_model", "compile_pipeline", "export_model", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .core.machine import installed

        return installed("vitrify") or "0+unknown"  # a checkout that was not installed
    if name == "bridge":  # the one room that users call by its name
        return importlib.import_module(".bridge", __name__)
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
