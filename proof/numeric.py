"""The numeric proof: real weights through reference and artifact; components, then pictures or labels."""

from __future__ import annotations

import math
import resource
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ..core.artifact import Artifact, Component
from ..core.device import Device
from ..core.errors import BadInput, ProofFailed
from ..core.progress import Event, Report, silent
from ..core.registry import load_runtime, runtime_for
from ..pipelines.load import family_of, pipeline_of
from ..runtimes.base import Options, Session
from .parity import Parity, Sizes, parity, require

MIN_PSNR = 50.0  # dB, between the reference's pictures and the artifact's
MAX_SCORE = 1e-3  # largest difference of a label's score
STEPS = 4
PROMPTS = ("a red apple", "a smiling face, very happy")
_LEAN = Options(prepack=False, arena=False)


def prove_numbers(artifact: Artifact, reference: Artifact, report: Report = silent) -> Artifact:
    """Compare every component and the whole pipeline with the reference; returns the artifact with its proofs.

    Components are opened one at a time, so that the memory is that of the largest and its reference.

    Raises:
        ProofFailed: an output, a picture or a label is out of tolerance.
        BadInput: the two artifacts do not have the same components.
    """
    missing = [n for n in artifact.components if n not in reference.components]
    if missing or artifact.pipeline["family"] != reference.pipeline["family"]:
        raise BadInput(
            f"The reference {reference.root} is another kind of model (no {', '.join(missing) or 'such family'}).",
            "Give the source that this artifact was exported from.",
        )
    with peak_memory() as peak:
        components = {}
        for number, (name, component) in enumerate(artifact.components.items()):
            report(Event(f"compare {name}", number, len(artifact.components), "components"))
            components[name] = _component(component, reference.components[name])
        report(Event("compare pipelines"))
        whole = (_labels if "classify" in artifact.pipeline["tasks"] else _images)(artifact, reference)
    proof = {**artifact.proof, **whole, "peak_memory_mb": round(peak["bytes"] / 1e6)}
    return replace(artifact, components=components, proof=proof)


def _component(component: Component, reference: Component) -> Component:
    checks = reference.details.get("checks") or component.details.get("checks")
    if not checks:
        raise BadInput(f"{component.name} names no sizes to compare at.", "Give --against the source's folder.")
    # what draws the inputs must know their ranges, which a folder written by others does not say
    drawn = replace(component, details=reference.details | component.details)
    found, computed_by = compared(drawn, reference, checks)
    require(component.name, found)
    return replace(component, proof={**component.proof, "numeric": summary(found, computed_by)})


def compared(component: Component, reference: Component, checks: Sequence[Sizes]) -> tuple[list[Parity], str]:
    """Both components opened and run at these sizes; the comparisons, and what the reference ran on.

    Raises:
        ProofFailed: an output has another shape than the reference's.
    """
    expected = open_component(reference)
    try:
        given = open_component(component)
        try:
            found = parity(component, expected, given, checks)
        finally:
            given.close()
    finally:
        expected.close()
    return found, f"{expected.placement.runtime} {expected.placement.precision}"


def summary(found: Sequence[Parity], reference: str) -> dict[str, Any]:
    """The worst of several comparisons, and all of them."""
    worst = max(found, key=lambda p: p.relative)
    finite = [p.snr_db for p in found if math.isfinite(p.snr_db)]
    return {
        "reference": reference,
        "max_abs": worst.max_abs,
        "relative": worst.relative,
        "cosine": min(p.cosine for p in found),
        "snr_db": min(finite) if finite else None,
        "outputs": [p.to_json() for p in found],
    }


def open_component(component: Component) -> Session:
    """The component on the CPU, with as little memory as its runtime can do with."""
    session: Session = load_runtime(runtime_for(component.format)).open(component, Device("cpu"), _LEAN)
    return session


def _pipeline(artifact: Artifact, one: Artifact) -> Any:
    """The components of `one` with the artifact's settings and tokenizer: what is compared is what they compute."""
    return pipeline_of(artifact, {n: open_component(one.components[n]) for n in family_of(artifact).components})


def _images(artifact: Artifact, reference: Artifact) -> dict[str, Any]:
    latents = artifact.pipeline["latents"]
    unit = int(latents["scale"]) * max(8, int(latents.get("multiple", 1)))
    sizes = [(unit, 2 * unit), (2 * unit, unit)]
    drawn: list[list[Image.Image]] = []
    for one in (reference, artifact):
        pipeline = _pipeline(artifact, one)
        try:
            drawn.append(
                [
                    image
                    for seed, (prompt, (width, height)) in enumerate(zip(PROMPTS, sizes, strict=True))
                    for image in pipeline.generate(
                        prompt, negative_prompt="blurry", width=width, height=height, steps=STEPS, seed=seed
                    ).images
                ]
            )
        finally:
            pipeline.close()
    values = [psnr(np.asarray(a), np.asarray(b)) for a, b in zip(*drawn, strict=True)]
    worst = min(values)
    if worst < MIN_PSNR:
        raise ProofFailed(
            f"A picture differs from the reference's: PSNR {worst:.1f} dB, at least {MIN_PSNR:.0f} is asked for.",
            "Nothing was published. Report the model's config.json and `vitrify doctor`.",
        )
    return {"images": {"pictures": len(values), "steps": STEPS, "min_psnr_db": worst if math.isfinite(worst) else None}}


def _labels(artifact: Artifact, reference: Artifact) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    pictures = []
    for side in (8, 16, 32, 64):
        small = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pictures.append(small.resize((256, 192), Image.Resampling.BICUBIC))
    read = []
    for one in (reference, artifact):
        pipeline = _pipeline(artifact, one)
        try:
            answers = pipeline.classify(pictures, top_k=None)
        finally:
            pipeline.close()
        read.append([{r["label"]: r["score"] for r in a} for a in answers])
    off = max(abs(a[k] - b[k]) for a, b in zip(*read, strict=True) for k in a)
    same = all(max(a, key=a.__getitem__) == max(b, key=b.__getitem__) for a, b in zip(*read, strict=True))
    if not same or not off <= MAX_SCORE:
        raise ProofFailed(
            f"Labels differ from the reference's: a score is off by {off:.2g}, at most {MAX_SCORE:g} is allowed.",
            "Nothing was published. Report the model's config.json and `vitrify doctor`.",
        )
    return {"labels": {"pictures": len(pictures), "max_score_difference": off}}


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures of one shape, in dB; inf where they are equal."""
    mse = float(((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Peak resident memory of this process while it lasts, in bytes, under "bytes"; sampled where Linux tells it."""
    found = {"bytes": _resident()}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found["bytes"] = max(found["bytes"], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _resident() -> int:
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
