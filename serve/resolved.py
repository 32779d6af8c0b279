"""A request for pictures as one model takes it: its own defaults filled in, and refused before any work, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput, UsageError
from ..pipelines.generation import MAX_SIDE
from ..pipelines.guiding import Guiding
from ..pipelines.lora import split_loras
from ..pipelines.pictures_in import usual_strength
from ..pipelines.saving import Saving
from ..pipelines.schedulers import scheduler_from_config, scheduler_name
from ..pipelines.step_cache import StepCache
from .catalogue import ModelInfo
from .errors import BadField, Unsupported
from .loras import lora_files, names_of, no_lora
from .pictures import all_checked, upright_size
from .requests import ControlRequest, GenerateRequest
from .settings import Settings

if TYPE_CHECKING:
    from .asked import GenerateBody

MAX_LORAS = 32
MAX_LORA_STRENGTH = 100
_PLAIN = ("model", "negative_prompt", "guidance", "seed", "images", "format", "previews")
_SAID = 300  # characters of a message that repeats what a client wrote


def resolved(body: GenerateBody, info: ModelInfo, settings: Settings) -> GenerateRequest:
    """The request that is left to do.

    Raises:
        Unsupported: the model does not draw, or not in this way.
        BadField: a name that is not known here or does not fit the model, numbers that make no sense together, a size
            that cannot be drawn, a graph or decoder that the model lacks, or no picture where one should be.
        TooLarge: the pictures have too many pixels, or too many parts.
    """
    info.check(GenerateRequest.kind)
    _check_task(info, body.image is not None, body.mask is not None)
    given: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    given.setdefault("guidance", info.guidance)
    steps = info.steps if body.steps is None else body.steps
    if body.seed is not None and body.seed + body.images > 2**64:
        what = f"The seed {body.seed} is too large for {body.images} pictures, for it grows by 1."
        raise BadField(what, "Give a smaller one.", "seed")
    prompt, loras = _loras(body, info)
    _check_controlnets(body, info)
    scheduler, hooks = _scheduler(body.scheduler, info), _hooks(body, info)
    strength, saving = _strength(body, info, steps), _saving(body, info)
    pictures = all_checked(_pictures(body), settings.pixels)
    image, mask = pictures.get("image"), pictures.get("mask")
    if image is not None and mask is not None:
        _check_mask(image, mask)
    width, height = _size(body, info, image)
    control = tuple(
        ControlRequest(one.net, pictures[f"control.{number}.picture"], one.made_by, one.strength, one.start, one.end)
        for number, one in enumerate(body.control)
    )
    return GenerateRequest(
        **given, prompt=prompt, width=width, height=height, steps=steps, scheduler=scheduler, image=image, mask=mask,
        strength=strength, control=control, loras=loras, hooks=hooks, **saving,
    )  # fmt: skip


def _check_task(info: ModelInfo, image: bool, mask: bool) -> None:
    if mask and not image:
        raise BadField("There is a mask but no picture that it belongs to.", "Give the picture too.", "mask")
    if ("inpaint" if mask else "img2img" if image else "text2img") in info.tasks:
        return
    if image and not set(info.tasks) - {"text2img"}:
        raise Unsupported(
            f"{info.name} has no vae_encoder, so it cannot start from a picture.", "Export the model again."
        )
    if "img2img" in info.tasks:
        raise Unsupported(
            f"{info.name} is a refiner: it changes pictures that another model drew.", "Give a picture (image)."
        )
    raise Unsupported(
        f"{info.name} is an inpainting model: it draws into a picture.",
        "Give a picture (image) and a mask, or name another model.",
    )


def _loras(body: GenerateBody, info: ModelInfo) -> tuple[str, dict[str, float | tuple[float, float]]]:
    """The prompt without its tags, and all LoRAs that are wanted; a tag's strength wins."""
    try:
        prompt, tags = split_loras(body.prompt)
    except BadInput as exc:
        raise BadField(exc.what[:_SAID], exc.fix, "prompt") from exc
    wanted: dict[str, float | tuple[float, float]] = {
        name: (one[0], one[1]) if isinstance(one, list) else one for name, one in body.loras.items()
    }
    named = {name: (strength, text) for name, strength, text in tags}
    wanted |= named
    if not wanted:
        return prompt, {}
    there = lora_files(info.lora_folder)
    for name, strength in wanted.items():
        field = "prompt" if name in named else "loras"
        if name not in there:
            raise BadField(no_lora(name), names_of(there), field)
        if max(map(abs, strength if isinstance(strength, tuple) else (strength,))) > MAX_LORA_STRENGTH:
            what = f"The strength of the LoRA {name!r} is {strength}."
            raise BadField(what, f"Give one near 1, at most {MAX_LORA_STRENGTH}.", field)
    if len(wanted) > MAX_LORAS:
        raise BadField(f"{len(wanted)} LoRAs at once; {MAX_LORAS} are taken.", "Name fewer.", "loras")
    return prompt, wanted


