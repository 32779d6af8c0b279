"""ONNX Runtime's exceptions in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnxruntime as ort

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, VitrifyError, first_line
from .ort_builds import missing
from .ort_providers import Provider

_STATE = ort.capi.onnxruntime_pybind11_state
_UPGRADE = "pip install --upgrade onnxruntime"
DOCTOR = "Check the driver with `vitrify doctor`, or give --device cpu."


def _named(*names: str) -> tuple[type[Exception], ...]:
    """The library's exceptions of these names; an older version has not all of them."""
    return tuple(getattr(_STATE, name) for name in names if hasattr(_STATE, name))


# at opening: what is wrong with the graph or its weights (Fail: missing or short external data, an unknown opset, ...)
_BAD = ("NoSuchFile", "NoModel", "NotFound", "InvalidProtobuf", "InvalidGraph", "InvalidArgument", "Fail")
_GRAPH_IS_BAD = _named(*_BAD)
# the library's exceptions share no base; a test holds this list against all that it defines
LIBRARY: tuple[type[Exception], ...] = (
    *_GRAPH_IS_BAD,
    *_named("ModelLoadCanceled", "ModelRequiresCompilation", "DeviceReset", "ModelLoaded", "NotImplemented"),
    *_named("RuntimeException", "EPFail", "EngineError"),
    RuntimeError,
    ValueError,
    MemoryError,
)


@contextmanager
def translated(component: Component, device: Device | None = None, row: Provider | None = None) -> Iterator[None]:
    """Turn the library's exceptions into ours, once, here.

    Args:
        device: where the component is being opened, if it is. row: by which provider, where it is not the CPU's own.
    """
    try:
        yield
    except LIBRARY as exc:
        raise _translation(exc, component, device, row) from exc


def _translation(exc: BaseException, component: Component, device: Device | None, row: Provider | None) -> VitrifyError:
    text = first_line(exc)
    if isinstance(exc, MemoryError) or "allocate" in text.lower():
        return RuntimeFailure(f"{component.name} ran out of memory: {text}", "Use a smaller size or batch.")
    if isinstance(exc, _STATE.NotImplemented):
        return RuntimeFailure(f"ONNX Runtime {ort.__version__} has no kernel: {text}", _UPGRADE)
    if device is None and isinstance(exc, _STATE.InvalidArgument):
        return BadInput(f"{component.name} refused its inputs: {text}", "Check the sizes.")
    if device is None:
        return RuntimeFailure(f"ONNX Runtime failed in {component.name}: {text}", "Run `vitrify doctor`.")
    if "opset" in text.lower() or "ir_version" in text.lower() or "ir version" in text.lower():
        return BadArtifact(f"{component.graph} is too new for ONNX Runtime {ort.__version__}: {text}", _UPGRADE)
    here = device.kind == "cpu" and row is None
    if here and not isinstance(exc, _GRAPH_IS_BAD):
        return RuntimeFailure(f"ONNX Runtime failed to open {component.name}: {text}", "Run `vitrify doctor`.")
    # of a provider, Fail is its own trouble as well, such as a graph that it cannot compile
    if here or (isinstance(exc, _GRAPH_IS_BAD) and not isinstance(exc, _STATE.Fail)) or _is_cut(component):
        return BadArtifact(
            f"{component.graph} or its weights do not load: {text}", "Copy the whole folder again or export again."
        )
    if row is None:
        return DeviceError(f"ONNX Runtime does not open {component.name} on {device}: {text}", DOCTOR)
    lacks = missing(row)
    return DeviceError(
        f"ONNX Runtime does not open {component.name} on {device} by {row.title}: {lacks or text}",
        f"It needs {row.needs}. {DOCTOR}" if lacks else DOCTOR,
    )


def _is_cut(component: Component) -> bool:
    """Whether a file of weights is missing, or has another size than the manifest says."""
    files = [(component.root / weight.path, weight.bytes) for weight in component.weights]
    return any(not path.exists() or path.stat().st_size != size for path, size in files)
