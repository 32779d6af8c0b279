"""unet: one denoising step of Stable Diffusion 1.5 on ONNX Runtime and OpenVINO, through vitrify and without it."""

from __future__ import annotations

import sys
from pathlib import Path

from .compiled import Compiled
from .measure import Case
from .models import SD15
from .preparing import untimed
from .steps import COLUMNS, Steps
from .suite import Bench, Comparison

MODEL = SD15[0]
# Random weights have no ranges that more samples would find, and each sample costs steps of the whole pipeline.
CALIBRATION = ("--samples", "4")
# latents of 32x32: a picture of 256x256, drawn with guidance
STEPS = Steps("unet", MODEL, "unet", "diffusers", "unet", {"batch": 2, "height": 32, "width": 32, "tokens": 77})

EAGER = "diffusers, eager"
ONNX_ALONE, ONNX = "ONNX Runtime alone", "vitrify on ONNX Runtime"
OPENVINO_ALONE, OPENVINO = "OpenVINO alone", "vitrify on OpenVINO"
INT8_WEIGHTS = Compiled(MODEL, "onnx", "int8-weights")
INT8_STATIC = Compiled(MODEL, "onnx", "int8-static", CALIBRATION)  # one artifact for both runtimes
ON_ONNX = {
    "int8-weights on ONNX Runtime": INT8_WEIGHTS,
    "int4-weights on ONNX Runtime": Compiled(MODEL, "onnx", "int4-weights"),
    "int8-static on ONNX Runtime": INT8_STATIC,
}
ON_OPENVINO = {
    "int8-weights on OpenVINO": INT8_WEIGHTS,
    "nf4-weights on OpenVINO": Compiled(MODEL, "openvino", "nf4-weights"),
    "int8-static on OpenVINO": INT8_STATIC,
}
TORCH = Compiled(MODEL, "torch", "fp32")
AOT = Compiled(MODEL, "aotinductor", "fp32")
REGIONAL, KEPT, WHOLE, AHEAD = (
    "vitrify on PyTorch, compile=regional", "compile=regional, from its cache",
    "vitrify on PyTorch, compile=whole", "vitrify on AOTInductor",
)  # fmt: skip


def cases(work: Path) -> list[Case]:
    return [
        STEPS.in_eager_mode(work, EAGER),
        STEPS.by_library(work, ONNX_ALONE, "onnxruntime"),
        STEPS.by_vitrify(work, ONNX, "onnx"),
        *(STEPS.compiled(work, name, one) for name, one in ON_ONNX.items()),
        STEPS.by_library(work, OPENVINO_ALONE, "openvino"),
        STEPS.by_vitrify(work, OPENVINO, "openvino"),
        *(STEPS.compiled(work, name, one, "openvino") for name, one in ON_OPENVINO.items()),
        STEPS.compiled(work, REGIONAL, TORCH, more=["compile=regional"], cold=True),
        STEPS.compiled(work, KEPT, TORCH, more=["compile=regional"], filled=True),
        STEPS.compiled(work, WHOLE, TORCH, more=["compile=whole"], cold=True),
        STEPS.compiled(work, AHEAD, AOT),
    ]


def prepare(work: Path) -> None:
    untimed("making the random sd15", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "sd15"])
    STEPS.prepare(work)
    for one in (*ON_ONNX.values(), *ON_OPENVINO.values(), TORCH, AOT):
        one.make(work)


UNET = Bench(
    "unet",
    cases,
    prepare,
    (
        Comparison("unet", EAGER),
        Comparison("unet on PyTorch", EAGER, (EAGER, ONNX, OPENVINO, REGIONAL, KEPT, WHOLE, AHEAD)),
        Comparison("unet on ONNX Runtime", ONNX_ALONE, (ONNX_ALONE, ONNX, *ON_ONNX)),
        Comparison("unet on OpenVINO", OPENVINO_ALONE, (OPENVINO_ALONE, OPENVINO, *ON_OPENVINO)),
    ),
    columns=COLUMNS,
)
