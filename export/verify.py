"""Prove an artifact that is there already against its source or another artifact."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact, Component, is_artifact
from ..core.cache import Cache, key_of
from ..core.errors import BadInput, NotFinite, ProofFailed, UsageError
from ..core.progress import Event, Report, silent
from ..pipelines.control import is_residual
from ..pipelines.foreign import is_foreign
from ..pipelines.load import open_artifact
from ..pipelines.prompt_part import DETAIL, is_cut
from ..pipelines.step_cache import SHALLOW
from ..proof.evidence import Evidence, keep_pictures, remove_pictures
from ..proof.measures import Measure, open_measures
from ..proof.numeric import exact, prove_numbers, tolerance_of
from ..proof.page import check_page_path, write_page
from ..proof.weights import FileHashes, prove_weights
from .bound import entries_for
from .changed import Changes
from .given import refuse_source_options
from .graphs import graph_parts
from .job import find_source, hub_source
from .libraries import export_libraries
from .reference import reference_artifact
from .single_file.source import SINGLE_FILES
from .source import Source, with_residuals

AGAINST = "give --against a source or an artifact"


@export_libraries()
def verify_artifact(
    path: Path,
    against: str | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    lpips: Path | None = None,
    clip: Path | None = None,
    html: Path | None = None,
    report: Report = silent,
) -> Artifact:
    """Check the files' hashes, trace the weights to the source where it is one, and compare numbers and pictures.

    Proofs against a source are written into the artifact's manifest where it has one, and its pictures beside it; those
    against another artifact are not: what the manifest says is said of its source.

    Args:
        against: a source or another artifact; None for the source that the manifest names.
        revision, variant: of the source; None for those that the manifest names where it is its own source.
        token, offline: of the hub, where the source is a hub id; see `fetch`.
        lpips: a folder with the weights of LPIPS, see `Lpips`; the pictures are also measured with it.
        clip: a folder with a CLIP model, see `Clip`; the pictures are also measured with it.
        html: a file to write the proofs to, with pictures, as a page; also where a proof fails.

    Raises:
        BadArtifact: the files are not those that were built.
        BadInput: the source is not there, or is the artifact itself; a folder of weights is no good.
        UsageError: `lpips` or `clip` for an artifact that draws no pictures; `revision` or `variant` of an artifact.
        ProofFailed: what differs.
    """
    artifact = open_artifact(path)
    if against is not None:
        refuse_source_options(Path(against), revision, variant)
    if html is not None:
        check_page_path(html)
    if (lpips or clip) and "classify" in artifact.pipeline["tasks"]:
        raise UsageError(f"{path} gives labels; LPIPS and CLIP score are of pictures.", "Leave --lpips and --clip out.")
    with export_libraries():
        looks = _Looks(open_measures(lpips, clip), report)
        try:
            proved = _verify(artifact, path, against, revision, variant, token, offline, looks)
        except (ProofFailed, NotFinite) as exc:
            if html is not None:
                failed = replace(artifact, proof={**artifact.proof, "status": "failed", "what": exc.what})
                write_page(looks.evidence.artifact or failed, html, looks.evidence.pairs)
            raise
    if html is not None:
        write_page(proved, html, looks.evidence.pairs)
    return proved


@dataclass(frozen=True)
class _Looks:
    """What is measured, and where what was seen goes."""

    measures: Mapping[str, Measure]
    report: Report
    evidence: Evidence = field(default_factory=Evidence)

    def prove(self, artifact: Artifact, reference: Artifact) -> Artifact:
        return prove_numbers(
            artifact,
            reference,
            self.report,
            tolerance_of(artifact),
            measures=self.measures,
            evidence=self.evidence,
        )


def _verify(
    artifact: Artifact,
    path: Path,
    against: str | None,
    revision: str | None,
    variant: str | None,
    token: str | None,
    offline: bool | None,
    looks: _Looks,
) -> Artifact:
    report = looks.report
    report(Event("check hashes"))
    artifact.verify(checksums=True)
    commit = artifact.model.get("revision")  # only what came from the hub has one
    named = against or str(artifact.model.get("source") or "")
    folder = Path(named)
    if (against is not None or not commit) and named and folder.is_dir():
        if folder.resolve() == artifact.root.resolve():
            raise BadInput(f"{path} would be compared with itself, which proves nothing.", f"{AGAINST.capitalize()}.")
        if is_artifact(folder) or is_foreign(folder):
            return looks.prove(artifact, open_artifact(folder))
    if against is None:
        variant = variant or artifact.model.get("variant")
        source = _own_source(artifact, revision or commit, variant, token, offline, report)
    else:
        said = _said(artifact) if folder.is_file() else {}
        source = find_source(
            named, revision=revision, variant=variant, token=token, offline=offline, report=report, **said
        )
    source = _as_exported(source, artifact, token, offline, report)
    ours = is_artifact(artifact.root)
    if ours:
        artifact = _trace(artifact, source, report)
    proved = looks.prove(artifact, reference_artifact(source, artifact.pipeline))
    if ours:
        proved = keep_pictures(proved, looks.evidence.pairs)
        proved.save()
        remove_pictures(artifact, proved)
    return proved


def _own_source(
    artifact: Artifact,
    revision: str | None,
    variant: str | None,
    token: str | None,
    offline: bool | None,
    report: Report,
) -> Source:
    """The source that the manifest names: a folder, or a hub id at the commit that was exported.

    Raises:
        BadInput: it is not there; says where it was looked for.
    """
    named = str(artifact.model.get("source") or "")
    if artifact.model.get("revision"):
        try:
            return hub_source(named, revision=revision, variant=variant, token=token, offline=offline, report=report)
        except BadInput as exc:
            raise BadInput(
                f"The artifact's source, {named} at revision {revision} on the hub, could not be had. {exc.what}",
                f"{exc.fix} Or {AGAINST}.",
            ) from exc
    folder = Path(named)
    if not named or not folder.exists():
        kind = "file" if folder.suffix in SINGLE_FILES else "folder"
        what = f"The artifact names the source {named!r}, but there is no {kind} {folder.absolute()}."
        fix = f"Run it in the folder where {named!r} is, or {AGAINST}."
        if folder.is_absolute():
            fix = f"{AGAINST.capitalize()}."
        if not named:
            what, fix = "The artifact names no source.", f"{AGAINST.capitalize()}."
        raise BadInput(what, fix)
    return find_source(named, revision=revision, variant=variant, report=report, **_said(artifact))


def _said(artifact: Artifact) -> dict[str, Any]:
    """What was said of the single checkpoint that an artifact was exported from."""
    return {name: artifact.model[name] for name in ("config", "prediction_type") if artifact.model.get(name)}


def _as_exported(source: Source, artifact: Artifact, token: str | None, offline: bool | None, report: Report) -> Source:
    """The source with what the artifact's export changed of its own."""
    if source.family != artifact.pipeline["family"]:
        return source  # told when the two are compared
    source = Changes.of(artifact.model).apply(source, token=token, offline=offline, report=report)
    controlled = any(is_residual(name) for component in artifact.components.values() for name in component.inputs)
    return with_residuals(source) if controlled else source


