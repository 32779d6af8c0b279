"""Schedulers of models that were distilled to few steps: their options, timesteps and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from .base import (
    FloatArray,
    GivenSigmas,
    Settings,
    alphas_cumprod,
    check_steps,
    check_timesteps,
    noised,
    refuse_sigmas,
)
from .options import settings_from_config


@dataclass(frozen=True, kw_only=True)
class DistilledSettings(Settings):
    """Options of both; they have their own timesteps, so timestep_spacing and steps_offset do nothing."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {**Settings.choices, "thresholding": (False,)}

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    original_inference_steps: int = 50
    rescale_betas_zero_snr: bool = False
    thresholding: bool = False


S = TypeVar("S", bound=DistilledSettings)


class DistilledScheduler(Generic[S]):
    """What the schedulers of distilled models share: timesteps of those that a model was distilled on, and noise."""

    name: ClassVar[str]
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, kind: type[S], config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(kind, config, self.name)
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

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        return noised(latents, noise, self._alphas[self.timesteps[index]])


def check_original(original: int, settings: Settings, name: str) -> None:
    """Raises BadInput where a model cannot have been distilled on `original` timesteps."""
    if not 1 <= original <= settings.num_train_timesteps:
        raise BadInput(
            f"original_inference_steps={original} of the scheduler {name!r} is not between 1 and "
            f"{settings.num_train_timesteps}.",
            "Correct scheduler_config.json.",
        )


def distilled_timesteps(original: int, settings: Settings, steps: int) -> npt.NDArray[np.int64]:
    """`steps` of the `original` timesteps that a model was distilled on, evenly spread, from noisy to clean: int64.

    Raises:
        BadInput: `steps` is more than `original` or out of range.
    """
    train = settings.num_train_timesteps
    check_steps(steps, train)
    if steps > original:
        raise BadInput(
            f"{steps} steps are more than the {original} the model was distilled on (original_inference_steps).",
            f"Give 1 to {original} steps; 4 to 8 are usual.",
        )
    distilled = np.arange(original, 0, -1, dtype=np.int64) * (train // original) - 1
    return distilled[np.linspace(0, original, steps, endpoint=False).astype(np.int64)]
