"""Stable Diffusion XL and its refiner, tiny and random, beside diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import MANIFEST
from vitrify.core.errors import BadArtifact, BadInput
from vitrify.export.job import export_model
from vitrify.export.reference import reference_artifact
from vitrify.export.source import open_source
from vitrify.pipelines.families import pipeline_settings
from vitrify.pipelines.families.clip import clip_chunks
from vitrify.proof.quality import psnr

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE, CAR = "a red apple on a table", "a blue car!!"
SMALL = {"width": 48, "height": 32, "steps": 4, "guidance": 5.0, "seed": 7}
KINDS = {
    "text2img": "StableDiffusionXLPipeline",
    "img2img": "StableDiffusionXLImg2ImgPipeline",
    "inpaint": "StableDiffusionXLInpaintPipeline",
}
MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "nine": {"channels": 9},
    "refiner": {"refiner": True},
    "tiny vae": {"tiny_vae": True, "zeros": False},
}


def text(width: int, layers: int, act: str, projection: int) -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        projection_dim=projection, hidden_act=act, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def autoencoder(tiny: bool) -> Any:
    if tiny:
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        )  # fmt: skip
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
        scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip


def pipeline(
    words: Callable[..., Any],
    *,
    channels: int = 4,
    refiner: bool = False,
    tiny_vae: bool = False,
    zeros: bool = True,
    told: int | None = None,
) -> tuple[Any, dict[str, Any]]:
    """A pipeline, and the options that diffusers' pipelines of the other tasks need too.

    refiner: with text_encoder_2 alone, and an aesthetic score. zeros: for an empty negative prompt. told: length of a
    guidance embedding.
    """
    torch.manual_seed(3)
    first, second = text(32, 3, "quick_gelu", 32), text(24, 2, "gelu", 16)
    sizes = 5 if refiner else 6
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, cross_attention_dim=24 if refiner else 56,
        transformer_layers_per_block=(1, 2), norm_num_groups=8, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16 + 8 * sizes, time_cond_proj_dim=told,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    if told:
        scheduler = diffusers.LCMScheduler()
    parts = {
        "vae": autoencoder(tiny_vae), "text_encoder": None if refiner else transformers.CLIPTextModel(first),
        "text_encoder_2": transformers.CLIPTextModelWithProjection(second), "tokenizer": None if refiner else words(),
        "tokenizer_2": words("!"), "unet": unet, "scheduler": scheduler,
    }  # fmt: skip
    options: dict[str, Any] = {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    if channels == 9:
        return diffusers.StableDiffusionXLInpaintPipeline(**parts, **options), options
    if refiner:
        options["requires_aesthetics_score"] = True
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, **options), options
    return diffusers.StableDiffusionXLPipeline(**parts, **options), options


@pytest.fixture(scope="module")
def tiny(
    clip_words: Any, save_tiny: Any, theirs_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """tiny(name): diffusers' side of it, and its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("sdxl")
            pipe, options = pipeline(clip_words, **MODELS[name])
            export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
            kinds = {task: getattr(diffusers, kind) for task, kind in KINDS.items()}
            made[name] = theirs_of(kinds, pipe.components, options), folder / "artifact"
        return made[name]

    return model


def test_one_export_draws_all_sizes_and_batches(loaded: Any, same_as_diffusers: Any, cell: Any) -> None:
    ours, theirs = loaded("base")
    cell("sdxl", "text2img", ours.placement["unet"]["runtime"])
    assert (ours.steps, ours.guidance) == (50, 5.0)
    same_as_diffusers(ours, theirs, [APPLE], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"width": 64, "height": 64, "negative_prompt": "blurry!!"})
    one, other = (ours.generate(APPLE, **SMALL | {"negative_prompt": n}).images[0] for n in ("", "blurry!!"))
    assert psnr(np.asarray(one), np.asarray(other)) < 40


