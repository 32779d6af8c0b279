"""What a new artifact says of itself: the id of what it was built from, by what, and where."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.artifact import NOT_RUN, Artifact, Component, Json, hash_file
from ..core.machine import LIBRARIES, describe_host, versions_of


def built_files(components: Mapping[str, Component]) -> list[Any]:
    """[name, the graph's sha256, those of the weights] of each component, by name."""
    return [
        [name, hash_file(component.graph_path), [w.sha256 for w in component.weights]]
        for name, component in sorted(components.items())
    ]


def new_artifact(
    root: Path,
    components: Mapping[str, Component],
    inputs: Sequence[Any],
    command: Sequence[str],
    *,
    model: Mapping[str, Any],
    pipeline: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    origin: Json | None = None,
) -> Artifact:
    """An artifact of components that lie below `root`, whose whole was not proved yet.

    Args:
        inputs: what the id is made of, each as JSON.
        command: the words of the command line that makes the artifact again.
        origin: of what it was compiled from: id and command.
    """
    digest = hashlib.sha256()
    for part in inputs:
        digest.update(json.dumps(part, sort_keys=True).encode())
    versions = versions_of(LIBRARIES)
    built = {
        "by": f"vitrify {versions.get('vitrify', '')}".strip(),
        "versions": versions,
        "command": shlex.join(command),
    }
    return Artifact(
        root=root,
        id=digest.hexdigest(),
        model=dict(model),
        pipeline=dict(pipeline),
        components=dict(components),
        proof={"images": NOT_RUN, "labels": NOT_RUN, "machine": describe_host(), "versions": versions},
        evaluation=dict(evaluation or {}),
        built=built if origin is None else {**built, "from": origin},
    )
