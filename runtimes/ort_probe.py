"""Which execution providers work here: each that is found opens a graph of one node with a weight, without the CPU."""

from __future__ import annotations

import base64
import contextlib
import platform
from typing import Any

import numpy as np
import onnxruntime as ort

from ..core.artifact import Component
from ..core.device import Device
from .base import Options
from .ort_builds import builds, first_line, has, kinds, missing, plugin_device, prepare, quietly, source, version
from .ort_errors import LIBRARY
from .ort_providers import PROVIDERS, Asked, Provider

# x [1, 3] @ w [3, 4] = y [1, 4]; w counts from 0 to 11 (opset 17, IR 8)
_MODEL = base64.b64decode(
    "CAg6fQoRCgF4CgF3EgF5IgZNYXRNdWwSAWcqOwgDCAQQAUIBd0owAAAAAAAAgD8AAABAAABAQAAAgEAAAKBAAADAQAAA4EAAAABBAAAQQQAAIEEA"
    "ADBBWhMKAXgSDgoMCAESCAoCCAEKAggDYhMKAXkSDgoMCAESCAoCCAEKAggEQgQKABAR"
)
_ANSWER = np.array([[12, 15, 18, 21]], np.float32)


def attach(settings: ort.SessionOptions, row: Provider, asked: Asked) -> list[tuple[str, dict[str, str]]] | None:
    """Tell a session's settings of a provider.

    Returns:
        What goes into `providers`; None where the settings hold it already, as a plugin's do.
    """
    prepare(row)
    told = row.settings(asked)
    for name, value in row.session.items():
        setattr(settings, name, value)
    if source(row) == "plugin":
        # the device is an object there, and naming it a second time is refused or ignored
        told = {k: v for k, v in told.items() if k not in ("device_id", "device_type")}
        settings.add_provider_for_devices([plugin_device(row, asked.device)], told)
        return None
    behind = [other for other in PROVIDERS if other.name == row.behind and source(other) == "build"]
    return [(row.title, told), *((other.title, other.settings(asked)) for other in behind)]


def opens(row: Provider, device: Device) -> str:
    """Run the graph of one node on a provider; why that fails, or nothing."""
    component = Component("probe", "onnx", "", {}, {})
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    if row.name != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        with quietly():
            providers = attach(settings, row, Asked(component, device, Options()))
            session = ort.InferenceSession(_MODEL, settings, providers=providers, enable_fallback=0)
            (found,) = session.run(None, {"x": np.ones((1, 3), np.float32)})
    except LIBRARY as exc:
        return missing(row) or first_line(exc)
    except Exception as exc:  # a plugin's binding raises anything
        return first_line(exc)
    if session.get_providers()[0] != row.title:
        return missing(row) or f"ONNX Runtime placed it on {session.get_providers()[0]}"
    return "" if np.allclose(found, _ANSWER, rtol=1e-3) else f"it computed {found.tolist()} for {_ANSWER.tolist()}"


def probe_providers(every: bool = True) -> list[dict[str, Any]]:
    """Every provider in the table's order, in words and flags for who reads them.

    Args:
        every: also open those that build an engine, which takes seconds, those whose devices another one opened, and
            the CPU's; and say of those that are not here why, which looks for each distribution that could have them.

    Returns:
        Of each: name, provider (ONNX Runtime's name), devices (kinds that it runs), found ("build", "plugin" or ""),
        opened (kinds that opened), usable (None: it was not tried), version, missing, fix.
    """
    told, opened_kinds = [], set[str]()
    for row in PROVIDERS:
        found = source(row)
        one: dict[str, Any] = {
            "name": row.name, "provider": row.title, "devices": list(row.kinds), "found": found,
            "opened": [], "usable": False, "version": version(row), "missing": "", "fix": "",
        }  # fmt: skip
        told.append(one)
        if not found:
            one["missing"], one["fix"] = _not_found(row) if every else ("", "")
            continue
        if row.name == "cpu" and not every:  # it is part of each build, and who asks opens a graph on it next
            one["opened"], one["usable"] = ["cpu"], None
            opened_kinds.add("cpu")
            continue
        listed = kinds(row)
        if not listed:
            why = missing(row)
            one["missing"] = why or "it lists no device"
            one["fix"] = f"It needs {row.needs}."
            continue
        tried = [kind for kind in listed if every or (kind not in opened_kinds and not row.builds)]
        if not tried and opened_kinds.issuperset(listed):
            one["usable"] = None
            continue
        problems = []
        for kind in tried or listed:
            problem = opens(row, Device(kind))
            problems += [problem] if problem else []
            one["opened"] += [] if problem else [kind]
        opened_kinds.update(one["opened"])
        one["usable"] = bool(one["opened"])
        if problems:
            one["missing"], one["fix"] = problems[0], f"It needs {row.needs}." if row.needs else ""
    return told


def how_to_get(row: Provider) -> str:
    """The command that brings a provider into this environment; builds of ONNX Runtime exclude each other."""
    others = [name for name in builds() if name != row.wheel]
    away = f"pip uninstall {' '.join(others)}, then " if others else ""
    beside = f"pip install {row.plugin[0]}" if row.plugin[0] else ""
    instead = f"{away}pip install {row.wheel}" if row.wheel else ""
    return f"{beside}; where that lists no device: {instead}" if beside and instead else beside or instead


def _not_found(row: Provider) -> tuple[str, str]:
    if row.systems and platform.system() not in row.systems:
        return f"only for {' and '.join(_SYSTEMS.get(name, name) for name in row.systems)}", ""
    if row.wheel in builds():
        return f"{row.wheel} {ort.__version__} was built without it", ""
    return "not installed", how_to_get(row)


_SYSTEMS = {"Darwin": "macOS"}


def lists(device: Device) -> list[Provider]:
    """The providers that have this device here, the default first."""
    found = []
    for row in PROVIDERS:
        with contextlib.suppress(*LIBRARY):
            if device.kind in row.kinds and has(row, device):
                found.append(row)
    return found


def kinds_here() -> list[str]:
    """The kinds of devices that are listed here, in the table's order, the CPU last."""
    found = dict.fromkeys(kind for row in PROVIDERS for kind in kinds(row))
    return [*(kind for kind in found if kind != "cpu"), *(["cpu"] if "cpu" in found else [])]
