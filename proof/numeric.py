"""The numeric proof: real weights through reference and artifact; components, then pictures or labels."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..core.artifact import NOT_RUN, Artifact, Component
from ..core.device import Device
from ..core.errors import BadInput, NotFinite, ProofFailed
from ..core.machine import LIBRARIES, describe_host, versions_of
from ..core.progress import Event, Report, silent
from ..core.registry import load_runtime, runtime_for
from ..pipelines.components import Components, Opener
from ..pipelines.load import family_of, pipeline_of
from ..pipelines.prompt_part import is_cut, is_part
from ..quant.recipes import RECIPES, recipe
from ..runtimes.base import Options, Session
from .cut import prove_cut
from .evidence import Evidence
from .measures import Measure
from .parity import Parity, Sizes, parity, require, require_finite
from .prompt_part import prove_prompt_part
from .quality import EXACT, MEASURED, Tolerance, compare_images, compare_labels

NUMERIC_LIMIT = 1_000_000_000  # bytes of memory that a numeric proof may need without being asked for
_LEAN = Options(prepack=False, arena=False)


def prove_numbers(
    artifact: Artifact,
    reference: Artifact,
    report: Report = silent,
    tolerance: Tolerance = EXACT,
    *,
    measures: Mapping[str, Measure] | None = None,
    evidence: Evidence | None = None,
) -> Artifact:
    """Compare every component and the whole pipeline with the reference; returns the artifact with its proofs.

    Components are opened one at a time, so that the memory is that of the largest and its reference. What is rounded
    is held to its pictures or labels, the rest also to its numbers. What merges other tokens than its reference is held
    to nothing: how far that takes the pictures is measured.

    Args:
        measures: of pictures, besides PSNR and SSIM.
        evidence: takes the pictures, and the figures also where the proof fails.

    Raises:
        ProofFailed: an output, a picture or a label is out of tolerance.
        BadInput: the two artifacts do not have the same components.
    """
    missing = [n for n, c in artifact.components.items() if n not in reference.components and not is_cut(c)]
    if missing or artifact.pipeline["family"] != reference.pipeline["family"]:
        raise BadInput(
            f"The reference {reference.root} is another kind of model (no {', '.join(missing) or 'such family'}).",
            "Give the source that this artifact was exported from.",
        )
    seen = evidence if evidence is not None else Evidence()
    if not all(
        _merge_alike(c, other) for n, c in artifact.components.items() if (other := reference.components.get(n))
    ):
        tolerance = MEASURED
    # the figures of an earlier proof say nothing of this one
    components = {n: replace(c, proof={**c.proof, "numeric": NOT_RUN}) for n, c in artifact.components.items()}
    kept = {k: v for k, v in artifact.proof.items() if k not in ("status", "what", "peak_memory_mb")}
    where = {"machine": describe_host(), "versions": versions_of(LIBRARIES)}
    try:
        with peak_memory() as peak:
            for number, (name, component) in enumerate(artifact.components.items()):
                report(Event(f"compare {name}", number, len(artifact.components), "components"))
                if is_cut(component):  # out of another component, which is compared whole
                    prove = prove_prompt_part if is_part(component) else prove_cut
                    components[name], found = prove(component, artifact)
                    try:
                        (require if exact(component) else require_finite)(name, found)
                    except ProofFailed:
                        components[name] = _marked(components[name])
                        raise
                    continue
                other = reference.components[name]
                components[name], found = _component(component, other)
                try:
                    held = exact(component) and _merge_alike(component, other)
                    (require if held else require_finite)(name, found)
                except ProofFailed:
                    components[name] = _marked(components[name])
                    raise
            sides = (lambda: opened_pipeline(artifact, reference)), (lambda: opened_pipeline(artifact, artifact))
            whole: dict[str, Any] = {}
            if "classify" in artifact.pipeline["tasks"]:
                report(Event("compare pipelines"))
                whole = compare_labels(*sides, tolerance, report, seen)
            elif "control" not in artifact.pipeline["tasks"]:  # a ControlNet alone draws nothing
                report(Event("compare pipelines"))
                whole = compare_images(*sides, tolerance, report, measures, seen)
    except (ProofFailed, NotFinite) as exc:
        kept |= {k: NOT_RUN for k in ("images", "labels") if k in kept}
        proof = {**kept, **seen.whole, **where, "status": "failed", "what": exc.what}
        seen.artifact = replace(artifact, components=components, proof=proof)
        raise
    proof = {**kept, **whole, **where, "peak_memory_mb": round(peak["bytes"] / 1e6)}
    seen.artifact = replace(artifact, components=components, proof=proof)
    return seen.artifact


def _component(component: Component, reference: Component) -> tuple[Component, list[Parity]]:
    """The component with its numeric proof, which nothing was held against yet, and the comparisons."""
    checks = reference.details.get("checks") or component.details.get("checks")
    if not checks:
        raise BadInput(f"{component.name} names no sizes to compare at.", "Give --against the source's folder.")
    # what draws the inputs must know their ranges, which a folder written by others does not say
    drawn = replace(component, details=reference.details | component.details)
    found, computed_by = compared(drawn, reference, checks)
    return replace(component, proof={**component.proof, "numeric": summary(found, computed_by)}), found


def _marked(component: Component) -> Component:
    """The component with its numeric proof marked as failed."""
    numeric = {**component.proof["numeric"], "status": "failed"}
    return replace(component, proof={**component.proof, "numeric": numeric})


def tolerance_of(artifact: Artifact) -> Tolerance:
    """The tolerance of the recipe that the artifact was compiled with."""
    rounded = [c.precision.get("recipe") for c in artifact.components.values() if not exact(c)]
    known = [recipe(str(r)) for r in rounded if str(r).partition(":")[0] in RECIPES]
    return Tolerance.of(min(known, key=lambda r: r.min_psnr)) if known else EXACT


def exact(component: Component) -> bool:
    """Whether a component computes its source's own numbers, up to the order of additions."""
    precision = component.precision
    few = ("int", "nf", "fp8", "uint")
    return not any(str(precision.get(key, "")).startswith(few) for key in ("weights", "activations"))


