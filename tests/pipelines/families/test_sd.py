"""Stable Diffusion, tiny and random, beside diffusers: from text, from a picture, into one; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.errors import BadInput, UsageError
from vitrify.export.job import export_model
from vitrify.proof.quality import psnr

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE, CAR = "a red apple on a table", "a blue car"
SMALL = {"width": 48, "height": 32, "steps": 4, "guidance": 5.0, "seed": 7}


def pipeline(words: Any, *, channels: int = 4, told: int | None = None, tiny_vae: bool = False) -> Any:
    """channels: that the UNet takes, 9 for inpainting. told: length of a guidance embedding."""
    torch.manual_seed(2)
    text = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, projection_dim=16,
        vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    unet = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=channels, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4, cross_attention_dim=32, norm_num_groups=8, time_cond_proj_dim=told,
    )  # fmt: skip
    if tiny_vae:
        vae = diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1), latent_channels=4,
        )  # fmt: skip
    else:
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8, sample_size=32,
            scaling_factor=0.18215,
        )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    kind = diffusers.StableDiffusionPipeline
    if channels == 9:
        kind = diffusers.StableDiffusionInpaintPipeline
    elif told:
        kind, scheduler = diffusers.LatentConsistencyModelPipeline, diffusers.LCMScheduler()
    return kind(
        vae=vae, text_encoder=transformers.CLIPTextModel(text), tokenizer=words, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


KINDS = {
    "text2img": "StableDiffusionPipeline",
    "img2img": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nine": {"channels": 9},
    "lcm": {"told": 32},
    "tiny vae": {"tiny_vae": True},
}


@pytest.fixture(scope="module")
def tiny(
    clip_words: Any, save_tiny: Any, theirs_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """tiny(name): diffusers' side of it, and its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("sd")
            pipe = pipeline(clip_words(), **MODELS[name])
            export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
            kinds = {task: getattr(diffusers, kind) for task, kind in KINDS.items()}
            if name == "lcm":
                kinds["text2img"] = diffusers.LatentConsistencyModelPipeline
            parts = {n: p for n, p in pipe.components.items() if n != "image_encoder" or p is not None}
            made[name] = theirs_of(kinds, parts, {"requires_safety_checker": False}), folder / "artifact"
        return made[name]

    return model


@pytest.mark.slow
def test_one_export_draws_all_sizes_and_batches(loaded: Any, same_as_diffusers: Any, cell: Any) -> None:
    ours, theirs = loaded("plain")
    cell("sd", "text2img", ours.placement["unet"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"width": 64, "height": 64, "negative_prompt": "blurry"})


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_a_picture_is_changed(loaded: Any, same_as_diffusers: Any, photo: Any, strength: float, cell: Any) -> None:
    ours, theirs = loaded("plain")
    cell("sd", "img2img", ours.placement["unet"]["runtime"])
    request = SMALL | {"steps": 5, "strength": strength}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    pictures = [photo(48, 32, 1), photo(48, 32, 2)]
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=pictures, **request)


def test_a_scheduler_that_adds_noise_changes_a_picture(loaded: Any, same_as_diffusers: Any, photo: Any) -> None:
    ours, theirs = loaded("plain")
    ancestral = diffusers.EulerAncestralDiscreteScheduler.from_config(theirs.parts["scheduler"].config)
    pictures = [photo(48, 32, 1), photo(48, 32, 2)]
    same_as_diffusers(
        ours, theirs, [APPLE, CAR], image=pictures, strength=0.6, scheduler=("euler_a", ancestral), **SMALL
    )


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["plain", pytest.param("nine", marks=pytest.mark.slow)])
def test_a_part_of_a_picture_is_drawn_anew(
    loaded: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, name: str, strength: float, cell: Any
) -> None:
    ours, theirs = loaded(name)
    cell("sd", "inpainting model" if name == "nine" else "inpaint", ours.placement["unet"]["runtime"])
    request = SMALL | {"mask": half_mask(48, 32), "strength": strength, "steps": 5}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=[photo(48, 32, 1), photo(48, 32, 2)], **request)
    picture = photo(64, 40)
    size = {"width": 64, "height": 40, "mask": half_mask(64, 40)}
    same_as_diffusers(ours, theirs, [APPLE], image=picture, **request | size)


def test_what_the_mask_leaves_stays(loaded: Any, photo: Any, half_mask: Any) -> None:
    ours, _ = loaded("plain")
    picture, request = photo(48, 32), {"steps": 4, "seed": 1, "guidance": 5.0}
    kept = ours.vae.decode(ours.vae.encode(_signed(picture), _Silence()))[0]
    drawn = ours.generate(APPLE, image=picture, mask=half_mask(48, 32), **request).images[0]
    left, right = (np.asarray(drawn)[:, part] for part in (slice(0, 12), slice(36, 48)))
    wanted = np.asarray(kept)
    assert psnr(left, wanted[:, :12]) > psnr(right, wanted[:, 36:]) + 3


