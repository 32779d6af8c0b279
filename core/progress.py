"""Progress of long work: plain events that the command line draws and the server streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    stage: what is being done, such as "export unet" or "step".
    done, total: how far, in `unit`s; total is None where it is not known.
    note: one line for the reader, such as why a cache missed.
    """

    stage: str
    done: float = 0
    total: float | None = None
    unit: str = ""
    note: str = ""


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """A `Report` that draws nothing."""
