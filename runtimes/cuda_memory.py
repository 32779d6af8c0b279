"""Memory and work on one GPU, over the driver: buffers, copies, a stream, and work that is recorded and replayed."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ..core.errors import RuntimeFailure
from ..core.tensors import Array
from .cuda import Driver, Gpu, driver

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile


class Context:
    """The primary context of one GPU: the one that CUDA's runtime, and so TensorRT, uses in this process.

    It is let go of when the last session and the last tensor on the GPU are gone.
    """

    def __init__(self, index: int) -> None:
        self.driver = driver()
        self.index = index
        device = self.driver.number("cuDeviceGet", index)
        self.handle = self.driver.handle("cuDevicePrimaryCtxRetain", device)
        weakref.finalize(self, _release, self.driver, device).atexit = False

    @contextmanager
    def current(self) -> Iterator[None]:
        """This GPU is the calling thread's while this lasts."""
        self.driver.call("cuCtxPushCurrent_v2", self.handle)
        try:
            yield
        finally:
            self.driver.handle("cuCtxPopCurrent_v2")


_CONTEXTS: weakref.WeakValueDictionary[int, Context] = weakref.WeakValueDictionary()
_MAKING = threading.Lock()


def context_of(gpu: Gpu) -> Context:
    """One object a GPU, as long as anything holds it."""
    with _MAKING:
        found = _CONTEXTS.get(gpu.index)
        if found is None:
            found = _CONTEXTS[gpu.index] = Context(gpu.index)
        return found


def _release(cuda: Driver, device: int) -> None:
    with suppress(RuntimeFailure):
        cuda.call("cuDevicePrimaryCtxRelease_v2", device)


class Memory:
    """Bytes on a GPU, given back when nothing holds this object. Make it inside `Context.current()`.

    address: aligned to 256 bytes, as cuMemAlloc has it.
    """

    def __init__(self, context: Context, size: int) -> None:
        self.size = max(size, 1)
        self.context = context
        self.address = context.driver.handle("cuMemAlloc_v2", self.size)
        weakref.finalize(self, _free, context, self.address).atexit = False


def _free(context: Context, address: int) -> None:
    with suppress(RuntimeFailure), context.current():
        context.driver.call("cuMemFree_v2", address)


class Replay:
    """Work on a stream, recorded once: `launch` does all of it again, at the same addresses."""

    def __init__(self, context: Context, handle: int) -> None:
        self._driver, self._handle = context.driver, handle
        weakref.finalize(self, _destroy, context, handle).atexit = False

    def launch(self, stream: int) -> None:
        self._driver.call("cuGraphLaunch", self._handle, stream)


def _destroy(context: Context, handle: int) -> None:
    with suppress(RuntimeFailure), context.current():
        context.driver.call("cuGraphExecDestroy", handle)


class Workspace:
    """A stream and named buffers on one GPU. Any thread may call it, one at a time, inside `current()`."""

    def __init__(self, gpu: Gpu) -> None:
        self.context = context_of(gpu)
        self._driver = self.context.driver
        self._buffers: dict[str, Memory] = {}
        with self.current():
            self.stream = self._driver.handle("cuStreamCreate", _NON_BLOCKING)

    @contextmanager
    def current(self) -> Iterator[None]:
        """This GPU is the calling thread's while this lasts."""
        with self.context.current():
            yield

    def buffer(self, name: str, size: int) -> int:
        """The address of at least `size` bytes; the same one as long as it is large enough."""
        held = self._buffers.get(name)
        if held is None or held.size < size:
            self._buffers.pop(name, None)
            del held  # before the larger one is asked for
            self._buffers[name] = Memory(self.context, size)
        return self._buffers[name].address

    def allocate(self, size: int) -> Memory:
        return Memory(self.context, size)

    def upload(self, array: Array, address: int) -> None:
        """Copy a contiguous array to the GPU; it must stay as it is until `synchronize`."""
        assert array.flags.c_contiguous
        if array.nbytes:
            self._driver.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, address: int, array: Array) -> None:
        """Copy from the GPU into a contiguous array, whose values are there after `synchronize`."""
        assert array.flags.c_contiguous
        if array.nbytes:
            self._driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy on the GPU."""
        if size:
            self._driver.call("cuMemcpyDtoDAsync_v2", target, source, size, self.stream)

    def record(self, work: Callable[[], None]) -> Replay:
        """What `work` puts onto the stream, not done but recorded.

        Raises:
            RuntimeFailure: it cannot be recorded; the stream is as it was.
        """
        graph, handle = ctypes.c_uint64(), ctypes.c_uint64()
        self._driver.call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with suppress(RuntimeFailure):  # the stream says then that its recording is invalid
                self._driver.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
            raise
        self._driver.call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        try:
            self._driver.call("cuGraphInstantiateWithFlags", ctypes.byref(handle), graph.value, 0)
        finally:
            self._driver.call("cuGraphDestroy", graph.value)
        return Replay(self.context, handle.value)

    def synchronize(self) -> None:
        self._driver.call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free the buffers and the stream; tensors that were handed out stay."""
        with self.current():
            self._buffers.clear()
            self._driver.call("cuStreamDestroy_v2", self.stream)