def test_without_guidance_and_with_few_steps(loaded: Any, same_as_diffusers: Any, cell: Any) -> None:
    ours, theirs = loaded("base")
    cell("sdxl", "few steps", ours.placement["unet"]["runtime"])
    config = theirs.parts["scheduler"].config
    turbo = diffusers.EulerAncestralDiscreteScheduler.from_config(config)
    for steps in (1, 3):
        request = SMALL | {"guidance": 0.0, "steps": steps}
        same_as_diffusers(ours, theirs, [APPLE, CAR], scheduler=("euler_a", turbo), **request)


def test_a_distilled_models_spacing_is_kept(tiny: Any, same_as_diffusers: Any) -> None:
    """As Lightning's and Turbo's own: the last of each part of the timesteps."""
    theirs, artifact = tiny("base")
    ours: Any = vitrify.load(artifact, "cpu")
    ours.scheduler |= {"timestep_spacing": "trailing"}
    trailing = diffusers.EulerDiscreteScheduler.from_config(
        theirs.parts["scheduler"].config, timestep_spacing="trailing"
    )
    same_as_diffusers(ours, theirs, [APPLE], scheduler=("euler", trailing), **SMALL | {"guidance": 0.0})
    ours.close()


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", ["base", "refiner"])
def test_a_picture_is_changed(
    loaded: Any, same_as_diffusers: Any, photo: Any, name: str, strength: float, cell: Any
) -> None:
    ours, theirs = loaded(name)
    cell("sdxl", "img2img", ours.placement["unet"]["runtime"])
    request = SMALL | {"steps": 5, "strength": strength}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    pictures = [photo(64, 40, 1), photo(64, 40, 2)]
    size = {"width": 64, "height": 40, "negative_prompt": "blurry"}
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=pictures, **request | size)


def test_a_scheduler_that_adds_noise_changes_a_picture(loaded: Any, same_as_diffusers: Any, photo: Any) -> None:
    ours, theirs = loaded("base")
    ancestral = diffusers.EulerAncestralDiscreteScheduler.from_config(theirs.parts["scheduler"].config)
    pictures = [photo(48, 32, 1), photo(48, 32, 2)]
    same_as_diffusers(
        ours, theirs, [APPLE, CAR], image=pictures, strength=0.6, scheduler=("euler_a", ancestral), **SMALL
    )


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["base", "nine", "refiner"])
def test_a_part_of_a_picture_is_drawn_anew(
    loaded: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, name: str, strength: float, cell: Any
) -> None:
    ours, theirs = loaded(name)
    cell("sdxl", "inpainting model" if name == "nine" else "inpaint", ours.placement["unet"]["runtime"])
    request = SMALL | {"mask": half_mask(48, 32), "strength": strength, "steps": 5}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=[photo(48, 32, 1), photo(48, 32, 2)], **request)


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(
    loaded: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, cell: Any
) -> None:
    ours, theirs = loaded("tiny vae")
    cell("sdxl", "tiny VAE", ours.placement["unet"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL)  # whose empty negative prompt is encoded
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), strength=0.8, **SMALL)
    ancestral = diffusers.EulerAncestralDiscreteScheduler.from_config(theirs.parts["scheduler"].config)
    request = SMALL | {"image": photo(48, 32), "mask": half_mask(48, 32), "strength": 0.8}
    same_as_diffusers(ours, theirs, [APPLE], scheduler=("euler_a", ancestral), **request)


def test_a_lora_does_what_it_does_in_diffusers(loaded: Any, same_with_lora: Any, cell: Any) -> None:
    ours, theirs = loaded("base")
    cell("sdxl", "LoRA", ours.placement["unet"]["runtime"])
    same_with_lora(
        theirs.pipe("text2img"),
        lambda loras: np.asarray(ours.generate(APPLE, loras=loras, **SMALL).images[0]),
        lambda: theirs.draw([APPLE], **SMALL)[0],
    )


