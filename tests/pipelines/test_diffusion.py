"""Prompts to pictures: what diffusers draws, cancelled and told step by step, and drawn again from the PNG."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.errors import BadInput, Cancelled, UsageError
from vitrify.pipelines.diffusion import DiffusionPipeline, Step
from vitrify.pipelines.images import read_parameters, save_png
from vitrify.pipelines.schedulers import SCHEDULERS, scheduler_names
from vitrify.proof.quality import psnr

diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
torch = pytest.importorskip("torch", reason="needs the extra export")

# those that draw with this kind of model, but for those whose noise is not diffusers' own
NAMES = [n for n in scheduler_names({"_class_name": "DDIMScheduler"}) if not n.startswith("dpmpp_sde")]
PROMPT = "a red apple"
LONG = "a photo of " + ", ".join(f"a {c} apple and a {c} car" for c in ("red", "green", "blue", "yellow", "brown") * 3)

# diffusers turns tensors into arrays in ways that numpy 2 warns about.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


class Watched:
    """A session that also notes the batch size of each run."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        self.batches.append(len(next(t for t in tensors.values() if t.ndim)))
        result: dict[str, Any] = self._session.run(tensors)
        return result


@pytest.fixture(scope="module")
def ours(diffusion_artifact: Path) -> Iterator[DiffusionPipeline]:
    pipeline = vitrify.load(diffusion_artifact, "cpu")
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module")
def theirs(diffusion_source: Path) -> tuple[Any, dict[str, Any]]:
    """diffusers' pipeline in float32, and the options of the model's own scheduler."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, of its dependencies
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(diffusion_source, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == torch.float32
    return pipeline, dict(pipeline.scheduler.config)


def added(name: str) -> dict[str, Any]:
    """The options that make diffusers' class the scheduler of this name."""
    options: dict[str, Any] = {"use_karras_sigmas": True} if name.endswith("_karras") else {}
    if name.startswith("dpmpp_2m_sde"):
        options["algorithm_type"] = "sde-dpmsolver++"
    return options | ({"skip_prk_steps": True} if name == "pndm" else {})


def drawn_by_diffusers(theirs: Any, name: str, prompts: list[str], seed: int, **options: Any) -> list[np.ndarray]:
    pipeline, config = theirs
    pipeline.scheduler = getattr(diffusers, SCHEDULERS[name].diffusers).from_config(config, **added(name))
    streams = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    if name == "tcd":  # the scheduler's own default, which the pipeline overrides with none
        options["eta"] = 0.3
    done = pipeline(prompts, generator=streams, **options)
    return [np.asarray(image) for image in done.images]


def same(images: list[Any], expected: list[np.ndarray]) -> None:
    """Each picture at least 50 dB from the expected one, which shows something."""
    assert len(images) == len(expected)
    for image, wanted in zip(images, expected, strict=True):
        picture = np.asarray(image)
        assert picture.shape == wanted.shape
        assert wanted.std() > 10  # two grey squares would prove nothing
        assert psnr(picture, wanted) >= 50


@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_draws_what_diffusers_draws(
    ours: DiffusionPipeline, theirs: Any, diffusion_artifact: Path, name: str
) -> None:
    scheduler = ours.settings["scheduler"] | added(name)
    pipeline = DiffusionPipeline(ours.sessions, {**ours.settings, "scheduler": scheduler}, diffusion_artifact)
    result = pipeline.generate(PROMPT, steps=10, guidance=5.0, seed=11, scheduler=name, width=64, height=64)
    expected = drawn_by_diffusers(theirs, name, [PROMPT], 11, num_inference_steps=10, guidance_scale=5.0)
    same(result.images, expected)
    assert result.parameters[0]["scheduler"] == name


