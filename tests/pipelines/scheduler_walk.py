"""A walk through a scheduler of ours and diffusers' side by side, each on its own latents."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import SCHEDULERS, Scheduler

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 6, 8)
TOLERANCE = 1e-5
SDE = {"dpmpp_2m_sde": "sde-dpmsolver++", "dpmpp_2m_sde_karras": "sde-dpmsolver++"}

# stable-diffusion-v1-5's scheduler/scheduler_config.json, and the same model's noise as SDXL's Euler file writes it.
SD15_PNDM = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    **NOISE,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SDXL_EULER = {
    **SD15_PNDM,
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}


def config_of(name: str, **options: Any) -> dict[str, Any]:
    """Options as diffusers would write them for this scheduler."""
    always = {"skip_prk_steps": True} if name == "pndm" else {"clip_sample": False} if name == "ddim" else {}
    return {"_class_name": SCHEDULERS[name].diffusers, **NOISE, **always, **options}


def added(name: str) -> dict[str, Any]:
    """The options that make diffusers' class the scheduler of this name."""
    options: dict[str, Any] = {"use_karras_sigmas": True} if name.endswith("_karras") else {}
    return options | ({"algorithm_type": SDE[name]} if name in SDE else {})


def theirs_from(config: dict[str, Any], name: str, **options: Any) -> Any:
    """The diffusers scheduler for one of our names."""
    return getattr(diffusers, SCHEDULERS[name].diffusers).from_config(dict(config), **added(name), **options)


def denoise(scaled: np.ndarray, timestep: float) -> np.ndarray:
    """A smooth stand-in for a denoiser: float32 in, float32 out, the same for both libraries."""
    mixed = 0.7 * scaled - 0.3 * np.roll(scaled, 1, axis=1) + 0.2 * np.roll(scaled, 1, axis=3)
    return np.tanh(mixed + np.float32(np.sin(timestep / 300.0))).astype(np.float32)


class BrownianPath:
    """Stands for torchsde's tree: a path over sigma that goes down step by step, from a generator's numbers."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.begun: tuple[torch.Tensor, torch.Tensor] | None = None  # the way to a step's inner level, and that level

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        way, reached = self.begun or (torch.zeros(SHAPE), sigma)
        way = way + torch.randn(SHAPE, generator=self.generator) * (reached - sigma_next) ** 0.5
        self.begun = None if self.begun else (way, sigma_next)
        return way / (sigma - sigma_next) ** 0.5


def prepare(theirs: Any, start: int, generator: torch.Generator) -> int:
    """Makes diffusers' scheduler ready to start at a call; how many calls of ours it has left out.

    Its LMS takes the coefficients of four slopes at once where a run starts late, though it has one slope, and is given
    a schedule that begins there instead. Its SDE solver is given a path that follows the generator.
    """
    if type(theirs).__name__ == "LMSDiscreteScheduler":
        theirs.timesteps, theirs.sigmas = theirs.timesteps[start:], theirs.sigmas[start:]
        return start
    if type(theirs).__name__ == "DPMSolverSDEScheduler":
        theirs.noise_sampler = BrownianPath(generator)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(start)
    return 0


def check_timesteps(ours: Scheduler, theirs: Any) -> None:
    expected = theirs.timesteps.numpy()
    if expected.dtype == np.float64:  # diffusers' UNet turns them into float32
        expected = expected.astype(np.float32)
    assert ours.timesteps.dtype == expected.dtype
    if (expected % 1).any():  # made from sigmas, with which torch's square root takes its liberty of one last digit
        # That digit counts in the place between two whole timesteps, and so no less for small ones. An ancestral step's
        # lower end is the root of a difference of two squares, where it counts up to (sigma / next sigma)^2 times more.
        ancestral = type(theirs).__name__ == "KDPM2AncestralDiscreteScheduler"
        np.testing.assert_allclose(ours.timesteps, expected, rtol=5e-7, atol=1e-3 if ancestral else 1e-5)
    else:
        np.testing.assert_array_equal(ours.timesteps, expected)
    assert ours.order == theirs.order
    assert ours.init_noise_sigma == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-6)


def noised_by(theirs: Any, clean: np.ndarray, noise: np.ndarray, timestep: torch.Tensor) -> torch.Tensor:
    if hasattr(theirs, "scale_noise"):
        return theirs.scale_noise(torch.from_numpy(clean), timestep, torch.from_numpy(noise))
    return theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), timestep)


def compare(ours: Scheduler, theirs: Any, steps: int, **how: Any) -> None:
    """Sets both to `steps` steps and walks them."""
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    walk(ours, theirs, **how)


def walk(ours: Scheduler, theirs: Any, *, start: int = 0, kept: bool = False, tolerance: float = TOLERANCE) -> None:
    """Walks both and compares them after every call.

    start: the first call; from noised latents where it is a later one. kept: compare after each call how a picture is
    noised for the next one, as inpainting does.
    """
    check_timesteps(ours, theirs)
    my_generator, other_generator = TorchCpuGenerator(17), torch.Generator("cpu").manual_seed(17)
    left_out = prepare(theirs, start, other_generator)
    drawn = np.random.default_rng(len(ours.timesteps)).standard_normal((2, *SHAPE)).astype(np.float32)
    if start:
        mine = ours.add_noise(drawn[0], drawn[1], start)
        other = noised_by(theirs, drawn[0], drawn[1], theirs.timesteps[start - left_out : start - left_out + 1])
    else:
        mine = drawn[0] * np.float32(ours.init_noise_sigma)
        other = torch.from_numpy(drawn[0]) * getattr(theirs, "init_noise_sigma", 1.0)
    assert np.abs(mine - other.numpy()).max() <= tolerance * np.abs(other.numpy()).max()

    draws = "generator" in inspect.signature(theirs.step).parameters
    pairs = []
    for index in range(start, len(ours.timesteps)):
        timestep = theirs.timesteps[index - left_out]
        my_output = denoise(ours.scale_model_input(mine, index), float(timestep))
        mine = ours.step(my_output, index, mine, my_generator)
        seen = theirs.scale_model_input(other, timestep) if hasattr(theirs, "scale_model_input") else other
        other_output = torch.from_numpy(denoise(seen.numpy(), float(timestep)))
        extra = {"generator": other_generator} if draws else {}
        other = theirs.step(other_output, timestep, other, **extra).prev_sample
        assert mine.dtype == np.float32
        assert mine.shape == SHAPE
        assert other.isfinite().all()
        pairs.append((mine, other.numpy()))
        if kept and index + 1 < len(ours.timesteps):
            later = theirs.timesteps[index + 1 - left_out : index + 2 - left_out]
            expected = noised_by(theirs, drawn[0], drawn[1], later).numpy()
            np.testing.assert_allclose(ours.add_noise(drawn[0], drawn[1], index + 1), expected, rtol=1e-5, atol=1e-5)
    scale = float(np.ptp(pairs[-1][1]))
    for index, (a, b) in enumerate(pairs, start):
        # Early latents that count in sigmas are larger than the last ones by the noise they carry.
        difference = float(np.abs(a - b).max()) / max(scale, float(np.ptp(b)))
        assert difference <= tolerance, f"call {index} of {len(ours.timesteps)}: {difference:.2e}"
