"""Hugging Face's inference API: POST /models/{name} labels a picture or draws one, by the model's kind."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ..core.errors import VitrifyError
from .asked import Exact
from .catalogue import ModelInfo
from .errors import BadRequest, Unsupported
from .fields import read, to_draw
from .gate import Gate, parsed, read_json
from .jobs import Job
from .pictures import checked, from_base64, kind_of
from .requests import ClassifyRequest, GenerateRequest

_TOP = 5  # labels, unless asked
_FILES = ("inputs", "image", "file")  # names that a picture may have in a form
_FIELD = 64 * 1024  # bytes of a form's other fields
_NAMES = {"prompt": "inputs", "steps": "num_inference_steps", "guidance": "guidance_scale"}
_ACCEPTED = {
    "": "png", "*/*": "png", "image/*": "png", "image/png": "png", "image/jpeg": "jpeg", "image/jpg": "jpeg",
    "image/webp": "webp", "application/json": "json", "application/*": "json",
}  # fmt: skip
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "additionalProperties": False,
                    "properties": {"inputs": {"type": "string"}, "parameters": {"type": "object"}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Labelling(Exact):
    """The parameters of image classification."""

    top_k: int | None = Field(None, ge=1)
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class Drawing(Exact):
    """The parameters of text-to-image; their bounds are those of the native API."""

    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None


class Body(Exact):
    inputs: str
    parameters: dict[str, Any] | None = None


def router(gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["Hugging Face"])

    @routes.post("/models/{name}", response_model=None, openapi_extra=_BODY)
    async def infer(http: Request, name: str) -> Response:
        """Labels of a picture (its own bytes, base64 in JSON, or a form), or a picture of a prompt (JSON)."""
        client = gate.client(http)
        info = gate.core.model(name)
        if GenerateRequest.kind in info.kinds:
            kind = wanted(http.headers.get("accept", ""))
            request = _drawing(info, await gate.json(http), "png" if kind == "json" else kind)
            return _drawn(await gate.run(http, request, client), as_json=kind == "json")
        job = await gate.run(http, await _labelling(gate, http, info), client)
        assert job.result is not None
        assert job.result.answers is not None
        return JSONResponse(job.result.answers[0])

    return routes


def shape(exc: VitrifyError) -> dict[str, object]:
    """An error as huggingface_hub shows it."""
    return {"error": f"{exc.what} {exc.fix}", "error_type": exc.code}


async def _labelling(gate: Gate, http: Request, info: ModelInfo) -> ClassifyRequest:
    """The picture, however it was sent; what a client says of its type is not relied on."""
    data = await gate.body(http)
    given: dict[str, Any] = {}
    said = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said == "multipart/form-data":
        data, given = await _form(http, data)
    elif kind_of(data) is None and (said.endswith("json") or data.lstrip()[:1] == b"{"):
        body = read(Body, await read_json(data))
        data, given = from_base64(body.inputs), body.parameters or {}
    picture = checked(data, gate.settings.pixels)
    asked = read(Labelling, given)
    top = min(asked.top_k or _TOP, len(info.labels))
    return ClassifyRequest(info.name, (picture,), top_k=top, function=asked.function_to_apply)


async def _form(http: Request, data: bytes) -> tuple[bytes, dict[str, Any]]:
    """The file of a form, and the JSON of its field `parameters`.

    Raises:
        BadRequest: it is damaged, or has other parts.
    """

    async def body() -> AsyncIterator[bytes]:
        yield data

    parser = MultiPartParser(http.headers, body(), max_files=1, max_fields=1, max_part_size=_FIELD)  # type: ignore[arg-type]
    parser.spool_max_size = len(data) + 1  # it is in memory already
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as exc:
        said = getattr(exc, "message", None) or f"{type(exc).__name__}: {exc}"
        raise BadRequest(f"The form cannot be read: {said}", f"Send one file as {_FILES[0]!r}.") from exc
    try:
        unknown = [name for name in form if name not in (*_FILES, "parameters")]
        picture = next((form[name] for name in _FILES if isinstance(form.get(name), UploadFile)), None)
        text = form.get("parameters", "{}")
        if unknown or not isinstance(picture, UploadFile) or not isinstance(text, str):
            raise BadRequest(
                "The form has no file, or parts that are not known.",
                f"Send one file as {_FILES[0]!r}, and JSON as 'parameters' where there are any.",
            )
        return await picture.read(), parsed(text.encode("utf-8", "replace"))
    finally:
        await form.close()


def _drawing(info: ModelInfo, given: dict[str, Any], kind: str) -> GenerateRequest:
    body = read(Body, given)
    parameters = body.parameters or {}
    if "prompt" in parameters:  # image-to-image: the prompt is a parameter, the inputs are a picture
        raise Unsupported(
            f"{info.name} does not change pictures yet.", "Send the prompt as `inputs`, to draw a new one."
        )
    asked = read(Drawing, parameters)
    fields = asked.model_dump(include={"negative_prompt", "height", "width", "scheduler", "seed"}) | {
        "prompt": body.inputs, "steps": asked.num_inference_steps, "guidance": asked.guidance_scale, "format": kind,
    }  # fmt: skip
    return to_draw(info, fields, _NAMES)


def _drawn(job: Job, *, as_json: bool) -> Response:
    """The picture's own bytes; or JSON, with everything needed to draw it again."""
    assert job.result is not None
    picture, details = job.result.pictures[0], job.result.details
    if not as_json:
        return Response(picture.data, media_type=picture.media_type, headers={"X-Seed": str(details["seed"])})
    said = {
        "image": base64.b64encode(picture.data).decode(), "content_type": picture.media_type, "seed": details["seed"],
        "parameters": details["parameters"][0], "timings": details["timings"], "placement": details["placement"],
    }  # fmt: skip
    return Response(json.dumps(said), media_type="application/json")


def wanted(accept: str) -> str:
    """png, jpeg, webp or json: what an Accept header likes best of these.

    Raises:
        Unsupported: it likes none of them.
    """
    best, most = None, 0.0
    for item in accept.split(","):
        kind, *options = (part.strip().lower() for part in item.split(";"))
        quality = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            liked = float(quality)
        except ValueError:
            liked = 0.0
        if kind in _ACCEPTED and liked > most:
            best, most = _ACCEPTED[kind], liked
    if best is None:
        raise Unsupported(
            f"Pictures cannot be sent as {accept[:100]!r}.", "Accept image/png, image/jpeg, image/webp or JSON."
        )
    return best
