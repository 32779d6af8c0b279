"""The journal: what it keeps, for how long, and what it finds again."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.core.errors import DiskError, UsageError
from vitrify.serve.errors import Conflict, ExpiredJob, UnknownJob
from vitrify.serve.jobs import Job, Picture, Problem, Result, State
from vitrify.serve.journal import VERSION, Journal
from vitrify.serve.requests import ClassifyRequest, ControlRequest, GenerateRequest

DAY = 86400.0


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """opened(**ARGUMENTS) opens the journal; the one before is closed."""
    open_ones: list[Journal] = []

    def make(**arguments: Any) -> Journal:
        while open_ones:
            open_ones.pop().close()
        open_ones.append(Journal(tmp_path / "state", **{"age": DAY, "size": 10**9, **arguments}))
        return open_ones[-1]

    yield make
    while open_ones:
        open_ones.pop().close()


def drawing(**given: Any) -> Job:
    return Job(GenerateRequest("m", "a fox", 64, 64, seed=1), "ann", durable=True, **given)


def labelling(*pictures: bytes) -> Job:
    return Job(ClassifyRequest("m", pictures, top_k=None), "ann", durable=True)


def same(jobs: list[Job], others: list[Job]) -> bool:
    return list(map(vars, jobs)) == list(map(vars, others))


def done(journal: Journal, job: Job, size: int = 1000, at: float = 1000.0) -> Job:
    job.state, job.started, job.finished = State.SUCCEEDED, at - 1, at
    job.result = Result(pictures=[Picture(bytes(size), "webp")], details={"seed": 1})
    journal.save(job)
    return job


def test_a_job_is_found_again_as_it_was(opened: Any) -> None:
    journal = opened()
    job = drawing(priority=3, deadline=5000.0)
    assert journal.add(job) == job.id
    assert same(opened().recover(), [job])
    done(opened(), job)
    kept = opened().load(job.id, "ann")
    assert (kept.state, kept.priority, kept.started, kept.finished) == (State.SUCCEEDED, 3, 999.0, 1000.0)
    assert kept.result is not None
    assert kept.result.details == {"seed": 1}
    assert (kept.result.pictures[0].data, kept.result.pictures[0].media_type) == (bytes(1000), "image/webp")


def test_pictures_to_label_are_kept_until_the_job_ends(opened: Any, tmp_path: Path) -> None:
    journal = opened()
    job = labelling(b"one", b"two")
    journal.add(job)
    assert same(opened().recover(), [job])
    journal = opened()
    assert journal.bytes == 6
    job.state, job.result, job.finished = State.SUCCEEDED, Result(answers=[[], []]), 1000.0
    journal.save(job)
    assert journal.bytes == 0
    assert list((tmp_path / "state" / "jobs" / job.id).iterdir()) == []
    assert journal.load(job.id, "ann").result.answers == [[], []]


def test_after_a_crash_what_ran_is_interrupted(opened: Any) -> None:
    journal = opened(now=lambda: 77.0)
    running, waiting = drawing(), drawing()
    journal.add(running)
    journal.add(waiting)
    running.state, running.started = State.RUNNING, 5.0
    journal.save(running)
    journal = opened(now=lambda: 77.0)
    assert [job.id for job in journal.recover()] == [waiting.id]
    ended = journal.load(running.id, "ann")
    assert (ended.state, ended.finished) == (State.INTERRUPTED, 77.0)
    assert ended.problem == Problem("interrupted", "The server ended while this job ran.", "Ask for it again.")


def test_the_pictures_of_what_ran_count_no_more(opened: Any, tmp_path: Path) -> None:
    journal, running, waiting = opened(), labelling(b"one"), labelling(b"three")
    journal.add(running)
    journal.add(waiting)
    assert journal.bytes == 8
    running.state = State.RUNNING
    journal.save(running)
    journal = opened()
    assert same(journal.recover(), [waiting])
    assert journal.bytes == opened().bytes == 5
    assert [place.name for place in (tmp_path / "state" / "jobs").iterdir()] == [waiting.id]


def test_a_job_whose_pictures_are_gone_fails_alone(opened: Any, tmp_path: Path) -> None:
    journal = opened()
    broken, whole = labelling(b"one"), labelling(b"two")
    journal.add(broken)
    journal.add(whole)
    (tmp_path / "state" / "jobs" / broken.id / "input-0").unlink()
    (tmp_path / "state" / "jobs" / "of nobody").mkdir()
    journal = opened()
    assert same(journal.recover(), [whole])
    assert journal.load(broken.id, "ann").problem.code == "disk"
    assert sorted(p.name for p in (tmp_path / "state" / "jobs").iterdir()) == sorted([broken.id, whole.id])


def test_the_same_key_is_the_same_job_for_its_client_alone(opened: Any) -> None:
    journal = opened()
    first = drawing()
    journal.add(first, "k")
    again = drawing()
    assert journal.known(again, "k") == first.id
    assert journal.add(again, "k") == first.id, "they raced"
    other = Job(again.request, "bob", durable=True)
    assert journal.known(other, "k") is None
    assert journal.add(other, "k") == other.id
    with pytest.raises(Conflict, match="used for another request"):
        journal.known(labelling(b"x"), "k")
    assert journal.add(labelling(b"x"), "pictures")
    with pytest.raises(Conflict):
        journal.add(labelling(b"y"), "pictures")


def test_what_is_old_goes_first_by_age_then_by_size(opened: Any, tmp_path: Path) -> None:
    now = [1000.0]
    journal = opened(age=100, size=2500, now=lambda: now[0])
    jobs = [drawing() for _ in range(4)]
    for number, job in enumerate(jobs[:3]):
        journal.add(job)
        done(journal, job, at=1000.0 + number)
    journal.add(jobs[3])  # waits: never removed
    assert journal.full
    assert journal.prune() == 1
    assert not journal.full
    with pytest.raises(ExpiredJob):
        journal.load(jobs[0].id, "ann")
    assert journal.load(jobs[1].id, "ann").state is State.SUCCEEDED
    assert not (tmp_path / "state" / "jobs" / jobs[0].id).exists()
    now[0] = 1200.0
    assert journal.prune() == 2
    assert journal.bytes == 0
    assert [job.id for job in journal.listed("ann")] == [jobs[3].id]
    for id, client in (("nobody", "ann"), (jobs[0].id, "bob")):
        with pytest.raises(UnknownJob, match=id):
            journal.load(id, client)


def test_listed_gives_the_newest_of_a_client(opened: Any) -> None:
    journal = opened()
    jobs = [drawing(created=float(number)) for number in range(5)]
    for job in jobs:
        journal.add(job)
    journal.add(Job(jobs[0].request, "bob", durable=True))
    assert [job.id for job in journal.listed("ann", 3)] == [job.id for job in jobs[:1:-1]]


def test_two_servers_and_newer_versions_are_refused(opened: Any, tmp_path: Path) -> None:
    opened()
    with pytest.raises(UsageError, match="Another server"):
        Journal(tmp_path / "state", age=1, size=1)
    opened().close()
    with sqlite3.connect(tmp_path / "state" / "jobs.sqlite") as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    db.close()
    with pytest.raises(DiskError, match="newer version"):
        Journal(tmp_path / "state", age=1, size=1)


def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(DiskError, match="file is not a database"):
        Journal(tmp_path, age=1, size=1)


def test_a_full_disk_leaves_nothing_of_a_new_job(small_disk: Any) -> None:
    disk = small_disk(500_000)
    journal = Journal(disk / "state", age=DAY, size=10**9)
    kept = drawing()
    journal.add(kept)
    with pytest.raises(DiskError, match="No space"):
        journal.add(labelling(bytes(1_000_000)))
    assert [p.name for p in (disk / "state" / "jobs").iterdir()] == []
    with pytest.raises(DiskError):
        done(journal, kept, size=1_000_000)
    assert journal.load(kept.id, "ann").state is State.QUEUED
    assert not list((disk / "state" / "jobs" / kept.id).iterdir())
    journal.close()


def test_pictures_to_start_from_are_kept_until_the_job_ends(opened: Any, tmp_path: Path) -> None:
    unit = ControlRequest("net", b"three", "canny")
    request = GenerateRequest("m", "a fox", 64, 64, image=b"one", mask=b"two", control=(unit,), loras={"a": (1.0, 0.5)})
    journal, job = opened(), Job(request, "ann", durable=True)
    journal.add(job, "k")
    assert journal.bytes == 11
    assert journal.known(Job(request, "ann", durable=True), "k") == job.id
    for changed in ({"mask": b"2wo"}, {"mask": None}, {"control": (replace(unit, picture=b"3hree"),)}):
        with pytest.raises(Conflict):
            journal.known(Job(replace(request, **changed), "ann", durable=True), "k")
    assert same(opened().recover(), [job])
    listed = opened().listed("ann")[0]
    assert listed.request == request.without_data()
    assert listed.request.to_json() == request.to_json()
    journal = opened()
    done(journal, job)
    assert [file.name for file in (tmp_path / "state" / "jobs" / job.id).iterdir()] == ["output-0"]
    assert journal.load(job.id, "ann").request == request.without_data()


def test_a_picture_to_start_from_that_is_gone_fails_its_job(opened: Any, tmp_path: Path) -> None:
    job = Job(GenerateRequest("m", "a fox", 64, 64, image=b"one"), "ann", durable=True)
    opened().add(job)
    (tmp_path / "state" / "jobs" / job.id / "input-0").unlink()
    journal = opened()
    assert journal.recover() == []
    assert journal.load(job.id, "ann").problem.code == "disk"
