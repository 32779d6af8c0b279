"""Weights in eight-bit floats: what each of the 256 bytes stands for, exactly, as float16.

E4M3 and E5M2 as in "FP8 Formats for Deep Learning" (Micikevicius et al., arXiv:2209.05433): a sign, an exponent with
a bias of 7 or 15, a mantissa of 3 or 2 bits. E4M3 has no infinity, and NaN only where all other bits are set. Every
value of either is one of float16's.
"""

from __future__ import annotations

import numpy as np

from ...core.tensors import Array

# safetensors' name -> (bits of the mantissa, bias of the exponent)
EIGHT_BITS = {"F8_E4M3": (3, 7), "F8_E5M2": (2, 15)}


def widened(data: bytes | bytearray, dtype: str) -> Array:
    """float16 [len(data)]: the values of eight-bit floats.

    Args:
        dtype: a key of `EIGHT_BITS`.
    """
    values: Array = _table(dtype)[np.frombuffer(data, np.uint8)]
    return values


def _table(dtype: str) -> Array:
    mantissa_bits, bias = EIGHT_BITS[dtype]
    code = np.arange(256)
    sign = np.where(code & 0x80, -1.0, 1.0)
    exponent = (code & 0x7F) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + fraction) * np.exp2(exponent - bias)
    value = sign * np.where(exponent == 0, fraction * np.exp2(1 - bias), normal)
    if dtype == "F8_E4M3":
        value[(code & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        value[top] = np.where(fraction[top] == 0, sign[top] * np.inf, np.nan)
    table: Array = value.astype(np.float16)
    return table
