"""What is asked of a diffusion pipeline: one row a picture, and how all of them are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import BadInput, UsageError
from .pictures_in import Picture, pictures_of
from .random import random_seed
from .saving import Saving

if TYPE_CHECKING:
    from .control import ControlUnit

MAX_SEED = 2**64 - 1
MAX_SIDE = 4096

Strengths = float | tuple[float, float]


@dataclass(frozen=True)
class Generation:
    """A request.

    prompts, seeds: one a picture. width, height: pixels; None where they follow from the picture or the model.
    loras: name or path -> strength, or the denoiser's and the text encoders'. saving: what of the work is left out.
    notes: one line each for what is not done as it was asked. The rest is as in `DiffusionPipeline.generate`.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    negative_prompt: str
    width: int | None
    height: int | None
    steps: int
    guidance: float
    scheduler: str | None
    rng: str
    image: Picture | None = None
    mask: Picture | None = None
    strength: float = 1.0
    control: tuple[ControlUnit, ...] = ()
    loras: Mapping[str, Strengths] = field(default_factory=dict)
    saving: Saving = field(default_factory=Saving)
    notes: tuple[str, ...] = ()


def prompts_of(prompt: str | Sequence[str], batch: int) -> tuple[str, ...]:
    """One prompt a picture, each `batch` times.

    Raises:
        BadInput: no prompt. UsageError: a batch below 1.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise BadInput("There is no prompt.", "Give at least one.")
    if batch < 1:
        raise UsageError(f"batch is {batch}.", "Give 1 or more.")
    return tuple(p for p in prompts for _ in range(batch))


def seeds_of(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """One seed a picture: `seed + i`, or those that are given.

    Raises:
        BadInput: a seed out of range, or another number of them.
    """
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise BadInput(f"There are {len(seed)} seeds for {count} pictures.", "Give one for each picture.")
        return tuple(_checked_seed(one) for one in seed)
    first = random_seed() if seed is None else _checked_seed(seed)
    return tuple(first + number for number in range(count))


def _checked_seed(seed: int) -> int:
    """The seed, refused where torch would read another one out of it (negative) or none (2.5, nan)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise BadInput(
            f"The seed is {seed!r}, not a whole number from 0 to {MAX_SEED}.", "Give one, or none for a random one."
        )
    return int(seed)


def size_of(request: Generation, unit: int, usual: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of what is drawn.

    Args:
        unit: what both are a multiple of. usual: (height, width) where nothing says another.

    Raises:
        BadInput: a side that is no such multiple, or too large.
    """
    height, width = request.height, request.width
    if request.image is not None and height is None and width is None:
        one = pictures_of(request.image, len(request.prompts), "picture")[0]
        # as diffusers' image processors: the picture's own size, rounded down
        height, width = (max(unit, side - side % unit) for side in (one.height, one.width))
    height = usual[0] if height is None else height
    width = usual[1] if width is None else width
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int):
            raise BadInput(f"The {name} is {side!r}, not a whole number.", f"Give a multiple of {unit}.")
        if side > MAX_SIDE:
            raise BadInput(f"The {name} is {side}; at most {MAX_SIDE} is taken.", f"Give {MAX_SIDE} or less.")
        if side < unit or side % unit:
            near = max(unit, round(side / unit) * unit)
            raise BadInput(f"The {name} is {side}, not a multiple of {unit}.", f"Give {near}.")
    return height, width
