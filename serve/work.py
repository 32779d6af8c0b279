"""What the job core wants of whoever runs its jobs: the lanes in which they wait, and a view of what goes on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from .jobs import Job, Problem, State
from .messages import Began, Failed, Finished, Opened, Stepped
from .requests import GenerateRequest
from .waiting import Rates, Waiting

LANES = ("slow", "quick")


Changed = Callable[[str, Job], None]
"""Is told ("started" | "step" | "requeued", job)."""
Ended = Callable[[Job, State, Problem | None], None]
"""Is told how a job ended; its state is not set yet."""


@dataclass(frozen=True)
class Limits:
    """What is let in and kept. jobs: that may wait, in each lane. seconds: of work that may wait.

    timeout: seconds that a job may take. batch, draw: pictures that are labelled, and drawn, in one call. memory:
    resident bytes of a worker; 0: no bound. age: seconds that results are kept. size: bytes of all results.
    """

    jobs: int = 32
    seconds: float = 600.0
    timeout: float = 600.0
    batch: int = 32
    memory: int = 0
    age: float = 24 * 3600.0
    size: int = 2_000_000_000
    draw: int = 1


@dataclass(frozen=True)
class WorkerView:
    """A worker as it is now. resident: bytes of memory. restarts: how often it was lost. models: those it has open."""

    device: str
    ready: bool
    resident: int = 0
    restarts: int = 0
    models: dict[str, Opened] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """The server as it is now. seconds: of work that waits in each lane, by the measured speed."""

    ready: bool
    draining: bool
    running: list[Job]
    waiting: list[Job]
    seconds: dict[str, float]
    workers: list[WorkerView]

    def loaded(self, model: str) -> list[tuple[str, Opened]]:
        """(device, how it was opened) wherever it is open."""
        return [(one.device, one.models[model]) for one in self.workers if model in one.models]


class Work(ABC):
    """Two lanes: pictures, which take long, and labels, which do not wait for them."""

    def __init__(self, limits: Limits, changed: Changed, ended: Ended) -> None:
        self.limits, self.changed, self.ended = limits, changed, ended
        self.rates = Rates()
        self.lanes = {name: Waiting(limits.jobs, limits.seconds, self.rates) for name in LANES}

    def admit(self, job: Job) -> None:
        """Keep a place for it. Raises QueueFull."""
        left = sum(one.eta or 0.0 for one in self.running() if lane_of(one) == lane_of(job))
        self.lanes[lane_of(job)].reserve(job, left)

    def forget(self, job: Job) -> None:
        """It was admitted and does not come."""
        self.lanes[lane_of(job)].release(job)

    def enter(self, job: Job) -> None:
        """It waits, and begins as soon as it can."""
        self.lanes[lane_of(job)].push(job)
        self.pump()

    def leave(self, job: Job) -> bool:
        """Whether it waited; it does no more."""
        return self.lanes[lane_of(job)].remove(job)

    def waiting(self) -> list[Job]:
        return [job for lane in self.lanes.values() for job in lane]

    def heard(self, job: Job, message: Began | Stepped | Finished | Failed) -> tuple[State, Problem | None] | None:
        """Take in what a worker says of its job; how it ended, where it has."""
        if isinstance(message, Began):
            if job.started is None:
                job.state, job.started = State.RUNNING, time.time()
                self.changed("started", job)
        elif isinstance(message, Stepped):
            job.step, job.steps = message.step, message.steps
            job.eta = (message.steps - message.step) * message.seconds
            job.preview = message.preview or job.preview
            self.changed("step", job)
        elif isinstance(message, Finished):
            job.result = message.result
            self.rates.done(job, job.request.cost, message.seconds)
            return State.SUCCEEDED, None
        else:
            return State.CANCELLED if message.problem.code == "cancelled" else State.FAILED, message.problem
        return None

    def again(self, job: Job, *, alone: bool) -> None:
        """Its worker was lost and is not to blame: it waits as if it had not begun.

        alone: never again in a call with others.
        """
        job.alone, job.started, job.state = job.alone or alone, None, State.QUEUED
        job.step, job.steps, job.eta, job.preview = 0, 0, None, None
        self.lanes[lane_of(job)].push(job)
        self.changed("requeued", job)

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether jobs can begin on every worker."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    async def stop(self, grace: float) -> None:
        """Begin nothing more; let what runs finish for so many seconds; what did not is `interrupted`."""

    @abstractmethod
    def pump(self) -> None:
        """Let what waits begin, as far as there is room."""

    @abstractmethod
    def running(self) -> list[Job]:
        """What was given to workers."""

    @abstractmethod
    def workers(self) -> list[WorkerView]: ...

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Stop what runs within a step."""

    @abstractmethod
    def kill(self, job: Job, problem: Problem) -> None:
        """End the process that runs it; the job fails with this problem."""

    @abstractmethod
    async def open(self, model: str, *, pinned: bool) -> Opened:
        """Load a model, or find it open. Raises Failure."""

    @abstractmethod
    def close(self, model: str) -> None:
        """Unload it wherever it is open, once what runs is done."""


def lane_of(job: Job) -> str:
    return "slow" if isinstance(job.request, GenerateRequest) else "quick"
