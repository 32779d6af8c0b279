"""Where the checks of this folder run: every runtime and device that vitrify has for an NVIDIA GPU, and the CPU's rows.

A row that cannot run here is skipped with what it needs. On a machine without a GPU the CPU's rows run: the same
functions, so that a machine with one finds checks that work.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import VitrifyError
from vitrify.core.registry import RUNTIMES, load_runtime
from vitrify.runtimes.cuda import Gpu, find_gpus

CUDA = "cuda:0"
FLOAT32 = "NVIDIA_TF32_OVERRIDE"  # 0: no library of NVIDIA's rounds float32 to TF32
PLANS = ("tensorrt-rtx", "tensorrt")


def _gpus() -> tuple[tuple[Gpu, ...], str]:
    try:
        return find_gpus(), ""
    except VitrifyError as exc:
        return (), f"needs an NVIDIA GPU and its driver: {exc.what}"


GPUS, NO_GPU = _gpus()


@dataclass(frozen=True)
class Place:
    """A runtime on a device, with options of `runtimes.base.Options`."""

    runtime: str
    device: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    @property
    def format(self) -> str:
        return RUNTIMES[self.runtime].formats[0]

    @property
    def is_plan(self) -> bool:
        return self.runtime in PLANS

    def having(self, **options: Any) -> Place:
        """The same place with more options."""
        return Place(self.runtime, self.device, {**self.options, **options})

    def __str__(self) -> str:
        said = (f"{name}={str(value).lower()}" for name, value in self.options.items())
        return " ".join([self.runtime, self.device, *said])


ONNX, TORCH = Place("onnx"), Place("torch")
ONNX_CUDA, TORCH_CUDA = Place("onnx", CUDA), Place("torch", CUDA)
ONNX_TENSORRT = ONNX_CUDA.having(provider="tensorrt")
RTX, TENSORRT = (Place(name, CUDA) for name in PLANS)
EVERYWHERE = (ONNX, TORCH, TORCH_CUDA, ONNX_CUDA, ONNX_TENSORRT, RTX, TENSORRT)


def where(places: Iterable[Place]) -> list[Any]:
    """The values of a parameter `place`: marked `gpu` where they need one, skipped where it is not there."""
    return [pytest.param(place, id=str(place), marks=_marks(place)) for place in places]


def _marks(place: Place) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.gpu] if place.on_gpu else []
    why = missing(place)
    return [*marks, pytest.mark.skip(reason=why)] if why else marks


def missing(place: Place) -> str:
    """What this machine lacks for a place; empty where it has all."""
    if place.on_gpu and NO_GPU:
        return NO_GPU  # said before a library is looked for: without a GPU none of them matters
    row = RUNTIMES[place.runtime]
    if importlib.util.find_spec(row.library) is None:
        return f'needs {row.library}: pip install "vitrify[{row.extra}]"'
    return _unusable(place.runtime, place.device, place.options.get("provider")) if place.on_gpu else ""


@cache
def _unusable(runtime: str, device: str, provider: str | None) -> str:
    """Why an installed library does not run there, in its own words."""
    try:
        probe = load_runtime(runtime).probe()
    except VitrifyError as exc:
        return f"{exc.what} {exc.fix}"
    kind = device.partition(":")[0]
    if not any(name.partition(":")[0] == kind for name in probe.devices):
        wheel = "needs onnxruntime-gpu in onnxruntime's place" if runtime == "onnx" else "it does not run there"
        return f"{runtime} {probe.version} has {', '.join(probe.devices) or 'no device'}: {probe.problem or wheel}"
    found = [one["name"] for one in probe.details.get("providers", []) if one["found"]]
    if provider == "tensorrt" and os.environ.get(FLOAT32) != "0":
        return f"its float32 is TF32 unless {FLOAT32}=0, which is of a whole process: make test-gpu runs a second one"
    if provider is not None and provider not in found:
        return f"{runtime} {probe.version} has no provider {provider}, but {', '.join(found)}"
    return _lacks_tensorrt() if provider == "tensorrt" else ""


def _lacks_tensorrt() -> str:
    """The TensorRT that ONNX Runtime's provider was built for, where it does not load: the wheel does not bring it."""
    import onnxruntime

    library = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime_providers_tensorrt.so"), None)
    wanted = re.search(rb"libnvinfer\.so\.\d+", library.read_bytes()) if library else None
    if wanted is None:
        return ""
    try:
        ctypes.CDLL(wanted[0].decode())
    except OSError:
        return f"ONNX Runtime's TensorRT provider needs {wanted[0].decode()}, which does not load"
    return ""
