"""AUTOMATIC1111's and SD.Next's API below /sdapi/v1: txt2img, progress, interrupt, and the lists that clients ask for.

Its clients send every field that they know. What is not done here is accepted and named in `info` as
`not_supported`, so that nobody has to guess.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..core.errors import VitrifyError
from ..core.machine import memory
from ..pipelines.schedulers import SCHEDULERS
from .a1111_text import SCHEDULES, infotext, label_of, not_done, sampler, settings_in, with_text
from .catalogue import ModelInfo
from .errors import BadField, UnknownModel, Unsupported
from .fields import drawer, read, to_draw
from .gate import Gate
from .jobs import Failure, Job
from .pictures import checked, from_base64, texts_of
from .requests import GenerateRequest

_DIGEST = 10  # characters of a model's id that are shown as its hash
_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
_NAMES = {"guidance": "cfg_scale", "images": "batch_size * n_iter", "scheduler": "sampler_name"}
_OPTIONS = ("sd_model_checkpoint", "samples_format")  # those that can be set
_EMPTY_LISTS = (
    "upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "loras", "hypernetworks", "face-restorers",
    "realesrgan-models", "prompt-styles", "artist-categories", "artists", "script-info", "extensions",
)  # fmt: skip
_NOT_YET = {
    "img2img": "change pictures", "extra-single-image": "enlarge pictures", "extra-batch-images": "enlarge pictures",
    "interrogate": "describe pictures",
}  # fmt: skip


class Txt2Img(BaseModel):
    """The fields of txt2img that do something; all others are accepted."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field("", max_length=20_000)
    negative_prompt: str = Field("", max_length=20_000)
    seed: int | None = Field(-1, ge=-1, lt=2**64, description="-1 for a random one.")
    sampler_name: str | None = Field(None, max_length=64)
    sampler_index: str | None = Field(None, max_length=64, description="The old name of sampler_name.")
    scheduler: str | None = Field(None, max_length=64)
    steps: int = Field(50, ge=1, le=1000)
    cfg_scale: float = Field(7.0, ge=0, le=100)
    width: int | None = None
    height: int | None = None
    batch_size: int = Field(1, ge=1, le=16)
    n_iter: int = Field(1, ge=1, le=16, description="Times batch_size: at most 16 pictures.")
    send_images: bool = True
    override_settings: dict[str, Any] | None = None


class PngInfo(BaseModel):
    image: str = Field(description="A picture, as base64.")


_BODY = {"requestBody": {"content": {"application/json": {"schema": Txt2Img.model_json_schema()}}}}
_PNG_INFO = {"requestBody": {"content": {"application/json": {"schema": PngInfo.model_json_schema()}}}}
_ANY: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