def test_the_models_own_scheduler_negative_prompt_batch_and_other_sides(ours: DiffusionPipeline, theirs: Any) -> None:
    result = ours.generate(
        PROMPT, negative_prompt="a green leaf", batch=2, width=96, height=64, steps=10, guidance=7.5, seed=3
    )
    expected = drawn_by_diffusers(
        theirs, "ddim", [PROMPT] * 2, 3,
        negative_prompt=["a green leaf"] * 2, width=96, height=64, num_inference_steps=10, guidance_scale=7.5,
    )  # fmt: skip
    assert expected[0].shape == (64, 96, 3)
    same(result.images, expected)
    assert [p["seed"] for p in result.parameters] == [3, 4]
    plain = ours.generate(PROMPT, batch=2, width=96, height=64, steps=10, guidance=7.5, seed=3)
    assert psnr(np.asarray(plain.images[0]), expected[0]) < 40, "the negative prompt did nothing"


def test_a_negative_prompt_that_is_not_read_is_told(ours: DiffusionPipeline) -> None:
    notes = [ours.generate(PROMPT, negative_prompt="leaf", steps=1, guidance=g).notes for g in (1.0, 3.0)]
    assert notes == [("The negative prompt is not read: guidance is off, or this model has none.",), ()]


def test_without_guidance_a_step_costs_half(diffusion_artifact: Path, theirs: Any) -> None:
    pipeline = vitrify.load(diffusion_artifact, "cpu")
    watched = pipeline.sessions["unet"] = Watched(pipeline.sessions["unet"])
    result = pipeline.generate(PROMPT, steps=10, guidance=1.0, seed=5)
    assert watched.batches == [1] * 10
    same(
        result.images,
        drawn_by_diffusers(theirs, "ddim", [PROMPT], 5, num_inference_steps=10, guidance_scale=1.0),
    )
    pipeline.generate(PROMPT, steps=2, guidance=1.5, seed=5)
    assert watched.batches[10:] == [2, 2]
    pipeline.close()


def test_a_picture_is_the_same_alone_and_in_a_batch(ours: DiffusionPipeline) -> None:
    both = ours.generate([PROMPT, "a blue car"], steps=6, seed=20, scheduler="euler_a")
    alone = ours.generate("a blue car", steps=6, seed=21, scheduler="euler_a")
    assert psnr(np.asarray(both.images[1]), np.asarray(alone.images[0])) >= 50
    assert both.parameters[1]["prompt"] == "a blue car"
    chosen = ours.generate([PROMPT, "a blue car"], steps=6, seed=[7, 21], scheduler="euler_a")
    assert [one["seed"] for one in chosen.parameters] == [7, 21]
    assert psnr(np.asarray(chosen.images[1]), np.asarray(alone.images[0])) >= 50
    with pytest.raises(BadInput, match="3 seeds for 2 pictures"):
        ours.generate(PROMPT, batch=2, steps=1, seed=[1, 2, 3])


def test_a_prompt_longer_than_the_encoder_takes_counts_to_its_end(ours: DiffusionPipeline) -> None:
    tokens = ours.family.tokenizers["text_encoder"].encode(LONG)
    assert len(tokens.ids) > 1
    words = LONG.split()
    short = next(
        " ".join(words[:n])
        for n in range(len(words), 0, -1)
        if len(ours.family.tokenizers["text_encoder"].encode(" ".join(words[:n])).ids) == 1
    )
    whole, cut = (ours.generate(p, steps=6, seed=2).images[0] for p in (LONG, short))
    assert psnr(np.asarray(whole), np.asarray(cut)) < 40


def test_a_weight_changes_the_picture_and_a_weight_of_one_does_not(ours: DiffusionPipeline) -> None:
    plain, one, more = (
        np.asarray(ours.generate(p, steps=6, seed=2).images[0])
        for p in ("a red apple", "a (red:1.0) apple", "a (red:1.3) apple")
    )
    np.testing.assert_array_equal(plain, one)
    assert not np.array_equal(plain, more)


