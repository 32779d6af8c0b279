"""Weights rounded to few bits: one tensor in, packed values and scales out. Numpy alone, so any room may call it.

A weight comes as its state dict has it: [out, in] of a linear layer, [out, in, height, width] of a convolution.
Symmetric values have no zero point, which TensorRT does not take. int8 leaves out its lowest value; int4, with 16 in
all, uses it, and looks for the scale that loses least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import BadInput
from ..core.tensors import Array

FloatArray = npt.NDArray[np.float32]

# The 16 levels of NormalFloat4: quantiles of a unit normal, scaled to -1..1, with zero among them (Dettmers et al.,
# "QLoRA", 2023, appendix E).
NF4_LEVELS = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip

# The positive numbers of float8 e4m3, by their bits: three of mantissa, an exponent around 7, no infinity; the last,
# 0x7f, is NaN (Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1).
E4M3 = np.array(
    [(m / 8 if e == 0 else 1 + m / 8) * 2.0 ** (max(e, 1) - 7) for e in range(16) for m in range(8)][:-1],
    dtype=np.float32,
)

_DIVISORS = (7.0, 7.4, 7.8, 8.2, 8.7, 9.3, 10.0)  # of the largest magnitude, for int4's scale


@dataclass(frozen=True)
class Quantized:
    """A weight in few bits.

    values: int8 of the weight's shape; int4 as int8 in -8..7, nf4 as the number of its level, neither packed yet;
        float8 as its bits.
    scales: float32; [out] with one an output channel, else the weight's shape with `axis` divided by the group.
    zeros: int8 like scales, for asymmetric weights; else None.
    axis: of the values, the one that the scales run along (per channel) or divide (in groups).
    group: 0 for one scale a channel.
    """

    values: npt.NDArray[np.int8]
    scales: FloatArray
    zeros: npt.NDArray[np.int8] | None
    axis: int
    group: int

    def dequantized(self) -> FloatArray:
        """float32 of the weight's shape, as a runtime computes it."""
        scales, zeros = self.spread(self.scales), self.zeros
        values = self.values.astype(np.float32)
        if zeros is not None:
            values -= self.spread(zeros).astype(np.float32)
        return np.asarray(values * scales, dtype=np.float32)

    def spread(self, array: Array) -> Array:
        """Scales or zeros, to be broadcast over the values."""
        if self.group:
            return np.repeat(array, self.group, axis=self.axis)
        return array.reshape([-1 if i == self.axis else 1 for i in range(self.values.ndim)])


def quantize_integers(weight: FloatArray, bits: int, group: int = 0, symmetric: bool = True, top: int = 0) -> Quantized:
    """Round to nearest in 8 or 4 bits.

    Args:
        weight: float32 [out, in, ...].
        group: weights along `in` that share a scale; it divides `in`. 0: one scale an output channel.
        top: the largest integer used; 0: all that the bits hold.

    Raises:
        BadInput: the weight holds NaN or infinity.
    """
    _finite(weight)
    top = top or 2 ** (bits - 1) - 1
    parts, axes = _parts(weight, group)
    if symmetric:
        lowest = -top - 1 if bits == 4 else -top
        largest = np.abs(parts).max(axis=axes, keepdims=True)
        scales = _best_scales(parts, axes, largest, lowest, top) if bits == 4 else largest / np.float32(top)
        scales[scales == 0] = 1
        values = np.clip(np.rint(parts / scales), lowest, top).astype(np.int8)
        zeros = None
    else:
        low = np.minimum(parts.min(axis=axes, keepdims=True), 0)
        high = np.maximum(parts.max(axis=axes, keepdims=True), 0)
        scales = (high - low) / np.float32(2 * top + 1)
        scales[scales == 0] = 1
        zero = np.clip(np.rint(-top - 1 - low / scales), -top - 1, top)
        values = np.clip(np.rint(parts / scales) + zero, -top - 1, top).astype(np.int8)
        zeros = _scale_shape(zero.astype(np.int8), weight, group)
    axis = 1 if group else 0
    return Quantized(values.reshape(weight.shape), _scale_shape(scales, weight, group), zeros, axis, group)


