"""What this machine has and which runtimes work on it."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from ..core.errors import VitrifyError
from ..core.machine import cpu_info, cpu_model, installed, memory, versions_of
from ..core.registry import RUNTIMES, load_runtime, runtime_names
from ..quant.recipes import RECIPES
from ..quant.support import TARGETS, cell

if TYPE_CHECKING:
    from .base import Probe

_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
# distributions that install the same module and break each other
_CONFLICTS = (
    (
        *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-migraphx"),
        "onnxruntime-rocm",
    ),
)
_BUYS = {
    "onnx": "runs exported artifacts without PyTorch; `vitrify export`, `generate`, `classify`",
    "openvino": "runs exported and compiled artifacts on Intel's devices and other CPUs; --runtime openvino",
    "tensorrt-rtx": "runs plans on NVIDIA RTX GPUs; builds them anywhere, without a GPU",
    "tensorrt": "builds and runs plans on an NVIDIA GPU",
    "torch": "the reference that artifacts are proved against; `vitrify export`, `verify`",
    "aotinductor": "runs models that PyTorch compiled ahead of time into one package; --runtime aotinductor",
    "ipex": "PyTorch on Intel's processors. At its end: archived, the last release is 2.8.0; what it did is in PyTorch "
    "itself (--runtime torch, -O compile=regional, --device xpu)",
}
_EXPORT = ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "huggingface_hub")


def examine() -> dict[str, Any]:
    """Machine, devices, runtimes, export libraries, recipes, conflicts; `problems` lists {what, fix}.

    devices: as `hardware.devices_here` tells them. chosen: runtime -> the device that is used where none is named, and
    why. Of a runtime, `details` are its probe's; ONNX Runtime's have each execution provider.
    """
    from .hardware import devices_here  # late: a harness that must stay small reads `machine` alone

    problems: list[dict[str, str]] = []
    runtimes: dict[str, Any] = {}
    probes: list[Probe] = []
    for name in runtime_names():
        try:
            probe = _thorough(load_runtime(name))
        except VitrifyError as exc:
            runtimes[name] = {"usable": False, "what": exc.what, "fix": exc.fix, "buys": _BUYS.get(name, "")}
            continue
        except Exception as exc:  # an adapter of another package: whatever it does, the others are still shown
            what = f"Its probe failed: {type(exc).__name__}: {exc}."
            runtimes[name] = {"usable": False, "what": what, "fix": "Report it to its package.", "buys": ""}
            continue
        runtimes[name] = {
            "usable": not probe.problem,
            "what": probe.problem,
            "fix": probe.fix,
            "version": probe.version,
            "devices": list(probe.devices),
            "details": dict(probe.details),
            "buys": _BUYS.get(name, ""),
        }
        if probe.problem:
            problems.append({"what": probe.problem, "fix": probe.fix})
        else:
            probes.append(probe)
    for group in _CONFLICTS:
        found = [n for n in group if installed(n)]
        if len(found) > 1:
            problems.append(
                {
                    "what": f"{' and '.join(found)} are both installed and overwrite each other.",
                    "fix": f"pip uninstall {' '.join(found)}, then install one of them.",
                }
            )
    if not any(r["usable"] for r in runtimes.values()):
        problems.append({"what": "No runtime is usable.", "fix": 'pip install "vitrify[onnx]"'})
    missing = [n for n in _EXPORT if not installed(n)]
    return {
        "machine": machine(),
        "devices": devices_here(runtimes),
        "runtimes": runtimes,
        "chosen": {probe.runtime: chosen(probe) for probe in probes if probe.devices},
        "export": {
            "usable": not missing,
            "versions": versions_of(_EXPORT),
            "fix": 'pip install "vitrify[export]"' if missing else "",
        },
        "recipes": recipes(),
        "problems": problems,
        "known": sorted(RUNTIMES),
    }


def _thorough(runtime: Any) -> Probe:
    """The runtime's probe, with everything tried where it can leave something out."""
    every = getattr(runtime, "probe_every", None)
    probe: Probe = runtime.probe() if every is None else every()
    return probe


def chosen(probe: Probe) -> dict[str, str]:
    """The device that a runtime uses where none is named, and why; what is tried first may still not open."""
    from .preference import preferred

    order = [str(device) for device in preferred([probe])]
    if not order:
        return {"device": "", "why": "it lists no device"}
    why = f"the best of {', '.join(order)}, tried in this order" if len(order) > 1 else "the only device there"
    return {"device": order[0], "why": why}


def recipes() -> dict[str, Any]:
    """Recipe -> what it buys, what speaks against it on this machine, and of each target whether it runs there."""
    found: dict[str, Any] = {}
    for name, recipe in RECIPES.items():
        cells = {target: cell(recipe, target) for target in TARGETS}
        found[name] = {
            "buys": recipe.buys,
            "here": list(dict.fromkeys(line for c in cells.values() for line in c.here)),
            "targets": {
                target: {"runs": c.runs, "why": c.why, "buys": c.buys, "measured": dict(c.measured)}
                for target, c in cells.items()
            },
        }
    return found


def machine() -> dict[str, Any]:
    """Processor, instruction sets, cores, memory in bytes, system and Python."""
    flags = {flag for key, value in cpu_info() if key in ("flags", "Features") for flag in value.split()}
    return {
        "processor": cpu_model(),
        "isa": [f for f in _FLAGS if f in flags],
        "cores": os.cpu_count(),
        "memory_bytes": memory() or 0,
        "system": platform.platform(),
        "python": platform.python_version(),
        "vitrify": installed("vitrify") or "not installed (a checkout)",
    }
