"""What the server and a worker tell each other, through one pipe; plain data that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .jobs import Picture, Problem, Result
from .requests import Request


@dataclass(frozen=True)
class Task:
    """A job as a worker sees it."""

    id: str
    request: Request


@dataclass(frozen=True)
class Run:
    """Jobs of one model, classifications among them several at once."""

    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Cancel:
    """Stop this job within a step."""

    id: str


@dataclass(frozen=True)
class Open:
    """Load a model now. pinned: it is not put out for others."""

    model: str
    pinned: bool = False


@dataclass(frozen=True)
class Close:
    model: str


@dataclass(frozen=True)
class Stop:
    """End when what runs is done."""


@dataclass(frozen=True)
class Started:
    """The worker can be given jobs."""

    device: str


@dataclass(frozen=True)
class Opened:
    """bytes: what it counts against the budget. seconds: what loading took. pinned: it is not put out for others."""

    model: str
    bytes: int
    seconds: float
    placement: dict[str, Any] = field(default_factory=dict)
    pinned: bool = False


@dataclass(frozen=True)
class Closed:
    """why: asked for, or to make room for which model."""

    model: str
    why: str


@dataclass(frozen=True)
class NotOpened:
    model: str
    problem: Problem


@dataclass(frozen=True)
class Began:
    """These jobs run now, together."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Stepped:
    """A step of a job is done. seconds: what it took."""

    id: str
    step: int
    steps: int
    seconds: float
    preview: Picture | None = None


@dataclass(frozen=True)
class Finished:
    """seconds: what the job took the worker; of several at once, a share each."""

    id: str
    result: Result
    seconds: float


@dataclass(frozen=True)
class Failed:
    """problem: its code is `cancelled` where that was asked for."""

    id: str
    problem: Problem
