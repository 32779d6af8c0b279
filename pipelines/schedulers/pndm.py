"""PLMS, the multistep half of PNDM: Liu et al., "Pseudo Numerical Methods for Diffusion Models", arXiv 2202.09778."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from ..random import Generator
from .base import (
    FloatArray,
    GivenSigmas,
    Settings,
    alphas_cumprod,
    check_index,
    check_steps,
    check_timesteps,
    noised,
    refuse_sigmas,
)
from .options import settings_from_config
from .spacing import spaced_timesteps


@dataclass(frozen=True, kw_only=True)
class PndmSettings(Settings):
    """Options of diffusers' PNDMScheduler; the Runge-Kutta start (skip_prk_steps=False) is not supported."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Settings.choices,
        "prediction_type": ("epsilon", "v_prediction"),
    }

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False


@dataclass
class _Run:
    """What a run keeps between two steps."""

    outputs: list[FloatArray] = field(default_factory=list)  # at most four, the newest last
    first_latents: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    calls: int = 0
    last_index: int | None = None


class PndmScheduler:
    """diffusers' PNDMScheduler with skip_prk_steps. See `Scheduler` for shapes.

    `steps` steps are `steps + 1` model calls where there are at least two.
    """

    name = "pndm"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(PndmSettings, config, self.name)
        if not self.settings.skip_prk_steps:
            raise BadInput(
                "The scheduler 'pndm' is not supported with skip_prk_steps=False, which is also its default.",
                "Supported: true. Set it in scheduler_config.json or choose another scheduler.",
            )
        self._alphas = alphas_cumprod(self.settings)
        self._final_alpha = np.float32(1.0) if self.settings.set_alpha_to_one else self._alphas[0]
        self._stride = 0
        self._run = _Run()
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps = spaced_timesteps(self.settings, steps).round().astype(np.int64)
        check_timesteps(timesteps, self._alphas, self.settings)
        # The second timestep comes twice: the first step is taken again with the mean of the outputs at both its ends.
        self.timesteps = np.concatenate([timesteps[:2], timesteps[1:]])
        self._stride = self.settings.num_train_timesteps // steps
        self._run = _Run()

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Adams-Bashforth over the last four outputs: equations 9 and 12 of the paper."""
        run = self._run
        check_index(index, run.last_index)
        run.last_index = index
        timestep = int(self.timesteps[index])
        run.calls += 1
        if run.calls == 2:  # the first step once more
            mean = (model_output + run.outputs[-1]) / np.float32(2)
            return self._transfer(run.first_latents, timestep + self._stride, timestep, mean)
        if run.calls == 1:
            run.first_latents = latents
        run.outputs = [*run.outputs[-3:], model_output]
        return self._transfer(latents, timestep, timestep - self._stride, _adams_bashforth(run.outputs))

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised(latents, noise, self._alphas[self.timesteps[index]])

    def _transfer(self, latents: FloatArray, timestep: int, previous: int, output: FloatArray) -> FloatArray:
        """Latents from `timestep` to `previous`: equation 9 of the paper."""
        level = self._alphas[timestep]
        previous_level = self._alphas[previous] if previous >= 0 else self._final_alpha
        rest, previous_rest = np.float32(1.0) - level, np.float32(1.0) - previous_level
        if self.settings.prediction_type == "v_prediction":
            output = np.sqrt(level) * output + np.sqrt(rest) * latents
        divisor = level * np.sqrt(previous_rest) + np.sqrt(level * rest * previous_level)
        moved: FloatArray = np.sqrt(previous_level / level) * latents - (previous_level - level) * output / divisor
        return moved


# Weights of the Adams-Bashforth methods of order 1 to 4, for outputs from the oldest to the newest.
ADAMS_BASHFORTH = ((1.0,), (-1 / 2, 3 / 2), (5 / 12, -16 / 12, 23 / 12), (-9 / 24, 37 / 24, -59 / 24, 55 / 24))


def _adams_bashforth(outputs: list[FloatArray]) -> FloatArray:
    """The output to step with, from one to four past outputs, the newest last."""
    weights = ADAMS_BASHFORTH[len(outputs) - 1]
    total = np.zeros_like(outputs[0])
    for weight, output in zip(weights, outputs, strict=True):
        total += np.float32(weight) * output
    return total
