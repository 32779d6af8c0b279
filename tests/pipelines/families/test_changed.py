"""What an export changes of its source, beside diffusers: merged tokens, another VAE, a decoder for previews."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.export.changed import Changes
from vitrify.export.job import export_model, find_source
from vitrify.export.resolve import artifact_for, artifact_key
from vitrify.export.verify import verify_artifact
from vitrify.proof.quality import psnr

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE = "a red apple on a table"
SMALL: dict[str, Any] = {"width": 48, "height": 32, "steps": 4, "guidance": 5.0, "seed": 7}
UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": [16, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4, "cross_attention_dim": 32, "norm_num_groups": 8,
}  # fmt: skip


def autoencoder(**changed: Any) -> Any:
    given = {"latent_channels": 4, "scaling_factor": 0.18215, "block_out_channels": [8, 16]} | changed
    count = len(given["block_out_channels"])
    return diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * count, up_block_types=["UpDecoderBlock2D"] * count,
        norm_num_groups=8, sample_size=32, **given,
    )  # fmt: skip


def tiny_autoencoder() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4,
    )  # fmt: skip


def pipeline(words: Any) -> Any:
    torch.manual_seed(2)
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=16,
        vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=transformers.CLIPTextModel(text), tokenizer=words,
        unet=diffusers.UNet2DConditionModel(**UNET), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(clip_words: Any, save_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(pipeline(clip_words()), tmp_path_factory.mktemp("changed") / "source")


@pytest.fixture(scope="module")
def vaes(save_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """vaes(module): the folder of a VAE with lively weights."""

    class Alone:
        """As a pipeline of one component is saved."""

        def __init__(self, module: Any) -> None:
            self.components = {"vae": module}

        def save_pretrained(self, folder: Path) -> None:
            self.components["vae"].save_pretrained(folder)

    return lambda module: save_tiny(Alone(module), tmp_path_factory.mktemp("vae") / "folder")


@pytest.fixture(scope="module")
def plain(source: Path) -> Artifact:
    return export_model(source, source.parent / "plain", verify=False)


@pytest.fixture(scope="module")
def merged(source: Path) -> Artifact:
    return export_model(source, source.parent / "merged", tome=0.5, verify=True)


def their_picture(source: Path, change: Callable[[Any], None], **request: Any) -> np.ndarray:
    """What diffusers draws after `change` was done to its pipeline."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    change(pipe)
    given = {"num_inference_steps": request["steps"], "guidance_scale": request["guidance"]}
    generator = torch.Generator().manual_seed(request["seed"])
    done = pipe(APPLE, generator=generator, width=request["width"], height=request["height"], **given)
    return np.asarray(done.images[0])


def our_picture(folder: Path, runtime: str | None = None, **request: Any) -> np.ndarray:
    opened: Any = vitrify.load(folder, "cpu", runtime=runtime)
    try:
        return np.asarray(opened.generate(APPLE, **request).images[0])
    finally:
        opened.close()


# merged tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_it_draws_what_diffusers_draws_with_merged_tokens(
    source: Path, merged: Artifact, plain: Artifact, runtime: str
) -> None:
    from vitrify.runtimes.torch.merging import merge_tokens

    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    for size in ({"width": 48, "height": 32}, {"width": 56, "height": 64}):
        request = SMALL | size
        wanted = their_picture(source, lambda pipe: merge_tokens(pipe.unet, 0.5), **request)
        drawn = our_picture(merged.root, runtime, **request)
        assert wanted.std() > 10
        assert psnr(drawn, wanted) >= 45
        assert psnr(our_picture(plain.root, runtime, **request), wanted) < 40, "merging changes something"


