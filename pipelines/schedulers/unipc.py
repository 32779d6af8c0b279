"""UniPC, a predictor and a corrector of any order that share their outputs: Zhao et al., arXiv 2302.04867.

The B2 variant (bh2, B(h) = e^h - 1) on the data prediction, as in algorithms 5 to 8 of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from .flow import FLOW, ShiftSettings, check_flow_levels, shifted, stretched
from .levels import RangedSettings, inner_levels, name_of
from .options import settings_from_config
from .spacing import Float64Array, with_final

HALF = np.array([0.5], dtype=np.float32)
NEAR_ONE = 1e-6  # a flow's first level is kept below 1, where lambda is infinite


@dataclass(frozen=True, kw_only=True)
class UniPcSettings(RangedSettings, ShiftSettings):
    """Options of diffusers' UniPCMultistepScheduler."""

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **RangedSettings.choices,
        "prediction_type": (*RangedSettings.choices["prediction_type"], FLOW),
        "time_shift_type": ("exponential", "linear"),
        "solver_order": (1, 2, 3),
        "solver_type": ("bh2",),
        "predict_x0": (True,),
        "solver_p": (None,),
        "final_sigmas_type": ("zero", "sigma_min"),
        "thresholding": (False,),
    }
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {
        "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
    }

    rescale_betas_zero_snr: bool = False
    solver_order: int = 2
    solver_type: str = "bh2"
    predict_x0: bool = True
    solver_p: object | None = None
    lower_order_final: bool = True
    disable_corrector: Sequence[int] = ()
    final_sigmas_type: str = "zero"
    thresholding: bool = False
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    shift_terminal: float | None = None


@dataclass
class _Run:
    """What a run keeps between two steps."""

    originals: list[FloatArray] = field(default_factory=list)  # x_0 as the last outputs said it, the newest last
    latents: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))  # corrected, at the last index
    order: int = 1  # of the last prediction
    last_index: int | None = None


@dataclass(frozen=True)
class _Expansion:
    """One step from lambda_s to lambda_t = lambda_s + h, expanded in h."""

    h: np.float32
    moved: FloatArray  # the first order result, [batch, ...]
    scale: np.float32  # alpha_t B(h), the factor of the higher orders
    points: FloatArray  # [order]: where the other outputs lie, in units of h from lambda_s; the last is lambda_t itself
    differences: list[FloatArray]  # order - 1 divided differences of x_0, [batch, ...] each

    def weights(self, count: int) -> FloatArray:
        """The first `count` conditions of theorem 3.1 of the paper, solved for as many weights: float32 [count]."""
        phi = np.expm1(-self.h) / -self.h - np.float32(1.0)
        factorial, right = 1, []
        for k in range(1, count + 1):
            right.append(phi * np.float32(factorial) / np.expm1(-self.h))
            factorial *= k + 1
            phi = phi / -self.h - np.float32(1 / factorial)
        rates = np.stack([self.points[:count] ** k for k in range(count)])
        weights: FloatArray = np.linalg.solve(rates, np.array(right, dtype=np.float32))
        return weights


