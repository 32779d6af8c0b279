"""DPM-Solver++(2M), second order multistep, midpoint: Lu et al., arXiv 2211.01095, algorithm 2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from ..random import Generator
from .base import (
    FloatArray,
    Settings,
    alpha_sigma,
    check_index,
    check_steps,
    finite_sigmas,
    log_snr,
    predicted_original,
)
from .options import settings_from_config
from .spacing import inner_timesteps, karras_sigmas, sigmas_at, timesteps_of_sigmas, with_final

FEW_STEPS = 15  # below this, lower_order_final takes the last step at first order


@dataclass(frozen=True, kw_only=True)
class DpmSolverSettings(Settings):
    """Options of diffusers' DPMSolverMultistepScheduler.

    It reads sigma_min and sigma_max where another class's options bring them along, though it has none of its own.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Settings.choices,
        "solver_order": (1, 2),
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint",),
        "final_sigmas_type": ("zero", "sigma_min"),
        "thresholding": (False,),
        "use_exponential_sigmas": (False,),
        "use_beta_sigmas": (False,),
        "use_lu_lambdas": (False,),
        "use_flow_sigmas": (False,),
        "use_dynamic_shifting": (False,),
    }
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {"variance_type": ("learned", "learned_range")}
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }

    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    variance_type: str | None = None
    thresholding: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    use_dynamic_shifting: bool = False


@dataclass
class _Run:
    """What a run keeps between two steps."""

    original: FloatArray | None = None  # x_0 as the last output said it
    last_index: int | None = None


class DpmSolverScheduler:
    """diffusers' DPMSolverMultistepScheduler, dpmsolver++ of order 1 or 2. See `Scheduler` for shapes."""

    overrides: ClassVar[Mapping[str, Any]] = {}
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.settings = settings_from_config(DpmSolverSettings, config, "dpmpp_2m", **self.overrides)
        self.name = "dpmpp_2m_karras" if self.settings.use_karras_sigmas else "dpmpp_2m"
        self._table = finite_sigmas(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self._sigmas = self._table[::-1]
        self._run = _Run()
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int) -> None:
        check_steps(steps, self.settings.num_train_timesteps)
        # lambda_t = -log(sigma) falls with t: only timesteps above the clipping threshold are visited.
        visited = int(np.count_nonzero(-np.log(self._table) >= self.settings.lambda_min_clipped))
        if visited < 1:
            raise BadInput(
                f"lambda_min_clipped={self.settings.lambda_min_clipped} leaves {self.name!r} no timestep.",
                "Give a smaller one in scheduler_config.json; -5.1 is usual.",
            )
        timesteps = inner_timesteps(self.settings, steps, visited)
        sigmas = sigmas_at(timesteps, self._table)
        if self.settings.use_karras_sigmas:
            low = self.settings.sigma_min if self.settings.sigma_min is not None else float(self._table[0])
            high = self.settings.sigma_max if self.settings.sigma_max is not None else float(self._table[-1])
            sigmas = karras_sigmas(low, high, steps)
            exact = timesteps_of_sigmas(sigmas, self._table)
            cosine = self.settings.beta_schedule == "squaredcos_cap_v2"
            timesteps = (exact if cosine else exact.round()).astype(np.int64)
        self._sigmas = with_final(sigmas, self._table[0] if self.settings.final_sigmas_type == "sigma_min" else 0.0)
        self.timesteps = timesteps
        self._run = _Run()

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        check_index(index, self._run.last_index)
        alpha_s, sigma_s = alpha_sigma(self._sigmas[index])
        alpha_t, sigma_t = alpha_sigma(self._sigmas[index + 1])
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_s, sigma_s)
        previous = self._run.original
        self._run = _Run(original, index)

        lambda_s = log_snr(alpha_s, sigma_s)
        h = log_snr(alpha_t, sigma_t) - lambda_s
        growth = alpha_t * (np.exp(-h) - np.float32(1.0))
        moved: FloatArray = (sigma_t / sigma_s) * latents - growth * original
        if previous is None or self.settings.solver_order == 1 or self._ends_at_first_order(index):
            return moved
        # The slope of x_0 over lambda, from this output and the last one.
        last_h = lambda_s - log_snr(*alpha_sigma(self._sigmas[index - 1]))
        slope = (h / last_h) * (original - previous)
        moved = moved - np.float32(0.5) * growth * slope
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        alpha_t, sigma_t = alpha_sigma(self._sigmas[index])
        noised: FloatArray = alpha_t * latents + sigma_t * noise
        return noised

    def _ends_at_first_order(self, index: int) -> bool:
        """Whether this is the last step and goes at first order: always where it ends at sigma 0, lambda infinite."""
        steps, settings = len(self.timesteps), self.settings
        few = settings.lower_order_final and steps < FEW_STEPS
        return index == steps - 1 and (settings.euler_at_final or few or settings.final_sigmas_type == "zero")


class DpmSolverKarrasScheduler(DpmSolverScheduler):
    """The same at the noise levels of Karras et al., arXiv 2206.00364."""

    overrides: ClassVar[Mapping[str, Any]] = {"use_karras_sigmas": True}
