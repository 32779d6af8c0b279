"""The noise of dpmpp_sde: other numbers than torchsde's, with the same distribution."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import scheduler_from_config

from .scheduler_walk import NOISE

pytest.importorskip("torchsde")
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

SIZE = 40_000  # numbers that each mean and each covariance is taken of
CONFIG = {"_class_name": "DPMSolverSDEScheduler", **NOISE}
Array = np.ndarray


def noises(read: Callable[[float, float], Array], sigmas: Array) -> Array:
    """The noise of each call of a run with these levels: [calls, SIZE], both calls of each step but the last."""
    rows = []
    for sigma, end in pairwise(sigmas[:-1]):
        middle = float(np.sqrt(sigma * end))
        rows += [read(float(sigma), middle), read(float(sigma), float(end))]
    return np.stack(rows)


def of_ours(steps: int, seed: int) -> tuple[Array, Array]:
    """The noise that a run of ours adds, from a model that always says x_0 = 0: [calls, SIZE]; and the levels."""
    ours = scheduler_from_config({**CONFIG, "prediction_type": "v_prediction"})
    ours.set_timesteps(steps)
    one = np.ones((1, 1, 1, 1), dtype=np.float32)
    sigmas = np.array([float(ours.add_noise(0 * one, one, 2 * step)[0, 0, 0, 0]) for step in range(steps)] + [0.0])
    generator = TorchCpuGenerator(seed)
    latents = start = np.zeros((1, 1, 200, SIZE // 200), dtype=np.float32)
    rows = []
    for index in range(2 * steps - 2):
        step, second = divmod(index, 2)
        sigma, middle = sigmas[step], np.sqrt(sigmas[step] * sigmas[step + 1])
        level, end = (middle, sigmas[step + 1]) if second else (sigma, middle)
        start = start if second else latents
        # x_0 = latents / (level^2 + 1) - output level / sqrt(level^2 + 1): this output means x_0 = 0
        output = latents / np.float32(level * np.sqrt(level**2 + 1))
        latents = ours.step(output, index, latents, generator)
        up = end * np.sqrt(1 - end**2 / sigma**2)
        rows.append(((latents - np.sqrt(end**2 - up**2) / sigma * start) / up).ravel())
    return np.stack(rows), sigmas


def test_all_calls_together_have_the_means_and_covariances_of_torchsdes_brownian_tree() -> None:
    mine, sigmas = of_ours(6, seed=5)
    tree = BrownianTreeNoiseSampler(torch.zeros(SIZE), 0.9 * sigmas[-2], 1.1 * sigmas[0], seed=5)
    theirs = noises(lambda start, end: tree(torch.tensor(start), torch.tensor(end)).numpy(), sigmas)
    # The first call's part of a step is contained in the whole of it, and steps are independent.
    expected = np.eye(10)
    for step in range(5):
        sigma, end = float(sigmas[step]), float(sigmas[step + 1])
        share = np.sqrt((sigma - np.sqrt(sigma * end)) / (sigma - end))
        expected[2 * step, 2 * step + 1] = expected[2 * step + 1, 2 * step] = share
    sampling_error = 5 / np.sqrt(SIZE)  # five standard deviations
    for rows in (mine, theirs):
        assert np.abs(rows.mean(axis=1)).max() < sampling_error
        assert np.abs(np.cov(rows) - expected).max() < sampling_error * np.sqrt(2)


def test_a_seed_makes_the_same_run_again() -> None:
    np.testing.assert_array_equal(of_ours(3, seed=7)[0], of_ours(3, seed=7)[0])
    assert np.abs(of_ours(3, seed=7)[0] - of_ours(3, seed=8)[0]).max() > 1
