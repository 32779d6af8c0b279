"""The open sessions of an artifact's components: opened when they are needed, with changed weights, within a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from typing import Any

from ..core.artifact import Component
from ..runtimes.base import Session
from ..runtimes.low_rank import Override
from .budget import Budget
from .memory_report import Watch

Overrides = Mapping[str, Override]
Opener = Callable[[Overrides], Session]


class Components(MutableMapping[str, Session]):
    """Component -> session. Asking for one that is not open opens it; going through them names those that are open.

    Args:
        openers: what opens each component, given its changed weights by name.
        parts: the artifact's components, for what reads their graphs.
        budget: bounds what open sessions hold together; None: no bound.
        beside: names of those that may be opened while another works.
        watch: is told what each takes of the process's memory; then none is opened beside another.
        ways: component -> what else decides its numbers: runtime, device and options, as JSON data.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        *,
        parts: Mapping[str, Component] | None = None,
        budget: Budget | None = None,
        beside: Collection[str] = (),
        watch: Watch | None = None,
        ways: Mapping[str, Any] | None = None,
    ) -> None:
        self._openers = dict(openers)
        self.parts = dict(parts or {})
        self.budget = budget
        self.watch = watch
        self.ways = dict(ways or {})
        self._beside = frozenset(beside if watch is None else ())
        self._open: dict[str, Session] = {}
        self._ran: dict[str, dict[str, str]] = {}  # placements of those that were closed
        self._overrides: dict[str, Overrides] = {}
        self._coming: dict[str, Future[Session]] = {}
        self._others: set[str] = set()  # whose sessions somebody put there

    def __getitem__(self, name: str) -> Session:
        if name not in self._open and name not in self._openers:
            raise KeyError(name)
        if name in self._coming:
            self._open[name] = self._coming.pop(name).result()
        self._make_room(name)
        if name not in self._open:
            self._open[name] = self._opened(name)
        return self._open[name]

    def _opened(self, name: str) -> Session:
        opener, changed = self._openers[name], self.changed(name)
        return opener(changed) if self.watch is None else self.watch.opened(name, lambda: opener(changed))

    def is_coming(self, name: str) -> bool:
        """Whether a component is being opened, or was and nobody has asked for it yet."""
        return name in self._coming

    def ahead(self, name: str) -> None:
        """Begin to open a component that is needed soon, beside what works now, where its memory allows.

        What goes wrong is raised when the component is asked for.
        """
        if name in self._open or name in self._coming or name not in self._beside:
            return
        if self.budget is not None and not (self._open and self.budget.fits(name, [*self._open, *self._coming])):
            return  # where nothing is open yet, what is needed first has not been asked for
        opener, changed = self._openers[name], self.changed(name)
        coming: Future[Session] = Future()

        def work() -> None:
            try:
                coming.set_result(opener(changed))
            except BaseException as exc:  # for the one who asks for it
                coming.set_exception(exc)

        self._coming[name] = coming
        threading.Thread(target=work, name=f"open {name}").start()

    def __setitem__(self, name: str, session: Session) -> None:
        self._open[name] = session
        self._others.add(name)

    def __delitem__(self, name: str) -> None:
        """Close a session; it is opened again when it is asked for."""
        session = self._open.pop(name)
        self._others.discard(name)
        self._ran[name] = session.placement.to_json()
        session.close()

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, name: object) -> bool:
        return name in self._openers or name in self._open

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it, of those that were opened; a budget may have closed some since."""
        return {**self._ran, **{name: session.placement.to_json() for name, session in self._open.items()}}

    def is_own(self, name: str) -> bool:
        """Whether the component's own session runs it, and not one that somebody put in its place."""
        return name in self._openers and name not in self._others

    def changed(self, name: str) -> Overrides:
        """The changed weights that a component runs with; empty where it has its own."""
        return self._overrides.get(name, {})

    def change(self, name: str, overrides: Overrides) -> None:
        """Give a component changed weights from its next call on; none at all restores it bit for bit."""
        if not overrides and not self._overrides.get(name):
            return
        self._overrides[name] = overrides
        if name in self._coming:
            self._drop_coming(name)
        if name in self._open and name in self._openers:
            del self[name]

    def close(self) -> None:
        """Close all that is open or about to be."""
        for name in list(self._coming):
            self._drop_coming(name)
        for name in list(self._open):
            del self[name]

    def _drop_coming(self, name: str) -> None:
        coming = self._coming.pop(name)
        if coming.exception() is None:
            coming.result().close()

    def _make_room(self, name: str) -> None:
        """Close sessions, those that were opened first, until this one and its work fit beside the rest.

        Raises:
            DeviceError: it does not fit alone.
        """
        budget = self.budget
        if budget is None or name not in budget.sizes:
            return
        budget.check(name)
        for other in [n for n in self._coming if not budget.fits(name, [*self._open, n])]:
            self._drop_coming(other)
        for other in [n for n in self._open if n != name and n in self._openers and n in budget.sizes]:
            if budget.fits(name, [*self._open, *self._coming]):
                return
            del self[other]
            budget.say(f"{other} closed for {name}")


def watch_of(sessions: Mapping[str, Session]) -> Watch | None:
    """What is told of the memory of these sessions, if anything is."""
    return sessions.watch if isinstance(sessions, Components) else None


def budget_of(sessions: Mapping[str, Session]) -> Budget | None:
    """What bounds the memory of these sessions, if anything does."""
    return sessions.budget if isinstance(sessions, Components) else None
