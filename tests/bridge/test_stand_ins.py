"""What stands in for a pipeline's components: what it offers, what it refuses and says, and what is freed."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify import bridge
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadArtifact, BadInput, NotFinite, RuntimeFailure, UsageError

diffusers = pytest.importorskip("diffusers", reason="needs vitrify[export]")
torch = pytest.importorskip("torch", reason="needs vitrify[export]")

PROMPT = "a red apple"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def pipe(fresh: Callable[..., Any], diffusion_artifact: Path) -> Any:
    return bridge.wrap(fresh(), diffusion_artifact, device="cpu")


@pytest.fixture(scope="module")
def shared_pipe(fresh: Callable[..., Any], diffusion_artifact: Path) -> Any:
    """For tests that change nothing of it."""
    return bridge.wrap(fresh(), diffusion_artifact, device="cpu")


@pytest.fixture
def damaged(diffusion_artifact: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """A copy of the artifact whose manifest was changed."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(diffusion_artifact, copy)
        manifest = json.loads((copy / "artifact.json").read_text())
        change(manifest)
        (copy / "artifact.json").write_text(json.dumps(manifest))
        return copy

    return make


def test_the_weights_are_freed_and_the_configs_stay(fresh: Callable[..., Any], diffusion_artifact: Path) -> None:
    pipe = fresh()
    configs = {name: getattr(pipe, name).config for name in ("unet", "vae", "text_encoder")}
    weights = [weakref.ref(p) for name in configs for p in getattr(pipe, name).parameters() if p.ndim > 1]
    assert len(weights) > 100
    assert bridge.wrap(pipe, diffusion_artifact, device="cpu") is pipe
    assert [w for w in weights if w() is not None] == []
    for name, config in configs.items():
        assert getattr(pipe, name).config is config
    assert pipe.components["unet"] is pipe.unet
    assert isinstance(pipe.unet, diffusers.UNet2DConditionModel)
    assert "compiled: onnx CPUExecutionProvider on cpu, float32" in repr(pipe.unet)
    assert repr(pipe.vae).count("compiled") == 1


def test_the_encoder_of_pictures_opens_when_it_is_used(pipe: Any) -> None:
    assert set(pipe.vitrify.placement) == {"text_encoder", "unet", "vae_decoder"}
    found = pipe.vae.encode(torch.zeros(1, 3, 64, 64))
    assert set(pipe.vitrify.placement) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert found.latent_dist.mean.shape == found.latent_dist.logvar.shape == (1, 4, 16, 16)


def test_each_component_alone_gives_what_the_module_gives(fresh: Callable[..., Any], shared_pipe: Any) -> None:
    plain, near = fresh(), {"rtol": 1e-3, "atol": 1e-4}
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 49407, (2, 77), generator=draw)
    latents = torch.randn(2, 4, 8, 16, generator=draw)
    text = torch.randn(2, 77, plain.unet.config.cross_attention_dim, generator=draw)
    pixels = torch.rand(2, 3, 64, 64, generator=draw) * 2 - 1
    with torch.no_grad():
        for pair in (
            (shared_pipe.text_encoder(ids), plain.text_encoder(ids)),
            (
                shared_pipe.text_encoder(ids, return_dict=False),
                plain.text_encoder(ids, return_dict=False),
            ),
        ):
            for number in (0, 1):
                np.testing.assert_allclose(pair[0][number], pair[1][number], **near)
        ours, theirs = (p.unet(latents, torch.tensor(500), text) for p in (shared_pipe, plain))
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours.sample, theirs.sample, **near)
        for when in (500, torch.tensor([500]), torch.tensor([500, 500])):
            assert torch.equal(shared_pipe.unet(latents, when, encoder_hidden_states=text)[0], ours.sample)
        ours, theirs = (p.vae.encode(pixels) for p in (shared_pipe, plain))
        assert type(ours.latent_dist) is type(theirs.latent_dist)
        np.testing.assert_allclose(ours.latent_dist.mode(), theirs.latent_dist.mode(), **near)
        np.testing.assert_allclose(ours.latent_dist.std, theirs.latent_dist.std, **near)
        ours, theirs = (p.vae.decode(latents) for p in (shared_pipe, plain))
        assert type(ours) is type(theirs)
        np.testing.assert_allclose(ours.sample, theirs.sample, **near)
        ours, theirs = (p.vae(pixels, return_dict=False)[0] for p in (shared_pipe, plain))
        np.testing.assert_allclose(ours, theirs, **near)


