"""A job: what was asked for, how far it is, and what came of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ..core.errors import VitrifyError
from .requests import InferRequest, Request


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The server ended while it ran."""

    @property
    def final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Problem:
    """Why a job failed. code: stable, see `errors`."""

    code: str
    what: str
    fix: str

    @classmethod
    def of(cls, exc: VitrifyError) -> Problem:
        return cls(exc.code, exc.what, exc.fix)

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "what": self.what, "fix": self.fix}


class Failure(VitrifyError):
    """What a job, or a model that was to be opened, failed with; code, what and fix are the problem's own."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what, problem.fix)
        self.code, self.problem = problem.code, problem

    def __reduce__(self) -> tuple[type[Failure], tuple[Problem]]:  # type: ignore[override]
        return type(self), (self.problem,)

    @classmethod
    def of(cls, job: Job) -> Failure:
        """Of a job that ended and did not succeed."""
        return cls(job.problem or Problem("error", "The job failed.", "Look at the server's log."))


CANCELLED = Problem("cancelled", "The job was cancelled.", "Ask for it again.")
STOPPED = Problem("interrupted", "The server ended while this job ran.", "Ask for it again.")


@dataclass(frozen=True)
class Picture:
    """An encoded picture. source: its bytes, or the file that holds them. kind: png, jpeg or webp."""

    source: bytes | Path = field(repr=False)
    kind: str = "png"

    @property
    def data(self) -> bytes:
        """Raises OSError: the file is gone."""
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    @property
    def media_type(self) -> str:
        return f"image/{self.kind}"


@dataclass
class Result:
    """What a job gave.

    answers: of a classification, one a picture. pictures: of a generation. tensors: of an inference.
    details: seed, parameters, timings (seconds), placement.
    """

    answers: list[Any] | None = None
    pictures: list[Picture] = field(default_factory=list)
    tensors: dict[str, Any] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)  # a job is itself: requests hold arrays, which have no one answer to ==
class Job:
    """One request on its way. Times are seconds since the epoch.

    client: who may see it. durable: it outlives its connection, and the server. deadline: when it must be done.
    eta: seconds that the steps that are left should take.
    """

    request: Request
    client: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    durable: bool = False
    priority: int = 0
    deadline: float | None = None
    state: State = State.QUEUED
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    step: int = 0
    steps: int = 0
    eta: float | None = None
    preview: Picture | None = None
    problem: Problem | None = None
    result: Result | None = None
    cancelled: bool = False
    alone: bool = False

    @property
    def kind(self) -> str:
        return self.request.kind

    @property
    def model(self) -> str:
        return self.request.model

    def to_json(self) -> dict[str, Any]:
        """What every protocol may tell of it; results are links, which the protocol makes."""
        said: dict[str, Any] = {
            "id": self.id, "status": self.state.value, "kind": self.kind, "model": self.model,
            "created": self.created, "started": self.started, "finished": self.finished, "priority": self.priority,
        }  # fmt: skip
        if not isinstance(self.request, InferRequest):
            said["request"] = {k: v for k, v in self.request.to_json().items() if k not in ("kind", "model")}
        if self.steps:
            said |= {"step": self.step, "steps": self.steps, "eta": self.eta}
        if self.problem is not None:
            said["error"] = self.problem.to_json()
        if self.result is not None and self.state is State.SUCCEEDED:
            said["details"] = self.result.details
            if self.result.answers is not None:
                said["answers"] = self.result.answers
        return said
