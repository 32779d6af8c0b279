"""DPM-Solver++ for the diffusion SDE, of second order with two calls a step.

Lu et al., arXiv 2211.01095, in k-diffusion's form sample_dpmpp_sde with eta = 1 and r = 1/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..random import Generator
from .base import FloatArray
from .euler import ancestral, noised_by
from .levels import SigmaSettings
from .spacing import Float64Array, timesteps_of_sigmas
from .two_calls import TwoCallScheduler, midways


@dataclass(frozen=True, kw_only=True)
class DpmSdeSettings(SigmaSettings):
    """Options of diffusers' DPMSolverSDEScheduler; its noise comes from the run's generator, so it takes no seed."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **SigmaSettings.choices,
        "prediction_type": ("epsilon", "v_prediction"),
        "noise_sampler_seed": (None,),
    }

    beta_start: float = 0.00085
    beta_end: float = 0.012
    noise_sampler_seed: int | None = None


class DpmSdeScheduler(TwoCallScheduler):
    """diffusers' DPMSolverSDEScheduler, with other random numbers of the same distribution. See `Scheduler` for shapes.

    Its noise is the increments of one Brownian motion over sigma: the first call of a step takes the increment down to
    the inner level, the second the one over the whole step, which contains the first. diffusers reads them off a
    torchsde.BrownianTree with a seed of its own, which has nothing to do with the generator of a pipeline; here both
    parts of a step are drawn from the run's generator, one in each call. Increments over disjoint parts are
    independent, so every number has the same distribution, together with all others; the numbers themselves differ.
    """

    base_name: ClassVar[str] = "dpmpp_sde"
    settings_type: ClassVar[type[SigmaSettings]] = DpmSdeSettings

    def inner(self, sigmas: FloatArray) -> FloatArray:
        return midways(sigmas[:-1], sigmas[1:])

    def inner_timesteps(self, timesteps: Float64Array, levels: Float64Array) -> Float64Array | FloatArray:
        return timesteps_of_sigmas(midways(levels[:-1], levels[1:]), self._table)

    def first(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        self._start, self._drawn = latents, generator.normal(latents.shape)
        return self._moved(original, step, self._inner[step], self._drawn)

    def second(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma, inner, end = self._sigmas[step], self._inner[step], self._sigmas[step + 1]
        whole = np.sqrt(sigma - inner) * self._drawn + np.sqrt(inner - end) * generator.normal(latents.shape)
        return self._moved(original, step, end, whole / np.sqrt(sigma - end))

    def _moved(self, original: FloatArray, step: int, end: np.float32, noise: FloatArray) -> FloatArray:
        """From the step's start to level `end`; noise: the Brownian motion's increment, of unit variance."""
        down, up = ancestral(self._sigmas[step], end)
        ratio = down / self._sigmas[step]
        moved: FloatArray = ratio * self._start - (ratio - np.float32(1.0)) * original
        return noised_by(moved, noise, up)
