"""3x3 convolutions of an OpenVINO model as products of tiles (`winograd`), in place.

Pixels are rows here: the channels of a whole batch at one place lie together. So tiles are taken by one Gather, B^T d B
and A^T m A are each one product with a small matrix, and the results are put in order by one Gather. All of it takes
sizes as they come. (Slices and sums in place of the small products were tried: OpenVINO fuses those only where it knows
the sizes, and without that they cost more than the products save.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as op

from ..core.tensors import Array
from . import winograd
from .winograd import Tiles, parts, tiles_for
from .winograd_grid import Grid

FORM = [winograd.FORM, 1]  # raise the second number when models are rewritten in another way than before
_PLAIN = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [1, 1], "pads_end": [1, 1], "auto_pad": "explicit"}
_TWICE = {
    "mode": "nearest",
    "shape_calculation_mode": "scales",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
    "pads_begin": [0, 0, 0, 0],
    "pads_end": [0, 0, 0, 0],
}
# bytes of weights of which OpenVINO may keep a second copy, laid out anew: it does of three axes, not of four
_COPIED = 20_000_000

_FLOATS = ("f32", "f16", "bf16")

Value: TypeAlias = ov.Node | ov.Output


def fewer_products(model: ov.Model, usual: Mapping[str, Sequence[int]] | None) -> int:
    """Rewrite the convolutions that are worth it; the model takes what it took before.

    Args:
        model: changed in place.
        usual: sizes of each input, by name, of a model for any sizes: what is rewritten is worth it for pictures of
            half these sides, which also bounds the memory that larger weights take. None: its own sizes are given.

    Returns:
        How many were rewritten.
    """
    layers = list(_convolutions(model))
    if not layers:
        return 0
    there = model
    if usual is not None:
        there = model.clone()  # in the same order
        there.reshape({name: ov.PartialShape(list(shape)) for name, shape in usual.items()})
    results = [layer.get_output_partial_shape(0) for layer in _convolutions(there)]
    done = 0
    for layer, result in zip(layers, results, strict=True):
        if result.is_dynamic:
            continue
        small, weight = _before_doubling(layer.input_value(0)), _stored(layer)
        kernel = list(weight.get_output_shape(0))
        batch, _, height, width = (d.get_length() for d in result)
        area = height * width // (1 if usual is None else 4)
        tiles = tiles_for(kernel, area, doubled=small is not None)
        if tiles is None:
            continue
        times = parts(tiles, kernel, (batch, height, width))
        given = layer.input_value(0) if small is None else small
        made = _by_tiles(given, weight.get_data(dtype=np.float32), tiles, times)
        made.set_friendly_name(layer.get_friendly_name())
        ov.utils.replace_node(layer, made)
        done += 1
    if done:
        model.validate_nodes_and_infer_types()
    return done


def _convolutions(model: ov.Model) -> Iterator[ov.Node]:
    """Those of one group in float32 with a kernel of 3x3, a step of one and a border of one, so that sizes stay."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or node.get_attributes() != _PLAIN:
            continue
        weight = _stored(node)
        stored = weight.get_type_name() == "Constant" and weight.get_element_type().get_type_name() in _FLOATS
        computed = node.get_output_element_type(0).get_type_name()
        if stored and computed == "f32" and list(weight.get_output_shape(0))[2:] == [3, 3]:
            yield node


def _stored(layer: ov.Node) -> ov.Node:
    """The node of a layer's weight, before it is converted to the type that is computed in."""
    node = layer.input_value(1).get_node()
    return node.input_value(0).get_node() if node.get_type_name() == "Convert" else node


def _before_doubling(value: ov.Output) -> ov.Output | None:
    """What a picture was before each of its pixels became four; None where that was not done to it."""
    node = value.get_node()
    if node.get_type_name() != "Interpolate":
        return None
    said, scales = node.get_attributes(), node.input_value(1).get_node()
    if any(said.get(k) != v for k, v in _TWICE.items()) or scales.get_type_name() != "Constant":
        return None
    return node.input_value(0) if scales.get_data().tolist() == [1, 1, 2, 2] else None


def _by_tiles(given: ov.Output, kernel: Array, tiles: Tiles, times: int) -> ov.Node:
    """What the convolution gives: [batch, out, height, width].

    times: in how many parts the tiles are computed, so that what lies between takes less memory.
    """
    pictures = _Pictures(given, tiles, times)
    outputs, inputs = kernel.shape[:2]
    layer = _Layer(kernel, tiles, pictures.row(outputs))
    rows, places = pictures.bordered(given, inputs), op.convert(pictures.grid.places(), "i32")
    parted = [places] if times == 1 else op.split(places, _ints(1), times).outputs()
    made = [layer.products(rows, part) for part in parted]
    order = op.convert(op.reshape(pictures.grid.order(), _ints([-1]), False), "i32")
    return pictures.whole(op.gather(made[0] if times == 1 else op.concat(made, 0), order, _ints(0)), outputs)


