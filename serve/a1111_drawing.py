"""What txt2img and img2img of AUTOMATIC1111's API share: their fields, and what is told beside the pictures."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..pipelines.images import open_image
from . import a1111_control
from .a1111_options import DIGEST, SKIP, Chosen, chosen
from .a1111_pictures import CROP, prepared
from .a1111_text import infotext, label_of, not_done, sampler, scripts_asked, with_text
from .drawing import encoded
from .fields import to_draw
from .gate import Gate
from .jobs import Failure, Job, Picture
from .requests import GenerateRequest
from .turns import Turns

_NAMES = {
    "guidance": "cfg_scale", "images": "batch_size * n_iter", "scheduler": "sampler_name",
    "strength": "denoising_strength", "image": "init_images", "guidance_interval": SKIP, **a1111_control.NAMES,
}  # fmt: skip


class Txt2Img(BaseModel):
    """The fields of txt2img that do something; all others are accepted."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000, description="<lora:name:0.8> lays one of GET /loras on.")
    negative_prompt: str = Field("", max_length=20_000)
    seed: int | None = Field(-1, ge=-1, lt=2**64, description="-1 for a random one.")
    sampler_name: str | None = Field(None, max_length=64)
    sampler_index: str | None = Field(None, max_length=64, description="The old name of sampler_name.")
    scheduler: str | None = Field(None, max_length=64)
    steps: int | None = Field(None, ge=1, le=1000, description="Without it the model's own number.")
    cfg_scale: float | None = Field(None, ge=0, le=100, description="Without it the model's own.")
    width: int | None = None
    height: int | None = None
    batch_size: int = Field(1, ge=1, le=16)
    n_iter: int = Field(1, ge=1, le=16, description="Times batch_size: at most 16 pictures.")
    send_images: bool = True
    override_settings: dict[str, Any] | None = None
    alwayson_scripts: dict[str, Any] | None = Field(None, description="ControlNets, as `controlnet`.")


@dataclass(frozen=True)
class Work:
    """A request, ready to be drawn.

    settings: more of what the web UI writes below a picture. not_done: what the client asked for besides. finish: from
    the pictures that were drawn to those that are sent; None: they are.
    """

    request: GenerateRequest
    chosen: Chosen
    not_done: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Iterable[Image.Image]], Iterable[Image.Image]] | None = None


async def work_of(
    gate: Gate,
    turns: Turns,
    client: str,
    body: Txt2Img,
    more: Mapping[str, Any] | None = None,
    start: str | None = None,
) -> Work:
    """What to draw for the fields that both have, ControlNets included.

    Args:
        turns: for pictures that have to be decoded. more: fields of the native API besides. start: the picture of
            img2img, which a ControlNet without one follows.

    Raises:
        BadField, BadRequest, TooLarge, Unsupported, UnknownModel: nothing was decoded or drawn.
    """
    which = await chosen(gate.core, client, body.override_settings)
    info = which.info
    ours, followed = sampler(body.sampler_name or body.sampler_index, body.scheduler, info.scheduler)
    fields: dict[str, Any] = body.model_dump(include={"prompt", "negative_prompt", "steps"}) | {
        "seed": None if body.seed == -1 else body.seed, "guidance": body.cfg_scale, "scheduler": ours,
        "images": body.batch_size * body.n_iter, "format": which.format, "previews": True,
        "width": info.size[0] if body.width is None else body.width,
        "height": info.size[1] if body.height is None else body.height, "guidance_interval": which.interval,
    }  # fmt: skip
    size = fields["width"], fields["height"]
    units = a1111_control.units_in(body.alwayson_scripts, a1111_control.nets_of(gate), start, size)
    if units.control:
        fields["control"] = units.control
    request = to_draw(info, fields | dict(more or {}), _NAMES, gate.settings)
    if CROP in units.modes:
        request = await turns.do(lambda: _cropped(request, units.modes))
    return Work(
        request,
        which,
        [*which.not_done, *([] if followed else ["scheduler"]), *units.not_done],
        a1111_control.lines(request.control, gate.core.models) | ({"Skip Early CFG": which.skip} if which.skip else {}),
    )


