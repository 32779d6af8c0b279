"""Which timesteps and noise levels a run visits.

The spacings are those of Lin et al., arXiv 2305.08891, table 2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from .base import FloatArray, Settings

Float64Array = npt.NDArray[np.float64]

RHO = 7.0  # arXiv 2206.00364, section "Discretization": 5 to 10, and 7 in the paper's samplers


def spaced_timesteps(settings: Settings, steps: int) -> Float64Array:
    """`steps` timesteps from noisy to clean, float64 [steps]; linspace gives fractions, the others whole numbers."""
    train = settings.num_train_timesteps
    if settings.timestep_spacing == "linspace":
        return np.linspace(0, train - 1, steps)[::-1]
    if settings.timestep_spacing == "leading":
        return np.arange(steps, dtype=np.float64)[::-1] * (train // steps) + settings.steps_offset
    return _trailing(train, train, steps)


def inner_timesteps(settings: Settings, steps: int, train_last: int | None = None) -> npt.NDArray[np.int64]:
    """`steps` timesteps for solvers that treat the clean end as a point of its own: int64 [steps], from noisy to clean.

    Args:
        settings: names the spacing.
        steps: how many.
        train_last: one past the noisiest training timestep to visit; None for all of them.
    """
    train = settings.num_train_timesteps
    last = train if train_last is None else train_last
    if settings.timestep_spacing == "linspace":
        points = np.linspace(0, last - 1, steps + 1).round()[:0:-1]
    elif settings.timestep_spacing == "leading":
        points = np.arange(steps, 0, -1, dtype=np.float64) * (last // (steps + 1)) + settings.steps_offset
    else:
        points = _trailing(train, last, steps)
    return points.astype(np.int64)


def sigmas_at(timesteps: npt.NDArray[np.float64] | npt.NDArray[np.int64], table: FloatArray) -> Float64Array:
    """Noise levels at timesteps, fractions between those of training: float64 [steps]."""
    return np.interp(timesteps, np.arange(len(table)), table)


def karras_sigmas(low: float, high: float, steps: int) -> Float64Array:
    """Noise levels from `high` to `low`, float64 [steps]: arXiv 2206.00364, equation 5."""
    ramp = np.linspace(0, 1, steps)
    start, end = high ** (1 / RHO), low ** (1 / RHO)
    sigmas: Float64Array = (start + ramp * (end - start)) ** RHO
    return sigmas


def timesteps_of_sigmas(sigmas: Float64Array | FloatArray, table: FloatArray) -> Float64Array | FloatArray:
    """The training timesteps with these noise levels, [steps], linear in the logarithm between two of them.

    In the precision of `sigmas`, which is what the last digits then agree with.
    """
    log_table = np.log(table)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_table, log_sigmas, side="right") - 1, 0, len(table) - 2)
    # The difference of two table entries stays float32, as in diffusers: rounding to whole timesteps is sensitive.
    share = np.clip((log_table[low] - log_sigmas) / (log_table[low] - log_table[low + 1]), 0, 1)
    first = low.astype(share.dtype)
    timesteps: Float64Array | FloatArray = (1 - share) * first + share * (first + 1)
    return timesteps


def with_final(sigmas: Float64Array, final: float | np.float32) -> FloatArray:
    """The levels a multistep solver visits and the one it ends at: float32 [steps + 1].

    Raises:
        BadInput: two of the levels visited are the same, so that a step between them has no length.
    """
    levels = np.append(sigmas, final).astype(np.float32)
    if (np.diff(levels[:-1]) >= 0).any():
        raise BadInput(
            f"{len(sigmas)} steps are too many for this scheduler: some fall on the same noise level.",
            "Give fewer steps.",
        )
    return levels


def _trailing(train: int, last: int, steps: int) -> Float64Array:
    """Timesteps that end each of `steps` equal parts. Cut to `steps`: 1000 / (1000 / 61) is a little over 61."""
    points: Float64Array = np.arange(last, 0, -(train / steps)).round()[:steps] - 1
    return points
