"""vit: eight pictures through ViT-B/16, in float32 and int8, beside transformers in eager mode."""

from __future__ import annotations

import sys
from pathlib import Path

from .compiled import Compiled
from .measure import Case
from .models import VIT_B, make_pictures
from .preparing import untimed
from .steps import COLUMNS, Steps
from .suite import Bench, Comparison

PICTURES = 16
# {work} becomes the bench's folder
CALIBRATION = ("--calibration", "{work}/pictures")
STEPS = Steps("vit", VIT_B, "model", "transformers", "", {"batch": 8})

EAGER = "transformers, eager"
COMPILED = {
    "int8-dynamic on ONNX Runtime": Compiled(VIT_B, "onnx", "int8-dynamic"),
    "int8-static on ONNX Runtime": Compiled(VIT_B, "onnx", "int8-static", CALIBRATION),
    "int8-static on OpenVINO": Compiled(VIT_B, "openvino", "int8-static", CALIBRATION),
}
TORCH = Compiled(VIT_B, "torch", "fp32")
AOT = Compiled(VIT_B, "aotinductor", "fp32")


def cases(work: Path) -> list[Case]:
    return [
        STEPS.in_eager_mode(work, EAGER),
        STEPS.by_vitrify(work, "vitrify on ONNX Runtime", "onnx"),
        STEPS.by_vitrify(work, "vitrify on OpenVINO", "openvino"),
        *(STEPS.compiled(work, name, one) for name, one in COMPILED.items()),
        STEPS.compiled(work, "vitrify on PyTorch, compile=regional", TORCH, more=["compile=regional"], cold=True),
        STEPS.compiled(work, "compile=regional, from its cache", TORCH, more=["compile=regional"], filled=True),
        STEPS.compiled(work, "vitrify on PyTorch, compile=whole", TORCH, more=["compile=whole"], cold=True),
        STEPS.compiled(work, "vitrify on AOTInductor", AOT),
    ]


def prepare(work: Path) -> None:
    untimed("making the random vit-b", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "vit-b"])
    make_pictures(work / "pictures", PICTURES)
    STEPS.prepare(work)
    for one in (*COMPILED.values(), TORCH, AOT):
        one.make(work)


VIT = Bench("vit", cases, prepare, (Comparison("vit", EAGER),), columns=COLUMNS)
