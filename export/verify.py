"""Prove an artifact that is there already against its source or another artifact."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ..core.artifact import Artifact, is_artifact
from ..core.cache import Cache, key_of
from ..core.errors import BadInput
from ..core.progress import Event, Report, silent
from ..pipelines.foreign import is_foreign
from ..pipelines.load import open_artifact
from ..proof.numeric import prove_numbers
from ..proof.weights import FileHashes, prove_weights
from .bound import entries_for
from .graphs import export_libraries, graph_parts
from .job import find_source
from .reference import reference_artifact
from .source import Source


@export_libraries()
def verify_artifact(path: Path, against: str | None = None, report: Report = silent) -> Artifact:
    """Check the files' hashes, trace the weights to the source where it is one, and compare numbers and pictures.

    Proofs against a source are written into the artifact's manifest where it has one.

    Args:
        against: a source or another artifact; None for the source that the manifest names.

    Raises:
        BadArtifact: the files are not those that were built.
        BadInput: the source is not there, or is the artifact itself.
        ProofFailed: what differs.
    """
    artifact = open_artifact(path)
    report(Event("check hashes"))
    artifact.verify(checksums=True)
    named = against or str(artifact.model.get("source") or "")
    folder = Path(named)
    if against is None and not (named and folder.is_dir()):
        raise BadInput(
            f"The source {named!r} that the artifact names is not here.", "Give --against a source or an artifact."
        )
    if folder.is_dir() and folder.resolve() == artifact.root.resolve():
        raise BadInput(
            f"{path} would be compared with itself, which proves nothing.", "Give --against a source or an artifact."
        )
    if folder.is_dir() and (is_artifact(folder) or is_foreign(folder)):
        other = open_artifact(folder)
        return prove_numbers(artifact, other, report)  # not written: the manifest's proof is against the source
    source = find_source(named, report=report)
    ours = is_artifact(artifact.root)
    if ours:
        artifact = _trace(artifact, source, report)
    proved = prove_numbers(artifact, reference_artifact(source, artifact.pipeline), report)
    if ours:
        proved.save()
    return proved


def _trace(artifact: Artifact, source: Source, report: Report) -> Artifact:
    """Every initializer of every component traced to the source's tensor."""
    hashes, cache = FileHashes(), Cache()
    components = dict(artifact.components)
    with tempfile.TemporaryDirectory(prefix="vitrify-verify-") as side:
        for part in source.components:
            name = part.spec.name
            if name not in components or components[name].format != "onnx":
                continue
            report(Event(f"trace weights of {name}"))
            key = key_of(graph_parts(part.spec, part.config))
            entries = entries_for(part.spec, part.config, key, part.checkpoint, cache, Path(side) / name)
            components[name] = prove_weights(components[name], entries, hashes)
    return replace(artifact, components=components)
