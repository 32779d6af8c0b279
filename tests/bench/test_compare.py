"""The gate on results that were really measured: two runs of one suite, one slowed by 15 %, and noisy weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.compare import compare
from vitrify.bench.differences import Comparison, Difference
from vitrify.bench.pooling import pooled
from vitrify.bench.results import Results, read_results
from vitrify.core.errors import BadInput, UsageError

pytest.importorskip("scipy", reason="needs vitrify[bench]")

HERE = Path(__file__).parents[1] / "fixtures" / "bench" / "compare"
EMOJI = "emoji-diffusion onnx fp32 64x64 steps 2 batch 1 threads 1"
EMOTIONS = "emoji-emotions onnx fp32 batch 1 threads 1"


def recorded(name: str) -> Results:
    return read_results(HERE / f"{name}.jsonl")


def changed(name: str, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Results:
    """A recorded file with each of its lines changed, or left out for None."""
    lines = [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text().splitlines()]
    file = folder / "results.jsonl"
    file.write_text("".join(json.dumps(kept) + "\n" for line in lines if (kept := change(line)) is not None))
    return read_results(file)


def rows(found: Comparison, metric: str) -> list[Difference]:
    return [d for d in found.differences if d.metric == metric]


def row(found: Comparison, cell: str, metric: str) -> Difference:
    return next(d for d in rows(found, metric) if d.cell == cell)


def test_the_same_artifacts_do_not_differ() -> None:
    found = compare(recorded("first"), recorded("again"))
    assert len(found.differences) == 4 * 5 + 3  # and all cells together: latency, cold start, memory
    assert found.differing == []
    assert not found.regressed
    assert all(line.startswith("Other processes used") for line in found.warnings)  # the machine was not alone
    assert {d.verdict for d in rows(found, "peak memory") + rows(found, "disk") + rows(found, "quality")} == {
        "no difference"
    }
    assert all(d.change == 0 for d in rows(found, "quality"))
    assert "No difference was found in 23 figures, at 95% for all together." in found.to_text()


def test_calls_that_take_15_percent_longer_are_slower() -> None:
    found = compare(recorded("first"), recorded("slower"))
    assert found.regressed
    assert {d.metric for d in found.worse} == {"latency"}
    for difference in found.worse:
        assert difference.verdict == "slower"
        assert difference.low is not None
        assert difference.high is not None
        assert 0.03 < difference.low < 0.15 < difference.high + 0.05
    text = found.to_text()
    assert "B is worse: " in text
    assert "| **slower** |" in text
    assert json.loads(json.dumps(found.to_json()))["regressed"] is True


def test_what_slows_all_cells_stands_out_of_them_together() -> None:
    found = compare(recorded("first"), recorded("slower"))
    whole = row(found, "all cells together", "latency")
    assert whole.verdict == "slower"
    assert whole.change == pytest.approx(0.15, abs=0.06)
    alone = compare(recorded("noisy"), recorded("noisier"))  # one cell
    assert [d.cell for d in alone.differences if d.cell == "all cells together"] == []


def test_the_other_way_round_they_are_faster_and_nothing_is_held_against_that() -> None:
    found = compare(recorded("slower"), recorded("first"))
    assert {d.verdict for d in found.differing} == {"faster"}
    assert not found.regressed
    there = compare(recorded("first"), recorded("slower"))
    for one in rows(found, "latency"):
        other = row(there, one.cell, "latency")
        assert (1 + one.change) * (1 + other.change) == pytest.approx(1)  # type: ignore[operator]


def test_what_is_not_gated_does_not_regress() -> None:
    found = compare(recorded("first"), recorded("slower"), gate=("quality", "peak memory"))
    assert any(d.verdict == "slower" for d in found.differences)
    assert not found.regressed


def test_a_margin_that_lets_more_pass() -> None:
    found = compare(recorded("first"), recorded("slower"), margin={"latency": 0.5})
    assert found.differing == []


def test_3_db_less_are_worse_and_other_noise_of_the_same_size_is_not() -> None:
    first = recorded("noisy")
    worse = row(compare(first, recorded("noisier")), first.cells[0].name, "quality")
    assert worse.verdict == "worse"
    assert worse.change == pytest.approx(-3, abs=0.3)
    assert worse.high is not None
    assert worse.high < 0
    assert row(compare(first, recorded("noisy-again")), worse.cell, "quality").change == 0
    assert not compare(first, recorded("noisy-other")).regressed
    better = row(compare(recorded("noisier"), first), worse.cell, "quality")
    assert (better.verdict, better.change) == ("better", pytest.approx(-worse.change))


def test_one_round_does_not_show_the_noise() -> None:
    found = compare(recorded("noisy"), recorded("noisier"))
    latency = rows(found, "latency")[0]
    assert latency.verdict == "cannot tell"
    assert latency.needed == 5
    assert latency.why == "one round does not show the noise"


def test_too_few_rounds_say_how_many_would_do(tmp_path: Path) -> None:
    def two(line: dict[str, Any]) -> dict[str, Any] | None:
        return None if line["kind"] == "sample" and line["round"] > 2 else line

    found = compare(recorded("first"), changed("again", tmp_path, two))
    untold = [d for d in found.untold if d.needed is not None]
    assert untold
    assert all(d.needed > max(d.rounds) and f"{d.needed} rounds would do" in d.why for d in untold)  # type: ignore
    assert "rounds would tell" in found.to_text()


def test_labels_that_six_pictures_more_lose_are_worse_and_five_cannot_be_told(tmp_path: Path) -> None:
    """Of 64 pictures; the proof names the first eight that changed most, those of another label first."""

    def wrong(count: int, folder: str) -> Results:
        def change(line: dict[str, Any]) -> dict[str, Any]:
            if line["kind"] == "cell" and line["spec"]["recipe"] == "int4-weights" and "labels" in line["quality"]:
                named = [{"picture": n, "reference": "joy", "artifact": "fear"} for n in range(count)]
                line["quality"]["labels"] |= {"agreement": 1 - count / 64, "most_changed": named}
            return line

        place = tmp_path / folder
        place.mkdir()
        return changed("first", place, change)

    none, five, six, nine = (wrong(count, str(count)) for count in (0, 5, 6, 9))
    cell = "emoji-emotions onnx int4-weights batch 1 threads 1"
    assert row(compare(none, six), cell, "quality").verdict == "worse"
    untold = row(compare(none, five), cell, "quality")
    assert (untold.verdict, untold.why) == ("cannot tell", "5 of 64 labels; chance makes up to 5")
    assert untold.change == pytest.approx(-100 * 5 / 64)
    assert row(compare(none, nine), cell, "quality").verdict == "worse"  # by counts: not all nine are named
    assert row(compare(six, none), cell, "quality").verdict == "better"


def test_rounds_that_had_the_cores_are_not_compared_with_rounds_that_shared_them() -> None:
    """Two of A's rounds were alone on the machine: their calls took 8 ms, the others', and B's, 12 to 14."""
    cell = "emoji-emotions onnx int4-weights batch 1"
    first, again = recorded("shared"), recorded("shared-again")
    crowded = [next(c for c in r.cells if c.name == cell).per_round("crowded") for r in (first, again)]
    assert [sum(share > 0.1 for share in one.values()) for one in crowded] == [3, 5]
    latency = row(compare(first, again), cell, "latency")
    assert latency.rounds == (3, 5)
    assert latency.a is not None
    assert latency.a > 11
    assert latency.verdict != "slower"


