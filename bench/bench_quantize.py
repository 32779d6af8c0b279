"""quantize: what it takes to quantize Stable Diffusion 1.5, and how much disk its UNet needs then.

The results are left for the bench `unet`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .bench_unet import AOT, CALIBRATION, INT8_STATIC, INT8_WEIGHTS, MODEL
from .compiled import Compiled, export
from .measure import Case
from .preparing import untimed
from .suite import Bench, Comparison
from .summary import Columns

COMPILED = {
    "int8-weights": INT8_WEIGHTS,
    "int4-weights, groups of 64": Compiled(MODEL, "onnx", "int4-weights"),
    "nf4-weights for OpenVINO": Compiled(MODEL, "openvino", "nf4-weights"),
    f"int8-static, {CALIBRATION[1]} samples": INT8_STATIC,
    "float32 for AOTInductor": AOT,
}


def cases(work: Path) -> list[Case]:
    return [one.case(work, name, "unet", "quantize") for name, one in COMPILED.items()]


def prepare(work: Path) -> None:
    untimed("making the random sd15", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "sd15"])
    export(work, MODEL)


# Long runs, each over all of the weights: one round says what there is to say, `--rounds` asks for more.
QUANTIZE = Bench(
    "quantize",
    cases,
    prepare,
    (Comparison("quantize", None),),
    rounds=1,
    columns=Columns(("wall_s", "cpu_s", "peak_mb", "unet_mb", "unet_share"), ()),
    timeout=7200.0,
)
