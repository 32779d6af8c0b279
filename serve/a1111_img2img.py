"""POST /sdapi/v1/img2img: a picture changed as a whole, or drawn anew where a mask is white."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from ..pipelines.generation import MAX_SIDE
from .a1111_drawing import Txt2Img, Work, answer, work_of
from .a1111_pictures import RESIZE, Masking, inpainting, prepared
from .errors import BadField
from .fields import read
from .gate import Gate
from .pictures import upright_size
from .turns import Turns

_BLUR = 4.0  # pixels, as the web UI blurs masks unless it is told
_FILL, _AS_IT_IS = 0, 1  # of inpainting_fill: what a mask covers is painted over first, or is not
_MODES = 3  # of resize_mode that are done; the last one of the web UI enlarges latents


class Img2Img(Txt2Img):
    """The fields of img2img that do something; all others are accepted."""

    init_images: list[str] | None = Field(None, max_length=16, description="One, as base64.")
    denoising_strength: float | None = Field(0.75, le=1, description="How much is changed: above 0 to 1.")
    resize_mode: int = Field(0, ge=0, le=3, description="0 stretches, 1 crops, 2 repeats the edges.")
    mask: str | None = Field(None, description="Of the picture's size; white, or opaque, where something new is drawn.")
    mask_blur: float | None = Field(None, ge=0, le=256, description="Pixels.")
    mask_blur_x: float = Field(_BLUR, ge=0, le=256)
    mask_blur_y: float = Field(_BLUR, ge=0, le=256)
    inpainting_fill: int = Field(_FILL, ge=0, le=3, description="0 paints the masked part over first, 1 does not.")
    inpaint_full_res: bool = Field(True, description="Draw only the masked part and what is around it, larger.")
    inpaint_full_res_padding: int = Field(0, ge=0, le=4096, description="Pixels around the masked part.")
    inpainting_mask_invert: bool = False
    include_init_images: bool = Field(False, description="Tell the pictures back in `parameters`.")


_BODY = {"requestBody": {"content": {"application/json": {"schema": Img2Img.model_json_schema()}}}}


def router(gate: Gate, turns: Turns) -> APIRouter:
    """Its route, below /sdapi/v1. turns: for pictures that have to be decoded."""
    routes = APIRouter()

    @routes.post("/img2img", openapi_extra=_BODY)
    async def img2img(http: Request) -> JSONResponse:
        """Change a picture. An interrupted job gives no pictures, and says so in its info."""
        client = gate.client(http)
        body = read(Img2Img, await gate.json(http))
        work = await _work(gate, turns, client, body)
        shown = {"init_images": body.init_images, "mask": body.mask}
        told = shown if body.include_init_images else dict.fromkeys(shown)
        return await answer(gate, turns, http, client, body, work, told)

    return routes


async def _work(gate: Gate, turns: Turns, client: str, body: Img2Img) -> Work:
    """All is checked by the pictures' headers first; what has to be decoded here is so then."""
    start = _only(body.init_images)
    strength = body.denoising_strength if body.denoising_strength is not None else 0.75
    more = {"image": start, "mask": body.mask or None, "strength": strength}
    work = await work_of(gate, turns, client, body, more, start)
    request, settings, finish = work.request, work.settings, None
    mode = body.resize_mode if body.resize_mode < _MODES else RESIZE
    size = request.width, request.height
    image, mask = request.image, request.mask
    assert image is not None
    if mask is not None:
        how = _masking(body)
        if how.only and max(upright_size(image)) > MAX_SIDE:
            raise BadField(
                f"What is drawn would be put into a picture of {max(upright_size(image))} pixels.",
                f"Send one of at most {MAX_SIDE} a side, or inpaint_full_res: false.",
                "init_images",
            )
        made = await turns.do(lambda: inpainting(image, mask, how, mode, size))
        assert made.kept is not None
        finish = made.kept.around
        request = replace(request, image=made.image, mask=made.mask)
        settings = _settings(body, how) | settings
    elif mode != RESIZE:
        made = await turns.do(lambda: prepared(image, mode, size))
        request = replace(request, image=made.image)
    return replace(work, request=request, not_done=work.not_done + _not_done(body), settings=settings, finish=finish)


def _only(images: list[str] | None) -> str:
    """The one picture that is changed.

    Raises:
        BadField: there is none, or there are several.
    """
    if not images:
        raise BadField("There is no picture to start from.", "Send one as init_images, in base64.", "init_images")
    if len(images) > 1:
        raise BadField(f"There are {len(images)} init_images.", "Send one; ask again for each other.", "init_images")
    return images[0]


def _masking(body: Img2Img) -> Masking:
    blur = (body.mask_blur_x, body.mask_blur_y) if body.mask_blur is None else (body.mask_blur, body.mask_blur)
    return Masking(
        invert=body.inpainting_mask_invert,
        blur=blur,
        fill=body.inpainting_fill == _FILL,
        only=body.inpaint_full_res,
        padding=body.inpaint_full_res_padding,
    )


def _settings(body: Img2Img, how: Masking) -> dict[str, Any]:
    """What the web UI writes of a mask below the picture."""
    across, down = how.blur
    said: dict[str, Any] = {"Mask mode": "Inpaint not masked"} if how.invert else {}
    if across or down:
        said["Mask blur"] = _plain(across) if across == down else f"{_plain(across)}x{_plain(down)}"
    if how.only:
        said |= {"Inpaint area": "Only masked", "Masked area padding": how.padding}
    if how.fill:
        said["Masked content"] = "fill"
    return said


def _plain(number: float) -> str:
    return f"{number:g}"


def _not_done(body: Img2Img) -> list[str]:
    found = ["resize_mode"] if body.resize_mode >= _MODES else []
    return [*found, "inpainting_fill"] if body.mask and body.inpainting_fill > _AS_IT_IS else found
