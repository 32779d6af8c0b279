"""ControlNets as clients of sd-webui-controlnet ask for them, and the lists below /controlnet.

A unit is done as far as our ControlNets go: net, picture, how that is made, weight and steps. What else one asks for
is named, as `alwayson_scripts.controlnet.args[0].field`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from .a1111_options import chosen, is_called, title
from .a1111_pictures import CROP, FILL, RESIZE
from .asked import MAX_CONTROL
from .catalogue import ModelInfo
from .errors import BadField
from .fields import read
from .gate import Gate
from .pictures import from_base64, upright_size
from .requests import ControlRequest

SCRIPT = "controlnet"
MODULES = ("none", "canny", "lineart")
NAMES = {
    "control": "alwayson_scripts.controlnet.args", "control.net": "model", "control.picture": "image",
    "control.made_by": "module", "control.strength": "weight", "control.start": "guidance_start",
    "control.end": "guidance_end",
}  # fmt: skip
"""The native API's names of a unit's fields -> the extension's."""

_MADE_BY = {
    "none": "picture", "canny": "canny", "lineart": "lineart", "lineart_standard": "lineart",
    "lineart_standard (from white bg & black line)": "lineart",
}  # fmt: skip
_MODES = {
    0: RESIZE, "just resize": RESIZE, 1: CROP, "crop and resize": CROP, "scale to fit (inner fit)": CROP,
    "inner fit (scale to fit)": CROP, 2: FILL, "resize and fill": FILL, "envelope (outer fit)": FILL,
    "outer fit (shrink to fit)": FILL,
}  # fmt: skip
_UNITS = 3  # that the web UI shows unless it is told
_OLD = {"input_image": "image", "guidance": "guidance_end", "lowvram": "low_vram", "guessmode": "guess_mode"}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "control_mode": ("Balanced", "ControlMode.BALANCED"), "hr_option": ("Both", "HiResFixOption.BOTH"),
    "input_mode": ("simple", "InputMode.SIMPLE"),
}  # fmt: skip
_HARMLESS = {"low_vram", "pixel_perfect", "is_ui", "inpaint_crop_input_image"}
"""Fields that lose nothing here: pictures are always made at their own size."""
_OF_MODULES = {"processor_res", "threshold_a", "threshold_b"}
"""Fields that say how a module works, and nothing where there is none."""
_DONE = {("canny", "threshold_a"): 100, ("canny", "threshold_b"): 200}
"""Those of a module's fields that ask for what it does here anyway."""


class Unit(BaseModel):
    """The fields of a unit that do something; all others are accepted."""

    model_config = ConfigDict(extra="allow")

    enabled: bool = True
    model: str | None = Field(None, max_length=200)
    module: str | None = Field(None, max_length=200)
    image: str | dict[str, Any] | None = None
    weight: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    resize_mode: int | str = "Crop and Resize"
    pixel_perfect: bool = False


@dataclass(frozen=True)
class Asked:
    """control: units for the native API. modes: how the picture of each is brought to the shape that is drawn.

    not_done: names of fields that asked for something else.
    """

    control: list[dict[str, Any]]
    modes: list[int]
    not_done: list[str]


def units_in(
    scripts: Mapping[str, Any] | None, nets: Sequence[ModelInfo], start: str | None, size: tuple[int, int]
) -> Asked:
    """The ControlNets of a request.

    Args:
        scripts: its alwayson_scripts. nets: all that are served. start: the picture of img2img, as base64: what a
            unit without a picture follows. size: width and height that will be drawn, for where shapes differ.

    Raises:
        BadField: a unit that makes no sense. BadRequest: a picture that is none.
    """
    asked = Asked([], [], [])
    for number, given in enumerate(_args(scripts)):
        place = f"alwayson_scripts.{SCRIPT}.args[{number}]"
        if not isinstance(given, Mapping):
            raise BadField(f"{place} is no unit.", "Send an object with model, module and image.", place)
        unit = read(Unit, {_OLD.get(str(name), str(name)): value for name, value in given.items()})
        if unit.enabled:
            if len(asked.control) == MAX_CONTROL:  # before the picture of each is read again
                args = f"alwayson_scripts.{SCRIPT}.args"
                raise BadField(f"{args} has more than {MAX_CONTROL} units that work.", "Send fewer.", args)
            _add(asked, unit, place, nets, start, size)
    return asked


def _args(scripts: Mapping[str, Any] | None) -> list[Any]:
    given = next((value for name, value in (scripts or {}).items() if name.lower() == SCRIPT), None)
    args = given.get("args") if isinstance(given, Mapping) else given
    if args is not None and not isinstance(args, list):
        raise BadField("The args of controlnet are no list.", "Send a list of units.", f"alwayson_scripts.{SCRIPT}")
    # before its version 1.1 the extension was switched on and off by booleans in front
    return [one for one in args or [] if one is not None and not isinstance(one, bool)]


