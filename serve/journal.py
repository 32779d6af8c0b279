"""Jobs that outlive a connection and the server: one SQLite file, and one folder a job for its pictures.

Every change is on the disk before anybody is told of it. After a crash, what waited waits again and what ran is
`interrupted`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.errors import DiskError, UsageError
from .errors import Conflict, ExpiredJob, UnknownJob
from .jobs import STOPPED, Job, Picture, Problem, Result, State
from .requests import ClassifyRequest, GenerateRequest, request_from_json

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, client TEXT NOT NULL, key TEXT, digest TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL,
  priority INTEGER NOT NULL, created REAL NOT NULL, started REAL, finished REAL, deadline REAL,
  step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0,
  problem TEXT, result TEXT, bytes INTEGER NOT NULL DEFAULT 0, expired INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX IF NOT EXISTS keys ON jobs (client, key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS ends ON jobs (finished);
CREATE INDEX IF NOT EXISTS newest ON jobs (client, created);
"""
VERSION = 1
_TOMBSTONES = 100_000  # rows of expired jobs that are remembered


class Journal:
    """The jobs below a folder. For one thread at a time.

    Args:
        age: seconds that results are kept. size: bytes of all results together.

    Raises:
        UsageError: another server has the folder. DiskError: it cannot be written.
    """

    def __init__(self, folder: Path, *, age: float, size: int, now: Callable[[], float] = time.time) -> None:
        self.folder, self._age, self._size, self._now = folder, age, size, now
        with _disk(folder):
            (folder / "jobs").mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(folder / "lock", timeout=0)
            try:
                self._lock.acquire()
            except Timeout as exc:
                raise UsageError(
                    f"Another server keeps its jobs in {folder}.", "Stop it, or give another folder with --state."
                ) from exc
            self._db = sqlite3.connect(folder / "jobs.sqlite", isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # with WAL a crash of the process loses nothing
            found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            if found > VERSION:
                raise DiskError(
                    f"{folder / 'jobs.sqlite'} was written by a newer version (schema {found}).",
                    "Update vitrify, or give another folder with --state.",
                )
            self._db.executescript(SCHEMA)
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self._bytes = self._counted()

    def close(self) -> None:
        self._db.close()
        self._lock.release()

    @property
    def full(self) -> bool:
        """Whether more is kept than there is room for, so that `prune` has something to do."""
        return self._bytes > self._size

    @property
    def bytes(self) -> int:
        """Of all pictures that are kept."""
        return self._bytes

    def known(self, job: Job, key: str) -> str | None:
        """The id of the job that its client asked for with this Idempotency-Key before.

        Raises:
            Conflict: it asked for something else.
        """
        row = self._db.execute("SELECT id, digest FROM jobs WHERE client=? AND key=?", (job.client, key)).fetchone()
        if row is None:
            return None
        if row["digest"] != digest_of(job):
            raise Conflict("This Idempotency-Key was used for another request.", "Use a new key for a new request.")
        return str(row["id"])

    def add(self, job: Job, key: str | None = None) -> str:
        """Keep a new job and its pictures; its id, or that of the job which came first with this key.

        Raises:
            DiskError: it cannot be written; nothing of it is left. Conflict: the key is that of another request.
        """
        request = job.request
        assert isinstance(request, GenerateRequest | ClassifyRequest), "what has tensors ends with its connection"
        place = self._place(job.id)
        try:
            with _disk(self.folder):
                if request.pictures:
                    place.mkdir()
                    for number, data in enumerate(request.pictures):
                        (place / f"input-{number}").write_bytes(data)
                size = _size_of(place)
                self._db.execute(
                    "INSERT INTO jobs (id, client, key, digest, request, state, priority, created, deadline, bytes)"
                    " VALUES (?,?,?,?,?,?,?,?,?,?)",
                    (
                        job.id, job.client, key, digest_of(job), json.dumps(request.to_json()), job.state.value,
                        job.priority, job.created, job.deadline, size,
                    ),
                )  # fmt: skip
                self._bytes += size
                return job.id
        except sqlite3.IntegrityError:
            shutil.rmtree(place, ignore_errors=True)
            first = self.known(job, key) if key is not None else None
            if first is None:
                raise
            return first
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def save(self, job: Job) -> None:
        """Write its state, and what it gave once it is done.

        Raises:
            DiskError: it cannot be written; the pictures that it gave are not left.
        """
        place = self._place(job.id)
        pictures = job.result.pictures if job.state is State.SUCCEEDED and job.result is not None else []
        try:
            with _disk(self.folder):
                if pictures:
                    place.mkdir(exist_ok=True)
                for number, picture in enumerate(pictures):
                    (place / f"output-{number}").write_bytes(picture.data)
                if job.state.final:  # nothing asks for them again
                    for file in place.glob("input-*"):
                        file.unlink()
                size = _size_of(place)
                before = self._db.execute("SELECT bytes FROM jobs WHERE id=?", (job.id,)).fetchone()
                self._db.execute(
                    "UPDATE jobs SET state=?, started=?, finished=?, step=?, steps=?, problem=?, result=?, bytes=?"
                    " WHERE id=?",
                    (
                        job.state.value, job.started, job.finished, job.step, job.steps,
                        json.dumps(job.problem.to_json()) if job.problem else None, _result_json(job), size, job.id,
                    ),
                )  # fmt: skip
                self._bytes += size - int(before["bytes"]) if before else 0
        except DiskError:
            for number in range(len(pictures)):
                (place / f"output-{number}").unlink(missing_ok=True)
            raise

    def load(self, id: str, client: str) -> Job:
        """A job of this client with what it gave; of its pictures, where they are.

        Raises:
            UnknownJob: there was none. ExpiredJob: its results were removed.
        """
        row = self._db.execute("SELECT * FROM jobs WHERE id=?", (id,)).fetchone()
        if row is None or row["client"] != client:
            raise unknown_job(id)
        if row["expired"]:
            raise ExpiredJob(f"The results of job {id} were removed.", "Ask for it again.")
        return self._job(row)

    def listed(self, client: str, limit: int = 50) -> list[Job]:
        """The newest jobs of a client, the last first."""
        rows = self._db.execute(
            "SELECT * FROM jobs WHERE client=? AND expired=0 ORDER BY created DESC LIMIT ?", (client, limit)
        )
        return [self._job(row) for row in rows]

    def recover(self) -> list[Job]:
        """After a start: mark what ran as interrupted, and give what waits, the oldest first.

        What waits and cannot be read any more failed. Folders that belong to no job are removed.
        """
        lost = Problem("disk", "The job's pictures are gone.", "Ask for it again.")
        found = []
        with _disk(self.folder):
            for row in self._db.execute("SELECT id FROM jobs WHERE state=?", (State.RUNNING.value,)).fetchall():
                shutil.rmtree(self._place(row["id"]), ignore_errors=True)  # nothing asks for what it was given again
            self._db.execute("UPDATE jobs SET bytes=0 WHERE state=?", (State.RUNNING.value,))
            self._ended(State.INTERRUPTED, STOPPED, "state=?", State.RUNNING.value)
            rows = self._db.execute("SELECT * FROM jobs WHERE state=? ORDER BY created", (State.QUEUED.value,))
            for row in rows.fetchall():
                try:
                    found.append(self._job(row, inputs=True))
                except (OSError, ValueError, TypeError, KeyError):
                    self._ended(State.FAILED, lost, "id=?", row["id"])
            kept = {str(row["id"]) for row in self._db.execute("SELECT id FROM jobs WHERE expired=0")}
            for place in (self.folder / "jobs").iterdir():
                if place.name not in kept:
                    shutil.rmtree(place, ignore_errors=True)
            self._bytes = self._counted()
        return found

    def prune(self) -> int:
        """Remove results that are too old, then the oldest until the rest fits; how many jobs lost theirs.

        Raises:
            DiskError.
        """
        oldest, gone = self._now() - self._age, 0
        with _disk(self.folder):
            rows = self._db.execute(
                "SELECT id, bytes, finished FROM jobs WHERE finished IS NOT NULL AND expired=0 ORDER BY finished"
            ).fetchall()
            for row in rows:
                if float(row["finished"]) >= oldest and not self.full:
                    break
                shutil.rmtree(self._place(row["id"]), ignore_errors=True)
                self._db.execute("UPDATE jobs SET expired=1, result=NULL, request='', bytes=0 WHERE id=?", (row["id"],))
                self._bytes -= int(row["bytes"])
                gone += 1
            self._db.execute(
                "DELETE FROM jobs WHERE expired=1 AND id NOT IN"
                " (SELECT id FROM jobs WHERE expired=1 ORDER BY finished DESC LIMIT ?)",
                (_TOMBSTONES,),
            )
        return gone

    def _ended(self, state: State, problem: Problem, where: str, given: str) -> None:
        said = json.dumps(problem.to_json())
        self._db.execute(
            f"UPDATE jobs SET state=?, finished=?, problem=? WHERE {where}", (state.value, self._now(), said, given)
        )

    def _job(self, row: sqlite3.Row, inputs: bool = False) -> Job:
        place = self._place(row["id"])
        request = request_from_json(json.loads(row["request"]), place if inputs else None)
        job = Job(
            request, row["client"], row["id"], True, row["priority"], row["deadline"], State(row["state"]),
            row["created"], row["started"], row["finished"], row["step"], row["steps"],
        )  # fmt: skip
        if row["problem"]:
            job.problem = Problem(**json.loads(row["problem"]))
        if row["result"]:
            given: dict[str, Any] = json.loads(row["result"])
            pictures = [Picture(place / f"output-{number}", kind) for number, kind in enumerate(given["pictures"])]
            job.result = Result(given["answers"], pictures, None, given["details"])
        return job

    def _counted(self) -> int:
        """Bytes of all jobs, by their rows."""
        return int(self._db.execute("SELECT COALESCE(SUM(bytes), 0) FROM jobs").fetchone()[0])

    def _place(self, id: str) -> Path:
        return self.folder / "jobs" / id


def unknown_job(id: str) -> UnknownJob:
    """The same whether there is none or it is another client's."""
    return UnknownJob(f"There is no job {id[:80]!r}.", "Look at the id; jobs of other keys are not shown.")


def digest_of(job: Job) -> str:
    """A hash of what is asked for, its pictures included."""
    request = job.request
    assert isinstance(request, GenerateRequest | ClassifyRequest)
    digest = hashlib.sha256(json.dumps(request.to_json(), sort_keys=True).encode())
    for data in request.pictures:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def _result_json(job: Job) -> str | None:
    if job.state is not State.SUCCEEDED or job.result is None:
        return None
    kinds = [picture.kind for picture in job.result.pictures]
    return json.dumps({"answers": job.result.answers, "details": job.result.details, "pictures": kinds})


def _size_of(place: Path) -> int:
    return sum(path.stat().st_size for path in place.iterdir()) if place.is_dir() else 0


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError:  # no fault of the disk
        raise
    except (OSError, sqlite3.DatabaseError) as exc:
        raise DiskError(f"{folder} cannot be written: {exc}.", "Free some space, or give another folder.") from exc
