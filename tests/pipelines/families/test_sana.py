"""Sana, tiny and random, beside diffusers: Gemma's states, a linear transformer, a deep compression autoencoder.

diffusers has no img2img and no inpainting for Sana, so those are shown to do their work, and compared with nothing. Its
resolution binning (drawing in another size, then resizing) is not done here, and is off where we compare.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.errors import BadInput
from vitrify.export.job import export_model
from vitrify.pipelines.families.gemma import GemmaTokenizer
from vitrify.pipelines.families.sana import INSTRUCTION, MAX_TOKENS
from vitrify.pipelines.images import to_uint8
from vitrify.pipelines.random import generator
from vitrify.proof.quality import psnr

from .tiny_pipelines import LONG, deep_autoencoder, gemma, gemma_words, sana_pipeline, sana_transformer

torch = pytest.importorskip("torch", reason="needs the extra export")
diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
transformers = pytest.importorskip("transformers", reason="needs the extra export")

# diffusers turns tensors into arrays in a way that numpy 2 warns about, and has notes about its own future.
pytestmark = [
    pytest.mark.slow,  # traces many graphs: minutes on an empty cache
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
APPLE, CAR = "A red Apple on a table ", "a blue car!!"
SMALL = {"width": 64, "height": 64, "steps": 4, "guidance": 4.5, "seed": 7}


def drawn(pipe: Any, prompts: list[str], *, seed: int, steps: int, guidance: float, **options: Any) -> list[np.ndarray]:
    """What diffusers draws. Without complex_human_instruction it takes its own."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # it remembers its last run
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    done = pipe(
        prompts, generator=streams, num_inference_steps=steps, guidance_scale=guidance, use_resolution_binning=False,
        **options,
    )  # fmt: skip
    return [np.asarray(one) for one in done.images]


def same(images: list[Any], expected: list[np.ndarray]) -> None:
    assert len(images) == len(expected)
    for one, wanted in zip(images, expected, strict=True):
        assert np.asarray(one).shape == wanted.shape
        assert wanted.std() > 10, "a grey square would prove nothing"
        assert psnr(np.asarray(one), wanted) >= 45


