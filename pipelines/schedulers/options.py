"""From the content of a diffusers scheduler_config.json to the settings of one of our schedulers.

Follows `ConfigMixin.from_config` of diffusers 0.42: options the class knows are taken over, whatever class wrote them;
the others are dropped; defaults fill the rest. An option it knows and we cannot follow is an error.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from ...core.errors import BadInput
from .base import Settings

S = TypeVar("S", bound=Settings)

MOST_TRAIN_TIMESTEPS = 100_000  # a table of this length is made; the file may come from anywhere


def given_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `config` but for those that diffusers filled in itself and lists in `_use_default_values`."""
    defaulted = set(config.get("_use_default_values") or ())
    return {key: value for key, value in config.items() if key not in defaulted}


def settings_from_config(settings_type: type[S], config: Mapping[str, Any], name: str, **overrides: Any) -> S:
    """The settings that `config` gives a scheduler.

    Args:
        settings_type: the scheduler's own settings.
        config: option -> value; keys listed in `_use_default_values`, which diffusers filled in itself, do not count.
        name: the scheduler's name, for messages.
        overrides: options that win over `config`.

    Raises:
        BadInput: an option has a value of the wrong type, out of range, or not supported.
    """
    given = given_options(config) | overrides
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings_type):
        if field.name in given:
            value = _checked_type(field, given[field.name], name)
            aliases = settings_type.aliases.get(field.name, {})
            values[field.name] = aliases.get(value, value) if isinstance(value, str) else value
            _check_supported(settings_type, field.name, values[field.name], name)
    settings = settings_type(**values)
    _check_ranges(settings, name)
    return settings


def _check_supported(settings_type: type[Settings], option: str, value: object, name: str) -> None:
    choices = settings_type.choices.get(option)
    if choices is not None and value not in choices:
        raise _unsupported(option, value, name, f"Supported: {', '.join(map(str, choices))}.")
    if value in settings_type.refused.get(option, ()):
        raise _unsupported(option, value, name, "Supported: any other value.")


def _unsupported(option: str, value: object, name: str, supported: str) -> BadInput:
    return BadInput(
        f"The scheduler {name!r} is not supported with {option}={value!r}.",
        f"{supported} Change it in scheduler_config.json or choose another scheduler.",
    )


def _checked_type(field: dataclasses.Field[Any], value: Any, name: str) -> Any:
    """The value, if it is what the option's default is (None stands for "off")."""
    default = field.default
    if value is None and (default is None or isinstance(default, bool)):
        return default
    if field.name in ("trained_betas", "disable_corrector"):
        right = isinstance(value, list | tuple) and all(_is_number(item) for item in value)
    elif isinstance(default, bool):
        right = isinstance(value, bool)
    elif isinstance(default, int):
        right = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(default, str):
        right = isinstance(value, str)
    elif isinstance(default, float) or field.name in ("sigma_min", "sigma_max", "shift_terminal"):
        right = _is_number(value)
    else:
        right = True
    if not right:
        raise BadInput(
            f"The option {field.name} of the scheduler {name!r} is {value!r}; its default is {default!r}.",
            "Give a value of that kind in scheduler_config.json.",
        )
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _check_ranges(settings: Settings, name: str) -> None:
    train, betas = settings.num_train_timesteps, settings.trained_betas
    sigmas = {option: getattr(settings, option, None) for option in ("sigma_min", "sigma_max")}
    shifts = {option: getattr(settings, option, 1.0) for option in ("shift", "flow_shift")}
    terminal = getattr(settings, "shift_terminal", None)
    problem = ""
    if not 2 <= train <= MOST_TRAIN_TIMESTEPS:
        problem = f"num_train_timesteps={train} is not between 2 and {MOST_TRAIN_TIMESTEPS}"
    elif not (0 < settings.beta_start < 1 and 0 < settings.beta_end < 1):
        problem = f"beta_start={settings.beta_start} and beta_end={settings.beta_end} are not both between 0 and 1"
    elif betas is not None and len(betas) != train:
        problem = f"trained_betas has {len(betas)} values, num_train_timesteps is {train}"
    elif betas is not None and not all(0 < beta < 1 for beta in betas):
        problem = "trained_betas has values that are not between 0 and 1"
    elif not 0 <= settings.steps_offset < train:
        problem = f"steps_offset={settings.steps_offset} is not between 0 and {train - 1}"
    elif any(sigma is not None and not 0 < sigma < math.inf for sigma in sigmas.values()):
        problem = f"{sigmas} has values that are not above 0 and finite"
    elif not all(0 < shift < math.inf for shift in shifts.values()):
        problem = f"{shifts} has values that are not above 0 and finite"
    elif terminal is not None and not 0 <= terminal < 1:
        problem = f"shift_terminal={terminal} is not between 0 and 1"
    elif getattr(settings, "base_image_seq_len", 0) == getattr(settings, "max_image_seq_len", 1):
        problem = "base_image_seq_len and max_image_seq_len are the same"
    if problem:
        raise BadInput(
            f"The settings of the scheduler {name!r} are not usable: {problem}.", "Correct scheduler_config.json."
        )
