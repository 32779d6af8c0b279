"""Pipelines with ControlNets: UNet and ControlNets compiled, the residuals going between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify import bridge
from vitrify.core.errors import BadInput, UsageError
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple"
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def nets(fresh: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ControlNets of the demo's model, random where new ones are zero."""
    folders = []
    unet = fresh().unet
    for number in (0, 1):
        torch.manual_seed(number)
        net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32))
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
            torch.nn.init.normal_(block.weight, std=0.05)
        folders.append(tmp_path_factory.mktemp("nets") / f"net{number}")
        net.save_pretrained(folders[-1])
    return folders


@pytest.fixture(scope="module")
def steered(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, whose UNet takes residuals."""
    folder = tmp_path_factory.mktemp("steered") / "emoji"
    vitrify.export_model(diffusion_source, folder, control=True, verify=False)
    return folder


@pytest.fixture(scope="module")
def net_artifacts(nets: list[Path]) -> list[Path]:
    folders = [net.with_name(f"{net.name}-artifact") for net in nets]
    for net, folder in zip(nets, folders, strict=True):
        vitrify.export_model(net, folder, verify=False)
    return folders


@pytest.fixture(scope="module")
def loaded(fresh: Callable[..., Any], nets: list[Path]) -> Callable[..., Any]:
    """loaded(count=1, cls=...): a pipeline with so many ControlNets."""

    def load(count: int = 1, cls: str = "StableDiffusionControlNetPipeline") -> Any:
        made = [diffusers.ControlNetModel.from_pretrained(net, dtype=torch.float32) for net in nets[:count]]
        return fresh(cls, controlnet=made if count > 1 else made[0])

    return load


def same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    for picture, wanted in zip(ours, theirs, strict=True):
        assert wanted.std() > 10
        assert psnr(picture, wanted) >= 45


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_one_controlnet(
    loaded: Callable[..., Any],
    drawn: Callable[..., Any],
    steered: Path,
    net_artifacts: list[Path],
    picture: Image.Image,
    runtime: str,
) -> None:
    plain, pipe = loaded(), loaded()
    bridge.wrap(pipe, steered, device="cpu", runtime=runtime)
    bridge.wrap(pipe, net_artifacts[0], device="cpu", runtime=runtime)
    assert set(pipe.vitrify.parts) == {"unet", "vae", "text_encoder", "controlnet"}
    assert [a.root for a in pipe.vitrify.artifacts] == [steered, net_artifacts[0]]
    assert pipe.vitrify.artifact.root == steered
    given = {"prompt": PROMPT, "image": picture, "num_inference_steps": 4}
    unsteered = drawn(pipe, **given, controlnet_conditioning_scale=0.0)[0]
    for more in (
        {},
        {"controlnet_conditioning_scale": 0.6},
        {"guess_mode": True, "guidance_scale": 3.0},
        {"control_guidance_end": 0.5},
        {"guidance_scale": 1.0},
        {"num_images_per_prompt": 2, "negative_prompt": "a leaf", "count": 2},
    ):
        ours = drawn(pipe, **given, **more)
        same(ours, drawn(plain, **given, **more))
        assert psnr(ours[0], unsteered) < 40, "the ControlNet did nothing"


def test_several_controlnets_and_some_of_them_compiled(
    loaded: Callable[..., Any],
    drawn: Callable[..., Any],
    steered: Path,
    net_artifacts: list[Path],
    picture: Image.Image,
) -> None:
    plain, pipe = loaded(2), loaded(2)
    bridge.wrap(pipe, steered, device="cpu")
    assert "controlnet" not in pipe.vitrify.parts
    given = {"prompt": PROMPT, "image": [picture, picture.rotate(90)], "num_inference_steps": 4}
    given |= {"controlnet_conditioning_scale": [0.8, 0.5]}
    wanted = drawn(plain, **given)
    same(drawn(pipe, **given), wanted)
    for number, folder in enumerate(net_artifacts):
        bridge.wrap(pipe, folder, device="cpu", components=[f"controlnet.{number}"])
        same(drawn(pipe, **given), wanted)
    assert {"unet", "controlnet.0", "controlnet.1"} <= set(pipe.vitrify.placement)
    with pytest.raises(UsageError, match="no controlnet to wrap"):
        bridge.wrap(pipe, net_artifacts[0], device="cpu", components=["controlnet"])


def test_a_controlnet_beside_a_pipeline_made_of_an_artifact(
    loaded: Callable[..., Any],
    drawn: Callable[..., Any],
    steered: Path,
    net_artifacts: list[Path],
    picture: Image.Image,
) -> None:
    plain = loaded(cls="StableDiffusionControlNetImg2ImgPipeline")
    net = plain.controlnet
    pipe = bridge.pipeline(steered, cls="StableDiffusionControlNetImg2ImgPipeline", device="cpu", controlnet=net)
    bridge.wrap(pipe, net_artifacts[0], device="cpu")
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt": PROMPT, "image": picture, "control_image": picture.rotate(90), "num_inference_steps": 5}
    same(drawn(pipe, **given), drawn(plain, **given))


def test_without_a_controlnet_the_same_graph_draws_what_it_drew(
    fresh: Callable[..., Any], drawn: Callable[..., Any], steered: Path
) -> None:
    pipe = bridge.wrap(fresh(), steered, device="cpu")
    given = {"prompt": PROMPT, "num_inference_steps": 4}
    same(drawn(pipe, **given), drawn(fresh(), **given))


def test_a_unet_that_takes_no_residuals_says_so(
    loaded: Callable[..., Any], diffusion_artifact: Path, picture: Image.Image
) -> None:
    pipe = bridge.wrap(loaded(), diffusion_artifact, device="cpu")
    with pytest.raises(BadInput, match="down_residual_0 was given") as caught:
        pipe(PROMPT, image=picture, num_inference_steps=1)
    assert "--control" in caught.value.fix


def test_compiled_in_one_call(
    loaded: Callable[..., Any],
    drawn: Callable[..., Any],
    picture: Image.Image,
    tmp_path: Path,
) -> None:
    plain, pipe = loaded(), loaded()
    given: dict[str, Any] = {"to": "onnx", "quant": "fp32", "verify": False, "output": tmp_path / "out"}
    vitrify.compile_pipeline(pipe, **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "out-controlnet"]
    drawing = {"prompt": PROMPT, "image": picture, "num_inference_steps": 4}
    same(drawn(pipe, **drawing), drawn(plain, **drawing))
    again = loaded()
    vitrify.compile_pipeline(again, **given)
    assert [a.id for a in again.vitrify.artifacts] == [a.id for a in pipe.vitrify.artifacts]


def test_the_controlnet_of_a_transformer_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    net = diffusers.FluxControlNetModel(
        in_channels=16, num_layers=1, num_single_layers=0, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[2, 2, 4],
    )  # fmt: skip
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
    pipe = diffusers.FluxControlNetPipeline(**dict.fromkeys(parts), controlnet=net)
    with pytest.raises(BadInput, match="FluxControlNetModel, which is not compiled inside diffusers") as caught:
        vitrify.compile_pipeline(pipe, "onnx", "fp32", tmp_path / "out")
    assert "generate --controlnet" in caught.value.fix
    assert not (tmp_path / "out").exists()