@pytest.mark.slow  # traces for minutes
def test_the_manifest_says_what_was_merged(source: Path, merged: Artifact, vitrify: Any) -> None:
    unet = merged.components["unet"]
    assert merged.model["tome"] == 0.5
    assert unet.details["kind"] == "unet:tome=0.5"
    assert unet.proof["numeric"]["relative"] <= 1e-4
    assert unet.graph_path.stat().st_size < 300_000
    (file,) = unet.weights
    assert (merged.root / file.path).stat().st_ino == (
        source / "unet/diffusion_pytorch_model.safetensors"
    ).stat().st_ino
    assert merged.built["command"] == f"vitrify export {source} --tome 0.5 --verify"
    assert "merges 0.5 of the UNet's tokens" in vitrify("inspect", merged.root).out


@pytest.mark.slow  # traces for minutes
def test_a_merged_artifact_is_verified_with_its_merging(merged: Artifact, plain: Artifact, tmp_path: Path) -> None:
    shutil.copytree(merged.root, tmp_path / "merged")
    proved = verify_artifact(tmp_path / "merged")
    assert proved.components["unet"].proof["numeric"]["relative"] <= 1e-4
    assert proved.components["unet"].proof["weights"]["tensors"] > 10
    measured = verify_artifact(tmp_path / "merged", str(plain.root))
    assert measured.components["unet"].proof["numeric"]["relative"] > 1e-3
    assert measured.proof["images"]["pictures"] == 8
    assert measured.proof["images"]["asked"]["psnr_db"] == 0


@pytest.mark.slow  # traces for minutes
def test_a_unet_that_takes_controlnets_is_verified_with_its_inputs(source: Path, tmp_path: Path) -> None:
    made = export_model(source, tmp_path / "made", control=True, tome=0.5, verify=False)
    proved = verify_artifact(made.root)
    assert proved.components["unet"].proof["numeric"]["relative"] <= 1e-4
    assert made.components["unet"].details["kind"] == "unet_control:tome=0.5"


