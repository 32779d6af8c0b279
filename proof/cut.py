"""The proof of a graph that takes deep features: with those that the whole graph gave, it gives what that one did."""

from __future__ import annotations

from dataclasses import replace

from ..core.artifact import Artifact, Component
from ..core.errors import BadInput
from ..pipelines.step_cache import DEEP
from .parity import Parity, compare, sample_inputs


def prove_cut(component: Component, artifact: Artifact) -> tuple[Component, list[Parity]]:
    """The component with its numeric proof, which nothing was held against yet, and the comparisons.

    Raises:
        BadInput: the artifact does not have the component that it was cut from.
        ProofFailed: an output has another shape.
    """
    from .numeric import open_component, summary

    whole = artifact.components.get(str(component.details.get("step_cache", {}).get("of")))
    checks = component.details.get("checks")
    if whole is None or not checks:
        raise BadInput(f"{component.name} does not say what it was cut from.", "Export the model again.")
    expected = open_component(whole)
    try:
        given = open_component(component)
        try:
            found = []
            for number, sizes in enumerate(checks):
                tensors = sample_inputs(whole, sizes, seed=number)
                out = expected.run(tensors)
                got = given.run({n: out[n] if n == DEEP else tensors[n] for n in component.inputs})
                found += [compare(name, out[name], got[name], sizes) for name in component.outputs]
        finally:
            given.close()
    finally:
        expected.close()
    told = summary(found, f"{whole.name} of the same artifact")
    return replace(component, proof={**component.proof, "numeric": told}), found
