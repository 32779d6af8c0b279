"""Every scheduler walks the steps that diffusers' walks, for the options it takes."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import scheduler_from_config, scheduler_names

from .scheduler_walk import NOISE, SD15_PNDM, SDXL_EULER, SHAPE, TOLERANCE, added, compare, config_of, theirs_from

ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
NAMES = scheduler_names(SD15_PNDM)
NO_SAMPLE = ("pndm", "euler_a", "dpm2", "dpm2_a", "dpmpp_sde")  # diffusers has no such prediction for these
OWN_TIMESTEPS = ("lcm", "tcd")  # these have one spacing
# diffusers turns tensors into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore:__array_wrap__ must accept:DeprecationWarning"
)

EVERY_KIND = [
    (name, prediction, spacing)
    for name in NAMES
    for prediction in ("epsilon", "v_prediction", "sample")
    for spacing in ("leading", "linspace", "trailing")
    if not (prediction == "sample" and name.removesuffix("_karras") in NO_SAMPLE)
    and not (spacing != "leading" and name in OWN_TIMESTEPS)
    and not (name.endswith("_karras") and prediction != "epsilon")
]


@pytest.mark.parametrize(("name", "prediction", "spacing"), EVERY_KIND)
def test_steps_are_those_of_diffusers(name: str, prediction: str, spacing: str) -> None:
    """One run after the other, so each has to start anew."""
    config = config_of(name, prediction_type=prediction, timestep_spacing=spacing, **added(name))
    ours, theirs = scheduler_from_config(config), theirs_from(config, name)
    assert ours.name == name
    for steps in (1, 2, 4, 20, 25):
        if steps == 2 and name.startswith("dpm2_a") and spacing == "linspace":
            continue  # one step down to a 500th: float32 leaves two digits of its lower end, see `check_timesteps`
        compare(ours, theirs, steps)


OPTIONS = [
    ("ddim", {"clip_sample": True}),
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"}),
    ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("ddim", {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}),
    ("ddim", {"beta_schedule": "squaredcos_cap_v2"}),
    ("ddim", {"trained_betas": np.linspace(0.001, 0.015, 500).tolist(), "num_train_timesteps": 500}),
    ("ddim", ZERO_SNR),
    ("ddim", {"rescale_betas_zero_snr": True, "prediction_type": "sample", "timestep_spacing": "linspace"}),
    ("pndm", {"set_alpha_to_one": True, "steps_offset": 1}),
    ("pndm", {"num_train_timesteps": 777, "timestep_spacing": "trailing"}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler", ZERO_SNR),
    ("euler", {"beta_schedule": "squaredcos_cap_v2"}),
    ("euler_a", ZERO_SNR),
    ("euler_a", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("heun", {"clip_sample": True, "clip_sample_range": 0.7}),
    ("heun", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    ("heun", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading", "steps_offset": 1}),
    ("dpm2", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}),
    ("dpm2", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("dpm2_a", {"timestep_spacing": "leading", "steps_offset": 1, "num_train_timesteps": 777}),
    ("dpmpp_sde", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("dpmpp_2m", {"solver_order": 1}),
    ("dpmpp_2m", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"lower_order_final": False}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}),
    ("dpmpp_2m", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ("dpmpp_2m", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "timestep_spacing": "leading"}),
    ("dpmpp_2m", {"algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", ZERO_SNR),
    ("dpmpp_2m_karras", {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
    ("dpmpp_2m_karras", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m_karras", {"use_karras_sigmas": True, "lower_order_final": False}),
    ("dpmpp_2m_sde", {"solver_order": 1}),
    ("dpmpp_2m_sde", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m_sde", ZERO_SNR),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"disable_corrector": [0, 1]}),
    ("unipc", {"use_karras_sigmas": True}),
    ("unipc", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("unipc", ZERO_SNR),
    ("deis", {"solver_order": 1}),
    ("deis", {"solver_order": 3}),
    ("deis", {"solver_order": 3, "lower_order_final": False}),
    ("deis", {"solver_order": 3, "use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("deis", {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "timestep_spacing": "trailing"}),
    ("lms", {"beta_schedule": "squaredcos_cap_v2"}),
    ("lms", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("lcm", {"clip_sample": True}),
    ("lcm", {"original_inference_steps": 100, "timestep_scaling": 3.0}),
    ("lcm", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("tcd", {"original_inference_steps": 100}),
    ("tcd", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_are_followed_as_diffusers_follows_them(name: str, options: dict[str, Any]) -> None:
    config = config_of(name, **{**added(name), **options})
    # A zero terminal SNR leaves few digits at the first step, and torch's own square root costs one: see base.py.
    tolerance = 1e-4 if "rescale_betas_zero_snr" in options else TOLERANCE
    ours, theirs = scheduler_from_config(config, name), theirs_from(config, name)
    assert ours.name.removesuffix("_karras") == name.removesuffix("_karras")
    for steps in (4, 20):
        compare(ours, theirs, steps, tolerance=tolerance)


SOURCES: list[dict[str, Any]] = [
    SD15_PNDM,
    {**SDXL_EULER, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0, "timestep_spacing": "trailing"},
    SDXL_EULER,
    {"_class_name": "DDPMScheduler", **NOISE, "variance_type": "fixed_small", "clip_sample": True},
    # Without final_sigmas_type diffusers itself refuses deis here, before it replaces it.
    {"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
    {"_class_name": "UniPCMultistepScheduler", **NOISE, "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
    {"_class_name": "DPMSolverMultistepScheduler", **NOISE, "solver_type": "midpoint", "lower_order_final": True},
    {**NOISE, "beta_schedule": "linear", "steps_offset": 3},
    {},
]


@pytest.mark.parametrize(
    ("source", "name"),
    [(source, name) for name in NAMES for source in (SOURCES[:2] if name.endswith("_karras") else SOURCES)],
    ids=lambda value: value if isinstance(value, str) else f"{value.get('_class_name')}-{len(value)}",
)
def test_another_scheduler_takes_over_the_options_as_from_config_does(source: dict[str, Any], name: str) -> None:
    source = {**source, "skip_prk_steps": True} if name == "pndm" else source
    ours, theirs = scheduler_from_config(source, name), theirs_from(source, name)
    for steps in (4, 20):
        compare(ours, theirs, steps)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_a_name_decides_between_the_equation_with_noise_and_the_one_without(name: str) -> None:
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        config = {"_class_name": "DPMSolverMultistepScheduler", **NOISE, "algorithm_type": algorithm}
        wanted = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++"}[name]
        theirs = diffusers.DPMSolverMultistepScheduler.from_config(config, algorithm_type=wanted)
        compare(scheduler_from_config(config, name), theirs, 6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pndm"])
def test_options_that_diffusers_filled_in_itself_do_not_count(name: str) -> None:
    source = dict(diffusers.DDIMScheduler(**NOISE).config)  # written by a live object, with _use_default_values
    assert "timestep_spacing" in source["_use_default_values"]
    compare(scheduler_from_config(source, name), theirs_from(source, name), 6)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_can_start_late_from_noised_latents(name: str) -> None:
    ours, theirs = scheduler_from_config(SD15_PNDM, name), theirs_from(SD15_PNDM, name)
    for steps, left_out in [(8, 3), (20, 15), (20, 19)]:
        compare(ours, theirs, steps, start=left_out * ours.order)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_noised_for_every_call_as_inpainting_does(name: str) -> None:
    """After each step diffusers noises the kept part of a picture for the next call; so at each index but the first."""
    compare(scheduler_from_config(SD15_PNDM, name), theirs_from(SD15_PNDM, name), 6, kept=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OWN_TIMESTEPS])
def test_many_steps_stay_close(name: str) -> None:
    # float32 noise grows with the steps, in diffusers as in ours: UniPC's weights lose digits as the steps get short.
    config = config_of(name, timestep_spacing="linspace")
    compare(scheduler_from_config(config, name), theirs_from(config, name), 100, tolerance=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_left_as_they_were(name: str) -> None:
    ours = scheduler_from_config(SD15_PNDM, name)
    ours.set_timesteps(4)
    latents = np.ones(SHAPE, dtype=np.float32)
    output = np.full(SHAPE, 0.5, dtype=np.float32)
    for index in range(len(ours.timesteps)):
        ours.scale_model_input(latents, index)
        ours.step(output, index, latents, TorchCpuGenerator(0))
        assert (latents == 1).all()
        assert (output == 0.5).all()


def test_trailing_spacing_gives_as_many_timesteps_as_asked_for() -> None:
    # diffusers gives 62 for 61, the last of them -1: 1000 / (1000 / 61) is a little over 61 in float64.
    for name in ("ddim", "euler", "dpmpp_2m", "unipc", "pndm", "heun"):
        ours = scheduler_from_config(config_of(name, timestep_spacing="trailing"))
        ours.set_timesteps(61)
        assert len(ours.timesteps) == {"pndm": 62, "heun": 121}.get(name, 61)
        assert ours.timesteps.min() >= 0
