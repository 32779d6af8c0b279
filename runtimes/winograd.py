"""3x3 convolutions by fewer products: Winograd's minimal filtering, which a runtime's graph can be rewritten with.

F(m x m, 3 x 3) computes a tile of m x m results from a tile of n x n inputs, n = m + 2, as
A^T [(G g G^T) * (B^T d B)] A (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308):
n^2 products in place of 9 m^2, which is 2.25 times less for m = 2 and 4 times less for m = 4. Over channels each of the
n^2 is a matrix product.

A convolution of a picture made twice as large by repeating its pixels needs fewer still: a tile of 2 x 2 results
depends on 3 x 3 pixels of the small picture, and of the n^2 = 9 products none is lost: 4 times less, with as many
weights as before.

The result is the convolution's but for rounding. In float32 it differs from a direct sum, as a share of the largest
result, by about 1e-6 for m = 2 and 1e-5 for m = 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.tensors import Array

FORM = 1  # raise the number when tiles are chosen or laid out in another way than before
# measured on single layers and on Stable Diffusion 1.5 with OpenVINO, on two cores with AVX-512; on ONNX Runtime others
# that were tried gain no more
NARROW = 64  # channels, on either side, below which tiles cost more than the products save
_WORTH = 1.2e8  # operations of a layer, for one picture, below which they do too
_FOUR, _TWO = 1024, 256  # pixels of a result from which the larger weights of F4 and F2 pay
_PART = 128_000_000  # bytes of tiles before and after the products


@dataclass(frozen=True, eq=False)
class Tiles:
    """How a tile of results is computed from a tile of inputs.

    into: float64 [n, n], B^T. weights: float64 [n, 3], G. back: float64 [m, n], A^T. step: from one tile of inputs to
    the next, along each side; results are `back`'s m for each.
    """

    into: Array
    weights: Array
    back: Array
    step: int

    @property
    def inputs(self) -> int:
        """n, the side of a tile of inputs."""
        return len(self.into)

    @property
    def results(self) -> int:
        """m, the side of a tile of results."""
        return len(self.back)

    def transformed(self, kernel: Array) -> Array:
        """G g G^T of each pair of channels: [out, in, 3, 3] to float32 [n * n, out, in]."""
        outputs, inputs = kernel.shape[:2]
        both = np.kron(self.weights, self.weights).astype(np.float32)
        flat = np.asarray(kernel, dtype=np.float32).reshape(outputs * inputs, 9)
        return (both @ flat.T).reshape(self.inputs**2, outputs, inputs)


F2 = Tiles(
    np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float),
    np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float),
    step=2,
)
F4 = Tiles(
    np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        float,
    ),
    np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
    np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float),
    step=4,
)
DOUBLED = Tiles(  # F2 on pixels a, b, b, c: what multiplies b - b is nothing, and b + b takes the half from G
    np.array([[1, -1, 0], [0, 1, 0], [0, 1, -1]], float),
    np.array([[1, 0, 0], [1, 1, 1], [0, 0, 1]], float),
    np.array([[1, 1, 0], [0, 1, -1]], float),
    step=1,
)


def tiles_for(kernel: Sequence[int], area: int, *, doubled: bool) -> Tiles | None:
    """The tiles for a convolution; None where a direct sum is as good.

    Args:
        kernel: shape of its weight, [out, in, 3, 3]. area: pixels of its result.
        doubled: it reads a picture that was just made twice as large.
    """
    if min(kernel[:2]) < NARROW or 18 * kernel[0] * kernel[1] * area < _WORTH:
        return None
    if doubled:
        return DOUBLED
    return F4 if area >= _FOUR else F2 if area >= _TWO else None


def parts(tiles: Tiles, kernel: Sequence[int], result: tuple[int, int, int]) -> int:
    """In how many parts to compute the tiles, so that what lies between the products stays small.

    result: batch, height and width of what the convolution gives.
    """
    batch, height, width = result
    count = math.ceil(height / tiles.results) * math.ceil(width / tiles.results)
    return math.ceil(batch * count * tiles.inputs**2 * (kernel[0] + kernel[1]) * 4 / _PART)