def _add(
    asked: Asked, unit: Unit, place: str, nets: Sequence[ModelInfo], start: str | None, size: tuple[int, int]
) -> None:
    net = next((one for one in nets if unit.model is not None and is_called(one, unit.model)), None)
    if net is None:
        there = ", ".join(map(title, nets)) or "none is served"
        raise BadField(
            f"There is no ControlNet {str(unit.model)!r} here.", f"Choose one of: {there}.", f"{place}.model"
        )
    made_by = _MADE_BY.get((unit.module or "none").strip().lower())
    if made_by is None:
        raise BadField(
            f"There is no module {str(unit.module)!r} here.", f"Choose one of: {', '.join(MODULES)}.", f"{place}.module"
        )
    picture = unit.image.get("image") if isinstance(unit.image, dict) else unit.image
    covered = unit.image.get("mask") if isinstance(unit.image, dict) else None
    picture = picture or start
    if not isinstance(picture, str):
        raise BadField("A ControlNet has no picture to follow.", "Send it as image, in base64.", f"{place}.image")
    mode = _MODES.get(unit.resize_mode.strip().lower() if isinstance(unit.resize_mode, str) else unit.resize_mode)
    odd = mode != RESIZE and _other_shape(picture, size)
    asked.control.append(
        {
            "net": net.name, "picture": picture, "made_by": made_by, "strength": unit.weight,
            "start": unit.guidance_start, "end": unit.guidance_end,
        }
    )  # fmt: skip
    asked.modes.append(CROP if mode == CROP and odd else RESIZE)
    asked.not_done.extend(f"{place}.{name}" for name in _others(unit, made_by))
    if mode is None or (mode == FILL and odd):
        asked.not_done.append(f"{place}.resize_mode")
    if covered:
        asked.not_done.append(f"{place}.mask")


def _other_shape(picture: str, size: tuple[int, int]) -> bool:
    """Whether the picture would be stretched, by more than it takes to come to whole pixels."""
    width, height = upright_size(from_base64(picture))
    return abs(width * size[1] - height * size[0]) > max(*size, width, height)


def _others(unit: Unit, made_by: str) -> list[str]:
    """The fields of a unit that asked for something that is not done."""
    found = []
    for name, value in (unit.model_extra or {}).items():
        if name in _HARMLESS or not value or value == -1 or value in _NEUTRAL.get(name, ()):
            continue
        if name in _OF_MODULES and (made_by == "picture" or (name == "processor_res" and unit.pixel_perfect)):
            continue
        if value == _DONE.get((made_by, name), -1):
            continue
        found.append(name[:80])
    return found


def lines(control: Sequence[ControlRequest], nets: Mapping[str, ModelInfo]) -> dict[str, str]:
    """What the extension writes below a picture, a line for each unit."""
    modules = {"picture": "none"}
    return {
        f"ControlNet {number}": (
            f"Module: {modules.get(unit.made_by, unit.made_by)}, Model: {title(nets[unit.net])}, "
            f"Weight: {unit.strength}, Guidance Start: {unit.start}, Guidance End: {unit.end}, Control Mode: Balanced"
        )
        for number, unit in enumerate(control)
    }


def scripts(nets: Sequence[ModelInfo]) -> dict[str, list[str]]:
    """As GET /sdapi/v1/scripts lists them: the one that there is, where a ControlNet is served."""
    return {"txt2img": [SCRIPT] if nets else [], "img2img": [SCRIPT] if nets else []}


def script_info(nets: Sequence[ModelInfo]) -> list[dict[str, Any]]:
    """The same with its arguments, once for txt2img and once for img2img."""
    nothing = dict.fromkeys(("value", "minimum", "maximum", "step", "choices"))
    args = [{"label": f"ControlNet Unit {number}", **nothing} for number in range(_UNITS)]
    both = (False, True) if nets else ()
    return [{"name": SCRIPT, "is_alwayson": True, "is_img2img": change, "args": args} for change in both]


def router(gate: Gate) -> APIRouter:
    """Routes below /controlnet."""
    routes = APIRouter(prefix="/controlnet", tags=["AUTOMATIC1111"])

    async def nets(http: Request) -> list[str]:
        info = (await chosen(gate.core, gate.client(http))).info
        return [title(gate.core.models[name]) for name in info.controlnets]

    @routes.get("/version")
    async def version(http: Request) -> dict[str, int]:
        """Of the extension's API."""
        gate.client(http)
        return {"version": 2}

    @routes.get("/settings")
    async def settings(http: Request) -> dict[str, int]:
        gate.client(http)
        return {"control_net_unit_count": _UNITS}

    @routes.get("/model_list")
    async def models(http: Request, update: bool = True) -> dict[str, list[str]]:
        """The ControlNets that fit the caller's model."""
        return {"model_list": await nets(http)}

    @routes.get("/module_list")
    async def modules(http: Request, alias_names: bool = False) -> dict[str, Any]:
        """What control pictures are made by."""
        gate.client(http)
        detail: dict[str, Any] = {name: {"model_free": False, "sliders": []} for name in MODULES}
        return {"module_list": list(MODULES), "module_detail": detail}

    @routes.get("/control_types")
    async def types(http: Request) -> dict[str, Any]:
        """All of them as one type: what a net was trained for is not known."""
        found = await nets(http)
        common = {"default_option": "none", "default_model": found[0] if found else "None"}
        return {"control_types": {"All": {"module_list": list(MODULES), "model_list": found, **common}}}

    return routes


def nets_of(gate: Gate) -> list[ModelInfo]:
    """The ControlNets that are served, also those for other models."""
    return [info for info in gate.core.models.values() if info.control]
