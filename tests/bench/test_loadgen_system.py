"""The system under test without LoadGen: every query is completed, in batches, also once one has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from vitrify.bench.loadgen.system import Failure, SystemUnderTest, speed_of


class Doubling:
    """Answers a number with its double; fails at `bad`."""

    facts: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, most: int, bad: int = -1, takes: float = 0.0) -> None:
        self.most, self.bad, self.takes = most, bad, takes
        self.batches: list[int] = []

    def answer(self, samples: Sequence[int]) -> list[bytes]:
        self.batches.append(len(samples))
        time.sleep(self.takes)
        if self.bad in samples:
            raise ValueError("a bad sample")
        return [bytes([2 * sample]) for sample in samples]

    def close(self) -> None: ...


class Completed:
    def __init__(self) -> None:
        self.answers: dict[int, bytes] = {}
        self.lock = threading.Lock()

    def __call__(self, ids: Sequence[int], answers: Sequence[bytes]) -> None:
        with self.lock:
            for id, answer in zip(ids, answers, strict=True):
                assert id not in self.answers
                self.answers[id] = answer


@pytest.mark.parametrize("clients", [1, 4])
def test_what_is_put_is_answered_in_batches(clients: int) -> None:
    answering, completed, failure = Doubling(8), Completed(), Failure()
    system = SystemUnderTest(answering, lambda number: number, completed, failure, clients)
    system.put((1000 + n, n) for n in range(100))
    system.close()
    assert completed.answers == {1000 + n: bytes([2 * n]) for n in range(100)}
    assert system.done == sum(answering.batches) == 100
    assert max(answering.batches) == 8
    assert failure.error is None


def test_a_batch_is_not_waited_for() -> None:
    answering, completed = Doubling(8), Completed()
    system = SystemUnderTest(answering, lambda number: number, completed, Failure(), 1)
    system.put([(1, 1)])
    until = time.monotonic() + 10
    while not completed.answers and time.monotonic() < until:
        time.sleep(0.01)
    assert completed.answers == {1: b"\x02"}
    system.close()


def test_once_a_query_failed_the_others_are_completed_without_work() -> None:
    answering, completed, failure = Doubling(1, bad=3), Completed(), Failure()
    system = SystemUnderTest(answering, lambda number: number, completed, failure, 1)
    system.put((n, n) for n in range(50))
    system.close()
    assert sorted(completed.answers) == list(range(50))
    assert [completed.answers[n] for n in (2, 3, 4)] == [b"\x04", b"", b""]
    assert len(answering.batches) == 4
    assert failure.happened.is_set()
    assert str(failure.error) == "a bad sample"


def test_a_sample_that_is_not_loaded_is_a_failure_too() -> None:
    completed, failure = Completed(), Failure()
    system = SystemUnderTest(Doubling(1), {}.__getitem__, completed, failure, 0)
    system.answer([(7, 0)])
    assert completed.answers == {7: b""}
    assert isinstance(failure.error, KeyError)


def test_the_warm_up_measures_samples_a_second() -> None:
    one = speed_of(Doubling(1, takes=0.02), [0, 1, 2], 1, seconds=0.3, windows=2)
    four = speed_of(Doubling(4, takes=0.02), [0, 1, 2], 3, seconds=0.3, windows=2)
    assert 5 < one <= 50
    assert 3 * one < four <= 600


def test_the_warm_up_passes_on_what_failed() -> None:
    with pytest.raises(ValueError, match="a bad sample"):
        speed_of(Doubling(1, bad=1), [0, 1], 2, seconds=0.2)
