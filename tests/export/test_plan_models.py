"""Plans of whole models in every form: built, and held against what TensorRT read back of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
pytest.importorskip("onnx", reason="needs vitrify[export]")

from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.export.compile import CompileJob  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402
from vitrify.export.plan_options import PlanOptions  # noqa: E402
from vitrify.export.quantize import quantize_weights  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402

from .plan_checks import check_plan  # noqa: E402

# what is compiled -> the recipe and the choices
FORMS = {
    "float16": ("fp32", PlanOptions("float16")),
    "bfloat16": ("fp32", PlanOptions("bfloat16")),
    "int8": ("int8-weights", PlanOptions("float16")),
    "int4": ("int4-weights", PlanOptions("float16")),
    "apart": ("fp32", PlanOptions("float16", apart=True)),
    "int8 apart": ("int8-weights", PlanOptions("float16", apart=True)),
}


def quantized(source: Component, id: str, root: Path) -> Component:
    return source if id == "fp32" else quantize_weights(source, recipe(id), root)


@pytest.mark.parametrize("form", FORMS)
def test_the_built_in_classifier(emotions_artifact: Path, tmp_path: Path, form: str) -> None:
    id, options = FORMS[form]
    source = quantized(Artifact.load(emotions_artifact).components["model"], id, tmp_path / "onnx")
    check_plan(build_plan(source, tmp_path / "plan", options=options), source)


@pytest.mark.parametrize("form", ["float16", "bfloat16", "apart"])
def test_a_small_unet(unet_model: Any, tmp_path: Path, form: str) -> None:
    source = unet_model.components["onnx"]
    check_plan(build_plan(source, tmp_path / "plan", options=FORMS[form][1]), source)


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, "int8-static"])
def test_the_built_in_diffusion_model(diffusion_artifact: Path, tmp_path: Path, form: str) -> None:
    """All four components, by the command's own job, and loaded again with checksums."""
    id, options = FORMS.get(form, ("int8-static:samples=4", PlanOptions("float16")))
    source = Artifact.load(diffusion_artifact)
    made = CompileJob(source, tmp_path / "out", "tensorrt-rtx", recipe(id), plan=options).run().artifact
    loaded = Artifact.load(made.root, checksums=True)
    assert set(loaded.components) == set(source.components)
    for name, plan in loaded.components.items():
        check_plan(plan, source.components[name])
    assert re.search(r"--to tensorrt-rtx", str(loaded.built["command"]))
    assert all(argument in str(loaded.built["command"]) for argument in options.arguments())
    assert loaded.components["vae_decoder"].precision["activations"] == (
        "float32" if options.precision == "float16" else options.precision
    )


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory: pytest.TempPathFactory) -> Component:
    """A ViT-B with random weights: 343 MB of float32."""
    from vitrify.bench.models import VIT_B, make_vit_b
    from vitrify.export.job import export_model

    home = tmp_path_factory.mktemp("vit-b")
    make_vit_b(home)
    return export_model(home / VIT_B, home / "onnx", verify=False).components["model"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_vit_b(vit_b: Component, tmp_path: Path, form: str) -> None:
    """Its plan is as large as its weights are in that form, and next to nothing where they are apart."""
    id, options = FORMS[form]
    source = quantized(vit_b, id, tmp_path / "onnx")
    plan = build_plan(source, tmp_path / "plan", options=options)
    check_plan(plan, source)
    weights = sum(w.bytes for w in vit_b.weights)
    share = plan.weights[0].bytes / weights
    least, most = {"float16": (0.5, 0.56), "bfloat16": (0.5, 0.56), "int8": (0.25, 0.31), "int4": (0.12, 0.2)}.get(
        form, (0.0, 0.04)
    )
    assert least < share < most, f"{form}: {share:.3f} of its float32 weights"


@pytest.mark.slow
def test_a_plan_apart_takes_another_checkpoints_weights(vit_b: Component, tmp_path: Path) -> None:
    """Two models of one architecture have one plan: byte for byte, whatever their weights are."""
    import numpy as np

    one = build_plan(vit_b, tmp_path / "one", options=PlanOptions(apart=True))
    root = tmp_path / "other"
    for path in (vit_b.graph, *(w.path for w in vit_b.weights)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        data = bytearray((vit_b.root / path).read_bytes())
        if path != vit_b.graph:
            data[-4_000_000:] = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32).tobytes()
        (root / path).write_bytes(bytes(data))
    other = build_plan(replace(vit_b, root=root), tmp_path / "two", options=PlanOptions(apart=True))
    assert one.weights[0].sha256 == other.weights[0].sha256
    assert one.weights[1].bytes == other.weights[1].bytes
    assert (tmp_path / "one" / one.weights[1].path).read_bytes() != (root / one.weights[1].path).read_bytes()
