"""Prompts that were encoded before: a text encoder that is given the same tokens again is neither run nor opened.

A family's sessions are seen through `Prompts`, in which each text encoder is a `Remembered` one: a session that looks
up what it is given, by content. So no family knows of it, and a negative prompt that many requests share is encoded
once. What a session gave comes back bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.artifact import Component
from ..core.machine import free_at_once
from ..core.tensors import Array, TensorSpec, check_tensors
from ..runtimes.base import Placement, Session
from ..runtimes.low_rank import fingerprint
from .components import Components, Overrides

if TYPE_CHECKING:
    from .prompt_entries import Entries

DEFAULT_BYTES = 64_000_000  # 270 prompts of CLIP-L, or 7 of T5-XXL with 512 tokens
_LAYER = "hidden_states."  # SDXL's encoders give the states of all layers, 33 of them, and one is used


@dataclass(frozen=True)
class Remember:
    """What is kept of encoded prompts, and of those who encode them.

    bytes: in memory, for one pipeline; 0: nothing. disk: in the cache folder too. free: text encoders are closed once
    a request's prompts are encoded.
    """

    bytes: int = DEFAULT_BYTES
    disk: bool = False
    free: bool = False

    @property
    def late(self) -> bool:
        """Whether text encoders are opened when they are needed, and not with the pipeline."""
        return self.disk or self.free


@dataclass
class Encoding:
    """What encoding a request's prompts took. cached: answers that were known. ran: runs of text encoders."""

    cached: int = 0
    ran: int = 0

    def to_json(self) -> dict[str, int]:
        """For a result's timings; nothing where no text encoder remembers."""
        return {"encode_cached": self.cached} if self.cached or self.ran else {}


_NOW: ContextVar[Encoding | None] = ContextVar("encoding", default=None)  # of this thread's request


@contextmanager
def encoding(sessions: Mapping[str, Session]) -> Iterator[Encoding]:
    """While a request's prompts are encoded: counts; and where it was asked for, text encoders are closed at the end.

    Args:
        sessions: a family's.
    """
    found = Encoding()
    token = _NOW.set(found)
    prompts = sessions if isinstance(sessions, Prompts) else None
    if prompts is not None:
        prompts.begin()
    try:
        yield found
    finally:
        _NOW.reset(token)
        if prompts is not None:
            prompts.end()


def is_text_encoder(component: str) -> bool:
    return component.startswith("text_encoder")


def remember_prompts(
    pipeline: Any,
    sessions: Components,
    settings: Mapping[str, Any],
    wish: Remember,
    say: Callable[[str], None] | None = None,
) -> None:
    """Let a pipeline's family see its sessions through `Prompts`; nothing where it has none or nothing is wished for.

    Args, Raises: as `Prompts`.
    """
    family = getattr(pipeline, "family", None)
    if family is not None and (wish.bytes or wish.late):
        family.sessions = Prompts(sessions, settings, wish, say)


class Prompts(Mapping[str, Session]):
    """Sessions as a family sees them: its text encoders remember, all others are as they are.

    Args:
        settings: the manifest's `pipeline` part.
        say: is told once, in a line, that the cache folder cannot be written.

    Raises:
        UsageError: $VITRIFY_CACHE_MAX is no number, where answers are kept on disk.
    """

    def __init__(
        self,
        sessions: Components,
        settings: Mapping[str, Any],
        wish: Remember,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._sessions, self._free = sessions, wish.free
        self._turn, self._encoding = threading.RLock(), 0
        memory = Memory(wish.bytes)
        layers = dict(settings.get("text", {}).get("states", {}))
        self._encoders = {
            name: Remembered(
                sessions,
                part,
                layers.get(name),
                memory,
                _entries(part, sessions.ways.get(name), say) if wish.disk else None,
                self._turn,
            )
            for name, part in sessions.parts.items()
            if is_text_encoder(name)
        }
        if wish.free and sessions.budget is None:
            free_at_once()  # else a C library keeps what a session held; within a budget it is told already

    def __getitem__(self, name: str) -> Session:
        return self._encoders[name] if name in self._encoders else self._sessions[name]

    def __contains__(self, name: object) -> bool:
        return name in self._sessions

    def __iter__(self) -> Iterator[str]:
        return iter(self._sessions)

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self) -> None:
        """A request's prompts will be encoded."""
        with self._turn:
            self._encoding += 1

    def end(self) -> None:
        """They are encoded, or it failed; where no other request's are under way, encoders may be closed."""
        with self._turn:
            self._encoding -= 1
            if self._free and not self._encoding:
                for one in self._encoders.values():
                    one.close()


