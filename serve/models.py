"""The models that a worker holds: opened when they are asked for, within a budget of bytes."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UsageError, VitrifyError
from ..pipelines.diffusion import DiffusionPipeline
from ..pipelines.embeddings import read_embedding
from ..pipelines.load import family_of, load, open_artifact
from ..pipelines.placing import fitting
from ..pipelines.prompt_cache import Remember, is_text_encoder
from ..runtimes.base import Options
from .errors import UnknownModel, Unsupported

log = logging.getLogger("vitrify.serve")


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
        embeddings: files whose words every model learns that has the text encoders for them.
        opened, closed: are told of each; opened also of one that is asked to be pinned.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        *,
        device: str | None,
        runtime: str | None = None,
        options: Options | None = None,
        place: Mapping[str, str] | None = None,
        offload: str = "auto",
        remember: Remember | None = None,
        budget: int = 0,
        embeddings: Sequence[Path] = (),
        opened: Callable[[str, int, float, dict[str, Any], bool], None] = lambda *_: None,
        closed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._paths, self._device, self._runtime = dict(paths), device, runtime
        self._options, self._budget, self._embeddings = options or Options(), budget, tuple(embeddings)
        self._place, self._offload = dict(place or {}), offload
        self._remember = remember or Remember()
        self._untaught: dict[str, dict[str, str]] = {}
        self._opened, self._closed = opened, closed
        self._held: OrderedDict[str, Held] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def get(self, name: str, *, pinned: bool = False, beside: Collection[str] = ()) -> Any:
        """The model's pipeline, opened if need be.

        Args:
            beside: names of those that stay open, whatever room it needs.

        Raises:
            UnknownModel: there is none of this name. Unsupported: it is larger than the budget.
            VitrifyError: it does not open.
        """
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = self._open(name, pinned, beside)
        elif pinned:  # whoever asked waits to hear of it
            held.pinned = True
            self._opened(name, held.bytes, held.seconds, held.pipeline.placement, True)
        self._held.move_to_end(name)
        return held.pipeline

    def together(self, names: Sequence[str]) -> list[Any]:
        """The pipelines of all of these, open at once. Raises as `get`."""
        return [self.get(name, beside=names) for name in names]

    def untaught(self, name: str) -> Mapping[str, str]:
        """Words of embeddings that an open model did not learn, and why."""
        return self._untaught.get(name, {})

    def fits(self, name: str) -> bool:
        """Whether it is open, or can be opened without putting out another."""
        if name in self._held or not self._budget or name not in self._paths:
            return True
        held = sum(one.bytes for one in self._held.values())
        try:
            return held + open_artifact(self._paths[name]).weight_bytes <= self._budget
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

    def _open(self, name: str, pinned: bool, beside: Collection[str]) -> Held:
        if name not in self._paths:
            raise UnknownModel(f"No model {name!r} is served.", f"Ask for one of {', '.join(sorted(self._paths))}.")
        artifact = open_artifact(self._paths[name])
        size = artifact.weight_bytes
        self._make_room(name, size, beside)
        start = time.perf_counter()
        pipeline = load(
            artifact, self._device, options=self._options, runtime=self._runtime,
            place=fitting(self._place, artifact.components), offload=self._offload,
            prompt_bytes=self._remember.bytes, prompt_cache=self._remember.disk,
            free_text_encoders=self._remember.free,
            say=lambda line: log.info("opening a model", extra={"model": name, "what": line}),
        )  # fmt: skip
        try:
            self._teach(name, pipeline, family_of(artifact).components)
        except BaseException:
            pipeline.close()
            raise
        held = Held(pipeline, size, time.perf_counter() - start, pinned)
        self._opened(name, size, held.seconds, pipeline.placement, pinned)
        return held

    def _teach(self, name: str, pipeline: Any, components: Sequence[str]) -> None:
        """Lay the embeddings on a model that draws, and open again what they changed."""
        if not isinstance(pipeline, DiffusionPipeline):
            return
        self._untaught[name] = {}
        for file in self._embeddings:
            try:
                pipeline.adapters.add_embedding(file)
            except (BadInput, UsageError) as exc:
                self._untaught[name][read_embedding(file).word] = exc.what
                log.warning("an embedding is not for a model", extra={"model": name, "what": exc.what})
        for component in components:
            if not (self._remember.late and is_text_encoder(component)):
                pipeline.sessions[component]

    def _make_room(self, name: str, size: int, beside: Collection[str]) -> None:
        if not self._budget:
            return
        staying = {n: held.bytes for n, held in self._held.items() if held.pinned or n in beside}
        left = self._budget - sum(staying.values())
        if size > left:
            what = f"{name} has {size / 1e6:.0f} MB of weights; {left / 1e6:.0f} MB may be opened"
            with_it = [n for n in staying if n in beside]
            raise Unsupported(
                f"{what} beside {' and '.join(with_it)}." if with_it else f"{what}.",
                "Raise --memory-budget, serve a smaller artifact, or unload a pinned model.",
            )
        for other in [n for n in self._held if n not in staying]:
            if sum(held.bytes for held in self._held.values()) + size <= self._budget:
                return
            self.close(other, f"room for {name}")
