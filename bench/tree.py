"""Memory of a process and all its descendants, sampled from outside; and the end of them all.

This is the one place that imports psutil.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress

from ..core.errors import MissingDependency

try:
    import psutil
except ModuleNotFoundError as exc:
    raise MissingDependency(
        "Measuring needs psutil, which is not installed.", 'Run `pip install "vitrify[bench]"`.'
    ) from exc
except ImportError as exc:
    raise MissingDependency(
        f"psutil is installed but does not import: {exc}.", "Run `pip install --force-reinstall psutil`."
    ) from exc

# The harness shares the machine with what it measures, and shall take less than 1 % of a core: finding new children and
# reading PSS (which makes the kernel walk the page tables, holding their lock) each get at most this share of one. What
# is left is for RSS, which is read each time.
_WALK_SHARE = 0.002
_PSS_SHARE = 0.002
# a kernel with CONFIG_PROC_CHILDREN: else the whole process table has to be read
_LISTED = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class TreeMeter:
    """Reads the tree below `pid`; keeps the peaks. A process stays in the tree when its parent has died."""

    def __init__(self, pid: int) -> None:
        self.peak_rss = 0
        self.peak_pss: int | None = None
        self.peak_uss: int | None = None
        self.readings = 0
        self.most = 0
        self._root = pid
        self._known: dict[int, psutil.Process] = {}
        self._seen: set[int] = {pid}
        self._walk_at = self._pss_at = 0.0
        with suppress(psutil.Error):
            self._known[pid] = psutil.Process(pid)

    @property
    def pids(self) -> set[int]:
        """Every process that was ever part of the tree."""
        return self._seen

    def read(self) -> None:
        """Add one reading to the peaks."""
        now = time.perf_counter()
        if now >= self._walk_at:
            spent = time.thread_time()
            self._walk()
            self._walk_at = now + (time.thread_time() - spent) / _WALK_SHARE
        total = count = 0
        for pid, process in list(self._known.items()):
            try:
                rss = process.memory_info().rss
            except psutil.AccessDenied:
                continue
            except psutil.Error:
                del self._known[pid]
                continue
            total += rss
            count += rss > 0  # a zombie has none
        self.peak_rss = max(self.peak_rss, total)
        self.most = max(self.most, count)
        self.readings += 1
        if now >= self._pss_at:
            spent = time.thread_time()
            self._read_shared()
            self._pss_at = now + (time.thread_time() - spent) / _PSS_SHARE

    def _read_shared(self) -> None:
        pss = uss = 0
        for process in list(self._known.values()):
            try:
                # psutil 8 renames it
                full = (getattr(process, "memory_footprint", None) or process.memory_full_info)()
            except psutil.AccessDenied:
                return  # a sum that leaves out a process would be no smaller peak but a wrong one
            except psutil.Error:
                continue
            if not hasattr(full, "pss"):
                return
            pss += full.pss
            uss += full.uss
        self.peak_pss = max(self.peak_pss or 0, pss)
        self.peak_uss = max(self.peak_uss or 0, uss)

    def _walk(self, whole: bool = False) -> None:
        """Find what is new below each process. whole: by the whole process table, also where Linux lists children."""
        reached: set[int] = set()
        for pid, process in list(self._known.items()):
            if pid in reached:
                continue  # below one that was walked before
            for child in _listed(pid) if _LISTED and not whole else _tabled(process):
                reached.add(child)
                self._add(child)

    def _add(self, pid: int) -> None:
        with suppress(psutil.Error):  # it ended meanwhile
            process = psutil.Process(pid)
            if self._known.get(pid) != process:
                self._known[pid] = process
                self._seen.add(pid)

    def left(self) -> list[psutil.Process]:
        """The processes of the tree that are alive, orphans that share the root's session included."""
        self._walk(whole=True)
        # The root leads a session of its own; its number stays taken while a member lives.
        for pid in psutil.pids():
            with suppress(OSError):
                if pid != self._root and os.getsid(pid) == self._root:
                    self._add(pid)
        return [p for p in self._known.values() if _alive(p)]

    def kill(self, grace: float = 0.0) -> int:
        """Kill the whole tree, `grace` seconds from now at the earliest; returns how many had to be killed."""
        killed: set[int] = set()
        patience = time.perf_counter() + grace
        while time.perf_counter() < patience and self.left():
            time.sleep(0.02)
        for _ in range(20):
            alive = self.left()
            if not alive:
                break
            for process in alive:
                killed.add(process.pid)
                with suppress(psutil.Error):
                    process.kill()
            # A child that was being born while its parent was killed shows up in the next pass. psutil's own wait
            # would take the root's exit status away from the thread that waits for it.
            time.sleep(0.02)
        return len(killed)


def _listed(pid: int) -> list[int]:
    """The descendants that /proc/PID/task/TID/children lists. One that starts meanwhile may be missing until later."""
    found: list[int] = []
    parents = [pid]
    while parents:
        folder = f"/proc/{parents.pop()}/task"
        with suppress(OSError):
            for task in os.listdir(folder):
                with suppress(OSError), open(f"{folder}/{task}/children", "rb", buffering=0) as file:
                    children = [int(one) for one in file.read().split()]
                    found += children
                    parents += children
    return found


def _tabled(process: psutil.Process) -> list[int]:
    """The descendants by the whole process table; none of a process that ended."""
    try:
        return [child.pid for child in process.children(recursive=True)]
    except psutil.Error:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


class Bystanders:
    """CPU time of the processes that are not measured, from when it was made until `since` is asked."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._before = _cpu_times()

    def since(self, measured: Iterable[int]) -> tuple[int, float]:
        """How many others used over a tenth of a core, and the cores that all of them used on average."""
        passed = max(time.perf_counter() - self._start, 1e-3)
        skipped = {*measured, os.getpid()}
        used = [
            cpu - self._before[key] if key in self._before else cpu
            for key, cpu in _cpu_times().items()
            if key[0] not in skipped
        ]
        # The clock ticks every 10 ms: a single tick within a short run says nothing.
        busy = sum(1 for seconds in used if seconds > max(0.1 * passed, 0.02))
        return busy, sum(used) / passed


def _cpu_times() -> dict[tuple[int, float], float]:
    found = {}
    for process in psutil.process_iter(["create_time", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None:
            found[(process.pid, process.info["create_time"])] = float(times.user + times.system)
    return found
