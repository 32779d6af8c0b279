"""Inputs that are the same in each step, such as a prompt's embeddings, go to the denoiser's device once."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.tensors import Array, DeviceTensor, TensorSpec
from ..runtimes.base import DeviceSession, Session
from .families.base import as_inputs


class Staying:
    """Runs a session; on a device that is not the CPU, an array that comes again is not copied there again."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._on_device = session if isinstance(session, DeviceSession) and session.placement.device != "cpu" else None
        # the array itself, so that no other one can get its identity, and where it lies on the device
        self._kept: dict[str, tuple[Array, DeviceTensor | None]] = {}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._session.inputs

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The session's outputs. An array that was given before must not have been written to since."""
        given = as_inputs(self._session, arrays)
        if self._on_device is None:
            return self._session.run(given)
        return self._on_device.run({name: self._tensor(name, arrays[name], array) for name, array in given.items()})

    def _tensor(self, name: str, given: Array, array: Array) -> Array | DeviceTensor:
        """Args:
        given: what came, by which it is known again. array: the same as the session wants it.
        """
        seen, tensor = self._kept.get(name, (None, None))
        if seen is not given:
            self._kept[name] = given, None  # once is no sign that it will come again
            return array
        if tensor is None and self._on_device is not None:
            tensor = self._on_device.to_device(array)
            self._kept[name] = given, tensor
        return array if tensor is None else tensor
