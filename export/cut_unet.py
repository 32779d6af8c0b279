"""A UNet's deep features: what the last layers of its last up block get from below.

As in DeepCache (Ma et al., arXiv 2312.00858): what stands around them is the first layers, whose outputs are skip
connections, and those last ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.artifact import Component
from ..core.errors import BadInput
from .cut_place import CUTTABLE, Place

if TYPE_CHECKING:
    import onnx_ir as ir


def place(model: ir.Model, component: Component, depth: int) -> Place:
    """What the last up block's `depth` last layers get from below.

    Each of these layers begins with a Concat of that and of a skip connection, along the channels.

    Raises:
        BadInput: the graph has no so many skip connections at its full size.
    """
    joins = [n for n in model.graph if n.op_type == "Concat" and len(n.inputs) == 2 and _channels(n.outputs[0])]
    joins = [n for n in joins if n.attributes["axis"].as_int() == 1]
    # those at full size, which is that of the last one's skip connection
    sizes = [join.inputs[1].shape[2:] if join.inputs[1] is not None and join.inputs[1].shape else () for join in joins]
    joins = [join for join, size in zip(joins, sizes, strict=True) if size == sizes[-1]]
    if len(joins) < depth:
        raise BadInput(
            f"{component.name} has {len(joins)} skip connections at its full size, so no {depth} layers between them.",
            f"Give --step-cache {len(joins)} or less." if joins else CUTTABLE,
        )
    deep = joins[-depth].inputs[0]
    channels = None if deep is None or deep.producer() is None else _channels(deep)
    if deep is None or channels is None:
        raise BadInput(
            f"The graph of {component.name} does not say the shape of its deep features.", "Export it again."
        )
    sample = component.inputs["sample"]
    return Place(deep, None, (sample.shape[0], channels, *sample.shape[2:]))


def _channels(value: ir.Value) -> int | None:
    """The channels of a picture's features [batch, channels, height, width]; None of anything else."""
    shape = value.shape
    return shape[1] if shape is not None and len(shape) == 4 and isinstance(shape[1], int) else None
