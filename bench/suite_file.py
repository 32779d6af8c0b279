"""A suite: models and axes from a TOML file or from options, checked before anything runs."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UsageError
from ..runtimes.base import Options
from ..runtimes.options import option_kind
from .matrix import Axes, Size, check_axes
from .saved import SAVED, saved

# what a file and the options call an axis -> the field of `Axes`
_AXES = {
    **{"runtime": "runtimes", "quant": "recipes", "size": "sizes", "batch": "batches", "threads": "threads"},
    **{"options": "options", "steps": "steps", "guidance": "guidance", "device": "device"},
    "calibration": "calibration",
    **dict.fromkeys(SAVED, "saved"),
}
_MODEL = ("source", "name", *_AXES)
_RUN = ("rounds", "seconds", "timeout", "calls")
ROUNDS, SECONDS, TIMEOUT, CALLS = 5, 1.0, 900.0, 3


@dataclass(frozen=True)
class Model:
    """A model of a suite: what was named, what it is called, and its axes."""

    source: str
    name: str
    axes: Axes


@dataclass(frozen=True)
class Suite:
    """What is measured, and how often.

    rounds: processes a cell. seconds, calls: how long each times calls, and how many at least.
    timeout: seconds after which a process is stopped.
    """

    models: tuple[Model, ...]
    rounds: int = ROUNDS
    seconds: float = SECONDS
    calls: int = CALLS
    timeout: float = TIMEOUT


def suite_of(specs: Sequence[str], given: Mapping[str, Any]) -> Suite:
    """The suite in a TOML file, or of the models that are named.

    Args:
        specs: one TOML file, or artifacts, model folders and hub ids.
        given: what options say, by the names that a file uses; they win over a file's. None: not given.

    Raises:
        BadInput: the file cannot be read, or a key or value in it makes no sense; the nearest key is named.
        UsageError: no model, two of one name, or an option that makes no sense.
    """
    said = {key: value for key, value in given.items() if value is not None}
    files = [s for s in specs if s.endswith(".toml")]
    if files and len(specs) > 1:
        raise UsageError("A suite is one file, and stands alone.", "Name the other models in it.")
    if files:
        table, where = _read(Path(files[0])), Path(files[0])
        tables = table.pop("model", [])
        _known(table, (*_AXES, *_RUN), f"{where}")
        if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise BadInput(f"{where}: model is no list of tables.", "Write [[model]] before each model's source.")
        table, tables = {**table, **said}, [{**t, **{k: v for k, v in said.items() if k in _AXES}} for t in tables]
    else:
        table, tables, where = said, [{"source": s} for s in specs], None
    models = [_model(t, table, number, where) for number, t in enumerate(tables, 1)]
    if not models:
        raise UsageError("There is no model.", "Name an artifact, or write [[model]] with a source in the suite.")
    names = [m.name for m in models]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UsageError(f"Two models are called {', '.join(twice)}.", "Give each a name = in a suite, or rename one.")
    run = {
        key: (_whole if key in ("rounds", "calls") else _number)(table[key], key, f"{where or 'options'}")
        for key in _RUN
        if key in table
    }
    suite = Suite(
        tuple(models),
        int(run.get("rounds", ROUNDS)),
        float(run.get("seconds", SECONDS)),
        int(run.get("calls", CALLS)),
        float(run.get("timeout", TIMEOUT)),
    )
    if suite.rounds < 1 or suite.calls < 1 or not (0 < suite.seconds < inf and 0 < suite.timeout < inf):
        raise UsageError("rounds, calls, seconds and timeout must be numbers above 0.", "Give others.")
    return suite


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror}.", "Name a suite's TOML file.") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"{path} is no TOML: {exc}.", "See docs/bench.md for a suite.") from exc


def _known(table: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for key in table:
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            meant = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}."
            raise BadInput(f"{where}: there is no {key!r}.", meant)


def _model(table: Mapping[str, Any], above: Mapping[str, Any], number: int, where: Path | None) -> Model:
    place = f"{where}: model {number}" if where else f"model {number}"
    _known(table, _MODEL, place)
    source = table.get("source")
    if not isinstance(source, str) or not source:
        raise BadInput(f"{place} has no source.", 'Write source = "a folder or a hub id".')
    folder = Path(source)
    if where is not None and not folder.is_absolute() and (where.parent / folder).exists():
        folder = where.parent / folder
        source = str(folder)
    joined = {**{k: v for k, v in above.items() if k in _AXES}, **{k: v for k, v in table.items() if k in _AXES}}
    axes = axes_of(joined, place, where.parent if where else None)
    name = table.get("name") or (folder.resolve().name if folder.exists() else source.rstrip("/").rpartition("/")[2])
    if not isinstance(name, str) or name in ("", ".", ".."):
        raise BadInput(f"{place}: name is {name!r}.", 'Write name = "...".')
    return Model(source, name, axes)


def axes_of(table: Mapping[str, Any], place: str, beside: Path | None = None) -> Axes:
    """The axes in a table of a suite; beside: the folder that its paths are relative to.

    Raises:
        BadInput, UsageError: a value that makes no sense.
    """
    axes = Axes()
    for key, value in table.items():
        name = _AXES[key]
        values = value if isinstance(value, list | tuple) else [value]
        made: Any
        if key == "size":
            made = tuple(size_of(v, place) for v in values)
        elif key in ("batch", "threads"):
            made = tuple(_whole(v, key, place) for v in values)
        elif key == "options":
            made = tuple(_options(v, place) for v in values)
        elif key in SAVED:
            made = tuple(_saved(key, v, place) for v in values)
        elif key in ("runtime", "quant"):
            made = tuple(_text(v, key, place) for v in values)
        elif key == "steps":
            made = _whole(value, key, place)
        elif key == "guidance":
            made = float(_number(value, key, place))
        elif key == "calibration":
            made = Path(_text(value, key, place)) if not isinstance(value, Path) else value
            made = beside / made if beside is not None and (beside / made).exists() else made
            if not made.exists():
                raise BadInput(f"{made}, to calibrate with, does not exist.", "Give a file of prompts or a folder.")
        else:
            made = _text(value, key, place)
        if isinstance(made, tuple):
            made = tuple(one for number, one in enumerate(made) if one not in made[:number])  # each once
        if made == ():
            raise BadInput(f"{place}: {key} is empty.", "Give at least one, or leave it out.")
        if name == "saved":
            made = {**axes.saved, key: made}
        axes = replace(axes, **{name: made})
    check_axes(axes)
    return axes


def size_of(value: Any, place: str = "size") -> Size:
    """Width and height of "512x512" or 512.

    Raises:
        BadInput: it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    match = re.fullmatch(r"(\d+)(?:[x*×](\d+))?", str(value).strip().lower())
    if match is None:
        raise BadInput(f"{place}: the size {value!r} cannot be read.", 'Write "512x512", width first.')
    return int(match[1]), int(match[2] or match[1])


def _options(value: Any, place: str) -> dict[str, Any]:
    defaults = Options()
    names = [f.name for f in fields(Options) if f.name not in ("threads", "optional")]
    if not isinstance(value, Mapping):
        raise BadInput(f"{place}: options are {value!r}.", "Write options = [{}, {prepack = false}].")
    _known(value, names, f"{place}, options")
    for key, one in value.items():
        kind = option_kind(key)
        if type(one) is not kind:
            raise BadInput(f"{place}: the option {key} is {one!r}.", f"Write one like {getattr(defaults, key)!r}.")
    return {key: one for key, one in value.items() if one != getattr(defaults, key)}


def _saved(key: str, value: Any, place: str) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{place}: {key} is {value!r}.", f'Write it as an option takes it, such as {key} = ["none"].')
    return saved(key, str(value), f"{place}: {key}")


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise BadInput(f"{place}: {key} is {value!r}.", f'Write {key} = "...".')
    return value


def _whole(value: Any, key: str, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"{place}: {key} is {value!r}.", f"Write a whole number, as in {key} = 4.")
    return value


def _number(value: Any, key: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{place}: {key} is {value!r}.", f"Write a number, as in {key} = 4.")
    return value