def router(gate: Gate) -> APIRouter:
    """Routes below /sdapi/v1."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    core = gate.core

    async def settings(client: str, override: Mapping[str, Any] | None = None) -> tuple[ModelInfo, str, list[str]]:
        """The model, the pictures' format, and the names of overridden settings that are not done."""
        options: dict[str, Any] = {**await core.options(client), **(override or {})}
        other = [f"override_settings.{name}" for name, value in (override or {}).items() if name not in _OPTIONS]
        title = options.get("sd_model_checkpoint")
        info = drawer(core, None) if title in (None, "") else _titled(core.models, title)
        return info, _format(options.get("samples_format")), other

    @routes.post("/txt2img", openapi_extra=_BODY)
    async def txt2img(http: Request) -> JSONResponse:
        """Draw. An interrupted job gives no pictures, and says so in its info."""
        client = gate.client(http)
        body = read(Txt2Img, await gate.json(http))
        info, form, unknown = await settings(client, body.override_settings)
        ours, followed = sampler(body.sampler_name or body.sampler_index, body.scheduler)
        fields = body.model_dump(include={"prompt", "negative_prompt", "steps", "width", "height"}) | {
            "seed": None if body.seed == -1 else body.seed, "guidance": body.cfg_scale, "scheduler": ours,
            "images": body.batch_size * body.n_iter, "format": form, "previews": True,
        }  # fmt: skip
        request = to_draw(info, fields, _NAMES)
        try:
            job: Job | None = await gate.run(http, request, client)
        except Failure as exc:
            if exc.code != "cancelled":
                raise
            job = None
        said = _info(info, body, request, job)
        said["not_supported"] = [
            *unknown, *([] if followed else ["scheduler"]), *not_done(body.model_extra or {}, said["scheduler"]),
        ]  # fmt: skip
        pictures = job.result.pictures if job is not None and job.result is not None and body.send_images else []
        images = [
            with_text(picture.data, "parameters", text) if picture.kind == "png" else picture.data
            for picture, text in zip(pictures, said["infotexts"], strict=False)
        ]
        parameters = body.model_dump(include=set(Txt2Img.model_fields) - {"override_settings"})
        parameters |= {"width": request.width, "height": request.height}
        return JSONResponse(
            {
                "images": [base64.b64encode(image).decode() for image in images],
                "parameters": parameters,
                "info": json.dumps(said),
            }
        )

    @routes.get("/progress")
    async def progress(http: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """How far the caller's own job is."""
        client = gate.client(http)
        running, waiting = await _mine(gate, client)
        job = running[0] if running else None
        done = job.step / job.steps if job is not None and job.steps else 0.0
        preview = job.preview if job is not None and not skip_current_image else None
        since = time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)) if job is not None else "0"
        return {
            "progress": done,
            "eta_relative": (job.eta or 0.0) if job is not None else 0.0,
            "state": {
                "skipped": False, "interrupted": job is not None and job.cancelled, "stopping_generation": False,
                "job": job.id if job is not None else "", "job_count": len(running) + len(waiting), "job_no": 0,
                "job_timestamp": since, "sampling_step": job.step if job is not None else 0,
                "sampling_steps": job.steps if job is not None else 0,
            },
            "current_image": base64.b64encode(preview.data).decode() if preview is not None else None,
            "textinfo": None,
        }  # fmt: skip

    @routes.post("/interrupt")
    @routes.post("/skip")
    async def interrupt(http: Request) -> dict[str, Any]:
        """Stop what the caller draws within a step; where nothing of it runs, what it waits for next."""
        client = gate.client(http)
        running, waiting = await _mine(gate, client)
        for job in running or waiting[:1]:
            core.cancel(job)
        return {}

    @routes.get("/options")
    async def options(http: Request) -> dict[str, Any]:
        """The caller's options."""
        info, form, _ = await settings(gate.client(http))
        return {
            "sd_model_checkpoint": _title(info), "sd_checkpoint_hash": info.id, "sd_vae": "Automatic",
            "samples_format": form, "CLIP_stop_at_last_layers": 1,
        }  # fmt: skip

    @routes.post("/options", openapi_extra=_ANY)
    async def set_options(http: Request) -> dict[str, Any]:
        """Choose the model and the pictures' format, for this caller; other options are named and have no effect."""
        client = gate.client(http)
        given = await gate.json(http)
        mine = {}
        if "sd_model_checkpoint" in given:
            mine["sd_model_checkpoint"] = _titled(core.models, given["sd_model_checkpoint"]).name
        if "samples_format" in given:
            mine["samples_format"] = _format(given["samples_format"])
        await core.set_options(client, mine)
        return {"not_supported": [name[:80] for name in given if name not in _OPTIONS][:100]}

    @routes.get("/sd-models")
    async def models(http: Request) -> list[dict[str, Any]]:
        """The models that draw."""
        gate.client(http)
        return [
            {
                "title": _title(info), "model_name": info.name, "hash": info.id[:_DIGEST], "sha256": info.id,
                "filename": info.name, "config": None,
            }
            for info in core.models.values()
            if GenerateRequest.kind in info.kinds
        ]  # fmt: skip

    @routes.get("/samplers")
    async def samplers(http: Request) -> list[dict[str, Any]]:
        gate.client(http)
        return [
            {"name": row.label, "aliases": [ours, *row.others], "options": {}} for ours, row in SCHEDULERS.items()
        ]  # fmt: skip

    @routes.get("/schedulers")
    async def schedulers(http: Request) -> list[dict[str, Any]]:
        """Of noise; Karras is there for most of the samplers."""
        gate.client(http)
        common = {"aliases": None, "default_rho": -1, "need_inner_model": False}
        return [{"name": name, "label": label, **common} for name, label in SCHEDULES.items()]

    @routes.get("/memory")
    async def memory_used(http: Request) -> dict[str, Any]:
        """Bytes that the workers hold, and the machine has."""
        gate.client(http)
        used, total = sum(worker.resident for worker in (await core.view()).workers), memory() or 0
        return {"ram": {"free": max(0, total - used), "used": used, "total": total}, "cuda": {"error": "unavailable"}}

    @routes.post("/png-info", openapi_extra=_PNG_INFO)
    async def png_info(http: Request) -> dict[str, Any]:
        """What a PNG says of how it was made; its pixels are not decoded."""
        gate.client(http)
        body = read(PngInfo, await gate.json(http))
        items = texts_of(checked(from_base64(body.image), gate.settings.pixels))
        text = items.pop("parameters", "")
        return {"info": text, "items": items, "parameters": settings_in(text) if text else {}}

    @routes.post("/unload-checkpoint")
    async def unload(http: Request) -> dict[str, Any]:
        """Free the memory of the caller's model, once what runs is done."""
        core.close((await settings(gate.client(http)))[0].name)
        return {}

    @routes.post("/reload-checkpoint")
    async def reload(http: Request) -> dict[str, Any]:
        """Load the caller's model now."""
        await core.open((await settings(gate.client(http)))[0].name)
        return {}

    @routes.post("/refresh-checkpoints")
    @routes.post("/refresh-vae")
    @routes.post("/refresh-loras")
    async def refresh(http: Request) -> dict[str, Any]:
        """Nothing to do: what is served is named when the server starts."""
        gate.client(http)
        return {}

    constant: dict[str, Any] = {name: [] for name in _EMPTY_LISTS} | {
        "scripts": {"txt2img": [], "img2img": []}, "embeddings": {"loaded": {}, "skipped": {}}, "cmd-flags": {},
    }  # fmt: skip
    for name, value in constant.items():
        routes.add_api_route(f"/{name}", _saying(gate, value), methods=["GET"], name=name, summary="None here.")
    for name, what in _NOT_YET.items():
        routes.add_api_route(
            f"/{name}", _refusing(gate, what), methods=["POST"], name=name, summary="Refused.", openapi_extra=_ANY
        )
    return routes


