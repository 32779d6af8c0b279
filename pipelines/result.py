"""What a generation gives: each step as it is done, and the pictures in the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from .families.base import FloatArray


@dataclass(frozen=True)
class Step:
    """One denoising step that is done. number: from 1. latents: float32 [batch, channels, h, w], after the step."""

    number: int
    total: int
    timestep: float
    latents: FloatArray


@dataclass(frozen=True)
class GenerateResult:
    """Pictures, and everything needed to make them again.

    parameters: one table a picture. timings: seconds a stage; "steps" holds one number a step.
    placement: component -> what ran it; ControlNets as controlnet.0, controlnet.1, ...
    memory: within a budget, the bytes allowed, those at the peak, and what was done to stay within it.
    notes: one line each for what of the prompts was not read.
    """

    images: list[Image.Image]
    seed: int
    parameters: list[dict[str, Any]]
    timings: dict[str, Any]
    placement: dict[str, dict[str, str]] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
