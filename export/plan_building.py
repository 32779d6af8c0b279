"""A build under way: in a thread of its own, told of as it goes, and stopped by Ctrl-C.

The library calls a progress monitor from its own threads. What it says goes through a queue to the thread that asked
for the build, so that `report` is called there alone.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..core.progress import Event, Report

_LOOK = 1.0  # seconds: Windows notices Ctrl-C only between two waits
_ENDED = None


class Build:
    """One build. done: how far it is in percent, as the library says it, then `_ENDED`."""

    def __init__(self, trt: Any, builder: Any, network: Any, config: Any) -> None:
        self.cancelled = False
        self.trouble: BaseException | None = None  # what writing raised, which the library swallows
        self.digest = hashlib.sha256()
        self.size = 0
        self.done: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._trt, self._builder, self._network, self._config = trt, builder, network, config
        self._phases: list[list[Any]] = []  # name, steps, done; the outermost first
        self._lock = threading.Lock()
        self._monitor = _monitor(trt, self)
        config.progress_monitor = self._monitor

    def started(self, phase: str, steps: int) -> None:
        with self._lock:
            self._phases.append([phase, steps, 0])

    def stepped(self, phase: str, step: int) -> None:
        """Count a step, and say how far that is: by the steps of the outermost phase and those of the phases in it."""
        with self._lock:
            share, done = 1.0, 0.0
            for known in self._phases:
                if known[0] == phase:
                    known[2] = step + 1
                share /= max(known[1], 1)
                done += share * known[2]
            self.done.put(min(99, round(100 * done)))

    def ended(self, phase: str) -> None:
        with self._lock:
            self._phases[:] = [known for known in self._phases if known[0] != phase]

    def run(self, file: BinaryIO) -> bool:
        """Build into `file`; whether it was built and written whole."""
        out = _writer(self._trt, self, file)
        try:
            return bool(self._builder.build_serialized_network_to_stream(self._network, self._config, out))
        except (RuntimeError, ValueError, TypeError, MemoryError):  # the log says what it was
            return False


def _writer(trt: Any, build: Build, file: BinaryIO) -> Any:
    """Writes what the library hands out, and hashes it on its way."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]  # the library's base class has no types
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            try:
                file.write(data)
            except OSError as exc:
                build.trouble, build.cancelled = exc, True
                return 0
            build.digest.update(data)
            build.size += len(data)
            return len(data)

    return Writer()


def _monitor(trt: Any, build: Build) -> Any:
    """Tells `build` what the library says, and stops one that was cancelled."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library's base class has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
            build.started(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            build.stepped(phase_name, step)
            return not build.cancelled  # False stops the build

        def phase_finish(self, phase_name: str) -> None:
            build.ended(phase_name)

    return Monitor()


def write_plan(
    build: Build, path: Path, stage: str, report: Report, failure: Callable[[], Exception]
) -> tuple[int, str]:
    """Build into `path`, which is there whole or not at all; its size in bytes and sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    built: list[bool] = []
    try:
        with scratch.open("wb") as file:

            def work() -> None:
                try:
                    built.append(build.run(file))
                finally:
                    build.done.put(_ENDED)

            worker = threading.Thread(target=work, name=stage)
            ended = False
            worker.start()
            try:
                seen = -1
                while not ended:
                    with suppress(queue.Empty):
                        done = build.done.get(timeout=_LOOK)
                        ended = done is _ENDED
                        if done is not None and done > seen:
                            seen = done
                            report(Event(stage, seen, 100, "%"))
            finally:
                build.cancelled = True  # after Ctrl-C, or a report that raises; a build that ended does not mind
                # not `worker.join()` at once: after a Ctrl-C in it, Python 3.11 takes a running thread for one that
                # ended
                while not ended:
                    with suppress(KeyboardInterrupt):  # a second one: it is stopping, and still writes to the file
                        ended = build.done.get() is _ENDED
                worker.join()
        if build.trouble is not None:
            raise build.trouble
        if built != [True]:
            raise failure()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    report(Event(stage, 100, 100, "%"))
    return build.size, build.digest.hexdigest()
