"""A replica on Ray that holds models: the worker's own loop in a thread, and Ray's calls in front of it."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from PIL import Image
from ray import serve

from ..core.machine import resident
from .jobs import CANCELLED, Problem
from .logs import set_up_logs
from .messages import Began, Cancel, Close, Closed, Failed, Finished, NotOpened, Open, Opened, Run, Stepped, Task
from .worker import Worker, WorkerSettings

log = logging.getLogger("vitrify.serve")
_WAIT = 0.004  # seconds that a classification waits for others
_LOOK = 0.5  # seconds between two looks at the memory


@dataclass(frozen=True)
class Seen:
    """A replica as it is now. name: of its actor. resident: bytes of memory. models: those it has open."""

    name: str
    device: str
    resident: int = 0
    models: dict[str, Opened] = field(default_factory=dict)


class Queues:
    """The worker's end of a pipe, within one process. hear: is told in the event loop what the worker sends."""

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self._hear, self._loop = hear, asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, message: Any) -> None:
        """For the worker."""
        self._inbox.put(message)

    def recv(self) -> Any:
        return self._inbox.get()

    def send(self, message: Any) -> None:
        self._loop.call_soon_threadsafe(self._hear, message)


class Models:
    """Models of one kind. Runs are taken one after the other; between the steps of a picture it hears of cancelling.

    Args:
        settings: of the worker; its threads, where they are 0, are the whole CPUs that Ray reserved for the replica.
        memory: resident bytes at which the replica ends itself; 0: no bound.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: WorkerSettings, memory: int = 0, as_json: bool = False
    ) -> None:
        set_up_logs(as_json=as_json)
        context = ray.get_runtime_context()
        self._name = str(context.get_actor_name())
        self._settings, self._memory = (
            with_threads(settings, int(context.get_assigned_resources().get("CPU", 0))),
            memory,
        )
        os.nice(settings.nice)
        Image.MAX_IMAGE_PIXELS = None  # the front has checked the sizes
        self._models: dict[str, Opened] = {}
        self._opening: dict[str, list[asyncio.Future[Opened | NotOpened]]] = {}
        self._told: dict[str, asyncio.Queue[Any]] = {}  # by job, what the worker says of it
        self._stopped: set[str] = set()
        self._running: set[str] = set()  # of a batch
        self._batched.set_max_batch_size(self._settings.batch)
        self._pipe = Queues(self._hear)
        self._worker = Worker(self._pipe, self._settings)
        threading.Thread(target=self._work, daemon=True, name="models").start()
        self._watching = asyncio.create_task(self._watch()) if memory else None

    async def run(self, task: Task) -> AsyncIterator[Any]:
        """One job: `Seen` when it is taken, what the worker says of it, and `Seen` at its end.

        Where the caller gives up, the job stops within a step, and the call ends when it has.
        """
        heard = self._told[task.id] = asyncio.Queue()
        self._pipe.put(Run((task,)))
        ended = False
        try:
            yield self._seen()
            while not ended:
                message = await heard.get()
                ended = isinstance(message, Finished | Failed)
                yield message
            yield self._seen()
        finally:
            if not ended:
                self._pipe.put(Cancel(task.id))
                await _end_of(heard)
            self._forget(task)

    async def label(self, task: Task) -> list[Any]:
        """One classification, in the same call as others that come within a few milliseconds: its end, and `Seen`."""
        self._told[task.id] = asyncio.Queue()
        try:
            return [await self._batched(task), self._seen()]
        except asyncio.CancelledError:
            if task.id in self._running:
                self.stop(task.id)
            else:
                self._forget(task)
            raise

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=_WAIT)  # type: ignore[untyped-decorator]
    async def _batched(self, tasks: list[Task]) -> list[Finished | Failed]:
        """Ray's batch, parted into those that can be labelled in one call."""
        runs: list[list[Task]] = []
        for task in tasks:
            if task.id not in self._told or task.id in self._stopped:
                continue
            fitting = next((run for run in runs if self._together(run, task)), None)
            if fitting is None:
                runs.append([task])
            else:
                fitting.append(task)
        self._running = {task.id for run in runs for task in run}
        for run in runs:
            self._pipe.put(Run(tuple(run)))
        ends = [await _end_of(self._told[t.id]) if t.id in self._running else Failed(t.id, CANCELLED) for t in tasks]
        self._running = set()
        for task in tasks:
            self._forget(task)
        return ends

    async def open(self, model: str, pinned: bool) -> Opened | NotOpened:
        known = self._models.get(model)
        if known is None:
            future = asyncio.get_running_loop().create_future()
            self._opening.setdefault(model, []).append(future)
        if known is None or pinned:
            self._pipe.put(Open(model, pinned))
        answer: Opened | NotOpened = known or await future
        return answer

    def close(self, model: str) -> None:
        """Once what runs is done."""
        self._pipe.put(Close(model))

    def stop(self, id: str) -> bool:
        """Stop a job within a step; whether it is here."""
        if id not in self._told:
            return False
        self._stopped.add(id)
        self._pipe.put(Cancel(id))
        return True

    def stop_all(self) -> None:
        """Of a core that is gone: nobody waits for these any more."""
        for id in list(self._told):
            self.stop(id)

    def end(self, id: str) -> None:
        """End the process where this job runs here."""
        if id in self._told:
            os._exit(1)

    def seen(self) -> Seen:
        return self._seen()

    def _work(self) -> None:
        """The worker's own thread. A replica without one does nothing: it ends, and Ray starts another."""
        try:
            self._worker.work()
        except BaseException:
            log.exception("the worker's loop ended")
            os._exit(1)

    def _hear(self, message: Any) -> None:
        """In the event loop: what the worker says."""
        if isinstance(message, Began):
            for id in message.ids:
                self._tell(id, message)
        elif isinstance(message, Stepped | Finished | Failed):
            self._tell(message.id, message)
        elif isinstance(message, Closed):
            self._models.pop(message.model, None)
        elif isinstance(message, Opened | NotOpened):
            if isinstance(message, Opened):
                self._models[message.model] = message
            for future in self._opening.pop(message.model, []):
                if not future.done():
                    future.set_result(message)

    def _tell(self, id: str, message: Any) -> None:
        if id in self._told:
            self._told[id].put_nowait(message)

    def _forget(self, task: Task) -> None:
        self._told.pop(task.id, None)
        self._stopped.discard(task.id)

    def _together(self, run: list[Task], task: Task) -> bool:
        cost = sum(one.request.cost for one in run) + task.request.cost
        shape = task.request.shape()
        return cost <= self._settings.batch and shape is not None and run[0].request.shape() == shape

    def _seen(self) -> Seen:
        return Seen(self._name, self._settings.device or "auto", resident(), dict(self._models))

    async def _watch(self) -> None:
        while (held := resident()) <= self._memory:
            await asyncio.sleep(_LOOK)
        what = f"The replica held {held / 1e9:.1f} GB of memory; {self._memory / 1e9:.1f} GB are allowed."
        log.error("replica ends", extra={"what": what})
        for id in list(self._told):
            self._tell(id, Failed(id, Problem("out_of_memory", what, "Ask for fewer or smaller pictures.")))
        await asyncio.sleep(_LOOK)  # so that this is heard
        os._exit(1)


async def _end_of(heard: asyncio.Queue[Any]) -> Finished | Failed:
    """The last thing that the worker says of a job."""
    while not isinstance(message := await heard.get(), Finished | Failed):
        pass
    return message


def with_threads(settings: WorkerSettings, cpus: int) -> WorkerSettings:
    """The same, on as many threads as CPUs are reserved, unless the number is set."""
    if settings.options.threads or cpus < 1:
        return settings
    return replace(settings, options=replace(settings.options, threads=cpus))