@pytest.fixture(scope="module")
def sana(save_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """diffusers' pipeline, and its artifact."""
    folder = tmp_path_factory.mktemp("sana")
    pipe = sana_pipeline()
    export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
    return pipe, folder / "artifact"


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def loaded(request: pytest.FixtureRequest, sana: tuple[Any, Path]) -> Iterator[tuple[Any, Any, str]]:
    """Our pipeline on one of the runtimes, diffusers', and the runtime's name."""
    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    ours = vitrify.load(sana[1], "cpu", runtime=request.param)
    yield ours, sana[0], request.param
    ours.close()


@pytest.fixture
def ours(loaded: tuple[Any, Any, str]) -> Iterator[Any]:
    kept = loaded[0].family.instruction
    yield loaded[0]
    loaded[0].family.instruction = kept


def test_it_draws_what_diffusers_draws(ours: Any, loaded: Any, cell: Any) -> None:
    cell("sana", "text2img", loaded[2])
    result = ours.generate(APPLE, negative_prompt="a green leaf", **SMALL)
    expected = drawn(loaded[1], [APPLE], negative_prompt="a green leaf", **SMALL)
    same(result.images, expected)
    without = ours.generate(APPLE, **SMALL).images[0]
    assert psnr(np.asarray(without), expected[0]) < 40, "the negative prompt did nothing"


def test_two_pictures_in_another_size_without_guidance(ours: Any, loaded: Any) -> None:
    request = {**SMALL, "width": 96, "height": 32, "guidance": 1.0}
    result = ours.generate([APPLE, CAR], **request)
    same(result.images, drawn(loaded[1], [APPLE, CAR], **request))


def test_a_lora_does_what_it_does_in_diffusers(ours: Any, loaded: Any, same_with_lora: Any, cell: Any) -> None:
    cell("sana", "LoRA", loaded[2])
    same_with_lora(
        loaded[1],
        lambda loras: np.asarray(ours.generate(APPLE, loras=loras, **SMALL).images[0]),
        lambda: drawn(loaded[1], [APPLE], **SMALL)[0],
    )


def test_without_the_instruction(ours: Any, loaded: Any) -> None:
    told = ours.generate([APPLE, CAR], **SMALL).images
    ours.family.instruction = ""
    plain = ours.generate([APPLE, CAR], **SMALL).images
    same(plain, drawn(loaded[1], [APPLE, CAR], complex_human_instruction=None, **SMALL))
    assert psnr(np.asarray(told[0]), np.asarray(plain[0])) < 40, "the instruction did nothing"


@pytest.mark.parametrize("instruction", [INSTRUCTION, ""])
def test_of_a_long_prompt_the_same_is_read(ours: Any, loaded: Any, instruction: str) -> None:
    assert len(ours.family.tokenizer.ids(LONG.lower())) > MAX_TOKENS
    ours.family.instruction = instruction
    request = {**SMALL, "steps": 2}
    told = {} if instruction else {"complex_human_instruction": None}
    result = ours.generate([LONG, CAR], **request)
    same(result.images, drawn(loaded[1], [LONG, CAR], **request, **told))
    cut = len(ours.family.tokenizer.ids(instruction + LONG.lower())) - ours.family._limit(instruction)
    (note,) = result.notes
    assert f"Gemma reads 300 tokens: the last {cut} of {LONG[:40]!r}" in note


def test_the_instruction_and_the_defaults_are_those_of_diffusers(ours: Any) -> None:
    parameters = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    assert "\n".join(parameters["complex_human_instruction"].default) == ours.settings["instruction"]
    assert parameters["max_sequence_length"].default == MAX_TOKENS
    assert (ours.steps, ours.guidance) == tuple(
        parameters[name].default for name in ("num_inference_steps", "guidance_scale")
    )


def test_the_autoencoder_is_that_of_diffusers(ours: Any, loaded: Any, photo: Any) -> None:
    module = loaded[1].vae
    pixels = np.stack([np.asarray(photo(32, 48, seed)).transpose(2, 0, 1) / 127.5 - 1 for seed in (1, 2)])
    pixels = pixels.astype(np.float32)
    with torch.no_grad():
        latents = module.encode(torch.from_numpy(pixels)).latent * module.config.scaling_factor
        pictures = module.decode(latents / module.config.scaling_factor).sample.numpy()
    found = ours.vae.encode(pixels, generator("cpu", 0))
    assert found.shape == (2, 4, 12, 8)
    np.testing.assert_allclose(found, latents.numpy(), atol=1e-4)
    for one, wanted in zip(ours.vae.decode(latents.numpy()), pictures, strict=True):
        assert psnr(np.asarray(one), to_uint8(wanted[None])[0]) >= 45


def test_a_picture_is_changed_as_much_as_is_asked(ours: Any, photo: Any) -> None:
    """Not compared with diffusers, which has no such pipeline."""
    start = photo(64, 64)
    pixels = np.asarray(start).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    kept = np.asarray(ours.vae.decode(ours.vae.encode(pixels, generator("cpu", 0)))[0])
    little, much = (
        np.asarray(ours.generate(APPLE, image=start, strength=share, steps=10, seed=1).images[0])
        for share in (0.1, 1.0)
    )
    assert psnr(little, kept) > psnr(much, kept) + 3


def test_outside_of_the_mask_the_picture_stays(ours: Any, photo: Any) -> None:
    """Not compared with diffusers, which has no such pipeline."""
    start, mask = photo(64, 64), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 16))
    pixels = np.asarray(start).transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1
    clean = ours.vae.encode(pixels, generator("cpu", 0))
    last: list[Any] = []
    ours.generate(APPLE, image=start, mask=mask, steps=4, seed=1, on_step=last.append)
    np.testing.assert_allclose(last[-1].latents[0, :, 4:], clean[0, :, 4:], atol=1e-4)
    assert np.abs(last[-1].latents[0, :, :4] - clean[0, :, :4]).max() > 0.1


