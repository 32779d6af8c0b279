"""The loop that times calls, what they waited for, and the yardstick that says what a core was worth meanwhile."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

# 0.2 GFLOP in products so small that BLAS leaves each to the calling thread: its own threads go on spinning for a while
# and would slow the next call, and a runtime's that still spin would slow a product of several threads
_STACK, _SMALL, _TIMES = 100, 64, 4
_LARGE, _PEAKS = 768, 12
_BLOCK_MS = 60.0  # of calls between two yardsticks
WARMUP_S = 0.3
_TASKS = "/proc/self/task"


class Yardstick:
    """A fixed product of float32 matrices on one core.

    It takes longer when others use the core's second thread, its caches or its memory, or when its clock is slower: a
    call's time beside it says more of the call than of the neighbours.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._a, self._b = (rng.standard_normal((_STACK, _SMALL, _SMALL), dtype=np.float32) for _ in range(2))
        self._out = np.empty_like(self._a)
        self()

    def __call__(self) -> float:
        """Milliseconds of the core that it took, without those that others had it for."""
        start = time.thread_time()
        for _ in range(_TIMES):
            np.matmul(self._a, self._b, out=self._out)
        return (time.thread_time() - start) * 1e3


def peak_gflops() -> float:
    """GFLOP a second that numpy's BLAS reaches with all its threads: the best of 12 products of 768x768 matrices."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((_LARGE, _LARGE), dtype=np.float32) for _ in range(2))
    out = np.empty_like(a)
    best = float("inf")
    for _ in range(_PEAKS):
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * _LARGE**3 / 1e9 / best


@dataclass(frozen=True)
class Waited:
    """ms since the process was started that its threads were ready to run and had no core.

    caller: the thread that asked. threads: all of them together, those that ended left out.
    """

    caller: float
    threads: float


def waited() -> Waited | None:
    """As Linux counts it; None where the system does not say.

    The second number of /proc/self/task/TID/schedstat, ns (Documentation/scheduler/sched-stats.rst).
    """
    own = str(threading.get_native_id())
    try:
        caller = _delay(own)
        others = [name for name in os.listdir(_TASKS) if name != own]
    except OSError:
        return None
    threads = caller
    for name in others:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            threads += _delay(name)
    return Waited(caller / 1e6, threads / 1e6)


def _delay(task: str) -> int:
    with open(f"{_TASKS}/{task}/schedstat", "rb", buffering=0) as file:
        return int(file.read(64).split()[1])


def lower_quartile(values: Sequence[float]) -> float:
    """Of one or more: what disturbs a measurement only lengthens it, and a minimum is too often an accident."""
    return sorted(values)[(len(values) - 1) // 4]


@dataclass
class Timed:
    """Calls and yardsticks, ms each, in the order in which they were made.

    own, crowded: one for each block of calls between two yardsticks; empty where the system does not count waits. ms of
        a call without what the calling thread waited for a core; and what all threads waited, as a share of the block.
    """

    calls: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    crowded: list[float] = field(default_factory=list)

    @property
    def least_disturbed(self) -> tuple[float, float] | None:
        """Own time of a call, ms, and how crowded it was: the lower quartile, and the median of the blocks below it."""
        if not self.own:
            return None
        quick = lower_quartile(self.own)
        crowds = [crowd for own, crowd in zip(self.own, self.crowded, strict=True) if own <= quick]
        return quick, statistics.median(crowds)


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
        block, first = 0.0, 0
        end = time.perf_counter() + seconds
        opened = time.perf_counter(), waited()
        while len(found.calls) < least or time.perf_counter() < end:
            start = time.perf_counter()
            call()
            took = (time.perf_counter() - start) * 1e3
            found.calls.append(took)
            block += took
            if block >= _BLOCK_MS:
                _close(found, first, *opened)
                found.yardsticks.append(yardstick())
                if took < _BLOCK_MS / 2:
                    call()  # not timed: it finds the yardstick's numbers in the caches
                block, first = 0.0, len(found.calls)
                opened = time.perf_counter(), waited()
        if block:
            _close(found, first, *opened)
            found.yardsticks.append(yardstick())
    finally:
        if collecting:
            gc.enable()
    return found


def _close(found: Timed, first: int, opened: float, before: Waited | None) -> None:
    """Clock and counters are read in the order in which they were when the block was opened."""
    took = (time.perf_counter() - opened) * 1e3
    after = waited()
    if before is not None and after is not None:
        found.own.append((took - (after.caller - before.caller)) / (len(found.calls) - first))
        found.crowded.append(max(0.0, after.threads - before.threads) / took)
