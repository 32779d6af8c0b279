"""A low-rank change of a layer, as a second branch beside it: layer(x) + up(down(x)).

For weights that cannot be replaced by name, because they are stored in few bits: adding to them would round the change
away. The layer stays as it is, and the branch computes in float32 on the layer's input before any rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import BadInput, UsageError
from ..core.tensors import Array


@dataclass(frozen=True, eq=False)
class LowRank:
    """The two factors.

    down: float32 [rank, in] of a linear layer, [rank, in, height, width] of a convolution, whose stride, padding and
        dilation it takes. up: float32 [out, rank].
    """

    down: Array
    up: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes: [out, in] or [out, in, height, width]."""
        return (self.up.shape[0], *self.down.shape[1:])

    @classmethod
    def joined(cls, parts: Sequence[LowRank]) -> LowRank:
        """Several changes of one layer as one: their ranks add up."""
        if len(parts) == 1:
            return parts[0]
        down = np.concatenate([p.down.reshape(p.down.shape[0], *parts[0].down.shape[1:]) for p in parts])
        return cls(down, np.concatenate([p.up for p in parts], axis=1))

    def for_linear(self, name: str, inputs: int, outputs: int) -> tuple[Array, Array]:
        """(down [rank, in], up [out, rank]) for a linear layer.

        Raises:
            BadInput: the layer has other sizes.
        """
        self._check(name, (outputs, inputs))
        return self.down.reshape(len(self.down), inputs), self.up

    def for_conv(self, name: str, weight: Sequence[int]) -> tuple[Array, Array]:
        """(down [rank, in, height, width], up [out, rank, 1, 1]) for a convolution with a weight of this shape.

        Raises:
            BadInput: the convolution has other sizes.
        """
        self._check(name, tuple(weight))
        down = self.down.reshape(len(self.down), *weight[1:])
        return down, self.up.reshape(*self.up.shape, *(1 for _ in weight[2:]))

    def _check(self, name: str, weight: tuple[int, ...]) -> None:
        if without_ones(self.shape) != without_ones(weight):
            raise wrong_shape(name, self.shape, weight)


Override = Array | LowRank
"""A changed weight, whole; or what a branch beside its layer adds."""


def without_ones(shape: Sequence[int]) -> list[int]:
    """The sizes that say something: a 1x1 convolution is a linear layer. The first two always stay."""
    return [*shape[:2], *(d for d in shape[2:] if d != 1)]


def wrong_shape(name: str, given: Sequence[int], expected: Sequence[int]) -> BadInput:
    return BadInput(
        f"Override {name} has shape {list(given)}, expected {list(expected)}.",
        "Give the whole changed weight, in the model's own shape.",
    )


def no_weight(name: str, graph: str) -> BadInput:
    return BadInput(f"Override {name}: {graph} has no such weight.", "Check its name in the state dict.")


def no_layer(name: str, graph: str) -> BadInput:
    return BadInput(
        f"Override {name}: in {graph} it is no weight of a linear layer or convolution of one group.",
        "Give the whole changed weight instead of a low-rank change.",
    )


def fingerprint(value: Override) -> list[Any]:
    """What tells one changed weight from any other, for the key of a cache."""
    parts = [value.down, value.up] if isinstance(value, LowRank) else [value]
    kind = "low rank" if isinstance(value, LowRank) else "whole"
    return [kind, *([p.dtype.name, p.shape, hashlib.sha256(np.ascontiguousarray(p).data).hexdigest()] for p in parts)]


def only_whole(overrides: Mapping[str, Override], runtime: str) -> dict[str, Array]:
    """The overrides of an adapter that adds no branches.

    Raises:
        UsageError: one of them is a branch.
    """
    whole = {name: value for name, value in overrides.items() if not isinstance(value, LowRank)}
    if len(whole) < len(overrides):
        name = next(n for n in overrides if n not in whole)
        raise UsageError(
            f"{runtime} adds nothing beside a layer, which {name} would need: its weight is stored in few bits.",
            "Use the artifact in float32, float16 or bfloat16, or another runtime.",
        )
    return whole