def _check_controlnets(body: GenerateBody, info: ModelInfo) -> None:
    for number, unit in enumerate(body.control):
        field = f"control.{number}"
        if unit.net not in info.controlnets:
            why = info.misfits.get(unit.net)
            what = f"The ControlNet {unit.net!r} is not for {info.name}: {why}."
            there = ", ".join(info.controlnets)
            raise BadField(
                what if why is not None else f"No ControlNet {unit.net[:80]!r} is served.",
                f"Choose one of: {there}." if there else "Serve one that fits the model: vitrify serve MODEL NET.",
                f"{field}.net",
            )
        if unit.start >= unit.end:
            raise BadField(
                f"The ControlNet {unit.net!r} works from {unit.start} to {unit.end} of the steps.",
                "Give two numbers from 0 to 1, the lower first.",
                f"{field}.end",
            )


def _scheduler(text: str | None, info: ModelInfo) -> str | None:
    """Our name of it; None for the model's own."""
    try:
        scheduler_from_config(info.scheduler, text)
        return None if text is None else scheduler_name(text, info.scheduler)
    except BadInput as exc:
        raise BadField(exc.what, f"Choose one of: {', '.join(info.schedulers)}.", "scheduler") from exc


def _hooks(body: GenerateBody, info: ModelInfo) -> tuple[str, ...] | None:
    """In the server's order; None where the client leaves it to the server."""
    if body.hooks is None:
        return None
    for name in body.hooks:
        if name not in info.hooks:
            there = ", ".join(info.hooks)
            raise BadField(
                f"There is no hook {name[:80]!r}.",
                f"Choose of: {there}." if there else "The server has none: start it with --hook.",
                "hooks",
            )
    return tuple(name for name in info.hooks if name in body.hooks)


def _strength(body: GenerateBody, info: ModelInfo, steps: int) -> float | None:
    if body.image is None:
        return None  # it has nothing to say
    used = usual_strength(body.mask is not None) if body.strength is None else body.strength
    if info.steps_skipped(steps, used) >= steps:
        raise BadField(
            f"A strength of {used} is less than one of {steps} steps.",
            f"Give {math.ceil(100 / steps) / 100:g} or more, or more steps.",
            "strength",
        )
    return body.strength


def _saving(body: GenerateBody, info: ModelInfo) -> dict[str, Any]:
    """What of the work is left out: as the fields say, else as their preset does, else as the server's."""
    interval = None if body.guidance_interval is None else (body.guidance_interval[0], body.guidance_interval[1])
    try:
        if body.step_cache is not None:
            StepCache.parse(body.step_cache)
    except UsageError as exc:
        raise BadField(exc.what, exc.fix, "step_cache") from exc
    try:
        Guiding.of(interval, None)
    except UsageError as exc:
        raise BadField(exc.what, "Give two numbers from 0 to 1, the lower first.", "guidance_interval") from exc
    if body.step_cache is not None and not info.step_cache:
        what = f"{info.name} has no graph that takes deep features."
        raise BadField(what, "Export or compile it again, with --step-cache.", "step_cache")
    if body.decoder == "preview" and not info.preview_decoder:
        what = f"{info.name} has no decoder for previews."
        raise BadField(what, "Export it again, with --preview-vae.", "decoder")
    preset = info.preset if body.preset is None else body.preset
    saving, _ = Saving.of(
        preset, step_cache=body.step_cache, guidance_interval=interval, guidance_every=body.guidance_every,
        decoder=body.decoder, shallow=info.step_cache,
    )  # fmt: skip
    return {
        "step_cache": None if saving.step_cache is None else str(saving.step_cache),
        "guidance_interval": (saving.guiding.start, saving.guiding.end),
        "guidance_every": saving.guiding.every,
        "decoder": saving.decoder,
        "preset": preset,
    }


def _pictures(body: GenerateBody) -> Mapping[str, str]:
    """Field -> base64, of all that is there."""
    own = {name: text for name in ("image", "mask") if (text := getattr(body, name)) is not None}
    return own | {f"control.{number}.picture": unit.picture for number, unit in enumerate(body.control)}


def _check_mask(image: bytes, mask: bytes) -> None:
    size, covered = upright_size(image), upright_size(mask)
    if size != covered:
        raise BadField(
            f"The mask is {covered[0]}x{covered[1]}, its picture {size[0]}x{size[1]}.",
            "Give a mask of the picture's size.",
            "mask",
        )


def _size(body: GenerateBody, info: ModelInfo, image: bytes | None) -> tuple[int, int]:
    """(width, height) in pixels: of the picture where there is one and neither is given, else the model's own."""
    unit = info.unit
    if image is not None and body.width is None and body.height is None:
        size = upright_size(image)
        width, height = (max(unit, side - side % unit) for side in size)
        if max(width, height) > MAX_SIDE:
            what = f"The picture is {size[0]}x{size[1]}; at most {MAX_SIDE} pixels a side are drawn."
            raise BadField(what, "Give a width and a height.", "width")
        return width, height
    width, height = body.width or info.size[0], body.height or info.size[1]
    for name, side in (("width", width), ("height", height)):
        if side % unit:
            near = max(unit, round(side / unit) * unit)
            raise BadField(f"The {name} is {side}, not a multiple of {unit}.", f"Give {near}.", name)
    return width, height
