"""Pictures and labels side by side: figures as others define them; what is black, plain or NaN names its component."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput, ProofFailed, RuntimeFailure
from vitrify.core.progress import silent
from vitrify.pipelines.load import load
from vitrify.proof.evidence import Evidence
from vitrify.proof.quality import (
    EXACT,
    PROMPTS,
    Tolerance,
    agreement,
    compare_images,
    compare_labels,
    most_changed,
    psnr,
    ssim,
)
from vitrify.proof.words import in_words
from vitrify.quant.recipes import RECIPES, recipe

pytest.importorskip("torch", reason="needs the extra export")

RNG = np.random.default_rng(0)
QUICK = Tolerance(psnr=30.0, score=1.0, agreement=1.0, exact=False, prompts=2, steps=2)
ONE = replace(QUICK, prompts=1, steps=1)
AGREE = "100.0% of the labels agree"


def picture(height: int, width: int) -> np.ndarray:
    """Noise over a gradient, so that it has structure at every scale."""
    slope = np.linspace(0, 200, width)[None, :, None] * np.ones((height, 1, 3))
    return np.clip(slope + RNG.normal(0, 30, (height, width, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.5, 2, 10, 60, 200])
@pytest.mark.parametrize("size", [(11, 11), (24, 40), (64, 64)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int], noise: float) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image")
    a = picture(*size)
    b = np.clip(a + RNG.normal(0, noise, a.shape), 0, 255).astype(np.uint8)
    expected = metrics.structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11, channel_axis=2
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_psnr_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image")
    a, b = picture(16, 24), picture(16, 24)
    assert psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b))
    assert psnr(a, a) == math.inf


def test_ssim_of_equal_and_of_unlike_pictures() -> None:
    a = picture(32, 32)
    assert ssim(a, a) == 1
    assert ssim(a, 255 - a) < 0.2
    black = np.zeros((32, 32, 3), np.uint8)
    assert ssim(black, black) == 1
    assert ssim(black, black + np.uint8(255)) < 0.001


@pytest.mark.parametrize("id", RECIPES)
def test_a_recipe_states_its_tolerance(id: str) -> None:
    made, found = recipe(id), Tolerance.of(recipe(id))
    if made.lossless:
        assert found == EXACT
        return
    assert (found.psnr, found.agreement, found.exact) == (made.min_psnr, made.min_agreement, False)
    assert found.prompts == len(PROMPTS) == 8
    assert found.steps == 20


def test_agreement_counts_the_best_labels() -> None:
    a = [{"x": 0.6, "y": 0.4}, {"x": 0.2, "y": 0.8}, {"x": 0.9, "y": 0.1}, {"x": 0.5, "y": 0.45}]
    b = [{"x": 0.7, "y": 0.3}, {"x": 0.6, "y": 0.4}, {"x": 0.9, "y": 0.1}, {"x": 0.5, "y": 0.46}]
    found = agreement(a, b)
    assert found["agreement"] == 0.75
    assert found["max_score_difference"] == pytest.approx(0.4)


class Changed:
    """A session whose outputs are changed on their way; everything else is the real one's."""

    def __init__(self, session: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self._session, self._change = session, change
        self.inputs, self.outputs, self.placement = session.inputs, session.outputs, session.placement

    def run(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {n: self._change(v) for n, v in self._session.run(tensors).items()}

    def close(self) -> None:
        self._session.close()


Opened = Callable[..., Callable[[], AbstractContextManager[Any]]]


def opener(pipeline: Any) -> Opened:
    """opened(component, change): the pipeline, that component's outputs changed while it is open."""

    def opened(component: str = "", change: Callable[[np.ndarray], np.ndarray] | None = None) -> Any:
        @contextmanager
        def changed() -> Iterator[Any]:
            if change is None:
                yield pipeline
                return
            kept = pipeline.sessions[component]
            pipeline.sessions[component] = Changed(kept, change)
            try:
                yield pipeline
            finally:
                pipeline.sessions[component] = kept

        return changed

    return opened


@pytest.fixture(scope="module")
def drawing(diffusion_artifact: Path) -> Iterator[Opened]:
    pipeline = load(diffusion_artifact, "cpu")
    yield opener(pipeline)
    pipeline.close()


@pytest.fixture(scope="module")
def labelling(emotions_artifact: Path) -> Iterator[Opened]:
    pipeline = load(emotions_artifact, "cpu")
    yield opener(pipeline)
    pipeline.close()


def test_equal_pipelines_draw_the_same(drawing: Opened) -> None:
    found = compare_images(drawing(), drawing(), QUICK, silent)["images"]
    assert (found["pictures"], found["steps"]) == (2, 2)
    assert found["psnr_db"] == [None, None], "JSON has no infinity"
    assert found["min_psnr_db"] is None
    assert found["mean_psnr_db"] == 100
    assert found["min_ssim"] == 1
    assert found["latent_error"] == [0, 0]
    assert found["asked"] == {"psnr_db": 30, "of": "average"}
    assert "identical" in in_words(found)
    assert "100.0 dB" not in in_words(found), "which is how equal pictures count in a mean, and was not measured"
    assert not [key for key in found if "lpips" in key or "clip" in key or "measured" in key], "nobody asked"


def test_every_picture_says_how_it_was_drawn(drawing: Opened) -> None:
    found = compare_images(drawing(), drawing("unet", noisy(0.02)), QUICK, silent)["images"]
    one, two = found["drawn"]
    assert (one["prompt"], one["seed"], one["width"], one["height"]) == (PROMPTS[0], 0, 64, 64)
    assert (two["prompt"], two["seed"]) == (PROMPTS[1], 1)
    assert found["min_ssim"] == min(found["ssim"]) < 1
    each = [row["latent_error"] for row in found["drawn"]]
    assert np.mean(each, axis=0) == pytest.approx(found["latent_error"])
    assert each[0] != each[1]


class Brighter:
    """A measure whose answer is known: how much brighter the artifact's picture is."""

    files: Mapping[str, str] = {"eye.pth": "00ff"}

    def measure(self, prompt: str, reference: Any, given: Any) -> dict[str, float]:
        return {"lpips": float(np.asarray(given).mean() - np.asarray(reference).mean()), "words": len(prompt)}


def test_measures_are_asked_about_each_pair(drawing: Opened) -> None:
    evidence = Evidence()
    given = drawing("vae_decoder", lambda v: v + np.float32(0.05))
    images = compare_images(drawing(), given, QUICK, silent, {"eye": Brighter()}, evidence)["images"]
    expected = [np.asarray(p.artifact).mean() - np.asarray(p.reference).mean() for p in evidence.pairs]
    assert images["lpips"] == pytest.approx(expected)
    assert (images["mean_lpips"], images["max_lpips"]) == pytest.approx((np.mean(expected), max(expected)))
    assert images["words"] == [len(p) for p in PROMPTS[:2]]
    assert images["measured_by"] == {"eye": {"eye.pth": "00ff"}}
    assert f"LPIPS at most {max(expected):.3f}" in in_words(images)


def test_a_measure_that_gives_no_number_is_named(drawing: Opened) -> None:
    broken = Brighter()
    broken.measure = lambda *given: {"lpips": math.nan}  # type: ignore[method-assign]
    with pytest.raises(BadInput, match="lpips is not a number: the weights of eye are no good"):
        compare_images(drawing(), drawing(), ONE, silent, {"eye": broken})


def test_pictures_that_fail_are_kept_with_their_figures(drawing: Opened) -> None:
    evidence = Evidence()
    with pytest.raises(ProofFailed):
        compare_images(drawing(), drawing("unet", noisy(1.0)), QUICK, silent, None, evidence)
    images = evidence.whole["images"]
    pixels = [(np.asarray(p.reference), np.asarray(p.artifact)) for p in evidence.pairs]
    assert images["psnr_db"] == [psnr(a, b) for a, b in pixels]
    assert images["mean_psnr_db"] < images["asked"]["psnr_db"]


def noisy(size: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(1)
    return lambda v: (v + size * v.std() * rng.standard_normal(v.shape)).astype(v.dtype)


def test_figures_tell_how_far_pictures_and_latents_are_apart(drawing: Opened) -> None:
    given = drawing("unet", noisy(0.02))
    found = compare_images(drawing(), given, QUICK, silent)["images"]
    assert found["min_psnr_db"] == min(found["psnr_db"])
    assert found["mean_psnr_db"] == pytest.approx(np.mean(found["psnr_db"]))
    assert 30 <= found["mean_psnr_db"] < 60
    assert 0.9 < found["min_ssim"] < 1
    first, last = found["latent_error"]
    assert 0 < first < 0.2
    assert 0 < last < 0.2
    assert f"PSNR at least {found['min_psnr_db']:.1f} dB" in in_words(found)


def test_pictures_below_the_tolerance_fail_with_their_figure(drawing: Opened) -> None:
    given = drawing("unet", noisy(1.0))
    said = r"The pictures on average differ from the reference's: PSNR \d+\.\d dB, at least 30 is asked for"
    with pytest.raises(ProofFailed, match=said):
        compare_images(drawing(), given, QUICK, silent)


def test_an_exact_artifact_is_held_to_its_worst_picture(drawing: Opened) -> None:
    given = drawing("vae_decoder", noisy(0.02))
    with pytest.raises(ProofFailed, match=r"The worst picture differs .* at least 50 is asked for"):
        compare_images(drawing(), given, EXACT, silent)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 7.0])
def test_a_decoder_that_draws_one_colour_is_named(drawing: Opened, value: float) -> None:
    given = drawing("vae_decoder", lambda v: np.full_like(v, value))
    with pytest.raises(ProofFailed, match=r"vae_decoder draws one plain colour for 'a red apple'") as caught:
        compare_images(drawing(), given, ONE, silent)
    assert "float32" in caught.value.fix


def test_one_colour_need_not_be_grey(drawing: Opened) -> None:
    given = drawing("vae_decoder", lambda v: np.broadcast_to(np.array([0.5, -0.5, 0.1]).reshape(3, 1, 1), v.shape))
    with pytest.raises(ProofFailed, match="vae_decoder draws one plain colour"):
        compare_images(drawing(), given, ONE, silent)


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_component_that_gives_no_numbers_is_named(drawing: Opened, component: str, value: float) -> None:
    def spoiled(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.reshape(-1)[values.size // 2] = value  # one in the middle is enough
        return values

    with pytest.raises(RuntimeFailure, match=rf"^{component} gives NaN or infinity"):
        compare_images(drawing(), drawing(component, spoiled), ONE, silent)


def test_equal_classifiers_agree(labelling: Opened) -> None:
    found = compare_labels(labelling(), labelling(), EXACT, silent)["labels"]
    asked, changed = found.pop("asked"), found.pop("most_changed")
    assert found == {"pictures": 4, "max_score_difference": 0, "agreement": 1}
    assert asked == {"agreement": 1.0, "score": 1e-3}
    assert sorted(row["picture"] for row in changed) == [0, 1, 2, 3]
    assert all(row["reference"] == row["artifact"] for row in changed)
    assert all(row["reference_score"] == row["artifact_score"] for row in changed)


def test_the_pictures_that_changed_most_come_first() -> None:
    a = [{"x": 0.6, "y": 0.4}, {"x": 0.2, "y": 0.8}, {"x": 0.9, "y": 0.1}, {"x": 0.5, "y": 0.45}] * 3
    b = [{"x": 0.7, "y": 0.3}, {"x": 0.6, "y": 0.4}, {"x": 0.9, "y": 0.1}, {"x": 0.5, "y": 0.46}] * 3
    found = most_changed(a, b)
    assert len(found) == 8
    assert found[0] == {
        "picture": 1, "reference": "y", "reference_score": 0.8, "artifact": "x", "artifact_score": 0.6,
        "max_score_difference": pytest.approx(0.4),
    }  # fmt: skip
    assert [row["picture"] for row in found] == [1, 5, 9, 0, 4, 8, 3, 7], "other labels first, then larger changes"


def test_labels_that_fail_are_kept_with_their_figures(labelling: Opened) -> None:
    evidence = Evidence()
    with pytest.raises(ProofFailed):
        compare_labels(
            labelling(), labelling("model", lambda v: np.roll(v, 1, axis=-1)), EXACT, silent, evidence
        )  # fmt: skip
    labels = evidence.whole["labels"]
    assert labels["agreement"] < 1
    assert labels["most_changed"][0]["reference"] != labels["most_changed"][0]["artifact"]


def test_labels_below_the_tolerance_fail_with_their_figure(labelling: Opened) -> None:
    given = labelling("model", lambda v: np.roll(v, 1, axis=-1))
    with pytest.raises(ProofFailed, match=r"Labels differ .*: \d+\.\d% agree, a score is off by 0\.\d+"):
        compare_labels(labelling(), given, Tolerance(exact=True), silent)


def test_one_score_that_is_no_number_is_not_passed_over() -> None:
    good, bad = {"happy": 0.9, "sad": 0.1}, {"happy": 0.9, "sad": float("nan")}
    assert np.isnan(agreement([good, good], [good, bad])["max_score_difference"])


def test_a_classifier_that_gives_no_numbers_is_named(labelling: Opened) -> None:
    given = labelling("model", lambda v: np.full_like(v, np.nan))
    with pytest.raises((ProofFailed, RuntimeFailure), match=r"^model gives NaN"):
        compare_labels(labelling(), given, EXACT, silent)


@pytest.mark.parametrize(
    ("proof", "words"),
    [
        ("not run", "not run"),
        ({"tensors": 7, "quantized": 3, "snr_db": 43.21}, "3 layers quantized, SNR 43.2 dB"),
        ({"tensors": 7, "sha256": "0"}, "7 tensors traced"),
        ({"max_abs": 1e-6, "relative": 2e-7, "snr_db": None}, "max error 1.0e-06, 2.0e-07 of the range"),
        (
            {"pictures": 64, "max_score_difference": 0.01, "agreement": 1.0},
            "64 compared, 100.0% of the labels agree, scores within 1.0e-02",
        ),
        (
            {
                "pictures": 8,
                "mean_psnr_db": 31.0,
                "min_psnr_db": 25.04,
                "max_lpips": 0.0123,
                "mean_clip_score": 27.123,
                "mean_clip_score_reference": 27.5,
            },
            "8 compared, PSNR 31.0 dB on average, PSNR at least 25.0 dB, LPIPS at most 0.012, CLIP score 27.12, "
            "the reference's 27.50",
        ),
        ({"status": "failed", "snr_db": 3.0}, "FAILED: SNR 3.0 dB"),
        ({"status": "failed"}, "FAILED: failed"),
        ({}, "run, without figures"),
    ],
)
def test_a_proof_in_words(proof: Any, words: str) -> None:
    assert in_words(proof) == words
