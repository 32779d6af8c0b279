"""Whole pipelines side by side: the same noise, prompts and seeds give the same pictures; the same pictures, labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadInput, ProofFailed
from ..core.progress import Event, Report
from ..core.tensors import Array
from ..pipelines.pictures_in import made_up
from ..pipelines.schedulers import stand_in_name
from ..pipelines.settings import STAND_IN, is_exchangeable
from ..quant.recipes import Recipe
from .evidence import Evidence, Pair
from .measures import Measure

PROMPTS = (
    *("a red apple", "a smiling face, very happy", "a small house by the sea", "an angry face"),
    *("a yellow bird", "a car in the snow, photograph", "a full moon", "a birthday cake with candles"),
)
SHOWN = 8  # pictures of a classifier's proof that the manifest names
Open = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact may be from its reference.

    psnr: dB between pictures: of the worst one where `exact`, else on average. score: largest difference of a label's
    score. agreement: share of pictures whose best label is the same. prompts, steps: how many are drawn, and how.
    ssim: of pictures, on average; None: whatever it is. guidance: None for the model's own.
    """

    psnr: float = 50.0
    score: float = 1e-3
    agreement: float = 1.0
    exact: bool = True
    prompts: int = 2
    steps: int = 4
    ssim: float | None = None
    guidance: float | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Tolerance:
        if recipe.lossless:
            return cls()
        return cls(recipe.min_psnr, 1.0, recipe.min_agreement, False, 8, 20)


EXACT = Tolerance()
MEASURED = Tolerance(0.0, 1.0, 0.0, False, 8, 20)


@dataclass(frozen=True)
class _Drawn:
    prompt: str
    seed: int
    picture: Image.Image
    latents: list[Array]  # after each step
    notes: tuple[str, ...] = ()


