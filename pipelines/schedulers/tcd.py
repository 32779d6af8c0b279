"""Trajectory consistency distillation: Zheng et al., arXiv 2402.19159."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..random import Generator
from .base import FloatArray, noised, predicted_original
from .distilled import DistilledScheduler, DistilledSettings

GAMMA = 0.3  # share of randomness; diffusers calls it eta, and its scheduler has this default


@dataclass(frozen=True, kw_only=True)
class TcdSettings(DistilledSettings):
    """Options of diffusers' TCDScheduler.

    clip_sample, set_alpha_to_one and timestep_scaling, which it knows and never reads, do nothing.
    """


class TcdScheduler(DistilledScheduler[TcdSettings]):
    """diffusers' TCDScheduler with eta = 0.3. See `Scheduler` for shapes."""

    name = "tcd"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(TcdSettings, config)

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Strategic stochastic sampling, as the paper calls it. The last step draws no noise."""
        last = index == len(self.timesteps) - 1
        level = self._alphas[self.timesteps[index]]
        previous = 0 if last else int(self.timesteps[index + 1])
        # further than the next timestep, to where noise brings the latents back from
        further = self._alphas[int(np.floor(np.float32(1 - GAMMA) * np.float32(previous)))]
        alpha_t, sigma_t = np.sqrt(level), np.sqrt(np.float32(1.0) - level)
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_t, sigma_t)
        if self.settings.prediction_type == "epsilon":
            noise = model_output
        elif self.settings.prediction_type == "v_prediction":
            noise = alpha_t * model_output + sigma_t * latents
        else:
            noise = (latents - alpha_t * original) / sigma_t
        moved = noised(original, noise, further)
        if last:
            return moved
        return noised(moved, generator.normal(model_output.shape), self._alphas[previous] / further)
