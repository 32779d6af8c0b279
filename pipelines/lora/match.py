"""Which weights of a model a LoRA changes: its names held against those that the components really have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...core.artifact import Component
from ...core.errors import BadInput
from ...runtimes.low_rank import without_ones
from ...runtimes.stored import StoredWeight, stored_weights
from ..random import FloatArray
from ..settings import DENOISERS
from .describe import describe_components, describe_lora
from .files import Lora, LoraLayer
from .keys import owners, spelled
from .layouts import Origin, original_names

_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Change:
    """What one layer of a LoRA adds to one weight.

    rows: (first, behind the last) of the outputs of `layer` that are this weight's, where the original has several in
    one. swapped: their halves are in the other order here.
    """

    weight: StoredWeight
    layer: LoraLayer
    rows: tuple[int, int]
    swapped: bool = False

    def factors(self) -> tuple[FloatArray, FloatArray]:
        """As `LoraLayer.factors`, the rows that are this weight's."""
        down, up = self.layer.factors()
        up = up[slice(*self.rows)]
        if self.swapped:
            up = np.concatenate(np.split(up, 2)[::-1])
        return down, up


def match(lora: Lora, components: Mapping[str, Component]) -> dict[str, list[Change]]:
    """Component -> what a LoRA adds to its weights.

    Args:
        components: of an artifact; those that a LoRA may be for are looked at.

    Raises:
        BadInput: a layer has no owner, or another shape than its owner; says what the LoRA looks made for.
        UsageError: a component's weights cannot be changed (a plan).
        BadArtifact: a graph does not load.
    """
    tables: dict[str, _Table] = {}
    found: dict[str, list[Change]] = {}
    unknown: list[str] = []
    for name, layer in lora.layers.items():
        candidates, rest = owners(name)
        for candidate in candidates:
            if candidate not in components:
                continue
            if candidate not in tables:
                tables[candidate] = _Table(candidate, stored_weights(components[candidate]))
            origin = tables[candidate].names.get(rest)
            if origin is not None:
                found.setdefault(candidate, []).extend(tables[candidate].changes(lora, layer, origin, components))
                break
        else:
            unknown.append(name)
    if unknown:
        raise _no_owner(lora, components, unknown)
    return found


class _Table:
    """A component's weights under every name that a LoRA may have for them."""

    def __init__(self, component: str, weights: Mapping[str, StoredWeight]) -> None:
        self._component = component
        self._layers = {n.removesuffix(".weight"): w for n, w in weights.items() if n.endswith(".weight")}
        self.names: dict[str, Origin] = {}
        if component in DENOISERS:
            self.names = {spelled(name): origin for name, origin in original_names(self._layers).items()}
        self.names |= {spelled(layer): Origin((layer,)) for layer in self._layers}

    def changes(
        self, lora: Lora, layer: LoraLayer, origin: Origin, components: Mapping[str, Component]
    ) -> list[Change]:
        weights = [self._layers[name] for name in origin.layers]
        outputs = [_outputs(weight, layer) for weight in weights]
        total = layer.up.shape[0]
        if len(weights) == 1:
            outputs = [total]
        if sum(outputs) != total or not all(
            _fits(w, (n, *layer.sizes[1:])) for w, n in zip(weights, outputs, strict=True)
        ):
            raise _wrong_shape(lora, layer, self._component, weights, components)
        ends = np.cumsum(outputs).tolist()
        rows = [(end - size, end) for end, size in zip(ends, outputs, strict=True)]
        return [Change(w, layer, r, origin.swapped) for w, r in zip(weights, rows, strict=True)]


def _outputs(weight: StoredWeight, layer: LoraLayer) -> int:
    """How many outputs a part of a layer that was split has: as many as make its numbers, given the inputs."""
    inputs = math.prod(layer.sizes[1:])
    return math.prod(weight.shape) // inputs if weight.shape is not None else 0


def _fits(weight: StoredWeight, sizes: tuple[int, ...]) -> bool:
    """Whether the sizes are the weight's; of one in few bits, which may lie transposed, the runtime looks again."""
    if weight.shape is None:
        return True
    if weight.entry is not None:
        return without_ones(weight.shape) == without_ones(sizes)
    return math.prod(weight.shape) == math.prod(sizes)


def _wrong_shape(
    lora: Lora, layer: LoraLayer, component: str, weights: list[StoredWeight], components: Mapping[str, Component]
) -> BadInput:
    has = " and ".join(f"{w.name} {list(w.shape or ())}" for w in weights)
    return BadInput(
        f"The LoRA {lora.name} changes {layer.name}, a weight of shape {list(layer.sizes)}; {component} has {has}. "
        f"{describe_lora(lora)}; {describe_components(components)}.",
        "Use a LoRA that was made for this model.",
    )


def _no_owner(lora: Lora, components: Mapping[str, Component], unknown: list[str]) -> BadInput:
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    share = "none" if len(unknown) == len(lora.layers) else f"{len(lora.layers) - len(unknown)}"
    return BadInput(
        f"The LoRA {lora.name} has {len(lora.layers)} layers, of which this model has {share}; it lacks "
        f"{', '.join(unknown[:_SHOWN])}{more}. {describe_lora(lora)}; {describe_components(components)}.",
        "Use a LoRA that was made for this model.",
    )
