"""What the checks share: the built-in models made for each place, their pictures on the CPU, and the report's lines.

$VITRIFY_GPU_REPORT names the folder that the report is written to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from . import report as reports
from .places import ONNX, Place

REPORT = os.environ.get("VITRIFY_GPU_REPORT")
ASKED = {"negative_prompt": "blurry", "steps": 8, "guidance": 3.0, "scheduler": "euler"}
PROMPTS, SEEDS = ("a red apple", "a small house by the sea"), (7, 8)
_LINES: list[reports.Line] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if REPORT and (line := reports.line_of(report)) is not None:
        _LINES.append(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if REPORT and _LINES:
        print("\n" + reports.write(_LINES, Path(REPORT)))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, Any], None]:
    """figure(name, value): what a check found, for the report."""

    def note(name: str, value: Any) -> None:
        plain = value.item() if hasattr(value, "item") else value  # numpy's numbers do not pass between processes
        record_property(f"{reports.FIGURE}{name}", plain)

    return note


def options_of(place: Place) -> Any:
    from vitrify.runtimes.base import Options

    return Options(**place.options)


@contextmanager
def pipeline_at(artifact: Path, at: Place, **how: Any) -> Iterator[Any]:
    """The artifact's pipeline on the place's runtime, device and options; `how` as `vitrify.load` takes it."""
    import vitrify

    pipeline = vitrify.load(artifact, at.device, options=options_of(at), runtime=at.runtime, **how)
    try:
        yield pipeline
    finally:
        pipeline.close()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """made(source, place, quant="fp32", **how): the artifact that the place's runtime opens, compiled once.

    how: of `compile_model`, such as precision or plan.
    """
    import vitrify

    folder, there = tmp_path_factory.mktemp("made"), {}  # type: ignore[var-annotated]

    def make(source: Path, place: Place, quant: str = "fp32", **how: Any) -> Path:
        if place.format == "onnx" and quant == "fp32":
            return source
        key = (source, place.format, quant, *sorted(how.items()))
        if key not in there:
            target = folder / str(len(there))
            vitrify.compile_model(source, target, to=place.format, quant=quant, verify=False, **how)
            there[key] = target
        return there[key]

    return make


def drawn(pipeline: Any, **how: Any) -> list[Image.Image]:
    """The pictures that the checks compare: of two prompts, at the model's own size."""
    result = pipeline.generate(list(PROMPTS), seed=list(SEEDS), **{**ASKED, **how})
    for name, placement in result.placement.items():
        assert placement["runtime"], name
    pictures: list[Image.Image] = result.images
    return pictures


@pytest.fixture(scope="session")
def on_the_cpu(diffusion_artifact: Path) -> list[Image.Image]:
    """The pictures as ONNX Runtime draws them on the CPU, in float32."""
    with pipeline_at(diffusion_artifact, ONNX) as pipeline:
        return drawn(pipeline)


@pytest.fixture(scope="session")
def lora(diffusion_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA of random numbers for the attention of the built-in model's UNet, about half as large as its weights."""
    from safetensors.numpy import save_file

    from vitrify.core.artifact import Artifact
    from vitrify.core.safetensors_header import read_tensor
    from vitrify.runtimes.stored import stored_weights

    rng, tensors, rank = np.random.default_rng(0), {}, 4
    for name, weight in stored_weights(Artifact.load(diffusion_artifact).components["unet"]).items():
        values = read_tensor(weight.entry, "float32") if "attn" in name and weight.entry is not None else np.zeros(0)
        if values.ndim != 2:
            continue
        down = rng.standard_normal((rank, values.shape[1])).astype(np.float32)
        up = rng.standard_normal((values.shape[0], rank)) * 0.5 * values.std() / rank**0.5
        stem = f"unet.{name.removesuffix('.weight')}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up.astype(np.float32)}
    assert len(tensors) > 20
    path = tmp_path_factory.mktemp("lora") / "attention.safetensors"
    save_file(tensors, path)
    return str(path)


def psnr(pictures: list[Image.Image], others: list[Image.Image]) -> float:
    """Peak signal to noise of the pair that is furthest apart, dB; 100 where both are equal.

    10 log10(255^2 / mean squared difference), over pixels and channels.
    """
    assert len(pictures) == len(others)
    found = []
    for one, other in zip(pictures, others, strict=True):
        a, b = (np.asarray(p.convert("RGB")).astype(np.float64) for p in (one, other))
        error = float(((a - b) ** 2).mean())
        found.append(100.0 if error == 0 else min(100.0, 10 * np.log10(255**2 / error)))
    return min(found)


def apart(given: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest difference of two components' outputs, as a share of the expected range."""
    assert list(given) == list(expected)
    worst = 0.0
    for name, value in expected.items():
        assert given[name].shape == value.shape
        assert given[name].dtype == value.dtype
        spread = float(value.max() - value.min())
        assert spread > 0.01, "an output that is constant would prove nothing"
        worst = max(worst, float(np.abs(given[name] - value).max()) / spread)
    return worst


@pytest.fixture(scope="session")
def component_at(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """component_at(model, place, **how): the tiny model's component in the format that the place's runtime opens.

    how: of `build_plan`, for plans.
    """
    built: dict[tuple[int, str], Any] = {}

    def make(model: Any, place: Place, **how: Any) -> Any:
        if place.format in model.components and not how:
            return model.components[place.format]
        key = (id(model), place.format, *sorted(how.items()))
        if key not in built:
            from vitrify.export.plan import build_plan

            folder = tmp_path_factory.mktemp("plan")
            # the model is kept with it: another one must not get its id
            built[key] = model, build_plan(model.components["onnx"], folder, flavour=place.format, **how)
        return built[key][1]

    return make


@contextmanager
def session_at(component: Any, place: Place, overrides: Any = None) -> Iterator[Any]:
    from vitrify.core.device import Device
    from vitrify.core.registry import load_runtime

    session = load_runtime(place.runtime).open(component, Device.parse(place.device), options_of(place), overrides)
    try:
        yield session
    finally:
        session.close()


def inputs_of(component: Any, check: int) -> dict[str, np.ndarray]:
    """Inputs of a tiny model at one of its two sets of sizes."""
    from vitrify.proof.parity import sample_inputs

    return sample_inputs(component, component.details["checks"][check], seed=check)
