"""Random normal numbers that torch would give, without torch: a seed makes the same noise as in diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..core.errors import BadInput

FloatArray = npt.NDArray[np.float32]

TWO_PI = np.float32(2 * math.pi)
BLOCK = 16  # torch's CPU kernel turns 16 uniforms at a time into 16 normals
WORD = 0xFFFFFFFF


class Generator(Protocol):
    """A stream of independent standard normal numbers; each call goes on where the last one ended."""

    def normal(self, shape: Sequence[int]) -> FloatArray:
        """Draws float32 numbers of mean 0 and variance 1 in an array of `shape`."""


class TorchCpuGenerator:
    """The numbers of `torch.Generator("cpu").manual_seed(seed)` and `torch.randn`, to 1e-6.

    MT19937 (Matsumoto and Nishimura, 1998) and Box-Muller (1958), in the order of torch's
    `aten/src/ATen/native/cpu/DistributionTemplates.h`: from 16 numbers on in float32 blocks, below that one by one in
    float64.

    Args:
        seed: -2**63 to 2**64 - 1; torch's CPU generator uses its low 32 bits only.

    Raises:
        BadInput: the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        # RandomState seeds with the reference init_genrand, as torch does; MT19937(seed) alone hashes the seed first.
        state: Any = np.random.RandomState(_unsigned_seed(seed) & WORD).get_state(legacy=False)
        self._bits.state = state
        self._spare: float | None = None

    def normal(self, shape: Sequence[int]) -> FloatArray:
        """Draws float32 numbers of mean 0 and variance 1 in an array of `shape`."""
        count = math.prod(shape)
        values = self._blocks(count) if count >= BLOCK else self._one_by_one(count)
        return values.reshape(tuple(shape))

    def _blocks(self, count: int) -> FloatArray:
        """torch's kernel for 16 numbers or more (float32)."""
        uniforms = self._uniforms(count)
        whole = count - count % BLOCK
        values = np.empty(count, dtype=np.float32)
        values[:whole] = _box_muller_blocks(uniforms[:whole])
        if whole < count:
            # The last 16 overlap the block before them and are drawn anew.
            values[-BLOCK:] = _box_muller_blocks(self._uniforms(BLOCK))
        return values

    def _one_by_one(self, count: int) -> FloatArray:
        """torch's kernel below 16 numbers (float64), which keeps every second normal for later, even across calls."""
        values = np.empty(count, dtype=np.float32)
        for i in range(count):
            if self._spare is not None:
                values[i], self._spare = self._spare, None
                continue
            high, low = self._bits.random_raw(4).reshape(2, 2).T.tolist()
            first, second = (((h << 32 | w) & (2**53 - 1)) * 2.0**-53 for h, w in zip(high, low, strict=True))
            radius = math.sqrt(-2.0 * math.log1p(-second))
            self._spare = radius * math.sin(2.0 * math.pi * first)
            values[i] = radius * math.cos(2.0 * math.pi * first)
        return values

    def _uniforms(self, count: int) -> FloatArray:
        """float32 [count] in [0, 1), multiples of 2**-24: what a float32 holds without rounding."""
        low_bits = self._bits.random_raw(count) & np.uint64(0xFFFFFF)
        uniforms: FloatArray = low_bits.astype(np.float32) * np.float32(2.0**-24)
        return uniforms


class PhiloxGenerator:
    """The numbers of `torch.randn(..., device="cuda")` after `manual_seed(seed)`, computed on the CPU.

    Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11) with cuRAND's float Box-Muller.
    Number i of call n comes from counter (n, 0, i, 0). On the GPU this holds while one call draws no more numbers than
    the kernel starts threads (40960 on a T4, 221184 on an A100); beyond that CUDA's own
    result depends on the card, and this generator goes on with one counter a number, as A1111's "NV" numbers do.

    Args:
        seed: -2**63 to 2**64 - 1.

    Raises:
        BadInput: the seed is outside that range.
    """

    def __init__(self, seed: int) -> None:
        self._seed = _unsigned_seed(seed)
        self._calls = 0

    def normal(self, shape: Sequence[int]) -> FloatArray:
        """Draws float32 numbers of mean 0 and variance 1 in an array of `shape`."""
        count = math.prod(shape)
        if count == 0:
            return np.empty(tuple(shape), dtype=np.float32)
        first, second = _philox_words(self._seed, self._calls & WORD, count)
        self._calls += 1
        # curand_normal.h: the half of a step keeps log away from zero; sine is the first of the pair.
        step = 2.0**-32
        radius = np.sqrt(-2.0 * np.log((first + 0.5) * step))
        values: FloatArray = (radius * np.sin((second + 0.5) * (step * 2.0 * math.pi))).astype(np.float32)
        return values.reshape(tuple(shape))


GENERATORS: dict[str, type[TorchCpuGenerator] | type[PhiloxGenerator]] = {
    "cpu": TorchCpuGenerator,
    "philox": PhiloxGenerator,
}


def generator(name: str, seed: int) -> Generator:
    """The generator called `name` ("cpu": torch's CPU numbers, "philox": CUDA's), seeded.

    Raises:
        BadInput: there is no such generator, or the seed is outside -2**63 to 2**64 - 1.
    """
    if name not in GENERATORS:
        raise BadInput(f"There is no random number generator {name!r}.", f"Choose one of: {', '.join(GENERATORS)}.")
    return GENERATORS[name](seed)


def random_seed() -> int:
    """A seed that nobody chose, short enough to be typed again."""
    return int(np.random.default_rng().integers(2**32))


def _unsigned_seed(seed: int) -> int:
    """The seed as torch reads it: 64 bits, a negative one in two's complement."""
    if not -(2**63) <= seed < 2**64:
        raise BadInput(f"The seed {seed} has more than 64 bits.", "Give a seed from 0 to 18446744073709551615.")
    return int(seed) & (2**64 - 1)


def _box_muller_blocks(uniforms: FloatArray) -> FloatArray:
    """float32 [16 n] uniforms to float32 [16 n] normals; of 16, the first 8 are radii and the last 8 angles."""
    radii, angles = uniforms.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - radii))
    theta = TWO_PI * angles
    normals: FloatArray = np.stack([radius * np.cos(theta), radius * np.sin(theta)], axis=1).reshape(-1)
    return normals


def _philox_words(seed: int, call: int, count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """The first two of the four 32-bit words of Philox4x32-10 for counters (call, 0, 0..count-1, 0): uint64 [count]."""
    mask, shift = np.uint64(WORD), np.uint64(32)
    c0 = np.full(count, call, dtype=np.uint64)
    c1 = np.zeros(count, dtype=np.uint64)
    c2 = np.arange(count, dtype=np.uint64)
    c3 = np.zeros(count, dtype=np.uint64)
    key0, key1 = seed & WORD, seed >> 32
    for _ in range(10):
        product0 = c0 * np.uint64(0xD2511F53)
        product1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> shift) ^ c1 ^ np.uint64(key0),
            product1 & mask,
            (product0 >> shift) ^ c3 ^ np.uint64(key1),
            product0 & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & WORD, (key1 + 0xBB67AE85) & WORD
    return c0, c1
