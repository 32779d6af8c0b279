"""AUTOMATIC1111's and SD.Next's API below /sdapi/v1: txt2img, progress, interrupt, and the lists that clients ask for.

img2img has a file of its own, as have ControlNets, which are asked about below /controlnet. The API's clients send
every field that they know. What is not done here is accepted and named in `info` as `not_supported`, so that nobody has
to guess.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ..core.errors import VitrifyError
from ..core.machine import memory
from ..pipelines.embeddings import read_embedding
from ..pipelines.schedulers import SCHEDULERS
from . import a1111_control, a1111_img2img
from .a1111_drawing import Txt2Img, answer, work_of
from .a1111_options import DIGEST, OPTIONS, chosen, picture_format, title, titled
from .a1111_text import SCHEDULES, settings_in
from .errors import Unsupported
from .fields import read
from .gate import Gate
from .jobs import Job
from .pictures import checked, from_base64, texts_of
from .requests import GenerateRequest
from .turns import Turns

_EMPTY_LISTS = (
    "upscalers", "latent-upscale-modes", "sd-vae", "sd-modules", "hypernetworks", "face-restorers",
    "realesrgan-models", "prompt-styles", "artist-categories", "artists", "extensions",
)  # fmt: skip
_NOT_YET = {
    "extra-single-image": "enlarge pictures", "extra-batch-images": "enlarge pictures",
    "interrogate": "describe pictures",
}  # fmt: skip


class PngInfo(BaseModel):
    image: str = Field(description="A picture, as base64.")


_BODY = {"requestBody": {"content": {"application/json": {"schema": Txt2Img.model_json_schema()}}}}
_PNG_INFO = {"requestBody": {"content": {"application/json": {"schema": PngInfo.model_json_schema()}}}}
_ANY: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}


def router(gate: Gate) -> APIRouter:
    """Routes below /sdapi/v1 and /controlnet."""
    routes = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
    core, turns = gate.core, Turns()
    routes.include_router(a1111_img2img.router(gate, turns))

    @routes.post("/txt2img", openapi_extra=_BODY)
    async def txt2img(http: Request) -> JSONResponse:
        """Draw. An interrupted job gives no pictures, and says so in its info."""
        client = gate.client(http)
        body = read(Txt2Img, await gate.json(http))
        return await answer(gate, turns, http, client, body, await work_of(gate, turns, client, body), {})

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
        mine = await chosen(core, gate.client(http))
        return {
            "sd_model_checkpoint": title(mine.info), "sd_checkpoint_hash": mine.info.id, "sd_vae": "Automatic",
            "samples_format": mine.format, "CLIP_stop_at_last_layers": 1,
        }  # fmt: skip

    @routes.post("/options", openapi_extra=_ANY)
    async def set_options(http: Request) -> dict[str, Any]:
        """Choose the model and the pictures' format, for this caller; other options are named and have no effect."""
        client = gate.client(http)
        given = await gate.json(http)
        mine = {}
        if "sd_model_checkpoint" in given:
            mine["sd_model_checkpoint"] = titled(core.models, given["sd_model_checkpoint"]).name
        if "samples_format" in given:
            mine["samples_format"] = picture_format(given["samples_format"])
        await core.set_options(client, mine)
        return {"not_supported": [name[:80] for name in given if name not in OPTIONS][:100]}

    @routes.get("/sd-models")
    async def models(http: Request) -> list[dict[str, Any]]:
        """The models that draw."""
        gate.client(http)
        return [
            {
                "title": title(info), "model_name": info.name, "hash": info.id[:DIGEST], "sha256": info.id,
                "filename": info.name, "config": None,
            }
            for info in core.models.values()
            if info.draws
        ]  # fmt: skip

    @routes.get("/samplers")
    async def samplers(http: Request) -> list[dict[str, Any]]:
        """Those that draw with the caller's model."""
        rows = [(ours, SCHEDULERS[ours]) for ours in (await chosen(core, gate.client(http))).info.schedulers]
        return [{"name": row.label, "aliases": [ours, *row.others], "options": {}} for ours, row in rows]

    @routes.get("/loras")
    async def loras(http: Request) -> list[dict[str, Any]]:
        """Those of the server's folder, as <lora:name:0.8> in a prompt names them."""
        info = (await chosen(core, gate.client(http))).info
        return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in info.loras]

    @routes.get("/scripts")
    async def scripts(http: Request) -> dict[str, list[str]]:
        gate.client(http)
        return a1111_control.scripts(a1111_control.nets_of(gate))

    @routes.get("/script-info")
    async def script_info(http: Request) -> list[dict[str, Any]]:
        gate.client(http)
        return a1111_control.script_info(a1111_control.nets_of(gate))

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
        core.close((await chosen(core, gate.client(http))).info.name)
        return {}

    @routes.post("/reload-checkpoint")
    async def reload(http: Request) -> dict[str, Any]:
        """Load the caller's model now."""
        await core.open((await chosen(core, gate.client(http))).info.name)
        return {}

    @routes.post("/refresh-checkpoints")
    @routes.post("/refresh-vae")
    @routes.post("/refresh-loras")
    async def refresh(http: Request) -> dict[str, Any]:
        """Nothing to do: models are named when the server starts, and its LoRAs are looked up each time."""
        gate.client(http)
        return {}

    @routes.get("/embeddings")
    async def embeddings(http: Request) -> dict[str, dict[str, Any]]:
        """The words that the models were taught when the server started."""
        gate.client(http)
        return await asyncio.to_thread(_words, gate.settings.embedding)

    constant: dict[str, Any] = {name: [] for name in _EMPTY_LISTS} | {"cmd-flags": {}}
    for name, value in constant.items():
        routes.add_api_route(f"/{name}", _saying(gate, value), methods=["GET"], name=name, summary="None here.")
    for name, what in _NOT_YET.items():
        routes.add_api_route(
            f"/{name}", _refusing(gate, what), methods=["POST"], name=name, summary="Refused.", openapi_extra=_ANY
        )
    both = APIRouter()
    both.include_router(routes)
    both.include_router(a1111_control.router(gate))
    return both


def shape(exc: VitrifyError) -> dict[str, object]:
    """An error as the web UI has them."""
    return {"error": exc.code, "detail": f"{exc.what} {exc.fix}".strip(), "body": "", "errors": exc.what}


def _words(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Embeddings by their words, as the web UI lists them; files that are none by their names, as skipped."""
    found: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
    nothing = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name", "shape", "vectors"))
    for file in files:
        try:
            one = read_embedding(file)
        except VitrifyError:
            found["skipped"][file.stem] = nothing
            continue
        vectors, shape = next(iter(one.vectors.values())).shape
        found["loaded"][one.word] = nothing | {"shape": int(shape), "vectors": int(vectors)}
    return found


def _saying(gate: Gate, value: Any) -> Any:
    async def say(http: Request) -> Any:
        gate.client(http)
        return value

    return say


def _refusing(gate: Gate, what: str) -> Any:
    async def refuse(http: Request) -> None:
        gate.client(http)
        await gate.body(http)  # a client that is cut off while it sends would not read the reason
        raise Unsupported(f"This server cannot {what} yet.", "Draw new ones with txt2img, or change them with img2img.")

    return refuse


async def _mine(gate: Gate, client: str) -> tuple[list[Job], list[Job]]:
    """What the client draws now, and what of it waits to be drawn."""
    view = await gate.core.view()

    def drawn(jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job.client == client and isinstance(job.request, GenerateRequest)]

    return drawn(view.running), drawn(view.waiting)
