"""Which execution providers this build of ONNX Runtime has, or gets from a plugin, and the devices that they list.

A plugin is a package of its own with one shared library, which a process registers once
(onnxruntime.ai/docs/execution-providers/plugin-ep-libraries).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import platform
import re
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..core.device import Device
from ..core.machine import installed
from .ort_providers import PROVIDERS, Provider, openvino_device

_WARNING, _FATAL = 2, 4  # severities of the library's log
_CODE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_LIBRARIES = {"Windows": "{}.dll", "Darwin": "lib{}.dylib"}


class _Quiet:
    """The library has one log for the process, whose level can be set and not read: the last one out puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._printed = sys.stdout

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Without the lines logged and printed where a provider does not load: who catches its errors tells them."""
        with self._lock:
            self._inside += 1
            ort.set_default_logger_severity(_FATAL)
            if self._inside == 1:  # two redirections that overlap would leave the first one's in place for good
                self._printed, sys.stdout = sys.stdout, io.StringIO()
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    ort.set_default_logger_severity(_WARNING)
                    sys.stdout = self._printed


quietly = _Quiet()


def builds() -> list[str]:
    """The installed distributions that have the module `onnxruntime`."""
    return [name for name in dict.fromkeys(row.wheel for row in PROVIDERS if row.wheel) if installed(name)]


def source(row: Provider) -> str:
    """Where a provider is from: "build", "plugin", or "" where it is not."""
    if row.title in ort.get_available_providers():
        return "build"
    module = row.plugin[1]
    return "plugin" if module and importlib.util.find_spec(module) is not None else ""


def version(row: Provider) -> str:
    """Of the build, or of the plugin's package."""
    where = source(row)
    if where == "plugin":
        packages = (row.plugin[0], row.plugin[0].replace("-cu12", "-cu13"))
        return next((found for name in packages if (found := installed(name))), "")
    return ort.__version__ if where else ""


def kinds(row: Provider) -> list[str]:
    """The kinds of its devices that are listed here; what is listed may still fail to open."""
    where = source(row)
    if where == "plugin":
        found = [kind for kind in row.kinds if plugin_devices(row, kind)]
    elif where and row.name == "openvino":
        found = [kind for kind in row.kinds if any(d.partition(".")[0] == kind.upper() for d in _openvino_devices())]
    else:
        found = list(row.kinds) if where else []
    return found


def has(row: Provider, device: Device) -> bool:
    """Whether a provider lists this device; a GPU's number is known to plugins and to OpenVINO alone."""
    where = source(row)
    if where == "plugin":
        return plugin_device(row, device) is not None
    if where and row.name == "openvino":
        ours = openvino_device(device)
        return any(name in (ours, f"{ours}.0") for name in _openvino_devices())
    return bool(where) and device.kind in row.kinds


def prepare(row: Provider) -> None:
    """Load what a provider's library needs from the packages that have it, once a process."""
    if row.name in ("cuda", "tensorrt") and source(row) == "build":
        _load_cuda()


def plugin_device(row: Provider, device: Device) -> Any | None:
    """The library's own object for a device of a plugin; None where it has no such one."""
    found = plugin_devices(row, device.kind)
    index = device.index or 0
    return found[index] if index < len(found) else None


def plugin_devices(row: Provider, kind: str) -> list[Any]:
    """A plugin's devices of a kind, in the library's order; none where it does not register."""
    if registered(row):
        return []
    return [d for d in ort.get_ep_devices() if d.ep_name == row.title and _kind(row, d) == kind]


def registered(row: Provider) -> str:
    """Register a plugin, once a process; why that failed, or nothing."""
    return _registered(row.title)


@cache
def _registered(title: str) -> str:
    row = next(row for row in PROVIDERS if row.title == title)
    if not hasattr(ort, "register_execution_provider_library"):
        return f"ONNX Runtime {ort.__version__} takes no plugins"
    try:
        with quietly():
            module = importlib.import_module(row.plugin[1])
            library = Path(module.get_library_path())
            # a wheel that has its own libcudart under a full version, which the linker does not look for
            for bundled in sorted(library.parent.glob("libcudart.so.*")):
                ctypes.CDLL(str(bundled), mode=ctypes.RTLD_GLOBAL)
            ort.register_execution_provider_library(row.title, str(library))
    except Exception as exc:  # a package's import and its library's loading raise anything
        return first_line(exc)
    return ""


def missing(row: Provider) -> str:
    """What a provider's shared library lacks, in the linker's words; nothing where it loads.

    To be asked only when the library failed to load it: loaded first from here, it would find no host.
    """
    if source(row) == "plugin":
        return registered(row)
    form = _LIBRARIES.get(platform.system(), "lib{}.so")
    path = Path(ort.__file__).parent / "capi" / form.format(row.file)
    if not row.file or not path.exists():
        return ""
    try:
        ctypes.CDLL(str(path))
    except OSError as exc:
        return first_line(exc)
    return ""


def first_line(exc: BaseException) -> str:
    """An exception's words, without the library's source path, function and code in front of them."""
    line = _CODE.split((str(exc).splitlines() or [type(exc).__name__])[0])[-1]
    return line.partition("with error: ")[2] or line[:300]


@cache
def _load_cuda() -> None:
    if hasattr(ort, "preload_dlls"):
        with contextlib.suppress(Exception), quietly():  # what is missing shows when a session is opened
            ort.preload_dlls()


def _openvino_devices() -> list[str]:
    listed = getattr(ort.capi._pybind_state, "get_available_openvino_device_ids", None)
    return [str(name) for name in listed()] if listed else ["CPU"]


def _kind(row: Provider, device: Any) -> str:
    """Our kind of a plugin's device: by OpenVINO's own name for it, else by the hardware."""
    told = str(dict(device.ep_metadata).get("ov_device", "")) or device.device.type.name
    kind = told.partition(".")[0].lower()
    return kind if kind in row.kinds else next(k for k in row.kinds if k not in ("cpu", "npu"))
