"""LoRAs, each with its strengths, to changed weights: what `Runtime.open` takes as overrides.

Weights in float come out merged, as diffusers' `fuse_lora` makes them: float32 sums, rounded once to what is stored.
For weights in few bits, which a small change would not move, a branch beside the layer comes out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.artifact import Component
from ...core.errors import BadInput
from ...core.safetensors_header import read_tensor
from ...runtimes.low_rank import LowRank, Override, fingerprint
from ...runtimes.stored import stored_weights
from ..random import FloatArray
from ..settings import DENOISERS
from .files import Lora
from .match import Change, match


@dataclass(frozen=True)
class LoraUse:
    """A LoRA and how strongly it is laid on. text_strength: of the text encoders; None: as the rest."""

    lora: Lora
    strength: float = 1.0
    text_strength: float | None = None

    def strength_of(self, component: str) -> float:
        return self.strength if component in DENOISERS or self.text_strength is None else self.text_strength


class Changes(Mapping[str, Override]):
    """The changed weights of one component by name, each computed when it is asked for.

    So a large model's are not all in memory at once: an adapter rounds one before it asks for the next.
    """

    def __init__(self, parts: Mapping[str, Sequence[tuple[Change, float]]]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, name: str) -> Override:
        parts = self._parts[name]
        weight = parts[0][0].weight
        if weight.entry is None:
            return LowRank.joined([_branch(change, strength) for change, strength in parts])
        merged: FloatArray = read_tensor(weight.entry, "float32")
        for change, strength in parts:
            down, up = change.factors()
            product = (up * np.float32(strength)) @ down.reshape(len(down), -1)
            merged += product.reshape(merged.shape)
        return merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # the mixin's own would compute the weight

    def fingerprint(self) -> list[list[Any]]:
        """What tells these changes from any others of the same component, from the small matrices alone.

        Raises:
            BadInput, DiskError: a LoRA's file changed or the disk failed.
        """
        return [
            [name, strength, *fingerprint(LowRank(*change.factors()))]
            for name, parts in self._parts.items()
            for change, strength in parts
        ]


def lora_overrides(components: Mapping[str, Component], uses: Sequence[LoraUse]) -> dict[str, Changes]:
    """Component -> its changed weights, of those that change. Several LoRAs add up; one of strength 0 adds nothing.

    Args:
        components: of an artifact.

    Raises:
        BadInput: a LoRA that was made for another model, or a strength that is no number.
        UsageError: a component's weights cannot be changed (a plan).
        BadArtifact: a graph does not load.
    """
    parts: dict[str, dict[str, list[tuple[Change, float]]]] = {}
    for use in uses:
        for component, changes in match(use.lora, components).items():
            strength = use.strength_of(component)
            if not math.isfinite(strength):
                raise BadInput(f"The strength of {use.lora.name} is {strength}.", "Give a number near 1.")
            if strength == 0:
                continue
            for change in changes:
                parts.setdefault(component, {}).setdefault(change.weight.name, []).append((change, strength))
    for name, part in components.items():
        whole = part.details.get("step_cache", {}).get("of")
        if whole in parts:  # it computes with some of the same weights
            own = stored_weights(part)
            parts[name] = {weight: changes for weight, changes in parts[whole].items() if weight in own}
    return {component: Changes(weights) for component, weights in parts.items()}


def _branch(change: Change, strength: float) -> LowRank:
    down, up = change.factors()
    return LowRank(down, up * np.float32(strength))
