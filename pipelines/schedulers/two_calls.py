"""What the schedulers share that call the model twice a step, as k-diffusion's second order samplers do.

Step k of n goes from noise level k to level k + 1 in the calls 2k and 2k + 1, the second of which is made at an inner
level. The last step goes to sigma 0 by Euler's method, in one call; so n steps are 2n - 1 calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..random import Generator
from .base import FloatArray, GivenSigmas, check_index, check_steps, finite_sigmas, refuse_sigmas
from .euler import denoised, initial_sigma, noised_by, unit_variance
from .levels import SigmaSettings, name_of, outer_levels
from .options import settings_from_config
from .spacing import Float64Array, with_final

L = TypeVar("L", npt.NDArray[np.float32], npt.NDArray[np.float64])


class TwoCallScheduler(ABC):
    """Timesteps, levels and the order of calls; a class adds the inner levels and the two moves.

    base_name: the scheduler's name without its levels'. settings_type: its options. whole_timesteps: whether the
    timesteps of Karras' levels are rounded.

    Args:
        config: the content of scheduler_config.json.
        overrides: options that win over it.
    """

    base_name: ClassVar[str]
    settings_type: ClassVar[type[SigmaSettings]]
    whole_timesteps: ClassVar[bool] = False
    order = 2

    def __init__(self, config: Mapping[str, Any], **overrides: Any) -> None:
        self.settings = settings_from_config(self.settings_type, config, self.base_name, **overrides)
        self.name = name_of(self.base_name, self.settings)
        self._table = finite_sigmas(self.settings, zero_snr=False)
        self._sigmas = self._table[::-1]
        self._inner = np.empty(0, dtype=np.float32)  # [steps - 1]
        self._start = np.empty(0, dtype=np.float32)  # the latents that the step began with
        self._last_index: int | None = None
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    @property
    def init_noise_sigma(self) -> float:
        return initial_sigma(self._sigmas, self.settings)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps, levels = outer_levels(self.settings, self._table, steps, whole=self.whole_timesteps)
        self._sigmas = with_final(levels, 0.0)
        self._inner = self.inner(self._sigmas[:-1])
        self.timesteps = np.empty(2 * steps - 1, dtype=np.float32)
        self.timesteps[::2] = timesteps
        self.timesteps[1::2] = self.inner_timesteps(timesteps, levels)
        self._last_index = None

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return unit_variance(latents, self._level(index))

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        check_index(index, self._last_index, self.order)
        self._last_index = index
        original = self.original(model_output, latents, self._level(index))
        step, second = divmod(index, 2)
        if second:
            return self.second(original, step, latents, generator)
        if step == len(self._sigmas) - 2:
            return original  # where a straight line to sigma 0 ends
        return self.first(original, step, latents, generator)

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised_by(latents, noise, self._sigmas[(index + 1) // 2])

    def original(self, model_output: FloatArray, latents: FloatArray, sigma: np.float32) -> FloatArray:
        """x_0 as an output at level `sigma` says it."""
        return denoised(self.settings.prediction_type, model_output, latents, sigma)

    @abstractmethod
    def inner(self, sigmas: FloatArray) -> FloatArray:
        """The levels of the second calls, float32 [steps - 1]; sigmas: those of the first ones, float32 [steps]."""

    @abstractmethod
    def inner_timesteps(self, timesteps: Float64Array, levels: Float64Array) -> Float64Array | FloatArray:
        """The timesteps of the second calls, [steps - 1]; timesteps, levels: of the first ones, float64 [steps]."""

    @abstractmethod
    def first(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Latents at the inner level of `step`. original: x_0 as the output at the step's start says it."""

    @abstractmethod
    def second(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Latents at the end of `step`. original: x_0 as the output at the inner level says it."""

    def _level(self, index: int) -> np.float32:
        """The noise level that call `index` is made at."""
        level: np.float32 = (self._inner if index % 2 else self._sigmas)[index // 2]
        return level


def midways(start: L, end: L) -> L:
    """The level halfway from each of `start` to `end` in the logarithm of sigma."""
    middle: L = np.exp((np.log(start) + np.log(end)) / 2)
    return middle
