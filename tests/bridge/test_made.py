"""A pipeline made of an artifact alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify import bridge
from vitrify.core.errors import BadArtifact, BadInput, UsageError
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_it_draws_what_the_model_draws_without_its_weights(
    fresh: Callable[..., Any], drawn: Callable[..., Any], diffusion_artifact: Path
) -> None:
    plain = fresh()
    pipe = bridge.pipeline(diffusion_artifact, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert type(pipe.scheduler) is type(plain.scheduler)
    for name in ("unet", "vae", "text_encoder"):
        module: Any = getattr(pipe, name)
        assert sum(p.numel() for p in module.parameters()) == 0
        assert type(module) is type(getattr(plain, name))
    for key, value in plain.vae.config.items():
        if not key.startswith("_"):
            assert pipe.vae.config[key] == value, key
    arguments = {"prompt": PROMPT, "num_inference_steps": 5, "negative_prompt": "a leaf"}
    ours, theirs = drawn(pipe, **arguments)[0], drawn(plain, **arguments)[0]
    assert theirs.std() > 10
    assert psnr(ours, theirs) >= 45


@pytest.mark.parametrize("cls", ["StableDiffusionImg2ImgPipeline", "class"])
def test_another_class_and_another_scheduler(
    fresh: Callable[..., Any], drawn: Callable[..., Any], diffusion_artifact: Path, picture: Image.Image, cls: str
) -> None:
    plain = fresh("StableDiffusionImg2ImgPipeline")
    euler = plain.scheduler = diffusers.EulerDiscreteScheduler.from_config(plain.scheduler.config)
    named = diffusers.StableDiffusionImg2ImgPipeline if cls == "class" else cls
    pipe = bridge.pipeline(diffusion_artifact, cls=named, device="cpu", scheduler=euler, runtime="openvino")
    pipe.set_progress_bar_config(disable=True)
    arguments = {"prompt": PROMPT, "image": picture, "num_inference_steps": 5}
    assert psnr(drawn(pipe, **arguments)[0], drawn(plain, **arguments)[0]) >= 45


def test_a_folder_of_optimums_layout(diffusion_artifact: Path, tmp_path: Path, drawn: Callable[..., Any]) -> None:
    """Without a manifest, and with Optimum's class names, the configs say what stands where."""
    folder = tmp_path / "optimum"
    shutil.copytree(diffusion_artifact, folder)
    (folder / "artifact.json").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"unet": ["optimum.onnxruntime.modeling_diffusion", "ORTUnet"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = bridge.pipeline(folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    own = bridge.pipeline(diffusion_artifact, device="cpu")
    own.set_progress_bar_config(disable=True)
    arguments = {"prompt": PROMPT, "num_inference_steps": 2}
    np.testing.assert_array_equal(drawn(pipe, **arguments)[0], drawn(own, **arguments)[0])


@pytest.mark.parametrize(
    ("given", "error", "what"),
    [
        ({"cls": "StableDiffusionPipelin"}, BadInput, "no pipeline class"),
        ({"cls": "AutoencoderKL"}, BadInput, "no pipeline class"),
        ({"steps": 5}, UsageError, "takes no steps"),
        ({"cls": "StableDiffusionControlNetPipeline"}, BadInput, "needs a controlnet"),
        ({"cls": "AudioLDM2Pipeline"}, BadInput, "needs a"),
    ],
)
def test_what_cannot_be_made_is_said(
    diffusion_artifact: Path, given: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        bridge.pipeline(diffusion_artifact, device="cpu", **given)


def test_a_folder_names_no_code_of_its_own(diffusion_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(diffusion_artifact, folder)
    manifest = json.loads((folder / "artifact.json").read_text())
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["subprocess", "Popen"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for file in manifest["files"]:
        if file["path"] == "model_index.json":
            file["bytes"] = (folder / "model_index.json").stat().st_size
    (folder / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match="Popen of subprocess"):
        bridge.pipeline(folder, device="cpu")
