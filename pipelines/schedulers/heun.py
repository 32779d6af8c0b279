"""Heun's method on the probability flow ODE: Karras et al., arXiv 2206.00364, algorithm 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..random import Generator
from .base import FloatArray
from .levels import RangedSettings, SigmaSettings
from .spacing import Float64Array
from .two_calls import TwoCallScheduler


@dataclass(frozen=True, kw_only=True)
class HeunSettings(RangedSettings):
    """Options of diffusers' HeunDiscreteScheduler."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    clip_sample: bool = False
    clip_sample_range: float = 1.0


class HeunScheduler(TwoCallScheduler):
    """diffusers' HeunDiscreteScheduler: the mean of the slopes at both ends of a step. See `Scheduler` for shapes."""

    base_name: ClassVar[str] = "heun"
    settings_type: ClassVar[type[SigmaSettings]] = HeunSettings
    settings: HeunSettings

    def inner(self, sigmas: FloatArray) -> FloatArray:
        return sigmas[1:]

    def inner_timesteps(self, timesteps: Float64Array, levels: Float64Array) -> Float64Array:
        return timesteps[1:]

    def original(self, model_output: FloatArray, latents: FloatArray, sigma: np.float32) -> FloatArray:
        original = super().original(model_output, latents, sigma)
        if not self.settings.clip_sample:
            return original
        return np.clip(original, -self.settings.clip_sample_range, self.settings.clip_sample_range)

    def first(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma = self._sigmas[step]
        self._start, self._slope = latents, (latents - original) / sigma
        moved: FloatArray = latents + self._slope * (self._sigmas[step + 1] - sigma)
        return moved

    def second(self, original: FloatArray, step: int, latents: FloatArray, generator: Generator) -> FloatArray:
        mean = (self._slope + (latents - original) / self._inner[step]) / np.float32(2)
        moved: FloatArray = self._start + mean * (self._sigmas[step + 1] - self._sigmas[step])
        return moved
