"""Euler's and Heun's method for flow matching: the model's output is the slope of the latents over sigma.

Esser et al., arXiv 2403.03206 (Stable Diffusion 3), section 2; Heun's as in arXiv 2206.00364, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from ..random import Generator
from .base import FloatArray, GivenSigmas, check_index, check_steps
from .flow import FLOW, Levels, ShiftSettings, shifted, stretched
from .options import settings_from_config
from .spacing import karras_sigmas


@dataclass(frozen=True, kw_only=True)
class FlowMatchSettings(ShiftSettings):
    """Options of diffusers' FlowMatchEulerDiscreteScheduler, but for those of diffusion models."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **ShiftSettings.choices,
        "prediction_type": (FLOW,),
        "invert_sigmas": (False,),
        "use_exponential_sigmas": (False,),
        "use_beta_sigmas": (False,),
    }

    prediction_type: str = FLOW
    shift: float = 1.0
    shift_terminal: float | None = None
    invert_sigmas: bool = False
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    stochastic_sampling: bool = False


@dataclass(frozen=True, kw_only=True)
class FlowHeunSettings(FlowMatchSettings):
    """Those of diffusers' FlowMatchHeunDiscreteScheduler, which knows `shift` alone, and of its neighbour's levels."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **FlowMatchSettings.choices,
        "stochastic_sampling": (False,),
    }


class FlowEulerScheduler:
    """diffusers' FlowMatchEulerDiscreteScheduler. See `Scheduler` for shapes.

    With stochastic_sampling every step goes to x_0 and draws new noise, also the last, where it counts nothing.
    """

    name = "flow_euler"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(FlowMatchSettings, config, self.name)
        self._sigmas = np.ones(1, dtype=np.float32)
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        levels = _levels(self.settings, steps, sigmas, tokens, self.name)
        self._sigmas = np.append(levels, np.float32(0.0))
        self.timesteps = levels * np.float32(self.settings.num_train_timesteps)

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        sigma, next_sigma = self._sigmas[index], self._sigmas[index + 1]
        if not self.settings.stochastic_sampling:
            moved: FloatArray = latents + (next_sigma - sigma) * model_output
            return moved
        return mixed(latents - sigma * model_output, generator.normal(latents.shape), next_sigma)

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return mixed(latents, noise, self._sigmas[index])


class FlowHeunScheduler:
    """diffusers' FlowMatchHeunDiscreteScheduler with s_churn = 0. See `Scheduler` for shapes.

    Two calls a step but for the last one, as in `two_calls.py`. Its levels are those of `FlowEulerScheduler`, so it
    shifts dynamically where the model wants that; diffusers' has the fixed shift alone, and then they are the same.
    """

    name = "flow_heun"
    order = 2
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(FlowHeunSettings, config, self.name)
        self._sigmas = np.ones(1, dtype=np.float32)
        self._start = self._slope = np.empty(0, dtype=np.float32)  # of the step
        self._last_index: int | None = None
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        levels = _levels(self.settings, steps, sigmas, tokens, self.name)
        self._sigmas = np.append(levels, np.float32(0.0))
        self.timesteps = np.repeat(levels, 2)[1:] * np.float32(self.settings.num_train_timesteps)
        self._last_index = None

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        check_index(index, self._last_index, self.order)
        self._last_index = index
        step, second = divmod(index, 2)
        length = self._sigmas[step + 1] - self._sigmas[step]
        slope = model_output
        if second:
            slope = np.float32(0.5) * (self._slope + model_output)
        else:
            self._start, self._slope = latents, model_output
        moved: FloatArray = self._start + length * slope
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return mixed(latents, noise, self._sigmas[(index + 1) // 2])


def mixed(latents: FloatArray, noise: FloatArray, sigma: np.float32) -> FloatArray:
    """x_t = (1 - sigma) x_0 + sigma noise."""
    latents_t: FloatArray = sigma * noise + (np.float32(1.0) - sigma) * latents
    return latents_t


def _levels(settings: FlowMatchSettings, steps: int, given: GivenSigmas, tokens: int | None, name: str) -> FloatArray:
    """The noise levels that the steps of a run start from, falling: float32 [steps].

    Without `given` they are even between the ends of training, which are shifted themselves where the shift is fixed.
    """
    train = settings.num_train_timesteps
    check_steps(steps, train)
    levels: Levels
    if given is None:
        ends: Levels = np.array([train, 1], dtype=np.float32) / np.float32(train)
        if not settings.use_dynamic_shifting:
            ends = shifted(ends, settings, settings.shift, tokens, name)
        levels = np.linspace(float(ends[0]) * train, float(ends[1]) * train, steps) / train
    else:
        if len(given) != steps:
            raise BadInput(f"{len(given)} noise levels were given for {steps} steps.", "Give one for each step.")
        levels = given.astype(np.float32)
    levels = stretched(shifted(levels, settings, settings.shift, tokens, name), settings.shift_terminal)
    if settings.use_karras_sigmas:
        levels = karras_sigmas(float(levels[-1]), float(levels[0]), steps)
    return levels.astype(np.float32)
