"""The loop that times calls: what it adds, and what it leaves out."""

from __future__ import annotations

import statistics
import time

import pytest

from vitrify.bench.timing import Yardstick, time_calls


def test_a_call_that_does_nothing_takes_next_to_nothing() -> None:
    """What the loop adds to a call is what a call that does nothing is timed at: under 1 % of 20 ms."""
    timed = time_calls(lambda: None, seconds=0.3, least=1000, yardstick=Yardstick())
    assert statistics.median(timed.calls) < 0.01 * 20


def test_yardsticks_stand_between_the_calls() -> None:
    order: list[str] = []

    def call() -> None:
        order.append("call")
        time.sleep(0.02)

    def yardstick() -> float:
        order.append("yardstick")
        return 5.0

    timed = time_calls(call, seconds=0.3, least=5, yardstick=yardstick)
    warm = order.index("yardstick")
    assert warm >= 1
    assert order[-1] == "yardstick"
    assert len(timed.calls) >= 5
    assert all(ms >= 20 for ms in timed.calls)
    # after every 60 ms of calls, and then one that is not timed
    assert order[warm : warm + 6] == ["yardstick", "call", "call", "call", "yardstick", "call"]
    assert timed.yardsticks == [5.0] * order.count("yardstick")


def test_a_long_call_is_made_as_often_as_asked_for() -> None:
    timed = time_calls(lambda: time.sleep(0.1), seconds=0.01, least=3, yardstick=lambda: 1.0)
    assert len(timed.calls) == 3
    assert len(timed.yardsticks) == 4


def test_an_error_of_the_call_is_passed_on() -> None:
    def call() -> None:
        raise ValueError("out of paper")

    with pytest.raises(ValueError, match="out of paper"):
        time_calls(call, 0.1, 1, lambda: 1.0)


def test_the_yardstick_says_what_it_computed() -> None:
    assert Yardstick.gflops(1000.0) == pytest.approx(2 * 768**3 / 1e9)
    assert Yardstick()() > 0
