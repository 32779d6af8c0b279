"""Flux, dev and schnell, tiny and random, beside diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.errors import BadInput
from vitrify.export.job import export_model
from vitrify.pipelines.families.flux import packed, positions, unpacked
from vitrify.proof.quality import psnr

from .tiny_pipelines import flux_pipeline

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE, CAR = "a red apple on a table", "a blue car!!"
SMALL = {"width": 48, "height": 32, "steps": 4, "guidance": 3.5, "seed": 7}
KINDS = {
    "text2img": diffusers.FluxPipeline,
    "img2img": diffusers.FluxImg2ImgPipeline,
    "inpaint": diffusers.FluxInpaintPipeline,
}
TOKENS = {"dev": 512, "schnell": 256, "fill": 512, "tiny vae": 512}


def read(kind: Any, tokens: int) -> Any:
    """The pipeline class, whose T5 reads that many tokens."""

    class Reads(kind):  # type: ignore[misc]
        def __call__(self, *given: Any, width: int, height: int, **options: Any) -> Any:
            return super().__call__(*given, width=width, height=height, max_sequence_length=tokens, **options)

    return Reads


@pytest.fixture(scope="module")
def tiny(
    clip_words: Any, t5_words: Any, save_tiny: Any, theirs_of: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, Path]]:
    """tiny(name): diffusers' side of it, and its artifact; each is made once."""
    made: dict[str, tuple[Any, Path]] = {}

    def model(name: str) -> tuple[Any, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp("flux")
            pipe = flux_pipeline(clip_words, t5_words, name)
            export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
            kinds = KINDS if name != "fill" else {"inpaint": diffusers.FluxFillPipeline}
            kinds = {task: read(kind, TOKENS[name]) for task, kind in kinds.items()}
            made[name] = theirs_of(kinds, pipe.components), folder / "artifact"
        return made[name]

    return model


@pytest.mark.parametrize(("name", "steps", "guidance"), [("dev", 28, 3.5), ("schnell", 4, 0.0)])
def test_one_export_draws_all_sizes_and_batches(
    loaded: Any, cell: Any, same_as_diffusers: Any, name: str, steps: int, guidance: float
) -> None:
    ours, theirs = loaded(name)
    cell("flux", "few steps" if name == "schnell" else "text2img", ours.placement["transformer"]["runtime"])
    assert (ours.steps, ours.guidance) == (steps, guidance)
    same_as_diffusers(ours, theirs, [APPLE], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL | {"width": 64, "height": 72, "guidance": 1.5})


def test_dev_is_told_the_guidance(loaded: Any) -> None:
    ours, _ = loaded("dev")
    one, other = (np.asarray(ours.generate(APPLE, **SMALL | {"guidance": g}).images[0]) for g in (1.0, 7.0))
    assert psnr(one, other) < 40


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_a_picture_is_changed(
    loaded: Any, cell: Any, same_as_diffusers: Any, photo: Any, name: str, strength: float
) -> None:
    ours, theirs = loaded(name)
    cell("flux", "img2img", ours.placement["transformer"]["runtime"])
    request = SMALL | {"steps": 5, "strength": strength}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    pictures = [photo(64, 40, 1), photo(64, 40, 2)]
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=pictures, **request | {"width": 64, "height": 40})


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("name", ["dev", "schnell", "fill"])
def test_a_part_of_a_picture_is_drawn_anew(
    loaded: Any, cell: Any, same_as_diffusers: Any, photo: Any, half_mask: Any, name: str, strength: float
) -> None:
    ours, theirs = loaded(name)
    cell("flux", "inpainting model" if name == "fill" else "inpaint", ours.placement["transformer"]["runtime"])
    request = SMALL | {"mask": half_mask(48, 32), "strength": strength, "steps": 5}
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **request)
    same_as_diffusers(ours, theirs, [APPLE, CAR], image=[photo(48, 32, 1), photo(48, 32, 2)], **request)


def test_fill_is_told_what_to_keep(loaded: Any, photo: Any, half_mask: Any) -> None:
    ours, _ = loaded("fill")
    assert (ours.steps, ours.guidance, ours.settings["tasks"]) == (50, 30.0, ["inpaint"])
    with pytest.raises(BadInput, match="inpainting model"):
        ours.generate(APPLE, **SMALL)
    request = SMALL | {"image": photo(48, 32)}
    whole = Image.new("L", (48, 32), 255)
    one, other = (np.asarray(ours.generate(APPLE, mask=m, **request).images[0]) for m in (whole, half_mask(48, 32)))
    assert psnr(one, other) < 40


def test_a_lora_does_what_it_does_in_diffusers(loaded: Any, same_with_lora: Any, cell: Any) -> None:
    ours, theirs = loaded("dev")
    cell("flux", "LoRA", ours.placement["transformer"]["runtime"])
    same_with_lora(
        theirs.pipe("text2img"),
        lambda loras: np.asarray(ours.generate(APPLE, loras=loras, **SMALL).images[0]),
        lambda: theirs.draw([APPLE], **SMALL)[0],
    )


def test_a_tiny_autoencoder_takes_the_place_of_the_vae(
    loaded: Any, same_as_diffusers: Any, photo: Any, cell: Any
) -> None:
    ours, theirs = loaded("tiny vae")
    cell("flux", "tiny VAE", ours.placement["transformer"]["runtime"])
    same_as_diffusers(ours, theirs, [APPLE, CAR], **SMALL)
    same_as_diffusers(ours, theirs, [APPLE], image=photo(48, 32), **SMALL | {"steps": 5, "strength": 0.8})


def test_a_prompt_is_cut_where_t5_ends_and_that_is_told(loaded: Any) -> None:
    ours, _ = loaded("schnell")
    words = "a red apple " * 100
    count = len(ours.family.tokenizer_2._tokenizer.encode(words, add_special_tokens=False).ids)
    result = ours.generate([words, APPLE], width=16, height=16, steps=1)
    (note,) = result.notes
    assert f"T5 reads 255 tokens: the last {count - 255} of 'a red apple" in note
    rows = [ours.family.encode_prompt([p], "", (32, 48), 0.0).positive for p in (words, words + " and a car")]
    assert rows[0]["encoder_hidden_states"].shape == (1, 256, 32)
    np.testing.assert_array_equal(*(r["encoder_hidden_states"] for r in rows))


def test_a_break_is_not_read_by_t5(loaded: Any) -> None:
    ours, _ = loaded("schnell")
    one, other = (
        ours.family.encode_prompt([p], "", (32, 48), 0.0).positive["encoder_hidden_states"]
        for p in ("a red apple a blue car", "a red apple BREAK a blue car")
    )
    assert one.shape == other.shape == (1, 256, 32)


def test_sides_are_multiples_of_a_token(loaded: Any) -> None:
    ours, _ = loaded("dev")
    with pytest.raises(BadInput, match="50, not a multiple of 4"):
        ours.generate(APPLE, width=50, height=32, steps=2)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_steps_that_make_no_sense_are_refused(loaded: Any, steps: Any) -> None:
    with pytest.raises(BadInput, match="number of steps"):
        loaded("dev")[0].generate(APPLE, width=48, height=32, steps=steps)


def test_packing_is_that_of_diffusers() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 16, 6, 10)).astype(np.float32)
    theirs = diffusers.FluxPipeline._pack_latents(torch.from_numpy(latents), 2, 16, 6, 10)
    np.testing.assert_array_equal(packed(latents), theirs.numpy())
    np.testing.assert_array_equal(unpacked(packed(latents), 6, 10), latents)
    ids = diffusers.FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    np.testing.assert_array_equal(positions(3, 5), ids.numpy())
