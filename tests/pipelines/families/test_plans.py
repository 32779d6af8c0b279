"""Plans of SDXL, Stable Diffusion 3 and Flux, tiny and random: each component builds and is what TensorRT read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
pytest.importorskip("diffusers", reason="needs the extra export")

from vitrify.core.artifact import Artifact
from vitrify.export import quantize
from vitrify.export.compile import CompileJob
from vitrify.export.job import export_model
from vitrify.export.plan import build_plan
from vitrify.export.plan_options import PlanOptions
from vitrify.quant.recipes import recipe

from ...export.plan_checks import check_plan
from .test_sdxl import pipeline as sdxl_pipeline
from .tiny_pipelines import flux_pipeline, sd3_pipeline

pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
FAMILIES: dict[str, Callable[[Any, Any], Any]] = {
    "sdxl": lambda words, t5: sdxl_pipeline(words)[0],
    "sd3": lambda words, t5: sd3_pipeline(words, t5, dual=(0,), norm="rms_norm"),
    "flux": lambda words, t5: flux_pipeline(words, t5, "dev"),
}
FORMS = {
    "float16": PlanOptions("float16"),
    "bfloat16": PlanOptions("bfloat16"),
    "apart": PlanOptions("bfloat16", apart=True),
}


@pytest.fixture(scope="module", params=FAMILIES)
def exported(
    request: pytest.FixtureRequest, clip_words: Any, t5_words: Any, save_tiny: Any, tmp_path_factory: Any
) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param)
    source = save_tiny(FAMILIES[request.param](clip_words, t5_words), folder / "source")
    return export_model(source, folder / "artifact", verify=False)


@pytest.mark.parametrize("form", ["float16", "bfloat16", "apart"])
def test_every_component_builds(exported: Artifact, tmp_path: Path, form: str) -> None:
    made = CompileJob(exported, tmp_path / "out", "tensorrt-rtx", plan=FORMS[form]).run().artifact
    loaded = Artifact.load(made.root, checksums=True)
    assert set(loaded.components) == set(exported.components)
    for name, plan in loaded.components.items():
        check_plan(plan, exported.components[name])


@pytest.mark.parametrize("id", ["int8-weights", "int4-weights:group=16", "fp8"])
def test_what_is_quantized_builds(exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str) -> None:
    """The components that have layers of a size that is worth it, which here are smaller than in a real model."""
    monkeypatch.setattr(quantize, "SMALL", 512)
    done = []
    for name, component in exported.components.items():
        if recipe(id).applies_to(name):
            small = quantize.quantize_weights(component, recipe(id), tmp_path / name)
            plan = build_plan(small, tmp_path / "plan", options=FORMS["float16"])
            check_plan(plan, component)
            assert plan.precision["weights"] == recipe(id).weights
            done.append(name)
    assert len(done) > 2
