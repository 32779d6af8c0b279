"""What each component takes of the process's memory: measured on real sessions, silent where nobody asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.machine import forget_peak, peak_resident, resident
from vitrify.pipelines.memory_report import Watch, Watched, begin, report
from vitrify.runtimes.base import Options
from vitrify.runtimes.ort import RUNTIME

MB = 1 << 20
PICTURES = {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)}


@pytest.fixture
def forgets() -> None:
    forget_peak()
    if (peak_resident() or 0) > resident() + 64 * MB:
        pytest.skip("needs a system that lets a process forget its peak")


def opened(watch: Watch, artifact: Path, name: str, more: int = 0) -> Any:
    """A real session; `more` bytes are held while it opens, and half of them afterwards."""
    component = Artifact.load(artifact).components["model"]
    kept: list[Any] = []

    def opener() -> Any:
        held = np.ones(more, np.uint8)
        kept.append(held[: more // 2].copy())
        return RUNTIME.open(component, Device("cpu"), Options())

    session = watch.opened(name, opener)
    return session, kept


def test_what_a_session_adds_and_the_peak_while_it_opens(emotions_artifact: Path, forgets: None) -> None:
    watch = Watch()
    before = resident()
    session, kept = opened(watch, emotions_artifact, "model", 400 * MB)
    row = watch.to_json()["model"]
    assert kept
    assert 190 * MB < row["opened"] < 330 * MB
    assert row["opening"] > before + 580 * MB
    assert row["peak"] is None, "it has not run"
    session.close()


def test_each_component_has_the_peak_of_its_own_calls(emotions_artifact: Path, forgets: None) -> None:
    watch = Watch()
    large, _ = opened(watch, emotions_artifact, "large")
    small, _ = opened(watch, emotions_artifact, "small")
    watch.begin()

    def runs(session: Any, more: int) -> Any:
        held = np.ones(more, np.uint8)
        return session._session.run(PICTURES) if held.any() else None

    plain = large._session.run(PICTURES)
    found = watch.worked("large", lambda: runs(large, 300 * MB))
    np.testing.assert_array_equal(found["logits"], plain["logits"])
    small.run(PICTURES)
    rows = watch.to_json()
    assert rows["large"]["peak"] > rows["small"]["peak"] + 250 * MB
    assert watch.peak() == rows["large"]["peak"], "the whole one is the largest"
    watch.begin()
    assert watch.to_json()["large"]["peak"] is None
    assert (watch.peak() or 0) < (rows["large"]["peak"] or 0) - 250 * MB


def test_a_generation_tells_it_where_it_is_asked(diffusion_artifact: Path) -> None:
    watch = Watch()
    plain: Any = vitrify.load(diffusion_artifact, "cpu")
    told: Any = vitrify.load(diffusion_artifact, "cpu", watch=watch)
    assert all(isinstance(session, Watched) for session in told.sessions.values())
    assert not any(isinstance(session, Watched) for session in plain.sessions.values())
    drawn = [p.generate("a red apple", steps=2, seed=1).images[0] for p in (plain, told)]
    np.testing.assert_array_equal(*map(np.asarray, drawn))
    rows = watch.to_json()
    assert list(rows) == ["text_encoder", "unet", "vae_decoder"]
    assert all(row["opening"] and row["peak"] and row["opened"] is not None for row in rows.values())
    assert told.placement == plain.placement
    told.close()
    assert list(watch.to_json()) == list(rows), "what was closed is told too"
    plain.close()


def test_components_in_turn_are_told_as_well(diffusion_artifact: Path) -> None:
    watch = Watch()
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", offload="components", watch=watch)
    assert watch.to_json() == {}
    pipeline.generate("a red apple", steps=1, seed=1)
    assert list(watch.to_json()) == ["text_encoder", "unet", "vae_decoder"]
    told = report(pipeline.budget, watch)
    assert told is not None
    assert told["peak"] >= max(row["peak"] for row in told["components"].values())
    assert "unet closed for vae_decoder" in told["done"]
    pipeline.close()


def test_nobody_asked() -> None:
    begin(None, None)
    assert report(None, None) is None
    assert report(None, Watch()) == {"budget": None, "peak": peak_resident(), "done": [], "components": {}}
