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

from .tiny_pipelines import sd3_pipeline

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")

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


@pytest.fixture(scope="module")
def tiny(
    clip_words: Any, t5_words: Any, save_tiny: Any, theirs_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """tiny(name): diffusers' side of it, and its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("sd3")
            pipe = sd3_pipeline(clip_words, t5_words, **MODELS[name])
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
