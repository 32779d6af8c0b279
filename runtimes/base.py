"""What every runtime's adapter offers. Small on purpose: a member enters when two adapters need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..core.artifact import Component
from ..core.device import Device
from ..core.tensors import Array, DeviceTensor, TensorSpec
from .low_rank import Override


@dataclass(frozen=True)
class Placement:
    """What really runs a component, as the library itself reports it, not as it was asked for."""

    runtime: str
    provider: str
    device: str
    precision: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.runtime} {self.provider} on {self.device}, {self.precision}"


@dataclass(frozen=True)
class Options:
    """How a session is opened.

    threads: 0 leaves the choice to the library.
    prepack: copy the weights into the layout that computes fastest. Off, weights stay mapped from their file:
        a session opens at once and needs less memory, each run is slower.
    arena: keep freed memory for the next run.
    cache: keep the runtime's own optimized graph on disk, where it has one; a full copy of the weights.
    hint: "latency" answers one call soonest, "throughput" many at once; for runtimes that tell them apart.
    streams: calls that run at the same time; 0 leaves the choice to the hint.
    precision: the dtype that the device computes floats in, such as "float32" or "bfloat16"; None: the artifact's.

    Those that follow are for the runtimes that name them under `takes`, and are refused elsewhere.

    static: of OpenVINO: compile for the sizes of each call, where it can also take any size.
    lazy: of OpenVINO with `static`, on the CPU: compile at the first call, for its sizes alone; else usual sizes are
        compiled when a session opens.
    winograd: of ONNX Runtime and OpenVINO on the CPU: large 3x3 convolutions in float32 by fewer products, which takes
        more memory.
    provider: of ONNX Runtime: which execution provider runs the device, such as "tensorrt"; None: the device's first.
    compile: of PyTorch: "regional" compiles the blocks that a model repeats, "whole" the model; None: eager.
    attention: of PyTorch: the attention kernel, such as "flash"; None: the library's choice.
    channels_last: of PyTorch: convolutions work on NHWC memory.
    cuda_graphs: record the work of a call with the same sizes once, and replay it.
    resident_weights: bytes of weights that stay on a GPU, where the others are streamed in, or in memory, where the
        others stay in their files; None: all.
    optional: names of those that are left out, and not refused, where no runtime takes them.
    """

    threads: int = 0
    prepack: bool = True
    arena: bool = True
    cache: bool = False
    hint: str = "latency"
    streams: int = 0
    precision: str | None = None
    static: bool = False
    lazy: bool = False
    winograd: bool = True
    provider: str | None = None
    compile: str | None = None
    attention: str | None = None
    channels_last: bool = False
    cuda_graphs: bool = False
    resident_weights: int | None = None
    optional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """What a runtime can do on this machine; `problem` and `fix` say why it cannot."""

    runtime: str
    version: str
    devices: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    fix: str = ""


class Session(Protocol):
    """An opened component. Arrays are numpy; the outputs belong to the caller.

    It may also have `left_out`: option -> why, of `Options.optional` and of those that are on by themselves, what this
    session does without.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...
    @property
    def placement(self) -> Placement: ...
    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]: ...
    def close(self) -> None: ...


@runtime_checkable
class DeviceSession(Session, Protocol):
    """A session whose tensors may stay on its device between calls: ONNX Runtime's, TensorRT's, PyTorch's.

    `run` takes device tensors of its own runtime and device beside arrays.
    """

    def to_device(self, array: Array) -> DeviceTensor: ...
    def to_host(self, tensor: DeviceTensor) -> Array: ...
    def run(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, Array]: ...
    def run_on_device(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]: ...


class Runtime(Protocol):
    """One adapter. Its module keeps an instance under the name `RUNTIME`.

    formats: of the components that it opens, as the manifest names them. It may also have `takes`: the names of those
    of `options.SPECIAL` that it acts on; and `opens_beside`: True where a component may be opened in one thread while
    another one runs in a second.
    """

    name: str
    formats: tuple[str, ...]

    def probe(self) -> Probe: ...
    def open(
        self,
        component: Component,
        device: Device,
        options: Options,
        overrides: Mapping[str, Override] | None = None,
    ) -> Session: ...
