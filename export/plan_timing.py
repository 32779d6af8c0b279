"""How quick each kernel was, kept from one build of TensorRT to the next: most of a build's time is this.

TensorRT-RTX has none ("Timing cache operations are no-ops", says 1.7): it times nothing while it builds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ..core.cache import Cache, key_of
from ..core.errors import Busy, DiskError
from ..runtimes.cuda import Gpu

KIND = "tensorrt-timing"
_FILE = "timing.cache"


def timing_key(version: str, gpu: Gpu) -> str:
    """One entry for a version of the library and a GPU: the library refuses those of others."""
    return key_of([version, gpu.name, list(gpu.capability)])


def use_timings(config: Any, key: str) -> None:
    """Give a builder's configuration what was timed before; nothing the first time."""
    found = Cache().get(KIND, key)
    cache = config.create_timing_cache((found / _FILE).read_bytes() if found is not None else b"")
    config.set_timing_cache(cache, False)


def keep_timings(config: Any, key: str) -> None:
    """Keep what a build that ended has timed; where the cache cannot be written, the next one times again."""
    cache = config.get_timing_cache()
    if cache is not None:
        data = bytes(memoryview(cache.serialize()))
        with suppress(DiskError, Busy), Cache().put(KIND, key) as folder:
            (folder / _FILE).write_bytes(data)
