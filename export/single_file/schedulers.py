"""scheduler_config.json of each family's base model, which a single checkpoint does not hold.

As diffusers' single-file loader takes them: PNDM of stable-diffusion-v1-5, DDIM with v-prediction of
stable-diffusion-2-1, Euler of stable-diffusion-xl-base-1.0, flow matching of stable-diffusion-3-medium and FLUX.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import UsageError

Config = dict[str, Any]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

_NOISE: Config = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PNDM: Config = {"_class_name": "PNDMScheduler", **_NOISE}
DDIM_V: Config = {"_class_name": "DDIMScheduler", **_NOISE, "prediction_type": "v_prediction"}
EULER: Config = {
    "_class_name": "EulerDiscreteScheduler",
    **_NOISE,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
FLOW: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FLUX: Config = {
    **FLOW,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
}


def adapted(scheduler: Config, names: Mapping[str, Any], prediction_type: str | None, guided: bool) -> Config:
    """A scheduler for one checkpoint.

    Args:
        scheduler: the family's, or that of the model that `--config` names.
        names: of the checkpoint's tensors. Trainers mark v-prediction and a noise schedule that ends in pure noise with
            empty tensors, `v_pred` and `ztsnr`.
        prediction_type: what the user says that the model predicts; None leaves it to the family and the marks.
        guided: False for a Flux that was not distilled with guidance: the fast one is not shifted by size.

    Raises:
        UsageError: a prediction type that does not exist, or one for flow matching, which has its own.
    """
    flow = str(scheduler.get("_class_name")).startswith("FlowMatch")
    if prediction_type is not None:
        if prediction_type not in PREDICTION_TYPES:
            raise UsageError(
                f"There is no prediction type {prediction_type!r}.", f"Give one of {', '.join(PREDICTION_TYPES)}."
            )
        if flow:
            raise UsageError("A flow-matching model predicts a flow.", "Leave --prediction-type out.")
        return scheduler | {"prediction_type": prediction_type} | _zero_snr(names)
    if "use_dynamic_shifting" in scheduler and not guided:
        return scheduler | {"shift": 1.0, "use_dynamic_shifting": False}
    if "v_pred" in names and not flow:
        return scheduler | {"prediction_type": "v_prediction"} | _zero_snr(names)
    return scheduler


def _zero_snr(names: Mapping[str, Any]) -> Config:
    return {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in names else {}