def test_a_tensor_on_the_cpu_is_not_copied(shared_pipe: Any) -> None:
    from vitrify.bridge.values import to_array, to_tensor

    spec = shared_pipe.vitrify.artifact.components["unet"].inputs["sample"]
    latents = torch.randn(1, 4, 8, 8)
    array = to_array("sample", latents, spec)
    assert array.__array_interface__["data"][0] == latents.data_ptr()
    assert to_tensor(array, latents).data_ptr() == latents.data_ptr()
    half = to_array("sample", latents.half(), spec)
    assert half.dtype == np.float32
    assert to_tensor(half, latents.half()).dtype == torch.float16


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        ({"cross_attention_kwargs": {"scale": 0.5}}, "scale was given", "fused"),
        ({"added_cond_kwargs": {"image_embeds": torch.zeros(1, 4)}}, "image_embeds was given", "IP-Adapter"),
        ({"mid_block_additional_residual": torch.zeros(1, 4, 1, 1)}, "mid_residual was given", "--control"),
        ({"down_block_additional_residuals": [torch.zeros(1, 4, 1, 1)]}, "down_residual_0 was given", "--control"),
        ({"down_intrablock_additional_residuals": [torch.zeros(1)]}, "intrablock", "PyTorch"),
        ({"class_labels": torch.zeros(1)}, "class_labels was given", "PyTorch"),
        ({"timestep": torch.tensor([1, 2])}, "one for each picture", "one after another"),
        ({"encoder_hidden_states": None}, "takes encoder_hidden_states", "pipeline class"),
        ({"sample": torch.zeros(1, 9, 8, 8)}, "shape", "shape"),
    ],
)
def test_what_the_graph_does_not_take_is_refused_by_name(
    shared_pipe: Any, arguments: dict[str, Any], what: str, fix: str
) -> None:
    text = torch.zeros(1, 77, shared_pipe.unet.config.cross_attention_dim)
    given = {"sample": torch.zeros(1, 4, 8, 8), "timestep": 1, "encoder_hidden_states": text} | arguments
    with pytest.raises(BadInput) as caught:
        shared_pipe.unet(**given)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_what_says_nothing_is_taken(shared_pipe: Any) -> None:
    text = torch.zeros(1, 77, shared_pipe.unet.config.cross_attention_dim)
    given = {"cross_attention_kwargs": {}, "added_cond_kwargs": None, "class_labels": None, "return_dict": False}
    assert shared_pipe.unet(torch.zeros(1, 4, 8, 8), 1.0, text, **given)[0].shape == (1, 4, 8, 8)
    with pytest.raises(TypeError, match="nonsense"):
        shared_pipe.unet(torch.zeros(1, 4, 8, 8), 1.0, text, nonsense=1)


@pytest.mark.parametrize(
    ("call", "fix"),
    [
        (lambda p: p.vae.enable_tiling(), "Leave"),
        (lambda p: p.vae.enable_slicing(), "Leave"),
        (lambda p: p.enable_attention_slicing(), "Leave"),
        (lambda p: p.unet.set_attn_processor({}), "Leave"),
        (lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), "Leave"),
        (lambda p: p.unet.load_lora_adapter({}), "fuse_lora"),
        (lambda p: p.unet.load_attn_procs({}), "fuse_lora"),
        (lambda p: p.text_encoder.resize_token_embeddings(10), "Leave"),
        (lambda p: p.unet.state_dict(), "artifact"),
        (lambda p: p.vae.load_state_dict({}), "artifact"),
        (lambda p: p.unet.save_pretrained("nowhere"), "artifact"),
    ],
)
def test_what_changes_weights_or_kernels_says_that_it_does_not_apply(
    shared_pipe: Any, call: Callable[[Any], None], fix: str
) -> None:
    with pytest.raises(UsageError, match="does not apply") as caught:
        call(shared_pipe)
    assert fix in caught.value.fix


