"""Figures from samples: medians, ratios taken round by round, and what is called noisy."""

from __future__ import annotations

import json

import pytest

from vitrify.bench.records import Sample
from vitrify.bench.summary import figure, per_round, ratio, summarize, to_json, to_table
from vitrify.core.errors import UsageError


def sample(case: str, number: int, wall: float, repeat: int = 0, **fields: object) -> Sample:
    options = {"user_s": 0.5 * wall, "system_s": 0.0, "tree_rss": 100_000_000, "group": "g", **fields}
    return Sample(case=case, round=number, repeat=repeat, position=0, started=0.0, wall_s=wall, **options)


# the machine is twice as slow in the second round, and ten times in the third
DRIFTING = [
    *(sample("old", n, wall) for n, wall in enumerate([10.0, 20.0, 100.0], 1)),
    *(sample("new", n, wall) for n, wall in enumerate([5.0, 12.0, 40.0], 1)),
]


def test_a_ratio_is_paired_by_round() -> None:
    found = ratio(DRIFTING, "new", "old", "wall_s")
    assert found is not None
    assert (found.median, found.low, found.high) == (0.5, 0.4, 0.6)  # of the two medians: 0.6
    assert found.count == 3


def test_rounds_without_a_partner_are_left_out() -> None:
    found = ratio([*DRIFTING, sample("new", 4, 1.0)], "new", "old", "wall_s")
    assert found is not None
    assert found.count == 3
    assert ratio(DRIFTING, "new", "old", "step_ms") is None
    assert ratio([sample("a", 1, 1.0), sample("b", 1, 0.0)], "a", "b", "wall_s") is None


def test_repeats_count_as_one_round_and_warmups_as_none() -> None:
    samples = [sample("a", 0, 99.0), *(sample("a", 1, wall, i) for i, wall in enumerate([3.0, 1.0, 2.0]))]
    assert per_round(samples, "a", "wall_s") == {1: 2.0}
    assert summarize(samples).row("a").figures["wall_s"].median == 2.0


@pytest.mark.parametrize(
    ("values", "noisy"), [([10.0, 10.5, 11.0], False), ([10.0, 10.5, 12.0], True), ([10.0], False), ([0.0, 0.0], False)]
)
def test_noisy_is_a_range_over_the_threshold(values: list[float], noisy: bool) -> None:
    assert figure(values, threshold=0.15).noisy is noisy


def test_spread_is_relative_to_the_median() -> None:
    found = figure([8.0, 10.0, 14.0])
    assert (found.median, found.low, found.high, found.spread) == (10.0, 8.0, 14.0, 0.6)


def test_summary_compares_within_a_group() -> None:
    other = [sample("alone", 1, 3.0, group="h", values={"step_ms": 7.0})]
    summary = summarize([*DRIFTING, *other], {"g": "old"})
    old, new, alone = summary.rows
    assert (old.baseline, new.baseline, alone.baseline) == (None, "old", None)
    assert new.ratios["wall_s"].median == 0.5
    assert new.ratios["peak_mb"].median == 1.0
    assert new.noisy == ["wall_s", "cpu_s"]
    assert alone.figures["step_ms"].median == 7.0
    with pytest.raises(UsageError, match="'new' has no sample in group 'h'"):
        summarize(other, {"h": "new"})


def test_json_and_table_say_the_same() -> None:
    samples = [*DRIFTING, *(sample("busy|", n, 8.0, others_cores=1.9, values={"disk_mb": 5.0}) for n in (1, 2, 3))]
    summary = summarize(samples)
    data = json.loads(json.dumps(to_json(summary)))
    assert [case["case"] for case in data["cases"]] == ["old", "new", "busy|"]
    assert data["cases"][1]["ratios"]["wall_s"]["median"] == 0.5
    assert to_table(summary).splitlines() == [
        "| case | wall s | CPU s | peak MB | disk MB | wall ratio | CPU ratio | peak ratio | notes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        "| old | 20.0 (10.0-100) | 10.0 (5.00-50.0) | 100 (100-100) | - | - | - | - | 3 rounds; noisy: wall, CPU |",
        "| new | 12.0 (5.00-40.0) | 6.00 (2.50-20.0) | 100 (100-100) | - | 0.50 (0.40-0.60) | 0.50 (0.40-0.60) "
        "| 1.00 (1.00-1.00) | 3 rounds; noisy: wall, CPU |",
        "| busy\\| | 8.00 (8.00-8.00) | 4.00 (4.00-4.00) | 100 (100-100) | 5.00 (5.00-5.00) | 0.40 (0.08-0.80) "
        "| 0.40 (0.08-0.80) | 1.00 (1.00-1.00) | 3 rounds; noisy: wall, CPU; others used 1.9 cores |",
        "",
        "Ratios are to old, paired by round.",
    ]


def test_one_round_is_said_and_shows_no_range() -> None:
    assert "| a | 2.00 | 1.00 | 100 | 1 round |" in to_table(summarize([sample("a", 1, 2.0)]))
