"""A folder is there whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vitrify.core.errors import BadInput, Busy, DiskError
from vitrify.core.publish import disk_errors, link_or_copy, published

# Writes half an artifact, says so, and waits to be killed.
HALF = """
import sys, time
from pathlib import Path
from vitrify.core.publish import published
with published(Path(sys.argv[1]), replace=True) as scratch:
    (scratch / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(environment: dict[str, str]) -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that is in the middle of writing a target."""
    started: list[subprocess.Popen[str]] = []

    def start(target: Path) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", HALF, target], env=environment, stdout=subprocess.PIPE, text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def write(target: Path, text: str, *, force: bool = False) -> None:
    with published(target, replace=force) as scratch:
        (scratch / "artifact.json").write_text(text)


def names(folder: Path) -> list[str]:
    """All that lies there but locks, which some versions of filelock leave."""
    return sorted(n for n in os.listdir(folder) if not n.endswith(".lock"))


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep/down/target"
    with published(target) as scratch:
        (scratch / "artifact.json").write_text("whole")
        assert not target.exists()
        assert scratch.parent == target.parent, "elsewhere it could not be renamed"
    assert (target / "artifact.json").read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o755
    assert names(target.parent) == ["target"]


def half(target: Path, error: BaseException) -> None:
    with published(target) as scratch:
        (scratch / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("export failed"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        half(tmp_path / "target", error)
    assert names(tmp_path) == []


def test_an_error_while_replacing_leaves_the_old(tmp_path: Path) -> None:
    write(tmp_path / "target", "old")
    with pytest.raises(RuntimeError), published(tmp_path / "target", replace=True):
        raise RuntimeError("export failed")
    assert (tmp_path / "target/artifact.json").read_text() == "old"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("name", ["target", "star*[x]"])
def test_a_killed_process_leaves_no_target_and_the_next_cleans_up(
    tmp_path: Path, writer: Callable[[Path], subprocess.Popen[str]], name: str
) -> None:
    target = tmp_path / name
    child = writer(target)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not target.exists()
    (left,) = names(tmp_path)
    assert left.startswith(f".{name}.part-")
    write(target, "whole")
    assert names(tmp_path) == [name]
    assert (target / "artifact.json").read_text() == "whole"


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "old")
    target.rename(tmp_path / ".target.part-abc-old")
    (tmp_path / ".target.part-abc").mkdir()
    with pytest.raises(BadInput, match="target exists"):
        write(target, "new")
    assert (target / "artifact.json").read_text() == "old"
    assert names(tmp_path) == ["target"]


def test_what_a_killed_process_moved_aside_after_it_replaced_it_goes(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "new")
    (tmp_path / ".target.part-abc-old").mkdir()
    (tmp_path / ".target.part-abc-old/artifact.json").write_text("old")
    write(target, "newest", force=True)
    assert (target / "artifact.json").read_text() == "newest"
    assert names(tmp_path) == ["target"]


def test_a_second_process_is_refused_while_the_first_writes(
    tmp_path: Path, writer: Callable[[Path], subprocess.Popen[str]]
) -> None:
    target = tmp_path / "target"
    child = writer(target)
    with pytest.raises(Busy, match=r"target is being written by another process \(lock .*Wait for it"):
        write(target, "second")
    assert len(names(tmp_path)) == 1, "the first one's folder is still there"
    write(tmp_path / "other", "another target is free")
    child.kill()
    child.wait()
    write(target, "second")
    assert names(tmp_path) == ["other", "target"]


def test_of_many_at_once_one_writes_at_a_time(tmp_path: Path) -> None:
    target, inside, seen = tmp_path / "target", threading.Lock(), []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for _ in range(20):
            try:
                with published(target, replace=True) as scratch:
                    assert inside.acquire(blocking=False), "two were inside at once"
                    (scratch / "artifact.json").write_text(str(number))
                    inside.release()
                seen.append("wrote")
            except Busy:
                seen.append("busy")

    workers = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(seen) == 160, "each attempt wrote or was refused"
    assert "wrote" in seen
    assert names(tmp_path) == ["target"]


def test_only_an_artifact_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    write(tmp_path / "target", "old")
    with pytest.raises(BadInput, match=r"target exists.*--force"):
        write(tmp_path / "target", "new")
    write(tmp_path / "target", "new", force=True)
    assert (tmp_path / "target/artifact.json").read_text() == "new"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(BadInput, match="exists and is not an artifact"):
            write(tmp_path / name, "new", force=True)
    assert names(tmp_path) == ["file", "mine", "target"]
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    write(tmp_path / "target", "new")
    assert (tmp_path / "target/artifact.json").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_through_a_link_the_folder_that_it_names_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/artifact.json").read_text() == "new"
    assert names(tmp_path) == ["link", "real"]


def test_a_full_disk_is_told_and_nothing_is_left(full_disk: Path) -> None:
    said = r"disk that holds .*target is full.*Free some space"
    with pytest.raises(DiskError, match=said) as caught, published(full_disk / "target") as scratch:
        (scratch / "weights").write_bytes(bytes(2_000_000))
    assert isinstance(caught.value.__cause__, OSError)
    assert names(full_disk) == []
    write(full_disk / "target", "small enough")


def test_a_full_disk_while_replacing_leaves_the_old(full_disk: Path) -> None:
    write(full_disk / "target", "old")
    with pytest.raises(DiskError), published(full_disk / "target", replace=True) as scratch:
        (scratch / "weights").write_bytes(bytes(2_000_000))
    assert (full_disk / "target/artifact.json").read_text() == "old"


def test_a_disk_that_is_read_only_is_told(full_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    with pytest.raises(DiskError, match=r"target cannot be written: Read-only.*-o"):
        write(full_disk / "target", "new")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` bytes: a disk that fails in the middle, without a disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_in_the_middle_is_told(tmp_path: Path) -> None:
    said = r"Writing .*target failed"
    with pytest.raises(DiskError, match=said), published(tmp_path / "target") as scratch, largest_file(1000):
        (scratch / "weights").write_bytes(bytes(5000))
    assert names(tmp_path) == []


def test_an_error_of_the_callers_is_not_called_the_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), published(tmp_path / "target"):
        (tmp_path / "no such file").read_text()


def test_weights_are_linked(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "snapshot").symlink_to("blob")
    assert link_or_copy(tmp_path / "snapshot", tmp_path / "deep/model.safetensors")
    linked = tmp_path / "deep/model.safetensors"
    assert not linked.is_symlink()
    assert linked.samefile(tmp_path / "blob")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_weights_that_cannot_be_linked_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "blob").write_bytes(b"weights")
    assert not link_or_copy(tmp_path / "blob", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"weights"
    assert not (tmp_path / "copy").samefile(tmp_path / "blob")


def test_weights_on_another_disk_are_copied(tmp_path: Path, full_disk: Path) -> None:
    (tmp_path / "blob").write_bytes(b"weights")
    assert not link_or_copy(tmp_path / "blob", full_disk / "copy")
    assert (full_disk / "copy").read_bytes() == b"weights"


def test_weights_that_are_not_there_are_no_reason_to_copy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "gone", tmp_path / "copy")


def told(where: Path, number: int, *names: Path | None) -> tuple[type[Exception], str, str]:
    """How an error of the system's with these file names is told of someone who writes `where`."""
    first, second = [*names, None, None][:2]
    with pytest.raises((DiskError, BadInput)) as caught, disk_errors(where):
        raise OSError(number, os.strerror(number), first and str(first), None, second and str(second))
    assert isinstance(caught.value.__cause__, OSError)
    return type(caught.value), caught.value.what, caught.value.fix


def test_a_file_of_the_target_is_told_as_the_target(tmp_path: Path) -> None:
    target = tmp_path / "deep/target"
    for named in (
        *(None, target, target / "unet/model.onnx", tmp_path / "deep", tmp_path),
        *(tmp_path / "deep/.target.part-abc/unet/model.onnx", tmp_path / "deep/.target.lock"),
    ):
        kind, what, fix = told(target, errno.EACCES, named)
        assert kind is DiskError
        assert what == f"{target} cannot be written: Permission denied.", named
        assert "-o" in fix


def test_another_file_is_told_by_its_own_name(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for named in (tmp_path / "source/model.safetensors", tmp_path / "target2", tmp_path / ".targets", Path("/other")):
        kind, what, fix = told(target, errno.EACCES, named)
        assert kind is DiskError
        assert what == f"{named} cannot be read or written: Permission denied."
        assert fix == "Check that file."


def test_through_a_link_the_target_is_still_the_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    _, what, _ = told(tmp_path / "link/target", errno.EACCES, tmp_path / "real/target/model.onnx")
    assert what.startswith(f"{tmp_path}/link/target cannot be written")


def test_a_copy_fills_the_disk_that_it_goes_to(tmp_path: Path, full_disk: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(2_000_000))
    said = r"disk that holds .*disk/target is full"
    with pytest.raises(DiskError, match=said), published(full_disk / "target") as scratch:
        link_or_copy(tmp_path / "blob", scratch / "weights")
    assert names(full_disk) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_says_which(tmp_path: Path, number: int) -> None:
    source, target = tmp_path / "source/model.safetensors", tmp_path / "target"
    kind, what, fix = told(target, number)
    assert (kind, what) == (DiskError, f"The disk that holds {target} is full.")
    assert "Free some space" in fix
    assert told(target, number, source, target / "copy")[1] == what
    assert told(target, number, Path("/tmp/scratch"))[1] == "The disk that holds /tmp/scratch is full."


def test_a_name_that_is_too_long_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be made: File name too long\..*-o") as caught:
        write(tmp_path / ("x" * 300), "new")
    assert len(caught.value.what) < 300
    assert names(tmp_path) == []


def test_a_file_on_the_way_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match=r"target cannot be made: .*-o"):
        write(tmp_path / "file/target", "new")
    with pytest.raises(BadInput, match=r"target cannot be made: .*-o"):
        write(tmp_path / "file/deep/target", "new")
    assert names(tmp_path) == ["file"]


def test_a_link_that_leads_in_a_circle_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BadInput, match=r"loop cannot be made"):
        write(tmp_path / "loop", "new")
    assert names(tmp_path) == ["loop"]
