"""When a step computes the negative prompt too, and what stands for it when it does not.

Guidance in the middle of the steps alone: Kynkäänniemi et al., "Applying Guidance in a Limited Interval", arXiv
2404.07724. Taking over what guidance added at an earlier step: Lv et al., "FasterCache", arXiv 2410.19355.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.errors import UsageError
from .families.base import FloatArray

MOST = 10  # whole calls of which one computes the negative prompt


@dataclass(frozen=True)
class Guiding:
    """What a user asked for.

    start, end: the part of the steps, 0 to 1, in which guidance acts; outside of it the prompt alone is computed.
    every: of the calls in it that are computed whole, each `every`-th computes the negative prompt too.
    """

    start: float = 0.0
    end: float = 1.0
    every: int = 1

    @classmethod
    def of(cls, interval: tuple[float, float] | None, every: int | None) -> Guiding:
        """None: all of the steps, each of them.

        Raises:
            UsageError: they are out of range.
        """
        start, end = interval or (0.0, 1.0)
        if not all(math.isfinite(one) for one in (start, end)) or not 0 <= start < end <= 1:
            raise UsageError(
                f"The guidance interval is {start:g} to {end:g}.", "Give parts of the steps, 0 to 1, such as 0.1:0.8."
            )
        every = 1 if every is None else every
        if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= MOST:
            raise UsageError(f"Guidance every {every} steps is not possible.", f"Give a whole number from 1 to {MOST}.")
        return cls(float(start), float(end), every)

    @property
    def saves(self) -> bool:
        """Whether any step goes without the negative prompt."""
        return self != Guiding()

    def acts(self, step: int, steps: int) -> bool:
        """Whether guidance acts at a step. step: how many are done, of `steps`."""
        return self.start <= step / steps < self.end

    def to_json(self) -> dict[str, object]:
        """For a picture's parameters: what is not as usual."""
        said: dict[str, object] = {}
        if (self.start, self.end) != (0.0, 1.0):
            said["guidance_interval"] = [self.start, self.end]
        if self.every > 1:
            said["guidance_every"] = self.every
        return said


def parse_interval(text: str) -> tuple[float, float]:
    """Of "0.1:0.8".

    Raises:
        UsageError: it is something else.
    """
    first, mark, second = text.partition(":")
    try:
        found = float(first or 0), float(second or 1)
    except ValueError:
        found = (math.nan, math.nan)
    if not mark or any(math.isnan(one) for one in found):
        raise UsageError(f"The guidance interval is {text!r}.", "Give parts of the steps, 0 to 1, such as 0.1:0.8.")
    return found


class Guide:
    """Guidance in one generation (Ho and Salimans, arXiv 2207.12598): negative + guidance * (positive - negative).

    Args:
        guided: whether the model is called for the negative prompt at all. steps: calls of the denoiser.
    """

    def __init__(self, guidance: float, guiding: Guiding, steps: int, *, guided: bool) -> None:
        self._guidance, self._guiding, self._steps, self._guided = np.float32(guidance), guiding, steps, guided
        self._whole = 0  # calls in the interval that were computed whole
        self._both = False  # whether the last of them computed both
        self._added: FloatArray | None = None  # positive - negative, of the last call that computed both

    def wants_whole(self, step: int) -> bool:
        """Whether a call has to be computed whole: nothing of the negative prompt is known, and it is needed."""
        return self._guided and self._guiding.acts(step, self._steps) and self._added is None

    def both(self, step: int, *, whole: bool) -> bool:
        """Whether this call computes the negative prompt too. Asked once for each call, in order.

        A call that takes deep features does what the whole call before it did.
        """
        if not self._guided or not self._guiding.acts(step, self._steps):
            self._both = self._both and not whole
            return False
        if whole:
            self._both = self._whole % self._guiding.every == 0
            self._whole += 1
        return self._both

    def combined(self, out: FloatArray, step: int, *, both: bool) -> FloatArray:
        """The guided answer, float32 [n, ...].

        Args:
            out: [2n, ...], the negative rows first, where `both`; else the positive ones, [n, ...].
        """
        if both:
            negative, positive = np.split(out, 2)
            self._added = positive - negative
            return negative + self._guidance * self._added
        if self._added is None or not self._guiding.acts(step, self._steps):
            return out
        return out + (self._guidance - np.float32(1)) * self._added
