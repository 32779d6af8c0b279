"""The proof of a denoiser in two graphs: what the prompt decides, given to the rest, makes what the whole graph gives.

Both compute what the whole graph does, node for node; on ONNX Runtime the result is bit-equal.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.artifact import Artifact, Component
from ..core.errors import BadInput
from ..pipelines.prompt_part import DETAIL, PROMPT, PromptParts
from ..runtimes.base import Session
from .cut import held_against
from .parity import Parity


def prove_prompt_part(component: Component, artifact: Artifact) -> tuple[Component, list[Parity]]:
    """The component with its numeric proof, which nothing was held against yet, and the comparisons.

    Of the two, the part that each step computes is proved, for it needs the other one: that one's proof says where.

    Raises:
        BadInput: the artifact does not have the component that it was cut from, or not the other part.
        ProofFailed: an output has another shape.
    """
    from .numeric import open_component

    name = str(component.details[DETAIL].get("of"))
    whole, parts = artifact.components.get(name), PromptParts.of(name, artifact.components)
    if whole is None or parts is None or not component.details.get("checks"):
        raise BadInput(f"{component.name} does not say what it was cut from.", "Export the model again.")
    if component.name == name + PROMPT:
        return replace(component, proof={**component.proof, "numeric": f"with {parts.step.name}"}), []

    def opener() -> Session:
        return parts.open(lambda one, changed: open_component(one), {})

    return held_against(whole, component, opener, lambda tensors, out: tensors)
