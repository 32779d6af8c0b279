"""Flow matching: x_t = (1 - sigma) x_0 + sigma noise, and the model predicts noise - x_0.

Lipman et al., arXiv 2210.02747; Liu et al., arXiv 2209.03003. Larger pictures need more noise for the same effect, so
the noise levels are shifted (Esser et al., arXiv 2403.03206, section 5.3.2): by a factor of the model, or by one that
follows from the picture's size ("dynamic shifting").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ...core.errors import BadInput
from .base import Settings
from .options import given_options

FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
FLOW = "flow_prediction"

Levels = npt.NDArray[np.floating[Any]]  # float32 or float64, kept as it is


@dataclass(frozen=True, kw_only=True)
class ShiftSettings(Settings):
    """How a flow-matching model's noise levels are shifted; the numbers of tokens are those that the shifts belong to.

    The numbers and `base_shift`, `max_shift` are options of FlowMatchEulerDiscreteScheduler alone; diffusers' pipelines
    read them from the options of any scheduler.
    """

    choices: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Settings.choices,
        "time_shift_type": ("exponential", "linear"),
    }

    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    time_shift_type: str = "exponential"


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether these scheduler options are those of a flow-matching model."""
    given = given_options(config)
    flagged = given.get("use_flow_sigmas") is True or given.get("prediction_type") == FLOW
    return config.get("_class_name") in FLOW_CLASSES or flagged


def as_flow(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a flow-matching model in the words of every scheduler that can do flow matching.

    FlowMatchEulerDiscreteScheduler calls the factor `shift` and needs no more; the multistep solvers call it
    `flow_shift` and want two options beside it. diffusers' `from_config` does not translate: a multistep solver made
    from FlowMatchEulerDiscreteScheduler's options would do diffusion, and draw noise.

    Raises:
        BadInput: the options say that the model predicts a flow, but not that its noise levels are those of one.
    """
    given = given_options(config)
    own = config.get("_class_name") in FLOW_CLASSES
    if not own and given.get("use_flow_sigmas") is not True:
        raise BadInput(
            f"The scheduler options have prediction_type={FLOW!r} without use_flow_sigmas=true.",
            "Set use_flow_sigmas to true in scheduler_config.json, and flow_shift to the model's shift.",
        )
    shift = given.get("shift" if own else "flow_shift", 1.0)
    predicts = FLOW if own else given.get("prediction_type", "epsilon")
    return {**given, "shift": shift, "flow_shift": shift, "use_flow_sigmas": True, "prediction_type": predicts}


def shifted(sigmas: Levels, settings: ShiftSettings, shift: float, tokens: int | None, name: str) -> Levels:
    """Noise levels in (0, 1], shifted by the factor `shift`, or by the picture's size where the settings say so.

    Args:
        tokens: of the picture, for dynamic shifting. name: the scheduler's, for messages.

    Raises:
        BadInput: the settings want dynamic shifting and there are no `tokens`.
    """
    if not settings.use_dynamic_shifting:
        fixed: Levels = shift * sigmas / (1 + (shift - 1) * sigmas)
        return fixed
    mu = image_mu(settings, tokens, name)
    factor = math.exp(mu) if settings.time_shift_type == "exponential" else mu
    dynamic: Levels = factor / (factor + (1 / sigmas - 1))
    return dynamic


def image_mu(settings: ShiftSettings, tokens: int | None, name: str) -> float:
    """The shift for a picture of `tokens` tokens, on the line through the settings' two points.

    `calculate_shift` of diffusers' FluxPipeline; with exponential shifting the factor is its exponential.

    Raises:
        BadInput: there are no `tokens`.
    """
    if tokens is None:
        raise BadInput(
            f"The scheduler {name!r} shifts its noise levels by the picture's size (use_dynamic_shifting) and was not "
            "told it.",
            "Give set_timesteps the number of image tokens, or set use_dynamic_shifting to false.",
        )
    least, most = settings.base_image_seq_len, settings.max_image_seq_len
    slope = (settings.max_shift - settings.base_shift) / (most - least)
    return tokens * slope + (settings.base_shift - slope * least)


def stretched(sigmas: Levels, terminal: float | None) -> Levels:
    """Noise levels stretched so that the last one is `terminal`; as they are for None or 0.

    As LTX-Video does (HaCohen et al., arXiv 2501.00103); a single level of pure noise cannot be stretched and stays.
    """
    rest = 1 - sigmas
    if not terminal or rest[-1] == 0:
        return sigmas
    wide: Levels = 1 - rest / (rest[-1] / (1 - terminal))
    return wide


def check_flow_levels(karras: bool, flow: bool, name: str) -> None:
    """Raises BadInput where a multistep solver's options want flow matching and Karras' levels, those of diffusion."""
    if karras and flow:
        raise BadInput(
            f"The scheduler {name!r} is not supported with use_karras_sigmas=True and use_flow_sigmas=True.",
            "Supported: one of them. Change it in scheduler_config.json or choose another scheduler.",
        )
