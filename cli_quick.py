"""Arguments that are plainly what they should be, converted without pydantic.

typer 0.26 and newer converts each argument with a pydantic adapter, and importing pydantic and building the adapters of
one command takes as long as all else of a start. What is not plain goes to typer, with its checks and its errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

_NUMBERS = {int: re.compile(r"-?[0-9]{1,15}"), float: re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")}
_NOT_PLAIN = object()


def quicken(command: Any) -> None:
    """Let the parameters of a command convert what is plain themselves; nothing changes with an older typer."""
    usual = command.get_params

    def get_params(ctx: Any) -> list[Any]:
        params: list[Any] = usual(ctx)  # --help is added to the command's own only here
        for param in params:
            quicken_one(param)
        return params

    command.get_params = get_params


def quicken_one(param: Any) -> None:
    """Let one parameter convert what is plain itself."""
    if hasattr(param, "type_descriptor") and "process_value" not in vars(param):
        param.process_value = _quick(param, param.process_value)


def _quick(param: Any, usual: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    info, annotation = param.type_descriptor.parameter_info, param.type_descriptor.annotation
    several = param.multiple or param.nargs != 1

    def process_value(ctx: Any, value: Any) -> Any:
        try:
            if info.parser is not None or (param.required and value in (None, (), [])):
                made = _NOT_PLAIN
            elif value is None:
                made = () if several else None
            else:
                made = _each(value, annotation, info) if several else _plain(value, annotation, info)
        except AttributeError:  # a typer that says what it asks of a value in another way
            made = _NOT_PLAIN
        if made is _NOT_PLAIN:
            return usual(ctx, value)
        return made if param.callback is None else param.callback(ctx, param, made)

    return process_value


def _each(values: Any, annotation: Any, info: Any) -> Any:
    if get_origin(annotation) is not list or not values:
        return _NOT_PLAIN
    made = [_plain(value, get_args(annotation)[0], info) for value in values]
    return _NOT_PLAIN if any(one is _NOT_PLAIN for one in made) else made


def _plain(value: Any, kind: Any, info: Any) -> Any:
    """The value as typer would convert it; `_NOT_PLAIN` where that takes more than a look."""
    if kind is str:
        return value if type(value) is str else _NOT_PLAIN
    if kind is bool:
        return value if type(value) is bool else _NOT_PLAIN
    if kind in _NUMBERS:
        number = kind(value) if type(value) is str and _NUMBERS[kind].fullmatch(value) else value
        return number if type(number) is kind and _within(number, info) else _NOT_PLAIN
    if not isinstance(kind, type):
        return _NOT_PLAIN
    if issubclass(kind, Enum):
        found = next((one for one in kind if value is one or (type(value) is str and value == one.value)), _NOT_PLAIN)
        return found
    if kind is Path:
        return Path(value) if _is_plain_path(value, info) else _NOT_PLAIN
    return _NOT_PLAIN


def _within(number: float, info: Any) -> bool:
    return (info.min is None or number >= info.min) and (info.max is None or number <= info.max)


def _is_plain_path(value: Any, info: Any) -> bool:
    """Whether nothing is asked of a path but that it can be read where it exists."""
    asked = info.exists or info.resolve_path or info.writable or info.path_type is not None
    if asked or not (info.file_okay and info.dir_okay) or not isinstance(value, str | Path):
        return False
    return not os.path.exists(value) or os.access(value, os.R_OK)
