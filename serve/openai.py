"""OpenAI's images: POST /v1/images/generations, with what diffusion models need besides; also as a stream."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field
from starlette.background import BackgroundTask

from ..core.errors import VitrifyError
from .asked import Exact
from .catalogue import ModelInfo
from .errors import BadField, Unsupported, status_of
from .fields import drawer, read, to_draw
from .gate import Gate
from .jobs import Failure, Job, Picture, State
from .requests import GenerateRequest

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_NAMES = {
    "steps": "num_inference_steps", "guidance": "guidance_scale", "images": "n", "format": "output_format",
    "width": "size", "height": "size",
}  # fmt: skip
# tokens are what OpenAI's models count; typed clients want the field
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class Generation(Exact):
    """OpenAI's fields, as far as they mean something here, and four of ours: seed, num_inference_steps,
    guidance_scale and negative_prompt."""

    prompt: str
    model: str | None = Field(
        None, max_length=200, description="One of GET /v1/models; without it the first that draws."
    )
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, max_length=32, description="WIDTHxHEIGHT, or auto for the model's own.")
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="Previews in a stream.")
    quality: Literal["auto", "standard"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(None, description="Nothing is moderated.")
    user: str | None = Field(None, max_length=1000)
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Generation.model_json_schema()}}}}


def router(gate: Gate) -> APIRouter:
    """Routes below /v1/images."""
    routes = APIRouter(prefix="/v1/images", tags=["OpenAI"])

    @routes.post("/generations", response_model=None, openapi_extra=_BODY)
    async def generations(http: Request) -> Response:
        """Pictures from a prompt, as base64; with `stream` as server-sent events, previews first."""
        client = gate.client(http)
        body = read(Generation, await gate.json(http))
        request = _request(drawer(gate.core, body.model), body)
        if body.stream:
            job = await gate.core.submit(request, client)  # what is refused is refused before anything is sent
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            events = _events(gate, job, body.partial_images or 0)
            leaves = BackgroundTask(gate.core.cancel, job)  # also one that left before the first event was asked for
            return StreamingResponse(events, media_type="text/event-stream", headers=headers, background=leaves)
        job = await gate.run(http, request, client)
        assert job.result is not None
        said = {"created": int(time.time()), "output_format": request.format, "background": "opaque"}
        said |= {"size": _size(request), "quality": "auto"}
        return JSONResponse(said | {"data": [_image(job, number) for number in range(len(job.result.pictures))]})

    @routes.post("/edits")
    async def edits(http: Request) -> None:
        """Refused until there are models that change pictures."""
        gate.client(http)
        await gate.body(http)  # a client that is cut off while it sends would not read the reason
        raise Unsupported("This server cannot change pictures yet.", "Draw new ones with /v1/images/generations.")

    @routes.post("/variations")
    async def variations(http: Request) -> None:
        """Refused until there are models that change pictures."""
        await edits(http)

    return routes


def shape(exc: VitrifyError) -> dict[str, object]:
    """An error as OpenAI's clients read it."""
    status = status_of(exc.code)
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    said = {"message": f"{exc.what} {exc.fix}".strip(), "type": kind, "code": exc.code}
    return {"error": said | {"param": getattr(exc, "param", None)}}


def as_model(info: ModelInfo) -> dict[str, Any]:
    """A model as an entry of OpenAI's list."""
    return {"id": info.name, "object": "model", "created": int(info.path.stat().st_mtime), "owned_by": "vitrify"}


def _request(info: ModelInfo, body: Generation) -> GenerateRequest:
    if body.partial_images and not body.stream:
        raise BadField("partial_images come in a stream only.", "Ask for stream: true, or leave it out.", "stream")
    fields = body.model_dump(include={"prompt", "negative_prompt", "seed"}) | {
        "steps": body.num_inference_steps, "guidance": body.guidance_scale, "images": body.n,
        "format": body.output_format, "previews": bool(body.partial_images),
    }  # fmt: skip
    if body.size not in (None, "auto"):
        sides = _SIZE.fullmatch(body.size or "")
        if sides is None:
            raise BadField(f"The size is {body.size!r}.", "Give it as 512x512, or auto.", "size")
        fields |= {"width": int(sides[1]), "height": int(sides[2])}
    return to_draw(info, fields, _NAMES)


def _size(request: GenerateRequest) -> str:
    return f"{request.width}x{request.height}"


def _base64(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode()


def _image(job: Job, number: int) -> dict[str, Any]:
    """One picture of a job that succeeded, with the seed that draws it again."""
    assert job.result is not None
    seed = job.result.details["parameters"][number]["seed"]
    return {"b64_json": _base64(job.result.pictures[number]), "seed": seed}


async def _events(gate: Gate, job: Job, partials: int) -> AsyncIterator[str]:
    """The job as OpenAI's events: so many previews, spread over the steps, then each picture, or an error."""
    request = job.request
    assert isinstance(request, GenerateRequest)
    common = {"created_at": int(job.created), "size": _size(request), "quality": "auto", "background": "opaque"}
    sent = 0
    try:
        async for now in gate.core.events(job):
            due = now.step * (partials + 1) // max(1, now.steps)
            preview = now.preview
            if preview is not None and sent < min(due, partials):
                said = {"b64_json": _base64(preview), "output_format": preview.kind, "partial_image_index": sent}
                yield _event("image_generation.partial_image", common | said)
                sent += 1
            elif not now.state.final:
                yield f": step {now.step} of {now.steps}\n\n"  # a comment, so that nobody takes it for dead
        if job.state is not State.SUCCEEDED or job.result is None:
            yield f"event: error\ndata: {json.dumps(shape(Failure.of(job)))}\n\n"
            return
        for number in range(len(job.result.pictures)):
            said = _image(job, number) | {"output_format": request.format, "usage": _USAGE}
            yield _event("image_generation.completed", common | said)
    finally:
        gate.core.cancel(job)  # the client has left; nothing where the job has ended


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
