"""TensorRT: opens `tensorrt` components. What it does is in trt.py."""

from __future__ import annotations

import tensorrt

from .trt import TrtRuntime

RUNTIME = TrtRuntime("tensorrt", "TensorRT", tensorrt)
