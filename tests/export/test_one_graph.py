"""One quantized graph on every runtime: the same pictures on two, and a plan for the third."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.artifact import Artifact, Component
from vitrify.pipelines.load import load
from vitrify.proof.quality import psnr

pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")


@pytest.fixture
def once(
    request: pytest.FixtureRequest, float_unet: Component, quantized: Callable[[Component, str], Component]
) -> Callable[[str], Component]:
    """The UNet, quantized once for all runtimes."""

    def made(id: str) -> Component:
        return request.getfixturevalue("static_unet") if id == "int8-static" else quantized(float_unet, id)

    return made


@pytest.mark.parametrize(("id", "least"), [("int8-weights", 35), ("int4-weights:group=32", 35), ("int8-static", 25)])
def test_one_quantized_graph_draws_the_same_on_two_runtimes(
    drawing: Artifact, once: Callable[[str], Component], id: str, least: float
) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    artifact = replace(drawing, components={**drawing.components, "unet": once(id)})
    drawn: list[list[np.ndarray]] = []
    for runtime in ("onnx", "openvino"):
        pipeline: Any = load(artifact, "cpu", runtime=runtime)
        try:
            prompts = ["a red apple", "a happy face"]
            images = pipeline.generate(prompts, steps=6, seed=1, guidance=3).images
            assert pipeline.placement["unet"]["runtime"] == runtime
        finally:
            pipeline.close()
        drawn.append([np.asarray(image) for image in images])
    assert min(psnr(a, b) for a, b in zip(*drawn, strict=True)) >= least


@pytest.mark.parametrize(
    "id", ["int4-weights:group=32", "int8-static", pytest.param("int8-weights", marks=pytest.mark.slow)]
)
def test_the_same_graph_becomes_a_plan(
    once: Callable[[str], Component], float_unet: Component, tmp_path: Path, id: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
    from vitrify.export.plan import build_plan

    plan = build_plan(once(id), tmp_path)
    assert plan.graph_path.stat().st_size == plan.weights[0].bytes
    assert plan.precision["recipe"] == id
    assert plan.details["source"]["proof"]["weights"]["quantized"] == 80
