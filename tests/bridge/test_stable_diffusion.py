"""A wrapped pipeline draws what it drew in PyTorch, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify import bridge
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple"
RUNTIMES = ("onnx", "openvino")
# diffusers turns tensors into arrays in a way that numpy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Each picture at least 45 dB from the one that PyTorch draws, which shows something."""
    assert len(ours) == len(theirs)
    for picture, wanted in zip(ours, theirs, strict=True):
        assert picture.shape == wanted.shape
        assert wanted.std() > 10  # two grey squares would prove nothing
        assert psnr(picture, wanted) >= 45


@pytest.fixture(scope="module")
def plain(fresh: Callable[..., Any]) -> Any:
    return fresh()


@pytest.fixture(scope="module", params=RUNTIMES)
def wrapped(request: pytest.FixtureRequest, fresh: Callable[..., Any], diffusion_artifact: Path) -> Any:
    pipe = bridge.wrap(fresh(), diffusion_artifact, device="cpu", runtime=request.param)
    yield pipe
    assert {place["runtime"] for place in pipe.vitrify.placement.values()} == {request.param}
    pipe.vitrify.close()


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 1),
        ({"negative_prompt": "a green leaf", "guidance_scale": 4.0}, 1),
        ({"guidance_scale": 1.0}, 1),
        ({"eta": 0.7}, 1),
        ({"num_images_per_prompt": 2, "height": 64, "width": 96}, 2),
        ({"guidance_rescale": 0.7}, 1),
    ],
    ids=["plain", "negative", "no guidance", "eta", "batch of other sides", "rescaled"],
)
def test_text_to_image(
    plain: Any, wrapped: Any, drawn: Callable[..., Any], arguments: dict[str, Any], count: int
) -> None:
    arguments = {"prompt": PROMPT, "num_inference_steps": 5, **arguments}
    same(drawn(wrapped, count=count, **arguments), drawn(plain, count=count, **arguments))


def test_several_prompts(plain: Any, wrapped: Any, drawn: Callable[..., Any]) -> None:
    arguments = {"prompt": [PROMPT, "a blue car"], "negative_prompt": ["a leaf", ""], "num_inference_steps": 4}
    same(drawn(wrapped, count=2, **arguments), drawn(plain, count=2, **arguments))


@pytest.mark.parametrize(
    "name",
    [
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "HeunDiscreteScheduler",
    ],
)
def test_another_scheduler_set_from_the_models_config(
    plain: Any, wrapped: Any, drawn: Callable[..., Any], name: str
) -> None:
    before = plain.scheduler, wrapped.scheduler
    try:
        for pipe in (plain, wrapped):
            pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        arguments = {"prompt": PROMPT, "num_inference_steps": 5, "guidance_scale": 4.0}
        same(drawn(wrapped, **arguments), drawn(plain, **arguments))
    finally:
        plain.scheduler, wrapped.scheduler = before


def test_a_callback_sees_and_changes_the_latents(plain: Any, wrapped: Any, drawn: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []

    def brighter(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, int(timestep)))
        return {"latents": tensors["latents"] * 1.05, "prompt_embeds": tensors["prompt_embeds"]}

    arguments = {"prompt": PROMPT, "num_inference_steps": 5, "guidance_scale": 4.0}
    changed = {"callback_on_step_end": brighter, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    ours, untouched = drawn(wrapped, **arguments, **changed), drawn(wrapped, **arguments)
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4]
    same(ours, drawn(plain, **arguments, **changed))
    assert psnr(ours[0], untouched[0]) < 40, "the callback changed nothing"


def test_a_callback_may_stop(wrapped: Any) -> None:
    steps: list[int] = []

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        pipe._interrupt = step == 1
        return tensors

    wrapped(PROMPT, num_inference_steps=6, callback_on_step_end=stop)
    assert steps == [0, 1]


def test_embeddings_and_latents_go_in_and_out(plain: Any, wrapped: Any) -> None:
    """As tensors, the way other tools drive a pipeline."""
    results = []
    for pipe in (plain, wrapped):
        wanted, unwanted = pipe.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt="a leaf")
        start = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
        done = pipe(
            prompt_embeds=wanted, negative_prompt_embeds=unwanted, latents=start, num_inference_steps=4,
            output_type="latent", return_dict=False,
        )  # fmt: skip
        results.append(done[0])
    assert results[0].dtype == results[1].dtype == torch.float32
    assert float((results[0] - results[1]).abs().max()) < 1e-3 < float(results[0].abs().max())


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(
    fresh: Callable[..., Any], wrapped: Any, drawn: Callable[..., Any], picture: Image.Image, strength: float
) -> None:
    """By `from_pipe`: a pipeline of another class over the same stand-ins."""
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(wrapped)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is wrapped.unet
    arguments = {"prompt": PROMPT, "image": picture, "strength": strength, "num_inference_steps": 6}
    same(drawn(pipe, **arguments), drawn(fresh("StableDiffusionImg2ImgPipeline"), **arguments))


def test_inpainting(
    fresh: Callable[..., Any], wrapped: Any, drawn: Callable[..., Any], picture: Image.Image, mask: Image.Image
) -> None:
    pipe = diffusers.AutoPipelineForInpainting.from_pipe(wrapped)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.StableDiffusionInpaintPipeline
    arguments = {"prompt": PROMPT, "image": picture, "mask_image": mask, "num_inference_steps": 5, "height": 64,
                 "width": 64}  # fmt: skip
    same(drawn(pipe, **arguments), drawn(fresh("StableDiffusionInpaintPipeline"), **arguments))


def test_an_intermediate_representation_of_openvino(
    fresh: Callable[..., Any], plain: Any, drawn: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    vitrify.compile_model(diffusion_artifact, tmp_path / "ir", to="openvino", verify=False)
    pipe = bridge.wrap(fresh(), tmp_path / "ir")
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    same(drawn(pipe, **arguments), drawn(plain, **arguments))
    assert pipe.vitrify.artifact.root == tmp_path / "ir"
    assert pipe.vitrify.placement["unet"]["runtime"] == "openvino"


def test_only_the_components_that_are_named(
    fresh: Callable[..., Any], plain: Any, drawn: Callable[..., Any], diffusion_artifact: Path
) -> None:
    pipe = bridge.wrap(fresh(), diffusion_artifact, components=["unet"], device="cpu")
    assert list(pipe.vitrify.parts) == ["unet"]
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) > 1000
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    same(drawn(pipe, **arguments), drawn(plain, **arguments))


def test_in_half_precision_the_latents_are_half_and_the_graph_is_not(
    fresh: Callable[..., Any], plain: Any, drawn: Callable[..., Any], diffusion_artifact: Path
) -> None:
    pipe = bridge.wrap(fresh(dtype=torch.bfloat16), diffusion_artifact, device="cpu")
    assert pipe.dtype == pipe.unet.dtype == torch.bfloat16
    done = pipe(PROMPT, num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(7)).images
    assert done.dtype == torch.bfloat16
    pipe.to(torch.float32)
    assert pipe.dtype == pipe.vae.dtype == torch.float32
    arguments = {"prompt": PROMPT, "num_inference_steps": 4}
    same(drawn(pipe, **arguments), drawn(plain, **arguments))