def _best_scales(parts: FloatArray, axes: tuple[int, ...], largest: Array, lowest: int, top: int) -> FloatArray:
    """For each group, of a few scales the one with the least square error: clipping an outlier may gain more."""
    best, least = largest / np.float32(top), np.full(largest.shape, np.inf, np.float32)
    for divisor in _DIVISORS:
        scales = largest / np.float32(divisor)
        scales[scales == 0] = 1
        error = np.square(np.clip(np.rint(parts / scales), lowest, top) * scales - parts).sum(axis=axes, keepdims=True)
        better = error < least
        best, least = np.where(better, scales, best), np.where(better, error, least)
    return np.asarray(best, dtype=np.float32)


def quantize_nf4(weight: FloatArray, group: int) -> Quantized:
    """Round to the nearest NF4 level of each group's largest magnitude.

    Args:
        weight: float32 [out, in, ...]. group: divides `in`.

    Raises:
        BadInput: the weight holds NaN or infinity.
    """
    _finite(weight)
    parts, axes = _parts(weight, group)
    scales = np.abs(parts).max(axis=axes, keepdims=True)
    scales[scales == 0] = 1
    middles = (NF4_LEVELS[1:] + NF4_LEVELS[:-1]) / 2
    values = np.searchsorted(middles, parts / scales).astype(np.int8)
    return Quantized(values.reshape(weight.shape), _scale_shape(scales, weight, group), None, 1, group)


def quantize_float8(weight: FloatArray) -> Quantized:
    """Round to the nearest float8 e4m3 of each output channel's largest magnitude, which becomes 448.

    Args:
        weight: float32 [out, in, ...].

    Returns:
        Values that are the bits of float8, as int8: see `float8_values`.

    Raises:
        BadInput: the weight holds NaN or infinity.
    """
    _finite(weight)
    scales = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True) / E4M3[-1]
    scales[scales == 0] = 1
    return Quantized(float8_bits(weight / scales), scales.reshape(-1), None, 0, 0)


def float8_bits(values: FloatArray) -> npt.NDArray[np.int8]:
    """The bits of the nearest float8 e4m3 of each number, of two that are as near the even one; at most 448."""
    size = np.abs(values)
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    codes = np.searchsorted(middles, size)
    tie = (codes < len(middles)) & (size == middles[np.minimum(codes, len(middles) - 1)])
    codes += tie & (codes % 2 == 1)
    return np.asarray(codes.astype(np.uint8) | (np.signbit(values).astype(np.uint8) << 7)).view(np.int8)


def float8_values(quantized: Quantized) -> FloatArray:
    """float32 of the weight's shape, as float8 times float32 scales."""
    bits = quantized.values.view(np.uint8)
    values = np.where(bits & 0x80, -1, 1).astype(np.float32) * E4M3[bits & 0x7F]
    return np.asarray(values * quantized.spread(quantized.scales), dtype=np.float32)


def nf4_values(quantized: Quantized) -> FloatArray:
    """float32 of the weight's shape, as levels times float32 scales."""
    return np.asarray(NF4_LEVELS[quantized.values] * quantized.spread(quantized.scales), dtype=np.float32)


def fitting_group(inputs: int, group: int) -> int:
    """The largest group of at most `group` that divides `inputs` and is a power of two of 16 or more; 0: none does."""
    while group >= 16:
        if inputs % group == 0:
            return group
        group //= 2
    return 0


def packed(values: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two 4-bit values a byte, the first in the low half, in row-major order (the layout of ONNX and OpenVINO).

    An odd count ends with an empty half.
    """
    flat = values.reshape(-1).view(np.uint8) & np.uint8(15)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[0::2] | (flat[1::2] << np.uint8(4)), dtype=np.uint8)


def _parts(weight: FloatArray, group: int) -> tuple[FloatArray, tuple[int, ...]]:
    """The weight with its groups on an axis of their own, and the axes that one scale covers."""
    if not group:
        return weight, tuple(range(1, weight.ndim))
    out, inputs, *rest = weight.shape
    return weight.reshape(out, inputs // group, group, *rest), (2,)


def _scale_shape(scales: Array, weight: FloatArray, group: int) -> Array:
    if not group:
        return scales.reshape(-1)
    out, inputs, *rest = weight.shape
    return scales.reshape(out, inputs // group, *rest)


def _finite(weight: FloatArray) -> None:
    if not np.isfinite(weight).all():
        raise BadInput("A weight holds NaN or infinity.", "Use a checkpoint that is not damaged.")
