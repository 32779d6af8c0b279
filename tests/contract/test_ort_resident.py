"""Weights of which few are held: the same numbers, from files that are given back."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
if sys.platform != "linux":
    pytest.skip("needs Linux, which says what a process maps", allow_module_level=True)

import vitrify
from vitrify.core.artifact import Artifact, Component
from vitrify.core.device import Device
from vitrify.core.errors import DeviceError
from vitrify.core.registry import load_runtime
from vitrify.proof.parity import sample_inputs
from vitrify.runtimes import resident
from vitrify.runtimes.base import Options, Session
from vitrify.runtimes.initializers import external_bytes, external_initializers
from vitrify.runtimes.resident import Resident, file_bytes

LIMIT = 10_000  # bytes


@pytest.fixture
def denoiser(unet_model: Any, tmp_path: Path) -> Component:
    """Random, in float32: weights that are stored in float16 are computed in a copy. In files that nobody else maps."""
    shared: Component = unet_model.components["onnx"]
    component = replace(shared, root=Path(shutil.copytree(shared.root, tmp_path / "artifact")))
    assert external_bytes(component.graph_path) > 3 * LIMIT
    return component


def inputs(component: Component, seed: int = 1) -> dict[str, Any]:
    return sample_inputs(component, component.details["checks"][0], seed=seed)


def opened(component: Component, **options: object) -> Session:
    session: Session = load_runtime("onnx").open(component, Device("cpu"), Options(threads=1, **options))  # type: ignore[arg-type]
    return session


def held(file: Path) -> int:
    """Bytes of a file that this process holds through its mappings."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file.resolve()))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_it_computes_the_same_and_holds_nothing_afterwards(denoiser: Component) -> None:
    (weights,) = (denoiser.root / one.path for one in denoiser.weights)
    tensors = inputs(denoiser)
    mapped = opened(denoiser, resident_weights=LIMIT)
    # without the layouts of its own the library computes in another order
    plain = opened(denoiser).run(tensors)["out_sample"]
    first = mapped.run(tensors)["out_sample"]
    assert np.abs(first - plain).max() < 1e-5 * np.ptp(plain)
    assert held(weights) < LIMIT
    for _ in range(3):
        assert (mapped.run(tensors)["out_sample"] == first).all()
    assert held(weights) < LIMIT
    mapped.close()


def test_several_calls_at_once_give_what_each_gives_alone(denoiser: Component) -> None:
    session = opened(denoiser, resident_weights=LIMIT)
    given = [inputs(denoiser, seed=number) for number in range(3)]
    alone = [session.run(one)["out_sample"] for one in given]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda n=number: found.update({n: session.run(given[n])["out_sample"]}))
        for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((found[number] == alone[number]).all() for number in range(3))