def _trace(artifact: Artifact, source: Source, report: Report) -> Artifact:
    """Every initializer of every ONNX component traced to the source's tensor; a note says which are not."""
    hashes, cache = FileHashes(), Cache()
    parts = {part.spec.name: part for part in source.components}
    components = dict(artifact.components)
    with tempfile.TemporaryDirectory(prefix="vitrify-verify-") as side:
        for name, component in artifact.components.items():
            if is_cut(component):
                continue  # the weights of the whole one
            if component.format != "onnx" or name not in parts or not exact(component):
                kind = component.format if exact(component) else f"{component.precision.get('recipe')}"
                why = f"it is {kind}, not onnx in float" if name in parts else "the source has no such component"
                report(Event("trace weights", note=f"the weights of {name} are not traced: {why}"))
                continue
            part = parts[name]
            report(Event(f"trace weights of {name}"))
            key = key_of(graph_parts(part.spec, part.config))
            folder = Path(side) / name
            entries = entries_for(part.spec, part.config, key, part.tensors(folder), cache, folder)
            components[name] = prove_weights(component, entries, hashes)
            for cut in [c for c in components.values() if _whole(c).removesuffix(SHALLOW) == name and c.name != name]:
                components[cut.name] = replace(cut, proof={**cut.proof, "weights": components[name].proof["weights"]})
    return replace(artifact, components=components)


def _whole(component: Component) -> str:
    """The name of the component that this one was cut out of, its own where it was not."""
    return str(component.details.get(DETAIL, {}).get("of", component.name))
