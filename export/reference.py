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
        path = part.config_path.relative_to(source.folder).as_posix()
        component = part.spec.component(part.config, "torch", path, source.folder, ())
        details = component.details | ({"variant": part.variant} if part.variant else {})
        components[part.spec.name] = replace(component, details=details)
    return Artifact(
        root=Path(source.folder),
        id="",
        model={"source": source.given, "architecture": source.architecture, "revision": source.revision},
        pipeline=dict(pipeline),
        components=components,
    )
