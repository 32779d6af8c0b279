"""The loop that times calls, and the yardstick that says what the machine was worth meanwhile."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

# 0.9 GFLOP: some ms, long enough for the clock and short beside what it stands between
_SIDE = 768
_GFLOP = 2 * _SIDE**3 / 1e9
_BLOCK_MS = 60.0  # of calls between two yardsticks
WARMUP_S = 0.3


class Yardstick:
    """A fixed product of two float32 matrices, computed by numpy's BLAS with all its threads.

    It takes longer when others use the machine's cores or caches: a call's time beside it says more of the call than of
    the neighbours. The best of many is what the machine reaches in matrix products.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._a, self._b = (rng.standard_normal((_SIDE, _SIDE), dtype=np.float32) for _ in range(2))
        self._out = np.empty_like(self._a)
        self()  # BLAS makes its threads

    def __call__(self) -> float:
        """How long it took, ms."""
        start = time.perf_counter()
        np.matmul(self._a, self._b, out=self._out)
        return (time.perf_counter() - start) * 1e3

    @staticmethod
    def gflops(milliseconds: float) -> float:
        """GFLOP a second where it takes so long."""
        return _GFLOP / milliseconds * 1e3


@dataclass
class Timed:
    """Calls and yardsticks, ms each, in the order in which they were made."""

    calls: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)


def time_calls(
    call: Callable[[], object],
    seconds: float,
    least: int,
    yardstick: Callable[[], float],
    warm: Callable[[], object] = lambda: None,
) -> Timed:
    """Warm up for 0.3 s or one call, then time calls for `seconds` and at least `least` of them.

    A yardstick stands before the first call, after every 60 ms of calls, and after the last. Python's collector of
    garbage rests meanwhile.

    Args:
        warm: is called once the warm-up is over.
    """
    end = time.perf_counter() + WARMUP_S
    call()
    while time.perf_counter() < end:
        call()
    warm()
    found = Timed()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        found.yardsticks.append(yardstick())
        block = 0.0
        end = time.perf_counter() + seconds
        while len(found.calls) < least or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            took = (time.perf_counter() - start) * 1e3
            found.calls.append(took)
            block += took
            if block >= _BLOCK_MS:
                found.yardsticks.append(yardstick())
                if took < _BLOCK_MS / 2:
                    call()  # not timed: it finds the yardstick's numbers in the caches
                block = 0.0
        if block:
            found.yardsticks.append(yardstick())
    finally:
        if collecting:
            gc.enable()
    return found