class UniPcScheduler:
    """diffusers' UniPCMultistepScheduler, bh2 of order 1 to 3. See `Scheduler` for shapes.

    Args:
        config: the content of scheduler_config.json; in flow matching as `as_flow` gives it.
        overrides: options that win over it.

    Raises:
        BadInput: an option has a value that is not supported.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Mapping[str, Any], **overrides: Any) -> None:
        self.settings = settings_from_config(UniPcSettings, config, "unipc", **overrides)
        settings = self.settings
        self.name = name_of("unipc", settings)
        check_flow_levels(settings.use_karras_sigmas, settings.use_flow_sigmas, self.name)
        if settings.solver_order > 1 and settings.final_sigmas_type == "zero" and not settings.lower_order_final:
            raise BadInput(
                "The scheduler 'unipc' divides by zero with lower_order_final=False and final_sigmas_type='zero'.",
                "Set lower_order_final to true or final_sigmas_type to sigma_min in scheduler_config.json.",
            )
        if settings.shift_terminal is not None and not settings.use_flow_sigmas:
            raise BadInput(
                "The scheduler 'unipc' is not supported with shift_terminal without use_flow_sigmas.",
                "Set shift_terminal to null in scheduler_config.json.",
            )
        self._table = finite_sigmas(settings, zero_snr=settings.rescale_betas_zero_snr)
        self._sigmas = self._table[::-1]
        self._run = _Run()
        self.timesteps: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        check_steps(steps, self.settings.num_train_timesteps)
        least = float(self._table[0])
        if self.settings.use_flow_sigmas:
            timesteps, levels = self._flow_levels(steps, tokens)
            least = float(levels[-1])
        else:
            refuse_sigmas(sigmas, self.name)
            timesteps, levels = inner_levels(self.settings, self._table, steps)
            if self.settings.use_karras_sigmas:
                least = float(levels[-1])
        self._sigmas = with_final(levels, least if self.settings.final_sigmas_type == "sigma_min" else 0.0)
        self.timesteps = timesteps
        self._run = _Run()

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        return latents

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """Corrects `latents` with the new output, then predicts the next ones."""
        run = self._run
        check_index(index, run.last_index)
        alpha_t, sigma_t = self._alpha_sigma(index)
        original = predicted_original(self.settings.prediction_type, model_output, latents, alpha_t, sigma_t)
        if run.last_index is not None and run.last_index not in self.settings.disable_corrector:
            latents = self._correct(original, index)

        kept = self.settings.solver_order
        originals = [*run.originals, original][-kept:]
        left = len(self.timesteps) - index if self.settings.lower_order_final else kept
        self._run = _Run(originals, latents, min(kept, left, len(originals)), index)
        return self._predict(index)

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        alpha_t, sigma_t = self._alpha_sigma(index)
        noised: FloatArray = alpha_t * latents + sigma_t * noise
        return noised

    def _flow_levels(self, steps: int, tokens: int | None) -> tuple[npt.NDArray[np.int64], Float64Array]:
        """Timesteps and noise levels of flow matching, even before they are shifted."""
        settings, train = self.settings, self.settings.num_train_timesteps
        even = np.linspace(1, 1 / train, steps + 1)[:-1]
        wide = stretched(shifted(even, settings, settings.flow_shift, tokens, self.name), settings.shift_terminal)
        levels = wide.astype(np.float64)
        if abs(levels[0] - 1) < NEAR_ONE:
            levels[0] -= NEAR_ONE
        return (levels * train).astype(np.int64), levels

    def _alpha_sigma(self, index: int) -> tuple[np.float32, np.float32]:
        return alpha_sigma(self._sigmas[index], flow=self.settings.use_flow_sigmas)

    def _predict(self, index: int) -> FloatArray:
        """UniP: the latents at level `index + 1` from those at `index`."""
        expansion = self._expansion(index, self._run.order)
        if self._run.order == 1:
            return expansion.moved
        # diffusers takes one half for order 2, the limit of the solution, as the paper does for UniP-2.
        weights = HALF if self._run.order == 2 else expansion.weights(self._run.order - 1)
        return expansion.moved - expansion.scale * _weighted(weights, expansion.differences)

    def _correct(self, original: FloatArray, index: int) -> FloatArray:
        """UniC: the latents at level `index` once more, now with the output there."""
        expansion = self._expansion(index - 1, self._run.order)
        weights = HALF if self._run.order == 1 else expansion.weights(self._run.order)
        differences = [*expansion.differences, original - self._run.originals[-1]]
        return expansion.moved - expansion.scale * _weighted(weights, differences)

    def _expansion(self, index: int, order: int) -> _Expansion:
        """What predictor and corrector share for the step from level `index` to the next one."""
        alpha_t, sigma_t = self._alpha_sigma(index + 1)
        alpha_s, sigma_s = self._alpha_sigma(index)
        lambda_s = log_snr(alpha_s, sigma_s)
        h = log_snr(alpha_t, sigma_t) - lambda_s
        originals = self._run.originals
        ratios, differences = [], []
        for back in range(1, order):
            with np.errstate(divide="ignore"):  # a last step of no length, to sigma_min, where x_0 has no slope
                ratio = (log_snr(*self._alpha_sigma(index - back)) - lambda_s) / h
            ratios.append(ratio)
            differences.append((originals[-1 - back] - originals[-1]) / ratio)
        growth = np.expm1(-h)
        moved: FloatArray = sigma_t / sigma_s * self._run.latents - alpha_t * growth * originals[-1]
        return _Expansion(h, moved, alpha_t * growth, np.array([*ratios, 1.0], dtype=np.float32), differences)


def _weighted(weights: npt.NDArray[np.float32], differences: list[FloatArray]) -> FloatArray:
    """The sum of the differences, each times its weight."""
    total: FloatArray = weights[0] * differences[0]
    for weight, difference in zip(weights[1:], differences[1:], strict=True):
        total = total + weight * difference
    return total
