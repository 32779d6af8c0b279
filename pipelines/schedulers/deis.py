"""DEIS, a multistep exponential integrator, in its log-rho form: Zhang and Chen, arXiv 2204.13902, section 3.

rho = sigma_t / alpha_t is the noise level; the predicted noise is a polynomial in log rho through the last outputs.
"""

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
    alpha_sigma,
    check_index,
    check_steps,
    finite_sigmas,
    predicted_original,
    refuse_sigmas,
)
from .levels import RangedSettings, inner_levels, name_of
from .options import settings_from_config
from .spacing import with_final

FEW_STEPS = 15  # below this, lower_order_final takes the last steps at lower orders


@dataclass(frozen=True, kw_only=True)
class DeisSettings(RangedSettings):
    """Options of diffusers' DEISMultistepScheduler, but for flow matching, where its last step has no length."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **RangedSettings.choices,
        "solver_order": (1, 2, 3),
        "algorithm_type": ("deis",),
        "solver_type": ("logrho",),
        "thresholding": (False,),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
    }
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {
        "algorithm_type": {"dpmsolver": "deis", "dpmsolver++": "deis"},
        "solver_type": {"midpoint": "logrho", "heun": "logrho", "bh1": "logrho", "bh2": "logrho"},
    }

    solver_order: int = 2
    algorithm_type: str = "deis"
    solver_type: str = "logrho"
    lower_order_final: bool = True
    thresholding: bool = False
    use_flow_sigmas: bool = False
    use_dynamic_shifting: bool = False


class DeisScheduler:
    """diffusers' DEISMultistepScheduler of order 1 to 3. See `Scheduler` for shapes.

    It ends at the least noisy level, not at zero, as in diffusers.

    Args:
        config: the content of scheduler_config.json.
        overrides: options that win over it.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], **overrides: Any) -> None:
        self.settings = settings_from_config(DeisSettings, config, "deis", **overrides)
        self.name = name_of("deis", self.settings)
        self._table = finite_sigmas(self.settings, zero_snr=False)
        self._sigmas = self._table[::-1]
        self._noises: list[FloatArray] = []  # as the last outputs said it, the newest first
        self._last_index: int | None = None
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        refuse_sigmas(sigmas, self.name)
        check_steps(steps, self.settings.num_train_timesteps)
        timesteps, levels = inner_levels(self.settings, self._table, steps)
        self._sigmas = with_final(levels, levels[-1] if self.settings.use_karras_sigmas else self._table[0])
        self.timesteps = timesteps
        self._noises, self._last_index = [], None

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """rhoAB-DEIS of the paper, with its integrals in closed form."""
        check_index(index, self._last_index)
        self._last_index = index
        alpha_s, sigma_s = alpha_sigma(self._sigmas[index])
        alpha_t, _ = alpha_sigma(self._sigmas[index + 1])
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_s, sigma_s)
        noise: FloatArray = latents - alpha_s * original
        noise = noise / sigma_s
        self._noises = [noise, *self._noises[: self.settings.solver_order - 1]]

        order = min(len(self._noises), self._highest_order(index))
        visited = self._sigmas[index - order + 1 : index + 1][::-1]
        moved = latents / alpha_s
        for weight, past in zip(_weights(visited, self._sigmas[index + 1]), self._noises, strict=False):
            moved = moved + weight * past
        return alpha_t * moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        alpha_t, sigma_t = alpha_sigma(self._sigmas[index])
        noised: FloatArray = alpha_t * latents + sigma_t * noise
        return noised

    def _highest_order(self, index: int) -> int:
        """1 for the last step and 2 for the one before it, where there are few."""
        left = len(self.timesteps) - index
        few = self.settings.lower_order_final and len(self.timesteps) < FEW_STEPS
        return min(left, self.settings.solver_order) if few else self.settings.solver_order


def _weights(visited: FloatArray, end: np.float32) -> FloatArray:
    """The integrals over rho of Lagrange's polynomials in log rho, from the newest of `visited` to `end`.

    Args:
        visited: levels, the newest first, float32 [order].
    """
    logs = np.log(visited.astype(np.float64))
    start, stop = float(visited[0]), float(end)
    weights = []
    for own, log in enumerate(logs):
        others = np.delete(logs, own)
        basis = np.poly1d(others, r=True) / np.prod(log - others)
        # the integral of p(log rho) over rho is rho times p - p' + p'' of log rho
        rising = basis - basis.deriv() + basis.deriv(2)
        weights.append(stop * rising(np.log(stop)) - start * rising(logs[0]))
    return np.array(weights, dtype=np.float32)
