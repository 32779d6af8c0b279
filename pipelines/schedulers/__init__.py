"""Schedulers by name, and from the scheduler_config.json of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import BadInput
from .base import Scheduler
from .ddim import DdimScheduler
from .dpmpp_2m import DpmSolverKarrasScheduler, DpmSolverScheduler
from .euler import EulerAncestralScheduler, EulerScheduler
from .lcm import LcmScheduler
from .pndm import PndmScheduler
from .unipc import UniPcScheduler

__all__ = ["SCHEDULERS", "Scheduler", "scheduler_from_config", "scheduler_names"]

# A new scheduler is one file and one row here, and a row below when diffusers has a class for it.
SCHEDULERS: dict[str, Callable[[Mapping[str, Any]], Scheduler]] = {
    "ddim": DdimScheduler,
    "euler": EulerScheduler,
    "euler_a": EulerAncestralScheduler,
    "dpmpp_2m": DpmSolverScheduler,
    "dpmpp_2m_karras": DpmSolverKarrasScheduler,
    "unipc": UniPcScheduler,
    "lcm": LcmScheduler,
    "pndm": PndmScheduler,
}

NAMES_OF_CLASSES = {
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "PNDMScheduler": "pndm",
}

# We cannot run these, but their options describe the same noise, so a scheduler named instead can take them over.
EXCHANGEABLE_CLASSES = (
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "TCDScheduler",
)


def scheduler_names() -> list[str]:
    """The names that `scheduler_from_config` takes."""
    return list(SCHEDULERS)


def scheduler_from_config(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """The scheduler that a model's options ask for, or the one called `name` with the same options.

    Args:
        config: the content of a diffusers scheduler_config.json.
        name: one of `scheduler_names()`; None for the class that `config` names as "_class_name". A scheduler named
            here takes over the options it knows and its own defaults for the rest, as diffusers' `from_config` does.

    Raises:
        BadInput: the class or the name is not known, or an option has a value that is not supported.
    """
    source = config.get("_class_name")
    if name is not None and name not in SCHEDULERS:
        raise BadInput(f"There is no scheduler {name!r}.", f"Choose one of: {', '.join(SCHEDULERS)}.")
    if name is None and source is None:
        raise BadInput("The scheduler options have no _class_name.", f"Name a scheduler: {', '.join(SCHEDULERS)}.")
    if source is not None and (not isinstance(source, str) or source not in NAMES_OF_CLASSES):
        _refuse_class(source, name)
    return SCHEDULERS[name or NAMES_OF_CLASSES[str(source)]](config)


def _refuse_class(source: object, name: str | None) -> None:
    """Raises BadInput for a diffusers class we do not have, unless another one is named that can stand in for it."""
    if source not in EXCHANGEABLE_CLASSES:
        raise BadInput(
            f"The scheduler class {source!r} is not supported, and none of ours can stand in for it.",
            f"Supported: {', '.join(NAMES_OF_CLASSES)}.",
        )
    if name is None:
        raise BadInput(
            f"The scheduler class {source!r} is not supported.", f"Name one instead: {', '.join(SCHEDULERS)}."
        )
