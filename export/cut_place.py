"""Where a denoiser's graph is cut in two: what an earlier step's deep features stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

CUTTABLE = "Step caching is for UNets and for the transformers of SD 3, Flux and Sana."
Sizes = Mapping[str, int]


def no_more(sizes: Sizes) -> dict[str, int]:
    """Of deep features whose sizes are all those of other inputs."""
    return {}


@dataclass(frozen=True)
class Place:
    """A place in one graph.

    value: what a shallow step does not compute. base: what it computes, so that the deep features are what `value` has
    more than that; None: they are `value` itself.
    shape: of the deep features, float32; a symbol that no other input has is given its size by `sizes`, from theirs.
    """

    value: ir.Value
    base: ir.Value | None
    shape: tuple[int | str, ...]
    sizes: Callable[[Sizes], dict[str, int]] = no_more
