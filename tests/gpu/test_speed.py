"""How fast, and how much memory: `vitrify bench` on each runtime and device, beside PyTorch's eager mode on the same.

Figures, not promises: a check fails where a cell does not run, not where it is slow.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .memory import peak_of
from .places import CUDA, EVERYWHERE, ONNX_CUDA, PLANS, RTX, TENSORRT, TORCH, TORCH_CUDA, Place, missing, where

COMPILED = [TORCH_CUDA.having(compile="regional"), TORCH_CUDA.having(channels_last=True)]
HALF = [TORCH_CUDA.having(precision="float16"), TORCH_CUDA.having(precision="bfloat16")]
GRAPHS = [p.having(cuda_graphs=True) for p in (ONNX_CUDA, RTX, TENSORRT)]
CELLS = [*EVERYWHERE, *COMPILED, *HALF, *GRAPHS]
FLOAT16 = " in float16"  # behind the name of a model that is a plan


@dataclass(frozen=True)
class Measured:
    """The cells of one device."""

    cells: list[Any]

    def cell(self, model: str, place: Place) -> Any:
        for cell in self.cells:
            spec = cell.spec
            if (spec.model, spec.runtime, dict(spec.options)) == (model, place.runtime, dict(place.options)):
                return cell
        raise AssertionError(f"there is no cell of {model} at {place}: {[c.name for c in self.cells]}")


def suite_toml(sources: Mapping[str, Path], places: list[Place], halves: Mapping[str, tuple[str, Path]]) -> str:
    """A suite with a model for each source and runtime, since not every option is every runtime's.

    halves: model -> runtime and artifact of plans that were compiled in float16.
    """
    device = places[0].device
    on_gpu = device != "cpu"
    head = [f"rounds = {3 if on_gpu else 1}", f"seconds = {1.0 if on_gpu else 0.1}", f"calls = {3 if on_gpu else 1}"]
    lines = [*head, f'device = "{device}"', f"steps = {20 if on_gpu else 2}", 'quant = "fp32"']
    for name, source in sources.items():
        for runtime in dict.fromkeys(p.runtime for p in places):
            tables = ", ".join(_table(p.options) for p in places if p.runtime == runtime)
            lines += ["", "[[model]]", f'source = "{source}"', f'name = "{name}.{runtime}"']
            lines += [f'runtime = ["{runtime}"]', f"options = [{tables}]"]
    for name, (runtime, source) in halves.items():
        lines += ["", "[[model]]", f'source = "{source}"', f'name = "{name}"', f'runtime = ["{runtime}"]']
    return "\n".join([*lines, ""])


def _table(options: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items()) + "}"


@pytest.fixture(scope="session")
def measured(
    diffusion_artifact: Path, emotions_artifact: Path, made: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Measured]:
    """measured(device): every cell that can be there, measured in turns, once."""
    from vitrify.bench.runs import run_suite
    from vitrify.bench.suite_file import suite_of

    there: dict[str, Measured] = {}
    sources = {"emoji": diffusion_artifact, "emotions": emotions_artifact}

    def measure(device: str) -> Measured:
        if device not in there:
            folder = tmp_path_factory.mktemp("bench")
            places = [p for p in CELLS if p.device == device and not missing(p)]
            halves = {
                f"{name}.{p.runtime}{FLOAT16}": (p.runtime, made(source, p, precision="float16"))
                for name, source in sources.items()
                for p in places
                if p in (RTX, TENSORRT)
            }
            (folder / "suite.toml").write_text(suite_toml(sources, places, halves))
            results = run_suite(suite_of([str(folder / "suite.toml")], {}), folder / "results", verify=False)
            there[device] = Measured(results.cells)
        return there[device]

    return measure


def told(cell: Any, eager: Any, figure: Callable[[str, Any], None]) -> None:
    """A cell's figures, and its time as a share of PyTorch's eager mode."""
    assert cell.failure is None, cell.failure
    assert cell.samples
    for name in ("latency_ms", "step_ms", "own_ms", "compile_s", "joules"):
        found = cell.figure(name)
        if found is not None:
            figure(name, found.median)
    latency = cell.figure("latency_ms")
    assert latency is not None
    assert latency.median > 0
    if eager.failure is None and eager.figure("latency_ms") is not None:
        figure("of_eager", latency.median / eager.figure("latency_ms").median)


@pytest.mark.parametrize("model", ["emoji", "emotions"])
@pytest.mark.parametrize("place", where(CELLS))
@pytest.mark.slow
def test_bench(place: Place, model: str, measured: Any, figure: Callable[[str, Any], None]) -> None:
    found = measured(place.device)
    eager = found.cell(f"{model}.torch", TORCH if place.device == "cpu" else TORCH_CUDA)
    told(found.cell(f"{model}.{place.runtime}", place), eager, figure)


@pytest.mark.parametrize("model", ["emoji", "emotions"])
@pytest.mark.parametrize("place", where([RTX, TENSORRT]))
def test_bench_in_float16(place: Place, model: str, measured: Any, figure: Callable[[str, Any], None]) -> None:
    found = measured(place.device)
    cell = found.cell(f"{model}.{place.runtime}{FLOAT16}", place)
    told(cell, found.cell(f"{model}.torch", TORCH_CUDA), figure)


@pytest.mark.parametrize(
    "place", where([*EVERYWHERE, *(p.having(resident_weights=2_000_000) for p in (RTX, TENSORRT))])
)
def test_peak_memory(
    place: Place, diffusion_artifact: Path, made: Any, environment: dict[str, str], figure: Callable[[str, Any], None]
) -> None:
    """Of a process that draws one picture: the GPU's, with its context and libraries; on the CPU the process's."""
    from vitrify.export.plan_options import PlanOptions

    how = {"plan": PlanOptions(weight_streaming=True)} if "resident_weights" in place.options else {}
    artifact = made(diffusion_artifact, Place(place.runtime, place.device), **how)
    options = [word for name, value in place.options.items() for word in ("-O", f"{name}={value}")]
    command = [sys.executable, "-m", "vitrify", "generate", str(artifact), "a red apple", "--steps", "2"]
    command += [
        "--runtime",
        place.runtime,
        "--device",
        place.device,
        "-o",
        str(artifact.parent / "memory.png"),
        *options,
    ]
    try:
        peak = peak_of(command, environment, place.on_gpu)
    except OSError as exc:
        pytest.skip(f"needs NVML: {exc}")
    figure("peak_mb", round(peak / 1e6, 1))
    assert peak > 10e6


def test_a_suite_names_each_runtimes_own_options(tmp_path: Path) -> None:
    """The file that a GPU's bench reads, held against the reader here."""
    from vitrify.bench.suite_file import suite_of

    gpu = [p for p in CELLS if p.device == CUDA]
    text = suite_toml({"emoji": tmp_path}, gpu, {f"emoji.{PLANS[0]}{FLOAT16}": (PLANS[0], tmp_path)})
    (tmp_path / "suite.toml").write_text(text)
    suite = suite_of([str(tmp_path / "suite.toml")], {})
    options = {m.name: [dict(o) for o in m.axes.options] for m in suite.models}
    assert options["emoji.onnx"] == [{}, {"provider": "tensorrt"}, {"cuda_graphs": True}]
    assert {"compile": "regional"} in options["emoji.torch"]
    assert {m.axes.device for m in suite.models} == {CUDA}
