"""Hugging Face's inference API: POST /models/{name} labels a picture, draws one or changes one, by the model's kind."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from ..core.errors import VitrifyError
from .asked import Exact
from .catalogue import ModelInfo
from .errors import BadRequest, Unsupported
from .fields import read, to_draw
from .forms import KIND, kind_said, read_form
from .gate import Gate, parsed, read_json
from .jobs import Job
from .pictures import checked, from_base64, kind_of
from .requests import ClassifyRequest, GenerateRequest

_TOP = 5  # labels, unless asked
_FILES = ("inputs", "image", "file")  # names that a picture may have in a form
_FIELD = 64 * 1024  # bytes of a form's other fields
_NAMES = {"prompt": "inputs", "steps": "num_inference_steps", "guidance": "guidance_scale"}
_CHANGED = _NAMES | {
    "prompt": "parameters.prompt", "image": "inputs", "width": "target_size.width", "height": "target_size.height",
}  # fmt: skip
_FIRST = 64  # characters of `inputs` that tell a picture from a prompt: no prompt begins with a file's first bytes
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


class Saving(Exact):
    """What of the work is left out, as parameters of ours beside Hugging Face's."""

    preset: str | None = None
    step_cache: str | None = None
    guidance_interval: list[float] | None = None
    guidance_every: int | None = None
    decoder: str | None = None


class Drawing(Saving):
    """The parameters of text-to-image; their bounds are those of the native API."""

    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None


class Size(Exact):
    width: int
    height: int


class Changing(Saving):
    """The parameters of image-to-image, and of ours: strength, scheduler and seed."""

    prompt: str | None = None
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    target_size: Size | None = None
    strength: float | None = None
    scheduler: str | None = None
    seed: int | None = None


class Body(Exact):
    inputs: str
    parameters: dict[str, Any] | None = None


def router(gate: Gate) -> APIRouter:
    routes = APIRouter(tags=["Hugging Face"])

    @routes.post("/models/{name}", response_model=None, openapi_extra=_BODY)
    async def infer(http: Request, name: str) -> Response:
        """Labels of a picture (its own bytes, base64 in JSON, or a form), or a picture of a prompt (JSON); or a picture
        of a picture: with the prompt among the parameters, or none."""
        client = gate.client(http)
        info = gate.core.model(name)
        if info.draws:
            kind = wanted(http.headers.get("accept", ""))
            request = await _drawing(gate, http, info, "png" if kind == "json" else kind)
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
    info.check(ClassifyRequest.kind)
    given: dict[str, Any] = {}
    said = kind_said(http)
    if said == KIND:
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
    fix = f"Send one file as {_FILES[0]!r}."
    files, fields = await read_form(http, data, files=1, fields=1, longest=_FIELD, fix=fix)
    unknown = [name for name, _ in files if name not in _FILES] + [name for name, _ in fields if name != "parameters"]
    if unknown or not files:
        raise BadRequest(
            "The form has no file, or parts that are not known.",
            f"Send one file as {_FILES[0]!r}, and JSON as 'parameters' where there are any.",
        )
    text = fields[0][1] if fields else "{}"
    return files[0][1], parsed(text.encode("utf-8", "replace"))


async def _drawing(gate: Gate, http: Request, info: ModelInfo, kind: str) -> GenerateRequest:
    """A picture of a prompt; or of a picture, where `inputs` or the whole body is one."""
    data = await gate.body(http)
    if kind_of(data) is not None:  # huggingface_hub sends it so where there is no parameter, not even a prompt
        return _changing(gate, info, base64.b64encode(data).decode(), {}, kind)
    body = read(Body, await read_json(data))
    parameters = body.parameters or {}
    if "prompt" in parameters or _is_picture(body.inputs):
        return _changing(gate, info, body.inputs, parameters, kind)
    asked = read(Drawing, parameters)
    own = {"negative_prompt", "height", "width", "scheduler", "seed", *Saving.model_fields}
    fields = asked.model_dump(include=own) | {
        "prompt": body.inputs, "steps": asked.num_inference_steps, "guidance": asked.guidance_scale, "format": kind,
    }  # fmt: skip
    return to_draw(info, fields, _NAMES, gate.settings)


def _changing(gate: Gate, info: ModelInfo, inputs: str, parameters: dict[str, Any], kind: str) -> GenerateRequest:
    """inputs: the picture, as base64."""
    asked = read(Changing, parameters)
    own = {"negative_prompt", "strength", "scheduler", "seed", *Saving.model_fields}
    fields = asked.model_dump(include=own) | {
        "image": inputs, "prompt": asked.prompt or "", "steps": asked.num_inference_steps,
        "guidance": asked.guidance_scale, "format": kind,
    }  # fmt: skip
    if asked.target_size is not None:
        fields |= {"width": asked.target_size.width, "height": asked.target_size.height}
    return to_draw(info, fields, _CHANGED, gate.settings)


def _is_picture(inputs: str) -> bool:
    """Whether it is a picture's base64, and no prompt."""
    if inputs.startswith("data:image/"):
        return True
    try:
        return kind_of(base64.b64decode(inputs[:_FIRST], validate=True)) is not None
    except (binascii.Error, ValueError):
        return False


def _drawn(job: Job, *, as_json: bool) -> Response:
    """The picture's own bytes; or JSON, with everything needed to draw it again."""
    assert job.result is not None
    picture, details = job.result.pictures[0], job.result.details
    if not as_json:
        return Response(picture.data, media_type=picture.media_type, headers={"X-Seed": str(details["seed"])})
    said = {
        "image": base64.b64encode(picture.data).decode(), "content_type": picture.media_type, "seed": details["seed"],
        "parameters": details["parameters"][0], "timings": details["timings"], "placement": details["placement"],
        "notes": details.get("notes", []),
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
