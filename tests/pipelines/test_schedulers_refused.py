"""What a scheduler cannot follow it refuses, and says which option or number it was."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput
from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import scheduler_from_config, scheduler_names

from .scheduler_walk import NOISE, SD15_PNDM, SHAPE, config_of

NAMES = scheduler_names(SD15_PNDM)

REFUSED = [
    ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("euler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
    ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
    ("euler", {"timestep_type": "continuous"}, "timestep_type"),
    ("euler_a", {"prediction_type": "sample"}, "prediction_type"),
    ("pndm", {"prediction_type": "sample", "skip_prk_steps": True}, "prediction_type"),
    ("pndm", {}, "skip_prk_steps"),
    ("ddim", {"thresholding": True}, "thresholding"),
    ("ddim", {"beta_schedule": "sigmoid"}, "beta_schedule"),
    ("ddim", {"timestep_spacing": "quadratic"}, "timestep_spacing"),
    ("lcm", {"thresholding": True}, "thresholding"),
    ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
    ("dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
    ("dpmpp_2m", {"solver_type": "heun"}, "solver_type"),
    ("dpmpp_2m", {"solver_order": 3}, "solver_order"),
    ("dpmpp_2m", {"variance_type": "learned_range"}, "variance_type"),
    ("dpmpp_2m", {"use_lu_lambdas": True}, "use_lu_lambdas"),
    ("dpmpp_2m_karras", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("dpmpp_2m", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("unipc", {"solver_type": "bh1"}, "solver_type"),
    ("unipc", {"predict_x0": False}, "predict_x0"),
    ("unipc", {"solver_p": {"_class_name": "DDIMScheduler"}}, "solver_p"),
    ("unipc", {"lower_order_final": False}, "lower_order_final"),
    ("unipc", {"sigma_min": 0}, "sigma_min"),
    ("heun", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
    ("heun", {"beta_schedule": "exp"}, "beta_schedule"),
    ("dpm2", {"prediction_type": "sample"}, "prediction_type"),
    ("dpm2_a", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("dpmpp_sde", {"prediction_type": "sample"}, "prediction_type"),
    ("dpmpp_sde", {"noise_sampler_seed": 3}, "noise_sampler_seed"),
    ("deis", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
    ("deis", {"solver_order": 4}, "solver_order"),
    ("lms", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("tcd", {"thresholding": True}, "thresholding"),
]


@pytest.mark.parametrize(("name", "options", "option"), REFUSED)
def test_an_option_we_cannot_follow_is_refused_by_name(name: str, options: dict[str, Any], option: str) -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config({**NOISE, **options}, name)
    assert option in wrong.value.what
    assert "scheduler_config.json" in wrong.value.fix


def test_the_message_names_what_is_supported() -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config({**NOISE, "solver_type": "heun"}, "dpmpp_2m")
    assert wrong.value.what == "The scheduler 'dpmpp_2m' is not supported with solver_type='heun'."
    assert wrong.value.fix == "Supported: midpoint. Change it in scheduler_config.json or choose another scheduler."


NONSENSE: dict[str, list[Any]] = {
    "num_train_timesteps": ["1000", 0, 10**9, True],
    "beta_start": [-0.1],
    "beta_end": [float("nan"), 2],
    "trained_betas": [[0.1, 0.2], "many"],
    "steps_offset": [-1],
    "clip_sample": ["yes", 1],
    "prediction_type": [None],
    "beta_schedule": [["linear"]],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option in NONSENSE for value in NONSENSE[option]])
def test_options_that_make_no_sense_are_refused(option: str, value: Any) -> None:
    with pytest.raises(BadInput, match=option):
        scheduler_from_config({**NOISE, option: value}, "ddim")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True])
def test_a_number_of_steps_out_of_range_is_refused(name: str, steps: Any) -> None:
    with pytest.raises(BadInput, match=r"from 1 to 1000, not"):
        scheduler_from_config(SD15_PNDM, name).set_timesteps(steps)


def test_steps_that_one_scheduler_cannot_take_are_refused() -> None:
    past, many = "past the last timestep", "too many"
    refused = [("lcm", "distilled on"), ("tcd", "distilled on"), ("ddim", past), ("pndm", past)]
    for name, message in [*refused, *((name, many) for name in ("dpmpp_2m", "unipc", "deis", "lms", "heun"))]:
        with pytest.raises(BadInput, match=message):
            scheduler_from_config({**SD15_PNDM, "timestep_spacing": "leading"}, name).set_timesteps(1000)


def test_clipping_away_every_timestep_is_refused() -> None:
    with pytest.raises(BadInput, match="lambda_min_clipped"):
        scheduler_from_config({**NOISE, "lambda_min_clipped": 50}, "dpmpp_2m").set_timesteps(1)


def test_noise_prediction_without_any_signal_is_refused() -> None:
    config = config_of("ddim", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(BadInput, match="rescale_betas_zero_snr"):
        scheduler_from_config(config).set_timesteps(4)
    leading = scheduler_from_config({**config, "timestep_spacing": "leading"})
    leading.set_timesteps(4)
    assert leading.timesteps.max() < 999


@pytest.mark.parametrize("name", ["pndm", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "deis", "lms"])
def test_a_history_with_a_gap_is_refused(name: str) -> None:
    ours = scheduler_from_config(SD15_PNDM, name)
    ours.set_timesteps(5)
    latents = np.zeros(SHAPE, dtype=np.float32)
    ours.step(latents, 1, latents, TorchCpuGenerator(0))
    with pytest.raises(BadInput, match="Step 3 was asked for after step 1"):
        ours.step(latents, 3, latents, TorchCpuGenerator(0))


@pytest.mark.parametrize("name", ["heun", "dpm2", "dpm2_a", "dpmpp_sde"])
def test_two_calls_a_step_follow_one_another_from_where_a_step_starts(name: str) -> None:
    ours = scheduler_from_config(SD15_PNDM, name)
    ours.set_timesteps(5)
    latents = np.zeros(SHAPE, dtype=np.float32)
    with pytest.raises(BadInput, match="cannot start at call 3, in the middle of a step of 2 calls"):
        ours.step(latents, 3, latents, TorchCpuGenerator(0))
    ours.step(latents, 2, latents, TorchCpuGenerator(0))
    with pytest.raises(BadInput, match="Step 4 was asked for after step 2"):
        ours.step(latents, 4, latents, TorchCpuGenerator(0))


def test_importing_them_loads_no_heavy_library() -> None:
    code = "import sys, vitrify.pipelines.schedulers; print({'torch', 'diffusers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
