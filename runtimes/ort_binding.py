"""Tensors where a session computes: values on its device, and work that is recorded once and replayed.

onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from ..core.tensors import Array

_RECORDED = 4  # sets of sizes whose work is kept, each with buffers of its own
_GRAPH_ID, _UNRECORDED = "gpu_graph_id", "-1"  # onnxruntime_run_options_config_keys.h
Given = Mapping[str, "Array | ort.OrtValue"]


@dataclass(frozen=True)
class Memory:
    """Where values lie. name: "cpu", "cuda", "dml" or "gpu", as OrtValue has it."""

    name: str = "cpu"
    index: int = 0

    @property
    def host(self) -> bool:
        return self.name == "cpu"

    def copy_of(self, array: Array) -> ort.OrtValue:
        """A value with the array's numbers, which stays as it is when the array changes."""
        if self.host:  # there a value reads the array's own memory
            return ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"))
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self.name, self.index)

    def copy_of_value(self, value: ort.OrtValue, dtype: str) -> ort.OrtValue:
        made = ort.OrtValue.ortvalue_from_shape_and_type(value.shape(), np.dtype(dtype), self.name, self.index)
        copy(value, made)
        return made


HOST = Memory()


def compute(
    session: ort.InferenceSession,
    given: Given,
    outputs: Iterable[str],
    memory: Memory,
    options: ort.RunOptions | None = None,
) -> dict[str, ort.OrtValue]:
    """One run of arrays and of values on the device; its outputs in `memory`, which belong to the caller."""
    binding, names = session.io_binding(), list(outputs)
    for name, value in given.items():
        if isinstance(value, ort.OrtValue):
            binding.bind_ortvalue_input(name, value)
        else:
            binding.bind_cpu_input(name, np.asarray(value, order="C"))
    for name in names:
        binding.bind_output(name, memory.name, memory.index)
    session.run_with_iobinding(binding, options)
    binding.synchronize_outputs()
    return dict(zip(names, binding.get_outputs(), strict=True))


def copy(source: Array | ort.OrtValue, target: ort.OrtValue) -> None:
    """Put numbers into a value's own memory."""
    if not isinstance(source, ort.OrtValue):
        target.update_inplace(np.ascontiguousarray(source).reshape(np.shape(source)))
        return
    try:
        target.update_inplace(source)
    except TypeError:  # ONNX Runtime below 1.27 takes arrays alone
        target.update_inplace(source.numpy())


@dataclass(frozen=True)
class _Work:
    """The buffers of one set of sizes, and the number that the library keeps its recording under."""

    number: int
    inputs: dict[str, ort.OrtValue]
    outputs: dict[str, ort.OrtValue]
    binding: ort.IOBinding
    options: ort.RunOptions


class Recorder:
    """A session that records the work of each set of sizes at the second call, and replays it from then on.

    A recording reads and writes fixed addresses: inputs are copied to them, and outputs are valid until the next call.
    """

    def __init__(self, session: ort.InferenceSession, outputs: Iterable[str], memory: Memory) -> None:
        self.lock = threading.Lock()  # to be held until the outputs were read
        self._session, self._outputs, self._memory = session, list(outputs), memory
        self._work: OrderedDict[tuple[tuple[int, ...], ...], _Work] = OrderedDict()
        self._numbers = itertools.count(1)

    def run(self, given: Given) -> dict[str, ort.OrtValue]:
        sizes = tuple(tuple(v.shape() if isinstance(v, ort.OrtValue) else np.shape(v)) for v in given.values())
        work = self._work.pop(sizes, None)
        if work is None:
            work = self._first(given)
            self._work[sizes] = work
            if len(self._work) > _RECORDED:
                self._forget(self._work.popitem(last=False)[1])
            return work.outputs
        self._work[sizes] = work
        for name, value in given.items():
            copy(value, work.inputs[name])
        self._session.run_with_iobinding(work.binding, work.options)
        work.binding.synchronize_outputs()
        return work.outputs

    def _first(self, given: Given) -> _Work:
        """A run that is not recorded: it tells the outputs' sizes, and makes the buffers that stay."""
        inputs = {
            name: self._memory.copy_of(value.numpy() if isinstance(value, ort.OrtValue) else value)
            for name, value in given.items()
        }
        outputs = compute(self._session, inputs, self._outputs, self._memory, _run_options(_UNRECORDED))
        binding, number = self._session.io_binding(), next(self._numbers)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return _Work(number, inputs, outputs, binding, _run_options(str(number)))

    def _forget(self, work: _Work) -> None:
        if hasattr(self._session, "release_captured_graph"):
            self._session.release_captured_graph(work.number)


def _run_options(number: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, number)
    return options
