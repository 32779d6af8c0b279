"""Which runtimes there are: one literal table, and entry points that may add to it.

An adapter imports its library at its own top; this table imports the adapter late.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import MissingDependency, UsageError, VitrifyError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "vitrify.runtimes"


@dataclass(frozen=True)
class RuntimeRow:
    """Where a runtime's adapter is, the extra that installs its library, and the component formats it opens."""

    module: str
    extra: str
    library: str
    formats: tuple[str, ...]


RUNTIMES: dict[str, RuntimeRow] = {
    "onnx": RuntimeRow("vitrify.runtimes.ort", "onnx", "onnxruntime", ("onnx",)),
    "openvino": RuntimeRow("vitrify.runtimes.ov", "openvino", "openvino", ("openvino", "onnx")),
    "torch": RuntimeRow("vitrify.runtimes.torch", "torch", "torch", ("torch",)),
    "aotinductor": RuntimeRow("vitrify.runtimes.torch.aotinductor", "torch", "torch", ("aotinductor",)),
    "ipex": RuntimeRow("vitrify.runtimes.torch.ipex", "ipex", "intel_extension_for_pytorch", ("torch",)),
    "tensorrt-rtx": RuntimeRow("vitrify.runtimes.trt_rtx", "tensorrt-rtx", "tensorrt_rtx", ("tensorrt-rtx",)),
    "tensorrt": RuntimeRow("vitrify.runtimes.trt_full", "tensorrt", "tensorrt", ("tensorrt",)),
}


def runtime_names() -> list[str]:
    """Every runtime that can be named: the table's, then those that other packages add."""
    return [*RUNTIMES, *(e.name for e in _added())]


def _added() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # looks into every distribution: only for a name that is not ours

    return [e for e in entry_points(group=ENTRY_POINTS) if e.name not in RUNTIMES]


def load_runtime(name: str) -> Any:
    """The adapter's `RUNTIME` object (a `vitrify.runtimes.base.Runtime`).

    Raises:
        UsageError: no runtime has that name.
        MissingDependency: its library is missing (with the extra to install) or broken (with the cause), or the entry
            point of another package names nothing.
    """
    row = RUNTIMES.get(name)
    if row is None:
        for entry in _added():
            if entry.name == name:
                return _import(entry.load, name, entry.dist.name if entry.dist else name, entry.module)
        raise UsageError(f"There is no runtime {name!r}.", f"Runtimes are {', '.join(runtime_names())}.")

    def load() -> Any:
        return importlib.import_module(row.module).RUNTIME

    return _import(load, name, f'"vitrify[{row.extra}]"', row.library)


def _import(load: Callable[[], Any], name: str, package: str, library: str) -> Any:
    try:
        return load()
    except VitrifyError:
        raise
    except Exception as exc:  # a broken library raises anything: OSError for a shared library, AttributeError, ...
        missing = exc.name if isinstance(exc, ModuleNotFoundError) else None
        # a part of a package that is there is a broken install, not a missing one
        if missing and importlib.util.find_spec(missing.partition(".")[0]) is None:
            raise MissingDependency(
                f"The {name} runtime needs {missing}, which is not installed.", f"pip install {package}"
            ) from exc
        raise MissingDependency(
            f"{library} is installed but does not import: {type(exc).__name__}: {exc}.",
            f"pip install --force-reinstall {package}",
        ) from exc


def runtime_for(format: str, named: str | None = None) -> str:
    """The name of the runtime that opens components of this format.

    Args:
        named: a runtime that was asked for; it must open the format.

    Raises:
        UsageError: none does, or the one that was named does not.
        MissingDependency: the one that was named cannot be imported.
    """
    if named is not None:
        opens = RUNTIMES[named].formats if named in RUNTIMES else tuple(load_runtime(named).formats)
        if format not in opens:
            raise UsageError(
                f"The {named} runtime opens {', '.join(opens)} components, not {format}.",
                f"Leave the runtime out: {format} components run on another one.",
            )
        return named
    for name, row in RUNTIMES.items():
        if format in row.formats:
            return name
    for entry in _added():
        with suppress(MissingDependency):  # another package's trouble, told where that runtime is named
            if format in load_runtime(entry.name).formats:
                return entry.name
    raise UsageError(f"No runtime opens {format!r} components.", f"Runtimes are {', '.join(runtime_names())}.")