class _Numbers:
    """OpenVINO's arithmetic, for `Grid`."""

    add, subtract, multiply, divide = map(staticmethod, (op.add, op.subtract, op.multiply, op.divide))
    remainder, least = staticmethod(op.floor_mod), staticmethod(op.minimum)

    def constant(self, values: int | Sequence[int] | Array) -> ov.Node:
        return _ints(values)

    def count_to(self, end: Value) -> ov.Node:
        return op.range(_ints(0), end, _ints(1), "i64")

    def upright(self, row: Value) -> ov.Node:
        return op.unsqueeze(row, _ints([1]))


class _Pictures:
    """What comes in and goes out of tiles: [batch, channels, height, width] as lines of pixels, and back.

    batch: int64 [], as all sizes here a node, since it depends on the input.
    """

    def __init__(self, given: ov.Output, tiles: Tiles, times: int) -> None:
        shape = op.shape_of(given)
        self.batch, self._height, self._width = (op.gather(shape, _ints(i), _ints(0)) for i in (0, 2, 3))
        self.grid = Grid(_Numbers(), self._height, self._width, tiles, times)

    def row(self, channels: int) -> ov.Node:
        """How many numbers a pixel has, as [1]."""
        return op.multiply(_list(self.batch), _ints([channels]))

    def bordered(self, given: ov.Output, channels: int) -> ov.Node:
        """[batch, channels, height, width] as [pixels, batch * channels], with zeros around."""
        row = self.row(channels)
        sizes = op.concat([_list(self._height), _list(self._width), row], 0)
        pixels = op.reshape(_turned(given, row), sizes, False)
        ends = op.concat([_list(self.grid.below), _list(self.grid.beside), _ints([0])], 0)
        padded = op.pad(pixels, _ints([1, 1, 0]), ends, "constant", np.float32(0))
        return op.reshape(padded, op.concat([_ints([-1]), row], 0), False)

    def whole(self, lines: ov.Node, channels: int) -> ov.Node:
        """[pixels, batch * channels] as [batch, channels, height, width]."""
        height, width = self.grid.result_height, self.grid.result_width
        sizes = op.concat([_list(self.batch), _ints([channels]), _list(height), _list(width)], 0)
        return op.reshape(_turned(lines, op.multiply(_list(height), _list(width))), sizes, False)


class _Layer:
    """The products of one convolution, whose constants all of its parts share."""

    def __init__(self, kernel: Array, tiles: Tiles, made_row: Value) -> None:
        self._tiles, self._made_row, self._inputs = tiles, made_row, kernel.shape[1]
        self._into, self._back = (op.constant(np.kron(m, m).astype(np.float32)) for m in (tiles.into, tiles.back))
        weights = tiles.transformed(kernel)
        n = tiles.inputs
        self._split = [n * n] if weights.nbytes <= _COPIED else [n, n]
        self._weights = op.constant(weights.reshape(*self._split, *kernel.shape[:2]))

    def products(self, rows: Value, places: Value) -> ov.Node:
        """[m * m * tiles, batch * out] of the pixels at `places` [n * n, tiles]."""
        n = self._tiles.inputs
        taken = op.reshape(op.gather(rows, places, _ints(0)), _ints([n * n, -1]), False)
        moved = op.reshape(op.matmul(self._into, taken, False, False), _ints([*self._split, -1, self._inputs]), False)
        products = op.reshape(op.matmul(moved, self._weights, False, True), _ints([n * n, -1]), False)
        made = op.matmul(self._back, products, False, False)
        return op.reshape(made, op.concat([_ints([-1]), self._made_row], 0), False)


def _turned(value: Value, lines: Value) -> ov.Node:
    """As `lines` [1] lines, turned: [lines, n] to [1, n, lines, 1], in the order of axes that has a quick kernel."""
    flat = op.reshape(value, op.concat([_ints([1]), lines, _ints([1, -1])], 0), False)
    return op.transpose(flat, _ints([0, 3, 1, 2]))


def _list(value: Value) -> ov.Node:
    return op.unsqueeze(value, _ints([0]))


def _ints(values: int | Sequence[int] | Array) -> ov.Node:
    return op.constant(np.array(values, dtype=np.int64))
