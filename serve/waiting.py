"""The bounded queue: what waits, in what order, and how long a newcomer would."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator

from .errors import QueueFull
from .jobs import Job

_START = {"generate": 2e6, "classify": 20.0, "infer": 20.0}  # cost a second, before anything was measured
_WEIGHT = 0.3  # of the newest measurement in the moving average


class Rates:
    """How much of its cost each model does in a second, measured."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], float] = {}

    def done(self, job: Job, cost: float, seconds: float) -> None:
        """So much of the job took so long."""
        if seconds > 0 and cost > 0:
            rate, known = cost / seconds, self._rates.get((job.kind, job.model))
            self._rates[job.kind, job.model] = rate if known is None else known + _WEIGHT * (rate - known)

    def seconds(self, job: Job) -> float:
        """What the whole of it should take."""
        return job.request.cost / self._rates.get((job.kind, job.model), _START[job.kind])


class Waiting:
    """Jobs that wait: at most `jobs` of them, and at most `seconds` of work by the measured rates.

    A job that alone is longer than that is let in when nothing waits: it could never come else.
    """

    def __init__(self, jobs: int, seconds: float, rates: Rates) -> None:
        self._limit, self._seconds, self._rates = jobs, seconds, rates
        self._heap: list[tuple[int, int, Job]] = []
        self._reserved: list[Job] = []
        self._order = itertools.count()

    def __len__(self) -> int:
        """Those that may run; places that are only kept do not count."""
        return len(self._heap)

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they would run."""
        return (job for _, _, job in sorted(self._heap, key=lambda one: one[:2]))

    @property
    def seconds(self) -> float:
        """What waits, by the measured rates."""
        return sum(self._rates.seconds(job) for job in [*self, *self._reserved])

    def reserve(self, job: Job, running: float = 0.0) -> None:
        """Keep a place for it while it is written down. running: seconds that what runs now will still take.

        Raises:
            QueueFull: there is none; says after how many seconds there should be.
        """
        held = [*self, *self._reserved]
        waits, own = self.seconds, self._rates.seconds(job)
        if held and (len(held) >= self._limit or waits + own > self._seconds):
            first = min(self._rates.seconds(one) for one in held)
            after = max(1.0, running + first, running + waits + own - self._seconds)
            what = f"{len(held)} jobs wait" if len(held) > 1 else "One job waits"
            raise QueueFull(
                f"{what}, about {waits:.0f} s of work; there is no room for this one.",
                f"Ask again in {after:.0f} s.",
                after,
            )
        self._reserved.append(job)

    def release(self, job: Job) -> None:
        """Give the kept place back."""
        self._reserved = [one for one in self._reserved if one is not job]

    def push(self, job: Job) -> None:
        """It waits, in the place that was kept for it or in one more."""
        self.release(job)
        heapq.heappush(self._heap, (-job.priority, next(self._order), job))

    def pop(self) -> Job | None:
        return heapq.heappop(self._heap)[2] if self._heap else None

    def take(self, wanted: Callable[[Job], bool], room: int) -> list[Job]:
        """Up to `room` cost of the jobs that are wanted, in their order; they wait no more."""
        taken: list[Job] = []
        for job in self:
            if wanted(job) and job.request.cost <= room:
                taken.append(job)
                room -= job.request.cost
        for job in taken:
            self.remove(job)
        return taken

    def remove(self, job: Job) -> bool:
        """Whether it waited."""
        left = [one for one in self._heap if one[2] is not job]
        found = len(left) < len(self._heap)
        self._heap = left
        heapq.heapify(self._heap)
        return found
