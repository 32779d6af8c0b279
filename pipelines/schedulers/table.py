"""The one table of schedulers: our names, those of AUTOMATIC1111's web UI and diffusers' classes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...core.errors import BadInput
from .base import Scheduler
from .ddim import DdimScheduler
from .deis import DeisScheduler
from .dpm2 import Dpm2AncestralScheduler, Dpm2Scheduler
from .dpmpp_2m import DpmSolverScheduler
from .dpmpp_sde import DpmSdeScheduler
from .euler import EulerAncestralScheduler, EulerScheduler
from .flow_match import FlowEulerScheduler, FlowHeunScheduler
from .heun import HeunScheduler
from .lcm import LcmScheduler
from .lms import LmsScheduler
from .pndm import PndmScheduler
from .scm import ScmScheduler
from .tcd import TcdScheduler
from .unipc import UniPcScheduler

DIFFUSION, FLOW_MATCHING, TRIGFLOW = "diffusion", "flow matching", "trigonometric flow"
BOTH = (DIFFUSION, FLOW_MATCHING)


@dataclass(frozen=True)
class Row:
    """One scheduler.

    make: from the content of a scheduler_config.json; for flow matching as `as_flow` gives it.
    label: the web UI's name, or one in its manner where it has none.
    diffusers: the class that it is checked against.
    others: more names that clients of the web UI use.
    models: the kinds of model that it draws with.
    """

    make: Callable[[Mapping[str, Any]], Scheduler]
    label: str
    diffusers: str
    others: tuple[str, ...] = ()
    models: tuple[str, ...] = (DIFFUSION,)


def _karras(make: Callable[..., Scheduler]) -> Callable[[Mapping[str, Any]], Scheduler]:
    """The same at the noise levels of Karras et al., arXiv 2206.00364."""
    return partial(make, use_karras_sigmas=True)


_SDE = partial(DpmSolverScheduler, sde=True)
_MULTISTEP = "DPMSolverMultistepScheduler"

# A new scheduler is one file and one row here. Of the rows with the same class of diffusers, the first stands for it.
SCHEDULERS: dict[str, Row] = {
    "ddim": Row(DdimScheduler, "DDIM", "DDIMScheduler"),
    "euler": Row(EulerScheduler, "Euler", "EulerDiscreteScheduler", ("k_euler",)),
    "euler_karras": Row(_karras(EulerScheduler), "Euler Karras", "EulerDiscreteScheduler"),
    "euler_a": Row(
        EulerAncestralScheduler,
        "Euler a",
        "EulerAncestralDiscreteScheduler",
        ("k_euler_a", "k_euler_ancestral", "Euler ancestral"),
    ),
    "heun": Row(HeunScheduler, "Heun", "HeunDiscreteScheduler", ("k_heun",)),
    "heun_karras": Row(_karras(HeunScheduler), "Heun Karras", "HeunDiscreteScheduler"),
    "dpm2": Row(Dpm2Scheduler, "DPM2", "KDPM2DiscreteScheduler", ("k_dpm_2",)),
    "dpm2_karras": Row(_karras(Dpm2Scheduler), "DPM2 Karras", "KDPM2DiscreteScheduler", ("k_dpm_2_ka",)),
    "dpm2_a": Row(Dpm2AncestralScheduler, "DPM2 a", "KDPM2AncestralDiscreteScheduler", ("k_dpm_2_a",)),
    "dpm2_a_karras": Row(
        _karras(Dpm2AncestralScheduler), "DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", ("k_dpm_2_a_ka",)
    ),
    "dpmpp_2m": Row(DpmSolverScheduler, "DPM++ 2M", _MULTISTEP, ("k_dpmpp_2m",), BOTH),
    "dpmpp_2m_karras": Row(_karras(DpmSolverScheduler), "DPM++ 2M Karras", _MULTISTEP, ("k_dpmpp_2m_ka",)),
    "dpmpp_2m_sde": Row(_SDE, "DPM++ 2M SDE", _MULTISTEP, ("k_dpmpp_2m_sde",), BOTH),
    "dpmpp_2m_sde_karras": Row(_karras(_SDE), "DPM++ 2M SDE Karras", _MULTISTEP, ("k_dpmpp_2m_sde_ka",)),
    "dpmpp_sde": Row(DpmSdeScheduler, "DPM++ SDE", "DPMSolverSDEScheduler", ("k_dpmpp_sde",)),
    "dpmpp_sde_karras": Row(_karras(DpmSdeScheduler), "DPM++ SDE Karras", "DPMSolverSDEScheduler", ("k_dpmpp_sde_ka",)),
    "unipc": Row(UniPcScheduler, "UniPC", "UniPCMultistepScheduler", (), BOTH),
    "unipc_karras": Row(_karras(UniPcScheduler), "UniPC Karras", "UniPCMultistepScheduler"),
    "deis": Row(DeisScheduler, "DEIS", "DEISMultistepScheduler"),
    "deis_karras": Row(_karras(DeisScheduler), "DEIS Karras", "DEISMultistepScheduler"),
    "lms": Row(LmsScheduler, "LMS", "LMSDiscreteScheduler", ("k_lms",)),
    "lms_karras": Row(_karras(LmsScheduler), "LMS Karras", "LMSDiscreteScheduler", ("k_lms_ka",)),
    "pndm": Row(PndmScheduler, "PLMS", "PNDMScheduler"),
    "lcm": Row(LcmScheduler, "LCM", "LCMScheduler", ("k_lcm",)),
    "tcd": Row(TcdScheduler, "TCD", "TCDScheduler"),
    "flow_euler": Row(FlowEulerScheduler, "Flow Euler", "FlowMatchEulerDiscreteScheduler", (), (FLOW_MATCHING,)),
    "flow_heun": Row(FlowHeunScheduler, "Flow Heun", "FlowMatchHeunDiscreteScheduler", (), (FLOW_MATCHING,)),
    "scm": Row(ScmScheduler, "SCM", "SCMScheduler", (), (TRIGFLOW,)),
}

# diffusers' class -> the scheduler that stands for it; `own_name` looks at the options too.
NAMES_OF_CLASSES: dict[str, str] = {}
for _name, _row in SCHEDULERS.items():
    NAMES_OF_CLASSES.setdefault(_row.diffusers, _name)


def own_name(config: Mapping[str, Any]) -> str | None:
    """The name of the scheduler that a model's options ask for; None where their class is none of ours.

    Args:
        config: the content of a diffusers scheduler_config.json.
    """
    source = config.get("_class_name")
    base = NAMES_OF_CLASSES.get(source) if isinstance(source, str) else None
    if base is None:
        return None
    if config.get("algorithm_type") == "sde-dpmsolver++" and f"{base}_sde" in SCHEDULERS:
        base = f"{base}_sde"
    return with_karras(base) if config.get("use_karras_sigmas") is True else base


def scheduler_name(text: str, config: Mapping[str, Any] | None = None) -> str:
    """Our name of a scheduler, from ours, the web UI's or a class of diffusers, in any case.

    Args:
        text: such as "dpmpp_2m_karras", "DPM++ 2M Karras" or "DPMSolverMultistepScheduler".
        config: the model's scheduler options, which say what a class of diffusers does; none by default.

    Raises:
        BadInput: there is no such scheduler; the message names the nearest one.
    """
    key = _key(text)
    if key in _NAMES:
        return _NAMES[key]
    if key in _CLASSES:
        return str(own_name({**(config or {}), "_class_name": _CLASSES[key]}))
    near = difflib.get_close_matches(key, [*_NAMES, *_CLASSES], n=1)
    guess = f"Did you mean {_NAMES.get(near[0]) or NAMES_OF_CLASSES[_CLASSES[near[0]]]}? " if near else ""
    raise BadInput(f"There is no scheduler {text!r}.", f"{guess}Choose one of: {', '.join(SCHEDULERS)}.")


def with_karras(name: str) -> str:
    """The name of the same scheduler at Karras' noise levels; the name itself where there is none."""
    return f"{name}_karras" if f"{name}_karras" in SCHEDULERS else name


def _names() -> Iterator[tuple[str, str]]:
    for name, row in SCHEDULERS.items():
        yield from ((_key(one), name) for one in (name, row.label, *row.others))


def _key(text: str) -> str:
    """What two spellings of a name have in common."""
    return re.sub(r"[\s_-]+", " ", text.strip().lower())


_NAMES = dict(_names())
_CLASSES = {_key(source): source for source in NAMES_OF_CLASSES}
