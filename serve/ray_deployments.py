"""What runs on Ray Serve: `Front`, which speaks HTTP; `Jobs`, the one job core; and `Models`, see `ray_models`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

from ray import serve

from ..core.errors import UsageError, VitrifyError
from .app import create_app
from .catalogue import ModelInfo
from .core import JobCore
from .jobs import Job, Picture
from .logs import set_up_logs
from .messages import Opened
from .ray_core import Refused, RemoteCore
from .ray_work import Lane, RayWork
from .requests import Request
from .settings import Settings
from .work import Limits, View

log = logging.getLogger("vitrify.serve")
_LOCK = 60.0  # seconds that the state's folder may still be held by the process before
_KEPT = 60.0  # seconds that a result is kept for a front that has not fetched it


class Front:
    """The HTTP application. Any number of them; they share nothing but `Jobs`."""

    def __init__(self, jobs: Any, models: Mapping[str, ModelInfo], settings: dict[str, Any], as_json: bool) -> None:
        set_up_logs(as_json=as_json)
        self._core, self._settings = RemoteCore(jobs, models), Settings(**settings)

    def __serve_build_asgi_app__(self) -> ServedBy:
        """Ray Serve calls this, in the replica."""
        return ServedBy(create_app(self._core, self._settings), serve.get_replica_context().replica_id.unique_id)


class ServedBy:
    """Names the replica that answers, in a header."""

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._header = app, (b"x-served-by", name.encode())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], self._header]
            await send(message)

        await self._app(scope, receive, sending)


def answering(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """What the core raises on purpose is an answer."""

    @wraps(method)
    async def answer(self: Jobs, *given: Any, **named: Any) -> Any:
        try:
            return await method(self, *given, **named)
        except (VitrifyError, IndexError) as exc:
            return Refused(exc)

    return answer


class Jobs:
    """The job core, once: its journal is the shared store. Started again after a crash, it goes on from there.

    Jobs are sent without what was asked of them in bytes; those that end with their connection are kept here until a
    front has fetched the result.
    """

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        models: Mapping[str, ModelInfo],
        state: Path,
        limits: Limits,
        pinned: tuple[str, ...],
        deployed: Mapping[str, Lane],
        grace: float,
        as_json: bool,
    ) -> None:
        set_up_logs(as_json=as_json)
        self._grace = grace
        self._kept: dict[str, Job] = {}
        self._core = JobCore(models, state, limits, partial(RayWork, deployed), pinned)
        until = time.monotonic() + _LOCK
        while True:
            try:
                return await self._core.start()
            except UsageError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)

    @answering
    async def submit(self, request: Request, client: str, **options: Any) -> Job:
        job = await self._core.submit(request, client, **options)
        if not job.durable:
            late = time.time() - _KEPT
            for other in [j for j in self._kept.values() if j.finished is not None and j.finished < late]:
                del self._kept[other.id]
            self._kept[job.id] = job
        return sent(job)

    @answering
    async def get(self, id: str, client: str) -> Job:
        return sent(await self._core.get(id, client))

    @answering
    async def listed(self, client: str, limit: int) -> list[Job]:
        return [sent(job) for job in await self._core.listed(client, limit)]

    @answering
    async def picture(self, id: str, client: str, number: int) -> Picture:
        return await self._core.picture(await self._core.get(id, client), number)

    @answering
    async def finished(self, id: str, client: str) -> Job:
        job = await self._core.finished(await self._find(id, client))
        self._kept.pop(id, None)
        return sent(job)

    async def events(self, id: str, client: str) -> AsyncIterator[Job | Refused]:
        try:
            async for job in self._core.events(await self._find(id, client)):
                yield sent(job)
            self._kept.pop(id, None)
        except VitrifyError as exc:
            yield Refused(exc)

    @answering
    async def cancel(self, id: str, client: str) -> None:
        self._core.cancel(await self._find(id, client))

    @answering
    async def open(self, name: str, pinned: bool) -> Opened:
        return await self._core.open(name, pinned=pinned)

    @answering
    async def close(self, name: str) -> None:
        self._core.close(name)

    async def chosen(self, client: str) -> dict[str, str]:
        """Its options; a handle's own method has that name."""
        return await self._core.options(client)

    async def choose(self, client: str, chosen: dict[str, str]) -> None:
        await self._core.set_options(client, chosen)

    async def view(self) -> View:
        view = await self._core.view()
        return replace(view, running=[sent(job) for job in view.running], waiting=[sent(job) for job in view.waiting])

    async def metrics(self) -> bytes:
        return await self._core.metrics()

    async def drain(self) -> None:
        """Take nothing new, and let what runs finish within the grace."""
        await self._core.stop(self._grace)

    async def __del__(self) -> None:
        """Ray Serve calls this when it ends the replica in order."""
        await self._core.stop(0)

    async def _find(self, id: str, client: str) -> Job:
        job = self._kept.get(id)
        return job if job is not None and job.client == client else await self._core.get(id, client)


def sent(job: Job) -> Job:
    """As it goes to a front: a copy, without the bytes that came from there."""
    return replace(job, request=job.request.without_data())
