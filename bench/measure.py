"""The harness: runs cases, each run a process of its own, in turn, and measures them from outside.

What is measured never runs in the harness's process. Cases take turns (A B C, then C B A), so that a machine whose
speed drifts slows them all alike and what one leaves in the caches does not always serve the same next one.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..core.errors import UsageError, VitrifyError
from ..core.progress import Event, Report, silent
from .machine import describe_machine, versions
from .records import SCHEMA, WARMUP, Sample, Writer

if TYPE_CHECKING:
    import resource

MARK = "VITRIFY_BENCH "
STARTED = "VITRIFY_BENCH_STARTED"  # tells a case when its process was started, in seconds since the epoch
INTERVAL = 0.05
_STDERR_LINES = 12
_GRACE = 0.3  # seconds for helpers that end by themselves once the root is gone, such as a resource tracker
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Case:
    """What is run: a command and the variables that it gets on top of the harness's own environment.

    A line `VITRIFY_BENCH {"step_ms": 12.3}` on its stdout adds numbers to its sample: so a case times its inner part.
    A list of numbers becomes one of the sample's series.

    repeats: runs in each round. group: cases of one group are compared with each other.
    timeout: seconds; None takes `measure`'s. cwd: the folder that it runs in, the harness's own when None.
    before: called untimed before each run, such as to remove what the last one wrote.
    after: called untimed after each good run with its stdout; its numbers join the sample's values.
        Both may raise a VitrifyError, which counts as the case's failure.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    repeats: int = 1
    group: str = ""
    timeout: float | None = None
    cwd: Path | None = None
    before: Callable[[], None] | None = field(default=None, compare=False)
    after: Callable[[str], Mapping[str, float]] | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "group": self.group,
            "command": [str(part) for part in self.command],
            # the file may be shown to others
            "env": {k: "***" if any(w in k.upper() for w in _SECRET) else v for k, v in self.env.items()},
            "repeats": self.repeats,
            "timeout": self.timeout,
        }


class CaseFailed(VitrifyError):
    """A case ended badly. samples: everything that was measured of the others, and of this one before."""

    code = "case_failed"
    exit_code = 5

    def __init__(self, what: str, fix: str, samples: Sequence[Sample] = ()) -> None:
        super().__init__(what, fix)
        self.samples = list(samples)