def test_where_no_round_was_alike_it_cannot_be_told(tmp_path: Path) -> None:
    def crowded(share: float, folder: str) -> Results:
        def change(line: dict[str, Any]) -> dict[str, Any]:
            if line["kind"] == "sample":
                line["values"]["crowded"] = share
            return line

        place = tmp_path / folder
        place.mkdir()
        return changed("shared", place, change)

    found = compare(crowded(0.0, "alone"), crowded(1.5, "beside"))
    assert {d.verdict for d in rows(found, "latency")} == {"cannot tell"}
    assert {d.why for d in rows(found, "latency")} == {"A had the cores for itself, B shared them"}
    found = compare(crowded(1.5, "beside-too"), crowded(0.0, "alone-too"))
    assert {d.why for d in rows(found, "latency")} == {"B had the cores for itself, A shared them"}
    # memory does not depend on it
    assert {d.verdict for d in rows(found, "peak memory")} == {"no difference"}


def test_a_cell_that_fails_in_b_is_a_regression(tmp_path: Path) -> None:
    def fails(line: dict[str, Any]) -> dict[str, Any] | None:
        if line["kind"] == "sample" and line["case"] == EMOTIONS:
            return {"kind": "failure", "case": EMOTIONS, "what": "It was killed by SIGSEGV."}
        return line

    found = compare(recorded("first"), changed("again", tmp_path, fails))
    assert [(d.cell, d.metric, d.verdict) for d in found.worse] == [(EMOTIONS, "runs", "fails")]
    assert "It was killed by SIGSEGV." in found.to_text()
    assert [d.metric for d in found.differences if d.cell == EMOTIONS] == ["runs"]


