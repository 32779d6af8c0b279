"""What is left out of a picture's work, as axes and options name it, and what of it `generate` and `load` are given.

A value is a text or a whole number, so that a table and a JSON file hold it as it was typed; None is a picture without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import BadInput, UsageError
from ..pipelines.families import FAMILIES
from ..pipelines.guiding import parse_interval
from ..pipelines.presets import PRESETS, preset_named
from ..pipelines.saving import DECODERS, Saving
from ..pipelines.settings import PREVIEW
from ..pipelines.step_cache import SHALLOW, StepCache

SAVED = ("preset", "step_cache", "guidance_interval", "guidance_every", "decoder")
"""By the names that `generate` takes."""

NONE = "none"
"""How a picture without it is typed."""


def saved(name: str, text: str, where: str) -> str | int | None:
    """The value that a text stands for; the usual one as None.

    Raises:
        UsageError: it is none. where: what it is told of.
    """
    if text.lower() == NONE:
        return None
    try:
        if name == "step_cache":
            return str(StepCache.parse(text))
        if name == "guidance_interval":
            start, end = parse_interval(text)
            Saving.of(guidance_interval=(start, end))
            return None if (start, end) == (0.0, 1.0) else f"{start:g}:{end:g}"
        if name == "guidance_every":
            if not (text.isascii() and text.isdecimal()):
                raise UsageError(f"{text!r} is not a whole number.", "Give one, such as 2.")
            number = int(text)
            Saving.of(guidance_every=number)
            return None if number == 1 else number
        if name == "decoder":
            Saving.of(decoder=text.lower())
            return None if text.lower() == DECODERS[0] else text.lower()
        preset_named(text.lower())
    except UsageError as exc:
        raise UsageError(f"{where}: {exc.what}", exc.fix) from exc
    return text.lower()


def label_saved(name: str, value: str | int | None) -> str:
    """A value in words: "step cache 3", "guidance every 2", "vae"."""
    if name == "decoder":
        return str(value or DECODERS[0])
    if name == "guidance_every":
        value = value or 1
    return f"{name.replace('_', ' ')} {NONE if value is None else value}"


def said(values: Mapping[str, Any]) -> list[str]:
    """Those that are not as usual, in words."""
    return [label_saved(name, values[name]) for name in SAVED if values.get(name) is not None]


def combined(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination, each once, as name -> value of what is not as usual. axes: name -> its values; empty: None."""
    for values in product(*((axes.get(name) or (None,)) for name in SAVED)):
        yield {name: value for name, value in zip(SAVED, values, strict=True) if value is not None}


def drawn_with(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` is given."""
    found = {name: values[name] for name in SAVED if values.get(name) is not None}
    if "guidance_interval" in found:
        found["guidance_interval"] = parse_interval(found["guidance_interval"])
    return found


def changes_pictures(values: Mapping[str, Any]) -> bool:
    """Whether another picture comes out than of all the work."""
    saving, _ = Saving.of(**drawn_with(values))
    return saving != Saving()


def opens_otherwise(preset: str | None) -> bool:
    """Whether a preset also says how sessions are opened."""
    return preset is not None and bool(PRESETS[preset].options or PRESETS[preset].offload)


def refuse_saved(values: Mapping[str, Any], artifact: Artifact) -> None:
    """Refuse what an artifact has no graph or decoder for. A preset does what it can.

    Raises:
        BadInput: says what it lacks.
    """
    denoiser = FAMILIES[artifact.pipeline["family"]].denoiser
    if values.get("step_cache") is not None and denoiser + SHALLOW not in artifact.components:
        raise BadInput(
            f"{artifact.name} has no graph that takes deep features.", "Export or compile it again, with --step-cache."
        )
    if values.get("decoder") == "preview" and PREVIEW not in artifact.components:
        raise BadInput(f"{artifact.name} has no decoder for previews.", "Export it again, with --preview-vae.")
