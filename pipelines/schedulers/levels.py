"""The timesteps and noise levels of a run, for schedulers that count in sigmas.

Two kinds: k-diffusion's samplers visit the clean end as their last level, so their levels reach down to the least
noisy timestep; multistep solvers stop one level above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import FloatArray, Settings
from .spacing import Float64Array, inner_timesteps, karras_sigmas, sigmas_at, spaced_timesteps, timesteps_of_sigmas


@dataclass(frozen=True, kw_only=True)
class SigmaSettings(Settings):
    """What the schedulers have in common that count in sigmas; a class adds sigma_min and sigma_max where it has them.

    Exponential levels and those of a beta distribution are not supported.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Settings.choices,
        "use_exponential_sigmas": (False,),
        "use_beta_sigmas": (False,),
    }

    timestep_spacing: str = "linspace"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False


@dataclass(frozen=True, kw_only=True)
class RangedSettings(SigmaSettings):
    """The same with ends for Karras' levels; diffusers reads them wherever another class's options bring them along."""

    sigma_min: float | None = None
    sigma_max: float | None = None


def outer_levels(
    settings: SigmaSettings, table: FloatArray, steps: int, *, whole: bool = False
) -> tuple[Float64Array, Float64Array]:
    """Timesteps and noise levels as k-diffusion's samplers visit them, both float64 [steps].

    Args:
        table: noise level of each training timestep, float32 [num_train_timesteps].
        whole: round the timesteps of Karras' levels.
    """
    timesteps = spaced_timesteps(settings, steps).astype(np.float32).astype(np.float64)
    sigmas = sigmas_at(timesteps, table)
    if not settings.use_karras_sigmas:
        return timesteps, sigmas
    sigmas = karras_sigmas(*_ends(settings, float(sigmas[-1]), float(sigmas[0])), steps)
    exact = timesteps_of_sigmas(sigmas, table).astype(np.float64)
    return exact.round() if whole else exact, sigmas


def inner_levels(
    settings: SigmaSettings, table: FloatArray, steps: int, *, visited: int | None = None, whole: bool = True
) -> tuple[npt.NDArray[np.int64], Float64Array]:
    """Timesteps, int64 [steps], and noise levels, float64 [steps], as multistep solvers visit them.

    Args:
        table: noise level of each training timestep, float32 [num_train_timesteps].
        visited: one past the noisiest training timestep to visit; None for all of them.
        whole: round the timesteps of Karras' levels; otherwise they are cut.
    """
    timesteps = inner_timesteps(settings, steps, visited)
    sigmas = sigmas_at(timesteps, table)
    if not settings.use_karras_sigmas:
        return timesteps, sigmas
    sigmas = karras_sigmas(*_ends(settings, float(table[0]), float(table[-1])), steps)
    exact = timesteps_of_sigmas(sigmas, table)
    return (exact.round() if whole else exact).astype(np.int64), sigmas


def name_of(base: str, settings: SigmaSettings) -> str:
    """The name of a scheduler with these levels."""
    return f"{base}_karras" if settings.use_karras_sigmas else base


def _ends(settings: SigmaSettings, low: float, high: float) -> tuple[float, float]:
    """The least and the highest of Karras' levels: the settings' own, or those given."""
    if isinstance(settings, RangedSettings):
        low = settings.sigma_min if settings.sigma_min is not None else low
        high = settings.sigma_max if settings.sigma_max is not None else high
    return low, high
