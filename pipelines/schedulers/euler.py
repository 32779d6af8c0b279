"""Euler's method on the probability flow ODE, and its ancestral form.

Karras et al., arXiv 2206.00364, algorithm 1 without the second order part; the ancestral form is DDPM's noise put into
that view, as in k-diffusion's sample_euler_ancestral with eta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..random import Generator
from .base import FloatArray, GivenSigmas, Settings, check_steps, finite_sigmas, refuse_sigmas
from .levels import RangedSettings, name_of, outer_levels
from .options import settings_from_config
from .spacing import sigmas_at, spaced_timesteps


@dataclass(frozen=True, kw_only=True)
class EulerSettings(RangedSettings):
    """Options of diffusers' EulerDiscreteScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **RangedSettings.choices,
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    rescale_betas_zero_snr: bool = False
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    final_sigmas_type: str = "zero"


@dataclass(frozen=True, kw_only=True)
class EulerAncestralSettings(Settings):
    """Options of diffusers' EulerAncestralDiscreteScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Settings.choices,
        "prediction_type": ("epsilon", "v_prediction"),
    }

    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False


class EulerScheduler:
    """diffusers' EulerDiscreteScheduler with s_churn = 0. See `Scheduler` for shapes.

    Its latents are x_0 + sigma noise, not variance preserving: they start at init_noise_sigma and the denoiser gets
    them scaled.

    Args:
        config: the content of scheduler_config.json.
        overrides: options that win over it.
    """

    order = 1

    def __init__(self, config: Mapping[str, Any], **overrides: Any) -> None:
        self.settings = settings_from_config(EulerSettings, config, "euler", **overrides)
        self.name = name_of("euler", self.settings)
        self._table = finite_sigmas(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self._sigmas = self._table[::-1]
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    @property
    def init_noise_sigma(self) -> float:
        return initial_sigma(self._sigmas, self.settings)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps, levels = outer_levels(self.settings, self._table, steps)
        final = self._table[0] if self.settings.final_sigmas_type == "sigma_min" else 0.0
        self._sigmas = np.append(levels, final).astype(np.float32)
        self.timesteps = timesteps.astype(np.float32)

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return unit_variance(latents, self._sigmas[index])

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma, next_sigma = self._sigmas[index], self._sigmas[index + 1]
        original = denoised(self.settings.prediction_type, model_output, latents, sigma)
        moved: FloatArray = latents + (latents - original) / sigma * (next_sigma - sigma)
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised_by(latents, noise, self._sigmas[index])


class EulerAncestralScheduler:
    """diffusers' EulerAncestralDiscreteScheduler: every step goes too far down and noise brings it back up.

    See `Scheduler` for shapes; draws noise at every step, also at the last, where it counts nothing.
    """

    name = "euler_a"
    order = 1

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(EulerAncestralSettings, config, self.name)
        self._table = finite_sigmas(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self._sigmas = self._table[::-1]
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    @property
    def init_noise_sigma(self) -> float:
        return initial_sigma(self._sigmas, self.settings)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps = spaced_timesteps(self.settings, steps).astype(np.float32)
        self._sigmas = np.append(sigmas_at(timesteps.astype(np.float64), self._table), 0.0).astype(np.float32)
        self.timesteps = timesteps

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return unit_variance(latents, self._sigmas[index])

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma = self._sigmas[index]
        original = denoised(self.settings.prediction_type, model_output, latents, sigma)
        down, up = ancestral(sigma, self._sigmas[index + 1])
        moved: FloatArray = latents + (latents - original) / sigma * (down - sigma)
        return noised_by(moved, generator.normal(model_output.shape), up)

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised_by(latents, noise, self._sigmas[index])


def denoised(prediction_type: str, model_output: FloatArray, latents: FloatArray, sigma: np.float32) -> FloatArray:
    """x_0 from latents x_0 + sigma noise and the output at their scaled form."""
    original = model_output
    if prediction_type == "epsilon":
        original = latents - sigma * model_output
    elif prediction_type == "v_prediction":
        variance = sigma * sigma + np.float32(1.0)
        original = model_output * (-sigma / np.sqrt(variance)) + latents / variance
    return original


def ancestral(sigma: np.float32, next_sigma: np.float32) -> tuple[np.float32, np.float32]:
    """How far down an ancestral step from `sigma` goes, and the noise that brings it back up to `next_sigma`.

    Variances add up: down^2 + up^2 = next^2, with up the noise of DDPM's posterior.
    """
    up: np.float32 = np.sqrt(next_sigma**2 * (sigma**2 - next_sigma**2) / sigma**2)
    down: np.float32 = np.sqrt(next_sigma**2 - up**2)
    return down, up


def unit_variance(latents: FloatArray, sigma: np.float32) -> FloatArray:
    """Latents x_0 + sigma noise in the variance preserving scale that the denoiser was trained with."""
    scaled: FloatArray = latents / np.sqrt(sigma * sigma + np.float32(1.0))
    return scaled


def noised_by(latents: FloatArray, noise: FloatArray, sigma: np.float32) -> FloatArray:
    """Latents with noise of standard deviation `sigma` on top; `noise` has unit variance."""
    return latents + noise * sigma


def initial_sigma(sigmas: FloatArray, settings: Settings) -> float:
    """Standard deviation of pure noise at the first step; with leading spacing the image's own is counted in."""
    highest = sigmas.max()
    if settings.timestep_spacing == "leading":
        highest = np.sqrt(highest * highest + np.float32(1.0))
    return float(highest)
