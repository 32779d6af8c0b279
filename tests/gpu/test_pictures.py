"""What a user sees: pictures and labels of the built-in models on each runtime and device, beside the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.proof.quality import Tolerance
from vitrify.quant.recipes import recipe

from .conftest import PROMPTS, drawn, pipeline_at, psnr
from .places import CUDA, EVERYWHERE, ONNX, ONNX_CUDA, RTX, TENSORRT, TORCH, TORCH_CUDA, Place, where

EXACT = Tolerance().psnr
QUANTIZED = [ONNX, TORCH, ONNX_CUDA, TORCH_CUDA, RTX, TENSORRT]
GPU_PIPELINES = [ONNX, ONNX_CUDA, TORCH_CUDA, RTX, TENSORRT]


@pytest.mark.parametrize("place", where(EVERYWHERE))
def test_pictures_are_the_cpus(
    place: Place, diffusion_artifact: Path, made: Any, on_the_cpu: list[Image.Image], figure: Callable[..., None]
) -> None:
    with pipeline_at(made(diffusion_artifact, place), place) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
        figure("ran", pipeline.placement["unet"]["provider"])
    figure("psnr_db", found)
    assert found >= EXACT


@pytest.mark.parametrize("place", where(EVERYWHERE))
def test_labels_are_the_cpus(
    place: Place, emotions_artifact: Path, made: Any, on_the_cpu: list[Image.Image], figure: Callable[..., None]
) -> None:
    with pipeline_at(emotions_artifact, ONNX) as pipeline:
        expected = pipeline.classify(on_the_cpu, top_k=None)
    with pipeline_at(made(emotions_artifact, place), place) as pipeline:
        given = pipeline.classify(on_the_cpu, top_k=None)
    worst = 0.0
    for one, other in zip(given, expected, strict=True):
        scores = {row["label"]: row["score"] for row in other}
        assert one[0]["label"] == other[0]["label"]
        worst = max(worst, *(abs(row["score"] - scores[row["label"]]) for row in one))
    figure("score_apart", worst)
    assert worst < Tolerance().score


@pytest.mark.parametrize(
    "quant", ["int8-weights", "int4-weights:group=32", pytest.param("int8-static", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("place", where(QUANTIZED))
def test_quantized_pictures_are_as_near_as_the_recipe_promises(
    place: Place, quant: str, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    if quant == "int8-static":
        if place.runtime == "torch":
            pytest.skip("PyTorch computes over int8 weights in float32 alone")
        pytest.importorskip("nncf", reason='needs pip install "vitrify[quant]"')
    with pipeline_at(made(diffusion_artifact, place, quant), place) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
    figure("psnr_db", found)
    # the recipe's figure is an average over eight pictures; this is the worse one of two
    assert found >= recipe(quant).min_psnr - 3
    assert found < 100, "the weights were not quantized"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("place", where([RTX, TENSORRT]))
def test_a_plan_in_16_bits_draws_the_same(
    place: Place, precision: str, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    artifact = made(diffusion_artifact, place, precision=precision)
    with pipeline_at(artifact, place) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
        assert pipeline.placement["unet"]["precision"] == precision
        if precision == "float16":
            assert pipeline.placement["vae_decoder"]["precision"] == "float32"
    figure("psnr_db", found)
    assert (35 if precision == "float16" else 22) <= found < 100


@pytest.mark.parametrize("place", where([ONNX, TORCH, ONNX_CUDA, TORCH_CUDA]))
def test_a_lora_leaves_no_residue(
    place: Place, diffusion_artifact: Path, made: Any, lora: str, figure: Callable[..., None]
) -> None:
    leaves_no_residue(made(diffusion_artifact, place), place, diffusion_artifact, lora, figure)


@pytest.mark.parametrize("keeps", ["refit", "strip", "apart"])
@pytest.mark.parametrize("place", where([RTX, TENSORRT]))
def test_a_lora_on_a_plan_leaves_no_residue(
    place: Place, keeps: str, diffusion_artifact: Path, made: Any, lora: str, figure: Callable[..., None]
) -> None:
    from vitrify.export.plan_options import PlanOptions

    artifact = made(diffusion_artifact, place, plan=PlanOptions(**{keeps: True}))
    leaves_no_residue(artifact, place, diffusion_artifact, lora, figure)


def leaves_no_residue(artifact: Path, place: Place, source: Path, lora: str, figure: Callable[..., None]) -> None:
    """The LoRA's pictures are the CPU's with that LoRA; without it they are again what they were, bit for bit."""
    with pipeline_at(source, ONNX) as pipeline:
        expected = drawn(pipeline, loras={lora: 1.0})
    with pipeline_at(artifact, place) as pipeline:
        before = drawn(pipeline)
        changed = drawn(pipeline, loras={lora: 1.0})
        after = drawn(pipeline)
    figure("psnr_db", psnr(changed, expected))
    figure("residue_db", psnr(before, after))
    assert psnr(changed, before) < 30, "the LoRA changed nothing"
    assert psnr(changed, expected) >= EXACT
    assert [p.tobytes() for p in before] == [p.tobytes() for p in after]


@pytest.mark.parametrize("place", where(p for p in GPU_PIPELINES if not p.is_plan))
def test_the_vae_may_run_on_the_cpu(
    place: Place, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    with pipeline_at(made(diffusion_artifact, place), place, place={"vae": "cpu"}) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
        ran = {name: p["device"] for name, p in pipeline.placement.items()}
    figure("psnr_db", found)
    assert ran["vae_decoder"] == "cpu"
    assert ran["unet"] in (place.device, place.device.partition(":")[0])
    assert found >= EXACT


@pytest.mark.parametrize("place", where(GPU_PIPELINES))
def test_components_in_turn_draw_the_same(
    place: Place, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    told: list[str] = []
    artifact = made(diffusion_artifact, place)
    with pipeline_at(artifact, place, offload="components", say=told.append) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
        assert len(pipeline.sessions) == 1
    figure("psnr_db", found)
    assert found >= EXACT


@pytest.mark.parametrize("place", where([RTX, TENSORRT]))
def test_weights_may_be_streamed_in(
    place: Place, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    """With a budget far below the UNet's 23 MB of weights."""
    from vitrify.export.plan_options import PlanOptions

    streaming = place.having(resident_weights=2_000_000)
    artifact = made(diffusion_artifact, place, plan=PlanOptions(weight_streaming=True))
    with pipeline_at(artifact, streaming) as pipeline:
        found = psnr(drawn(pipeline), on_the_cpu)
    figure("psnr_db", found)
    assert found >= EXACT


