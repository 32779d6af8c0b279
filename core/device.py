"""Device names as users write them: cpu, cuda:0, gpu, npu, auto."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import UsageError

_LISTS = ("auto", "hetero")  # kinds that take a list of devices
KINDS = ("cpu", "cuda", "gpu", "npu", "auto", "hetero", "directml", "coreml", "rocm", "xpu", "mps")


@dataclass(frozen=True)
class Device:
    """A device kind and, where there are several, its number. `hetero:GPU,CPU` keeps its list in `detail`."""

    kind: str
    index: int | None = None
    detail: str = ""

    @classmethod
    def parse(cls, text: str) -> Device:
        """`cpu`, `cuda:1`, `GPU.0`, `hetero:GPU,CPU`.

        Raises:
            UsageError: the name is not a device.
        """
        match = re.fullmatch(r"([a-z]+)(?:[:.](\d+)|:([a-z0-9.,]+))?", text.strip().lower())
        # a list behind another kind would be dropped without a word
        if match is None or match[1] not in KINDS or (match[3] and match[1] not in _LISTS):
            raise UsageError(
                f"{text!r} is not a device.", f"Devices are {', '.join(KINDS)}, with a number as in cuda:1."
            )
        return cls(match[1], int(match[2]) if match[2] else None, (match[3] or "").upper())

    def __str__(self) -> str:
        if self.detail:
            return f"{self.kind}:{self.detail}"
        return self.kind if self.index is None else f"{self.kind}:{self.index}"