def test_what_is_off_already_may_be_switched_off(shared_pipe: Any) -> None:
    shared_pipe.vae.disable_tiling()
    shared_pipe.vae.disable_slicing()
    shared_pipe.disable_freeu()


def test_saving_says_what_to_keep_instead(shared_pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="save_pretrained does not apply") as caught:
        shared_pipe.save_pretrained(tmp_path / "saved")
    assert "vitrify.bridge.pipeline" in caught.value.fix
    assert not list(tmp_path.rglob("*.safetensors"))


def test_gradients_are_refused(shared_pipe: Any) -> None:
    text = torch.zeros(1, 77, shared_pipe.unet.config.cross_attention_dim)
    with pytest.raises(UsageError, match="Gradients"):
        shared_pipe.unet(torch.zeros(1, 4, 8, 8, requires_grad=True), 1, text)
    with torch.no_grad():
        shared_pipe.unet(torch.zeros(1, 4, 8, 8, requires_grad=True), 1, text)


def test_clip_skip_needs_states_that_the_graph_does_not_give(shared_pipe: Any) -> None:
    with pytest.raises(BadInput, match="clip_skip"):
        shared_pipe(PROMPT, num_inference_steps=1, clip_skip=1)


def test_nan_names_the_component(shared_pipe: Any) -> None:
    with pytest.raises(NotFinite, match="unet gives NaN"):
        shared_pipe(PROMPT, num_inference_steps=1, latents=torch.full((1, 4, 8, 8), torch.nan))


def test_a_closed_pipeline_says_so(pipe: Any) -> None:
    pipe.vitrify.close()
    with pytest.raises(RuntimeFailure, match="closed") as caught:
        pipe(PROMPT, num_inference_steps=1)
    assert "bridge.wrap" in caught.value.fix
    assert "not opened" in repr(pipe.unet)
    pipe.vitrify.close()  # twice is no error


def test_wrapping_again_takes_the_new_sessions_and_closes_the_old(pipe: Any, diffusion_artifact: Path) -> None:
    before = pipe.vitrify.parts["unet"]
    bridge.wrap(pipe, diffusion_artifact, device="cpu", runtime="openvino", components=["unet"])
    assert pipe.vitrify.placement["unet"]["runtime"] == "openvino"
    assert pipe.vitrify.placement["vae_decoder"]["runtime"] == "onnx"
    pipe(PROMPT, num_inference_steps=1)
    bridge.wrap(pipe, diffusion_artifact, device="cpu", runtime="openvino")
    assert {place["runtime"] for place in pipe.vitrify.placement.values()} == {"openvino"}
    with pytest.raises(RuntimeFailure, match="closed"):
        before.session("vae_decoder")
    pipe(PROMPT, num_inference_steps=1)


def test_another_architecture_is_refused_by_the_entry_that_differs(
    fresh: Callable[..., Any], diffusion_artifact: Path
) -> None:
    pipe = fresh()
    config = {**pipe.unet.config, "cross_attention_dim": 32}
    other = pipe.unet = diffusers.UNet2DConditionModel.from_config(config)
    with pytest.raises(BadInput) as caught:
        bridge.wrap(pipe, diffusion_artifact, device="cpu")
    own = Artifact.load(diffusion_artifact).components["unet"].inputs["encoder_hidden_states"].shape[-1]
    assert f"unet is another model than the one of {diffusion_artifact}" in caught.value.what
    assert f"cross_attention_dim is 32 in the pipeline, {own} in the artifact" in caught.value.what
    assert "compile_pipeline" in caught.value.fix
    assert pipe.unet is other, "nothing was changed"
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) > 1000


