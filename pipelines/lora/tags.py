"""LoRAs named in a prompt, as in "a castle <lora:watercolour:0.8>"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from ...core.errors import BadInput

_TAG = re.compile(r"(?<![ \t])[ \t]*<lora:(?P<inside>[^<>]*)>", re.IGNORECASE)
_FIX = "Write <lora:NAME:0.8>, or <lora:NAME:0.5:0.8> with the text encoders' strength first."
_ENDING = ".safetensors"


def split_loras(prompt: str) -> tuple[str, list[tuple[str, float, float]]]:
    """A prompt without its LoRA tags, and (name, strength, text encoder's strength) of each.

    <lora:NAME> has the strength 1; <lora:NAME:0.8> has 0.8 for both; <lora:NAME:0.5:0.8> has 0.5 in the text encoders,
    in the order of AUTOMATIC1111's web UI.

    Raises:
        BadInput: a tag without a name or with a strength that is no number.
    """
    found = []
    for match in _TAG.finditer(prompt):
        name, *strengths = (part.strip() for part in match["inside"].split(":"))
        tag = match[0].strip()
        if not name or len(strengths) > 2:
            raise BadInput(f"{tag} in the prompt names no LoRA and at most two strengths.", _FIX)
        numbers = [_number(tag, text) for text in strengths] or [1.0]
        found.append((name, numbers[-1], numbers[0]))
    return (_TAG.sub("", prompt).strip() if found else prompt), found


def _number(tag: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{tag} in the prompt has the strength {text!r}, which is no number.", _FIX)
    return number


def lora_paths(folder: Path) -> list[Path]:
    """The .safetensors files of a folder and of those below it, sorted."""
    return sorted(p for p in folder.rglob(f"*{_ENDING}") if p.is_file())


def find_lora(name: str, where: Mapping[str, Path] | Path) -> Path:
    """The file of the LoRA with this name.

    Args:
        where: name -> file, or a folder whose .safetensors files are named by their stems, in folders below it too.

    Raises:
        BadInput: none has that name, or two have; says which there are.
    """
    if isinstance(where, Mapping):
        if name in where:
            return where[name]
        raise _missing(name, list(where), "LoRAs are")
    files = lora_paths(where)
    wanted = name.removesuffix(_ENDING)
    found = [p for p in files if p.stem == wanted or p.relative_to(where).with_suffix("").as_posix() == wanted]
    if len(found) > 1:
        paths = " and ".join(str(p.relative_to(where)) for p in found)
        raise BadInput(f"There are several LoRAs {name!r} in {where}: {paths}.", "Name one with its folder.")
    if not found:
        raise _missing(name, [p.stem for p in files], f"{where} has")
    return found[0]


def _missing(name: str, there: list[str], subject: str) -> BadInput:
    listed = ", ".join(sorted(there)[:20]) or "none"
    return BadInput(f"There is no LoRA {name!r}.", f"{subject} {listed}.")
