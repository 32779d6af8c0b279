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

from ..core.artifact import Component, hash_file, identity
from ..core.cache import Cache, key_of
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, UsageError, VitrifyError
from ..core.tensors import Array, DType, TensorSpec, check_tensors
from .base import Options, Placement, Probe
from .initializers import BFLOAT16, FLOAT, check_listed, external_initializers, stored_like
from .low_rank import LowRank, Override
from .ort_branches import with_branches

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_WHEELS = {
    "cuda": "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml",
}
_STATE = ort.capi.onnxruntime_pybind11_state
_NEWER = ("ModelLoadCanceled", "ModelRequiresCompilation", "DeviceReset")  # not in every supported version

_UPGRADE = "pip install --upgrade onnxruntime"
_FORM = [ort.__version__, 2]  # raise the number when `_cached` writes other graphs than before
# at opening: what is wrong with the graph or its weights (Fail: missing or short external data, an unknown opset, ...)
_GRAPH_IS_BAD = (
    _STATE.NoSuchFile,
    _STATE.NoModel,
    _STATE.NotFound,
    _STATE.InvalidProtobuf,
    _STATE.InvalidGraph,
    _STATE.InvalidArgument,
    _STATE.Fail,
)
# the library's exceptions share no base; a test holds this list against all that it defines
_LIBRARY = (
    *_GRAPH_IS_BAD,
    *(getattr(_STATE, name) for name in _NEWER if hasattr(_STATE, name)),
    _STATE.ModelLoaded,
    _STATE.NotImplemented,
    _STATE.RuntimeException,
    _STATE.EPFail,
    _STATE.EngineError,
    RuntimeError,
    ValueError,
    MemoryError,
)


@contextmanager
def _translated(component: Component, device: Device | None = None) -> Iterator[None]:
    """Turn the library's exceptions into ours, once, here. `device`: where the component is being opened, if it is."""
    try:
        yield
    except _LIBRARY as exc:
        raise _translation(exc, component, device) from exc