@pytest.mark.parametrize("side", [62, 3])
def test_a_size_that_the_autoencoder_cannot_divide_is_refused(ours: Any, side: int) -> None:
    with pytest.raises(BadInput, match="not a multiple of 4"):
        ours.generate(APPLE, **{**SMALL, "width": side})


@pytest.mark.parametrize("text", ["", " ", APPLE, LONG, "Straße 東京 🙂\n\n<bos> x", "<0x41>"])
@pytest.mark.parametrize("limit", [None, 20])
def test_the_tokens_are_those_of_transformers(sana: tuple[Any, Path], text: str, limit: int | None) -> None:
    expected = sana[0].tokenizer(text, truncation=limit is not None, max_length=limit).input_ids
    assert GemmaTokenizer.from_folder(sana[1] / "tokenizer").ids(text, limit) == expected


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer_config.json", '{"add_bos_token": true, "bos_token": "<start>"}', "no <start>"),
        ("tokenizer_config.json", '{"add_bos_token": false}', "no token of an empty prompt"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_refused(
    sana: tuple[Any, Path], tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((sana[1] / "tokenizer" / file).read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=told):
        GemmaTokenizer.from_folder(tmp_path)


def test_what_is_no_text_is_refused(ours: Any) -> None:
    with pytest.raises(BadInput, match="not valid Unicode"):
        ours.generate("a \ud800 car", **SMALL)


@pytest.fixture(scope="module")
def sprint(save_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """diffusers' Sana-Sprint, and its artifact."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("sprint")
    words = gemma_words()
    told = sana_transformer(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads")
    scheduler = diffusers.SCMScheduler(prediction_type="trigflow", sigma_data=0.5)
    pipe = diffusers.SanaSprintPipeline(words, gemma(len(words)), deep_autoencoder(), told, scheduler)
    export_model(save_tiny(pipe, folder / "source"), folder / "artifact", verify=True)
    return pipe, folder / "artifact"


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def sprinting(request: pytest.FixtureRequest, sprint: tuple[Any, Path]) -> Iterator[tuple[Any, Any, str]]:
    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    ours = vitrify.load(sprint[1], "cpu", runtime=request.param)
    yield ours, sprint[0], request.param
    ours.close()


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sprint_draws_what_diffusers_draws(sprinting: Any, steps: int, cell: Any) -> None:
    ours, theirs, runtime = sprinting
    cell("sana", "few steps", runtime)
    request = {**SMALL, "steps": steps, "width": 96}
    result = ours.generate([APPLE, CAR], **request)
    between = {} if steps == 2 else {"intermediate_timesteps": None}
    same(result.images, drawn(theirs, [APPLE, CAR], **request, **between))
    assert result.parameters[0]["scheduler"] == "scm"
    other = ours.generate([APPLE, CAR], **{**request, "guidance": 1.0})
    assert not np.array_equal(np.asarray(other.images[0]), np.asarray(result.images[0])), "the guidance did nothing"


@pytest.mark.parametrize("strength", [0.4, 0.6, 1.0])
def test_sprint_starts_from_a_picture_as_diffusers_does(sprinting: Any, photo: Any, strength: float, cell: Any) -> None:
    ours, theirs, runtime = sprinting
    cell("sana", "img2img", runtime)
    start = photo(64, 64)
    pipe = diffusers.SanaSprintImg2ImgPipeline(**theirs.components)
    result = ours.generate([APPLE, CAR], image=start, strength=strength, **{**SMALL, "steps": 2})
    expected = drawn(pipe, [APPLE, CAR], image=[start] * 2, strength=strength, **{**SMALL, "steps": 2})
    same(result.images, expected)


def test_sprint_has_the_defaults_of_diffusers_and_its_own_scheduler(sprint: tuple[Any, Path]) -> None:
    parameters = inspect.signature(diffusers.SanaSprintPipeline.__call__).parameters
    ours = vitrify.load(sprint[1], "cpu")
    assert (ours.steps, ours.guidance) == tuple(
        parameters[name].default for name in ("num_inference_steps", "guidance_scale")
    )
    with pytest.raises(BadInput, match="trigonometric flow"):
        ours.generate(APPLE, scheduler="euler", **SMALL)
    ours.close()
