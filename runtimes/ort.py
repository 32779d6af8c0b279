"""ONNX Runtime: opens `onnx` components.

A device that is named runs or is an error: the session is refused when ONNX Runtime placed it elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..core.artifact import Component, hash_file
from ..core.cache import Cache, key_of
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure
from ..core.tensors import Array, DType, TensorSpec, check_tensors
from .base import Options, Placement, Probe

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_WHEELS = {
    "cuda": 'pip install "vitrify[onnx-gpu]" (and uninstall onnxruntime first)',
    "directml": "pip install onnxruntime-directml",
}


@contextmanager
def _translated(component: Component) -> Iterator[None]:
    """Turn the library's exceptions into ours, once, here."""
    state = ort.capi.onnxruntime_pybind11_state
    try:
        yield
    except (state.NoSuchFile, state.InvalidProtobuf, state.NoModel, state.InvalidGraph, state.ModelLoadCanceled) as exc:
        raise BadArtifact(f"{component.graph} does not load: {_first_line(exc)}", "Export the model again.") from exc
    except state.InvalidArgument as exc:
        raise BadInput(f"{component.name} refused its inputs: {_first_line(exc)}", "Check the sizes.") from exc
    except state.NotImplemented as exc:
        raise RuntimeFailure(
            f"ONNX Runtime {ort.__version__} has no kernel: {_first_line(exc)}", "pip install --upgrade onnxruntime"
        ) from exc
    except (state.Fail, state.RuntimeException, state.EPFail, state.EngineError, RuntimeError, MemoryError) as exc:
        text = _first_line(exc)
        if "allocate" in text.lower() or isinstance(exc, MemoryError):
            raise RuntimeFailure(f"{component.name} ran out of memory: {text}", "Use a smaller size or batch.") from exc
        if "external data" in text.lower() or "external initializer" in text.lower():
            raise BadArtifact(f"{component.graph}: {text}", "Copy the whole folder again or export again.") from exc
        raise RuntimeFailure(f"ONNX Runtime failed in {component.name}: {text}", "Run `vitrify doctor`.") from exc


def _first_line(exc: BaseException) -> str:
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]


class OrtSession:
    """One component, opened. Not safe to close while a run is under way."""

    def __init__(self, component: Component, session: ort.InferenceSession, placement: Placement) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = placement
        self._component = component
        self._session: ort.InferenceSession | None = session

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_tensors(self.inputs, tensors)
        if self._session is None:
            raise RuntimeFailure(f"The session of {self._component.name} is closed.", "Open it again.")
        with _translated(self._component):
            values = self._session.run(list(self.outputs), {n: np.asarray(t, order="C") for n, t in tensors.items()})
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


class OrtRuntime:
    """The adapter."""

    name = "onnx"

    def probe(self) -> Probe:
        available = ort.get_available_providers()
        devices = tuple(kind for kind, provider in PROVIDERS.items() if provider in available)
        return Probe(self.name, ort.__version__, devices, {"providers": available})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Array] | None = None,
    ) -> OrtSession:
        """Open `component` on `device`.

        Raises:
            DeviceError: the device is not one of ONNX Runtime's here, or the session would run elsewhere.
            BadArtifact: the graph or its weights do not load.
        """
        provider = self._provider(device)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = options.threads
        settings.enable_cpu_mem_arena = options.arena
        if not options.prepack:
            settings.add_session_config_entry("session.disable_prepacking", "1")
        if device.kind != "cpu":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        held = _override(settings, overrides or {})
        with _translated(component):
            graph = self._cached(component, settings) if options.cache and not overrides else component.graph_path
            session = ort.InferenceSession(str(graph), settings, providers=[provider])
        del held
        ran = session.get_providers()
        if ran[0] != provider[0]:
            raise DeviceError(
                f"{device} was asked for, ONNX Runtime placed {component.name} on {ran[0]}.",
                "Check the driver with `vitrify doctor`, or give --device cpu.",
            )
        precision = str(component.precision.get("activations", "float32"))
        return OrtSession(component, session, Placement(self.name, ran[0], str(device), precision))

    def describe(self, graph: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs of a graph that no manifest describes.

        Raises:
            BadArtifact: it does not load, or takes something else than tensors of known types.
        """
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.disable_prepacking", "1")
        with _translated(Component(graph.parent.name, "onnx", graph.name, {}, {}, root=graph.parent)):
            session = ort.InferenceSession(str(graph), settings, providers=["CPUExecutionProvider"])
        return (
            {v.name: _spec(graph, v) for v in session.get_inputs()},
            {v.name: _spec(graph, v) for v in session.get_outputs()},
        )

    def _provider(self, device: Device) -> tuple[str, dict[str, str]]:
        name = PROVIDERS.get(device.kind)
        available = ort.get_available_providers()
        if name is None or name not in available or (device.kind == "cpu" and device.index):
            have = ", ".join(kind for kind, provider in PROVIDERS.items() if provider in available)
            raise DeviceError(
                f"ONNX Runtime {ort.__version__} cannot run on {device} here; it has {have}.",
                _WHEELS.get(device.kind, f"Give --device {have.split(',')[0]}."),
            )
        return name, ({} if device.index is None or device.kind == "cpu" else {"device_id": str(device.index)})

    def _cached(self, component: Component, settings: ort.SessionOptions) -> Path:
        """The graph as ONNX Runtime optimized it, from the cache or made now; a full copy of the weights."""
        cache = Cache()
        weights = [(w.path, w.sha256 or hash_file(component.root / w.path)) for w in component.weights]
        key = key_of([hash_file(component.graph_path), weights, ort.__version__])
        found = cache.get("onnxruntime", key)
        if found is None:
            with cache.put("onnxruntime", key) as scratch:
                writing = ort.SessionOptions()
                writing.log_severity_level = 4
                writing.optimized_model_filepath = str(scratch / "model.onnx")
                writing.add_session_config_entry(
                    "session.optimized_model_external_initializers_file_name", "model.onnx.data"
                )
                writing.add_session_config_entry("session.disable_prepacking", "1")
                ort.InferenceSession(str(component.graph_path), writing, providers=["CPUExecutionProvider"])
            found = cache.get("onnxruntime", key)
        if found is None:
            return component.graph_path  # larger than the cache's bound, or another process is writing it
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return found / "model.onnx"


def _spec(graph: Path, value: Any) -> TensorSpec:
    """A session's input or output as our spec; a size that has no name gets its own."""
    name = {"float": "float32", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    if not value.type.startswith("tensor(") or name not in list(DType):
        raise BadArtifact(
            f"{graph}: {value.name} is a {value.type}, which is not supported.", "Export it with vitrify."
        )
    shape = [d if isinstance(d, int) or d else f"{value.name}_{i}" for i, d in enumerate(value.shape)]
    return TensorSpec(DType(name), tuple(shape))


def _override(settings: ort.SessionOptions, overrides: Mapping[str, Array]) -> list[ort.OrtValue]:
    """Replace external initializers by name; the values must live until the session is open."""
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v)) for v in overrides.values()]
    if values:
        settings.add_external_initializers(list(overrides), values)
    return values


RUNTIME = OrtRuntime()
