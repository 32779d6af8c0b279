"""Floating point operations of a whole call: the pipeline itself, run over graphs that are counted and not computed.

So what is counted is what is timed, for every family: how often each component is run, and at which sizes, is decided
by the pipeline's own loop.

Run as `python -m vitrify.bench.counting ARTIFACT SPEC`, with a `Spec` as JSON, it prints the number of one call.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..core.artifact import Artifact, Component
from ..core.errors import BadInput, VitrifyError
from ..core.tensors import Array, TensorSpec
from ..pipelines.load import family_of, open_artifact, pipeline_of
from ..pipelines.step_cache import StepCache
from ..runtimes.base import Placement
from .calls import call_of
from .flops import graph_work
from .matrix import task_of
from .spec import Spec

Shape = tuple[int, ...]


class CountingSession:
    """A session that answers zeros of the right shapes. flops: operations that its runs would have taken."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.flops = 0
        self._known: dict[tuple[tuple[str, int], ...], tuple[int, dict[str, Shape]]] = {}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self.component.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self.component.outputs

    @property
    def placement(self) -> Placement:
        return Placement("none", "counted", "cpu", "float32")

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Zeros for every output.

        Raises:
            BadInput, BadArtifact, MissingDependency: as `graph_work`; an input that is missing or of another size.
        """
        sizes = sizes_of(self.component, {name: np.shape(value) for name, value in tensors.items()})
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            self._known[key] = graph_work(self.component, sizes)
        flops, shapes = self._known[key]
        self.flops += flops
        unknown = [name for name in self.outputs if name not in shapes]
        if unknown:
            raise BadInput(f"The shape of {self.component.name}'s {unknown[0]} is not known.", "Report the model.")
        return {name: np.zeros(shapes[name], spec.dtype.value) for name, spec in self.outputs.items()}

    def close(self) -> None:
        """There is nothing to close."""


def sizes_of(component: Component, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The size of each symbol, found by where it stands, for other tools name symbols otherwise.

    Args:
        shapes: of every input.

    Raises:
        BadInput: an input that is missing or of another size.
    """
    sizes: dict[str, int] = {}
    for tensor, spec in component.inputs.items():
        given = shapes.get(tensor)
        if given is None or len(given) != len(spec.shape):
            raise BadInput(
                f"{component.name} takes {tensor} {list(spec.shape)}, a call gives none such.", "Export it again."
            )
        for dim, size in zip(spec.shape, given, strict=True):
            if (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) != size:
                raise BadInput(
                    f"{component.name} takes {tensor} {list(spec.shape)}, not {list(given)}.", "Give its sizes."
                )
    return sizes


def call_flops(artifact: Artifact, spec: Spec) -> int:
    """Operations of one call that `spec` describes, of an artifact in the format onnx: the call that a bench times.

    Raises:
        BadInput, BadArtifact, MissingDependency: as `graph_work`; a component is missing, the artifact does something
            else than what is asked, or how often a graph runs depends on numbers.
        UsageError: the artifact neither labels nor draws.
    """
    does = task_of(artifact)
    if does != spec.task:
        raise BadInput(f"{artifact.root} does {does}, not {spec.task}.", "Name an artifact of this task.")
    cache = spec.saved.get("step_cache")
    if cache is not None and StepCache.parse(cache).change is not None:
        raise BadInput(
            f"With a step cache of {cache} the features decide how many steps are computed whole.",
            "Count with a whole number, such as 3.",
        )
    family = family_of(artifact)
    names = [name for name in (*family.components, *family.optional) if name in artifact.components]
    sessions = {name: CountingSession(artifact.components[name]) for name in names}
    call, _ = call_of(pipeline_of(artifact, sessions), spec)
    call()
    return sum(session.flops for session in sessions.values())


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m vitrify.bench.counting ARTIFACT SPEC", file=sys.stderr)
        return 2
    try:
        print(call_flops(open_artifact(Path(arguments[0])), Spec.from_json(json.loads(arguments[1]))))
    except VitrifyError as exc:
        print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
