"""Where the tiles of a picture lie, as whole numbers that a graph computes itself from the sizes that come.

A library's own nodes do the arithmetic, so that each runtime that is given `winograd`'s tiles lays them out alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from ..core.tensors import Array
from .winograd import Tiles

Value: TypeAlias = Any  # of a graph, as its library names it


class Numbers(Protocol):
    """What a library offers of arithmetic on int64 of any shape; none of them is below 0."""

    def constant(self, values: int | Sequence[int] | Array) -> Value: ...
    def add(self, a: Value, b: Value) -> Value: ...
    def subtract(self, a: Value, b: Value) -> Value: ...
    def multiply(self, a: Value, b: Value) -> Value: ...
    def divide(self, a: Value, b: Value) -> Value: ...
    def remainder(self, a: Value, b: Value) -> Value: ...
    def least(self, a: Value, b: Value) -> Value: ...
    def count_to(self, end: Value) -> Value:
        """0, 1, ... up to `end`, a number of shape [], and without it."""

    def upright(self, row: Value) -> Value:
        """[n] as [n, 1]."""


class Grid:
    """The tiles of pictures of `height` x `width`, numbers of shape [].

    padded_height, padded_width: with the border of one pixel, and with what the last tiles reach beyond it.
    result_height, result_width: of what the convolution gives.
    """

    def __init__(self, numbers: Numbers, height: Value, width: Value, tiles: Tiles, times: int) -> None:
        """times: in how many parts the tiles are computed."""
        n = self._numbers = numbers
        self._tiles, self._times = tiles, times
        step = n.constant(tiles.step)
        self._down, self._across = (self._over(side, tiles.step) for side in (height, width))
        self._count = n.multiply(self._down, self._across)
        self._each = self._over(self._count, times)  # tiles a part
        self.result_height, self.result_width = (
            n.multiply(side, n.constant(tiles.results // tiles.step)) for side in (height, width)
        )
        more = n.constant(tiles.inputs - tiles.step)
        self.padded_height, self.padded_width = (
            n.add(n.multiply(count, step), more) for count in (self._down, self._across)
        )
        # what is added behind the last line and the last column
        self.below, self.beside = (
            n.subtract(whole, n.add(side, n.constant(1)))
            for whole, side in ((self.padded_height, height), (self.padded_width, width))
        )

    def places(self) -> Value:
        """The pixels of each tile, [n * n, tiles], numbered by lines with the border; past the last tile the last one
        again, for parts are alike.
        """
        n, side = self._numbers, self._tiles.inputs
        tiles = n.count_to(n.multiply(self._each, n.constant(self._times)))
        tile, step = n.least(tiles, n.subtract(self._count, n.constant(1))), n.constant(self._tiles.step)
        first = n.add(
            n.multiply(n.multiply(n.divide(tile, self._across), step), self.padded_width),
            n.multiply(n.remainder(tile, self._across), step),
        )
        y, x = np.divmod(np.arange(side * side).reshape(-1, 1), side)
        return n.add(n.add(n.multiply(n.constant(y), self.padded_width), n.constant(x)), first)

    def order(self) -> Value:
        """Where each pixel of the result lies in [parts, m * m, tiles of a part], as [height, width]."""
        n, side = self._numbers, self._numbers.constant(self._tiles.results)
        y, x = n.upright(n.count_to(self.result_height)), n.count_to(self.result_width)
        tile = n.add(n.multiply(n.divide(y, side), self._across), n.divide(x, side))
        within = n.add(n.multiply(n.remainder(y, side), side), n.remainder(x, side))
        before = n.add(n.multiply(n.divide(tile, self._each), n.constant(self._tiles.results**2)), within)
        return n.add(n.multiply(before, self._each), n.remainder(tile, self._each))

    def _over(self, value: Value, by: int) -> Value:
        """Divided, and rounded up."""
        n = self._numbers
        return n.divide(n.add(value, n.constant(by - 1)), n.constant(by))
