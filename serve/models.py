"""The models that a worker holds: opened when they are asked for, within a budget of bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import VitrifyError
from ..pipelines.load import load, open_artifact
from ..runtimes.base import Options
from .errors import UnknownModel, Unsupported


@dataclass
class Held:
    """An open pipeline. bytes: of its weights, which is what it counts. seconds: what loading took."""

    pipeline: Any
    bytes: int
    seconds: float
    pinned: bool


class Models:
    """Pipelines by name; the one that was used longest ago makes room. A load that fails leaves the others as they are.

    Args:
        paths: name -> the artifact's folder. budget: bytes of weights that may be open at once; 0: no bound.
        opened, closed: are told of each; opened also of one that is asked to be pinned.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        *,
        device: str | None,
        runtime: str | None = None,
        options: Options | None = None,
        budget: int = 0,
        opened: Callable[[str, int, float, dict[str, Any], bool], None] = lambda *_: None,
        closed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._paths, self._device, self._runtime = dict(paths), device, runtime
        self._options, self._budget = options or Options(), budget
        self._opened, self._closed = opened, closed
        self._held: OrderedDict[str, Held] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, name: str, *, pinned: bool = False) -> Any:
        """The model's pipeline, opened if need be.

        Raises:
            UnknownModel: there is none of this name. Unsupported: it is larger than the budget.
            VitrifyError: it does not open.
        """
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = self._open(name, pinned)
        elif pinned:  # whoever asked waits to hear of it
            held.pinned = True
            self._opened(name, held.bytes, held.seconds, held.pipeline.placement, True)
        self._held.move_to_end(name)
        return held.pipeline

    def fits(self, name: str) -> bool:
        """Whether it is open, or can be opened without putting out another."""
        if name in self._held or not self._budget or name not in self._paths:
            return True
        held = sum(one.bytes for one in self._held.values())
        try:
            return held + weights_of(open_artifact(self._paths[name])) <= self._budget
        except VitrifyError:
            return True  # its own load says what is wrong

    def close(self, name: str, why: str = "it was asked for") -> bool:
        """Whether it was open."""
        held = self._held.pop(name, None)
        if held is None:
            return False
        held.pipeline.close()
        self._closed(name, why)
        return True

    def close_all(self) -> None:
        for name in list(self._held):
            self.close(name, "the worker ends")

    def _open(self, name: str, pinned: bool) -> Held:
        if name not in self._paths:
            raise UnknownModel(f"No model {name!r} is served.", f"Ask for one of {', '.join(sorted(self._paths))}.")
        artifact = open_artifact(self._paths[name])
        size = weights_of(artifact)
        self._make_room(name, size)
        start = time.perf_counter()
        pipeline = load(artifact, self._device, options=self._options, runtime=self._runtime)
        held = Held(pipeline, size, time.perf_counter() - start, pinned)
        self._opened(name, size, held.seconds, pipeline.placement, pinned)
        return held

    def _make_room(self, name: str, size: int) -> None:
        if not self._budget:
            return
        pinned = sum(held.bytes for held in self._held.values() if held.pinned)
        if size + pinned > self._budget:
            raise Unsupported(
                f"{name} has {size / 1e6:.0f} MB of weights; {(self._budget - pinned) / 1e6:.0f} MB may be opened.",
                "Raise --memory-budget, serve a smaller artifact, or unload a pinned model.",
            )
        for other in [n for n, held in self._held.items() if not held.pinned]:
            if sum(held.bytes for held in self._held.values()) + size <= self._budget:
                return
            self.close(other, f"room for {name}")


def weights_of(artifact: Artifact) -> int:
    """Bytes of all files of weights, each counted once."""
    return sum({w.path: w.bytes for c in artifact.components.values() for w in c.weights}.values())