def compare_images(
    reference: Open,
    given: Open,
    tolerance: Tolerance,
    report: Report,
    measures: Mapping[str, Measure] | None = None,
    evidence: Evidence | None = None,
    less: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Draw with both, at two sizes that are not the example's where numbers shall be exact, else at the model's own.

    Args:
        measures: asked about each pair of pictures, besides PSNR and SSIM.
        evidence: takes the pictures and figures, also where they are too far apart.
        less: options of `generate` for the given one alone, that leave out some of the work.

    Returns:
        {"images": PSNR (dB) and SSIM of each picture, and how far the latents are apart after each step}.

    Raises:
        ProofFailed: the pictures differ by more than the tolerance, or one is of one plain colour.
        NotFinite: a component gives NaN; names it.
    """
    sides = []
    for number, opened in enumerate((reference, given)):
        with opened() as pipeline:
            report(Event("draw", number, 2, "pipelines"))
            sides.append(_draw(pipeline, tolerance, less if number else None))
    for note in dict.fromkeys(note for drawn in sides[1] for note in drawn.notes if less):
        report(Event("draw", 2, 2, "pipelines", note=note))
    both = list(zip(*sides, strict=True))
    pairs = [Pair(a.picture, b.picture) for a, b in both]
    images = {
        "pictures": len(pairs),
        "steps": tolerance.steps,
        **_likeness(pairs),
        **_measured(measures or {}, [a.prompt for a in sides[0]], pairs, report),
    }
    errors = [latent_errors(a.latents, b.latents) for a, b in both]
    images["latent_error"] = [float(v) for v in np.mean(errors, axis=0)]
    images["asked"] = {"psnr_db": tolerance.psnr, "of": "worst" if tolerance.exact else "average"}
    if tolerance.ssim is not None:
        images["asked"]["ssim"] = tolerance.ssim
    if less:
        images |= {"less": dict(less), "guidance": tolerance.guidance}
    images["drawn"] = [
        {
            "prompt": a.prompt,
            "seed": a.seed,
            "width": a.picture.width,
            "height": a.picture.height,
            "latent_error": error,
        }
        for a, error in zip(sides[0], errors, strict=True)
    ]
    found = {"images": images}
    if evidence is not None:
        evidence.pairs, evidence.whole = pairs, found
    worst = math.inf if images["min_psnr_db"] is None else images["min_psnr_db"]
    value = worst if tolerance.exact else images["mean_psnr_db"]
    fix = "Report the model's config.json and `vitrify doctor`." if tolerance.exact else "Use a milder recipe."
    if less:
        fix = "Leave less of the work out."
    if value < tolerance.psnr:
        which = "The worst picture differs" if tolerance.exact else "The pictures on average differ"
        raise ProofFailed(
            f"{which} from the reference's: PSNR {value:.1f} dB, at least {tolerance.psnr:.0f} is asked for.", fix
        )
    if tolerance.ssim is not None and images["mean_ssim"] < tolerance.ssim:
        what = f"SSIM {images['mean_ssim']:.4f}, at least {tolerance.ssim:g} is asked for"
        raise ProofFailed(f"The pictures on average differ from the reference's: {what}.", fix)
    return found


def _likeness(pairs: Sequence[Pair]) -> dict[str, Any]:
    """PSNR and SSIM of each pair. JSON has no infinity: the PSNR of two equal pictures is None, and 100 in the mean."""
    arrays = [(np.asarray(p.reference), np.asarray(p.artifact)) for p in pairs]
    decibel, likeness = [psnr(a, b) for a, b in arrays], [ssim(a, b) for a, b in arrays]
    finite = [v if math.isfinite(v) else None for v in decibel]
    return {
        "min_psnr_db": min(decibel) if math.isfinite(min(decibel)) else None,
        "mean_psnr_db": float(np.mean([min(v, 100.0) for v in decibel])),
        "psnr_db": finite,
        "min_ssim": min(likeness),
        "mean_ssim": float(np.mean(likeness)),
        "ssim": likeness,
    }


def _measured(
    measures: Mapping[str, Measure], prompts: Sequence[str], pairs: Sequence[Pair], report: Report
) -> dict[str, Any]:
    """Each figure of each measure as a list, a picture each; what the worst or the mean is; and the weights' hashes."""
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        report(Event(f"measure {name}"))
        rows = [measure.measure(t, p.reference, p.artifact) for t, p in zip(prompts, pairs, strict=True)]
        for key in rows[0]:
            values = [row[key] for row in rows]
            if not np.isfinite(values).all():
                raise BadInput(f"{key} is not a number: the weights of {name} are no good.", "Download them again.")
            found[key] = values
            if key == "lpips":
                found["max_lpips"] = max(values)
            found[f"mean_{key}"] = float(np.mean(values))
        found.setdefault("measured_by", {})[name] = dict(measure.files)
    return found


def _draw(pipeline: Any, tolerance: Tolerance, less: Mapping[str, Any] | None = None) -> list[_Drawn]:
    latents = pipeline.settings["latents"]
    unit = int(latents["scale"]) * max(8, int(latents.get("multiple", 1)))
    own = pipeline.settings["size"]
    config = pipeline.settings["scheduler"]
    scheduler = stand_in(config) if tolerance.exact else stand_in_name(config)
    drawn = []
    for seed, prompt in enumerate(PROMPTS[: tolerance.prompts]):
        height, width = ((unit, 2 * unit), (2 * unit, unit))[seed % 2] if tolerance.exact else own
        seen: list[Array] = []
        result = pipeline.generate(
            prompt,
            negative_prompt="blurry" if tolerance.exact else "",
            width=width,
            height=height,
            steps=tolerance.steps,
            guidance=tolerance.guidance,
            seed=seed,
            scheduler=scheduler,
            on_step=lambda step, seen=seen: seen.append(np.array(step.latents)),
            **made_up(pipeline.settings["tasks"], (height, width)),
            **(less or {}),
        )
        picture = np.asarray(result.images[0])
        if (picture == picture[0, 0]).all():
            raise ProofFailed(
                f"vae_decoder draws one plain colour for {prompt!r}.", "Keep the VAE in float32, or keep more layers."
            )
        drawn.append(_Drawn(prompt, seed, result.images[0], seen, result.notes))
    return drawn


def latent_errors(a: Sequence[Array], b: Sequence[Array]) -> list[float]:
    """After each step, the root mean square difference as a share of the reference's root mean square."""
    return [
        float(np.sqrt(np.square(x - y).mean() / max(np.square(x).mean(), 1e-12))) for x, y in zip(a, b, strict=True)
    ]


def stand_in(scheduler: Mapping[str, Any]) -> str | None:
    """The scheduler to draw with where the model's own is not one of ours; None where it is."""
    return STAND_IN if is_exchangeable(scheduler) else None


def compare_labels(
    reference: Open,
    given: Open,
    tolerance: Tolerance,
    report: Report,
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Label made-up pictures of coarse to fine detail with both.

    Args:
        evidence: takes the figures, also where they are too far apart.

    Returns:
        {"labels": how many pictures, the largest difference of a score, the share with the same best label, and the
        pictures that changed most}.

    Raises:
        ProofFailed: a score is further off, or fewer labels agree, than the tolerance allows.
    """
    pictures = _noise_pictures(4 if tolerance.exact else 64)
    read = []
    for opened in (reference, given):
        with opened() as pipeline:
            answers = pipeline.classify(pictures, top_k=None)
        read.append([{r["label"]: r["score"] for r in a} for a in answers])
    figures = agreement(*read)
    if not np.isfinite(figures["max_score_difference"]):
        raise ProofFailed("model gives NaN scores.", "Use a milder recipe, or keep more layers.")
    asked = {"agreement": tolerance.agreement, "score": tolerance.score}
    labels = {"pictures": len(pictures), **figures, "asked": asked, "most_changed": most_changed(*read)}
    found = {"labels": labels}
    if evidence is not None:
        evidence.whole = found
    if figures["agreement"] < tolerance.agreement or figures["max_score_difference"] > tolerance.score:
        raise ProofFailed(
            f"Labels differ from the reference's: {figures['agreement']:.1%} agree, a score is off by "
            f"{figures['max_score_difference']:.2g}; {tolerance.agreement:.0%} and {tolerance.score:g} are asked for.",
            "Report the model's config.json and `vitrify doctor`." if tolerance.exact else "Use a milder recipe.",
        )
    return found


def most_changed(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Of two lists of {label: score}, up to `SHOWN` entries: other best labels first, then the largest differences."""
    rows: list[dict[str, Any]] = []
    for number, (x, y) in enumerate(zip(a, b, strict=True)):
        best, other = (max(scores, key=scores.__getitem__) for scores in (x, y))
        row = {"picture": number, "reference": best, "reference_score": x[best], "artifact": other}
        rows.append({**row, "artifact_score": y[other], "max_score_difference": max(abs(x[k] - y[k]) for k in x)})
    return sorted(rows, key=lambda r: (r["reference"] == r["artifact"], -r["max_score_difference"]))[:SHOWN]


def agreement(a: Sequence[Mapping[str, float]], b: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of two lists of {label: score}: the largest difference of a score, and the share with the same best label."""
    # the built-in max passes over NaN
    off = float(np.max([abs(x[k] - y[k]) for x, y in zip(a, b, strict=True) for k in x]))
    same = [max(x, key=x.__getitem__) == max(y, key=y.__getitem__) for x, y in zip(a, b, strict=True)]
    return {"max_score_difference": off, "agreement": sum(same) / len(same)}


def _noise_pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(7)
    pictures = []
    for number in range(count):
        side = (8, 16, 32, 64)[number % 4]
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pictures.append(small.resize((256, 192), Image.Resampling.BICUBIC))
    return pictures


def psnr(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, in dB; inf where they are equal."""
    mse = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def ssim(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Structural similarity of two uint8 pictures [height, width, 3], at most 1.

    Wang et al., "Image quality assessment", 2004, with its Gaussian window of 11 and 1.5, averaged over the channels.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = _blur(x), _blur(y)
    vx, vy, vxy = _blur(x * x) - mx**2, _blur(y * y) - my**2, _blur(x * y) - mx * my
    return float((((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def _blur(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Gaussian of sigma 1.5 over 11 pixels, where the window fits whole."""
    weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights /= weights.sum()
    rows = sum(w * image[i : image.shape[0] - 10 + i] for i, w in enumerate(weights))
    return np.asarray(sum(w * rows[:, i : rows.shape[1] - 10 + i] for i, w in enumerate(weights)))
