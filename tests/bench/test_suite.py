"""A bench on real processes: one run of a case may stand in several tables, and a failure in none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vitrify.bench import records
from vitrify.bench.measure import Case, CaseFailed
from vitrify.bench.suite import Bench, Comparison
from vitrify.bench.summary import THRESHOLD, Columns, Summary, to_table

pytest.importorskip("psutil", reason="needs vitrify[bench]")


def bench(fails: str = "") -> Bench:
    """Cases that print a step of 10, 20 and 40 ms; the one named fails."""

    def cases(work: Path) -> list[Case]:
        return [
            Case(name, [sys.executable, "-S", "-c", text(name, step)], group="mine", before=lambda: seen(work))
            for name, step in (("eager", 10), ("alone", 20), ("ours", 40))
        ]

    def text(name: str, step: int) -> str:
        return "import sys; sys.exit('broken')" if name == fails else f"print('VITRIFY_BENCH {{\"step_ms\": {step}}}')"

    def seen(work: Path) -> None:
        assert (work / "ready").exists(), "prepared before anything is run"

    comparisons = (
        Comparison("mine", "eager"),
        Comparison("pair", "alone", ("alone", "ours")),
        Comparison("plain", None),
    )
    columns = Columns(("step_ms", "peak_mb"), ("step_ms",))
    return Bench("mine", cases, lambda work: (work / "ready").touch(), comparisons, rounds=1, columns=columns)


def test_a_run_stands_in_several_tables(tmp_path: Path) -> None:
    one = bench()
    samples = one.run(tmp_path)
    assert len(samples) == 3
    assert records.read(tmp_path / "mine.jsonl").samples == samples
    rows = {(row.group, row.case): row for row in one.compare(samples)}
    assert len(rows) == 8
    assert rows["mine", "ours"].ratios["step_ms"].median == 4
    assert rows["pair", "ours"].ratios["step_ms"].median == 2
    assert rows["pair", "ours"].baseline == "alone"
    assert not any(row.ratios for (group, _), row in rows.items() if group == "plain")


def test_a_case_that_fails_has_no_row_and_a_table_without_its_baseline_no_ratios(tmp_path: Path) -> None:
    one = bench(fails="alone")
    with pytest.raises(CaseFailed, match=r"'alone' exited with 1. .*\n  broken") as caught:
        one.run(tmp_path, rounds=2, warmup=1)
    rows = {(row.group, row.case): row for row in one.compare(caught.value.samples)}
    assert ("mine", "alone") not in rows
    assert ("pair", "alone") not in rows
    assert rows["mine", "ours"].ratios["step_ms"].median == 4
    assert rows["pair", "ours"].ratios == {}
    assert one.compare([]) == []


def test_its_tables_show_its_columns(tmp_path: Path) -> None:
    one = bench()
    rows = one.compare(one.run(tmp_path))
    assert one.columns is not None
    tables = to_table(Summary(rows, THRESHOLD), {"mine": one.columns}).split("\n\n")
    assert tables[0].splitlines()[0] == "| case | step ms | peak MB | step ratio | notes |"
    assert tables[1] == "Ratios are to eager, paired by round."
    assert tables[2].splitlines()[0].startswith("| case | wall s | CPU s | peak MB | step ms |")
    assert tables[4].splitlines()[0] == "| case | wall s | CPU s | peak MB | step ms | notes |"
