"""A job core's work on Ray Serve: what begins is sent to replicas that hold the models, wherever they run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from .jobs import CANCELLED, STOPPED, Failure, Job, Problem, State
from .messages import Began, NotOpened, Opened, Task
from .ray_models import Seen
from .requests import ClassifyRequest
from .work import Changed, Ended, Limits, Work, WorkerView, lane_of

log = logging.getLogger("vitrify.serve")
_LOST = Problem("worker_lost", "The replica that ran this job was lost.", "Ask for it again.")
_NOBODY = Problem("worker_lost", "No replica is there to load it.", "Ask again in a moment.")
_LOOK, _FIRST_LOOK = 1.0, 0.2  # seconds between two looks at the replicas; before there is one
_ANSWER = 10.0  # seconds that replicas have to say how they are


@dataclass(frozen=True)
class Lane:
    """A deployment of `Models`, and between how many replicas it scales. models: names of those that it holds."""

    handle: DeploymentHandle
    models: tuple[str, ...]
    least: int
    most: int


@dataclass(eq=False)
class Given:
    """A job that Ray has. seen: the replica that took it. blamed: why that replica is being ended."""

    job: Job
    task: asyncio.Task[None] | None = None
    response: Any = None
    seen: Seen | None = None
    blamed: Problem | None = None


class RayWork(Work):
    """As many pictures at once as there are replicas; labels as many as they can batch. The rest waits here, bounded.

    Args:
        deployed: by lane; a lane that no model needs has none.
    """

    def __init__(self, deployed: Mapping[str, Lane], limits: Limits, changed: Changed, ended: Ended) -> None:
        super().__init__(limits, changed, ended)
        self._deployed = dict(deployed)
        self._given: dict[str, Given] = {}
        self._seen: dict[str, dict[str, Seen]] = {name: {} for name in deployed}
        self._lost_replicas = dict.fromkeys(deployed, 0)
        self._there = {name: asyncio.Event() for name in deployed}
        self._pinned: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    def start(self) -> None:
        for name in self._deployed:
            self._task(self._look(name))

    async def stop(self, grace: float) -> None:
        self._stopping = True
        running = [given.task for given in self._given.values() if given.task is not None]
        if running:
            await asyncio.wait(running, timeout=grace)
        for given in list(self._given.values()):
            self._leave(given, State.INTERRUPTED, STOPPED)
            if given.response is not None:
                given.response.cancel()
        for task in self._tasks:
            task.cancel()
        for there in self._there.values():  # what waits for a replica waits no more
            there.set()

    def running(self) -> list[Job]:
        return [given.job for given in self._given.values()]

    def workers(self) -> list[WorkerView]:
        """The replicas; those that were lost are counted at the first of their deployment."""
        views = []
        for name, replicas in self._seen.items():
            for number, seen in enumerate(replicas.values()):
                lost = self._lost_replicas[name] if number == 0 else 0
                views.append(WorkerView(seen.device, True, seen.resident, lost, dict(seen.models)))
        return views

    @property
    def ready(self) -> bool:
        return all(self._seen.values())

    def pump(self) -> None:
        """Hand over what waits, as far as there are replicas for it."""
        if self._stopping:
            return
        for name in self._deployed:
            lane = self.lanes[name]
            while len(lane) and sum(lane_of(job) == name for job in self.running()) < self._room(name):
                job = lane.pop()
                assert job is not None
                given = self._given[job.id] = Given(job)
                given.task = self._task(self._run(name, given))

    def cancel(self, job: Job) -> None:
        given = self._given.get(job.id)
        if given is not None:
            self._task(self._cancel(given))

    def kill(self, job: Job, problem: Problem) -> None:
        given = self._given.get(job.id)
        if given is None:
            return
        given.blamed = problem
        if given.seen is not None:
            self._task(asyncio.to_thread(_kill, given.seen.name))
        else:  # Ray does not say who has it
            self._task(self._all(lane_of(job), "end", job.id))

    async def open(self, model: str, *, pinned: bool) -> Opened:
        """On all replicas that are there; a pinned one also on those that come."""
        name = self._lane_with(model)
        await self._there[name].wait()
        answers = await self._all(name, "open", model, pinned)
        for answer in answers:
            if isinstance(answer, NotOpened):
                raise Failure(answer.problem)
        opened = next((answer for answer in answers if isinstance(answer, Opened)), None)
        if opened is None:
            raise Failure(_NOBODY)
        if pinned:
            self._pinned.add(model)
        await self._look_once(name)
        return opened

    def close(self, model: str) -> None:
        """On all replicas that are there."""
        self._pinned.discard(model)
        self._task(self._closed(model))

    async def _closed(self, model: str) -> None:
        name = self._lane_with(model)
        await self._all(name, "close", model)
        await self._look_once(name)

    def _lane_with(self, model: str) -> str:
        return next(name for name, lane in self._deployed.items() if model in lane.models)

    def _room(self, name: str) -> int:
        """How many jobs Ray may have. One more than there are replicas tells it that another is wanted."""
        deployed, there = self._deployed[name], len(self._seen[name])
        each = 1 if name == "slow" else self.limits.batch
        more = 1 if deployed.least < deployed.most and there < deployed.most else 0
        return there * each + more

    async def _run(self, name: str, given: Given) -> None:
        """One job on one replica, to its end."""
        job, handle = given.job, self._deployed[name].handle
        try:
            if job.cancelled:
                self._leave(given, State.CANCELLED, CANCELLED)
            elif isinstance(job.request, ClassifyRequest) and not job.alone:
                self.heard(job, Began((job.id,)))
                given.response = handle.label.remote(Task(job.id, job.request))
                for message in await given.response:
                    self._hear(name, given, message)
            else:
                given.response = handle.options(stream=True).run.remote(Task(job.id, job.request))
                async for message in given.response:
                    self._hear(name, given, message)
        except (RequestCancelledError, TaskCancelledError):
            if job.cancelled:
                self._leave(given, State.CANCELLED, CANCELLED)
            else:
                self._lost(name, given)
        except (RayActorError, DeploymentUnavailableError):
            self._lost(name, given)
        except Exception as exc:
            log.exception("a job could not be run", extra={"job": job.id})
            what = f"Ray failed: {type(exc).__name__}: {exc}."
            self._leave(given, State.FAILED, Problem("error", what, "Report it with the server's log."))
        self.pump()

    def _hear(self, name: str, given: Given, message: Any) -> None:
        if isinstance(message, Seen):
            given.seen = self._seen[name][message.name] = message
        elif (end := self.heard(given.job, message)) is not None:
            self._leave(given, *end)

    def _lost(self, name: str, given: Given) -> None:
        """A replica ended: what it had not begun waits again, and so, once and alone, does what may have shared a call.

        The rest fails.
        """
        if given.seen is not None and self._seen[name].pop(given.seen.name, None) is not None:
            self._lost_replicas[name] += 1
        job = given.job
        together = isinstance(job.request, ClassifyRequest) and not job.alone
        if job.id not in self._given:
            return
        if job.cancelled and given.blamed is None:
            self._leave(given, State.CANCELLED, CANCELLED)
        elif given.blamed is not None:
            self._leave(given, State.FAILED, given.blamed)
        elif job.started is None or together:
            del self._given[job.id]
            self.again(job, alone=together)
        else:
            self._leave(given, State.FAILED, _LOST)

    async def _cancel(self, given: Given) -> None:
        """A replica that has it is told to stop, and says when it has; what none of those that are told has is taken
        back: it waits in Ray's queue, or its replica is one too many and ends once it is done."""
        told = await self._all(lane_of(given.job), "stop", given.job.id)
        if not any(told) and given.response is not None:
            given.response.cancel()

    async def _all(self, name: str, method: str, *given: Any) -> list[Any]:
        """What the replicas answer; those that do not are left out."""
        try:
            answers = await self._deployed[name].handle.broadcast(method, *given).results_async(return_exceptions=True)
        except (DeploymentUnavailableError, RayActorError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _look(self, name: str) -> None:
        """Now and then: which replicas there are. Those that come open what is pinned."""
        await self._all(name, "stop_all")  # of a core that is gone
        while True:
            await self._look_once(name)
            await asyncio.sleep(_LOOK if self._seen[name] else _FIRST_LOOK)

    async def _look_once(self, name: str) -> None:
        try:
            answers = await asyncio.wait_for(self._all(name, "seen"), _ANSWER)
        except TimeoutError:  # one of them hangs: Ray finds out and ends it
            return
        before, deployed = self._seen[name], self._deployed[name]
        now = self._seen[name] = {seen.name: seen for seen in answers if isinstance(seen, Seen)}
        if deployed.least == deployed.most:  # else it may be one too many
            self._lost_replicas[name] += len(before.keys() - now.keys())
        if now:
            self._there[name].set()
        for model in self._pinned.intersection(deployed.models):
            if any(model not in seen.models for seen in now.values()):
                for answer in await self._all(name, "open", model, True):
                    if isinstance(answer, NotOpened):
                        self._pinned.discard(model)
                        log.error("not loaded", extra={"model": model, "what": answer.problem.what})
        self.pump()

    def _leave(self, given: Given, state: State, problem: Problem | None) -> None:
        if self._given.pop(given.job.id, None) is not None:
            self.ended(given.job, state, problem)

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """In no request's context: Ray ends what a request began when its client leaves."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _kill(name: str) -> None:
    """End a replica; Ray Serve starts another."""
    import ray

    try:
        ray.kill(ray.get_actor(name, namespace="serve"))
    except ValueError:  # it is gone
        return
