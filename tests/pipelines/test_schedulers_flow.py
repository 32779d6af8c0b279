"""Flow matching: the schedulers walk as diffusers' do, and keep apart from those of diffusion models."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from vitrify.core.errors import BadInput
from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import SCHEDULERS, scheduler_from_config, scheduler_names, stand_in_name

from .scheduler_walk import SD15_PNDM, SHAPE, TOLERANCE, compare, theirs_from, walk

# scheduler/scheduler_config.json of stable-diffusion-3.5-large, FLUX.1-dev, FLUX.1-schnell and Sana_1600M_1024px.
SD3 = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX = {
    **SD3,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
}
SCHNELL = {**FLUX, "shift": 1.0, "use_dynamic_shifting": False}
SANA = {
    "_class_name": "DPMSolverMultistepScheduler",
    "algorithm_type": "dpmsolver++",
    "beta_schedule": "linear",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lambda_min_clipped": -float("inf"),
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
SPRINT = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}
FLOW_NAMES = ["dpmpp_2m", "dpmpp_2m_sde", "unipc", "flow_euler", "flow_heun"]
MULTISTEP = ["dpmpp_2m", "dpmpp_2m_sde", "unipc"]


def flow_of(config: dict[str, Any], name: str) -> Any:
    """diffusers' scheduler for a flow-matching model, with what `from_config` does not translate."""
    if name.startswith("flow"):
        return theirs_from(config, name)
    shift = config.get("flow_shift", config.get("shift", 1.0))
    return theirs_from(config, name, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)


@pytest.mark.parametrize("name", FLOW_NAMES)
@pytest.mark.parametrize("config", [SD3, SCHNELL, {**SD3, "num_train_timesteps": 500}], ids=["sd3", "schnell", "500"])
def test_steps_are_those_of_diffusers(config: dict[str, Any], name: str) -> None:
    ours, theirs = scheduler_from_config(config, name), flow_of(config, name)
    assert ours.name == name
    # diffusers' Heun divides sigma by itself, which costs digits where it is small: its last level is 0.001 to 0.003.
    tolerance = 1e-4 if name == "flow_heun" else TOLERANCE
    for steps in (1, 2, 4, 20, 28):
        compare(ours, theirs, steps, tolerance=tolerance)


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_a_run_can_start_late_and_noise_pictures_for_every_call(name: str) -> None:
    ours, theirs = scheduler_from_config(SD3, name), flow_of(SD3, name)
    for steps, left_out in [(8, 0), (8, 3), (20, 15), (20, 19)]:
        compare(ours, theirs, steps, start=left_out * ours.order, kept=True)


def test_the_models_own_scheduler() -> None:
    for config, name in ((SD3, "flow_euler"), (FLUX, "flow_euler"), (SANA, "dpmpp_2m")):
        assert scheduler_from_config(config).name == name
    heun = {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 2.0}
    assert scheduler_from_config(heun).name == "flow_heun"
    compare(scheduler_from_config(heun), diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0), 5)


def test_sanas_own_scheduler() -> None:
    for steps in (1, 2, 14, 20):
        compare(scheduler_from_config(SANA), theirs_from(SANA, "dpmpp_2m"), steps)


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_sanas_shift_goes_with_any_scheduler(name: str) -> None:
    mine = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    theirs = flow_of(mine if name.startswith("flow") else SANA, name)
    compare(scheduler_from_config(SANA, name), theirs, 8)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 9216])
def test_dynamic_shifting_with_the_familys_levels(tokens: int, kind: str) -> None:
    """As FluxPipeline calls its scheduler."""
    config = {**FLUX, "time_shift_type": kind}
    ours, theirs = scheduler_from_config(config), flow_of(config, "flow_euler")
    sigmas = np.linspace(1.0, 1 / 6, 6)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    ours.set_timesteps(6, sigmas=sigmas, tokens=tokens)
    theirs.set_timesteps(sigmas=sigmas, mu=mu)
    walk(ours, theirs)
    ours.set_timesteps(6, tokens=tokens)
    theirs.set_timesteps(6, mu=mu)
    walk(ours, theirs)


def test_a_fixed_shift_takes_the_familys_levels_and_leaves_the_tokens() -> None:
    ours, theirs = scheduler_from_config(SCHNELL), flow_of(SCHNELL, "flow_euler")
    sigmas = np.linspace(1.0, 1 / 4, 4)
    ours.set_timesteps(4, sigmas=sigmas, tokens=4096)
    theirs.set_timesteps(sigmas=sigmas)
    walk(ours, theirs)


@pytest.mark.parametrize("name", MULTISTEP)
def test_multistep_solvers_shift_dynamically_and_keep_their_own_levels(name: str) -> None:
    """FluxPipeline gives a scheduler with use_flow_sigmas no levels, only the shift."""
    ours, theirs = scheduler_from_config(FLUX, name), flow_of(FLUX, name)
    ours.set_timesteps(6, sigmas=np.linspace(1.0, 1 / 6, 6), tokens=1024)
    theirs.set_timesteps(6, mu=calculate_shift(1024, 256, 4096, 0.5, 1.15))
    walk(ours, theirs)


