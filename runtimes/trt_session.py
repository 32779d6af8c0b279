"""One plan on one GPU: tensors in and out, from the computer's memory or from the GPU's own."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.errors import BadInput, RuntimeFailure
from ..core.tensors import Array, DeviceTensor, DType, TensorSpec, check_owner, check_tensors
from .base import Placement
from .cuda_memory import Memory, Replay, Workspace
from .trt_engine import Opened

_RECORDED = 4  # sets of sizes whose work is kept: each has a context, and so memory, of its own

Tensors = Mapping[str, Array | DeviceTensor]
_Shapes = tuple[tuple[int, ...], ...]


@dataclass
class _Work:
    """The work of one set of sizes. ran: once with these addresses; the library records nothing before that."""

    context: Any
    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: tuple[int, ...] = ()
    ran: bool = False
    replay: Replay | None = None


class TrtSession:
    """An opened plan. Calls from several threads wait for each other; `close` frees the GPU's memory.

    Device tensors are those of any session of this runtime on this GPU; each call has ended when it returns.
    """

    def __init__(self, opened: Opened, gpu: Workspace, placement: Placement) -> None:
        self.inputs: Mapping[str, TensorSpec] = opened.component.inputs
        self.outputs: Mapping[str, TensorSpec] = opened.component.outputs
        self.placement = placement
        self.owner = f"{placement.runtime} {placement.device}"
        self._component: Component = opened.component
        self._opened: Opened | None = opened
        self._gpu = gpu
        self._work: OrderedDict[_Shapes, _Work] = OrderedDict()
        self._lock = threading.Lock()
        self._ran = False
        if not opened.replays:
            self._work[()] = _Work(opened.context())

    def to_device(self, array: Array) -> DeviceTensor:
        """Copy an array to the GPU."""
        array = np.asarray(array, order="C")
        with self._open():
            memory = self._gpu.allocate(array.nbytes)
            self._gpu.upload(array, memory.address)
            self._gpu.synchronize()
        return DeviceTensor(DType(array.dtype.name), array.shape, self.owner, memory)

    def to_host(self, tensor: DeviceTensor) -> Array:
        """Copy a tensor of this runtime and GPU into an array.

        Raises:
            BadInput: it lies elsewhere.
        """
        check_owner(tensor, self.owner)
        array = np.empty(tensor.shape, tensor.dtype.value)
        with self._open():
            self._gpu.download(tensor.value.address, array)
            self._gpu.synchronize()
        return array

    def run(self, tensors: Tensors) -> dict[str, Array]:
        self._check(tensors)
        with self._open() as opened:
            values: dict[str, Array] = {}
            try:
                for name, (shape, memory) in self._compute(opened, tensors).items():
                    values[name] = np.empty(shape, self.outputs[name].dtype.value)
                    self._gpu.download(memory, values[name])
            finally:
                self._gpu.synchronize()  # also after a failure: copies that are under way read the caller's arrays
            return values

    def run_on_device(self, tensors: Tensors) -> dict[str, DeviceTensor]:
        """As `run`, and the outputs stay on the GPU; they belong to the caller."""
        self._check(tensors)
        with self._open() as opened:
            made: dict[str, Memory] = {}
            try:
                found = self._compute(opened, tensors, made)
            finally:
                self._gpu.synchronize()
            return {
                name: DeviceTensor(self.outputs[name].dtype, shape, self.owner, made[name])
                for name, (shape, _) in found.items()
            }

    def close(self) -> None:
        with self._lock:
            if self._opened is None:
                return
            opened, self._opened = self._opened, None
            try:
                with self._gpu.current():
                    if opened.kernels is not None:
                        opened.kernels.keep()
            finally:
                with self._gpu.current():
                    self._work.clear()  # the last references to the contexts, and so to their engine
                    del opened
                self._gpu.close()

    def _check(self, tensors: Tensors) -> None:
        check_range(self._component, check_tensors(self.inputs, tensors, self.owner))

    @contextmanager
    def _open(self) -> Iterator[Opened]:
        """Alone in this session, on its GPU, with the library's exceptions in our words."""
        with self._lock:
            opened = self._opened
            if opened is None:
                raise RuntimeFailure(f"The session of {self._component.name} is closed.", "Open it again.")
            opened.log.errors.clear()
            with self._gpu.current():
                try:
                    yield opened
                except (RuntimeError, ValueError, TypeError, MemoryError) as exc:  # what the bindings raise
                    said = opened.log.first() if opened.log.errors else str(exc)
                    raise RuntimeFailure(
                        f"{opened.title} failed in {self._component.name}: {said}", "Run `vitrify doctor`."
                    ) from exc

    def _compute(
        self, opened: Opened, tensors: Tensors, made: dict[str, Memory] | None = None
    ) -> dict[str, tuple[tuple[int, ...], int]]:
        """Put one run on the stream; (shape, address) of each output.

        Args:
            made: gets memory of its own for each output, which is there when the stream has done it.
        """
        shapes: _Shapes = tuple(tuple(tensors[name].shape) for name in self.inputs)
        work = self._work_for(opened, shapes)
        sources = {name: self._address(opened, name, tensors[name]) for name in self.inputs}
        if not opened.replays or not work.outputs:
            for (name, source), shape in zip(sources.items(), shapes, strict=True):
                self._must(opened, work.context.set_input_shape(name, shape))
                self._must(opened, work.context.set_tensor_address(name, source))
            self._must(opened, not work.context.infer_shapes())
            work.outputs = {name: tuple(work.context.get_tensor_shape(name)) for name in self.outputs}
        targets = {}
        for name, shape in work.outputs.items():
            size = _bytes(shape, self.outputs[name].dtype)
            if made is not None:
                made[name] = self._gpu.allocate(size)
            fixed = made is None or opened.replays  # recorded work writes to the same place each time
            targets[name] = self._gpu.buffer(f"{name} out", size) if fixed or made is None else made[name].address
        self._execute(opened, work, sources, targets)
        if opened.replays and made:
            for name, memory in made.items():
                size = _bytes(work.outputs[name], self.outputs[name].dtype)
                self._gpu.copy(targets[name], memory.address, size)
        return {name: (shape, targets[name]) for name, shape in work.outputs.items()}

    def _work_for(self, opened: Opened, shapes: _Shapes) -> _Work:
        """One context for all sizes; where work is recorded one for each, since a recording is a context's state."""
        if not opened.replays:
            return self._work[()]
        work = self._work.pop(shapes, None)
        if work is None:
            if len(self._work) >= _RECORDED:
                self._work.popitem(last=False)
            work = _Work(opened.context())
        self._work[shapes] = work
        return work

    def _address(self, opened: Opened, name: str, tensor: Array | DeviceTensor) -> int:
        """Where an input lies on the GPU; recorded work reads the same place each time."""
        if isinstance(tensor, DeviceTensor):
            address: int = tensor.value.address
            if not opened.replays:
                return address
            size = _bytes(tensor.shape, tensor.dtype)
            fixed = self._gpu.buffer(name, size)
            self._gpu.copy(address, fixed, size)
            return fixed
        array = np.asarray(tensor, order="C")
        fixed = self._gpu.buffer(name, array.nbytes)
        self._gpu.upload(array, fixed)
        if array is not tensor:
            self._gpu.synchronize()  # a copy that goes when this returns
        return fixed

    def _execute(self, opened: Opened, work: _Work, sources: dict[str, int], targets: dict[str, int]) -> None:
        addresses = (*sources.values(), *targets.values())
        if work.replay is not None and work.addresses == addresses:
            work.replay.launch(self._gpu.stream)
            return
        again, work.replay = work.ran and work.addresses == addresses, None
        for name, address in (sources | targets).items():
            self._must(opened, work.context.set_tensor_address(name, address))
        if opened.activations is not None:
            need = work.context.update_device_memory_size_for_shapes()
            with opened.activations.held(self._gpu, need) as (address, size):
                work.context.set_device_memory(address, size)
                self._must(opened, work.context.execute_async_v3(self._gpu.stream))
                self._gpu.synchronize()
        elif opened.replays and again:

            def put() -> None:
                self._must(opened, work.context.execute_async_v3(self._gpu.stream))

            work.replay = self._gpu.record(put)
            work.replay.launch(self._gpu.stream)
        else:
            self._must(opened, work.context.execute_async_v3(self._gpu.stream))
        work.addresses, work.ran = addresses, True
        if opened.kernels is not None and not self._ran:
            self._gpu.synchronize()
            opened.kernels.keep()
        self._ran = True

    def _must(self, opened: Opened, done: bool) -> None:
        if not done:
            raise RuntimeFailure(
                f"{opened.title} failed in {self._component.name}: {opened.log.first()}", "Run `vitrify doctor`."
            )


def _bytes(shape: tuple[int, ...], dtype: DType) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


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
