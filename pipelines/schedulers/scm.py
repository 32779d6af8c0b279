"""Consistency models in trigonometric flow, as Sana-Sprint is: Chen et al., arXiv 2503.09641.

x_t = cos(t) x_0 + sin(t) noise, with t from pi/2 down to 0 (Lu and Song, arXiv 2410.11081). The transformer was trained
by flow matching, x_s = (1 - s) x_0 + s noise, so it is asked at s = sin(t) / (cos(t) + sin(t)) about latents of that
process, and its answer is made into a slope of this one (arXiv 2503.09641, section 3.1). In diffusers that is done
around the scheduler, by SanaSprintPipeline; here it is all in one place.

diffusers multiplies its latents by sigma_data and divides what it decodes by it; it cancels out, and is left out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..random import Generator
from .base import FloatArray, GivenSigmas, Settings, check_steps, refuse_sigmas
from .options import settings_from_config

PREDICTION = "trigflow"
FIRST, BETWEEN = 1.5708, 1.3  # t of the first call, and of the second of two: the defaults of SanaSprintPipeline


@dataclass(frozen=True, kw_only=True)
class ScmSettings(Settings):
    """Options of diffusers' SCMScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {**Settings.choices, "prediction_type": (PREDICTION,)}

    prediction_type: str = PREDICTION


def is_trigflow(config: Mapping[str, Any]) -> bool:
    """Whether these scheduler options are those of a model in trigonometric flow."""
    return config.get("_class_name") == "SCMScheduler" or config.get("prediction_type") == PREDICTION


class ScmScheduler:
    """diffusers' SCMScheduler, with what SanaSprintPipeline does around it. See `Scheduler` for shapes.

    Every step draws noise, also the last, where it counts nothing.
    """

    name = "scm"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(ScmSettings, config, self.name)
        self._angles: npt.NDArray[np.float32] = np.zeros(1, dtype=np.float32)
        self.timesteps: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        angles = [FIRST, BETWEEN, 0.0] if steps == 2 else np.linspace(FIRST, 0.0, steps + 1)
        self._angles = np.asarray(angles, dtype=np.float32)
        sines, cosines = np.sin(self._angles[:-1]), np.cos(self._angles[:-1])
        self.timesteps = sines / (cosines + sines)

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        scaled: FloatArray = latents * _length(self.timesteps[index])
        return scaled

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        s, now, then = self.timesteps[index], self._angles[index], self._angles[index + 1]
        asked = self.scale_model_input(latents, index)
        turned = (1 - 2 * s) * asked + (1 - 2 * s + 2 * s * s) * model_output
        original = np.cos(now) * latents - np.sin(now) * (turned / _length(s))
        moved: FloatArray = np.cos(then) * original + np.sin(then) * generator.normal(latents.shape)
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        noised: FloatArray = np.cos(self._angles[index]) * latents + np.sin(self._angles[index]) * noise
        return noised


def _length(s: np.float32) -> np.float32:
    """What x_t is multiplied by to be x_s."""
    length: np.float32 = np.sqrt(s * s + (1 - s) * (1 - s))
    return length
