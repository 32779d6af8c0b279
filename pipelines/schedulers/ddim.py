"""DDIM without added noise (eta = 0): Song, Meng and Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502."""

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
    check_steps,
    check_timesteps,
    noised,
    predicted_original,
    refuse_sigmas,
)
from .options import settings_from_config
from .spacing import spaced_timesteps


@dataclass(frozen=True, kw_only=True)
class DdimSettings(Settings):
    """Options of diffusers' DDIMScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {**Settings.choices, "thresholding": (False,)}

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    thresholding: bool = False


class DdimScheduler:
    """diffusers' DDIMScheduler with eta = 0. See `Scheduler` for shapes."""

    name = "ddim"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(DdimSettings, config, self.name)
        self._alphas = alphas_cumprod(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self._final_alpha = np.float32(1.0) if self.settings.set_alpha_to_one else self._alphas[0]
        self._stride = 0
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps = spaced_timesteps(self.settings, steps).round().astype(np.int64)
        check_timesteps(timesteps, self._alphas, self.settings)
        self.timesteps = timesteps
        self._stride = self.settings.num_train_timesteps // steps

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Equation 12 of the paper with sigma_t = 0."""
        timestep = int(self.timesteps[index])
        previous = timestep - self._stride
        level = self._alphas[timestep]
        previous_level = self._alphas[previous] if previous >= 0 else self._final_alpha
        alpha_t, sigma_t = np.sqrt(level), np.sqrt(np.float32(1.0) - level)

        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_t, sigma_t)
        if self.settings.prediction_type == "epsilon":
            noise = model_output
        elif self.settings.prediction_type == "v_prediction":
            noise = alpha_t * model_output + sigma_t * latents
        else:
            noise = (latents - alpha_t * original) / sigma_t
        if self.settings.clip_sample:  # the noise stays the one of the unclipped x_0, as in diffusers
            original = np.clip(original, -self.settings.clip_sample_range, self.settings.clip_sample_range)
        return noised(original, noise, previous_level)

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised(latents, noise, self._alphas[self.timesteps[index]])