def test_cells_of_one_alone_are_listed(tmp_path: Path) -> None:
    def less(line: dict[str, Any]) -> dict[str, Any] | None:
        return None if line.get("case") == EMOJI else line

    found = compare(recorded("first"), changed("again", tmp_path, less))
    assert (found.only_a, found.only_b) == ([EMOJI], [])
    assert f"only in A: {EMOJI}" in found.to_text()


def test_no_cell_in_common_names_the_nearest(tmp_path: Path) -> None:
    def other(line: dict[str, Any]) -> dict[str, Any]:
        if "case" in line:
            line["case"] = line["case"].replace("batch 1", "batch 2")
        if "spec" in line:
            line["spec"]["batch"] = 2
        return line

    with pytest.raises(BadInput, match=r"no cell in common. Nearest to .*batch 1 threads 1' is .*batch 2 threads 1'"):
        compare(recorded("first"), changed("again", tmp_path, other))


def test_a_file_is_not_compared_with_itself(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="compared with itself"):
        compare(recorded("first"), recorded("first"))


def test_unlike_machines_libraries_and_ways_to_measure_are_warned_about(tmp_path: Path) -> None:
    def moved(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "header":
            line["machine"] |= {"cpu": "Cray-1", "memory": 8_400_000}
            line["versions"] |= {"onnxruntime": "1.20.0"}
            line["plan"]["rounds"] = 3
            for case in line["plan"]["cases"]:
                case["command"][-2:] = ["0.7", "5"]
        if line["kind"] == "sample":
            line["others_cores"] += 2
        return line

    found = compare(recorded("first"), changed("again", tmp_path, moved))
    said = "\n".join(found.warnings)
    for words in (
        "Cray-1",
        "onnxruntime: ",
        "rounds: 10 and 3",
        "seconds a process: 0.5 and 0.7",
        "Other processes used",
    ):
        assert words in said
    assert "calls at least" not in said
    assert "warning: The machines differ: cpu: " in found.to_text()


def test_another_schema_is_refused(tmp_path: Path) -> None:
    def later(line: dict[str, Any]) -> dict[str, Any]:
        return line | ({"schema": 2} if line["kind"] == "header" else {})

    with pytest.raises(BadInput, match="has schema 2; this version reads 1"):
        changed("first", tmp_path, later)


def test_files_without_the_kernels_count_are_compared_by_latency(tmp_path: Path) -> None:
    def older(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "sample":
            line["values"] = {k: v for k, v in line["values"].items() if k not in ("own_ms", "yardstick_ms")}
        return line

    found = compare(recorded("first"), changed("again", tmp_path, older))
    figure = recorded("first").cells[0].figure("latency_ms")
    assert figure is not None
    latency = row(found, recorded("first").cells[0].name, "latency")
    assert latency.a is not None
    assert figure.low <= latency.a <= figure.high


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gate": ("latencies",)}, "no metric 'latencies'"),
        ({"margin": {"ram": 0.1}}, "no metric 'ram'"),
        ({"margin": {"latency": -1}}, "margin of -1"),
        ({"confidence": 1.0}, "confidence of 1"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        compare(recorded("first"), recorded("again"), **options)


def test_several_runs_are_one_with_more_rounds() -> None:
    both = pooled([recorded("first"), recorded("again")])
    assert [len(cell.per_round("own_ms")) for cell in both.cells] == [20] * 4
    for cell, *parts in zip(both.cells, recorded("first").cells, recorded("again").cells, strict=True):
        assert list(cell.per_round("own_ms").values()) == [v for p in parts for v in p.per_round("own_ms").values()]
    more = compare(both, recorded("slower"))
    assert more.regressed
    assert {d.rounds for d in rows(more, "latency")} == {(20, 10)}


def test_runs_of_unlike_machines_or_artifacts_are_not_pooled() -> None:
    first, again = recorded("first"), recorded("again")
    with pytest.raises(BadInput, match=r"not measured alike.*Cray-1"):
        pooled([first, replace(again, machine=again.machine | {"cpu": "Cray-1"})])
    cells = [replace(c, facts={**c.facts, "artifact_id": "another"}) for c in again.cells]
    with pytest.raises(BadInput, match="ran another artifact"):
        pooled([first, replace(again, cells=cells)])
