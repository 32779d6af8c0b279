"""The kernels that TensorRT-RTX makes where a plan runs, kept in vitrify's cache: opening it again makes none."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..core.artifact import Component, identity
from ..core.cache import Cache, key_of
from ..core.errors import Busy, DiskError
from .cuda import Gpu

KIND = "tensorrt-rtx-kernels"
_FILE = "kernels.cache"


class Kernels:
    """The runtime cache of one session. The library itself refuses one of another version, GPU or driver."""

    def __init__(self, config: Any, component: Component, version: str, gpu: Gpu) -> None:
        self._key = key_of([version, gpu.name, list(gpu.capability), identity(component, component.weights[0])])
        self._cache = config.create_runtime_cache()
        found = Cache().get(KIND, self._key)
        self._known = (found / _FILE).read_bytes() if found is not None else b""
        if self._known:
            self._cache.deserialize(self._known)  # False, and empty, where it does not fit
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write what is there by now, if that is more than was read.

        Where the cache cannot be written they are made again the next time: the numbers are computed already.
        """
        data = bytes(self._cache.serialize())
        if data != self._known:
            with suppress(DiskError, Busy), Cache().put(KIND, self._key) as folder:
                (folder / _FILE).write_bytes(data)
            self._known = data