class Memory:
    """Answers by key, at most `limit` bytes of them; those that were not asked for longest go first."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._lock = threading.Lock()
        self._answers: OrderedDict[str, dict[str, Array]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> dict[str, Array] | None:
        """A copy, which is the caller's; None where there is none."""
        with self._lock:
            answer = self._answers.get(key)
            if answer is None:
                return None
            self._answers.move_to_end(key)
        return _copy(answer)

    def put(self, key: str, answer: Mapping[str, Array]) -> None:
        """Keep a copy; nothing of what is larger than all that may be kept."""
        size = _size(answer)
        if size > self.limit:
            return
        own = _copy(answer)
        with self._lock:
            if key in self._answers:
                self.bytes -= _size(self._answers.pop(key))
            self._answers[key] = own
            self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= _size(self._answers.popitem(last=False)[1])


class Remembered:
    """A text encoder that is run once for each input. Its `inputs` and `outputs` are known without opening it.

    A session that somebody put in the place of the component's own is run each time: who did that watches it.

    Args:
        layer: the output with the states of the layer that is used; those of other layers are left out. None: all.
        turn: held while a text encoder is opened, run or closed, so that two threads neither encode a prompt twice nor
            close what runs.
    """

    def __init__(
        self,
        sessions: Components,
        component: Component,
        layer: str | None,
        memory: Memory,
        entries: Entries | None,
        turn: threading.RLock,
    ) -> None:
        self._sessions, self._name = sessions, component.name
        self._memory, self._entries, self._turn = memory, entries, turn
        self._prints: list[tuple[Mapping[str, Any], str]] = []
        self.inputs: Mapping[str, TensorSpec] = component.inputs
        self.outputs: Mapping[str, TensorSpec] = {
            n: spec for n, spec in component.outputs.items() if layer is None or n == layer or not n.startswith(_LAYER)
        }

    @property
    def placement(self) -> Placement:
        """Of the session, which is opened for it."""
        with self._turn:
            return self._sessions[self._name].placement

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if not self._sessions.is_own(self._name):
            return self._run(tensors)
        check_tensors(self.inputs, tensors)
        changed = self._changed()
        key = digest_of(tensors, self._name, changed)
        found = self._known(key, tensors, changed)
        if found is None:
            with self._turn:
                found = self._known(key, tensors, changed)  # another thread may have encoded it meanwhile
                if found is None:
                    answer = self._run(tensors)
                    self._keep(key, tensors, changed, answer)
                    return answer
        now = _NOW.get()
        if now is not None:
            now.cached += 1
        return found

    def close(self) -> None:
        """Close the session; it is opened again for what is not known."""
        with self._turn:
            if self._name in list(self._sessions) and self._sessions.is_own(self._name):
                del self._sessions[self._name]

    def _run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        with self._turn:
            answer = self._sessions[self._name].run(tensors)
        now = _NOW.get()
        if now is not None:
            now.ran += 1
        return {name: answer[name] for name in self.outputs}

    def _known(self, key: str, tensors: Mapping[str, Array], changed: str) -> dict[str, Array] | None:
        found = self._memory.get(key)
        if found is None and self._entries is not None:
            found = self._entries.get(digest_of(tensors), changed)
            if found is not None:
                self._memory.put(key, found)
        return found

    def _keep(self, key: str, tensors: Mapping[str, Array], changed: str, answer: Mapping[str, Array]) -> None:
        if not all(np.isfinite(value).all() for value in answer.values() if value.dtype.kind == "f"):
            return  # the family says what is wrong, and so it shall the next time
        self._memory.put(key, answer)
        if self._entries is not None:
            self._entries.put(digest_of(tensors), changed, answer)

    def _changed(self) -> str:
        """What tells the component's changed weights from any others; empty where none is changed."""
        overrides = self._sessions.changed(self._name)
        if not overrides:
            self._prints = []
            return ""
        # one after the other, as they are laid on; a LoRA comes and goes while an embedding's table stays
        layers = overrides.maps if isinstance(overrides, ChainMap) else [overrides]
        known = list(self._prints)
        self._prints = [
            (layer, next((text for one, text in known if one is layer), None) or _print_of(layer)) for layer in layers
        ]
        return hashlib.sha256(json.dumps([text for _, text in self._prints]).encode()).hexdigest()


def _entries(component: Component, way: Any, say: Callable[[str], None] | None) -> Entries:
    from .prompt_entries import Entries  # who keeps nothing on disk does not wait for it

    return Entries(component, way, say or (lambda line: None))


def _print_of(changes: Overrides) -> str:
    """A LoRA's small matrices say what the weights will be: to compute those would take as long as to open them."""
    own = getattr(changes, "fingerprint", None)  # of `lora.Changes`
    told = own() if own is not None else {name: fingerprint(value) for name, value in changes.items()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def digest_of(tensors: Mapping[str, Array], *more: str) -> str:
    """The sha256 of tensors, with their names, dtypes and shapes, and of texts."""
    found = hashlib.sha256(json.dumps(more).encode())
    for name in sorted(tensors):
        value = np.asarray(tensors[name])
        found.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        found.update(value.tobytes())
    return found.hexdigest()


def _copy(answer: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(value) for name, value in answer.items()}


def _size(answer: Mapping[str, Array]) -> int:
    return sum(value.nbytes for value in answer.values())
