"""TensorRT and TensorRT-RTX: open plans, which export/plan.py builds.

Both libraries have one Python interface under two names, so the module is an argument. A plan runs on NVIDIA GPUs of
the architectures that it was built for, with the version that built it, and nowhere else.
"""

from __future__ import annotations

import mmap
import platform
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, UsageError
from ..core.tensors import Array, DType, TensorSpec, check_tensors
from .base import Options, Placement, Probe
from .cuda import Gpu, Workspace, find_gpus
from .low_rank import Override

# DataType's members -> our names; INT4, FP8 and FP4 never are a tensor at the boundary
DTYPES = {
    "FLOAT": DType.FLOAT32,
    "HALF": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "INT64": DType.INT64,
    "INT32": DType.INT32,
    "INT8": DType.INT8,
    "UINT8": DType.UINT8,
    "BOOL": DType.BOOL,
}


def message_log(trt: Any) -> Any:
    """A logger for the library that prints nothing and keeps the last errors in `errors`, the first of them first."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the library's base class has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

        def first(self) -> str:
            """What went wrong first; later errors follow from it."""
            return plain(self.errors[0]) if self.errors else "it does not say why"

    return Log()


def plain(message: str | None) -> str:
    """A message of the library on one line, without the places in its own source."""
    text = re.sub(r"\s*\bIn \w+ at \S+?:\d+\b", "", " ".join((message or "").split()))
    text = re.sub(r"\s*\(\)", "", re.sub(r"\(\s+", "(", text))
    return text[:300].strip() or "it does not say why"


class TrtSession:
    """One plan on one GPU. Calls from several threads wait for each other; `close` frees the GPU's memory."""

    def __init__(
        self, component: Component, title: str, context: Any, gpu: Workspace, log: Any, placement: Placement
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = placement
        self._component = component
        self._title = title
        self._context: Any = context
        self._gpu = gpu
        self._log = log
        self._lock = threading.Lock()

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        check_range(self._component, check_tensors(self.inputs, tensors))
        with self._lock:
            if self._context is None:
                raise RuntimeFailure(f"The session of {self._component.name} is closed.", "Open it again.")
            self._log.errors.clear()
            with self._gpu.current(), self._translated():
                return self._run({n: np.asarray(t, order="C") for n, t in tensors.items()})

    def _run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        context = self._context
        try:
            for name, tensor in tensors.items():
                address = self._gpu.buffer(name, tensor.nbytes)
                self._must(context.set_input_shape(name, tensor.shape))
                self._must(context.set_tensor_address(name, address))
                self._gpu.upload(tensor, address)
            self._must(not context.infer_shapes())
            values = {}
            for name, spec in self.outputs.items():
                value = np.empty(tuple(context.get_tensor_shape(name)), spec.dtype.value)
                values[name] = value, self._gpu.buffer(name, value.nbytes)
                self._must(context.set_tensor_address(name, values[name][1]))
            self._must(context.execute_async_v3(self._gpu.stream))
            for value, address in values.values():
                self._gpu.download(address, value)
        finally:
            self._gpu.synchronize()  # also after a failure: copies that are under way read the caller's arrays
        return {name: value for name, (value, _) in values.items()}

    def _must(self, done: bool) -> None:
        if not done:
            raise RuntimeFailure(
                f"{self._title} failed in {self._component.name}: {self._log.first()}", "Run `vitrify doctor`."
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, TypeError, MemoryError) as exc:  # what the library's bindings raise
            said = self._log.first() if self._log.errors else str(exc)
            raise RuntimeFailure(
                f"{self._title} failed in {self._component.name}: {said}", "Run `vitrify doctor`."
            ) from exc

    def close(self) -> None:
        with self._lock:
            if self._context is None:
                return
            with self._gpu.current():
                self._context = None  # the last reference to it and to its engine
            self._gpu.close()


class TrtRuntime:
    """The adapter of one of the two libraries."""

    def __init__(self, name: str, title: str, library: Any) -> None:
        self.name = name
        self.formats = (name,)
        self.title = title
        self.library = library

    @property
    def version(self) -> str:
        return str(self.library.__version__)

    def probe(self) -> Probe:
        try:
            gpus = find_gpus()
        except (DeviceError, RuntimeFailure) as exc:
            problem = f"{self.title} builds plans here and cannot run them. {exc.what}"
            return Probe(self.name, self.version, (), {"gpus": []}, problem, exc.fix)
        details = [{"name": g.name, "compute_capability": "{}.{}".format(*g.capability)} for g in gpus]
        return Probe(self.name, self.version, tuple(f"cuda:{g.index}" for g in gpus), {"gpus": details})

    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> TrtSession:
        """Load a plan onto a GPU.

        Raises:
            UsageError: weights were to be changed; a plan has none by name.
            DeviceError: the device is no NVIDIA GPU, there is none, or the plan was built for another GPU, version or
                system.
            BadArtifact: the plan is damaged, or is not what the manifest says.
        """
        if overrides:
            raise UsageError(
                f"{component.name} is a plan, whose weights cannot be changed.",
                "Run the artifact that it was compiled from.",
            )
        self._check_build(component)
        gpu = self._gpu(component, device)
        log = message_log(self.library)
        workspace = Workspace(gpu)
        try:
            with workspace.current():
                context = self._context(component, gpu, log)
        except BaseException:
            workspace.close()
            raise
        precision = str(component.precision.get("activations", "float32"))
        placement = Placement(self.name, gpu.name, f"cuda:{gpu.index}", precision)
        return TrtSession(component, self.title, context, workspace, log, placement)

    def _check_build(self, component: Component) -> None:
        needed = re.fullmatch(rf"{re.escape(self.name)}==(\S+)", str(component.requires.get("runtime") or ""))
        if needed and needed[1] != self.version:
            raise DeviceError(
                f"{component.name} is a plan of {self.title} {needed[1]}, which {self.version} does not run; it needs "
                f"{needs(component)}.",
                rebuild(self.name),
            )
        system = component.requires.get("os")
        if system and system != platform.system():
            raise DeviceError(
                f"{component.name} is a plan for {system}, this is {platform.system()}; it needs {needs(component)}.",
                rebuild(self.name),
            )

    def _gpu(self, component: Component, device: Device) -> Gpu:
        if device.kind != "cuda":
            raise DeviceError(
                f"{self.title} cannot run {component.name} on {device}: it needs {needs(component)}.",
                f"Give --device cuda, or run the artifact that it was compiled from. {rebuild(self.name)}",
            )
        try:
            gpus = find_gpus()
        except DeviceError as exc:
            raise DeviceError(
                f"{component.name} needs {needs(component)}. {exc.what}", f"{exc.fix} {rebuild(self.name)}"
            ) from exc
        gpu = next((g for g in gpus if g.index == (device.index or 0)), None)
        if gpu is None:
            have = ", ".join(f"cuda:{g.index} {g}" for g in gpus)
            raise DeviceError(
                f"There is no {device} here; {self.title} has {have}.", f"Give --device cuda:{gpus[0].index}."
            )
        wanted = component.requires.get("compute_capability")
        if wanted and not fits(gpu.capability, str(wanted)):
            raise DeviceError(
                f"{component.name} needs {needs(component)}; {device} is {gpu}.",
                rebuild(self.name),
            )
        return gpu

    def _context(self, component: Component, gpu: Gpu, log: Any) -> Any:
        trt = self.library
        runtime = trt.Runtime(log)
        try:
            with component.graph_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                engine = runtime.deserialize_cuda_engine(plan)
                problem = "" if engine is not None else self._why(runtime, plan)
        except (OSError, ValueError) as exc:  # missing, or empty
            raise BadArtifact(f"{component.graph} cannot be read: {exc}.", "Copy the whole folder again.") from exc
        if problem == "MALFORMED_ENGINE":
            raise BadArtifact(f"{component.graph} is damaged: {log.first()}", "Copy the whole folder again.")
        if problem:
            raise DeviceError(
                f"{self.title} {self.version} does not open {component.name} on {gpu} ({problem}): {log.first()}",
                rebuild(self.name),
            )
        _check_engine(trt, component, engine)
        context = engine.create_execution_context()
        if context is None:
            raise RuntimeFailure(
                f"{self.title} does not start {component.name} on {gpu}: {log.first()}",
                "Close other programs that use the GPU, or compile for smaller sizes.",
            )
        return context

    def _why(self, runtime: Any, plan: Any) -> str:
        """The library's own diagnosis, where it has one: the names that it sets, such as VERSION_MISMATCH."""
        trt = self.library
        if not hasattr(runtime, "get_engine_validity"):
            return "it does not deserialize"
        _, set_bits = runtime.get_engine_validity(plan)
        known = trt.EngineInvalidityDiagnostics.__members__.items()
        return ", ".join(name for name, bit in known if int(bit) & int(set_bits)) or "it does not deserialize"


def check_range(component: Component, sizes: Mapping[str, int]) -> None:
    """Hold the sizes of a run against the range that the plan was built for.

    Raises:
        BadInput: names the size and its range.
    """
    for symbol, size in sizes.items():
        least, _, most = component.shapes.get(symbol, (size, size, size))
        if not least <= size <= most:
            only = f"{least} to {most}" if least < most else f"{least} only"
            raise BadInput(
                f"{component.name} was given {symbol} = {size}; its plan was built for {only}.",
                "Use a size in that range, or compile the artifact again for this one.",
            )


def fits(capability: tuple[int, int], wanted: str) -> bool:
    """Whether a GPU of this compute capability is among those `wanted`: "8.6", "8.6,8.9", or "8.0+" for any newer."""
    for part in wanted.split(","):
        match = re.fullmatch(r"\s*(\d+)\.(\d+)(\+?)\s*", part)
        if match is None:
            raise BadArtifact(
                f"The manifest asks for the compute capability {wanted!r}, which is none.",
                "Compile the artifact again.",
            )
        least = int(match[1]), int(match[2])
        if capability == least or (match[3] and capability > least):
            return True
    return False


def needs(component: Component) -> str:
    """The GPU that a plan needs, in words."""
    wanted = str(component.requires.get("compute_capability") or "")
    if not wanted:
        return "an NVIDIA GPU like the one that it was built on"
    return f"an NVIDIA GPU of compute capability {wanted.replace('+', ' or newer').replace(',', ' or ')}"


def rebuild(name: str) -> str:
    """How to build a plan again, from the artifact that it was compiled from."""
    return f"To build it again where it will run: vitrify compile ARTIFACT --to {name} -o DIR"


def _check_engine(trt: Any, component: Component, engine: Any) -> None:
    """Hold the engine's tensors against the manifest's, by which each run is checked."""
    has: dict[str, tuple[str, DType | None]] = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        mode = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        has[name] = mode, DTYPES.get(engine.get_tensor_dtype(name).name)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BadArtifact(f"{component.graph} wants {name} on the CPU.", "Compile the artifact again.")
    told = {n: ("input", s.dtype) for n, s in component.inputs.items()}
    told |= {n: ("output", s.dtype) for n, s in component.outputs.items()}
    if has != told:
        raise BadArtifact(
            f"{component.graph} has the tensors {', '.join(sorted(has))}, which are not those of the manifest "
            f"({', '.join(sorted(told))}) or have other types.",
            "Copy the whole folder again or compile the artifact again.",
        )
