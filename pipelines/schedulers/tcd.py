"""Trajectory consistency distillation: Zheng et al., arXiv 2402.19159."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..random import Generator
from .base import (
    FloatArray,
    GivenSigmas,
    Settings,
    alphas_cumprod,
    check_timesteps,
    noised,
    predicted_original,
    refuse_sigmas,
)
from .lcm import check_original, distilled_timesteps
from .options import settings_from_config

GAMMA = 0.3  # share of randomness; diffusers calls it eta, and its scheduler has this default


@dataclass(frozen=True, kw_only=True)
class TcdSettings(Settings):
    """Options of diffusers' TCDScheduler; it has its own timesteps, so timestep_spacing and steps_offset do nothing.

    Nor do clip_sample, set_alpha_to_one and timestep_scaling, which it knows and never reads.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {**Settings.choices, "thresholding": (False,)}

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    rescale_betas_zero_snr: bool = False
    thresholding: bool = False


class TcdScheduler:
    """diffusers' TCDScheduler with eta = 0.3. See `Scheduler` for shapes."""

    name = "tcd"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(TcdSettings, config, self.name)
        check_original(self.settings.original_inference_steps, self.settings, self.name)
        self._alphas = alphas_cumprod(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        """`steps` of the timesteps that the model was distilled on, evenly spread."""
        refuse_sigmas(sigmas, self.name)
        timesteps = distilled_timesteps(self.settings.original_inference_steps, self.settings, steps)
        check_timesteps(timesteps, self._alphas, self.settings)
        self.timesteps = timesteps

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

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

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised(latents, noise, self._alphas[self.timesteps[index]])
