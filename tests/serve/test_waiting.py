"""The queue: its bounds, its order, and what it says to whom it has no room for."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.serve.errors import QueueFull
from vitrify.serve.jobs import Job
from vitrify.serve.requests import ClassifyRequest, GenerateRequest
from vitrify.serve.waiting import Rates, Waiting


def drawing(steps: int = 10, priority: int = 0, model: str = "m") -> Job:
    return Job(GenerateRequest(model, "a fox", 100, 100, steps=steps), "me", priority=priority)


@pytest.fixture
def rates() -> Rates:
    """A step of 100x100 takes a second."""
    rates = Rates()
    rates.done(drawing(1), 10_000, 1.0)
    return rates


def full(queue: Waiting, job: Job, running: float = 0.0) -> float:
    with pytest.raises(QueueFull) as told:
        queue.reserve(job, running)
    assert f"{told.value.after:.0f} s" in told.value.fix
    return told.value.after


def test_jobs_are_bounded_by_number_and_places_that_are_kept_count(rates: Rates) -> None:
    queue = Waiting(2, 1000, rates)
    first, second = drawing(), drawing()
    queue.reserve(first)
    queue.reserve(second)
    assert len(queue) == 0
    assert full(queue, drawing()) == 10
    queue.release(second)
    queue.push(first)
    queue.reserve(drawing())
    full(queue, drawing())


def test_jobs_are_bounded_by_the_work_that_waits(rates: Rates) -> None:
    queue = Waiting(100, 25, rates)
    queue.push(drawing(10))
    queue.push(drawing(10))
    assert queue.seconds == pytest.approx(20)
    queue.reserve(drawing(5))
    assert full(queue, drawing(10), running=7) == pytest.approx(7 + 10)
    assert full(queue, drawing(24), running=7) == pytest.approx(7 + 25 + 24 - 25)


def test_a_job_that_is_longer_than_the_queue_comes_in_where_nothing_waits(rates: Rates) -> None:
    queue = Waiting(100, 5, rates)
    queue.reserve(drawing(1000))
    full(queue, drawing(1))


def test_priority_comes_first_and_then_who_came_first(rates: Rates) -> None:
    queue = Waiting(100, 1e9, rates)
    jobs = [drawing(priority=priority) for priority in (0, 5, 0, -5, 5)]
    for job in jobs:
        queue.push(job)
    order = [jobs[number] for number in (1, 4, 0, 2, 3)]
    assert list(queue) == order
    assert [queue.pop() for _ in jobs] == order
    assert queue.pop() is None


def test_take_gives_what_is_wanted_and_fits(rates: Rates) -> None:
    queue = Waiting(100, 1e9, rates)
    sizes = (3, 5, 1, 2)
    jobs = [Job(ClassifyRequest("m", (b"",) * size), "me") for size in sizes]
    for job in jobs:
        queue.push(job)
    assert queue.take(lambda job: True, 6) == [jobs[0], jobs[2], jobs[3]]
    assert list(queue) == [jobs[1]]
    assert queue.take(lambda job: False, 100) == []
    assert queue.remove(jobs[1])
    assert not queue.remove(jobs[1])


def test_rates_are_measured_for_each_model(rates: Rates) -> None:
    slow = drawing(model="slow")
    guess = rates.seconds(slow)
    rates.done(slow, slow.request.cost, 100.0)
    assert rates.seconds(slow) == pytest.approx(100)
    assert rates.seconds(drawing()) == pytest.approx(10)
    assert guess != rates.seconds(slow)
    for _ in range(50):
        rates.done(slow, slow.request.cost, 50.0)
    assert rates.seconds(slow) == pytest.approx(50, rel=0.01)
