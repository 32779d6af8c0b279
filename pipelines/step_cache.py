"""Steps that take the deep features of an earlier one and compute only what stands around them.

Neighbouring steps have nearly the same deep features (DeepCache: Ma et al., arXiv 2312.00858): of a UNet what its last
layers get from below, of a transformer what all blocks but the first ones add. export/step_cache.py cuts the graphs;
here it is decided when to use which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..core.errors import UsageError
from ..core.tensors import Array

DEEP = "deep_features"  # an output of the denoiser, an input of the shallow graph
SHALLOW = "_shallow"  # behind the denoiser's name: the component of the shallow graph
MOST = 10  # calls in a row that are not computed whole


class Policy(Protocol):
    """Which calls of one generation are computed whole. Asked before each call, in order."""

    def whole(self) -> bool: ...
    def saw(self, deep: Array) -> None:
        """Is given the deep features of a call that was."""


class Interval:
    """Every n-th call is computed whole, the first among them."""

    def __init__(self, interval: int) -> None:
        self._interval, self._call = interval, -1

    def whole(self) -> bool:
        self._call += 1
        return self._call % self._interval == 0

    def saw(self, deep: Array) -> None:
        pass


class Change:
    """A call is computed whole where the deep features would have changed by more than a share since the last one.

    How much a call changes them is measured between those that were computed whole: the mean absolute difference over
    the mean absolute value, shared out over the calls between. The first two calls are whole.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._rate: float | None = None
        self._deep: Array | None = None
        self._since = 0  # calls since the last whole one, that one excluded

    def whole(self) -> bool:
        self._since += 1
        if self._rate is None:
            return True
        return self._rate * self._since > self._most or self._since > MOST

    def saw(self, deep: Array) -> None:
        if self._deep is not None and self._deep.shape == deep.shape:
            size = float(np.abs(deep).mean())
            self._rate = float(np.abs(deep - self._deep).mean()) / max(size, 1e-12) / max(self._since, 1)
        self._deep, self._since = deep, 0


@dataclass(frozen=True)
class StepCache:
    """What a user asked for: every `interval`-th step whole, or as few as keep the features within `change`."""

    interval: int | None = None
    change: float | None = None

    @classmethod
    def parse(cls, text: str) -> StepCache:
        """Of "3", every third step, or of "0.1", a change of a tenth.

        Raises:
            UsageError: it is neither.
        """
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if 2 <= number <= MOST and number == int(number):
            return cls(interval=int(number))
        if 0 < number < 1:
            return cls(change=number)
        raise UsageError(
            f"The step cache is {text!r}.",
            f"Give 2 to {MOST}, every so many steps one is computed whole, or the share that features may change, "
            "below 1, such as 0.1.",
        )

    def policy(self) -> Policy:
        """A new one, for one generation."""
        return Interval(self.interval) if self.interval is not None else Change(self.change or 0)

    def __str__(self) -> str:
        return str(self.interval if self.interval is not None else self.change)