def test_each_step_is_told_with_its_latents(ours: DiffusionPipeline) -> None:
    told: list[Step] = []
    ours.generate(PROMPT, steps=4, seed=1, width=96, height=64, on_step=told.append)
    assert [s.number for s in told] == [1, 2, 3, 4]
    assert {s.total for s in told} == {4}
    assert {s.latents.shape for s in told} == {(1, 4, 64 // ours.scale, 96 // ours.scale)}
    assert [s.timestep for s in told] == sorted((s.timestep for s in told), reverse=True)
    assert not np.array_equal(told[0].latents, told[-1].latents)


def test_it_stops_between_steps(ours: DiffusionPipeline) -> None:
    told: list[int] = []
    with pytest.raises(Cancelled, match="before step 3 of 8"):
        ours.generate(PROMPT, steps=8, seed=1, on_step=lambda s: told.append(s.number), cancel=lambda: len(told) == 2)
    assert told == [1, 2]
    assert len(ours.generate(PROMPT, steps=2, seed=1).images) == 1, "the pipeline is of use afterwards"


def test_a_png_says_how_to_draw_it_again(ours: DiffusionPipeline, tmp_path: Path) -> None:
    first = ours.generate(
        "a (red:1.2) apple", negative_prompt="leaf", steps=5, scheduler="euler_a", width=96, height=64
    )
    save_png(first.images[0], tmp_path / "one.png", first.parameters[0])
    again = ours.generate(**read_parameters(tmp_path / "one.png"))
    np.testing.assert_array_equal(np.asarray(again.images[0]), np.asarray(first.images[0]))
    other = ours.generate(**(first.parameters[0] | {"seed": first.seed + 1}))
    assert not np.array_equal(np.asarray(other.images[0]), np.asarray(first.images[0]))


def test_what_ran_where_and_for_how_long_is_told(ours: DiffusionPipeline) -> None:
    result = ours.generate(PROMPT, steps=3, seed=1)
    assert set(result.placement) == {"text_encoder", "unet", "vae_decoder"}
    assert result.placement["unet"] == {
        "runtime": "onnx", "provider": "CPUExecutionProvider", "device": "cpu", "precision": "float32",
    }  # fmt: skip
    assert len(result.timings["steps"]) == 3
    assert all(s > 0 for s in result.timings["steps"])


@pytest.mark.parametrize(
    ("options", "error", "fix"),
    [
        ({"width": 100}, BadInput, "96"),
        ({"height": 1}, BadInput, "16"),
        ({"width": 5000}, BadInput, "4096"),
        ({"width": -64}, BadInput, "16"),
        ({"width": 0}, BadInput, "16"),
        ({"height": 0}, BadInput, "16"),
        ({"width": 64.0}, BadInput, "16"),
        ({"scheduler": "huen"}, BadInput, "Did you mean heun"),
        ({"steps": 0}, BadInput, "range"),
        ({"steps": -1}, BadInput, "range"),
        ({"steps": 2.5}, BadInput, "range"),
        ({"rng": "dice"}, BadInput, "philox"),
        ({"guidance": float("nan")}, UsageError, "number"),
        ({"batch": 0}, UsageError, "1 or more"),
        ({"seed": 2**64}, BadInput, "random"),
        ({"seed": -1}, BadInput, "random"),
        ({"seed": 1.5}, BadInput, "random"),
        ({"seed": float("nan")}, BadInput, "random"),
        ({"seed": float("inf")}, BadInput, "random"),
        ({"image": []}, BadInput, "one for each"),
    ],
)
def test_what_makes_no_sense_is_refused(
    ours: DiffusionPipeline, options: dict[str, Any], error: type[Exception], fix: str
) -> None:
    with pytest.raises(error) as caught:
        ours.generate(PROMPT, **({"steps": 1, "seed": 1} | options))
    assert fix in caught.value.fix  # type: ignore[attr-defined]


def test_no_prompt_is_refused(ours: DiffusionPipeline) -> None:
    with pytest.raises(BadInput, match="no prompt"):
        ours.generate([], steps=1)