@pytest.mark.parametrize("place", where(p.having(cuda_graphs=True) for p in (ONNX_CUDA, RTX, TENSORRT)))
def test_recorded_calls_draw_the_same(
    place: Place, diffusion_artifact: Path, made: Any, on_the_cpu: Any, figure: Callable[..., None]
) -> None:
    with pipeline_at(made(diffusion_artifact, place), place) as pipeline:
        found = min(psnr(drawn(pipeline), on_the_cpu), psnr(drawn(pipeline), on_the_cpu))
    figure("psnr_db", found)
    assert found >= EXACT


@pytest.mark.parametrize("place", where([ONNX, ONNX_CUDA]))
def test_the_command_line_says_what_ran(place: Place, diffusion_artifact: Path, tmp_path: Path, vitrify: Any) -> None:
    """The exit code, the picture, and a placement that is no fallback."""
    picture = tmp_path / "apple.png"
    ran = vitrify(
        "generate", diffusion_artifact, PROMPTS[0], "-o", picture, "--steps", 2, "--device", place.device, "--json"
    )
    assert ran.code == 0, ran.err
    with Image.open(picture) as drawn_:
        assert drawn_.size == (64, 64)
    devices = {p["device"] for p in ran.json["placement"].values()}
    assert devices <= {place.device, place.device.partition(":")[0]}
    assert place.device == "cpu" or "cpu" not in devices


@pytest.mark.gpu
@pytest.mark.parametrize("place", where([Place("onnx", CUDA)]))
def test_without_a_device_the_gpu_is_chosen(place: Place, diffusion_artifact: Path) -> None:
    import vitrify

    told: list[str] = []
    pipeline = vitrify.load(diffusion_artifact, runtime=place.runtime, say=told.append)
    try:
        assert "cuda" in told[0]
        assert pipeline.placement["unet"]["provider"] == "CUDAExecutionProvider"
    finally:
        pipeline.close()
