"""The job core: submit, get, events, cancel. Every protocol is a skin over these; nothing here touches a runtime."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import DiskError, VitrifyError
from .catalogue import ModelInfo
from .errors import Draining, ExpiredJob
from .interface import Core
from .jobs import CANCELLED, Job, Picture, Problem, State
from .journal import Journal, unknown_job
from .messages import Opened
from .metrics import Metrics
from .requests import Request, models_of
from .work import Changed, Ended, Limits, View, Work

log = logging.getLogger("vitrify.serve")
T = TypeVar("T")
_GRACE = 5.0  # seconds that a job has to stop after its deadline, before its worker is killed
_REMEMBERED = 1000  # jobs that ended with their connection
_CLIENTS = 10_000  # whose options are remembered
_PRUNE = 60.0  # seconds between two looks at what is too old


class JobCore(Core):
    """Jobs of all protocols.

    Args:
        models: name -> what is served. state: folder of the journal. pinned: models that are opened at the start.
        work: makes what runs the jobs, from limits, changed and ended.
    """

    def __init__(
        self,
        models: Mapping[str, ModelInfo],
        state: Path,
        limits: Limits,
        work: Callable[[Limits, Changed, Ended], Work],
        pinned: tuple[str, ...] = (),
    ) -> None:
        self.models, self.limits = dict(models), limits
        self.draining = False
        self._work = work(limits, self._changed, self._end)
        self._metrics = Metrics(self._work)
        self._state, self._pinned = state, pinned
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._journal: Journal | None = None
        self._jobs: dict[str, Job] = {}  # those that have not ended, and those whose end is not on the disk
        self._unsaved: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()  # of those that nobody keeps, how they ended
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._chosen: OrderedDict[str, dict[str, str]] = OrderedDict()  # by client
        self._background: set[asyncio.Task[Any]] = set()
        self._pruning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the workers, and take up what a crash left.

        Raises:
            UsageError: another server has the state's folder. DiskError: it cannot be written.
        """
        for name in self._pinned:
            self.model(name)
        self._journal = await self._written(Journal, self._state, age=self.limits.age, size=self.limits.size)
        left = await self._written(self._journal.recover)
        for job in left:
            self._jobs[job.id] = job
            gone = next((name for name in models_of(job.request) if name not in self.models), None)
            if gone is None:
                self._enter(job)
            else:
                problem = Problem("unknown_model", f"No model {gone!r} is served any more.", "Serve it again.")
                self._end(job, State.FAILED, problem)
        if left:
            log.info("jobs taken up", extra={"jobs": len(left)})
        self._work.start()
        for name in self._pinned:
            self._do(self.open(name, pinned=True))
        self._pruning = asyncio.create_task(self._prune_now_and_then())

    async def stop(self, grace: float) -> None:
        """Take nothing new, let what runs finish for so many seconds; what is durable and waits comes next time."""
        if self.draining:
            return
        self.draining = True
        for job in self._work.waiting():
            if not job.durable and self._work.leave(job):
                self._end(job, State.FAILED, Problem("draining", "The server is stopping.", "Ask again in a moment."))
        await self._work.stop(grace)
        if self._pruning is not None:
            self._pruning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pruning
        while self._background:
            await asyncio.wait(self._background)
        for timer in self._timers.values():
            timer.cancel()
        if self._journal is not None:
            await self._written(self._journal.close)
        self._disk.shutdown()

    async def view(self) -> View:
        work = self._work
        seconds = {name: lane.seconds for name, lane in work.lanes.items()}
        ready = work.ready and not self.draining
        return View(ready, self.draining, work.running(), work.waiting(), seconds, work.workers())

    async def metrics(self) -> bytes:
        return self._metrics.text()

    async def submit(
        self,
        request: Request,
        client: str,
        *,
        durable: bool = False,
        key: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Job:
        if self.draining:
            raise Draining("The server is stopping.", "Ask again in a moment.", 5.0)
        self.model(request.model).check(request.kind)
        job = Job(request, client, durable=durable, priority=priority)
        job.deadline = job.created + min(timeout or self.limits.timeout, self.limits.timeout)
        journal = self._journal
        assert journal is not None, "start() comes first"
        if key is not None:
            known = await self._written(journal.known, job, key)
            if known is not None:
                return await self.get(known, client)
        self._work.admit(job)
        try:
            kept = await self._written(journal.add, job, key) if durable else job.id
        except BaseException:
            self._work.forget(job)
            raise
        if kept != job.id:
            self._work.forget(job)
            return await self.get(kept, client)
        self._jobs[job.id] = job
        self._enter(job)
        return job

    async def get(self, id: str, client: str) -> Job:
        assert self._journal is not None
        job = self._jobs.get(id) or self._ended.get(id)
        if job is None:
            job = await self._written(self._journal.load, id, client)
        if job.client != client:
            raise unknown_job(id)
        return job

    async def picture(self, job: Job, number: int) -> Picture:
        pictures = job.result.pictures if job.result is not None else []
        if not 0 <= number < len(pictures):
            raise IndexError(len(pictures))
        try:
            return Picture(await self._written(lambda: pictures[number].data), pictures[number].kind)
        except FileNotFoundError as exc:
            raise ExpiredJob(f"The results of job {job.id} were removed.", "Ask for it again.") from exc

    async def listed(self, client: str, limit: int = 50) -> list[Job]:
        assert self._journal is not None
        kept = await self._written(self._journal.listed, client, limit)
        return [self._jobs.get(job.id, job) for job in kept]

    async def events(self, job: Job) -> AsyncIterator[Job]:
        while True:
            last = job.state.final  # it may end while the caller has it
            yield job
            if last:
                return
            if not job.state.final:
                await self._change(job)

    async def finished(self, job: Job) -> Job:
        while not job.state.final:
            await self._change(job)
        return job

    def cancel(self, job: Job) -> None:
        if job.state.final or job.cancelled:
            return
        job.cancelled = True
        if self._work.leave(job):
            self._end(job, State.CANCELLED, CANCELLED)
        else:
            self._work.cancel(job)

    async def open(self, name: str, *, pinned: bool = False) -> Opened:
        self.model(name)
        return await self._work.open(name, pinned=pinned)

    def close(self, name: str) -> None:
        self.model(name)
        self._work.close(name)

    async def options(self, client: str) -> dict[str, str]:
        """What this client has chosen, by name; forgotten when the server ends."""
        return dict(self._chosen.get(client, {}))

    async def set_options(self, client: str, chosen: Mapping[str, str]) -> None:
        self._chosen[client] = self._chosen.pop(client, {}) | dict(chosen)
        if len(self._chosen) > _CLIENTS:
            self._chosen.popitem(last=False)

    def _enter(self, job: Job) -> None:
        if job.deadline is not None:
            left = job.deadline - time.time()
            if left <= 0:
                self._work.forget(job)
                self._end(job, State.FAILED, _late_problem(job))
                return
            self._timers[job.id] = asyncio.get_running_loop().call_later(left, self._late, job)
        self._work.enter(job)

    def _changed(self, event: str, job: Job) -> None:
        if event in ("started", "requeued") and job.durable and self._journal is not None:
            self._do(self._written(self._journal.save, replace(job)))
        self._tell(job)
        self._metrics.told(event, job)

    def _late(self, job: Job) -> None:
        """Its deadline has passed."""
        if job.state.final:
            return
        if self._work.leave(job):
            self._end(job, State.FAILED, _late_problem(job))
            return
        self.cancel(job)
        self._timers[job.id] = asyncio.get_running_loop().call_later(_GRACE, self._work.kill, job, _late_problem(job))

    def _end(self, job: Job, state: State, problem: Problem | None) -> None:
        """The last thing that happens to a job; a durable one is on the disk before anybody is told."""
        timer = self._timers.pop(job.id, None)
        if timer is not None:
            timer.cancel()
        if state is State.CANCELLED and job.deadline is not None and time.time() >= job.deadline:
            state, problem = State.FAILED, _late_problem(job)
        if job.durable:
            self._do(self._end_on_disk(job, state, problem))
        else:
            self._settle(job, state, problem)

    async def _end_on_disk(self, job: Job, state: State, problem: Problem | None) -> None:
        assert self._journal is not None
        try:
            await self._written(self._journal.save, replace(job, state=state, problem=problem, finished=time.time()))
        except Exception as exc:  # whatever it is, those who wait must hear of an end
            if not isinstance(exc, VitrifyError):
                log.exception("a fault of the server")
                exc = DiskError(f"The result cannot be kept: {type(exc).__name__}.", "Report it with the server's log.")
            self._unsaved[job.id] = job
            job.result = None
            self._settle(job, State.FAILED, Problem.of(exc))
            return
        self._settle(job, state, problem)
        if self._journal.full:
            await self._pruned()

    def _settle(self, job: Job, state: State, problem: Problem | None) -> None:
        job.state, job.problem, job.finished, job.eta, job.preview = state, problem, time.time(), None, None
        if job.id not in self._unsaved:
            self._jobs.pop(job.id, None)
        if not job.durable:
            self._ended[job.id] = replace(job, result=None, request=job.request.without_data())
            while len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)
        self._tell(job)
        self._metrics.told("ended", job)
        log.info("job ended", extra=_logged(job))

    async def _prune_now_and_then(self) -> None:
        """What is too old goes, and what the disk did not take is tried again."""
        assert self._journal is not None
        while True:
            await self._pruned()
            for job in list(self._unsaved.values()):
                with contextlib.suppress(DiskError):
                    await self._written(self._journal.save, job)
                    del self._unsaved[job.id], self._jobs[job.id]
            await asyncio.sleep(_PRUNE)

    async def _pruned(self) -> None:
        assert self._journal is not None
        try:
            gone = await self._written(self._journal.prune)
        except DiskError as exc:
            log.error("results cannot be removed", extra={"what": exc.what})
            return
        if gone:
            log.info("results removed", extra={"jobs": gone})

    async def _change(self, job: Job) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(job.id, [])
        waiters.append(future)
        try:
            await future
        finally:
            if future in waiters:
                waiters.remove(future)

    def _tell(self, job: Job) -> None:
        for future in self._waiters.pop(job.id, []):
            if not future.done():
                future.set_result(None)

    def _do(self, work: Coroutine[Any, Any, Any]) -> None:
        """In the background; what goes wrong is logged. A disk that is full is told at the job's end."""

        async def doing() -> None:
            try:
                await work
            except VitrifyError as exc:
                log.error("not done", extra={"code": exc.code, "what": exc.what})
            except Exception:
                log.exception("a fault of the server")

        task = asyncio.ensure_future(doing())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _written(self, work: Callable[..., T], *given: Any, **named: Any) -> T:
        """Run what touches the disk in the journal's own thread, one thing after the other."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, lambda: work(*given, **named))
        except RuntimeError as exc:
            if not self.draining:
                raise
            raise Draining("The server is stopping.", "Ask again in a moment.", 5.0) from exc  # the journal is closed


def _late_problem(job: Job) -> Problem:
    seconds = (job.deadline or job.created) - job.created
    return Problem("deadline", f"The job was not done within {seconds:.0f} s.", "Ask for less, or give it more time.")


def _logged(job: Job) -> dict[str, Any]:
    """What the log says of a job that ended; nothing of what was asked for, which is the client's own."""
    said: dict[str, Any] = {"job": job.id, "client": job.client, "model": job.model, "kind": job.kind}
    said["status"] = job.state.value
    if job.started is not None and job.finished is not None:
        said |= {"waited": round(job.started - job.created, 4), "took": round(job.finished - job.started, 4)}
    if job.problem is not None:
        said |= {"code": job.problem.code, "what": job.problem.what}
    return said