def test_heun_shifts_dynamically_though_diffusers_has_only_the_fixed_shift() -> None:
    ours, theirs = scheduler_from_config(FLUX, "flow_heun"), flow_of(FLUX, "flow_heun")
    euler = flow_of(FLUX, "flow_euler")
    ours.set_timesteps(5, tokens=1024)
    theirs.set_timesteps(5)
    euler.set_timesteps(5, mu=calculate_shift(1024, 256, 4096, 0.5, 1.15))
    theirs.sigmas = torch.cat([euler.sigmas[:-1].repeat_interleave(2)[1:], euler.sigmas[-1:]])
    theirs.timesteps = euler.timesteps.repeat_interleave(2)[1:]
    walk(ours, theirs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("flow_euler", {"shift_terminal": 0.1}),
        ("flow_euler", {"shift_terminal": 0.02, "shift": 6.0}),
        ("flow_euler", {"use_karras_sigmas": True}),
        ("flow_euler", {"stochastic_sampling": True}),
        ("unipc", {"shift_terminal": 0.1}),
        ("unipc", {"solver_order": 3, "final_sigmas_type": "sigma_min"}),
        ("unipc", {"solver_order": 3, "disable_corrector": [0]}),
        ("dpmpp_2m", {"solver_order": 1}),
        ("dpmpp_2m", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_options_are_followed_as_diffusers_follows_them(name: str, options: dict[str, Any]) -> None:
    config = {**SD3, **options}
    ours, theirs = scheduler_from_config(config, name), flow_of(config, name)
    for steps in (4, 16):
        compare(ours, theirs, steps)


def test_one_step_of_pure_noise_is_not_stretched() -> None:
    ours = scheduler_from_config({**SD3, "shift_terminal": 0.1})
    ours.set_timesteps(1)
    assert ours.timesteps.tolist() == [1000.0]


@pytest.mark.parametrize("name", [name for name in scheduler_names(SD15_PNDM) if name not in FLOW_NAMES])
def test_a_flow_matching_model_refuses_what_cannot_do_it_and_names_what_can(name: str) -> None:
    for config in (SD3, SANA):
        with pytest.raises(BadInput) as wrong:
            scheduler_from_config(config, name)
        assert wrong.value.what == (
            f"The scheduler {name!r} draws with models of diffusion; this is one of flow matching."
        )
        assert wrong.value.fix == f"Choose one of: {', '.join(FLOW_NAMES)}."


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_a_diffusion_model_refuses_schedulers_of_flow_matching(name: str) -> None:
    with pytest.raises(BadInput, match=r"draws with models of flow matching; this is one of diffusion\.") as wrong:
        scheduler_from_config(SD15_PNDM, name)
    assert "euler_a" in wrong.value.fix
    assert "flow_euler" not in wrong.value.fix


def test_the_names_for_a_kind_of_model() -> None:
    assert scheduler_names(SD3) == scheduler_names(SANA) == FLOW_NAMES
    kinds = (SD3, SD15_PNDM, SPRINT)
    assert {name for kind in kinds for name in scheduler_names(kind)} == set(scheduler_names()) == set(SCHEDULERS)
    for config in (SD3, FLUX, SANA, SPRINT, SD15_PNDM):
        assert scheduler_from_config(config, stand_in_name(config)).name == stand_in_name(config)


REFUSED = [
    ({**SD3, "invert_sigmas": True}, "flow_euler", "invert_sigmas"),
    ({**SD3, "use_beta_sigmas": True}, "flow_euler", "use_beta_sigmas"),
    ({**SD3, "use_exponential_sigmas": True}, "flow_euler", "use_exponential_sigmas"),
    ({**SD3, "stochastic_sampling": True}, "flow_heun", "stochastic_sampling"),
    ({**SD3, "shift": 0}, "flow_euler", "shift"),
    ({**SD3, "shift": None}, "flow_euler", "shift"),
    ({**SD3, "shift_terminal": 1.0}, "flow_euler", "shift_terminal"),
    ({**SD3, "time_shift_type": "cubic"}, "flow_euler", "time_shift_type"),
    ({**FLUX, "max_image_seq_len": 256}, "flow_euler", "max_image_seq_len"),
    ({**FLUX, "time_shift_type": "linear"}, "dpmpp_2m", "time_shift_type"),
    ({**SD3, "use_karras_sigmas": True}, "dpmpp_2m", "use_karras_sigmas"),
    ({**SD3, "use_karras_sigmas": True}, "unipc", "use_karras_sigmas"),
    ({**SANA, "use_flow_sigmas": False}, None, "use_flow_sigmas"),
    ({**SANA, "prediction_type": "epsilon"}, "flow_euler", "prediction_type"),
    ({**SD15_PNDM, "shift_terminal": 0.1}, "unipc", "shift_terminal"),
]


@pytest.mark.parametrize(("config", "name", "option"), REFUSED)
def test_an_option_we_cannot_follow_is_refused_by_name(config: dict[str, Any], name: str | None, option: str) -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config(config, name)
    assert option in wrong.value.what
    assert "scheduler_config.json" in wrong.value.fix


def test_a_size_is_needed_for_dynamic_shifting() -> None:
    for name in FLOW_NAMES:
        with pytest.raises(BadInput, match="use_dynamic_shifting"):
            scheduler_from_config(FLUX, name).set_timesteps(4)


def test_levels_of_the_wrong_number_or_for_the_wrong_scheduler_are_refused() -> None:
    levels = np.linspace(1.0, 0.25, 4)
    with pytest.raises(BadInput, match="4 noise levels were given for 5 steps"):
        scheduler_from_config(SD3).set_timesteps(5, sigmas=levels)
    for name in scheduler_names(SD15_PNDM):
        with pytest.raises(BadInput, match="does not take noise levels"):
            scheduler_from_config(SD15_PNDM, name).set_timesteps(4, sigmas=levels)
        scheduler_from_config(SD15_PNDM, name).set_timesteps(4, tokens=4096)  # tokens say nothing here


def test_heun_starts_where_a_step_starts() -> None:
    ours = scheduler_from_config(SD3, "flow_heun")
    ours.set_timesteps(4)
    zeros = np.zeros(SHAPE, np.float32)
    with pytest.raises(BadInput, match="cannot start at call 3, in the middle of a step"):
        ours.step(zeros, 3, zeros, TorchCpuGenerator(0))
