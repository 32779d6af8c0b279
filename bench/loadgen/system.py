"""LoadGen's system under test: queries in, answers out, and what becomes of them when answering fails."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .answers import Answering

Complete = Callable[[Sequence[int], Sequence[bytes]], None]
"""QuerySamplesComplete: ids of the responses, and their bytes."""


class Failure:
    """The first error of a run. LoadGen calls from C++, where no exception may arrive, and cannot be told to stop."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.happened = threading.Event()

    def note(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.happened.set()


class SystemUnderTest:
    """Answers queries with what is open.

    Every query is completed, once it failed with nothing: LoadGen waits for all of them.

    Args:
        sample: the library's, by number.
        clients: threads that answer what `put` queued. Each takes what waits, up to the batch, and waits for no more.
    """

    def __init__(
        self,
        answering: Answering,
        sample: Callable[[int], Any],
        complete: Complete,
        failure: Failure,
        clients: int,
    ) -> None:
        self.done = 0
        self._answering, self._sample, self._complete, self._failure = answering, sample, complete, failure
        self._waiting: deque[tuple[int, int]] = deque()
        self._some = threading.Condition()
        self._over = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def put(self, queries: Iterable[tuple[int, int]]) -> None:
        """Queue (id, sample's number); returns at once."""
        with self._some:
            self._waiting.extend(queries)
            self._some.notify_all()

    def answer(self, queries: Sequence[tuple[int, int]]) -> None:
        """Answer them now, in this thread."""
        answers: Sequence[bytes] = [b""] * len(queries)
        if self._failure.error is None:
            try:
                answers = self._answering.answer([self._sample(number) for _, number in queries])
            except BaseException as exc:
                self._failure.note(exc)
        self._complete([id for id, _ in queries], answers)
        with self._some:
            self.done += len(queries)

    def _work(self) -> None:
        while True:
            with self._some:
                self._some.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                count = min(self._answering.most, len(self._waiting))
                taken = [self._waiting.popleft() for _ in range(count)]
            self.answer(taken)

    def close(self) -> None:
        """End the threads, once nothing waits."""
        with self._some:
            self._over = True
            self._some.notify_all()
        for thread in self._threads:
            thread.join()


def speed_of(
    answering: Answering, samples: Sequence[Any], clients: int, seconds: float = 1.0, windows: int = 3
) -> float:
    """Samples a second: the best of some windows, each ended by its first call after `seconds`.

    The best, since LoadGen makes its queries in advance and a run that has too few of them is not valid.

    Raises:
        Exception: whatever answering raises.
    """
    calls = itertools.cycle(samples)
    lock, failure = threading.Lock(), Failure()

    def call() -> int:
        with lock:
            taken = list(itertools.islice(calls, answering.most))
        answering.answer(taken)
        return len(taken)

    def work(until: float, counts: list[int]) -> None:
        try:
            while time.perf_counter() < until and failure.error is None:
                counts.append(call())
        except BaseException as exc:
            failure.note(exc)

    call()
    best = 0.0
    for _ in range(windows):
        start, counts = time.perf_counter(), list[int]()
        threads = [threading.Thread(target=work, args=(start + seconds, counts)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failure.error is not None:
            raise failure.error
        best = max(best, sum(counts) / (time.perf_counter() - start))
    return best
