"""Tiles for 3x3 convolutions, held against a direct sum."""

from __future__ import annotations

import numpy as np
import pytest

from vitrify.runtimes.winograd import DOUBLED, F2, F4, Tiles, parts, tiles_for


def direct(picture: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """[in, height, width] and [out, in, 3, 3] to [out, height - 2, width - 2]."""
    windows = np.lib.stride_tricks.sliding_window_view(picture, (3, 3), axis=(1, 2))
    return np.einsum("ihwyx,oiyx->ohw", windows, kernel)


def by_tile(tiles: Tiles, tile: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """A^T [(G g G^T) * (B^T d B)] A, with the weights as `transformed` gives them: [in, n, n] to [out, m, m]."""
    moved = np.einsum("yi,cij,xj->yxc", tiles.into, tile, tiles.into)
    weights = tiles.transformed(kernel).astype(np.float64).reshape(tiles.inputs, tiles.inputs, *kernel.shape[:2])
    return np.einsum("ay,bx,yxo->oab", tiles.back, tiles.back, np.einsum("yxc,yxoc->yxo", moved, weights))


@pytest.mark.parametrize(("tiles", "results"), [(F2, 2), (F4, 4)], ids=["F2", "F4"])
def test_a_tile_gives_what_the_convolution_gives(tiles: Tiles, results: int) -> None:
    rng = np.random.default_rng(0)
    tile, kernel = rng.standard_normal((5, results + 2, results + 2)), rng.standard_normal((3, 5, 3, 3))
    assert (tiles.inputs, tiles.results, tiles.step) == (results + 2, results, results)
    np.testing.assert_allclose(by_tile(tiles, tile, kernel), direct(tile, kernel), atol=1e-5)


def test_a_tile_of_a_doubled_picture_needs_only_the_small_one() -> None:
    rng = np.random.default_rng(0)
    small, kernel = rng.standard_normal((5, 3, 3)), rng.standard_normal((3, 5, 3, 3))
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    expected = direct(large[:, 1:5, 1:5], kernel)  # the four pixels that the middle one became
    np.testing.assert_allclose(by_tile(DOUBLED, small, kernel), expected, atol=1e-5)


def test_small_and_narrow_layers_stay_as_they_are() -> None:
    assert tiles_for([320, 320, 3, 3], 32 * 32, doubled=False) is F4
    assert tiles_for([640, 640, 3, 3], 16 * 16, doubled=False) is F2
    assert tiles_for([1280, 1280, 3, 3], 8 * 8, doubled=False) is None
    assert tiles_for([1280, 1280, 3, 3], 8 * 8, doubled=True) is DOUBLED
    assert tiles_for([3, 128, 3, 3], 512 * 512, doubled=False) is None
    assert tiles_for([64, 64, 3, 3], 32 * 32, doubled=True) is None


def test_large_layers_are_computed_in_parts() -> None:
    assert parts(F4, [320, 320, 3, 3], (2, 64, 64)) == 1
    whole = 128 * 128 * 36 * 256 * 4  # tiles, their elements, channels in and out, bytes
    assert parts(F4, [128, 128, 3, 3], (1, 512, 512)) == -(-whole // 128_000_000)
