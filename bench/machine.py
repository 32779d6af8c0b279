"""What a figure was measured on: the machine and the versions, without importing any of the libraries."""

from __future__ import annotations

import os
import platform
from typing import Any

from ..core.machine import cpu_model, memory, usable_cores, versions_of

# distributions whose version can change a figure
LIBRARIES = (
    "vitrify",
    "numpy",
    "pillow",
    "safetensors",
    "tokenizers",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "nncf",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "psutil",
)


def describe_machine() -> dict[str, Any]:
    """CPU model, logical cores and those this process may use, memory in bytes, system and Python."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory": memory(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Version of each library that is installed in this interpreter's environment."""
    return versions_of(LIBRARIES)