def test_what_the_cache_keeps_is_held_in_part_too(
    denoiser: Component, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laid out for the processor, so that it computes what the usual session does, bit for bit."""
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    session, tensors = opened(denoiser, resident_weights=LIMIT, cache=True), inputs(denoiser)
    (stored,) = (tmp_path / "cache" / "onnxruntime").glob("*/model.onnx.data")
    assert (session.run(tensors)["out_sample"] == opened(denoiser).run(tensors)["out_sample"]).all()
    assert held(stored) < LIMIT
    session.close()


def test_weights_that_fit_are_held_as_usual(denoiser: Component) -> None:
    tensors = inputs(denoiser)
    fitting = opened(denoiser, resident_weights=external_bytes(denoiser.graph_path))
    assert (fitting.run(tensors)["out_sample"] == opened(denoiser).run(tensors)["out_sample"]).all()


def test_weights_that_are_computed_in_a_copy_are_refused(diffusion_artifact: Path) -> None:
    """Those of the built-in model are stored in float16."""
    component = Artifact.load(diffusion_artifact).components["unet"]
    with pytest.raises(DeviceError, match=r"cannot be held in part: the library copied \d+ MB") as caught:
        opened(component, resident_weights=LIMIT)
    assert "Leave resident_weights out" in caught.value.fix


def test_what_a_graph_stores_outside_is_counted(denoiser: Component) -> None:
    from safetensors.numpy import load_file

    stored = [load_file(denoiser.root / one.path) for one in denoiser.weights]
    assert external_bytes(denoiser.graph_path) == sum(array.nbytes for file in stored for array in file.values())


def test_a_system_that_does_not_tell_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_PROC", Path("/nowhere"))
    with pytest.raises(DeviceError, match="the system does not tell what a process holds"):
        file_bytes()
    with pytest.raises(DeviceError, match="the system does not tell what a process maps"):
        Resident([], 0)


def test_a_system_that_does_not_tell_is_no_error_for_a_wish(
    denoiser: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_PROC", Path("/nowhere"))
    session: Any = opened(denoiser, resident_weights=LIMIT, optional=("resident_weights",))
    assert "the system does not tell" in session.left_out["resident_weights"]
    tensors = inputs(denoiser)
    assert (session.run(tensors)["out_sample"] == opened(denoiser).run(tensors)["out_sample"]).all()


def test_what_was_only_wished_for_is_left_out_and_told(diffusion_artifact: Path) -> None:
    component = Artifact.load(diffusion_artifact).components["unet"]
    session: Any = opened(component, resident_weights=LIMIT, optional=("resident_weights",))
    assert re.match(r"Weights cannot be held in part: the library copied", session.left_out["resident_weights"])
    tensors = sample_inputs(component, {"batch": 1, "height": 16, "width": 16, "tokens": 77}, seed=1)
    assert np.isfinite(session.run(tensors)["out_sample"]).all()


def test_changed_weights_are_no_copies_of_the_files(denoiser: Component) -> None:
    changed = {
        name: np.full(one.shape, 0.01, np.float32)
        for name, one in external_initializers(denoiser.graph_path).items()
        if len(one.shape) > 1
    }
    mapped = load_runtime("onnx").open(denoiser, Device("cpu"), Options(threads=1, resident_weights=LIMIT), changed)
    plain = load_runtime("onnx").open(denoiser, Device("cpu"), Options(threads=1), changed)
    tensors = inputs(denoiser)
    expected = plain.run(tensors)["out_sample"]
    assert np.abs(mapped.run(tensors)["out_sample"] - expected).max() < 1e-5 * max(np.ptp(expected), 1)


def test_each_session_gives_back_its_own_mappings_alone(denoiser: Component) -> None:
    (weights,) = (denoiser.root / one.path for one in denoiser.weights)
    first, tensors = opened(denoiser, resident_weights=LIMIT), inputs(denoiser)
    second = opened(denoiser, resident_weights=LIMIT)
    ranges = [session._resident._ranges for session in (first, second)]  # type: ignore[attr-defined]
    assert all(ranges)
    assert resident._without(ranges[0], ranges[1]) == sorted(ranges[0])
    expected = first.run(tensors)["out_sample"]
    first.close()
    del first
    elsewhere = [np.full(1 << 20, 7, np.uint8) for _ in range(50)]  # may come to lie where the first one's weights were
    assert (second.run(tensors)["out_sample"] == expected).all()
    assert all((one == 7).all() for one in elsewhere)
    assert held(weights) < LIMIT


def test_nothing_is_given_back_once_a_call_is_over(denoiser: Component, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    session, tensors = opened(denoiser, resident_weights=LIMIT), inputs(denoiser)
    before = resident._madvise

    def slow(start: int, length: int) -> None:
        time.sleep(0.001)
        before(start, length)
        given.append(time.perf_counter())

    monkeypatch.setattr(resident, "_madvise", slow)
    for _ in range(5):
        session.run(tensors)
        over = time.perf_counter()
        time.sleep(0.03)
        assert given[-1] < over


def test_ranges_without_others() -> None:
    assert resident._without([(0, 10)], [(2, 4), (6, 8)]) == [(0, 2), (4, 6), (8, 10)]
    assert resident._without([(0, 10), (20, 30)], [(5, 25)]) == [(0, 5), (25, 30)]
    assert resident._without([(0, 10)], [(10, 20)]) == [(0, 10)]
    assert resident._without([(5, 8)], [(0, 10)]) == []


def test_the_small_preset_draws_the_same_picture(diffusion_artifact: Path) -> None:
    from vitrify.pipelines.presets import opened_with
    from vitrify.proof.quality import psnr

    options, offload = opened_with("small", Options(threads=1), "auto")
    pictures = []
    for more in ({}, {"options": options, "offload": offload}):
        pipeline = vitrify.load(diffusion_artifact, "cpu", **more)
        pictures.append(np.asarray(pipeline.generate("a red apple", steps=3, seed=1).images[0]))  # type: ignore[attr-defined]
        pipeline.close()
    assert psnr(*pictures) > 45
