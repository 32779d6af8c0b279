"""Stable Diffusion 3 and 3.5, tiny and random, beside diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput
from vitrify.export.job import export_model
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
MODELS: dict[str, dict[str, Any]] = {
    "3": {},
    "3.5": {"t5": False, "dual": (0,), "norm": "rms_norm", "dynamic": True},
    "tiny vae": {"t5": False, "dual": (0,), "norm": "rms_norm", "dynamic": True, "small_vae": True},
}
OWN_VAE = ("3", "3.5")


class Inpaint(diffusers.StableDiffusion3InpaintPipeline):  # type: ignore[misc]
    """diffusers' own, but that the latents are shifted back before they are decoded, as its other pipelines do."""

    @torch.no_grad()
    def __call__(self, *given: Any, width: int, height: int, **options: Any) -> Any:
        latents = super().__call__(*given, width=width, height=height, **options, output_type="latent").images
        config = self.vae.config
        decoded = self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        return SimpleNamespace(images=self.image_processor.postprocess(decoded))


KINDS = {
    "text2img": diffusers.StableDiffusion3Pipeline,
    "img2img": diffusers.StableDiffusion3Img2ImgPipeline,
    "inpaint": Inpaint,
}


def text(width: int, layers: int, act: str, projection: int) -> Any:
    return transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        projection_dim=projection, hidden_act=act, vocab_size=49408, max_position_embeddings=77, bos_token_id=49406,
        eos_token_id=49407, pad_token_id=1,
    )  # fmt: skip


def tiny_vae() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=16,
    )  # fmt: skip


def pipeline(
    words: Callable[..., Any],
    t5_words: Any,
    *,
    t5: bool = True,
    dual: tuple[int, ...] = (),
    norm: str | None = None,
    dynamic: bool = False,
    small_vae: bool = False,
) -> Any:
    """dual: layers with a second attention. norm: of queries and keys. dynamic: shift by the picture's size."""
    torch.manual_seed(3)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64, pooled_projection_dim=40,
        pos_embed_max_size=24, dual_attention_layers=dual, qk_norm=norm,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16, norm_num_groups=8, sample_size=32,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    encoder = None
    if t5:
        config = transformers.T5Config(
            vocab_size=64, d_model=64, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        encoder = transformers.T5EncoderModel(config)
    shift = {"use_dynamic_shifting": True} if dynamic else {"shift": 3.0}
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae=tiny_vae() if small_vae else vae,
        text_encoder=transformers.CLIPTextModelWithProjection(text(32, 3, "quick_gelu", 24)),
        tokenizer=words(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text(24, 2, "gelu", 16)),
        tokenizer_2=words("!"),
        text_encoder_3=encoder,
        tokenizer_3=t5_words if t5 else None,
    )


@pytest.fixture(scope="module")
def tiny(
    clip_words: Any, t5_words: Any, save_tiny: Any, theirs_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """tiny(name): diffusers' side of it, and its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("sd3")
            pipe = pipeline(clip_words, t5_words, **MODELS[name])
            export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
            made[name] = theirs_of(KINDS, pipe.components), folder / "artifact"
        return made[name]

    return model


@pytest.mark.parametrize("name", OWN_VAE)
def test_one_export_draws_all_sizes_and_batches(loaded: Any, cell: Any, same_as_diffusers: Any, name: str) -> None:
    ours, theirs = loaded(name)
    cell("sd3", "text2img", ours.placement["transformer"]["runtime"])
    assert (ours.steps, ours.guidance) == (28, 7.0)
    same_as_diffusers(ours, theirs, [APPLE], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"width": 64, "height": 72, "negative_prompt": "blurry!!"})
    one, other = (ours.generate(APPLE, **SMALL | {"negative_prompt": n}).images[0] for n in ("", "blurry!!"))
    assert psnr(np.asarray(one), np.asarray(other)) < 40


def test_without_guidance_a_step_is_one_row_a_picture(loaded: Any, same_as_diffusers: Any, cell: Any) -> None:
    """As the turbo models are used."""
    ours, theirs = loaded("3.5")
    cell("sd3", "few steps", ours.placement["transformer"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"guidance": 1.0})


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", OWN_VAE)
def test_a_picture_is_changed(
    loaded: Any, cell: Any, same_as_diffusers: Any, photo: Any, name: str, strength: float
) -> None:
    ours, theirs = loaded(name)
    cell("sd3", "img2img", ours.placement["transformer"]["runtime"])
    request = SMALL | {"steps": 5, "strength": strength}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    pictures = [photo(64, 40, 1), photo(64, 40, 2)]
    size = {"width": 64, "height": 40, "negative_prompt": "blurry"}
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=pictures, **request | size)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", OWN_VAE)
def test_a_part_of_a_picture_is_drawn_anew(
    loaded: Any, cell: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, name: str, strength: float
) -> None:
    ours, theirs = loaded(name)
    cell("sd3", "inpaint", ours.placement["transformer"]["runtime"])
    request = SMALL | {"mask": half_mask(48, 32), "strength": strength, "steps": 5}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=[photo(48, 32, 1), photo(48, 32, 2)], **request)


def test_a_lora_does_what_it_does_in_diffusers(loaded: Any, same_with_lora: Any, cell: Any) -> None:
    ours, theirs = loaded("3.5")
    cell("sd3", "LoRA", ours.placement["transformer"]["runtime"])
    same_with_lora(
        theirs.pipe("text2img"),
        lambda loras: np.asarray(ours.generate(APPLE, loras=loras, **SMALL).images[0]),
        lambda: theirs.draw([APPLE], **SMALL)[0],
    )


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(
    loaded: Any, same_as_diffusers: Any, photo: Any, cell: Any
) -> None:
    ours, theirs = loaded("tiny vae")
    cell("sd3", "tiny VAE", ours.placement["transformer"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **SMALL | {"steps": 5, "strength": 0.8})


def test_t5_changes_the_picture_and_its_weights_do(loaded: Any) -> None:
    ours, _ = loaded("3")
    plain, one, more = (
        np.asarray(ours.generate(p, steps=2, seed=2).images[0])
        for p in ("a red apple", "a (red:1.0) apple", "a (red:1.5) apple")
    )
    np.testing.assert_array_equal(plain, one)
    assert not np.array_equal(plain, more)
    family = ours.family
    kept, family.tokenizer_3 = family.tokenizer_3, None
    try:
        without = np.asarray(ours.generate("a red apple", steps=2, seed=2).images[0])
    finally:
        family.tokenizer_3 = kept
    assert psnr(plain, without) < 40


def test_long_prompts_are_chunks_of_clip_and_one_row_of_t5(loaded: Any) -> None:
    ours, _ = loaded("3")
    words = " ".join(["a red apple and a green car"] * 20)
    conditioning = ours.family.encode_prompt([words, APPLE], "", (32, 48), 5.0)
    states, pooled = (conditioning.positive[n] for n in ("encoder_hidden_states", "pooled_projections"))
    assert states.shape == (2, 2 * 77 + 256, 64)
    assert pooled.shape == (2, 24 + 16)


def test_a_picture_without_positions_is_refused(loaded: Any) -> None:
    ours, _ = loaded("3")
    with pytest.raises(BadInput, match="positions for 96 pixels a side"):
        ours.generate(APPLE, width=100, height=32, steps=2)
