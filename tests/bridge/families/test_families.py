"""Pipelines of the larger families, wrapped: several text encoders, transformers, packed latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify import bridge
from vitrify.core.errors import BadInput
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple on a table"
SMALL = {"prompt": PROMPT, "num_inference_steps": 4, "height": 32, "width": 48}
CLASSES = {"sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3", "flux": "Flux"}
# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for picture, wanted in zip(ours, theirs, strict=True):
        assert picture.shape == wanted.shape
        assert wanted.std() > 10, "a grey square would prove nothing"
        assert psnr(picture, wanted) >= 45


@pytest.fixture(scope="module", params=["sdxl-onnx", "sdxl-openvino", "sd3-openvino", "flux-onnx"])
def pair(
    request: pytest.FixtureRequest, tiny: Callable[[str], tuple[Path, Path]], fresh: Callable[..., Any]
) -> Iterator[tuple[str, Any, Any]]:
    """The family, diffusers' pipeline, and its wrapped twin."""
    family, runtime = request.param.split("-")
    model, artifact = tiny(family)
    cls = f"{CLASSES[family]}Pipeline"
    wrapped = bridge.wrap(fresh(cls, model), artifact, device="cpu", runtime=runtime)
    yield family, fresh(cls, model), wrapped
    wrapped.vitrify.close()


def test_text_to_image(pair: Any, drawn: Callable[..., Any]) -> None:
    family, plain, wrapped = pair
    several = {"prompt": [PROMPT, "a blue car"], "count": 2, "guidance_scale": 4.0}
    refused = {} if family == "flux" else {"negative_prompt": ["dark", ""]}
    for more in ({}, {"guidance_scale": 1.0}, several | refused):
        same(drawn(wrapped, **SMALL | more), drawn(plain, **SMALL | more))


def test_a_callback_and_embeddings(pair: Any, drawn: Callable[..., Any]) -> None:
    family, plain, wrapped = pair
    steps: list[int] = []

    def changed(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return {"latents": tensors["latents"] * 1.02}

    same(drawn(wrapped, **SMALL, callback_on_step_end=changed), drawn(plain, **SMALL, callback_on_step_end=changed))
    assert steps == [0, 1, 2, 3] * 2
    more = {"prompt_3": None} if family == "sd3" else {}
    with torch.no_grad():
        found = [pipe.encode_prompt(PROMPT, None, **more) for pipe in (wrapped, plain)]
    for ours, theirs in zip(*found, strict=True):
        if theirs is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_image_to_image(pair: Any, drawn: Callable[..., Any], picture: Image.Image) -> None:
    family, plain, wrapped = pair
    cls = getattr(diffusers, f"{CLASSES[family]}Img2ImgPipeline")
    given = SMALL | {"image": picture.resize((48, 32)), "strength": 0.7, "num_inference_steps": 5}
    if family != "flux" and family != "sd3":
        del given["height"], given["width"]
    pictures = []
    for pipe in (wrapped, plain):
        made = cls.from_pipe(pipe)
        made.set_progress_bar_config(disable=True)
        pictures.append(drawn(made, **given))
    same(*pictures)


def test_made_of_the_artifact_alone(tiny: Any, fresh: Callable[..., Any], drawn: Callable[..., Any]) -> None:
    model, artifact = tiny("sdxl")
    pipe = bridge.pipeline(artifact, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.StableDiffusionXLPipeline
    same(drawn(pipe, **SMALL), drawn(fresh("StableDiffusionXLPipeline", model), **SMALL))


def test_a_half_precision_pipeline_widens_its_vae(
    tiny: Any, fresh: Callable[..., Any], drawn: Callable[..., Any]
) -> None:
    """As SDXL's force_upcast asks: the pipeline moves the VAE to float32 and back, and asks a layer for its dtype."""
    model, artifact = tiny("sdxl")
    pipe = bridge.wrap(fresh("StableDiffusionXLPipeline", model), artifact, device="cpu")
    pipe.to(torch.float16, silence_dtype_warnings=True)
    assert pipe.vae.dtype == torch.float16
    half = drawn(pipe, **SMALL)[0]
    assert pipe.vae.dtype == torch.float16
    whole = drawn(pipe.to(torch.float32), **SMALL)[0]
    assert 30 < psnr(half, whole) < 90


def test_clip_skip_takes_an_earlier_state(pair: Any, drawn: Callable[..., Any]) -> None:
    family, plain, wrapped = pair
    if family == "flux":
        pytest.skip("Flux has no clip_skip")
    given = SMALL | {"clip_skip": 0 if family == "sd3" else 1, "guidance_scale": 1.0}
    same(drawn(wrapped, **given), drawn(plain, **given))


def test_sana_with_its_mask_and_an_autoencoder_without_variances(
    tiny: Any, fresh: Callable[..., Any], drawn: Callable[..., Any]
) -> None:
    model, artifact = tiny("sana")
    plain = fresh("SanaPipeline", model)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    given = {"prompt": PROMPT, "negative_prompt": "a leaf", "num_inference_steps": 3, "height": 64, "width": 64}
    given |= {"use_resolution_binning": False}
    for runtime in ("onnx", "openvino"):
        pipe = bridge.wrap(fresh("SanaPipeline", model), artifact, device="cpu", runtime=runtime)
        same(drawn(pipe, **given), drawn(plain, **given))
        with torch.no_grad():
            ours, theirs = (p.vae.encode(pixels) for p in (pipe, plain))
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours.latent, theirs.latent, rtol=1e-3, atol=1e-4)


def test_an_artifact_of_another_family_is_refused(tiny: Any, fresh: Callable[..., Any]) -> None:
    _, artifact = tiny("sdxl")
    with pytest.raises(BadInput, match="is another model than the one of"):
        bridge.wrap(fresh(), artifact, device="cpu")
