"""What each component of a generation takes of the process's memory: who wants to know gives a `Watch` to `load`.

Without one nothing is read. With one, components are opened one after the other, for what two add at the same time
cannot be told apart, and each call of a session reads /proc twice, some 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..core.machine import forget_peak, peak_resident, resident
from ..core.tensors import Array
from ..runtimes.base import Session
from ..runtimes.forwarding import ForwardingSession
from .budget import Budget


class Watch:
    """Bytes of resident memory, component by component, of sessions on the CPU. For one generation at a time.

    Where the system does not let a process forget its peak, each peak is that since the process's start.
    """

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, int | None]] = {}
        self._peak = 0

    def opened(self, name: str, opener: Callable[[], Session]) -> Session:
        """The session that `opener` gives, with its calls watched. One on another device than the CPU is as it was."""
        before = resident()
        self._forget()
        session = opener()
        opening = self._keep()
        if session.placement.device != "cpu":
            return session
        self._rows[name] = {"opened": max(0, resident() - before), "opening": opening, "peak": None}
        return Watched(session, name, self)

    def worked(self, name: str, run: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        """What `run` gives, a call of this component."""
        self._forget()
        try:
            return run()
        finally:
            row, peak = self._rows[name], self._keep()
            row["peak"] = max(row["peak"] or 0, peak) if peak is not None else None

    def begin(self) -> None:
        """A generation begins: peaks are its own from here on."""
        self._forget()
        self._peak = 0
        for row in self._rows.values():
            row["peak"] = None

    def peak(self) -> int | None:
        """The most that the process held since `begin`."""
        return None if self._keep() is None else self._peak

    def to_json(self) -> dict[str, dict[str, int | None]]:
        """Component -> {opened, opening, peak}, of those that were opened, also where they were closed since.

        opened: what the process held more with the session than before; of weights that stay mapped nearly nothing,
        for they come with the first call. opening: the most that the process held meanwhile. peak: the most that it
        held during this component's calls, whatever else was open; None where there was none. All None where the
        system does not say.
        """
        return {name: dict(row) for name, row in self._rows.items()}

    def _forget(self) -> None:
        self._keep()
        forget_peak()

    def _keep(self) -> int | None:
        found = peak_resident()
        self._peak = max(self._peak, found or 0)
        return found


class Watched(ForwardingSession):
    """A session whose calls a `Watch` is told of."""

    def __init__(self, session: Session, name: str, watch: Watch) -> None:
        super().__init__(session)
        self._name, self._watch = name, watch

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return self._watch.worked(self._name, lambda: self._session.run(tensors))


def begin(budget: Budget | None, watch: Watch | None) -> None:
    """A generation begins whose memory is to be told: within a bound, or because somebody asked."""
    if watch is not None:
        watch.begin()
    elif budget is not None:
        forget_peak()


def report(budget: Budget | None, watch: Watch | None) -> dict[str, Any] | None:
    """For a result: what was allowed, the peak, what was done, and each component's share; None where nobody asked."""
    if budget is None and watch is None:
        return None
    peak = watch.peak() if watch is not None else None
    if budget is not None and (watch is None or budget.device != "cpu"):
        peak = budget.peak()
    told = budget.to_json(peak) if budget is not None else {"budget": None, "peak": peak, "done": []}
    return told | ({"components": watch.to_json()} if watch is not None else {})
