"""Axes of a sweep as they are typed, such as `steps=5,10,20` -> a name and the values that pictures are drawn with."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from io import StringIO
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, UsageError
from ...core.registry import runtime_names
from ...pipelines.adapters import parse_lora
from ...pipelines.control import MAX_STRENGTH
from ...pipelines.generation import MAX_SEED
from ...pipelines.random import GENERATORS
from ...pipelines.schedulers import NAMES_OF_CLASSES, scheduler_name
from ...quant.recipes import RECIPES, recipe
from ..saved import SAVED, label_saved, saved

LETTERS = ("x", "y", "z")
MOST = 5000
"""Values of one axis, and pictures of one sweep."""

NO_LORA = "none"
"""What an axis of LoRAs calls a picture without one."""

SEARCH = "prompt_sr"
_TEXTS = ("prompt", "negative_prompt", SEARCH)
_WHOLE = {"steps": (1, None), "seed": (0, MAX_SEED), "width": (1, None), "height": (1, None), "threads": (0, None)}
# name -> the lowest and the highest, which is one of them; None: any
_FLOATS: dict[str, tuple[float | None, float | None]] = {
    "guidance": (None, None), "strength": (0, 1), "control_strength": (0, MAX_STRENGTH), "lora_strength": (None, None),
}  # fmt: skip
_FILES = ("image", "lora")
# what AUTOMATIC1111's web UI and diffusers call them
_ALSO = {
    "cfg": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance", "sampler": "scheduler",
    "prompt_s_r": SEARCH, "negative": "negative_prompt", "quant": "recipe",
    "denoising": "strength", "denoising_strength": "strength", "loras": "lora",
    "controlnet_strength": "control_strength", "controlnet_conditioning_scale": "control_strength",
}  # fmt: skip
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*(?:\.\.|-)\s*(?P<last>{_NUMBER})"
    rf"(?:\s*:\s*(?P<step>{_NUMBER})|\s*\(\s*(?P<by>{_NUMBER})\s*\)|\s*\[\s*(?P<count>\d+)\s*\])?",
    re.ASCII,
)


@dataclass(frozen=True)
class Axis:
    """One axis of a grid.

    letter: "x" (columns), "y" (rows) or "z" (a grid a value). name: one of `axis_names()`.
    values: at least one, each once; numbers, texts, or (width, height) of the axis "size". Of "lora" and "image" what
    was typed, a name or a path. Of those of `SAVED` None is a picture without it.
    """

    letter: str
    name: str
    values: tuple[Any, ...]

    @property
    def heading(self) -> str:
        """What the labels are values of, where they do not say so themselves."""
        if self.name == SEARCH:
            return f'"{self.values[0]}" becomes'
        plain = (*_WHOLE, *_FLOATS, *SAVED, "rng", "size")
        return "" if self.name in plain else self.name.replace("_", " ")

    def label(self, index: int) -> str:
        """A value as a grid shows it: "steps 5", "64x64", "ddim"."""
        return label(self.name, self.values[index])


def axis_names() -> list[str]:
    """What may be swept."""
    return [*_WHOLE, *_FLOATS, "size", "scheduler", "rng", *_TEXTS, *_FILES, "runtime", "recipe", *SAVED]


def label(name: str, value: Any) -> str:
    """A value of an axis in words."""
    if name == "size":
        return "x".join(map(str, value))
    if name in _TEXTS:
        return str(value) or "(nothing)"
    if name in SAVED:
        return label_saved(name, value)
    if name in _FLOATS:
        return f"{name.replace('_', ' ')} {value:g}"
    if name == "image":
        return Path(value).name
    if name == "lora":
        file, typed = parse_lora(value)[0], str(value)
        return (Path(file).stem if file.endswith(".safetensors") else file) + typed[len(file) :]
    return f"{name} {value}" if name in _WHOLE or name == "rng" else str(value)


def parse_axis(letter: str, text: str) -> Axis:
    """The axis that `text`, NAME=VALUES, stands for.

    VALUES are separated by commas as in a CSV file: one that holds a comma goes in double quotes, and a double quote in
    it is written twice. Numbers may be ranges with both ends in them: `1..5`, `1..10:3` (a step), `2.0..8.0:2`, and
    AUTOMATIC1111's `1-5`, `1-5 (+2)` and `1-10 [5]` (so many values).

    Raises:
        UsageError: there is no such axis, a value is not one of it, there is none, or one is there twice.
    """
    typed, equals, listed = text.partition("=")
    if not equals:
        raise UsageError(f"--{letter} {text!r} has no '='.", f"Write it as --{letter} steps=5,10,20.")
    name = _name(letter, typed)
    where, example = f"--{letter} {name}", f"--{letter} {_example(name)}"
    values: list[Any] = []
    for number, field in enumerate(_fields(where, name, listed), 1):
        if not field and name not in _TEXTS:
            raise UsageError(f"Value {number} of {where} is empty.", "Leave out the comma too many.")
        values += _values(where, name, field, example)
        if len(values) > MOST:
            raise _too_many(where)
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        raise UsageError(f"{where} has {label(name, twice[0])!r} twice.", "Give each value once.")
    if name == SEARCH and not values[0]:
        raise UsageError(f"{where} searches for nothing.", f"Write it as in {example}.")
    return Axis(letter, name, tuple(values))


def check_option(name: str, value: Any) -> None:
    """Hold an option's value to what an axis of that name takes; None is the model's own.

    Raises:
        UsageError: it is no such value.
    """
    if value is not None:
        first = re.split(r",|\.\.", _example(name).partition("=")[2])[0]
        _values(f"--{name}", name, str(value), f"--{name} {first}")


def parse_axes(x: str | None, y: str | None, z: str | None) -> list[Axis]:
    """The axes that were given, in the order x, y, z.

    Raises:
        UsageError: there is none, one is given twice, or two set the same thing; and what `parse_axis` raises.
    """
    axes = [parse_axis(letter, text) for letter, text in zip(LETTERS, (x, y, z), strict=True) if text is not None]
    if not axes:
        raise UsageError("There is no axis to sweep.", "Give --x NAME=VALUES, as in --x steps=5,10,20.")
    seen: dict[str, Axis] = {}
    for axis in axes:
        # two searches are two axes, as long as they search for different words
        keys = [f"{SEARCH} {axis.values[0]}"] if axis.name == SEARCH else sets(axis.name)
        for key in keys:
            if key in seen:
                other = seen[key]
                both = f"--{other.letter} {other.name} and --{axis.letter} {axis.name}"
                what = f"search for {axis.values[0]!r}" if axis.name == SEARCH else f"set the {key}"
                raise UsageError(f"{both} both {what}.", "Leave one out.")
            seen[key] = axis
    pictures = math.prod(len(axis.values) for axis in axes)
    if pictures > MOST:
        sizes = " x ".join(str(len(axis.values)) for axis in axes)
        raise UsageError(f"{sizes} are {pictures} pictures; at most {MOST} are drawn.", "Give fewer values.")
    return axes


def sets(name: str) -> list[str]:
    """The parameters that an axis sets."""
    return ["width", "height"] if name == "size" else [name]


def _name(letter: str, typed: str) -> str:
    name = re.sub(r"[\W_]+", "_", typed.strip().lower()).strip("_")
    name = _ALSO.get(name, name)
    if name in axis_names():
        return name
    if name == "batch":
        raise UsageError("batch is not an axis: each cell is one picture.", f"Use --{letter} seed=1..4.")
    near = difflib.get_close_matches(name, [*axis_names(), *_ALSO], n=1)
    fix = f"Did you mean {_ALSO.get(near[0], near[0])}? " if near else ""
    raise UsageError(f"There is no axis {typed.strip()!r}.", f"{fix}Axes are {', '.join(axis_names())}.")


def _fields(where: str, name: str, listed: str) -> list[str]:
    example = '"a dog, asleep","a cat"' if name in _TEXTS else '"int4-weights:group=32,symmetric=no",fp32'
    try:
        rows = list(csv.reader(StringIO(listed, newline=""), skipinitialspace=True, strict=True))
    except csv.Error as exc:
        raise UsageError(
            f"The values of {where} are not quoted as in a CSV file ({exc}).",
            f"Close each double quote, as in {name}={example}, and put the whole in single quotes for the shell.",
        ) from exc
    fields = [field.strip() for row in rows for field in row]
    if not any(fields):
        raise UsageError(f"{where} has no values.", f"Write them after the '=', as in {_example(name)}.")
    return fields


def _example(name: str) -> str:
    examples = {
        "guidance": "2.0..8.0:2", "seed": "1..4", "width": "256,512", "height": "256,512", "threads": "1,2",
        "size": "256x256,512x256", "scheduler": "ddim,euler", "rng": "cpu,philox", "runtime": "onnx,openvino",
        "prompt": '"a dog, asleep","a cat"', "negative_prompt": '"",blurry', SEARCH: "red,green,blue",
        "recipe": "fp32,int8-weights", "strength": "0.4,0.6,0.8", "control_strength": "0.5,1", "lora_strength": "0.5,1",
        "lora": "none,style:0.8", "image": "a.png,b.png", "preset": "none,fast", "step_cache": "none,2,3,0.1",
        "guidance_interval": "none,0.1:0.8", "guidance_every": "1,2", "decoder": "vae,preview",
    }  # fmt: skip
    return f"{name}={examples.get(name, '5,10,20')}"


def _values(where: str, name: str, field: str, example: str) -> list[Any]:
    """What one field between two commas stands for; several where it is a range."""

    def bad(why: str) -> UsageError:
        return UsageError(f"{where}: {field!r} is {why}.", f"Write it as in {example}.")

    if name in _TEXTS:
        return [field]
    if name in _WHOLE:
        low, high = _WHOLE[name]
        numbers = _numbers(where, field, whole=True) or _one(field, int)
        if numbers is None:
            raise bad("not a whole number")
        if any(n < low or (high is not None and n > high) for n in numbers):
            raise bad(f"less than {low}" if high is None else f"not from {low} to {high}")
        return numbers
    if name in _FLOATS:
        numbers = _numbers(where, field, whole=False) or _one(field, float)
        if numbers is None or not all(map(math.isfinite, numbers)):
            raise bad("not a number")
        least, most = _FLOATS[name]
        if any((least is not None and n < least) or (most is not None and n > most) for n in numbers):
            raise bad(f"not from {least} to {most}")
        return numbers
    if name == "image":
        return [field]
    if name == "lora":
        _, strengths = parse_lora(field)
        if not all(map(math.isfinite, strengths if isinstance(strengths, tuple) else ())):
            raise bad("no LoRA with a strength")
        return [NO_LORA if field.lower() == NO_LORA else field]
    if name == "size":
        sides = re.fullmatch(r"(\d{1,9})\s*[xX×]\s*(\d{1,9})", field)
        if sides is None or "0" in map(str, map(int, sides.groups())):
            raise bad("not a width and a height in pixels")
        return [(int(sides[1]), int(sides[2]))]
    if name == "recipe":
        if field.partition(":")[0].lower() not in RECIPES and "=" in field:
            raise bad("no recipe; options that hold a comma go in double quotes with their recipe")
        return [_choice(where, name, field, list(RECIPES), lambda found: recipe(found).id)]
    if name == "scheduler":
        return [_scheduler(where, field)]
    if name in SAVED:
        numbers = _numbers(where, field, whole=True) if name == "guidance_every" else None
        return [saved(name, str(one), where) for one in numbers or [field]]
    known = {"runtime": runtime_names(), "rng": list(GENERATORS)}[name]
    return [_choice(where, name, field, known, str)]


def _choice(where: str, name: str, field: str, known: list[str], made: Callable[[str], str]) -> str:
    """One of a few names, in any case; what follows a colon is kept as it is."""
    word, colon, options = field.partition(":") if name == "recipe" else (field, "", "")
    if word.lower() in known:
        return made(word.lower() + colon + options)
    near = difflib.get_close_matches(word.lower(), known, n=1)
    fix = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(f"{where}: there is no {name} {word!r}.", f"{fix}There are {', '.join(known)}.")


def _scheduler(where: str, field: str) -> str:
    """Our name; of diffusers' classes the class, for the model's options say which of ours it is."""
    try:
        ours = scheduler_name(field)
    except BadInput as exc:
        raise UsageError(f"{where}: t{exc.what[1:]}", exc.fix) from exc
    return next((kind for kind in NAMES_OF_CLASSES if kind.lower() == field.lower()), ours)


def _one(field: str, kind: Callable[[str], Any]) -> list[Any] | None:
    try:
        return [kind(field)] if field.isascii() and "_" not in field else None
    except ValueError:
        return None


def _numbers(where: str, field: str, whole: bool) -> list[Any] | None:
    """The numbers of a range, both ends among them where the step leads there; None where `field` is none."""
    found = _RANGE.fullmatch(field)
    if found is None:
        return None
    kind: Callable[[Any], Any] = int if whole else float
    try:  # decimal, so that 0.1..0.5:0.1 holds 0.3 and not 0.30000000000000004
        first, last = Decimal(found["first"]), Decimal(found["last"])
        size = abs(Decimal(found["step"] or found["by"] or 1))
    except InvalidOperation:  # more digits than a number has
        return None
    if whole and any(n != n.to_integral_value() for n in (first, last, size)):
        return None
    if found["count"] is not None:
        count = int(found["count"])
        if not 2 <= count <= MOST:
            raise UsageError(f"{where}: {field!r} is {count} values.", f"Give from 2 to {MOST}.")
        spread = [first + (last - first) * n / (count - 1) for n in range(count)]
        return list(dict.fromkeys(kind(round(n)) if whole else kind(n) for n in spread))
    if not size:
        raise UsageError(f"{where}: {field!r} has a step of 0.", "Give another step.")
    if abs(last - first) / size > MOST:
        raise _too_many(where)
    step = size if last >= first else -size
    return [kind(first + step * n) for n in range(int(abs(last - first) / size) + 1)]


def _too_many(where: str) -> UsageError:
    return UsageError(f"{where} has more than {MOST} values.", "Give fewer, or a larger step.")
