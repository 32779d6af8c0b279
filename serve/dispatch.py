"""Which worker process gets which job, and what is done with what the workers say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .jobs import CANCELLED, STOPPED, Failure, Job, Problem, State
from .messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Failed,
    Finished,
    NotOpened,
    Open,
    Opened,
    Run,
    Started,
    Stepped,
    Task,
)
from .requests import GenerateRequest
from .supervisor import Supervisor
from .waiting import Waiting
from .work import LANES, Changed, Ended, Limits, Work, WorkerView
from .worker import WorkerSettings


@dataclass
class Hand:
    """A worker, what it was given by lane, and the models that it holds. blamed: for which job it is being ended."""

    worker: Supervisor
    running: dict[str, list[Job]] = field(default_factory=lambda: {name: [] for name in LANES})
    models: dict[str, Opened] = field(default_factory=dict)
    blamed: Job | None = None

    def jobs(self) -> list[Job]:
        return [job for lane in self.running.values() for job in lane]

    def remove(self, job: Job) -> None:
        for jobs in self.running.values():
            if job in jobs:
                jobs.remove(job)


class Dispatcher(Work):
    """One process a device. Pictures are drawn one after the other, labels are given between their steps."""

    def __init__(self, workers: Sequence[WorkerSettings], limits: Limits, changed: Changed, ended: Ended) -> None:
        super().__init__(limits, changed, ended)
        self.hands = [Hand(Supervisor(one, hear=self._hear, lost=self._lost, memory=limits.memory)) for one in workers]
        self._by_worker = {id(hand.worker): hand for hand in self.hands}
        self._loading: dict[str, list[asyncio.Future[Opened]]] = {}
        self._pinned: set[str] = set()
        self._stopping = False

    def start(self) -> None:
        for hand in self.hands:
            hand.worker.start()

    async def stop(self, grace: float) -> None:
        self._stopping = True
        await asyncio.gather(*(hand.worker.stop(grace) for hand in self.hands))
        for hand in self.hands:
            for job in hand.jobs():
                if job.durable and job.started is None:
                    hand.remove(job)  # in the journal it still waits
                else:
                    self._leave(hand, job, State.INTERRUPTED, STOPPED)
        for model in list(self._loading):
            self._loaded(model, lambda future: future.set_exception(Failure(STOPPED)))

    def running(self) -> list[Job]:
        return [job for hand in self.hands for job in hand.jobs()]

    def workers(self) -> list[WorkerView]:
        return [
            WorkerView(
                hand.worker.settings.device or "auto", hand.worker.ready, hand.worker.resident, hand.worker.restarts,
                dict(hand.models),
            )
            for hand in self.hands
        ]  # fmt: skip

    @property
    def ready(self) -> bool:
        return all(hand.worker.ready for hand in self.hands)

    def cancel(self, job: Job) -> None:
        for hand in self._with(job):
            hand.worker.send(Cancel(job.id))

    def kill(self, job: Job, problem: Problem) -> None:
        for hand in self._with(job):
            if job.started is None and any(one.started is not None for one in hand.jobs()):
                self._leave(hand, job, State.FAILED, problem)  # it waits behind what runs, which is not to blame
                self.pump()
                continue
            hand.blamed = job
            hand.worker.kill(problem)

    async def open(self, model: str, *, pinned: bool) -> Opened:
        """On the first device, a pinned one on all; many who ask at once load it once."""
        if pinned:
            self._pinned.add(model)
            for other in self.hands[1:]:
                other.worker.send(Open(model, True))
        hand = self.hands[0]
        if model in hand.models and not pinned:
            return hand.models[model]
        future: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._loading.setdefault(model, []).append(future)
        hand.worker.send(Open(model, pinned))  # the worker has it open but once
        return await future

    def close(self, model: str) -> None:
        self._pinned.discard(model)
        for hand in self.hands:
            if model in hand.models:
                hand.worker.send(Close(model))

    def pump(self) -> None:
        """Give every worker that is free in a lane what waits there; first to one that has the model open."""
        if self._stopping:
            return
        for name, lane in self.lanes.items():
            while len(lane):
                free = [hand for hand in self.hands if hand.worker.ready and not hand.running[name]]
                if not free:
                    break
                jobs = self._next(lane)
                hand = next((one for one in free if jobs[0].model in one.models), free[0])
                hand.running[name] = jobs
                hand.worker.send(Run(tuple(Task(job.id, job.request) for job in jobs)))

    def _next(self, lane: Waiting) -> list[Job]:
        """The job whose turn it is, with those that can be done in the same call."""
        first = lane.pop()
        assert first is not None
        shape, room = first.request.shape(), self.limits.batch - first.request.cost
        if shape is None or first.alone:
            return [first]
        if isinstance(first.request, GenerateRequest):
            one = first.request.cost // first.request.images
            room = one * (self.limits.draw - first.request.images)
        return [first, *lane.take(lambda job: not job.alone and job.request.shape() == shape, room)]

    def _with(self, job: Job) -> list[Hand]:
        return [hand for hand in self.hands if job in hand.jobs()]

    def _hear(self, worker: Supervisor, message: Any) -> None:
        hand = self._by_worker[id(worker)]
        given = {job.id: job for job in hand.jobs()}
        if isinstance(message, Started):
            for model in self._pinned:
                worker.send(Open(model, True))
        elif isinstance(message, Began | Stepped | Finished | Failed):
            for of in message.ids if isinstance(message, Began) else (message.id,):
                if of in given and (end := self.heard(given[of], message)) is not None:
                    self._leave(hand, given[of], *end)
        elif isinstance(message, Opened):
            hand.models[message.model] = message
            self._loaded(message.model, lambda future: future.set_result(message))
        elif isinstance(message, Closed):
            hand.models.pop(message.model, None)
        elif isinstance(message, NotOpened):
            problem = message.problem
            self._loaded(message.model, lambda future: future.set_exception(Failure(problem)))
        self.pump()

    def _lost(self, worker: Supervisor, reason: Problem) -> None:
        """A worker ended: what it had not begun waits again, and so does what it was not ended for: where one job hung
        all others, else, once and alone, what shared a call. The rest fails with the reason.
        """
        hand = self._by_worker[id(worker)]
        hand.models.clear()
        for model in list(self._loading):
            self._loaded(model, lambda future: future.set_exception(Failure(reason)))
        blamed, hand.blamed = hand.blamed, None
        for jobs in hand.running.values():
            together = len(jobs) > 1
            for job in list(jobs):
                if job.cancelled:
                    self._leave(hand, job, State.CANCELLED, CANCELLED)
                elif job.started is None or (job is not blamed and (together or blamed is not None)):
                    jobs.remove(job)
                    self.again(job, alone=together)
                else:
                    self._leave(hand, job, State.FAILED, reason)

    def _loaded(self, model: str, told: Callable[[asyncio.Future[Opened]], None]) -> None:
        for future in self._loading.pop(model, []):
            if not future.done():
                told(future)

    def _leave(self, hand: Hand, job: Job, state: State, problem: Problem | None) -> None:
        hand.remove(job)
        self.ended(job, state, problem)
