"""What one run was measured to be, and the file of JSON lines that such runs are kept in.

A file is appended to and flushed line by line, so a harness that is killed keeps what it had measured. Each call of
`measure` starts with one header line; lines of other kinds than are known here are skipped by the reader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..core.errors import BadInput
from ..core.publish import disk_errors

SCHEMA = 1
WARMUP = 0  # the round of runs that are not counted
Json = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One run of one case. Times in seconds, memory in bytes.

    round: counted from 1; runs of one round are a pair for ratios. 0 is a warm-up. repeat: which run of its case in
        this round. position: which run of the whole round, counted from 0.
    started: seconds since the epoch. wall_s: process start to exit.
    user_s, system_s: CPU time of the root and of every descendant that was waited for, from the kernel.
    tree_rss: the largest sum of resident memory over the process tree, sampled; a page that two processes share
        counts twice.
    tree_pss, tree_uss: the same with shared pages divided among their owners, and with private pages only; read
        seldom, since reading them slows the process down, so a short peak can be missed. None where the system does
        not say.
    root_rss: the kernel's own high-water mark (ru_maxrss) of the largest single process among the root and the
        descendants that were waited for. None where it says nothing: it starts at the harness's own peak.
    processes: the most that were alive at once. readings: how often the tree was read.
    sampler_s: CPU time that the harness itself spent meanwhile.
    load: the system's 1-minute load average at the start. busy: other processes that used over a tenth of a core
        meanwhile. others_cores: the cores that all other processes used, on average.
    left_behind: processes that outlived the root and were killed.
    values: the numbers that the case printed, and those of its `after` hook. series: the lists that it printed, such
        as the milliseconds of each call.
    """

    case: str
    group: str
    round: int
    repeat: int
    position: int
    started: float
    wall_s: float
    user_s: float
    system_s: float
    tree_rss: int
    tree_pss: int | None = None
    tree_uss: int | None = None
    root_rss: int | None = None
    processes: int = 1
    readings: int = 0
    sampler_s: float = 0.0
    load: float = 0.0
    busy: int = 0
    others_cores: float = 0.0
    left_behind: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Peak resident memory in bytes: sampling can miss a short peak, the kernel knows one process only."""
        return max(self.tree_rss, self.root_rss or 0)

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Sample:
        """Fields that this version does not know are left out, so that newer files stay readable."""
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in data.items() if k in known})


class Writer:
    """Appends lines to a file, each written whole and flushed; with no path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream = None
        if path is None:
            return
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = _ends_torn(path)
            self._stream = path.open("a", encoding="utf-8")
            if torn:  # a killed harness left half a line: it must not swallow the next one
                self._stream.write("\n")

    def line(self, kind: str, data: Json) -> None:
        if self._stream is None or self._path is None:
            return
        with disk_errors(self._path):
            self._stream.write(json.dumps({"kind": kind, **data}) + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


@dataclass(frozen=True)
class Recording:
    """What a file holds: a header for each call of `measure`, the samples, the failures, and the torn lines' count.

    cells, skipped: what a matrix wrote of its cells; see `results`.
    """

    headers: list[Json]
    samples: list[Sample]
    failures: list[Json]
    torn: int
    cells: list[Json] = field(default_factory=list)
    skipped: list[Json] = field(default_factory=list)

    @property
    def counted(self) -> list[Sample]:
        """The samples without the warm-ups."""
        return [s for s in self.samples if s.round != WARMUP]


def read(path: Path) -> Recording:
    """Read a file that `measure` wrote, one that a killed harness left included.

    Raises:
        BadInput: it cannot be read, is of a newer schema or holds no header.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as exc:
        raise BadInput(f"{path} cannot be read: {exc.strerror}.", "Name a file that a bench wrote.") from exc
    found = Recording([], [], [], 0)
    others = {"header": found.headers, "failure": found.failures, "cell": found.cells, "skipped": found.skipped}
    torn = 0
    for line in filter(str.strip, lines):
        try:
            data = json.loads(line)
            kind = data.pop("kind")
            if kind == "sample":
                found.samples.append(Sample.from_json(data))
            elif kind in others:
                others[kind].append(data)
        except (ValueError, TypeError, KeyError, AttributeError):
            torn += 1
    if not found.headers:
        raise BadInput(f"{path} holds no header of a bench.", "Name a file that a bench wrote.")
    for header in found.headers:
        if header.get("schema") != SCHEMA:
            raise BadInput(
                f"{path} has schema {header.get('schema')}; this version reads {SCHEMA}.",
                "pip install --upgrade vitrify",
            )
    return replace(found, torn=torn)
