"""The open sessions of an artifact's components: opened when they are needed, with changed weights, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping

from ..core.artifact import Component
from ..runtimes.base import Session
from ..runtimes.low_rank import Override
from .budget import Budget

Overrides = Mapping[str, Override]
Opener = Callable[[Overrides], Session]


class Components(MutableMapping[str, Session]):
    """Component -> session. Asking for one that is not open opens it; going through them names those that are open.

    Args:
        openers: what opens each component, given its changed weights by name.
        parts: the artifact's components, for what reads their graphs.
        budget: bounds what open sessions hold together; None: no bound.
    """

    def __init__(
        self,
        openers: Mapping[str, Opener],
        *,
        parts: Mapping[str, Component] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._openers = dict(openers)
        self.parts = dict(parts or {})
        self.budget = budget
        self._open: dict[str, Session] = {}
        self._ran: dict[str, dict[str, str]] = {}  # placements of those that were closed
        self._overrides: dict[str, Overrides] = {}

    def __getitem__(self, name: str) -> Session:
        if name not in self._open and name not in self._openers:
            raise KeyError(name)
        self._make_room(name)
        if name not in self._open:
            self._open[name] = self._openers[name](self._overrides.get(name, {}))
        return self._open[name]

    def __setitem__(self, name: str, session: Session) -> None:
        self._open[name] = session

    def __delitem__(self, name: str) -> None:
        """Close a session; it is opened again when it is asked for."""
        session = self._open.pop(name)
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

    def change(self, name: str, overrides: Overrides) -> None:
        """Give a component changed weights from its next call on; none at all restores it bit for bit."""
        if not overrides and not self._overrides.get(name):
            return
        self._overrides[name] = overrides
        if name in self._open and name in self._openers:
            del self[name]

    def close(self) -> None:
        """Close all that is open."""
        for name in list(self._open):
            del self[name]

    def _make_room(self, name: str) -> None:
        """Close sessions, those that were opened first, until this one and its work fit beside the rest.

        Raises:
            DeviceError: it does not fit alone.
        """
        budget = self.budget
        if budget is None:
            return
        budget.check(name)
        left = budget.limit - budget.held - budget.needs(name)
        for other in [n for n in self._open if n != name and n in self._openers]:
            if sum(budget.sizes.get(n, 0) for n in self._open if n != name) <= left:
                return
            del self[other]
            budget.say(f"{other} closed for {name}")


def budget_of(sessions: Mapping[str, Session]) -> Budget | None:
    """What bounds the memory of these sessions, if anything does."""
    return sessions.budget if isinstance(sessions, Components) else None
