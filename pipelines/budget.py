"""A bound for the memory of a generation: components in turn, the VAE in tiles, guidance in two calls.

What is counted is the process's resident memory. Sizes are estimates: an open session holds its weights once in the
type that it computes in (measured on ONNX Runtime: 0.97 to 1.04 of it), and SD 1.5's VAE needs 3.9 kB a pixel to
decode (measured at 128, 256 and 512 pixels, where freed memory goes back at once). What a denoiser needs besides grows
with the picture and is not known before it runs: `HEADROOM` is what small pictures take; the peak is measured and told.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.artifact import Component
from ..core.errors import BadArtifact, DeviceError, UsageError
from ..core.machine import peak_resident
from ..runtimes.initializers import initializers
from ..runtimes.ir_constants import constant_bytes

VAE_PIXEL = 4_500
HEADROOM = 1.06  # SD 1.5's UNet at 256x256, one row a call: 3.64 GB for 3.44 GB of weights
SMALLEST_TILE = 256  # pixels; below it the tiles' own normalization shows
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_WIDENED = (10, 16)  # TensorProto.FLOAT16 and BFLOAT16, which CPUs compute in float32
_FLOAT = 1
UNBOUNDED = sys.maxsize


def parse_bytes(text: str) -> int:
    """Bytes from `6GB`, `800 MB` or `2GiB`.

    Raises:
        UsageError: something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no amount of memory.", "Give it as 6GB, 800MB or 2GiB.")
    return int(float(match[1]) * _UNITS[match[2] or ""])


@dataclass
class Budget:
    """limit: bytes of memory. held: what the process held before the first session, in bytes.

    sizes: component -> bytes of an open session, about, of those on the device whose memory it is. work: component ->
    bytes that its next call needs besides. notes: what was done to stay within the limit, in order.
    device: whose memory is bounded; the CPU's is the process's resident memory.
    in_turn: one component is open at a time, even where more would fit.
    """

    limit: int
    held: int
    sizes: Mapping[str, int]
    notes: list[str] = field(default_factory=list)
    work: dict[str, int] = field(default_factory=dict)
    device: str = "cpu"
    in_turn: bool = False

    @property
    def bounded(self) -> bool:
        """Whether there is a bound at all, beside components in turn."""
        return self.limit < UNBOUNDED

    def peak(self) -> int | None:
        """Bytes at the peak since `core.machine.forget_peak`; None on a device that does not tell."""
        return peak_resident() if self.device == "cpu" else None

    def fits(self, name: str, open_: Iterable[str]) -> bool:
        """Whether this component and its work fit beside those that are open."""
        if name not in self.sizes:
            return True
        beside = [n for n in open_ if n != name and n in self.sizes]
        if self.in_turn:
            return not beside
        return sum(self.sizes[n] for n in beside) <= self.limit - self.held - self.needs(name)

    def say(self, note: str) -> None:
        """Remember what was done; once, however often it is done."""
        if note not in self.notes:
            self.notes.append(note)

    def check(self, name: str) -> None:
        """Refuse a component that does not fit alone.

        Raises:
            DeviceError: says how much it needs.
        """
        needed = self.sizes.get(name, 0) + self.held
        if needed > self.limit:
            where = "" if self.device == "cpu" else f" on {self.device}"
            raise DeviceError(
                f"{name} alone needs about {needed / 1e9:.2f} GB{where}, more than the {self.limit / 1e9:.2f} GB "
                "allowed.",
                f"Allow --memory {math.ceil(needed / 1e8) / 10:g}GB, or compile to int8-weights.",
            )

    def needs(self, name: str) -> int:
        """Bytes that a component holds while it works, as far as known."""
        return self.sizes.get(name, 0) + self.work.get(name, 0)

    def tile(self, name: str, size: tuple[int, int], chosen: int | None = None) -> int | None:
        """The side in pixels of the tiles that a VAE's picture of `size` is done in; None: whole.

        Its `work` is known from then on.

        Args:
            chosen: the side that the user wants in any case.
        """
        if name not in self.sizes:  # it runs on another device
            return chosen
        if chosen is not None:
            self.work[name] = min(size[0], chosen) * min(size[1], chosen) * VAE_PIXEL
            return chosen
        left = self.limit - self.held - self.sizes.get(name, 0)
        self.work[name] = size[0] * size[1] * VAE_PIXEL
        if self.work[name] <= left:
            return None
        side = max(SMALLEST_TILE, int(math.sqrt(max(left, 0) / VAE_PIXEL)) // 64 * 64)
        if side >= max(size):
            return None
        self.work[name] = side * side * VAE_PIXEL
        self.say(f"{name} in tiles of {side}x{side} pixels")
        return side

    def to_json(self, peak: int | None) -> dict[str, Any]:
        """For a result: bytes allowed (None: any), bytes at the peak (None where nobody says), and what was done."""
        return {"budget": self.limit if self.bounded else None, "peak": peak, "done": list(self.notes)}


def session_bytes(component: Component) -> int:
    """What a session of it holds while it works on small pictures, about, in bytes."""
    stored = sum(weights.bytes for weights in component.weights)
    if component.format not in ("onnx", "openvino"):
        return int(stored * HEADROOM)
    try:
        if component.format == "openvino":  # a part of a graph may share the file of the whole one
            return int(constant_bytes(component.graph_path) * HEADROOM)
        found = initializers(component.graph_path).values()
    except BadArtifact:  # told when it is opened
        return int(stored * HEADROOM)
    # not the files' sizes: a VAE's holds the encoder's weights and the decoder's
    floats = sum(math.prod(i.shape) * 4 for i in found if i.type in (_FLOAT, *_WIDENED))
    others = sum(math.prod(i.shape) for i in found if i.external and i.type not in (_FLOAT, *_WIDENED))
    return int((floats + others) * HEADROOM)
