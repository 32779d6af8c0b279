"""Latent consistency models: Luo et al., arXiv 2310.04378."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..random import Generator
from .base import FloatArray, noised, predicted_original
from .distilled import DistilledScheduler, DistilledSettings

SIGMA_DATA = np.float32(0.5)  # standard deviation of the data in the boundary condition, arXiv 2303.01469, appendix C


@dataclass(frozen=True, kw_only=True)
class LcmSettings(DistilledSettings):
    """Options of diffusers' LCMScheduler."""

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_scaling: float = 10.0


class LcmScheduler(DistilledScheduler[LcmSettings]):
    """diffusers' LCMScheduler. See `Scheduler` for shapes."""

    name = "lcm"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(LcmSettings, config)

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Multistep consistency sampling: arXiv 2310.04378, algorithm 3. The last step draws no noise."""
        timestep = self.timesteps[index]
        level = self._alphas[timestep]
        alpha_t, sigma_t = np.sqrt(level), np.sqrt(np.float32(1.0) - level)
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_t, sigma_t)
        if self.settings.clip_sample:
            original = np.clip(original, -self.settings.clip_sample_range, self.settings.clip_sample_range)

        scaled = np.float32(timestep) * np.float32(self.settings.timestep_scaling)
        keep = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        take = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
        denoised: FloatArray = take * original + keep * latents
        if index == len(self.timesteps) - 1:
            return denoised
        return noised(denoised, generator.normal(model_output.shape), self._alphas[self.timesteps[index + 1]])
