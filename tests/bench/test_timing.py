"""The loop that times calls: what it adds, and what it leaves out."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest

from vitrify.bench.timing import Yardstick, lower_quartile, peak_gflops, time_calls


def test_a_call_that_does_nothing_takes_next_to_nothing() -> None:
    """What the loop adds to a call is what a call that does nothing is timed at: far under 1 % of 20 ms."""
    timed = time_calls(lambda: None, seconds=0.3, least=1000, yardstick=Yardstick())
    assert statistics.median(timed.calls) < 0.0005 * 20


def test_yardsticks_stand_between_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def call() -> None:
        nonlocal now
        order.append("c")
        now += 0.02

    def yardstick() -> float:
        order.append("y")
        return 5.0

    timed = time_calls(call, seconds=0.15, least=5, yardstick=yardstick)
    # 0.3 s of warm-up; a yardstick; 60 ms of calls, a yardstick and a call that is not timed, and so on
    assert "".join(order) == 15 * "c" + "y" + "cccyc" + "cccyc"
    assert timed.calls == pytest.approx([20.0] * 6)
    assert timed.yardsticks == [5.0] * 3


def test_a_long_call_is_made_as_often_as_asked_for() -> None:
    timed = time_calls(lambda: time.sleep(0.1), seconds=0.01, least=3, yardstick=lambda: 1.0)
    assert len(timed.calls) == 3
    assert len(timed.yardsticks) == 4


def test_the_end_of_the_warm_up_is_told() -> None:
    order: list[str] = []
    time_calls(lambda: order.append("call"), 0.01, 1, lambda: 1.0, warm=lambda: order.append("warm"))
    assert order.count("warm") == 1
    assert order[0] == "call"
    assert order[order.index("warm") + 1] == "call"


def test_an_error_of_the_call_is_passed_on() -> None:
    def call() -> None:
        raise ValueError("out of paper")

    with pytest.raises(ValueError, match="out of paper"):
        time_calls(call, 0.1, 1, lambda: 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which counts what a thread waits")
def test_what_waits_for_a_core_is_left_out() -> None:
    """Beside processes that want the same core a call takes longer, and its own time does not."""

    def call() -> int:
        return sum(range(200_000))

    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        alone = time_calls(call, 0.4, 10, lambda: 1.0)
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
        try:
            time.sleep(0.1)
            beside = time_calls(call, 1.0, 10, lambda: 1.0)
        finally:
            for other in others:
                other.kill()
                other.wait()
    finally:
        os.sched_setaffinity(0, before)
    assert statistics.fmean(beside.calls) > 1.8 * min(statistics.fmean(alone.calls), statistics.fmean(beside.own))
    assert statistics.median(beside.own) < 1.4 * statistics.median(alone.own)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which counts what a thread waits")
def test_own_time_is_that_of_one_call() -> None:
    timed = time_calls(lambda: time.sleep(0.005), 0.3, 5, lambda: 1.0)
    assert 4.9 < statistics.median(timed.own) <= 1.05 * statistics.median(timed.calls)
    assert len(timed.own) == len(timed.yardsticks) - 1


def test_the_lower_quartile() -> None:
    assert lower_quartile([5.0, 1.0, 3.0, 2.0, 4.0]) == 2.0
    assert lower_quartile([7.0]) == 7.0


def test_the_yardstick_and_the_peak() -> None:
    stick = Yardstick()
    assert 0.1 < stick() < 1000
    assert peak_gflops() > 0
