"""The job core as a front sees it: every question is put to the one replica of `Jobs`, through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import RequestCancelledError
from ray.serve.handle import DeploymentHandle

from ..core.errors import VitrifyError
from .catalogue import ModelInfo
from .errors import RetryLater, UnknownJob
from .interface import Core
from .jobs import Job, Picture, Problem, State
from .messages import Opened
from .requests import Request
from .work import View

log = logging.getLogger("vitrify.serve")
_GONE = Problem("worker_lost", "The process that keeps the jobs was lost.", "Ask for it again.")
_PATIENCE = 60.0  # seconds that a question is put again while that process is started anew
_AGAIN = 0.3  # seconds between two of these
_SOON = 2.0  # seconds that `Jobs` has to say how it is


@dataclass(frozen=True)
class Refused:
    """An answer: what `Jobs` would have raised. As a value, since Ray logs and wraps what is raised."""

    error: VitrifyError | IndexError


class RemoteCore(Core):
    """Forwards to `Jobs`.

    Where that is lost and comes back, durable jobs go on from the journal; those that live as long as their client
    are gone, and fail as `worker_lost`.
    """

    def __init__(self, jobs: DeploymentHandle, models: Mapping[str, ModelInfo]) -> None:
        self.models = dict(models)
        self._jobs, self._watched = jobs, jobs.options(stream=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: set[asyncio.Task[Any]] = set()  # what was said and not answered yet

    async def view(self) -> View:
        """What runs, waits and is loaded now; not ready while `Jobs` does not answer."""
        await self._heard()
        try:
            view: View = await asyncio.wait_for(self._ask("view"), _SOON)
        except (TimeoutError, RetryLater):
            return View(False, False, [], [], {}, [])
        return view

    async def metrics(self) -> bytes:
        text: bytes = await self._ask("metrics")
        return text

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
        again = key is not None or not durable  # else there might be two of it then
        said = {"durable": durable, "key": key, "priority": priority, "timeout": timeout}
        asked = self._task(self._asked("submit", request, client, again=again, **said))
        try:
            job: Job = await asyncio.shield(asked)
        except asyncio.CancelledError:
            if not durable:  # the client has left while it was let in
                asked.add_done_callback(self._unwanted)
            raise
        return job

    async def get(self, id: str, client: str) -> Job:
        await self._heard()
        job: Job = await self._ask("get", id, client)
        return job

    async def picture(self, job: Job, number: int) -> Picture:
        picture: Picture = await self._ask("picture", job.id, job.client, number)
        return picture

    async def listed(self, client: str, limit: int = 50) -> list[Job]:
        await self._heard()
        jobs: list[Job] = await self._ask("listed", client, limit)
        return jobs

    async def events(self, job: Job) -> AsyncIterator[Job]:
        while True:
            response = self._watched.events.remote(job.id, job.client)
            try:
                async for seen in response:
                    if isinstance(seen, Refused):
                        raise seen.error
                    _become(job, seen)
                    yield job
                return
            except (RayActorError, RequestCancelledError):  # `Jobs` was lost
                if job.durable:
                    await asyncio.sleep(_AGAIN)
                    continue
                _fail(job)
            except UnknownJob:  # and is back, without it
                if job.durable:
                    raise
                _fail(job)
            finally:
                if not job.state.final:  # whoever watched has left
                    response.cancel()
            yield job
            return

    async def finished(self, job: Job) -> Job:
        try:
            _become(job, await self._ask("finished", job.id, job.client, again=job.durable))
        except (RetryLater, UnknownJob):
            _fail(job)
        return job

    def cancel(self, job: Job) -> None:
        """Says so, and does not wait for the answer."""
        if not job.state.final and not job.cancelled:
            job.cancelled = True
            self._tell("cancel", job.id, job.client)

    async def open(self, name: str, *, pinned: bool = False) -> Opened:
        self.model(name)
        opened: Opened = await self._ask("open", name, pinned)
        return opened

    def close(self, name: str) -> None:
        """Says so, and does not wait for the answer."""
        self.model(name)
        self._tell("close", name)

    async def options(self, client: str) -> dict[str, str]:
        chosen: dict[str, str] = await self._ask("chosen", client)
        return chosen

    async def set_options(self, client: str, chosen: Mapping[str, str]) -> None:
        await self._ask("choose", client, dict(chosen))

    async def _ask(self, name: str, *given: Any, again: bool = True) -> Any:
        """The answer of `Jobs`. A caller that leaves does not take the question back.

        Raises:
            RetryLater: it was lost, and is not back yet or must not be asked again. And what it raises itself.
        """
        return await asyncio.shield(self._task(self._asked(name, *given, again=again)))

    async def _asked(self, name: str, *given: Any, again: bool, **named: Any) -> Any:
        until = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            try:
                answer = await getattr(self._jobs, name).remote(*given, **named)
                break
            except (RayActorError, RequestCancelledError) as exc:
                if not again or asyncio.get_running_loop().time() > until:
                    raise RetryLater(_GONE.what, "Ask again in a moment.", 2.0) from exc
                await asyncio.sleep(_AGAIN)
        if isinstance(answer, Refused):
            raise answer.error
        return answer

    def _tell(self, name: str, *given: Any) -> None:
        async def telling() -> None:
            with contextlib.suppress(UnknownJob):  # it was lost in between
                await self._asked(name, *given, again=True)

        task = self._task(telling())
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _heard(self) -> None:
        """What this front has said before comes first."""
        if self._told:
            await asyncio.wait(self._told, timeout=_SOON)

    def _unwanted(self, asked: asyncio.Task[Any]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self.cancel(asked.result())

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """In no request's context: Ray ends what a request began when its client leaves."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            error = task.exception()
            if not isinstance(error, VitrifyError | IndexError):
                log.error("Jobs did not answer", extra={"what": f"{type(error).__name__}: {error}"})


def _become(job: Job, seen: Job) -> None:
    """The job as it is now; callers hold on to the one that they have."""
    vars(job).update({name: value for name, value in vars(seen).items() if name != "request"})


def _fail(job: Job) -> None:
    job.state, job.problem = State.FAILED, _GONE
