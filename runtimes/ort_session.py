"""An opened ONNX Runtime session behind the contract: arrays, or tensors that stay on its device, in and out."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from ..core.artifact import Component
from ..core.device import Device
from ..core.errors import RuntimeFailure
from ..core.tensors import Array, DeviceTensor, DType, TensorSpec, check_owner, check_tensors
from .base import Placement
from .ort_binding import HOST, Memory, Recorder, compute
from .ort_errors import translated
from .resident import Resident


@dataclass(frozen=True)
class Ways:
    """How a session runs: where its device tensors lie, whether its work is recorded, and one call at a time.

    resident: holds its weights in part; None: they are all held.
    """

    memory: Memory = HOST
    records: bool = False
    alone: bool = False
    resident: Resident | None = None


class OrtSession:
    """One component, opened. Not safe to close while a run is under way.

    details: winograd, how many convolutions compute fewer products; 0 for a graph from the cache.
    Device tensors are those of any session of this runtime on the same device.
    """

    def __init__(
        self, component: Component, session: ort.InferenceSession, placement: Placement, ways: Ways | None = None
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = placement
        self.left_out: dict[str, str] = {}
        self.details: dict[str, Any] = {}
        ways = ways or Ways()
        self._memory = ways.memory
        device = Device.parse(placement.device)
        numbered = device.kind not in ("cpu", "coreml", "npu")
        self.owner = f"{placement.runtime} {device.kind}" + (f":{device.index or 0}" if numbered else "")
        self._component = component
        self._session: ort.InferenceSession | None = session
        self._recorder = Recorder(session, component.outputs, ways.memory) if ways.records else None
        self._turn = threading.Lock() if ways.alone else nullcontext()
        self._resident = ways.resident

    def to_device(self, array: Array) -> DeviceTensor:
        """A copy of the array on the session's device."""
        with translated(self._component):
            value = self._memory.copy_of(array)
        return DeviceTensor(DType(array.dtype.name), tuple(array.shape), self.owner, value)

    def to_host(self, tensor: DeviceTensor) -> Array:
        """A copy that is the caller's.

        Raises:
            BadInput: the tensor lies elsewhere.
        """
        check_owner(tensor, self.owner)
        with translated(self._component):
            return _array(tensor.value)

    def run(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, Array]:
        session = self._checked(tensors)
        arrays = {n: np.asarray(t, order="C") for n, t in tensors.items() if not isinstance(t, DeviceTensor)}
        with translated(self._component), self._turn, self._held():
            if self._memory.host and len(arrays) == len(tensors) and self._recorder is None:
                return dict(zip(self.outputs, session.run(list(self.outputs), arrays), strict=True))
            if self._recorder is None:
                return {n: _array(v) for n, v in compute(session, _values(tensors), self.outputs, HOST).items()}
            with self._recorder.lock:
                return {n: _array(v) for n, v in self._recorder.run(self._ordered(tensors)).items()}

    def run_on_device(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        session = self._checked(tensors)
        with translated(self._component), self._turn, self._held():
            if self._recorder is None:
                values = compute(session, _values(tensors), self.outputs, self._memory)
            else:
                with self._recorder.lock:
                    fixed = self._recorder.run(self._ordered(tensors))
                    values = {n: self._memory.copy_of_value(v, self.outputs[n].dtype.value) for n, v in fixed.items()}
        return {
            name: DeviceTensor(self.outputs[name].dtype, tuple(value.shape()), self.owner, value)
            for name, value in values.items()
        }

    def close(self) -> None:
        self._session = self._recorder = None

    def _held(self) -> AbstractContextManager[None]:
        return self._resident.working() if self._resident is not None else nullcontext()

    def _checked(self, tensors: Mapping[str, Array | DeviceTensor]) -> ort.InferenceSession:
        check_tensors(self.inputs, tensors, self.owner)
        if self._session is None:
            raise RuntimeFailure(f"The session of {self._component.name} is closed.", "Open it again.")
        return self._session

    def _ordered(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, Any]:
        """In the component's order, by which sizes are known again."""
        return _values({name: tensors[name] for name in self.inputs})


def _values(tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, Any]:
    return {name: t.value if isinstance(t, DeviceTensor) else t for name, t in tensors.items()}


def _array(value: ort.OrtValue) -> Array:
    """The value's numbers in memory of their own: on the CPU, the library's array is the value's memory itself."""
    array: Array = value.numpy()
    return array if array.flags.owndata else array.copy()
