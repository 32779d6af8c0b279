"""Options of one runtime alone: as text on a command line, and refused where they would do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from ..core.errors import UsageError
from .base import Options

SPECIAL = (
    "static", "lazy", "winograd", "provider", "compile", "attention", "channels_last", "cuda_graphs",
    "resident_weights",
)  # fmt: skip
_TRUE, _FALSE = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


def option_kind(name: str) -> type:
    """bool, int or str: what a value of this option is."""
    if name == "resident_weights":
        return int
    usual = getattr(Options(), name)
    return str if usual is None else type(usual)


def parse_options(given: Iterable[str], base: Options | None = None) -> Options:
    """`base` with the options of the texts `given`, such as "compile=regional" or "channels-last".

    Raises:
        UsageError: there is no such option, or its value is none.
    """
    names = [f.name for f in fields(Options) if f.name != "optional"]
    options = base or Options()
    for text in given:
        key, said, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if name not in names:
            raise UsageError(f"There is no runtime option {key!r}.", f"Options are {', '.join(names)}.")
        options = replace(options, **{name: _value(name, value.strip() if said else "yes")})
    return options


def _value(name: str, text: str) -> Any:
    kind = option_kind(name)
    if kind is int:
        if not text.isdecimal():
            raise UsageError(f"{name} is {text!r}.", f"Give a whole number, as in {name}=4.")
        return int(text)
    if kind is bool:
        if text.lower() not in (*_TRUE, *_FALSE):
            raise UsageError(f"{name} is {text!r}.", f"Give {name}=yes or {name}=no.")
        return text.lower() in _TRUE
    return text


def taken_by(runtime: Any) -> tuple[str, ...]:
    """The special options that a runtime acts on; an adapter of another package may name none."""
    return tuple(getattr(runtime, "takes", ()))


def check_options(runtimes: Sequence[Any], options: Options) -> None:
    """Refuse options that none of these runtimes acts on: a wish that is dropped looks like one that was granted.

    Raises:
        UsageError: names them, and what the runtimes take.
    """
    takes = sorted({name for runtime in runtimes for name in taken_by(runtime)})
    refused = [name for name in _untaken(runtimes, options) if name not in options.optional]
    if refused:
        names = " and ".join(dict.fromkeys(str(runtime.name) for runtime in runtimes))
        has = f"{names} takes {', '.join(takes)}." if takes else f"{names} has none of its own."
        raise UsageError(f"{names} has no option {', '.join(refused)}.", f"Leave it out. {has}")


def left_out(runtimes: Sequence[Any], options: Options) -> list[str]:
    """The optional ones that none of these runtimes acts on."""
    return [name for name in _untaken(runtimes, options) if name in options.optional]


def _untaken(runtimes: Sequence[Any], options: Options) -> list[str]:
    takes, plain = {name for runtime in runtimes for name in taken_by(runtime)}, Options()
    return [n for n in SPECIAL if getattr(options, n) != getattr(plain, n) and n not in takes]


def options_for(runtime: Any, options: Options) -> Options:
    """The options without those that are for other runtimes of the same artifact."""
    plain, takes = Options(), taken_by(runtime)
    return replace(options, **{name: getattr(plain, name) for name in SPECIAL if name not in takes})
