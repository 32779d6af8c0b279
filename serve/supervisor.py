"""A worker process seen from the server: started, listened to, watched, killed, started again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ..core.machine import resident
from .jobs import STOPPED, Problem
from .messages import Started, Stop
from .worker import WorkerSettings, main

log = logging.getLogger("vitrify.serve")
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 30.0  # seconds between an end and the next start
_STEADY = 60.0  # seconds after which an earlier end is forgotten
_LAST = 5.0  # seconds that a process has to end once its pipe is closed
_WATCH = 0.5  # seconds between two looks at its memory


class Supervisor:
    """One worker.

    Args:
        hear: is told what the worker says, in the event loop.
        lost: is told why it ended where that was not asked for; it is being started again then.
        memory: resident bytes above which it is killed; 0: no bound.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        hear: Callable[[Supervisor, Any], None],
        lost: Callable[[Supervisor, Problem], None],
        memory: int = 0,
    ) -> None:
        self.settings = settings
        self.ready = False
        self.restarts = 0
        self._hear, self._lost, self._memory = hear, lost, memory
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reason: Problem | None = None
        self._wait, self._began = _FIRST_WAIT, 0.0
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds; 0 where that cannot be read."""
        return resident(self.pid) if self.pid is not None else 0

    def start(self) -> None:
        """Start the process; `ready` once it says so."""
        ours, theirs = self._context.Pipe()
        self._reason, self._began = None, time.monotonic()
        self._process = self._context.Process(target=main, args=(theirs, self.settings), daemon=True)
        self._process.start()
        theirs.close()
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        threading.Thread(target=self._listen, args=(ours, loop, self._process), daemon=True, name="from worker").start()
        threading.Thread(target=_tell, args=(ours, self._outbox), daemon=True, name="to worker").start()
        if self._memory:
            self._task(self._watch(self._process))

    def send(self, message: Any) -> None:
        """Tell the worker. Does not wait: large pictures take their time. If it is gone, `lost` is told of that."""
        self._outbox.put(message)

    def kill(self, reason: Problem) -> None:
        """End it at once; its jobs fail with this reason."""
        self._reason = reason
        with contextlib.suppress(Exception):
            self._process.kill()

    async def stop(self, grace: float) -> None:
        """Let it finish what it runs, for so many seconds."""
        self._stopping = True
        self.send(Stop())
        if self._ended is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._ended), grace)
            except TimeoutError:
                self.kill(STOPPED)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._ended), 5)
        for task in self._tasks:
            task.cancel()

    def _listen(self, pipe: Connection, loop: asyncio.AbstractEventLoop, process: Any) -> None:
        """In a thread: a worker that stops in the middle of a message must not hold up the server."""
        try:
            while True:
                message = pipe.recv()
                loop.call_soon_threadsafe(self._said, message)
        except (EOFError, OSError):
            pass
        except Exception:
            log.exception("a worker cannot be understood")
        process.join(_LAST)
        if process.is_alive():
            process.kill()
            process.join()
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._gone, pipe)

    def _said(self, message: Any) -> None:
        if isinstance(message, Started):
            self.ready = True
        self._hear(self, message)

    def _gone(self, pipe: Connection) -> None:
        self.ready = False
        self._outbox.put(None)
        self._outbox = queue.SimpleQueue()  # what is said from now on is for the next process
        pipe.close()
        code = self._process.exitcode
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
        if self._stopping:
            return
        reason = self._reason or _reason_of(code)
        log.error("worker lost", extra={"pid": self.pid, "exit": code, "reason": reason.what})
        self.restarts += 1
        self._lost(self, reason)
        if time.monotonic() - self._began > _STEADY:
            self._wait = _FIRST_WAIT
        self._task(self._again(self._wait))
        self._wait = min(_LONGEST_WAIT, 2 * self._wait)

    async def _again(self, wait: float) -> None:
        await asyncio.sleep(wait)
        if self._stopping:
            return
        try:
            self.start()
        except OSError as exc:  # no more processes or files may be opened
            log.error("worker not started", extra={"what": str(exc)})
            self._task(self._again(self._wait))
            self._wait = min(_LONGEST_WAIT, 2 * self._wait)

    async def _watch(self, process: Any) -> None:
        while process is self._process and process.is_alive():
            held = self.resident
            if held > self._memory:
                what = f"The worker held {held / 1e9:.1f} GB of memory; {self._memory / 1e9:.1f} GB are allowed."
                self.kill(Problem("out_of_memory", what, "Ask for fewer or smaller pictures."))
                return
            await asyncio.sleep(_WATCH)

    def _task(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _tell(pipe: Connection, outbox: queue.SimpleQueue[Any]) -> None:
    """In a thread: what is to be sent, until None comes."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # the pipe was closed
        while (message := outbox.get()) is not None:
            pipe.send(message)


def _reason_of(code: int | None) -> Problem:
    how = f"with exit code {code}"
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            how = f"by the signal {signal.Signals(-code).name}"
    return Problem("worker_lost", f"The process that ran this job was ended {how}.", "Ask for it again.")