def test_another_class_is_refused(fresh: Callable[..., Any], diffusion_artifact: Path) -> None:
    pipe = fresh()
    pipe.vae = diffusers.AutoencoderTiny(latent_channels=4)
    with pytest.raises(BadInput, match=r"vae is another model.*class_name is 'AutoencoderTiny'"):
        bridge.wrap(pipe, diffusion_artifact, device="cpu")


def test_an_artifact_of_another_kind_is_refused(fresh: Callable[..., Any], emotions_artifact: Path) -> None:
    with pytest.raises(BadInput, match="nothing that StableDiffusionPipeline runs"):
        bridge.wrap(fresh(), emotions_artifact, device="cpu")


def test_what_is_no_pipeline_is_refused(fresh: Callable[..., Any], diffusion_artifact: Path) -> None:
    with pytest.raises(BadInput, match="AutoencoderKL is no pipeline"):
        bridge.wrap(fresh().vae, diffusion_artifact)


@pytest.mark.parametrize("name", ["text_encoder_2", "tokenizer", "controlnet.0", "unet.1"])
def test_a_component_that_is_not_there_is_refused(
    fresh: Callable[..., Any], diffusion_artifact: Path, name: str
) -> None:
    with pytest.raises(UsageError, match=f"no {name} to wrap") as caught:
        bridge.wrap(fresh(), diffusion_artifact, components=[name])
    assert "vae_decoder" in caught.value.fix


def test_an_encoder_that_the_artifact_lacks_is_missed_when_it_is_used(
    fresh: Callable[..., Any], damaged: Callable[..., Path], picture: Any
) -> None:
    folder = damaged(lambda m: m["components"].pop("vae_encoder"))
    pipe = bridge.wrap(fresh("StableDiffusionImg2ImgPipeline"), folder, device="cpu")
    with pytest.raises(BadArtifact, match="has no vae_encoder") as caught:
        pipe(PROMPT, image=picture, num_inference_steps=2)
    assert "Export the model again" in caught.value.fix


def test_a_component_that_the_artifact_lacks_stays_as_it_is(
    fresh: Callable[..., Any], damaged: Callable[..., Path], drawn: Callable[..., Any]
) -> None:
    folder = damaged(lambda m: m["components"].pop("text_encoder"))
    pipe = bridge.wrap(fresh(), folder, device="cpu")
    assert set(pipe.vitrify.parts) == {"unet", "vae"}
    assert sum(p.numel() for p in pipe.text_encoder.parameters()) > 1000
    assert drawn(pipe, prompt=PROMPT, num_inference_steps=2)[0].std() > 0


def test_a_lora_that_is_loaded_is_not_left_out_in_silence(fresh: Callable[..., Any], diffusion_artifact: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    pipe = fresh()
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(UsageError, match="A LoRA is loaded into the pipeline's unet"):
        bridge.wrap(pipe, diffusion_artifact)


def test_a_session_that_does_not_open_leaves_the_pipeline_as_it_was(
    fresh: Callable[..., Any], damaged: Callable[..., Path], drawn: Callable[..., Any]
) -> None:
    folder = damaged(lambda m: None)
    graph = folder / Artifact.load(folder).components["vae_decoder"].graph
    content = bytearray(graph.read_bytes())
    content[100:2000] = b"\0" * 1900
    graph.write_bytes(bytes(content))
    pipe = fresh()
    with pytest.raises(BadArtifact):
        bridge.wrap(pipe, folder, device="cpu")
    assert not hasattr(pipe, "vitrify")
    assert drawn(pipe, prompt=PROMPT, num_inference_steps=1)[0].shape == (64, 64, 3)
