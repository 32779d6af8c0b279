"""The proof of a graph that takes deep features: with those that the whole graph gave, it gives what that one did.

A UNet's are taken as they are, and on ONNX Runtime the two are bit-equal. A transformer's are a difference that is
added again: each number of the tokens behind the last block is rounded twice more, which moves it by at most 2^-24 of
its own size and of the difference's, and a projection sums such errors. That is far within the `TOLERANCE` of any
component, to which the shallow one is held. Where activations are rounded to int8, a number that lay at the edge of a
step may fall over it, which is a whole step in that number: such a component is not held to a tolerance, nor is its
whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..core.artifact import Artifact, Component
from ..core.errors import BadInput
from ..core.tensors import Array
from ..pipelines.step_cache import DEEP
from ..runtimes.base import Session
from .parity import Parity, compare, sample_inputs

Tensors = Mapping[str, Array]


def prove_cut(component: Component, artifact: Artifact) -> tuple[Component, list[Parity]]:
    """The component with its numeric proof, which nothing was held against yet, and the comparisons.

    Raises:
        BadInput: the artifact does not have the component that it was cut from.
        ProofFailed: an output has another shape.
    """
    from .numeric import open_component

    whole = artifact.components.get(str(component.details.get("step_cache", {}).get("of")))
    if whole is None or not component.details.get("checks"):
        raise BadInput(f"{component.name} does not say what it was cut from.", "Export the model again.")

    def taken(tensors: Tensors, out: Tensors) -> Tensors:
        return {n: out[n] if n == DEEP else tensors[n] for n in component.inputs}

    return held_against(whole, component, lambda: open_component(component), taken)


def held_against(
    whole: Component, component: Component, opener: Callable[[], Session], taken: Callable[[Tensors, Tensors], Tensors]
) -> tuple[Component, list[Parity]]:
    """The component with its numeric proof: what `opener` opens gives what the whole graph does, at its checks' sizes.

    Args:
        taken: from the whole graph's inputs and outputs to the inputs of the other.

    Raises:
        ProofFailed: an output has another shape.
    """
    from .numeric import open_component, summary

    found = []
    expected = open_component(whole)
    try:
        given = opener()
        try:
            for number, sizes in enumerate(component.details["checks"]):
                tensors = sample_inputs(whole, sizes, seed=number)
                out = expected.run(tensors)
                got = given.run(taken(tensors, out))
                found += [compare(name, out[name], got[name], sizes) for name in component.outputs]
        finally:
            given.close()
    finally:
        expected.close()
    told = summary(found, f"{whole.name} of the same artifact")
    return replace(component, proof={**component.proof, "numeric": told}), found
