"""AUTOMATIC1111's names and texts: samplers, the lines that say how a picture was made, and PNG files with them."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import BadInput
from ..pipelines.schedulers import SCHEDULERS, scheduler_name, with_karras
from .errors import BadField

SCHEDULES = {"automatic": "Automatic", "karras": "Karras"}
"""Of noise; the web UI has them apart from the samplers since its version 1.9."""

_ETA: dict[str, float] = {"ddim": 0, "euler_a": 1, "dpm2_a": 1, "dpmpp_sde": 1, "dpmpp_2m_sde": 1}
"""What each sampler that the web UI gives an eta is run with; at any noise levels."""
_UNIT = re.compile(r"ControlNet \d{1,3}")
_SHOWN = 10_000  # characters of a settings line that are read
_HEADER = 8 + 4 + 4 + 13 + 4  # bytes of a PNG's signature and first chunk


def sampler(name: str | None, schedule: str | None, config: Mapping[str, Any] | None = None) -> tuple[str | None, bool]:
    """Our scheduler for the web UI's two names; None for the model's own. And whether the schedule was followed.

    Args:
        config: the model's scheduler options, for names of diffusers' classes.

    Raises:
        BadField: there is no sampler of this name.
    """
    try:
        ours = scheduler_name(name, config) if name else None
    except BadInput as exc:
        known = ", ".join(row.label for row in SCHEDULERS.values())
        raise BadField(f"There is no sampler {name!r}.", f"Choose one of: {known}.", "sampler_name") from exc
    asked = (schedule or "automatic").strip().lower()
    if asked == "karras" and ours is not None:
        karras = with_karras(ours)
        return karras, karras.endswith("_karras")
    return ours, asked == "automatic"


def label_of(ours: str) -> str:
    """The web UI's name of one of our schedulers."""
    return SCHEDULERS[ours].label if ours in SCHEDULERS else ours


def infotext(
    drawn: Mapping[str, Any], model: str, digest: str, version: str, more: Mapping[str, Any] | None = None
) -> str:
    """The lines under a picture in the web UI. LoRAs stand in the prompt, as the web UI has them.

    Args:
        drawn: the picture's own parameters, as the pipeline tells them. more: settings besides, by the web UI's names.
    """
    settings = {
        "Steps": drawn["steps"],
        "Sampler": label_of(drawn["scheduler"]),
        "CFG scale": drawn["guidance"],
        "Seed": drawn["seed"],
        "Size": f"{drawn['width']}x{drawn['height']}",
        "Model hash": digest,
        "Model": model,
        **({"Denoising strength": drawn["strength"]} if "strength" in drawn else {}),
        **(more or {}),
        "Version": f"vitrify {version}",
    }
    lines = [" ".join([str(drawn["prompt"]), *_tags(drawn.get("loras", {}))])]
    if drawn["negative_prompt"]:
        lines.append(f"Negative prompt: {drawn['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
    return "\n".join(lines)


def _tags(loras: Mapping[str, Any]) -> list[str]:
    """LoRAs as a prompt names them; two strengths are the denoiser's and the text encoders', which a tag has first."""
    found = []
    for name, strength in loras.items():
        denoiser, text = strength if isinstance(strength, Sequence) else (strength, strength)
        found.append(f"<lora:{name}:{denoiser:g}>" if denoiser == text else f"<lora:{name}:{text:g}:{denoiser:g}>")
    return found


def _quoted(text: str) -> str:
    """A value that would read as several settings, in JSON's quotes."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"\n') else text


def settings_in(text: str) -> dict[str, str]:
    """What such lines say, by the web UI's names; only the prompt where the last line holds no settings.

    A ControlNet's line is there as it is and field by field, as "ControlNet 0 weight".
    """
    lines = text.rstrip().split("\n")
    settings: dict[str, str] = {}
    if len(lines) > 1 and lines[-1].startswith("Steps: "):
        settings = _pairs(lines.pop()[:_SHOWN])
    parts = "\n".join(lines).split("\nNegative prompt: ", 1)
    said = {"Prompt": parts[0]}
    if len(parts) > 1:
        said["Negative prompt"] = parts[1]
    for name, text in list(settings.items()):
        if _UNIT.fullmatch(name):
            settings |= {f"{name} {part.lower().replace(' ', '_')}": value for part, value in _pairs(text).items()}
    return said | settings


def _pairs(line: str) -> dict[str, str]:
    found = {}
    while line:
        name, colon, line = line.partition(": ")
        if not colon:
            break
        value, end = _string(line)
        if value is None:
            value, _, line = line.partition(", ")
        else:
            line = line[end:].removeprefix(", ")
        found[name.strip()] = value
    return found


def _string(text: str) -> tuple[str | None, int]:
    """A JSON string at the text's start, and where it ends; None where there is none."""
    try:
        value, end = json.JSONDecoder().raw_decode(text) if text.startswith('"') else (None, 0)
    except ValueError:
        return None, 0
    return value, end


def with_text(png: bytes, key: str, text: str) -> bytes:
    """The PNG with a text chunk after its header; nothing is decoded."""
    try:
        chunk = _chunk(b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:  # iTXt: not compressed, no language, no translated key
        chunk = _chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8"))
    return png[:_HEADER] + chunk + png[_HEADER:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_HARMLESS = {
    "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "force_task_id",
    "image_cfg_scale",
}  # fmt: skip
"""Fields that lose nothing here, whatever they say; the last is read by models that follow instructions alone."""
_ONLY_WITH = {
    "denoising_strength": "enable_hr", "hr_scale": "enable_hr", "hr_upscaler": "enable_hr",
    "hr_second_pass_steps": "enable_hr", "hr_resize_x": "enable_hr", "hr_resize_y": "enable_hr",
    "hr_sampler_name": "enable_hr", "hr_scheduler": "enable_hr", "hr_checkpoint_name": "enable_hr",
    "hr_prompt": "enable_hr", "hr_negative_prompt": "enable_hr", "firstphase_width": "enable_hr",
    "firstphase_height": "enable_hr", "subseed": "subseed_strength", "script_args": "script_name",
    "s_tmin": "s_churn", "s_tmax": "s_churn", "refiner_switch_at": "refiner_checkpoint",
}  # fmt: skip
"""Fields that mean something only where another is set."""
_NEUTRAL: dict[str, Any] = {"s_noise": 1, "initial_noise_multiplier": 1, "mask_round": True}
_MOST = 100  # names that are told


def not_done(extra: Mapping[str, Any], ours: str) -> list[str]:
    """The fields that asked for something that is not done. ours: the scheduler that drew."""
    names: list[str] = []
    for name, value in extra.items():
        if name == "eta":
            if value is not None and value != _ETA.get(ours.removesuffix("_karras"), value):
                names.append(name)
        elif name in _HARMLESS or not value or value == _NEUTRAL.get(name, -1):
            continue
        elif name not in _ONLY_WITH or extra.get(_ONLY_WITH[name]):
            names.append(name)
    return [name[:80] for name in names[:_MOST]]


def scripts_asked(scripts: Mapping[str, Any]) -> list[str]:
    """Those of alwayson_scripts that are asked to do something."""
    return [f"alwayson_scripts.{name}"[:80] for name, given in scripts.items() if _args(given)][:_MOST]


def _args(given: Any) -> bool:
    """Whether a script is asked to do something: clients switch those off with [] or [False]."""
    args = given.get("args") if isinstance(given, Mapping) else given
    return any(args) if isinstance(args, Sequence) and not isinstance(args, str) else bool(args)