@pytest.mark.slow  # traces for minutes
def test_its_graph_takes_another_models_weights(source: Path, merged: Artifact, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tuned = tmp_path / "tuned"
    shutil.copytree(source, tuned)
    path = tuned / "unet/diffusion_pytorch_model.safetensors"
    save_file({n: t * np.float32(1.05) for n, t in load_file(path).items()}, path, {"format": "pt"})
    swapped = export_model(tuned, tmp_path / "swapped", graph_from=merged.root, tome=0.5, verify=True)
    fresh = export_model(tuned, tmp_path / "fresh", tome=0.5, verify=False)
    assert swapped.components["unet"].graph_path.read_bytes() == fresh.components["unet"].graph_path.read_bytes()
    assert swapped.components["unet"].proof["numeric"]["relative"] <= 1e-4
    with pytest.raises(BadInput, match=r"merges 0\.5 of its tokens") as caught:
        export_model(tuned, tmp_path / "other", graph_from=merged.root, verify=False)
    assert "--tome 0.5" in caught.value.fix


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("to", ["torch", "openvino"])
def test_compiled_it_still_merges(source: Path, merged: Artifact, tmp_path: Path, to: str) -> None:
    from vitrify.export.compile import compile_model

    pytest.importorskip(to)
    made = compile_model(merged.root, tmp_path / to, to=to, verify=True)
    assert made.model["tome"] == 0.5
    assert f"--to {to} --tome 0.5" in made.built["command"]
    assert psnr(our_picture(made.root, **SMALL), our_picture(merged.root, **SMALL)) >= 45


@pytest.mark.slow  # traces for minutes
def test_a_model_is_exported_anew_for_each_change(source: Path, merged: Artifact, vaes: Any) -> None:
    found = find_source(str(source))
    other = str(vaes(autoencoder()))
    changes = [Changes(), Changes(tome=0.5), Changes(tome=0.25), Changes(vae=other), Changes(preview_vae=other)]
    assert len({artifact_key(change.apply(found)) for change in changes}) == len(changes)
    assert Changes(tome=0.0).apply(found) == found
    with pytest.raises(UsageError, match="--tome and --vae change what is exported"):
        artifact_for(str(merged.root), changes=Changes(tome=0.5, vae=other))


def test_a_share_that_cannot_be_merged_is_told_before_a_source_is_looked_for(vitrify: Any, tmp_path: Path) -> None:
    for command in (("export",), ("compile", "--to", "openvino")):
        ran = vitrify(*command, tmp_path / "nothing", "--tome", "0.8", "--json")
        assert ran.code == 2
        assert ran.error["what"] == "--tome 0.8 is not from 0 to 0.75."


def test_what_has_no_unet_merges_nothing(emotions_source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no UNet: tokens are merged in Stable Diffusion"):
        export_model(emotions_source, tmp_path / "out", tome=0.5)


# another VAE ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(vaes: Any) -> Path:
    """A VAE of the same architecture that draws other colours."""
    module = autoencoder()
    folder: Path = vaes(module)
    with torch.no_grad():
        module.decoder.conv_out.weight.neg_()
    module.save_pretrained(folder)
    return folder


def with_their_vae(folder: Path, kind: str = "AutoencoderKL") -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        pipe.vae = getattr(diffusers, kind).from_pretrained(folder)

    return change


@pytest.mark.slow  # traces for minutes
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_another_vae_draws(source: Path, other: Path, plain: Artifact, tmp_path: Path, runtime: str) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    made = export_model(source, tmp_path / "made", vae=other, verify=runtime == "onnx")
    wanted = their_picture(source, with_their_vae(other), **SMALL)
    assert psnr(our_picture(made.root, runtime, **SMALL), wanted) >= 45
    assert psnr(our_picture(plain.root, runtime, **SMALL), wanted) < 30
    assert made.model["vae"] == str(other)
    assert f" --vae {other}" in made.built["command"]
    for name in ("vae_decoder", "vae_encoder"):
        (file,) = made.components[name].weights
        weights = other / "diffusion_pytorch_model.safetensors"
        assert (made.root / file.path).stat().st_ino == weights.stat().st_ino
        # the same architecture: the very graph
        assert made.components[name].proof["graph"] == plain.components[name].proof["graph"]


@pytest.mark.slow  # traces for minutes
def test_it_is_verified_with_its_vae(source: Path, other: Path, plain: Artifact, tmp_path: Path) -> None:
    made = export_model(source, tmp_path / "made", vae=other, graph_from=plain.root, verify=False)
    proved = verify_artifact(made.root)
    assert proved.components["vae_decoder"].proof["numeric"]["relative"] <= 1e-4
    assert made.components["vae_decoder"].graph_path.read_bytes() != b""
    made = export_model(source, tmp_path / "made", vae=source, replace=True, verify=False)  # a model's folder: its VAE
    assert made.components["vae_decoder"].weights[0].sha256 == plain.components["vae_decoder"].weights[0].sha256


def test_a_tiny_vae_takes_its_place(source: Path, vaes: Any, tmp_path: Path, vitrify: Any) -> None:
    tiny = vaes(tiny_autoencoder())
    made = export_model(source, tmp_path / "made", vae=tiny, verify=True)
    wanted = their_picture(source, with_their_vae(tiny, "AutoencoderTiny"), **SMALL)
    assert psnr(our_picture(made.root, **SMALL), wanted) >= 45
    assert made.pipeline["vae"] == {"scaling_factor": 1.0, "shift_factor": 0.0}
    assert json.loads((made.root / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderTiny"]
    assert f"VAE from {tiny}" in vitrify("inspect", made.root).out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"latent_channels": 8}, "latent_channels is 8, not 4"),
        ({"block_out_channels": [8, 8, 16]}, "pixels a latent is 4, not 2"),
        ({"scaling_factor": 0.13025}, "scaling_factor is 0.13025, not 0.18215"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1, not 0"),
    ],
)
@pytest.mark.parametrize("option", ["vae", "preview_vae"])
def test_a_vae_of_other_latents_is_refused(
    source: Path, vaes: Any, tmp_path: Path, changed: dict[str, Any], said: str, option: str
) -> None:
    with pytest.raises(BadInput, match=f"is a VAE of other latents than those of .*{said}"):
        export_model(source, tmp_path / "out", **{option: vaes(autoencoder(**changed))})
    assert not (tmp_path / "out").exists()


def test_what_is_no_vae_is_refused(source: Path, emotions_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BadInput, match="is a UNet2DConditionModel, not a VAE"):
        export_model(source, out, vae=source / "unet")
    with pytest.raises(BadInput, match="is no model of diffusers, not a VAE"):
        export_model(source, out, vae=emotions_source)
    with pytest.raises(BadInput, match=r"--vae .* does not exist"):
        export_model(source, out, vae=tmp_path / "nothing")
    with pytest.raises(BadInput, match=r"--preview-vae .* holds no VAE"):
        export_model(source, out, preview_vae=source / "scheduler")
    with pytest.raises(UsageError, match="has no VAE, so it draws nothing"):
        export_model(emotions_source, out, vae=source)


# previews ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def previewing(source: Path, vaes: Any) -> tuple[Path, Artifact]:
    """The folder of a tiny VAE, and an artifact whose previews it draws."""
    tiny = vaes(tiny_autoencoder())
    return tiny, export_model(source, source.parent / "previewing", preview_vae=tiny, verify=True)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_previews_are_what_the_tiny_vae_decodes(previewing: Any, plain: Artifact, runtime: str) -> None:
    pytest.importorskip("openvino" if runtime == "openvino" else "onnxruntime")
    folder, made = previewing
    opened: Any = vitrify.load(made.root, "cpu", runtime=runtime)
    module = diffusers.AutoencoderTiny.from_pretrained(folder)
    seen: list[tuple[np.ndarray, Any]] = []
    try:
        assert "preview_decoder" not in opened.placement, "nobody asked for a preview yet"
        done = opened.generate(APPLE, on_step=lambda s: seen.append((s.latents, opened.preview(s.latents))), **SMALL)
        assert opened.placement["preview_decoder"]["runtime"] == runtime
    finally:
        opened.close()
    assert len(seen) == SMALL["steps"]
    for latents, pictures in seen:
        with torch.no_grad():
            wanted = module.decode(torch.from_numpy(np.array(latents))).sample
        pixels = ((wanted / 2 + 0.5).clamp(0, 1) * 255).round().numpy()[0].transpose(1, 2, 0)
        assert np.abs(np.asarray(pictures[0]).astype(int) - pixels).max() <= 1
    # pictures themselves are drawn by the model's own
    assert psnr(np.asarray(done.images[0]), our_picture(plain.root, runtime, **SMALL)) >= 45


def test_without_a_decoder_or_within_a_budget_there_are_no_previews(previewing: Any, plain: Artifact) -> None:
    latents = np.zeros((1, 4, 8, 8), np.float32)
    for root, memory in ((plain.root, None), (previewing[1].root, 8_000_000_000)):
        opened: Any = vitrify.load(root, "cpu", memory=memory)
        try:
            assert opened.preview(latents) is None
        finally:
            opened.close()


def test_the_manifest_says_who_draws_previews(previewing: Any, vitrify: Any, tmp_path: Path) -> None:
    folder, made = previewing
    assert made.model["preview_vae"] == str(folder)
    assert made.pipeline["preview"] == {"scaling_factor": 1.0, "shift_factor": 0.0}
    assert made.components["preview_decoder"].proof["numeric"]["relative"] <= 1e-4
    assert "preview_decoder" not in json.loads((made.root / "model_index.json").read_text())
    pytest.importorskip("openvino")
    ran = vitrify("compile", made.root, "--to", "openvino", "-o", tmp_path / "ir", "--no-verify")
    assert ran.code == 0, ran.err
    assert (tmp_path / "ir/preview_decoder/openvino_model.xml").is_file()
    assert f"previews are drawn by {folder}" in vitrify("inspect", tmp_path / "ir").out