def _cropped(request: GenerateRequest, modes: list[int]) -> GenerateRequest:
    size = request.width, request.height
    control = [
        replace(unit, picture=prepared(unit.picture, mode, size).image) if mode == CROP else unit
        for unit, mode in zip(request.control, modes, strict=True)
    ]
    return replace(request, control=tuple(control))


async def answer(
    gate: Gate, turns: Turns, http: Request, client: str, body: Txt2Img, work: Work, told: Mapping[str, Any]
) -> JSONResponse:
    """Draw, and tell. An interrupted job gives no pictures, and says so in its info.

    Args:
        told: of the request's own fields, those that stand in `parameters` in place of the body's.
    """
    form = work.request.format
    request = replace(work.request, format="png") if work.finish is not None else work.request
    try:
        job: Job | None = await gate.run(http, request, client)
    except Failure as exc:
        if exc.code != "cancelled":
            raise
        job = None
    said = _info(body, work, job)
    said["not_supported"] = [
        *work.not_done, *_other_scripts(body.alwayson_scripts), *not_done(body.model_extra or {}, said["scheduler"]),
    ]  # fmt: skip
    pictures = job.result.pictures if job is not None and job.result is not None and body.send_images else []
    if work.finish is not None and pictures:
        pictures = await turns.do(partial(_finished, pictures, work.finish, form))
    images = [
        with_text(picture.data, "parameters", text) if picture.kind == "png" else picture.data
        for picture, text in zip(pictures, said["infotexts"], strict=False)
    ]
    parameters = body.model_dump(include=set(type(body).model_fields) - {"override_settings", "alwayson_scripts"})
    parameters |= {name: getattr(request, name) for name in ("width", "height", "steps")}
    parameters |= {"cfg_scale": request.guidance, **told}
    return JSONResponse(
        {
            "images": [base64.b64encode(image).decode() for image in images],
            "parameters": parameters,
            "info": json.dumps(said),
        }
    )


def _finished(
    pictures: Sequence[Picture], finish: Callable[[Iterable[Image.Image]], Iterable[Image.Image]], form: str
) -> list[Picture]:
    drawn = (open_image(io.BytesIO(picture.data)) for picture in pictures)
    return [encoded(image, form) for image in finish(drawn)]


def _info(body: Txt2Img, work: Work, job: Job | None) -> dict[str, Any]:
    """What the web UI tells of a job; of an interrupted one (None) only what was asked for."""
    request, info = work.request, work.chosen.info
    details = job.result.details if job is not None and job.result is not None else {}
    drawn = details.get("parameters", [])
    ours = drawn[0]["scheduler"] if drawn else request.scheduler or ""
    seeds = [one["seed"] for one in drawn]
    digest = info.id[:DIGEST]
    texts = [infotext(one, info.name, digest, __version__, work.settings) for one in drawn]
    return {
        "prompt": body.prompt, "all_prompts": [body.prompt] * len(drawn),
        "negative_prompt": request.negative_prompt, "all_negative_prompts": [request.negative_prompt] * len(drawn),
        "seed": seeds[0] if seeds else body.seed, "all_seeds": seeds,
        "subseed": seeds[0] if seeds else -1, "all_subseeds": seeds, "subseed_strength": 0,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "width": request.width, "height": request.height,
        "sampler_name": label_of(ours), "scheduler": ours,
        "cfg_scale": request.guidance, "steps": request.steps, "batch_size": body.batch_size, "n_iter": body.n_iter,
        "restore_faces": False, "face_restoration_model": None, "denoising_strength": request.strength, "styles": [],
        "sd_model_name": info.name, "sd_model_hash": digest, "sd_vae_name": None, "sd_vae_hash": None,
        "clip_skip": 1, "is_using_inpainting_conditioning": False, "extra_generation_params": work.settings,
        "index_of_first_image": 0, "infotexts": texts, "interrupted": job is None, "notes": details.get("notes", []),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"), "version": f"vitrify {__version__}",
    }  # fmt: skip


def _other_scripts(given: Mapping[str, Any] | None) -> list[str]:
    return scripts_asked({name: one for name, one in (given or {}).items() if name.lower() != a1111_control.SCRIPT})
