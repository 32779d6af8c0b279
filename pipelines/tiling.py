"""An autoencoder over a picture in overlapping tiles: memory for one tile, whatever the picture's size.

The tiles overlap by a quarter and are blended linearly, as diffusers' `AutoencoderKL.enable_tiling` does. Each tile is
normalized by itself, so the result differs a little from that of the whole picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .families.base import FloatArray

OVERLAP = 0.25  # of a tile's side, as diffusers' tile_overlap_factor


def tiled(run: Callable[[FloatArray], FloatArray], given: FloatArray, side: int, made: int) -> FloatArray:
    """What `run` makes of `given`, tile by tile.

    Args:
        run: float32 [1, channels, h, w] -> [1, channels', h', w'].
        given: float32 [1, channels, height, width].
        side: of a tile of `given`; one that it fits in is run whole. made: the side of what `run` makes of a tile. One
            of the two is a multiple of the other.
    """
    height, width = given.shape[2:]
    if height <= side and width <= side:
        return run(given)
    coarse = min(side, made)
    step = max(1, int(coarse * (1 - OVERLAP)))  # of the coarser grid, so that both strides are the same way
    stride, kept = step * (side // coarse), step * (made // coarse)
    blend = made - kept
    bands = []
    above: list[FloatArray] = []
    for top in range(0, height, stride):
        row: list[FloatArray] = []
        for left in range(0, width, stride):
            tile = np.array(run(given[:, :, top : top + side, left : left + side]))
            if above:
                _blend(above[len(row)], tile, blend, axis=2)
            if row:
                _blend(row[-1], tile, blend, axis=3)
            row.append(tile)
        bands.append(np.concatenate([tile[:, :, :kept, :kept] for tile in row], axis=3))
        above = row
    whole: FloatArray = np.concatenate(bands, axis=2)
    return whole


def _blend(before: FloatArray, tile: FloatArray, extent: int, axis: int) -> None:
    """Let the first `extent` lines of `tile` come out of the last ones of the tile before it, in place."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if not extent:
        return
    ramp = (np.arange(extent, dtype=np.float32) / np.float32(extent)).reshape((-1, 1) if axis == 2 else (1, -1))
    last = np.take(before, range(before.shape[axis] - extent, before.shape[axis]), axis=axis)
    first = tile[:, :, :extent] if axis == 2 else tile[:, :, :, :extent]
    first[...] = last * (1 - ramp) + first * ramp
