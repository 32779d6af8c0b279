"""DPM-Solver-2 in k-diffusion's form, a midpoint method, and its ancestral form.

Lu et al., arXiv 2206.00927, algorithm 1, on the steps of Karras et al., arXiv 2206.00364, algorithm 2; k-diffusion's
sample_dpm_2 and sample_dpm_2_ancestral with eta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np

from ..random import Generator
from .base import FloatArray
from .euler import ancestral, noised_by
from .levels import RangedSettings, SigmaSettings
from .spacing import Float64Array, timesteps_of_sigmas
from .two_calls import TwoCallScheduler, midways


@dataclass(frozen=True, kw_only=True)
class Dpm2Settings(RangedSettings):
    """Options of diffusers' KDPM2DiscreteScheduler and KDPM2AncestralDiscreteScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **RangedSettings.choices,
        "prediction_type": ("epsilon", "v_prediction"),
    }

    beta_start: float = 0.00085
    beta_end: float = 0.012


class Dpm2Scheduler(TwoCallScheduler):
    """diffusers' KDPM2DiscreteScheduler. See `Scheduler` for shapes."""

    base_name: ClassVar[str] = "dpm2"
    settings_type: ClassVar[type[SigmaSettings]] = Dpm2Settings
    whole_timesteps: ClassVar[bool] = True

    def inner(self, sigmas: FloatArray) -> FloatArray:
        return midways(sigmas[:-1], sigmas[1:])

    def inner_timesteps(self, timesteps: Float64Array, levels: Float64Array) -> Float64Array | FloatArray:
        return timesteps_of_sigmas(self._inner, self._table)

    def first(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma = self._sigmas[step]
        self._start = latents
        moved: FloatArray = latents + (latents - original) / sigma * (self._inner[step] - sigma)
        return moved

    def second(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        slope = (latents - original) / self._inner[step]
        moved: FloatArray = self._start + slope * (self._sigmas[step + 1] - self._sigmas[step])
        return moved


class Dpm2AncestralScheduler(Dpm2Scheduler):
    """diffusers' KDPM2AncestralDiscreteScheduler: draws noise at the second call of a step. See `Scheduler`."""

    base_name: ClassVar[str] = "dpm2_a"

    def inner(self, sigmas: FloatArray) -> FloatArray:
        downs = [ancestral(*pair)[0] for pair in pairwise(sigmas)]
        return midways(sigmas[:-1], np.array(downs, dtype=np.float32))

    def second(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma = self._sigmas[step]
        down, up = ancestral(sigma, self._sigmas[step + 1])
        moved: FloatArray = self._start + (latents - original) / self._inner[step] * (down - sigma)
        return noised_by(moved, generator.normal(latents.shape), up)
