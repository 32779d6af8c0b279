"""The source itself as an artifact in memory: what PyTorch computes, behind the same contracts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from .source import Source


def reference_artifact(source: Source, pipeline: Mapping[str, Any]) -> Artifact:
    """The source's components in the format `torch`, with an artifact's pipeline settings. Nothing is written."""
    components = {}
    for part in source.components:
        # a component of another model that completes a single checkpoint lies in that model's folder
        inside = part.config_path.is_relative_to(source.folder)
        root = source.folder if inside else part.config_path.parent
        path = part.config_path.relative_to(root).as_posix()
        component = part.spec.component(part.config, "torch", path, root, ())
        details = component.details | ({"variant": part.variant} if part.variant else {})
        # the libraries read the file themselves, by their own names of its tensors
        details |= {"single_file": str(part.file)} if part.file else {}
        components[part.spec.name] = replace(component, details=details)
    return Artifact(
        root=Path(source.folder),
        id="",
        model={"source": source.given, "architecture": source.architecture, "revision": source.revision},
        pipeline=dict(pipeline),
        components=components,
    )
