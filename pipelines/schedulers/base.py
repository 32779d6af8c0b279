"""What a scheduler is, and the noise schedule of the diffusion process that most of them read.

A Protocol, because the pipelines need eight members and every scheduler keeps a history of its own kind.

Notation, as in DDPM (Ho et al., arXiv 2006.11239) and EDM (Karras et al., arXiv 2206.00364): the noised latents are
x_t = alpha_t x_0 + sigma_t noise. In a diffusion model alpha_t^2 + sigma_t^2 = 1 ("variance preserving"), alpha_t^2 is
called alphas_cumprod[t], and the noise level sigma_t / alpha_t is called a sigma. In flow matching (`flow.py`)
alpha_t + sigma_t = 1, and sigma_t itself is the sigma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from ..random import Generator

FloatArray = npt.NDArray[np.float32]
Timesteps = npt.NDArray[np.int64] | npt.NDArray[np.float32]
GivenSigmas = npt.NDArray[np.float32] | npt.NDArray[np.float64] | None


class Scheduler(Protocol):
    """One way to walk from noise to latents; holds the state of one run, which `set_timesteps` starts.

    Latents, noise and model outputs are float32 [batch, channels, height/8, width/8]. `index` counts the model calls of
    the run, 0 to len(timesteps) - 1; an img2img run starts at a later index, a multiple of `order`, and then goes on
    one by one.
    """

    @property
    def name(self) -> str:
        """The name under which `scheduler_from_config` makes it."""

    @property
    def order(self) -> int:
        """Model calls a step, 1 or 2: a run that leaves out its first n steps starts at index n * order."""

    @property
    def timesteps(self) -> Timesteps:
        """What the denoiser is given, one value a model call: int64 or float32 [calls], from noisy to clean."""

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the latents that a text-to-image run starts from."""

    def set_timesteps(self, steps: int, *, sigmas: GivenSigmas = None, tokens: int | None = None) -> None:
        """Starts a run of `steps` steps and forgets the last one.

        Args:
            steps: from 1 to as many as the model was trained with.
            sigmas: float [steps], the noise levels that a family of flow-matching models wants before any shift. A
                flow-matching scheduler that has levels of its own takes those, as it does in diffusers' FluxPipeline.
            tokens: how many tokens the denoiser sees of a picture; flow-matching schedulers with dynamic shifting need
                it, all others leave it.

        Raises:
            BadInput: `steps` is not between 1 and what the model was trained with, or too many for this scheduler;
                `sigmas` for one that does no flow matching; no `tokens` where they are needed.
        """

    def scale_model_input(self, latents: FloatArray, index: int) -> FloatArray:
        """The latents as the denoiser wants them at call `index`."""

    def step(self, model_output: FloatArray, index: int, latents: FloatArray, generator: Generator) -> FloatArray:
        """The latents after call `index`. Schedulers that add noise draw it from `generator`, for the whole batch."""

    def add_noise(self, latents: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        """Clean latents noised to where call `index` starts; `noise` has unit variance.

        Between the two calls of a step the level is that of the step's end, as in diffusers.
        """


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that every scheduler class of diffusers knows, with its names and defaults.

    A field is an option that this package can follow; `choices` lists the values it can follow where that is not every
    value, `refused` the values that it cannot, and `aliases` those that diffusers itself replaces.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("leading", "linspace", "trailing"),
    }
    refused: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    aliases: ClassVar[Mapping[str, Mapping[object, object]]] = {}

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0


def alphas_cumprod(settings: Settings, *, zero_snr: bool = False) -> FloatArray:
    """alpha_t^2 for every training timestep: float32 [num_train_timesteps], falling.

    In float32, with the products taken in float64, as torch.cumprod does on the CPU.

    Args:
        settings: names the betas.
        zero_snr: rescale them so that nothing of the image is left at the last timestep (Lin et al., arXiv 2305.08891,
            algorithm 1); the last value is then 0.
    """
    betas = _betas(settings)
    if zero_snr:
        betas = _zero_terminal_snr(betas)
    return _cumprod(np.float32(1.0) - betas)


def train_sigmas(alphas: FloatArray) -> FloatArray:
    """sigma_t / alpha_t for every training timestep: float32 [num_train_timesteps], rising."""
    sigmas: FloatArray = np.sqrt((np.float32(1.0) - alphas) / alphas)
    return sigmas


def finite_sigmas(settings: Settings, *, zero_snr: bool) -> FloatArray:
    """`train_sigmas` with the one that a zero terminal SNR makes infinite replaced by 4096.

    diffusers puts 2**-24, float16's smallest number, in the place of the last alpha_t^2.
    """
    alphas = alphas_cumprod(settings, zero_snr=zero_snr)
    if zero_snr:
        alphas[-1] = 2.0**-24
    return train_sigmas(alphas)


def alpha_sigma(sigma: np.float32, *, flow: bool = False) -> tuple[np.float32, np.float32]:
    """alpha_t and sigma_t from a noise level.

    Args:
        sigma: sigma_t / alpha_t of a variance preserving process; in flow matching sigma_t itself.
        flow: whether it is flow matching, alpha_t = 1 - sigma_t (Lipman et al., arXiv 2210.02747).
    """
    if flow:
        return np.float32(1.0) - sigma, sigma
    alpha_t = np.float32(1.0) / np.sqrt(sigma * sigma + np.float32(1.0))
    return alpha_t, sigma * alpha_t