def measure(
    cases: Sequence[Case],
    rounds: int = 3,
    warmup: int = 1,
    report: Report = silent,
    out: Path | None = None,
    timeout: float | None = None,
    interval: float = INTERVAL,
    first: int = 1,
    about: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """Run every case in every round and return the counted samples in the order they were measured.

    A case that fails is not run again; the others go on, and the error comes at the end. Ctrl-C kills the running
    case with all its descendants and is passed on.

    Args:
        warmup: rounds before the counted ones; in the file they are round 0.
        out: a file of JSON lines to append to (see `records`).
        timeout: seconds for a case that names none itself.
        interval: seconds between two readings of memory.
        first: the first counted round's number, where the file holds rounds already.
        about: what the header's plan says besides, such as the command.

    Raises:
        CaseFailed: with the samples of the rest.
        MissingDependency: psutil is not installed.
        UsageError: no cases, two of one name, or a number that makes no sense.
    """
    from . import tree as _needed_early  # noqa: F401  (a missing psutil is told before anything is run)

    _check(cases, rounds, warmup)
    samples: list[Sample] = []
    failures: dict[str, CaseFailed] = {}
    total = (rounds + warmup) * sum(case.repeats for case in cases)
    done = 0
    with Writer(out) as writer:
        plan: dict[str, Any] = {"rounds": rounds, "warmup": warmup, "interval_s": interval}
        plan |= {"cases": [c.to_json() for c in cases], **(about or {})}
        writer.line("header", header(plan))
        for number in range(1 - warmup, rounds + 1):
            for position, (case, repeat) in enumerate(order(cases, number)):
                name = f"warm-up of {case.name}" if number < 1 else f"{case.name}, round {number} of {rounds}"
                report(Event("bench", done, total, "run", name))
                done += 1
                if case.name in failures:
                    continue
                where = {"round": number + first - 1 if number >= 1 else WARMUP, "repeat": repeat, "position": position}
                try:
                    sample = _run(case, where, case.timeout or timeout, interval)
                except CaseFailed as exc:
                    failures[case.name] = exc
                    writer.line("failure", {"case": case.name, **where, "what": exc.what})
                    report(Event("bench", done, total, "run", exc.what))
                    continue
                writer.line("sample", sample.to_json())
                if number >= 1:
                    samples.append(sample)
        report(Event("bench", total, total, "run"))
    if failures:
        raise CaseFailed(
            "\n".join(error.what for error in failures.values()),
            " ".join(error.fix for error in failures.values()),
            samples,
        )
    return samples


def header(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A header line: schema, time, machine, versions, and what is going to be measured."""
    machine = describe_machine()
    return {"schema": SCHEMA, "started": time.time(), "machine": machine, "versions": versions(), "plan": dict(plan)}


def _check(cases: Sequence[Case], rounds: int, warmup: int) -> None:
    names = [case.name for case in cases]
    if not cases or len(set(names)) != len(names):
        raise UsageError(f"The cases are {names}: each needs a name of its own.", "Rename or add cases.")
    if rounds < 1 or warmup < 0 or any(case.repeats < 1 for case in cases):
        raise UsageError("rounds and repeats must be 1 or more, warmup 0 or more.", "Give larger numbers.")
    if any(not case.command for case in cases):
        raise UsageError("A case has an empty command.", "Give each case a program to run.")


def order(cases: Sequence[Case], number: int) -> Iterator[tuple[Case, int]]:
    """The runs of one round: one of each case, then the second of those that repeat; even rounds run backwards."""
    turn = list(cases) if number % 2 else list(reversed(cases))
    for repeat in range(max(case.repeats for case in cases)):
        for case in turn:
            if repeat < case.repeats:
                yield case, repeat


def _run(case: Case, where: Mapping[str, int], timeout: float | None, interval: float) -> Sample:
    from .tree import Bystanders

    try:
        if case.before is not None:
            case.before()
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            bystanders = Bystanders()
            watched = _watch(case, timeout, interval, stdout, stderr)
            busy, cores = bystanders.since(watched["pids"])
            del watched["pids"]
            stdout.seek(0)
            text = stdout.read().decode(errors="replace")
        values, series = _printed(case, text)
        if case.after is not None:
            values |= {k: float(v) for k, v in case.after(text).items()}
    except CaseFailed:
        raise
    except VitrifyError as exc:
        raise CaseFailed(f"Case {case.name!r} failed: {exc.what}", exc.fix) from exc
    return Sample(
        case=case.name,
        group=case.group,
        **where,
        **watched,
        load=load,
        busy=busy,
        others_cores=round(cores, 3),
        values=values,
        series=series,
    )


def _watch(case: Case, timeout: float | None, interval: float, stdout: IO[bytes], stderr: IO[bytes]) -> dict[str, Any]:
    """Run the command to its end, reading its memory meanwhile. The fields of `Sample` that it fills, and `pids`."""
    from .tree import TreeMeter

    command = [str(part) for part in case.command]
    floor = _own_peak()
    spent, started, start = time.thread_time(), time.time(), time.perf_counter()
    try:
        # Files, not pipes: nobody has to drain them while the clock runs. A session of its own, so that Ctrl-C
        # reaches the harness only and orphans can be found.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, STARTED: repr(started), **case.env},
            cwd=case.cwd,
            start_new_session=True,
        )
    except OSError as exc:
        raise CaseFailed(
            f"Case {case.name!r} cannot be started: {exc.strerror or exc}.", f"Check the command: {shlex.join(command)}"
        ) from exc
    meter = TreeMeter(process.pid)
    waiter = _Waiter(process.pid)
    waiter.start()
    late, left = False, 0
    try:
        meter.read()
        while not waiter.ended.wait(interval) and not late:
            meter.read()
            late = timeout is not None and time.perf_counter() - start > timeout
        if not late:
            left = meter.kill(grace=_GRACE)
    finally:
        # Only reached with something alive when it ran too long or was interrupted.
        if not waiter.ended.is_set():
            meter.kill()
        waiter.join()
        process.returncode = waiter.code  # else Popen would look for a process that is no longer there
    if late or waiter.code != 0:
        raise _failure(case, command, f"was stopped after {timeout:g} s" if late else _ending(waiter.code), stderr)
    usage = waiter.usage
    assert usage is not None
    peak = usage.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
    return {
        "pids": meter.pids,
        "started": started,
        "wall_s": waiter.at - start,
        "user_s": usage.ru_utime,
        "system_s": usage.ru_stime,
        "tree_rss": meter.peak_rss,
        "tree_pss": meter.peak_pss,
        "tree_uss": meter.peak_uss,
        "root_rss": peak if peak > floor else None,
        "processes": max(meter.most, 1),
        "readings": meter.readings,
        "sampler_s": round(time.thread_time() - spent, 4),
        "left_behind": left,
    }


class _Waiter(threading.Thread):
    """Blocks until the process ends, so that the end is timed by the kernel's wake-up and not by the sampling."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.at = 0.0
        self.code = 0
        self.usage: resource.struct_rusage | None = None
        self._pid = pid

    def run(self) -> None:
        _, status, self.usage = os.wait4(self._pid, 0)
        self.at = time.perf_counter()
        self.code = os.waitstatus_to_exitcode(status)
        self.ended.set()


def _own_peak() -> int:
    """The harness's own peak memory in bytes. The kernel starts a child's ru_maxrss there: below it, it is no news."""
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ending(code: int) -> str:
    if code >= 0:
        return f"exited with {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (the system does that when memory runs out)" if name == "SIGKILL" else "")


def _failure(case: Case, command: list[str], how: str, stderr: IO[bytes]) -> CaseFailed:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - 16_384))
    lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()][-_STDERR_LINES:]
    said = "\n".join(["Its last lines on stderr:", *(f"  {line}" for line in lines)]) if lines else "It said nothing."
    return CaseFailed(f"Case {case.name!r} {how}. {said}", f"Run it alone: {shlex.join(command)}")


def _printed(case: Case, text: str) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The numbers on the case's `VITRIFY_BENCH` lines, and the lists of numbers."""
    values: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.startswith(MARK):
            continue
        try:
            data = json.loads(line.removeprefix(MARK))
        except ValueError:
            data = None
        if not isinstance(data, dict) or not all(_is_number(v) or _is_series(v) for v in data.values()):
            raise CaseFailed(
                f"Case {case.name!r} printed {line[:200]!r}, which is not a JSON object of finite numbers.",
                f'Print a line such as: {MARK}{{"step_ms": 12.3}}',
            )
        values |= {str(k): float(v) for k, v in data.items() if not isinstance(v, list)}
        series |= {str(k): [float(one) for one in v] for k, v in data.items() if isinstance(v, list)}
    return values, series


def _is_series(value: Any) -> bool:
    return isinstance(value, list) and all(_is_number(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
