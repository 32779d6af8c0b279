"""A transformer's deep features: what all its blocks but the first ones add to the picture's tokens.

The blocks of SD 3, Flux and Sana each add to a stream of tokens, which a last normalization and projection make latents
of. That what most of them add changes little between neighbouring steps is the idea of first-block caching (Cheng,
ParaAttention, 2024) and of TeaCache (Liu et al., arXiv 2411.19108). The sum is kept, and not the stream behind the last
block: a shallow step's own first blocks are still in what it gives.

In Flux, double blocks keep the picture's tokens apart from the text's and single ones, which follow, read both as one.
Only the picture's are kept: nothing behind the last block reads the others.

Nothing is counted: names tell which weights are which block's, and what is computed with them tells where a block ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..core.artifact import Component
from ..core.errors import BadInput
from ..runtimes.initializers import state_name
from .cut_place import CUTTABLE, Place, Sizes, no_more

if TYPE_CHECKING:
    import onnx_ir as ir

SAMPLE = "hidden_states"  # the input that holds the latents
TOKENS = "image_tokens"  # how many a picture has, where no input is as long
_ORDER = ("transformer_blocks", "single_transformer_blocks")  # as they follow each other
_BLOCK = re.compile(rf"({'|'.join(_ORDER)})\.(\d+)\.")
_ALIKE = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")  # what gives the tokens that it takes


def blocks(model: ir.Model) -> list[list[ir.Value]]:
    """The weights of each block, in the order in which blocks follow each other; none where it is no transformer."""
    found: dict[tuple[int, int], list[ir.Value]] = {}
    for name, value in model.graph.initializers.items():
        told = _BLOCK.match(state_name(name))
        if told is not None:
            found.setdefault((_ORDER.index(told[1]), int(told[2])), []).append(value)
    return [found[key] for key in sorted(found)]


def place(model: ir.Model, component: Component, depth: int) -> Place:
    """The tokens behind the last block and those behind the first `depth` ones.

    Raises:
        BadInput: it has no more blocks than that, or is no transformer of this form.
    """
    weights = blocks(model)
    if len(weights) <= depth:
        raise BadInput(
            f"{component.name} has {len(weights)} blocks, so a graph of the first {depth} would save nothing.",
            f"Give --step-cache {len(weights) - 1} or less." if len(weights) > 1 else "Leave --step-cache out.",
        )
    last = _last_tokens(model)
    first = None if last is None else _tokens_before(last, weights[depth - 1], weights[depth:])
    if last is None or first is None:
        raise BadInput(f"It cannot be told where the blocks of {component.name} begin and end.", CUTTABLE)
    width = last.shape[-1] if last.shape is not None else None
    patch = _patch(model)
    sample = component.inputs[SAMPLE]
    if not isinstance(width, int) or (len(sample.shape) == 4 and patch is None):
        raise BadInput(
            f"The graph of {component.name} does not say the shape of its deep features.", "Export it again."
        )
    if patch is None:  # the latents come as tokens
        return Place(last, first, (sample.shape[0], sample.shape[1], width), no_more)
    rows, columns = patch

    def sizes(given: Sizes) -> dict[str, int]:
        height, across = (given[d] if isinstance(d, str) else d for d in sample.shape[2:])
        return {TOKENS: (height // rows) * (across // columns)}

    return Place(last, first, (sample.shape[0], TOKENS, width), sizes)


def _last_tokens(model: ir.Model) -> ir.Value | None:
    """What the last normalization reads: the one that lies behind the output with no other between."""
    norms: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    ahead = [model.graph.outputs[0].producer()]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or node.op_type == "Shape":  # which reads no numbers
            continue
        seen.add(node)
        if node.op_type == "LayerNormalization":
            norms.add(node)
        else:
            ahead += [value.producer() for value in node.inputs if value is not None]
    return norms.pop().inputs[0] if len(norms) == 1 else None


def _tokens_before(last: ir.Value, block: Iterable[ir.Value], behind: list[list[ir.Value]]) -> ir.Value | None:
    """The picture's tokens nearest to `last` that are computed with `block`, and with none of those behind it.

    A block adds to the tokens, so these are looked for through sums alone, against the stream. Where the text's tokens
    stand before the picture's, the last part of what was joined is followed.
    """
    own, later = _computed_with(block), _computed_with(value for one in behind for value in one)
    seen: set[ir.Value] = set()
    ahead = [(last, False)]  # a value, and whether the text's tokens are in it
    while ahead:
        value, joined = ahead.pop()
        node = value.producer()
        if node is None or value in seen:  # a ControlNet's residual, and no tokens
            continue
        seen.add(value)
        if not joined and node in own and node not in later and node.op_type != "QuantizeLinear":
            return value
        if node.op_type == "Add":
            inputs = node.inputs
        elif node.op_type == "Concat":
            inputs, joined = node.inputs[-1:], False
        elif node.op_type in ("Slice", "Split"):
            inputs, joined = node.inputs[:1], True
        else:
            inputs = node.inputs[:1] if node.op_type in _ALIKE else ()
        ahead += [(one, joined) for one in inputs if one is not None]
    return None


def _computed_with(values: Iterable[ir.Value]) -> set[ir.Node]:
    """Every node that needs one of these."""
    found: set[ir.Node] = set()
    ahead = list(values)
    while ahead:
        for node, _ in ahead.pop().uses():
            if node not in found:
                found.add(node)
                ahead += node.outputs
    return found


def _patch(model: ir.Model) -> tuple[int, int] | None:
    """Latents (high, wide) that are one token: the strides of the convolution that reads them; None: there is none."""
    ahead = [value for value in model.graph.inputs if value.name == SAMPLE]
    while ahead:
        for node, _ in ahead.pop().uses():
            if node.op_type == "Conv":
                strides = node.attributes.get("strides")
                rows, columns = (1, 1) if strides is None else strides.as_ints()
                return int(rows), int(columns)
            ahead += node.outputs if node.op_type in _ALIKE else []
    return None
