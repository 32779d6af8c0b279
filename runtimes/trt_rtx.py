"""TensorRT for RTX: opens `tensorrt-rtx` components. What it does is in trt.py."""

from __future__ import annotations

import tensorrt_rtx

from .trt import TrtRuntime

RUNTIME = TrtRuntime("tensorrt-rtx", "TensorRT-RTX", tensorrt_rtx)
