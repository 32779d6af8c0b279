"""DPM-Solver++(2M), second order multistep, midpoint: Lu et al., arXiv 2211.01095, algorithm 2; and its SDE form."""

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
    GivenSigmas,
    alpha_sigma,
    check_index,
    check_steps,
    finite_sigmas,
    log_snr,
    predicted_original,
    refuse_sigmas,
)
from .flow import FLOW, ShiftSettings, check_flow_levels, shifted
from .levels import RangedSettings, inner_levels, name_of
from .options import settings_from_config
from .spacing import Float64Array, with_final

FEW_STEPS = 15  # below this, lower_order_final takes the last step at first order


@dataclass(frozen=True, kw_only=True)
class DpmSolverSettings(RangedSettings, ShiftSettings):
    """Options of diffusers' DPMSolverMultistepScheduler for the ODE.

    It reads sigma_min and sigma_max where another class's options bring them along, though it has none of its own.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **RangedSettings.choices,
        "prediction_type": (*RangedSettings.choices["prediction_type"], FLOW),
        "solver_order": (1, 2),
        "algorithm_type": ("dpmsolver++",),
        "solver_type": ("midpoint",),
        "final_sigmas_type": ("zero", "sigma_min"),
        "thresholding": (False,),
        "use_lu_lambdas": (False,),
        "time_shift_type": ("exponential",),
    }
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {"variance_type": ("learned", "learned_range")}
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {
        "algorithm_type": {"deis": "dpmsolver++", "sde-dpmsolver++": "dpmsolver++"},
        "solver_type": {"logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"},
    }

    rescale_betas_zero_snr: bool = False
    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = "zero"
    lambda_min_clipped: float = -math.inf
    variance_type: str | None = None
    thresholding: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DpmSolverSdeSettings(DpmSolverSettings):
    """The same for the SDE."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **DpmSolverSettings.choices,
        "algorithm_type": ("sde-dpmsolver++",),
    }
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {
        **DpmSolverSettings.aliases,
        "algorithm_type": {"deis": "sde-dpmsolver++", "dpmsolver++": "sde-dpmsolver++"},
    }

    algorithm_type: str = "sde-dpmsolver++"


@dataclass
class _Run:
    """What a run keeps between two steps."""

    original: FloatArray | None = None  # x_0 as the last output said it
    last_index: int | None = None


class DpmSolverScheduler:
    """diffusers' DPMSolverMultistepScheduler, dpmsolver++ or sde-dpmsolver++ of order 1 or 2; shapes as in `Scheduler`.

    The SDE form draws noise at every step, also at the last, where it counts nothing.

    Args:
        config: the content of scheduler_config.json; in flow matching as `as_flow` gives it.
        sde: solve the SDE, whichever of the two the options name.
        overrides: options that win over `config`.

    Raises:
        BadInput: an option has a value that is not supported.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], *, sde: bool = False, **overrides: Any) -> None:
        settings_type = DpmSolverSdeSettings if sde else DpmSolverSettings
        base_name = "dpmpp_2m_sde" if sde else "dpmpp_2m"
        self.settings = settings_from_config(settings_type, config, base_name, **overrides)
        self.name = name_of(base_name, self.settings)
        self._sde, self._flow = sde, self.settings.use_flow_sigmas
        check_flow_levels(self.settings.use_karras_sigmas, self.settings.use_flow_sigmas, self.name)
        self._table = finite_sigmas(self.settings, zero_snr=self.settings.rescale_betas_zero_snr)
        self._sigmas = self._table[::-1]
        self._run = _Run()
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        check_steps(steps, self.settings.num_train_timesteps)
        if self._flow:
            timesteps, levels = self._flow_levels(steps, tokens)
        else:
            refuse_sigmas(sigmas, self.name)
            cosine = self.settings.beta_schedule == "squaredcos_cap_v2"
            timesteps, levels = inner_levels(
                self.settings, self._table, steps, visited=self._visited(), whole=not cosine
            )
        self._sigmas = with_final(levels, self._table[0] if self.settings.final_sigmas_type == "sigma_min" else 0.0)
        self.timesteps = timesteps
        self._run = _Run()

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        check_index(index, self._run.last_index)
        alpha_s, sigma_s = self._alpha_sigma(index)
        alpha_t, sigma_t = self._alpha_sigma(index + 1)
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_s, sigma_s)
        previous = self._run.original
        self._run = _Run(original, index)

        lambda_s = log_snr(alpha_s, sigma_s)
        h = log_snr(alpha_t, sigma_t) - lambda_s
        keep, gain = sigma_t / sigma_s, -alpha_t * (np.exp(-h) - np.float32(1.0))
        if self._sde:
            fresh = np.float32(1.0) - np.exp(np.float32(-2.0) * h)  # share of the variance that is drawn anew
            keep, gain = keep * np.exp(-h), alpha_t * fresh
        moved: FloatArray = keep * latents + gain * original
        if previous is not None and self.settings.solver_order == 2 and not self._ends_at_first_order(index):
            # The slope of x_0 over lambda, from this output and the last one.
            last_h = lambda_s - log_snr(*self._alpha_sigma(index - 1))
            moved = moved + np.float32(0.5) * gain * ((h / last_h) * (original - previous))
        if self._sde:
            moved = moved + sigma_t * np.sqrt(fresh) * generator.normal(latents.shape)
        return moved

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        alpha_t, sigma_t = self._alpha_sigma(index)
        noised: FloatArray = alpha_t * latents + sigma_t * noise
        return noised

    def _alpha_sigma(self, index: int) -> tuple[np.float32, np.float32]:
        return alpha_sigma(self._sigmas[index], flow=self._flow)

    def _visited(self) -> int:
        """How many training timesteps lie above the clipping threshold: lambda_t = -log(sigma) falls with t."""
        visited = int(np.count_nonzero(-np.log(self._table) >= self.settings.lambda_min_clipped))
        if visited < 1:
            raise BadInput(
                f"lambda_min_clipped={self.settings.lambda_min_clipped} leaves {self.name!r} no timestep.",
                "Give a smaller one in scheduler_config.json; -5.1 is usual.",
            )
        return visited

    def _flow_levels(self, steps: int, tokens: int | None) -> tuple[npt.NDArray[np.int64], Float64Array]:
        """Timesteps and noise levels of flow matching, even before they are shifted."""
        settings, train = self.settings, self.settings.num_train_timesteps
        even = 1.0 - np.linspace(1, 1 / train, steps + 1)
        levels = shifted(even[:0:-1], settings, settings.flow_shift, tokens, self.name).astype(np.float64)
        return (levels * train).astype(np.int64), levels

    def _ends_at_first_order(self, index: int) -> bool:
        """Whether this is the last step and goes at first order: always where it ends at sigma 0, lambda infinite."""
        steps, settings = len(self.timesteps), self.settings
        few = settings.lower_order_final and steps < FEW_STEPS
        return index == steps - 1 and (settings.euler_at_final or few or settings.final_sigmas_type == "zero")
