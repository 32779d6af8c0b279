"""The cache: entries are there whole or not at all, and never more of them than the bound."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitrify.core.cache import Cache, key_of
from vitrify.core.errors import Busy, DiskError, UsageError


def put(cache: Cache, key: str, size: int = 100, used: float | None = None, kind: str = "graphs") -> None:
    with cache.put(kind, key) as scratch:
        (scratch / "data").write_bytes(bytes(size))
    if used is not None:
        os.utime(cache.root / kind / key / ".used", (used, used))


def keys(small: Cache) -> list[str]:
    return [entry.key for entry in small.entries()]


@pytest.fixture
def small(tmp_path: Path) -> Cache:
    """A cache of 1000 bytes."""
    return Cache(tmp_path / "cache", limit=1000)


def test_what_is_put_is_got(small: Cache) -> None:
    assert small.get("graphs", "a") is None
    put(small, "a", 123)
    found = small.get("graphs", "a")
    assert found is not None
    assert (found / "data").stat().st_size == 123
    assert small.get("graphs", "b") is None
    assert small.get("bindings", "a") is None
    (entry,) = small.entries()
    assert (entry.kind, entry.key, entry.bytes, entry.path) == ("graphs", "a", 123, found)


def test_a_failed_put_leaves_no_entry(small: Cache) -> None:
    with pytest.raises(ZeroDivisionError), small.put("graphs", "a") as scratch:
        (scratch / "data").write_bytes(bytes(1 // 0))
    assert small.get("graphs", "a") is None
    assert small.entries() == []


def test_an_entry_may_be_put_again(small: Cache) -> None:
    put(small, "a", 10)
    put(small, "a", 20)
    assert [e.bytes for e in small.entries()] == [20]


def test_the_least_recently_used_goes_first(small: Cache) -> None:
    now = time.time()
    put(small, "old", 400, now - 300)
    put(small, "older", 400, now - 400)
    assert small.get("graphs", "older") is not None  # used just now
    put(small, "new", 400)
    assert sorted(keys(small)) == ["new", "older"]
    assert small.get("graphs", "old") is None


def test_the_bound_is_kept_over_all_kinds(small: Cache) -> None:
    now = time.time()
    for number in range(20):
        put(small, f"k{number}", 150, now - 100 + number, kind="graphs" if number % 2 else "bindings")
        assert sum(e.bytes for e in small.entries()) <= 1000
    assert keys(small) == ["k19", "k18", "k17", "k16", "k15", "k14"]


def test_an_entry_larger_than_the_bound_is_not_kept_and_takes_no_other_with_it(small: Cache) -> None:
    put(small, "small", 300)
    put(small, "huge", 1001)
    assert keys(small) == ["small"]
    assert small.get("graphs", "huge") is None


def test_prune_says_what_it_removed(small: Cache) -> None:
    now = time.time()
    put(small, "a", 100, now - 2)
    put(small, "b", 100, now - 1)
    assert [e.key for e in small.prune(150)] == ["a"]
    assert [e.key for e in small.prune(0)] == ["b"]
    assert small.entries() == []
    assert os.listdir(small.root / "graphs") in ([], [".a.lock", ".b.lock"], [".b.lock", ".a.lock"])


def test_an_entry_that_is_being_written_is_not_pruned(small: Cache) -> None:
    put(small, "a")
    put(small, "b")
    with small.put("graphs", "a") as scratch:
        (scratch / "data").write_bytes(bytes(50))
        small.prune(0)
        assert keys(small) == ["a"]
    assert [(e.key, e.bytes) for e in small.entries()] == [("a", 50)]


def test_bytes_that_another_folder_holds_too_do_not_count(small: Cache, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(5000))
    with small.put("graphs", "linked") as scratch:
        os.link(tmp_path / "weights", scratch / "weights")
        (scratch / "data").write_bytes(bytes(10))
    assert [e.bytes for e in small.entries()] == [10]


def test_a_folder_that_is_no_entry_does_not_stand_in_the_way(small: Cache) -> None:
    damaged = small.root / "graphs/a"
    damaged.mkdir(parents=True)
    (damaged / "data").write_bytes(b"half")
    assert small.get("graphs", "a") is None
    put(small, "a", 50)
    assert [e.bytes for e in small.entries()] == [50]


def test_what_killed_processes_left_is_swept_once_it_is_old(small: Cache) -> None:
    put(small, "a")
    fresh, stale = (small.root / f"graphs/.{name}.part-x" for name in ("fresh", "stale"))
    for folder in (fresh, stale):
        folder.mkdir()
        (folder / ".used").touch()
    long_ago = time.time() - 3 * 86_400
    os.utime(stale, (long_ago, long_ago))
    assert keys(small) == ["a"], "what is being written is no entry"
    small.prune(1000)
    assert fresh.exists()
    assert not stale.exists()


def test_while_another_process_writes_an_entry_one_goes_on_without(small: Cache) -> None:
    with small.put("graphs", "a") as first:
        (first / "data").write_bytes(b"first")
        with small.put("graphs", "a") as second:
            assert second != first
            (second / "data").write_bytes(b"second")
        assert not second.exists()
        assert small.get("graphs", "a") is None
    found = small.get("graphs", "a")
    assert found is not None
    assert (found / "data").read_bytes() == b"first"


def test_who_asks_for_the_entry_alone_is_told_that_it_is_being_written(small: Cache) -> None:
    with small.put("artifacts", "a", exclusive=True) as first:
        (first / "data").write_bytes(b"first")
        with pytest.raises(Busy, match="is being written"), small.put("artifacts", "a", exclusive=True):
            pytest.fail("its work was begun a second time")
        with small.put("artifacts", "b", exclusive=True):
            pass  # another entry is free
    found = small.get("artifacts", "a")
    assert found is not None
    assert (found / "data").read_bytes() == b"first"
    with small.put("artifacts", "a", exclusive=True) as again:
        (again / "data").write_bytes(b"again")
    assert (found / "data").read_bytes() == b"again"


MANY = """
import json, sys
from pathlib import Path
from vitrify.core.cache import Cache
cache = Cache(Path(sys.argv[1]), limit=1000)
for turn in range(60):
    key = f"k{(turn * int(sys.argv[2])) % 7}"
    with cache.put("graphs", key) as scratch:
        for part in ("a", "b", "c"):
            (scratch / part).write_bytes(key.encode() * 50)
    for number in range(7):
        found = cache.get("graphs", f"k{number}")
        if found is None:
            continue
        try:
            texts = [(found / part).read_bytes() for part in ("a", "b", "c")]
        except FileNotFoundError:
            continue  # it was pruned after it was found
        assert texts == [f"k{number}".encode() * 50] * 3, texts
    cache.entries()
