"""The linear multistep method on the probability flow ODE, of order 4: k-diffusion's sample_lms.

Adams and Bashforth's method with steps of any length: the slope over sigma is the polynomial through the last slopes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..random import Generator
from .base import FloatArray, GivenSigmas, check_index, check_steps, finite_sigmas, refuse_sigmas
from .euler import denoised, initial_sigma, noised_by, unit_variance
from .levels import SigmaSettings, name_of, outer_levels
from .options import settings_from_config
from .spacing import with_final

ORDER = 4  # slopes that are kept


@dataclass(frozen=True, kw_only=True)
class LmsSettings(SigmaSettings):
    """Options of diffusers' LMSDiscreteScheduler."""


class LmsScheduler:
    """diffusers' LMSDiscreteScheduler. See `Scheduler` for shapes.

    A run that starts late begins at order 1, as k-diffusion does. diffusers then weighs its first slopes as if it had
    four, so that their weights do not add up to the step.

    Args:
        config: the content of scheduler_config.json.
        overrides: options that win over it.
    """

    order = 1

    def __init__(self, config: Mapping[str, Any], **overrides: Any) -> None:
        self.settings = settings_from_config(LmsSettings, config, "lms", **overrides)
        self.name = name_of("lms", self.settings)
        self._table = finite_sigmas(self.settings, zero_snr=False)
        self._sigmas = self._table[::-1]
        self._slopes: list[FloatArray] = []  # at most four, the newest first
        self._last_index: int | None = None
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    @property
    def init_noise_sigma(self) -> float:
        return initial_sigma(self._sigmas, self.settings)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps, levels = outer_levels(self.settings, self._table, steps)
        self._sigmas = with_final(levels, 0.0)
        self.timesteps = timesteps.astype(np.float32)
        self._slopes, self._last_index = [], None

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return unit_variance(latents, self._sigmas[index])

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        check_index(index, self._last_index)
        self._last_index = index
        sigma = self._sigmas[index]
        original = denoised(self.settings.prediction_type, model_output, latents, sigma)
        self._slopes = [(latents - original) / sigma, *self._slopes[: ORDER - 1]]
        visited = self._sigmas[index - len(self._slopes) + 1 : index + 1][::-1]
        moved = latents
        for weight, slope in zip(_weights(visited, self._sigmas[index + 1]), self._slopes, strict=True):
            moved = moved + weight * slope
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised_by(latents, noise, self._sigmas[index])


def _weights(visited: FloatArray, end: np.float32) -> FloatArray:
    """The integrals of Lagrange's polynomials over `visited` levels, the newest first, from the newest to `end`."""
    points = visited.astype(np.float64) - float(visited[0])  # from 0 on, so that few digits are lost
    length = float(end) - float(visited[0])
    weights = []
    for own, point in enumerate(points):
        others = np.delete(points, own)
        basis = np.poly1d(others, r=True) / np.prod(point - others)
        weights.append(basis.integ()(length))
    return np.array(weights, dtype=np.float32)