def log_snr(alpha_t: np.float32, sigma_t: np.float32) -> np.float32:
    """lambda_t = log(alpha_t / sigma_t), half the log signal-to-noise ratio; infinite where sigma_t is 0."""
    with np.errstate(divide="ignore"):
        lambda_t: np.float32 = np.log(alpha_t) - np.log(sigma_t)
    return lambda_t


def predicted_original(
    prediction_type: str, model_output: FloatArray, latents: FloatArray, alpha_t: np.float32, sigma_t: np.float32
) -> FloatArray:
    """The clean latents x_0 that a model output means.

    epsilon: the output is the noise (arXiv 2006.11239); v_prediction: it is alpha_t noise - sigma_t x_0 (Salimans and
    Ho, arXiv 2202.00512); sample: it is x_0; flow_prediction: it is noise - x_0 (arXiv 2210.02747), where alpha_t is
    1 - sigma_t.
    """
    original = model_output
    if prediction_type == "epsilon":
        original = latents - sigma_t * model_output
        original = original / alpha_t
    elif prediction_type == "v_prediction":
        original = alpha_t * latents - sigma_t * model_output
    elif prediction_type == "flow_prediction":
        original = latents - sigma_t * model_output
    return original


def noised(latents: FloatArray, noise: FloatArray, alpha_cumprod: np.float32) -> FloatArray:
    """x_t = alpha_t x_0 + sigma_t noise."""
    latents_t: FloatArray = np.sqrt(alpha_cumprod) * latents + np.sqrt(np.float32(1.0) - alpha_cumprod) * noise
    return latents_t


def check_steps(steps: int, train_steps: int) -> None:
    """Raises BadInput unless `steps` is an integer from 1 to `train_steps`."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= train_steps:
        raise BadInput(
            f"The number of steps must be an integer from 1 to {train_steps}, not {steps!r}.",
            "Give steps in that range.",
        )


def check_timesteps(timesteps: npt.NDArray[np.int64], alphas: FloatArray, settings: Settings) -> None:
    """Raises BadInput where a scheduler that reads `alphas` at its timesteps would read past the end or divide by 0."""
    if int(timesteps.max()) >= len(alphas):
        raise BadInput(
            f"{len(timesteps)} steps with steps_offset={settings.steps_offset} start past the last timestep, "
            f"{len(alphas) - 1}.",
            "Give fewer steps.",
        )
    if settings.prediction_type == "epsilon" and alphas[timesteps].min() == 0:
        raise BadInput(
            "A model that predicts the noise (prediction_type=epsilon) says nothing about the image at a timestep "
            "without signal, and rescale_betas_zero_snr makes the first timestep one.",
            "Use prediction_type=v_prediction if the model was trained so, or timestep_spacing=leading.",
        )


def check_index(index: int, last: int | None, order: int = 1) -> None:
    """Raises BadInput when a scheduler that keeps a history is not called at one index after the other.

    Args:
        last: the index of the last call; None for the first one, which then has to be where a step starts.
        order: model calls a step.
    """
    if last is not None and index != last + 1:
        raise BadInput(f"Step {index} was asked for after step {last}.", "Call set_timesteps to start a new run.")
    if last is None and index % order:
        raise BadInput(
            f"A run cannot start at call {index}, in the middle of a step of {order} calls.",
            f"Start at a multiple of {order}.",
        )


def refuse_sigmas(sigmas: GivenSigmas, name: str) -> None:
    """Raises BadInput where noise levels of a flow-matching family are given to a scheduler of diffusion models."""
    if sigmas is not None:
        raise BadInput(
            f"The scheduler {name!r} does not take noise levels: they are those of flow matching.",
            "Name a scheduler for flow matching, such as flow_euler.",
        )


def _betas(settings: Settings) -> FloatArray:
    """The variances of the forward process: float32 [num_train_timesteps]."""
    count, start, end = settings.num_train_timesteps, settings.beta_start, settings.beta_end
    if settings.trained_betas is not None:
        return np.asarray(settings.trained_betas, dtype=np.float32)
    if settings.beta_schedule == "linear":
        return _linspace(start, end, count)
    if settings.beta_schedule == "scaled_linear":  # latent diffusion (Rombach et al., arXiv 2112.10752)
        root = _linspace(math.sqrt(start), math.sqrt(end), count)
        return root * root
    levels = [math.cos((t / count + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(count + 1)]
    # The cosine schedule (Nichol and Dhariwal, arXiv 2102.09672, equation 17), betas capped at 0.999.
    return np.array([min(1 - levels[t + 1] / levels[t], 0.999) for t in range(count)], dtype=np.float32)


def _linspace(start: float, end: float, count: int) -> FloatArray:
    """torch.linspace in float32: up from the start in the first half, down from the end in the second."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    positions = np.arange(count, dtype=np.float64)
    # In float64 and rounded once, which is what torch's fused multiply-add gives.
    points = np.where(positions < count // 2, first + step * positions, last - step * positions[::-1])
    return points.astype(np.float32)


def _zero_terminal_snr(betas: FloatArray) -> FloatArray:
    """Betas of the same first and a zero last signal: arXiv 2305.08891, algorithm 1.

    The last alphas_cumprod but one differ from torch's by up to 1e-5 of their value: the subtraction leaves few digits,
    and the square root of torch's MKL builds is not correctly rounded.
    """
    root = np.sqrt(_cumprod(np.float32(1.0) - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    level = root * root
    betas_rescaled: FloatArray = np.float32(1.0) - np.concatenate([level[:1], level[1:] / level[:-1]])
    return betas_rescaled


def _cumprod(factors: FloatArray) -> FloatArray:
    return np.cumprod(factors, dtype=np.float64).astype(np.float32)