def test_a_consistency_model_is_told_the_guidance(
    clip_words: Any, save_tiny: Any, theirs_of: Any, same_as_diffusers: Any, tmp_path: Path
) -> None:
    """Over PyTorch's sessions: another graph would prove nothing that those of the others do not."""
    pipe, options = pipeline(clip_words, told=32)
    source = open_source(save_tiny(pipe, tmp_path))
    configs = {part.spec.folder: part.config for part in source.components}
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    artifact = reference_artifact(source, pipeline_settings(source.family, configs, scheduler, source.index))
    assert "timestep_cond" in artifact.components["unet"].inputs
    ours: Any = vitrify.load(artifact, "cpu")
    assert (ours.steps, ours.guidance) == (4, 8.5)
    theirs = theirs_of({"text2img": diffusers.StableDiffusionXLPipeline}, pipe.components, options)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"guidance": 8.0})
    ours.close()


def test_long_prompts_have_as_many_chunks_for_both_encoders(loaded: Any) -> None:
    ours, _ = loaded("base")
    marks = "wow" + "!" * 90  # one token a mark for the second tokenizer, whose padding it is
    counts = [clip_chunks([tokenizer], [marks]) for tokenizer in ours.family.tokenizers.values()]
    assert counts[0] < counts[1]
    words = "a red apple and a green car " * 71 + "on a table"  # 500 tokens
    whole, cut, marked = (
        np.asarray(ours.generate(p, steps=2, seed=1).images[0]) for p in (words, " ".join(words.split()[:70]), marks)
    )
    assert psnr(whole, cut) < 40
    assert marked.std() > 10


def test_a_weight_changes_the_picture_and_a_weight_of_one_does_not(loaded: Any) -> None:
    ours, _ = loaded("base")
    plain, one, more = (
        np.asarray(ours.generate(p, steps=2, seed=2).images[0])
        for p in ("a red apple", "a (red:1.0) apple", "a (red:1.5) apple")
    )
    np.testing.assert_array_equal(plain, one)
    assert not np.array_equal(plain, more)


def test_a_refiner_draws_nothing_from_text_alone(tiny: Any) -> None:
    ours: Any = vitrify.load(tiny("refiner")[1], "cpu")
    with pytest.raises(BadInput, match="refiner"):
        ours.generate(APPLE, steps=2)
    ours.close()


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("base", {"image": (48, 32), "mask": (32, 32)}, "The mask is 32x32, its picture 48x32"),
        ("base", {"image": (48, 32), "strength": 0.3, "steps": 2}, "less than one of 2 steps"),
        ("base", {"width": 50}, "50, not a multiple of 4"),
        ("nine", {}, "inpainting model"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Any, photo: Any, half_mask: Any, name: str, options: dict[str, Any], what: str
) -> None:
    ours: Any = vitrify.load(tiny(name)[1], "cpu")
    made = {"image": lambda size: photo(*size), "mask": lambda size: half_mask(*size)}
    given = {key: made[key](value) if key in made else value for key, value in options.items()}
    with pytest.raises(BadInput, match=what):
        ours.generate(APPLE, **({"steps": 4, "seed": 1} | given))
    ours.close()


def test_a_folder_that_lost_an_encoder_is_refused(tiny: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny("base")[1], copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    del manifest["components"]["text_encoder"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match="has no text_encoder"):
        vitrify.load(copy, "cpu")


def test_a_folder_without_a_manifest_draws_the_same(tiny: Any, tmp_path: Path) -> None:
    """As Optimum exports a model."""
    root, copy = tiny("base")[1], tmp_path / "copy"
    shutil.copytree(root, copy)
    (copy / MANIFEST).unlink()
    drawn = []
    for folder in (root, copy):
        ours: Any = vitrify.load(folder, "cpu")
        drawn.append(np.asarray(ours.generate(APPLE, **SMALL).images[0]))
        ours.close()
    np.testing.assert_array_equal(*drawn)
