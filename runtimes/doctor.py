"""What this machine has and which runtimes work on it."""

from __future__ import annotations

import os
import platform
from typing import Any

from ..core.errors import VitrifyError
from ..core.machine import cpu_info, cpu_model, installed, memory, versions_of
from ..core.registry import RUNTIMES, load_runtime, runtime_names
from ..quant.recipes import RECIPES
from ..quant.support import TARGETS, cell

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
_CONFLICTS = (("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),)
_BUYS = {
    "onnx": "runs exported artifacts without PyTorch; `vitrify export`, `generate`, `classify`",
    "openvino": "runs exported and compiled artifacts on Intel's devices and other CPUs; --runtime openvino",
    "tensorrt-rtx": "runs plans on NVIDIA RTX GPUs; builds them anywhere, without a GPU",
    "tensorrt": "builds and runs plans on an NVIDIA GPU",
    "torch": "the reference that artifacts are proved against; `vitrify export`, `verify`",
}
_EXPORT = ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript", "huggingface_hub")


def examine() -> dict[str, Any]:
    """Machine, runtimes with their devices, export libraries, recipes, conflicts; `problems` lists {what, fix}."""
    problems: list[dict[str, str]] = []
    runtimes: dict[str, Any] = {}
    for name in runtime_names():
        try:
            probe = load_runtime(name).probe()
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
        "runtimes": runtimes,
        "export": {
            "usable": not missing,
            "versions": versions_of(_EXPORT),
            "fix": 'pip install "vitrify[export]"' if missing else "",
        },
        "recipes": recipes(),
        "problems": problems,
        "known": sorted(RUNTIMES),
    }


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