"""


def test_processes_share_it(tmp_path: Path, environment: dict[str, str]) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, tmp_path, str(n)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for n in (1, 2, 3)
    ]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], errors
    cache = Cache(tmp_path, limit=1000)
    assert 0 < sum(e.bytes for e in cache.entries()) <= 1000
    assert not [p for p in (tmp_path / "graphs").iterdir() if ".part-" in p.name]


def test_a_full_disk_names_the_variable_that_moves_the_cache(full_disk: Path) -> None:
    cache = Cache(full_disk / "cache")
    with pytest.raises(DiskError, match=r"full.*VITRIFY_CACHE"), cache.put("graphs", "a") as scratch:
        (scratch / "data").write_bytes(bytes(2_000_000))
    assert cache.entries() == []


def test_the_environment_says_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "there"))
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "123")
    assert (Cache().root, Cache().limit) == (tmp_path / "there", 123)
    assert (Cache(tmp_path / "here", 5).root, Cache(tmp_path / "here", 5).limit) == (tmp_path / "here", 5)
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "4 GB")
    with pytest.raises(UsageError, match=r"VITRIFY_CACHE_MAX is '4 GB'.*number of bytes"):
        Cache()


def test_a_key_depends_on_the_content_and_not_on_its_order() -> None:
    assert key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})
    assert key_of(json.loads('{"a": 1}')) == key_of({"a": 1})
    assert len(key_of({})) == 32
