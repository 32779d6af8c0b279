"""Schedulers by name, and from the scheduler_config.json of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import BadInput
from .base import Scheduler
from .flow import as_flow, is_flow
from .scm import is_trigflow
from .table import (
    DIFFUSION,
    FLOW_MATCHING,
    NAMES_OF_CLASSES,
    SCHEDULERS,
    TRIGFLOW,
    own_name,
    scheduler_name,
    with_karras,
)

__all__ = [
    "EXCHANGEABLE_CLASSES",
    "NAMES_OF_CLASSES",
    "SCHEDULERS",
    "Scheduler",
    "own_name",
    "scheduler_from_config",
    "scheduler_name",
    "scheduler_names",
    "stand_in_name",
    "with_karras",
]

# We cannot run these, but their options describe the same noise, so a scheduler named instead can take them over.
EXCHANGEABLE_CLASSES = ("DDPMScheduler", "DPMSolverSinglestepScheduler")


def scheduler_names(config: Mapping[str, Any] | None = None) -> list[str]:
    """The names of our schedulers; `scheduler_from_config` takes others too.

    Args:
        config: a model's scheduler options; only what draws with that kind of model is named then.
    """
    return [name for name, row in SCHEDULERS.items() if config is None or _kind(config) in row.models]


def stand_in_name(config: Mapping[str, Any]) -> str:
    """A scheduler that draws with any model of the kind that has these options, the same picture every time."""
    return {FLOW_MATCHING: "flow_euler", TRIGFLOW: "scm"}.get(_kind(config), "ddim")


def scheduler_from_config(config: Mapping[str, Any], name: str | None = None) -> Scheduler:
    """The scheduler that a model's options ask for, or the one called `name` with the same options.

    Args:
        config: the content of a diffusers scheduler_config.json.
        name: one of `scheduler_names()`, a name of the web UI's or a class of diffusers, in any case; None for the
            class that `config` names as "_class_name". A scheduler named here takes over the options it knows and its
            own defaults for the rest, as diffusers' `from_config` does. In flow matching it also takes the model's
            shift and prediction under whatever names it has for them, which `from_config` leaves to the caller.

    Raises:
        BadInput: the class or the name is not known, the scheduler does not draw with this kind of model, or an option
            has a value that is not supported.
    """
    source = config.get("_class_name")
    if name is None and source is None:
        raise BadInput("The scheduler options have no _class_name.", f"Name a scheduler: {_listed(config)}.")
    if name is not None:
        name = scheduler_name(name, config)
    own = own_name(config)
    if source is not None and own is None:
        _refuse_class(source, name, config)
    chosen = name or str(own)
    row, kind = SCHEDULERS[chosen], _kind(config)
    if kind not in row.models:
        raise BadInput(
            f"The scheduler {chosen!r} draws with models of {' and '.join(row.models)}; this is one of {kind}.",
            f"Choose one of: {_listed(config)}.",
        )
    return row.make(as_flow(config) if kind == FLOW_MATCHING else config)


def _refuse_class(source: object, name: str | None, config: Mapping[str, Any]) -> None:
    """Raises BadInput for a diffusers class we do not have, unless another one is named that can stand in for it."""
    if source not in EXCHANGEABLE_CLASSES:
        raise BadInput(
            f"The scheduler class {source!r} is not supported, and none of ours can stand in for it.",
            f"Supported: {', '.join(NAMES_OF_CLASSES)}.",
        )
    if name is None:
        raise BadInput(f"The scheduler class {source!r} is not supported.", f"Name one instead: {_listed(config)}.")


def _kind(config: Mapping[str, Any]) -> str:
    if is_trigflow(config):
        return TRIGFLOW
    return FLOW_MATCHING if is_flow(config) else DIFFUSION


def _listed(config: Mapping[str, Any]) -> str:
    return ", ".join(scheduler_names(config))