def shape(exc: VitrifyError) -> dict[str, object]:
    """An error as the web UI has them."""
    return {"error": exc.code, "detail": f"{exc.what} {exc.fix}".strip(), "body": "", "errors": exc.what}


def _saying(gate: Gate, value: Any) -> Any:
    async def say(http: Request) -> Any:
        gate.client(http)
        return value

    return say


def _refusing(gate: Gate, what: str) -> Any:
    async def refuse(http: Request) -> None:
        gate.client(http)
        await gate.body(http)  # a client that is cut off while it sends would not read the reason
        raise Unsupported(f"This server cannot {what} yet.", "Draw new ones with txt2img.")

    return refuse


async def _mine(gate: Gate, client: str) -> tuple[list[Job], list[Job]]:
    """What the client draws now, and what of it waits to be drawn."""
    view = await gate.core.view()

    def drawn(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.client == client and isinstance(job.request, GenerateRequest)]

    return drawn(view.running), drawn(view.waiting)


def _title(info: ModelInfo) -> str:
    return f"{info.name} [{info.id[:_DIGEST]}]"


def _titled(models: Mapping[str, ModelInfo], title: Any) -> ModelInfo:
    """The model of this name, title or hash.

    Raises:
        BadField: that is no text. UnknownModel: none that draws is called so.
    """
    if not isinstance(title, str):
        raise BadField("The sd_model_checkpoint is no text.", "Give a title of sd-models.", "sd_model_checkpoint")
    drawing = [info for info in models.values() if GenerateRequest.kind in info.kinds]
    for info in drawing:
        if title in (info.name, _title(info), info.id, info.id[:_DIGEST]):
            return info
    raise UnknownModel(f"No model {title[:200]!r} draws here.", f"Choose one of: {', '.join(map(_title, drawing))}.")


def _format(given: Any) -> str:
    if given in (None, ""):
        return "png"
    found = _FORMATS.get(given.lower()) if isinstance(given, str) else None
    if found is None:
        raise BadField(f"There is no samples_format {str(given)[:40]!r}.", "Use png, jpg or webp.", "samples_format")
    return found


def _info(info: ModelInfo, body: Txt2Img, request: GenerateRequest, job: Job | None) -> dict[str, Any]:
    """What the web UI tells of a job; of an interrupted one (None) only what was asked for."""
    drawn = job.result.details["parameters"] if job is not None and job.result is not None else []
    ours = drawn[0]["scheduler"] if drawn else request.scheduler or ""
    seeds = [one["seed"] for one in drawn]
    digest = info.id[:_DIGEST]
    texts = [infotext(one, info.name, digest, __version__) for one in drawn]
    return {
        "prompt": request.prompt, "all_prompts": [request.prompt] * len(drawn),
        "negative_prompt": request.negative_prompt, "all_negative_prompts": [request.negative_prompt] * len(drawn),
        "seed": seeds[0] if seeds else body.seed, "all_seeds": seeds,
        "subseed": seeds[0] if seeds else -1, "all_subseeds": seeds, "subseed_strength": 0,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "width": request.width, "height": request.height,
        "sampler_name": label_of(ours), "scheduler": ours,
        "cfg_scale": request.guidance, "steps": request.steps, "batch_size": body.batch_size, "n_iter": body.n_iter,
        "restore_faces": False, "face_restoration_model": None, "denoising_strength": None, "styles": [],
        "sd_model_name": info.name, "sd_model_hash": digest, "sd_vae_name": None, "sd_vae_hash": None,
        "clip_skip": 1, "is_using_inpainting_conditioning": False, "extra_generation_params": {},
        "index_of_first_image": 0, "infotexts": texts, "interrupted": job is None,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"), "version": f"vitrify {__version__}",
    }  # fmt: skip
