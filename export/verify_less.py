"""What pictures lose where some of their work is left out: measured beside those of all the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact, is_artifact
from ..core.errors import BadInput, NotFinite, ProofFailed, UsageError
from ..core.machine import LIBRARIES, describe_host, versions_of
from ..core.progress import Event, Report, silent
from ..pipelines.foreign import is_foreign
from ..pipelines.load import open_artifact
from ..pipelines.saving import Saving
from ..proof.evidence import Evidence
from ..proof.measures import open_measures
from ..proof.numeric import opened_pipeline
from ..proof.page import check_page_path, write_page
from ..proof.quality import MEASURED, compare_images
from .libraries import export_libraries

STEPS = MEASURED.steps


@dataclass(frozen=True)
class Less:
    """What is left out, and what the pictures are held to.

    saving: options of `DiffusionPipeline.generate`: step_cache, guidance_interval, guidance_every, decoder, preset.
    psnr: dB, ssim: at most 1; both on average; None: whatever they are. steps: of each picture; None: 20.
    guidance: None for the model's own; the more there is, the more is lost by leaving some of it out.
    """

    saving: Mapping[str, Any] = field(default_factory=dict)
    psnr: float | None = None
    ssim: float | None = None
    steps: int | None = None
    guidance: float | None = None

    def __bool__(self) -> bool:
        """Whether anything of it was asked for."""
        return self != Less()

    def check(self) -> None:
        """Raises:
        UsageError: nothing is left out, or in a way that makes no sense.
        """
        saving, _ = Saving.of(**self.saving)
        if saving == Saving():
            raise UsageError(
                "Nothing of the work is left out, so the pictures would be the same.",
                "Give --preset fast, --step-cache, --guidance-every, --guidance-interval or --decoder.",
            )


def verify_less(
    path: Path,
    less: Less,
    against: str | None = None,
    *,
    lpips: Path | None = None,
    clip: Path | None = None,
    html: Path | None = None,
    report: Report = silent,
) -> Artifact:
    """Draw eight pictures with some of their work left out, and compare them with the same ones of all the work.

    Nothing is written into the manifest, which says what was proved of the artifact itself.

    Args:
        against: the artifact that does all the work; None for the same one.
        lpips, clip, html: as `verify_artifact` has them.

    Returns:
        The artifact with these figures alone as its proof.

    Raises:
        BadArtifact: the files are not those that were built.
        BadInput: `against` is no artifact, or of another kind; the artifact lacks a graph or a decoder.
        UsageError: nothing is left out, or the artifact gives labels.
        ProofFailed: the pictures are further apart than `less` allows.
    """
    less.check()
    artifact = open_artifact(path)
    if html is not None:
        check_page_path(html)
    if not {"text2img", "img2img", "inpaint"} & set(artifact.pipeline["tasks"]):
        raise UsageError(f"{path} draws no pictures, of whose work something could be left out.", "Name one that does.")
    report(Event("check hashes"))
    artifact.verify(checksums=True)
    reference = _whole(artifact, against)
    with export_libraries():
        measures = open_measures(lpips, clip)
    asked: dict[str, Any] = {
        "psnr": less.psnr or 0.0,
        "ssim": less.ssim,
        "steps": STEPS if less.steps is None else less.steps,
        "guidance": less.guidance,
    }
    tolerance = replace(MEASURED, **asked)
    evidence, where = Evidence(), {"machine": describe_host(), "versions": versions_of(LIBRARIES)}
    try:
        found = compare_images(
            lambda: opened_pipeline(reference, reference), lambda: opened_pipeline(artifact, artifact),
            tolerance, report, measures, evidence, less.saving,
        )  # fmt: skip
    except (ProofFailed, NotFinite) as exc:
        if html is not None:
            failed = {**evidence.whole, **where, "status": "failed", "what": exc.what}
            write_page(replace(artifact, proof=failed), html, evidence.pairs)
        raise
    measured = replace(artifact, proof={**found, **where})
    if html is not None:
        write_page(measured, html, evidence.pairs)
    return measured


def _whole(artifact: Artifact, against: str | None) -> Artifact:
    if against is None:
        return artifact
    folder = Path(against)
    if not (folder.is_dir() and (is_artifact(folder) or is_foreign(folder))):
        raise BadInput(f"{against} is no artifact.", "Give the folder of one that does all the work, or leave it out.")
    found = open_artifact(folder)
    if found.pipeline.get("family") != artifact.pipeline["family"]:
        raise BadInput(f"{against} is another kind of model.", "Give an artifact of the same model.")
    return found
