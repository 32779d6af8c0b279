"""What a client of AUTOMATIC1111's API chose: a model, by the web UI's titles, and the pictures' format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .catalogue import ModelInfo
from .errors import BadField, UnknownModel
from .fields import drawer
from .interface import Core

DIGEST = 10  # characters of a model's id that are shown as its hash
OPTIONS = ("sd_model_checkpoint", "samples_format")  # those that can be set
SKIP = "skip_early_cond"  # the first steps, as a part of all, go without the negative prompt
_FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


@dataclass(frozen=True)
class Chosen:
    """What holds for a request. format: of pictures. not_done: names of overridden settings that are not done.

    skip: steps up to this part of all of them go without the negative prompt; 0: none do.
    """

    info: ModelInfo
    format: str
    not_done: list[str]
    skip: float = 0.0

    @property
    def interval(self) -> list[float] | None:
        """The part of the steps with guidance, where the client says. The web UI leaves out a step at `skip` itself."""
        return [math.nextafter(self.skip, 1.0), 1.0] if self.skip else None


async def chosen(core: Core, client: str, override: Mapping[str, Any] | None = None) -> Chosen:
    """The client's options, and over them those of one request.

    Raises:
        BadField, UnknownModel: an option that makes no sense. Unsupported: no model draws.
    """
    options: dict[str, Any] = {**await core.options(client), **(override or {})}
    other = [f"override_settings.{name}" for name in override or {} if name not in (*OPTIONS, SKIP)]
    given = options.get("sd_model_checkpoint")
    info = drawer(core, None) if given in (None, "") else titled(core.models, given)
    return Chosen(info, picture_format(options.get("samples_format")), other, _skipped(options.get(SKIP)))


def title(info: ModelInfo) -> str:
    """As the web UI lists a model: name and hash."""
    return f"{info.name} [{info.id[:DIGEST]}]"


def is_called(info: ModelInfo, text: str) -> bool:
    """Whether this is the model's name, title or hash."""
    return text in (info.name, title(info), info.id, info.id[:DIGEST])


def titled(models: Mapping[str, ModelInfo], text: Any) -> ModelInfo:
    """The model of this name, title or hash.

    Raises:
        BadField: that is no text. UnknownModel: none that draws is called so.
    """
    if not isinstance(text, str):
        raise BadField("The sd_model_checkpoint is no text.", "Give a title of sd-models.", "sd_model_checkpoint")
    drawing = [info for info in models.values() if info.draws]
    for info in drawing:
        if is_called(info, text):
            return info
    raise UnknownModel(f"No model {text[:200]!r} draws here.", f"Choose one of: {', '.join(map(title, drawing))}.")


def picture_format(given: Any) -> str:
    """png, jpeg or webp, by the web UI's names.

    Raises:
        BadField: any other.
    """
    if given in (None, ""):
        return "png"
    found = _FORMATS.get(given.lower()) if isinstance(given, str) else None
    if found is None:
        raise BadField(f"There is no samples_format {str(given)[:40]!r}.", "Use png, jpg or webp.", "samples_format")
    return found


def _skipped(given: Any) -> float:
    if given is None:
        return 0.0
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1:
        raise BadField(f"The {SKIP} is {str(given)[:40]}.", "Give a part of the steps, from 0 to below 1.", SKIP)
    return float(given)
