"""The server's own API: jobs that can be followed, cancelled and fetched; models; what is running."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ..core.errors import VitrifyError
from .asked import ClassifyJob, GenerateJob, schema_of
from .catalogue import ModelInfo
from .errors import BadField, BadRequest, UnknownJob
from .fields import read
from .gate import Gate
from .jobs import Job
from .openai import as_model
from .requests import ClassifyRequest, GenerateRequest
from .work import View

_KEY = 200  # characters of an Idempotency-Key
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"oneOf": [schema_of(job) for job in (GenerateJob, ClassifyJob)]}}},
    },
    "parameters": [
        {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": _KEY}}
    ],
}
_ALIVE = 15.0  # seconds between two comments that keep a stream open


def router(gate: Gate) -> APIRouter:
    """Routes below /v1."""
    routes = APIRouter(prefix="/v1", tags=["jobs and models"])
    core = gate.core

    @routes.post("/jobs", status_code=202, openapi_extra=_BODY)
    async def submit(http: Request) -> JSONResponse:
        """Let a job in: 202 with its id. The same Idempotency-Key gives the same job."""
        client = gate.client(http)
        key = http.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= _KEY:
            raise BadRequest(f"The Idempotency-Key has {len(key)} characters; 1 to {_KEY} are taken.", "Use a UUID.")
        body = valid(await gate.json(http))
        if isinstance(body, GenerateJob):
            request: GenerateRequest | ClassifyRequest = body.request(core.model(body.model), gate.settings)
        else:
            core.model(body.model).check(ClassifyRequest.kind)
            request = body.request(gate.settings)
        job = await core.submit(request, client, durable=True, key=key, priority=body.priority, timeout=body.timeout)
        return JSONResponse(shown(job), 202, {"Location": f"/v1/jobs/{job.id}"})

    @routes.get("/jobs")
    async def jobs(http: Request, limit: int = 50) -> dict[str, Any]:
        """The caller's newest jobs, the last first."""
        client = gate.client(http)
        return {"jobs": [shown(job) for job in await core.listed(client, max(1, min(limit, 500)))]}

    @routes.get("/jobs/{id}")
    async def job(http: Request, id: str) -> dict[str, Any]:
        """The job as it is now."""
        return shown(await core.get(id, gate.client(http)), preview=True)

    @routes.delete("/jobs/{id}", status_code=202)
    async def cancel(http: Request, id: str) -> dict[str, Any]:
        """Stop it within a step; nothing where it has ended."""
        found = await core.get(id, gate.client(http))
        core.cancel(found)
        return shown(found)

    @routes.get("/jobs/{id}/pictures/{number}")
    async def picture(http: Request, id: str, number: int) -> Response:
        """A picture that the job drew."""
        found = await core.get(id, gate.client(http))
        try:
            given = await core.picture(found, number)
        except IndexError as exc:
            raise UnknownJob(f"Job {id} has {exc} pictures.", "They are numbered from 0, once it succeeded.") from exc
        return Response(given.data, media_type=given.media_type)

    @routes.get("/jobs/{id}/events")
    async def events(http: Request, id: str) -> StreamingResponse:
        """The job each time that it changes, as server-sent events; ends when it does."""
        found = await core.get(id, gate.client(http))
        return StreamingResponse(
            _stream(gate, found), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    @routes.websocket("/jobs/{id}/socket")
    async def socket(web: WebSocket, id: str) -> None:
        """The same through a WebSocket; the message "cancel" stops the job."""
        try:
            found = await core.get(id, gate.client(web))
        except VitrifyError as exc:
            await web.close(4404, exc.what[:100])
            return
        await web.accept()
        both = [asyncio.ensure_future(way(web, gate, found)) for way in (_follow, _obey)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for way in both:
            way.cancel()
        for ended in await asyncio.gather(*both, return_exceptions=True):
            if isinstance(ended, Exception) and not isinstance(ended, WebSocketDisconnect | RuntimeError):
                raise ended

    @routes.get("/models")
    async def models(http: Request) -> dict[str, Any]:
        """What is served, and what of it is loaded where."""
        gate.client(http)
        view = await core.view()
        said = [_model(info, view) for info in core.models.values()]
        return {"object": "list", "data": [as_model(info) for info in core.models.values()], "models": said}

    @routes.get("/models/{name}")
    async def model(http: Request, name: str) -> dict[str, Any]:
        """One of them."""
        gate.client(http)
        info = core.model(name)
        return _model(info, await core.view()) | as_model(info)

    @routes.post("/models/{name}/load")
    async def load(http: Request, name: str, pin: bool = False) -> dict[str, Any]:
        """Load a model now; pinned ones are not put out for others."""
        gate.client(http)
        await core.open(name, pinned=pin)
        return _model(core.model(name), await core.view())

    @routes.post("/models/{name}/unload")
    async def unload(http: Request, name: str) -> dict[str, Any]:
        """Free its memory, once what runs is done."""
        gate.client(http)
        core.close(name)
        return _model(core.model(name), await core.view())

    @routes.get("/queue")
    async def queue(http: Request) -> dict[str, Any]:
        """How much waits and runs, of everybody; the jobs themselves only of the caller."""
        client = gate.client(http)
        view = await core.view()
        return {
            "waiting": len(view.waiting),
            "seconds": sum(view.seconds.values()),
            "running": len(view.running),
            "mine": [shown(job) for job in [*view.running, *view.waiting] if job.client == client],
        }

    return routes


def valid(given: dict[str, Any]) -> GenerateJob | ClassifyJob:
    """Raises BadField with each field that makes no sense."""
    kind = given.get("kind", "classify" if "pictures" in given else "generate")
    if kind == "classify":
        return read(ClassifyJob, given)
    if kind == "generate":
        return read(GenerateJob, given)
    raise BadField(f"There is no kind {kind!r:.80}.", "It is generate or classify.", "kind")


def shown(job: Job, *, preview: bool = False) -> dict[str, Any]:
    """A job as this API tells it."""
    here = f"/v1/jobs/{job.id}"
    said = job.to_json() | {"links": {"self": here, "events": f"{here}/events", "socket": f"{here}/socket"}}
    if job.result is not None and job.result.pictures:
        said["pictures"] = [f"{here}/pictures/{n}" for n in range(len(job.result.pictures))]
    if preview and job.preview is not None and not job.state.final:
        data = base64.b64encode(job.preview.data).decode()
        said["preview"] = f"data:{job.preview.media_type};base64,{data}"
    return said


async def _stream(gate: Gate, job: Job) -> AsyncIterator[str]:
    seen = aiter(gate.core.events(job))
    coming: asyncio.Future[Job] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(seen))
            try:
                now = await asyncio.wait_for(asyncio.shield(coming), _ALIVE)
            except TimeoutError:
                yield ": still here\n\n"
                continue
            except StopAsyncIteration:
                return
            coming = None
            yield f"event: {now.state.value}\ndata: {json.dumps(shown(now, preview=True))}\n\n"
    finally:
        if coming is not None:  # the client has left
            coming.cancel()


async def _follow(web: WebSocket, gate: Gate, job: Job) -> None:
    async for seen in gate.core.events(job):
        await web.send_json(shown(seen, preview=True))
    await web.close()


async def _obey(web: WebSocket, gate: Gate, job: Job) -> None:
    """Until the client leaves."""
    while (message := await web.receive())["type"] != "websocket.disconnect":
        if message.get("text") == "cancel":
            gate.core.cancel(job)


def _model(info: ModelInfo, view: View) -> dict[str, Any]:
    loaded = [
        {
            "device": device,
            "bytes": opened.bytes,
            "seconds": opened.seconds,
            "placement": opened.placement,
            "pinned": opened.pinned,
        }
        for device, opened in view.loaded(info.name)
    ]
    return info.to_json() | {"loaded": loaded}
