"""Every scheduler walks the steps that diffusers' walks, for the options it takes; what it cannot follow it refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from vitrify.core.errors import BadInput
from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.pipelines.schedulers import SCHEDULERS, Scheduler, scheduler_from_config, scheduler_names

CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "dpmpp_2m_karras": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
}
ADDED = {"dpmpp_2m_karras": {"use_karras_sigmas": True}}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

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
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
# diffusers turns tensors into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = (2, 4, 6, 8)
TOLERANCE = 1e-5


def denoise(scaled: np.ndarray, timestep: float) -> np.ndarray:
    """A smooth stand-in for a denoiser: float32 in, float32 out, the same for both libraries."""
    mixed = 0.7 * scaled - 0.3 * np.roll(scaled, 1, axis=1) + 0.2 * np.roll(scaled, 1, axis=3)
    return np.tanh(mixed + np.float32(np.sin(timestep / 300.0))).astype(np.float32)


def theirs_from(config: dict[str, Any], name: str) -> Any:
    """The diffusers scheduler for one of our names."""
    return getattr(diffusers, CLASSES[name]).from_config(dict(config), **ADDED.get(name, {}))


def compare(ours: Scheduler, theirs: Any, steps: int, *, start: int = 0, tolerance: float = TOLERANCE) -> None:
    """Walks both, each on its own latents, and compares them after every step."""
    ours.set_timesteps(steps)
    theirs.set_timesteps(steps)
    expected = theirs.timesteps.numpy()
    assert ours.timesteps.dtype == expected.dtype
    if (expected % 1).any():  # made from sigmas, with which torch's square root takes its liberty of one last digit
        np.testing.assert_allclose(ours.timesteps, expected, rtol=5e-7)
    else:
        np.testing.assert_array_equal(ours.timesteps, expected)
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-6)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(start)

    drawn = np.random.default_rng(steps).standard_normal((2, *SHAPE)).astype(np.float32)
    if start:
        mine = ours.add_noise(drawn[0], drawn[1], start)
        timestep = theirs.timesteps[start : start + 1]
        other = theirs.add_noise(torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1]), timestep)
    else:
        mine = drawn[0] * np.float32(ours.init_noise_sigma)
        other = torch.from_numpy(drawn[0]) * theirs.init_noise_sigma
    assert np.abs(mine - other.numpy()).max() <= tolerance * np.abs(other.numpy()).max()

    my_generator, other_generator = TorchCpuGenerator(17), torch.Generator("cpu").manual_seed(17)
    noisy = type(theirs).__name__ in ("EulerAncestralDiscreteScheduler", "LCMScheduler")
    pairs = []
    for index in range(start, len(ours.timesteps)):
        timestep = theirs.timesteps[index]
        my_output = denoise(ours.scale_model_input(mine, index), float(timestep))
        mine = ours.step(my_output, index, mine, my_generator)
        other_output = torch.from_numpy(denoise(theirs.scale_model_input(other, timestep).numpy(), float(timestep)))
        extra = {"generator": other_generator} if noisy else {}
        other = theirs.step(other_output, timestep, other, **extra).prev_sample
        assert mine.dtype == np.float32
        assert mine.shape == SHAPE
        assert other.isfinite().all()
        pairs.append((mine, other.numpy()))
    scale = float(np.ptp(pairs[-1][1]))
    for index, (a, b) in enumerate(pairs, start):
        # Early latents of the Euler schedulers are larger than the last ones by the noise they carry.
        difference = float(np.abs(a - b).max()) / max(scale, float(np.ptp(b)))
        assert difference <= tolerance, f"step {index} of {len(ours.timesteps)}: {difference:.2e}"


def config_of(name: str, **options: Any) -> dict[str, Any]:
    """Options as diffusers would write them for this scheduler."""
    always = {"skip_prk_steps": True} if name == "pndm" else {"clip_sample": False} if name == "ddim" else {}
    return {"_class_name": CLASSES[name], **NOISE, **always, **options}


EVERY_KIND = [
    (name, prediction, spacing)
    for name in CLASSES
    for prediction in ("epsilon", "v_prediction", "sample")
    for spacing in ("leading", "linspace", "trailing")
    # diffusers has no sample prediction for these two, and one spacing for lcm.
    if not (prediction == "sample" and name in ("pndm", "euler_a")) and not (name == "lcm" and spacing != "leading")
]


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 25])
@pytest.mark.parametrize(("name", "prediction", "spacing"), EVERY_KIND)
def test_steps_are_those_of_diffusers(name: str, prediction: str, spacing: str, steps: int) -> None:
    config = config_of(name, prediction_type=prediction, timestep_spacing=spacing, **ADDED.get(name, {}))
    ours = scheduler_from_config(config)
    assert ours.name == name
    compare(ours, theirs_from(config, name), steps)


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
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"disable_corrector": [0, 1]}),
    ("unipc", {"use_karras_sigmas": True}),
    ("unipc", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("unipc", ZERO_SNR),
    ("lcm", {"clip_sample": True}),
    ("lcm", {"original_inference_steps": 100, "timestep_scaling": 3.0}),
    ("lcm", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_options_are_followed_as_diffusers_follows_them(name: str, options: dict[str, Any], steps: int) -> None:
    config = config_of(name, **options)
    # A zero terminal SNR leaves few digits at the first step, and torch's own square root costs one: see base.py.
    tolerance = 1e-4 if "rescale_betas_zero_snr" in options else TOLERANCE
    compare(scheduler_from_config(config), theirs_from(config, name), steps, tolerance=tolerance)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    "source",
    [
        SD15_PNDM,
        SDXL_EULER,
        {**SDXL_EULER, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0, "timestep_spacing": "trailing"},
        {"_class_name": "DDPMScheduler", **NOISE, "variance_type": "fixed_small", "clip_sample": True},
        # Without final_sigmas_type diffusers itself refuses deis here, before it replaces it.
        {"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
        {"_class_name": "UniPCMultistepScheduler", **NOISE, "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
        {"_class_name": "DPMSolverMultistepScheduler", **NOISE, "solver_type": "midpoint", "lower_order_final": True},
        {**NOISE, "beta_schedule": "linear", "steps_offset": 3},
        {},
    ],
    ids=lambda source: f"{source.get('_class_name')}-{len(source)}",
)
def test_another_scheduler_takes_over_the_options_as_from_config_does(source: dict[str, Any], name: str) -> None:
    source = {**source, "skip_prk_steps": True} if name == "pndm" else source
    for steps in (4, 20):
        compare(scheduler_from_config(source, name), theirs_from(source, name), steps)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "pndm"])
def test_options_that_diffusers_filled_in_itself_do_not_count(name: str) -> None:
    source = dict(diffusers.DDIMScheduler(**NOISE).config)  # written by a live object, with _use_default_values
    assert "timestep_spacing" in source["_use_default_values"]
    compare(scheduler_from_config(source, name), theirs_from(source, name), 6)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(("steps", "start"), [(8, 3), (20, 15), (20, 19)])
def test_a_run_can_start_late_from_noised_latents(name: str, steps: int, start: int) -> None:
    compare(scheduler_from_config(SD15_PNDM, name), theirs_from(SD15_PNDM, name), steps, start=start)


@pytest.mark.parametrize("name", CLASSES)
def test_set_timesteps_starts_anew(name: str) -> None:
    ours = scheduler_from_config(SD15_PNDM, name)
    compare(ours, theirs_from(SD15_PNDM, name), 7)
    compare(ours, theirs_from(SD15_PNDM, name), 5)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in ("lcm",)])
def test_many_steps_stay_close(name: str) -> None:
    # float32 noise grows with the steps, in diffusers as in ours: UniPC's weights lose digits as the steps get short.
    config = config_of(name, timestep_spacing="linspace")
    compare(scheduler_from_config(config, name), theirs_from(config, name), 100, tolerance=1e-4)


@pytest.mark.parametrize("name", CLASSES)
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
    for name in ("ddim", "euler", "dpmpp_2m", "unipc", "pndm"):
        ours = scheduler_from_config(config_of(name, timestep_spacing="trailing"))
        ours.set_timesteps(61)
        assert len(ours.timesteps) == (62 if name == "pndm" else 61)
        assert ours.timesteps.min() >= 0


def test_the_table_of_names() -> None:
    assert scheduler_names() == list(SCHEDULERS) == list(CLASSES)
    for name in CLASSES:
        assert scheduler_from_config(SD15_PNDM, name).name == name
    assert scheduler_from_config({**SDXL_EULER, "_class_name": "DDIMScheduler"}).name == "ddim"
    karras = {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}
    assert scheduler_from_config(karras).name == "dpmpp_2m_karras"


REFUSED = [
    ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("euler", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
    ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
    ("euler", {"timestep_type": "continuous"}, "timestep_type"),
    ("euler", {"prediction_type": "flow_prediction"}, "prediction_type"),
    ("euler_a", {"prediction_type": "sample"}, "prediction_type"),
    ("pndm", {"prediction_type": "sample", "skip_prk_steps": True}, "prediction_type"),
    ("pndm", {}, "skip_prk_steps"),
    ("ddim", {"thresholding": True}, "thresholding"),
    ("ddim", {"beta_schedule": "sigmoid"}, "beta_schedule"),
    ("ddim", {"timestep_spacing": "quadratic"}, "timestep_spacing"),
    ("lcm", {"thresholding": True}, "thresholding"),
    ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
    ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
    ("dpmpp_2m", {"solver_type": "heun"}, "solver_type"),
    ("dpmpp_2m", {"solver_order": 3}, "solver_order"),
    ("dpmpp_2m", {"variance_type": "learned_range"}, "variance_type"),
    ("dpmpp_2m", {"use_lu_lambdas": True}, "use_lu_lambdas"),
    ("dpmpp_2m_karras", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("dpmpp_2m", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("unipc", {"solver_type": "bh1"}, "solver_type"),
    ("unipc", {"predict_x0": False}, "predict_x0"),
    ("unipc", {"use_flow_sigmas": True}, "use_flow_sigmas"),
    ("unipc", {"solver_p": {"_class_name": "DDIMScheduler"}}, "solver_p"),
    ("unipc", {"lower_order_final": False}, "lower_order_final"),
    ("unipc", {"sigma_min": 0}, "sigma_min"),
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


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        (SD15_PNDM, "heun", "'heun'"),
        ({"_class_name": "HeunDiscreteScheduler"}, None, "'HeunDiscreteScheduler'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, None, "'FlowMatchEulerDiscreteScheduler'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "euler", "none of ours can stand in"),
        ({"_class_name": ["x"]}, "euler", "['x']"),
        (NOISE, None, "_class_name"),
    ],
)
def test_unknown_classes_and_names_are_refused(config: dict[str, Any], name: str | None, expected: str) -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config(config, name)
    assert expected in wrong.value.what
    assert "Scheduler" in wrong.value.fix or "dpmpp_2m_karras" in wrong.value.fix


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True])
def test_a_number_of_steps_out_of_range_is_refused(name: str, steps: Any) -> None:
    with pytest.raises(BadInput, match=r"from 1 to 1000, not"):
        scheduler_from_config(SD15_PNDM, name).set_timesteps(steps)


def test_steps_that_one_scheduler_cannot_take_are_refused() -> None:
    past, many = "past the last timestep", "too many"
    for name, message in [("lcm", "distilled on"), ("ddim", past), ("pndm", past), ("dpmpp_2m", many), ("unipc", many)]:
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


@pytest.mark.parametrize("name", ["pndm", "dpmpp_2m", "dpmpp_2m_karras", "unipc"])
def test_a_history_with_a_gap_is_refused(name: str) -> None:
    ours = scheduler_from_config(SD15_PNDM, name)
    ours.set_timesteps(5)
    latents = np.zeros(SHAPE, dtype=np.float32)
    ours.step(latents, 1, latents, TorchCpuGenerator(0))
    with pytest.raises(BadInput, match="Step 3 was asked for after step 1"):
        ours.step(latents, 3, latents, TorchCpuGenerator(0))


def test_importing_them_loads_no_heavy_library() -> None:
    code = "import sys, vitrify.pipelines.schedulers; print({'torch', 'diffusers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
