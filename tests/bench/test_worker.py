"""A cell's process: what its clocks add to a call."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from vitrify.bench.spec import Spec
from vitrify.bench.worker import steady


class _Null:
    """A session that does nothing."""

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {}


def test_the_clocks_add_less_than_a_hundredth_of_20_ms() -> None:
    """A model that does nothing, called 20 times as a picture does, is timed at what timing takes."""
    pipeline = SimpleNamespace(sessions={"unet": _Null(), "vae_decoder": _Null()})

    def call() -> None:
        for _ in range(20):
            pipeline.sessions["unet"].run({})
        pipeline.sessions["vae_decoder"].run({})

    spec = Spec("null", "null", "text2img", "onnx", "fp32")
    values, series = steady(pipeline, call, {}, seconds=0.3, calls=1000, spec=spec)
    assert len(series["latency_ms"]) == values["calls"] >= 1000
    assert 0 < values["unet_ms"] < values["latency_ms"] < 0.01 * 20