@pytest.mark.slow
def test_a_consistency_model_is_told_the_guidance(loaded: Any, same_as_diffusers: Any, cell: Any) -> None:
    ours, theirs = loaded("lcm")
    cell("sd", "few steps", ours.placement["unet"]["runtime"])
    assert (ours.steps, ours.guidance) == (4, 8.5)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"guidance": 8.5})
    one, other = (ours.generate(APPLE, guidance=g, seed=1).images[0] for g in (8.5, 2.0))
    assert psnr(np.asarray(one), np.asarray(other)) < 40


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(
    loaded: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, cell: Any
) -> None:
    ours, theirs = loaded("tiny vae")
    cell("sd", "tiny VAE", ours.placement["unet"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), strength=0.8, **SMALL)
    ancestral = diffusers.EulerAncestralDiscreteScheduler.from_config(theirs.parts["scheduler"].config)
    request = SMALL | {"image": photo(48, 32), "mask": half_mask(48, 32), "strength": 0.8}
    same_as_diffusers(ours, theirs, [APPLE], scheduler=("euler_a", ancestral), **request)


def test_a_pictures_size_is_made_to_fit(loaded: Any, photo: Any, tiny: Any) -> None:
    ours, theirs = loaded("plain")
    picture = photo(51, 38)
    request = {"steps": 4, "guidance": 5.0, "seed": 7, "strength": 0.6}
    drawn = ours.generate(APPLE, image=picture, **request).images[0]
    assert drawn.size == (48, 36)
    expected = theirs.draw([APPLE], image=picture, width=48, height=36, **request)[0]
    assert psnr(np.asarray(drawn), expected) >= 45
    assert ours.generate(APPLE, image=photo(3, 2), **request).images[0].size == (4, 4)


def test_a_long_prompt_is_read_to_its_end(loaded: Any) -> None:
    ours, _ = loaded("plain")
    words = "a red apple and a green car " * 71 + "on a table"  # 500 tokens
    whole, cut = (ours.generate(p, steps=2, seed=1).images[0] for p in (words, " ".join(words.split()[:70])))
    assert psnr(np.asarray(whole), np.asarray(cut)) < 40


@pytest.mark.parametrize(
    ("name", "options", "error", "what"),
    [
        ("plain", {"image": (48, 32), "mask": (32, 32)}, BadInput, "The mask is 32x32, its picture 48x32"),
        ("plain", {"mask": (48, 32)}, BadInput, "mask but no picture"),
        ("plain", {"image": (48, 32), "strength": 0}, UsageError, "strength is 0"),
        ("plain", {"image": (48, 32), "strength": 1.01}, UsageError, "strength is 1.01"),
        ("plain", {"image": (48, 32), "strength": float("nan")}, UsageError, "strength is nan"),
        ("plain", {"image": (48, 32), "strength": 0.3, "steps": 2}, BadInput, "less than one of 2 steps"),
        ("plain", {"image": (48, 32), "width": 50, "height": 32}, BadInput, "50, not a multiple of 4"),
        ("plain", {"width": 50}, BadInput, "50, not a multiple of 4"),
        pytest.param("nine", {}, BadInput, "inpainting model", marks=pytest.mark.slow),
        pytest.param("nine", {"image": (48, 32)}, BadInput, "inpainting model", marks=pytest.mark.slow),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Any, photo: Any, half_mask: Any, name: str, options: dict[str, Any], error: type[Exception], what: str
) -> None:
    ours: Any = vitrify.load(tiny(name)[1], "cpu")
    made = {"image": lambda size: photo(*size), "mask": lambda size: half_mask(*size)}
    given = {key: made[key](value) if key in made else value for key, value in options.items()}
    with pytest.raises(error, match=what):
        ours.generate(APPLE, **({"steps": 4, "seed": 1} | given))
    ours.close()


def test_another_number_of_pictures_is_refused(tiny: Any, photo: Any) -> None:
    ours: Any = vitrify.load(tiny("plain")[1], "cpu")
    with pytest.raises(BadInput, match="2 pictures for 3 pictures"):
        ours.generate(APPLE, batch=3, image=[photo(48, 32)] * 2, steps=4)
    ours.close()


class _Silence:
    """Random numbers that are all 0: a VAE's means."""

    def normal(self, shape: Any) -> Any:
        return np.zeros(shape, np.float32)


def _signed(picture: Any) -> Any:
    return (np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 127.5) - 1
