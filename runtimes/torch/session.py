"""An opened module behind the contract: arrays, or tensors that stay on the module's device, in and out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ...core.artifact import Component
from ...core.errors import RuntimeFailure, VitrifyError, first_line
from ...core.tensors import Array, DeviceTensor, DType, TensorSpec, check_owner, check_tensors
from ..base import Placement

# threads, the kernel of attention and the compiler's state are the process's: one call at a time sets them
PROCESS = threading.RLock()
Tensors = tuple[torch.Tensor, ...]
Around = Callable[[], AbstractContextManager[Any]]


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """PyTorch computes on `count` threads while this lasts, in one call at a time; 0 leaves all as it is."""
    if not count:
        yield
        return
    with PROCESS:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class TorchSession:
    """A module, or anything that is called with tensors in the order of the inputs and gives those of the outputs.

    details: what opening it did, for those who measure; see compiled.py.
    """

    def __init__(
        self,
        component: Component,
        call: Callable[..., Tensors],
        device: torch.device,
        placement: Placement,
        *,
        threads: int = 0,
        around: Around = nullcontext,
    ) -> None:
        """Args:
        call: its parameters lie on `device`. around: entered around each call, such as a choice of kernels.
        """
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = component.outputs
        self.placement = placement
        self.details: dict[str, Any] = {}
        self.owner = f"{placement.runtime} {device}"
        self._name = component.name
        self._module: Callable[..., Tensors] | None = call
        self._device = device
        self._threads = threads
        self._around = around

    def to_device(self, array: Array) -> DeviceTensor:
        """A copy of the array on the session's device.

        Raises:
            RuntimeFailure: no memory is left there.
        """
        with self._told(), torch.inference_mode():
            value = self._there(array)
        return DeviceTensor(DType(array.dtype.name), tuple(array.shape), self.owner, value)

    def to_host(self, tensor: DeviceTensor) -> Array:
        """A copy that is the caller's.

        Raises:
            BadInput: the tensor lies elsewhere.
            RuntimeFailure: the device failed meanwhile, which is told late.
        """
        check_owner(tensor, self.owner)
        with self._told():
            return _array(tensor.value)

    def run(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, Array]:
        values = self._call(tensors)
        with self._told():  # a GPU computes until here
            return {name: _array(value) for name, value in values.items()}

    def run_on_device(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, DeviceTensor]:
        return {
            name: DeviceTensor(self.outputs[name].dtype, tuple(value.shape), self.owner, value)
            for name, value in self._call(tensors).items()
        }

    def close(self) -> None:
        self._module = None

    def _call(self, tensors: Mapping[str, Array | DeviceTensor]) -> dict[str, torch.Tensor]:
        check_tensors(self.inputs, tensors, self.owner)
        module = self._module
        if module is None:
            raise RuntimeFailure(f"The session of {self._name} is closed.", "Open it again.")
        with self._told(), on_threads(self._threads), torch.inference_mode(), self._around():
            given = [self._there(tensors[name]) for name in self.inputs]
            return dict(zip(self.outputs, module(*given), strict=True))

    def _there(self, tensor: Array | DeviceTensor) -> torch.Tensor:
        if isinstance(tensor, DeviceTensor):
            found: torch.Tensor = tensor.value
            return found
        return torch.from_numpy(np.array(tensor, order="C")).to(self._device)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except VitrifyError:
            raise
        except Exception as exc:  # a module's own code raises whatever its author chose
            raise RuntimeFailure(f"PyTorch failed in {self._name}: {first_line(exc)}", "Check the sizes.") from exc


def _array(value: torch.Tensor) -> Array:
    array: Array = value.cpu().numpy().copy()
    return array