def _merge_alike(component: Component, reference: Component) -> bool:
    """Whether both merge the same share of tokens, which their kinds name (`unet:tome=0.5`), or none."""
    has, wants = (str(one.details.get("kind", "")).partition(":")[2] for one in (component, reference))
    return has == wants


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
    """The worst of several comparisons, and all of them; None for what is no number."""
    worst = max(found, key=lambda p: p.relative)
    figures = {"max_abs": worst.max_abs, "relative": worst.relative, "cosine": min(p.cosine for p in found)}
    numbers = all(math.isfinite(p.max_abs) for p in found)  # of NaN there is no least
    finite = [p.snr_db for p in found if math.isfinite(p.snr_db)] if numbers else []
    return {
        "reference": reference,
        **{k: v if numbers and math.isfinite(v) else None for k, v in figures.items()},
        "snr_db": min(finite) if finite else None,
        "outputs": [p.to_json() for p in found],
    }


def open_component(component: Component) -> Session:
    """The component on the CPU, with as little memory as its runtime can do with."""
    session: Session = load_runtime(runtime_for(component.format)).open(component, Device("cpu"), _LEAN)
    return session


@contextmanager
def opened_pipeline(artifact: Artifact, one: Artifact) -> Iterator[Any]:
    """The components of `one` with the artifact's settings and tokenizer: what is compared is what they compute."""
    family = family_of(artifact)
    names = [n for n in (*family.components, *family.optional) if n in artifact.components]

    def opener(name: str) -> Opener:
        return lambda changed: open_component(one.components[name])

    # opened when they are asked for: what nothing here uses costs no memory
    sessions = Components({name: opener(name) for name in names})
    try:
        yield pipeline_of(artifact, sessions)
    finally:
        sessions.close()


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
    """Resident memory of this process in bytes; elsewhere than on Linux its peak so far, 0 where nothing tells it."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
