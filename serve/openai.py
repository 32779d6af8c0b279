"""OpenAI's images: POST /v1/images/generations and /edits, with what diffusion models need besides; also as streams."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ConfigDict, Field
from starlette.background import BackgroundTask

from ..core.errors import VitrifyError
from .asked import Exact
from .catalogue import ModelInfo
from .errors import BadField, Unsupported, status_of
from .fields import drawer, read, to_draw
from .forms import KIND, kind_said, read_form
from .gate import Gate
from .jobs import Failure, Job, Picture, State
from .masks import from_alpha
from .requests import GenerateRequest
from .turns import Turns

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_NAMES = {
    "steps": "num_inference_steps", "guidance": "guidance_scale", "images": "n", "format": "output_format",
    "width": "size", "height": "size",
}  # fmt: skip
_IMAGES = ("image", "image[]")  # a form's names of the picture: alone, and in a list
_FIELDS, _FIELD = 32, 100_000  # fields of a form besides its files, and the bytes of one
_FIX = "Send a picture as `image` and the prompt as `prompt`, in a form."
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
    safety_identifier: str | None = Field(None, max_length=1000)
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None


class Edit(Generation):
    """The same of a form, where all values are texts; and one more field of ours, strength."""

    model_config = ConfigDict(strict=False)

    input_fidelity: Literal["low"] | None = None
    strength: float | None = Field(None, description="How much is changed, above 0 to 1: 0.8, or 1 with a mask.")


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Generation.model_json_schema()}}}}
_FORM = Edit.model_json_schema()
_FILE = {"type": "string", "format": "binary"}
_FORM["properties"] |= {"image": _FILE, "mask": _FILE | {"description": "Transparent where something new is drawn."}}
_FORM["required"] = [*_FORM["required"], "image"]
_EDIT: dict[str, Any] = {"requestBody": {"required": True, "content": {KIND: {"schema": _FORM}}}}


def router(gate: Gate) -> APIRouter:
    """Routes below /v1/images."""
    routes = APIRouter(prefix="/v1/images", tags=["OpenAI"])
    turns = Turns()

    @routes.post("/generations", response_model=None, openapi_extra=_BODY)
    async def generations(http: Request) -> Response:
        """Pictures from a prompt, as base64; with `stream` as server-sent events, previews first."""
        client = gate.client(http)
        body = read(Generation, await gate.json(http))
        request = _request(gate, body, {})
        return await _answer(gate, http, client, body, request, "image_generation")

    @routes.post("/edits", response_model=None, openapi_extra=_EDIT)
    async def edits(http: Request) -> Response:
        """A picture changed as a whole; with a mask, drawn anew where that is fully transparent."""
        client = gate.client(http)
        image, mask, fields = await _form(http, await gate.body(http))
        body = read(Edit, fields)
        given: dict[str, Any] = {"image": base64.b64encode(image).decode(), "strength": body.strength}
        if mask is not None:
            given["mask"] = base64.b64encode(mask).decode()
        request = _request(gate, body, given)
        if mask is not None:
            request = replace(request, mask=await turns.do(lambda: from_alpha(mask)))
        return await _answer(gate, http, client, body, request, "image_edit")

    @routes.post("/variations")
    async def variations(http: Request) -> None:
        """Refused: a picture alone does not say what to draw."""
        gate.client(http)
        await gate.body(http)  # a client that is cut off while it sends would not read the reason
        raise Unsupported("This server makes no variations.", "Send a picture and a prompt to /v1/images/edits.")

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


async def _form(http: Request, data: bytes) -> tuple[bytes, bytes | None, dict[str, Any]]:
    """The picture, the mask and the other fields of a form; a field that is empty counts as not given.

    Raises:
        BadRequest: it is no form. BadField: a part that is not known or there twice, or no picture.
    """
    if kind_said(http) != KIND:
        raise BadField("The body is no form.", _FIX, None)
    files, fields = await read_form(http, data, files=3, fields=_FIELDS, longest=_FIELD, fix=_FIX)
    images = [content for name, content in files if name in _IMAGES]
    masks = [content for name, content in files if name == "mask"]
    other = next((name for name, _ in files if name not in (*_IMAGES, "mask")), None)
    if other is not None:
        raise BadField(f"The file {other[:80]!r} is not known.", "Send `image`, and `mask` if you like.", other[:80])
    if len(images) != 1 or len(masks) > 1:
        raise BadField(
            f"There are {len(images)} pictures and {len(masks)} masks.", _FIX, "mask" if masks[1:] else "image"
        )
    found: dict[str, Any] = {}
    for name, value in fields:
        if name in found:
            raise BadField(f"{name[:80]} is there twice.", "Send it once.", name[:80])
        if value or name == "prompt":
            found[name] = value
    return images[0], masks[0] if masks else None, found


def _request(gate: Gate, body: Generation, given: dict[str, Any]) -> GenerateRequest:
    """given: fields of the native API besides."""
    info = drawer(gate.core, body.model)
    if body.partial_images and not body.stream:
        raise BadField("partial_images come in a stream only.", "Ask for stream: true, or leave it out.", "stream")
    fields = body.model_dump(include={"prompt", "negative_prompt", "seed"}) | given | {
        "steps": body.num_inference_steps, "guidance": body.guidance_scale, "images": body.n,
        "format": body.output_format, "previews": bool(body.partial_images),
    }  # fmt: skip
    if body.size not in (None, "auto"):
        sides = _SIZE.fullmatch(body.size or "")
        if sides is None:
            raise BadField(f"The size is {body.size!r}.", "Give it as 512x512, or auto.", "size")
        fields |= {"width": int(sides[1]), "height": int(sides[2])}
    return to_draw(info, fields, _NAMES, gate.settings)


async def _answer(
    gate: Gate, http: Request, client: str, body: Generation, request: GenerateRequest, event: str
) -> Response:
    """The pictures, or a stream of them. event: what the stream's events are called before the dot."""
    if body.stream:
        job = await gate.core.submit(request, client)  # what is refused is refused before anything is sent
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = _events(gate, job, body.partial_images or 0, event)

        async def leave() -> None:  # what is no coroutine would run in a thread, away from the core's loop
            gate.core.cancel(job)

        leaves = BackgroundTask(leave)  # also one that left before the first event was asked for
        return StreamingResponse(events, media_type="text/event-stream", headers=headers, background=leaves)
    job = await gate.run(http, request, client)
    assert job.result is not None
    said = {"created": int(time.time()), "output_format": request.format, "background": "opaque"}
    said |= {"size": _size(request), "quality": "auto"}
    return JSONResponse(said | {"data": [_image(job, number) for number in range(len(job.result.pictures))]})


def _size(request: GenerateRequest) -> str:
    return f"{request.width}x{request.height}"


def _base64(picture: Picture) -> str:
    return base64.b64encode(picture.data).decode()


def _image(job: Job, number: int) -> dict[str, Any]:
    """One picture of a job that succeeded, with the seed that draws it again."""
    assert job.result is not None
    seed = job.result.details["parameters"][number]["seed"]
    return {"b64_json": _base64(job.result.pictures[number]), "seed": seed}


async def _events(gate: Gate, job: Job, partials: int, kind: str) -> AsyncIterator[str]:
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
                yield _event(f"{kind}.partial_image", common | said)
                sent += 1
            elif not now.state.final:
                yield f": step {now.step} of {now.steps}\n\n"  # a comment, so that nobody takes it for dead
        if job.state is not State.SUCCEEDED or job.result is None:
            yield f"event: error\ndata: {json.dumps(shape(Failure.of(job)))}\n\n"
            return
        for number in range(len(job.result.pictures)):
            said = _image(job, number) | {"output_format": request.format, "usage": _USAGE}
            yield _event(f"{kind}.completed", common | said)
    finally:
        gate.core.cancel(job)  # the client has left; nothing where the job has ended


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
