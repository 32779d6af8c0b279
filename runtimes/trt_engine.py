"""A plan's bytes -> an engine, and contexts to run it in: what the library says of them, in our words."""

from __future__ import annotations

import gc
import mmap
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.artifact import Component
from ..core.errors import BadArtifact, DeviceError, RuntimeFailure
from ..core.tensors import DType
from .base import Options
from .cuda import Gpu
from .cuda_memory import Memory
from .plan_weights import PlanWeight
from .trt_kernels import Kernels
from .trt_memory import Activations, activations_of

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
_MALFORMED = "MALFORMED_ENGINE"


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


_making = threading.Lock()


def made(kind: Any, *given: Any) -> Any:
    """A runtime, builder or refitter of the library, made without garbage collection.

    The library holds a lock while it makes one, and logs. That calls Python, which may then collect another of its
    objects, and that one would wait for the lock for ever.
    """
    with _making:
        collects = gc.isenabled()
        gc.disable()
        try:
            return kind(*given)
        finally:
            if collects:
                gc.enable()


def plain(message: str | None) -> str:
    """A message of the library on one line, without the places in its own source."""
    text = re.sub(r"\s*\bIn \w+ at \S+?:\d+\b", "", " ".join((message or "").split()))
    text = re.sub(r"\s*\(\)", "", re.sub(r"\(\s+", "(", text))
    return text[:300].strip() or "it does not say why"


def read_header(trt: Any, path: Path) -> dict[str, Any]:
    """What a plan's first bytes tell without a GPU; nothing of TensorRT's own, whose form is not known here.

    The fields of TensorRT-RTX 1.7 are read off plans of it: a mark, the size at 16, four numbers of its version at 24.

    Raises:
        BadArtifact: the library says that they are no plan.
    """
    runtime = made(trt.Runtime, message_log(trt))
    if not hasattr(runtime, "engine_header_size"):
        return {}
    with path.open("rb") as file:
        head = file.read(int(runtime.engine_header_size))
    if _MALFORMED in diagnosis(trt, runtime, head):
        raise BadArtifact(f"{path} is damaged.", "Copy the whole folder again, or compile the artifact again.")
    return {
        "mark": head[:4].decode("ascii", "replace"),
        "bytes": int.from_bytes(head[16:24], "little"),
        "version": ".".join(str(part) for part in head[24:28]),
    }


def diagnosis(trt: Any, runtime: Any, plan: Any) -> str:
    """The library's own names for what is wrong with a plan, such as VERSION_MISMATCH; "" where it names nothing."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    _, set_bits = runtime.get_engine_validity(plan)
    known = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(name for name, bit in known if int(bit) & int(set_bits))


def load_engine(trt: Any, title: str, component: Component, gpu: Gpu, log: Any, rebuild: str) -> Any:
    """Deserialize a plan on the current GPU.

    Args:
        rebuild: how to build it again, for the error.

    Raises:
        BadArtifact: it cannot be read or is damaged.
        DeviceError: this library or this GPU does not take it.
    """
    runtime = made(trt.Runtime, log)
    try:
        with component.graph_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = runtime.deserialize_cuda_engine(plan)
            problem = "" if engine is not None else diagnosis(trt, runtime, plan) or "it does not deserialize"
    except (OSError, ValueError) as exc:  # missing, or empty
        raise BadArtifact(f"{component.graph} cannot be read: {exc}.", "Copy the whole folder again.") from exc
    if _MALFORMED in problem:
        raise BadArtifact(f"{component.graph} is damaged: {log.first()}", "Copy the whole folder again.")
    if problem:
        raise DeviceError(
            f"{title} {trt.__version__} does not open {component.name} on {gpu} ({problem}): {log.first()}", rebuild
        )
    return engine


def check_engine(trt: Any, component: Component, engine: Any, weights: Mapping[str, PlanWeight]) -> None:
    """Hold the engine's tensors against the manifest's, by which each run is checked.

    Args:
        weights: those that may be inputs beside the component's own; the engine leaves out what nothing uses.

    Raises:
        BadArtifact: another name, direction or type.
    """
    has: dict[str, tuple[str, Any]] = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        mode = "input" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
        has[name] = mode, DTYPES.get(engine.get_tensor_dtype(name).name)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise BadArtifact(f"{component.graph} wants {name} on the CPU.", "Compile the artifact again.")
    told: dict[str, tuple[str, Any]] = {n: ("input", s.dtype) for n, s in component.inputs.items()}
    told |= {n: ("output", s.dtype) for n, s in component.outputs.items()}
    told |= {n: ("input", DType(w.dtype)) for n, w in weights.items() if n in has}
    if has != told:
        raise BadArtifact(
            f"{component.graph} has the tensors {', '.join(sorted(has))}, which are not those of the manifest "
            f"({', '.join(sorted(told))}) or have other types.",
            "Copy the whole folder again or compile the artifact again.",
        )


@dataclass
class Opened:
    """An engine on a GPU, and what its contexts are made with.

    activations: the block that its runs share with other sessions; None: each context has memory of its own, at a fixed
        address, as recorded work needs it. replays: work is recorded by us; TensorRT-RTX does that itself.
    weights: of a plan apart, by the name of the input.
    """

    trt: Any
    title: str
    component: Component
    engine: Any
    log: Any
    activations: Activations | None = None
    replays: bool = False
    weights: dict[str, Memory] = field(default_factory=dict)
    kernels: Kernels | None = None
    config: Any = None

    def context(self) -> Any:
        """A new execution context.

        Raises:
            RuntimeFailure: the library makes none; says why.
        """
        context = self.engine.create_execution_context(self.config)
        if context is None:
            raise RuntimeFailure(
                f"{self.title} does not start {self.component.name}: {self.log.first()}",
                "Close other programs that use the GPU, or compile for smaller sizes.",
            )
        names = {self.engine.get_tensor_name(n) for n in range(self.engine.num_io_tensors)}
        for name, memory in self.weights.items():
            if name in names and not context.set_tensor_address(name, memory.address):
                raise RuntimeFailure(f"{self.title} does not take {name}: {self.log.first()}", "Compile it again.")
        return context


def prepared(
    trt: Any, title: str, component: Component, engine: Any, options: Options, gpu: Gpu, log: Any
) -> Opened:  # fmt: skip
    """How the contexts of an engine are made: where they compute, which kernels they know, and whether they record."""
    opened = Opened(trt, title, component, engine, log)
    config = opened.config = engine.create_runtime_config()
    if options.cuda_graphs:
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.STATIC)
        if hasattr(trt, "CudaGraphStrategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        else:
            opened.replays = True
    else:
        opened.activations = activations_of(gpu.index)
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if options.cache and hasattr(trt, "IRuntimeCache"):
        opened.kernels = Kernels(config, component, str(trt.__version__), gpu)
    return opened