def _translation(exc: BaseException, component: Component, device: Device | None) -> VitrifyError:
    text = (str(exc).splitlines() or [type(exc).__name__])[0][:300]
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
    if device.kind == "cpu" and not isinstance(exc, _GRAPH_IS_BAD):
        return RuntimeFailure(f"ONNX Runtime failed to open {component.name}: {text}", "Run `vitrify doctor`.")
    if device.kind == "cpu" or (isinstance(exc, _GRAPH_IS_BAD) and not isinstance(exc, _STATE.Fail)):
        return BadArtifact(
            f"{component.graph} or its weights do not load: {text}", "Copy the whole folder again or export again."
        )
    return DeviceError(
        f"ONNX Runtime does not open {component.name} on {device}: {text}",
        "Check the driver with `vitrify doctor`, or give --device cpu.",
    )


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
    formats = ("onnx",)

    def probe(self) -> Probe:
        available = ort.get_available_providers()
        devices = tuple(kind for kind, provider in PROVIDERS.items() if provider in available)
        return Probe(self.name, ort.__version__, devices, {"providers": available})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> OrtSession:
        """Open `component` on `device`.

        Raises:
            DeviceError: the device is not one of ONNX Runtime's here, or the session would run elsewhere.
            BadArtifact: the graph or its weights do not load.
            BadInput: an override has no weight of its name and shape.
            MissingDependency: a branch needs onnx, which is not installed.
        """
        computed = str(component.precision.get("activations", "float32"))
        if options.precision not in (None, computed):
            raise UsageError(
                f"ONNX Runtime computes what the graph says, {computed}, not {options.precision}.",
                "Leave the precision out, or compile the artifact in that precision.",
            )
        provider = self._provider(device)
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = options.threads
        settings.enable_cpu_mem_arena = options.arena
        if not options.prepack:
            settings.add_session_config_entry("session.disable_prepacking", "1")
        if device.kind != "cpu":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # ONNX Runtime would round activations to int8 in front of few-bit weights, which only some recipes want
        level = str(component.precision.get("accuracy_level", 0))
        settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
        check_listed(component)
        branched, held = _override(settings, component, overrides or {})
        with _translated(component, device):
            plain = self._cached(component) if options.cache and not overrides else component.graph_path
            # without enable_fallback=0 the library prints a line and retries on the CPU, here and in each run
            session = ort.InferenceSession(branched or str(plain), settings, providers=[provider], enable_fallback=0)
        del held
        ran = session.get_providers()
        if ran[0] != provider[0]:
            raise DeviceError(
                f"{device} was asked for, ONNX Runtime placed {component.name} on {ran[0]}.",
                "Check the driver with `vitrify doctor`, or give --device cpu.",
            )
        _check_names(component, session)
        return OrtSession(component, session, Placement(self.name, ran[0], str(device), computed))

    def describe(self, graph: Path) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs of a graph that no manifest describes.

        Raises:
            BadArtifact: it does not load, or takes something else than tensors of known types.
        """
        settings = ort.SessionOptions()
        settings.log_severity_level = 4
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.disable_prepacking", "1")
        component = Component(graph.parent.name, "onnx", graph.name, {}, {}, root=graph.parent)
        with _translated(component, Device("cpu")):
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

    def _cached(self, component: Component) -> Path:
        """The graph as ONNX Runtime optimized it, from the cache or made now: a full copy of the weights.

        Where the cache's bound is too small for it, or another process is writing it, the component's own graph.
        """
        cache = Cache()
        if sum(w.bytes for w in component.weights) > cache.limit:
            return component.graph_path
        try:
            weights = [identity(component, w) for w in component.weights]
            level = str(component.precision.get("accuracy_level", 0))
            key = key_of([hash_file(component.graph_path), weights, level, _FORM])
        except OSError as exc:
            what = f"{component.graph} or its weights cannot be read: {exc}."
            raise BadArtifact(what, "Copy the whole folder again or export again.") from exc
        found = cache.get("onnxruntime", key)
        if found is None:
            with cache.put("onnxruntime", key) as scratch:
                writing = ort.SessionOptions()
                writing.log_severity_level = 4
                # what is beyond this level depends on the processor, which a shared cache would not survive
                writing.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
                writing.optimized_model_filepath = str(scratch / "model.onnx")
                writing.add_session_config_entry(
                    "session.optimized_model_external_initializers_file_name", "model.onnx.data"
                )
                writing.add_session_config_entry("session.disable_prepacking", "1")
                writing.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
                ort.InferenceSession(str(component.graph_path), writing, providers=[PROVIDERS["cpu"]])
            found = cache.get("onnxruntime", key)
        if found is None:
            return component.graph_path  # another process is writing it
        return found / "model.onnx"


def _check_names(component: Component, session: ort.InferenceSession) -> None:
    """Hold the graph's inputs and outputs against the manifest's, whose specs each run is checked by."""
    for kind, named, values in (
        ("inputs", component.inputs, session.get_inputs()),
        ("outputs", component.outputs, session.get_outputs()),
    ):
        has = [v.name for v in values]
        if set(has) != set(named):
            raise BadArtifact(
                f"{component.graph} has the {kind} {', '.join(has)}; the manifest says {', '.join(named)}.",
                "Copy the whole folder again or export again.",
            )


def _spec(graph: Path, value: Any) -> TensorSpec:
    """A session's input or output as our spec; a size that has no name gets its own."""
    name = {"float": "float32", "double": "float64"}.get(value.type[7:-1], value.type[7:-1])
    if not value.type.startswith("tensor(") or name not in list(DType):
        raise BadArtifact(
            f"{graph}: {value.name} is a {value.type}, which is not supported.", "Export it with vitrify."
        )
    shape = [d if isinstance(d, int) or d else f"{value.name}_{i}" for i, d in enumerate(value.shape)]
    return TensorSpec(DType(name), tuple(shape))


def _override(
    settings: ort.SessionOptions, component: Component, overrides: Mapping[str, Override]
) -> tuple[bytes | None, list[Any]]:
    """Replace external initializers by name, and put branches beside the layers of those that cannot be.

    Returns:
        The graph where it was edited; and what must live until the session is open.
    """
    if not overrides:
        return None, []
    known = external_initializers(component.graph_path)
    stored: dict[str, tuple[int, Array]] = {}
    branches: dict[str, LowRank] = {}
    for name, value in overrides.items():  # one at a time: each may be computed when it is asked for
        if isinstance(value, LowRank):
            branches[name] = value
        else:
            stored[name] = stored_like(component.graph_path.name, known, name, value)
    graph = None
    if branches:
        graph, added = with_branches(component.graph_path, branches)
        stored |= {name: (FLOAT, value) for name, value in added.items()}
        folder = str(component.graph_path.parent)
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    values = [
        ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, kind)
        if kind == BFLOAT16
        else ort.OrtValue.ortvalue_from_numpy(array)
        for kind, array in stored.values()
    ]
    settings.add_external_initializers(list(stored), values)
    return graph, [stored, values]


RUNTIME = OrtRuntime()
