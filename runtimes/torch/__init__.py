"""PyTorch: opens `torch` components, the reference that every artifact is proved against and what `compile` writes."""

from __future__ import annotations

from .runtime import RUNTIME, TorchRuntime
from .session import TorchSession

__all__ = ["RUNTIME", "TorchRuntime", "TorchSession"]
