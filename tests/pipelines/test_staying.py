"""Arrays that come again stay on the device. ONNX Runtime on the CPU stands in for one: its code is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.registry import load_runtime
from vitrify.pipelines.staying import Staying
from vitrify.proof.parity import sample_inputs
from vitrify.runtimes.base import DeviceSession, Options


@pytest.fixture
def session(diffusion_artifact: Path) -> Any:
    """A real session, which says that it runs elsewhere; `copies` counts what is copied there."""
    opened = load_runtime("onnx").open(Artifact.load(diffusion_artifact).components["unet"], Device("cpu"), Options())
    assert isinstance(opened, DeviceSession)
    opened.placement = replace(opened.placement, device="cuda:0")
    opened.copies = []
    plain = opened.to_device

    def counted(array: np.ndarray) -> Any:
        opened.copies.append(array.shape)
        return plain(array)

    opened.to_device = counted
    return opened


def inputs(artifact: Path, seed: int) -> dict[str, np.ndarray]:
    sizes = {"batch": 1, "height": 8, "width": 8, "tokens": 77}
    return sample_inputs(Artifact.load(artifact).components["unet"], sizes, seed=seed)


def test_what_comes_again_is_copied_once(session: Any, diffusion_artifact: Path) -> None:
    staying, first = Staying(session), inputs(diffusion_artifact, 1)
    expected = session.run(first)["out_sample"]
    for _ in range(4):
        given = {**first, "sample": first["sample"].copy(), "timestep": first["timestep"].copy()}
        np.testing.assert_array_equal(staying.run(given)["out_sample"], expected)
    assert session.copies == [first["encoder_hidden_states"].shape]


def test_another_array_is_never_taken_for_the_old_one(session: Any, diffusion_artifact: Path) -> None:
    staying = Staying(session)
    for seed in (1, 2, 1, 3):
        given = inputs(diffusion_artifact, seed)
        for _ in range(2):
            np.testing.assert_array_equal(staying.run(given)["out_sample"], session.run(given)["out_sample"])


def test_on_the_cpu_nothing_is_copied(session: Any, diffusion_artifact: Path) -> None:
    session.placement = replace(session.placement, device="cpu")
    staying, given = Staying(session), inputs(diffusion_artifact, 1)
    for _ in range(3):
        staying.run(given)
    assert session.copies == []
