"""The file of samples: what the reader forgives and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrify.bench.records import Sample, Writer, read
from vitrify.core.errors import BadInput

SAMPLE = Sample("a", "g", 1, 0, 0, 0.0, 1.0, 0.5, 0.25, 100, root_rss=120, values={"step_ms": 2.0})


def test_a_sample_rebuilds_itself(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "out.jsonl"
    with Writer(path) as writer:
        writer.line("header", {"schema": 1})
        writer.line("sample", SAMPLE.to_json())
        writer.line("sample", {**SAMPLE.to_json(), "round": 0, "of a later version": 1})
        writer.line("a kind of a later version", {"case": "a"})
    kept = read(path)
    assert kept.samples[0] == SAMPLE
    assert kept.counted == [SAMPLE]
    assert kept.torn == 0
    assert (SAMPLE.peak, SAMPLE.cpu_s) == (120, 0.75)


def test_what_is_not_such_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read(path)
    path.write_text("hello\n")
    with pytest.raises(BadInput, match="holds no header"):
        read(path)
    path.write_text('{"kind": "header", "schema": 2}\n')
    with pytest.raises(BadInput, match=r"has schema 2; this version reads 1\. pip install --upgrade"):
        read(path)


def test_without_a_path_nothing_is_written() -> None:
    with Writer(None) as writer:
        writer.line("header", {"schema": 1})
