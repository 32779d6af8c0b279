"""What a report recommends: the bar, the objectives, the baseline, and the front."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vitrify.bench.report.answers import answer
from vitrify.bench.report.choice import Bar, baseline_of, choose, groups, pareto, relative
from vitrify.bench.results import Cell, Results, read_results
from vitrify.core.errors import UsageError

RESULTS = Path(__file__).parents[1] / "fixtures/bench/results-1.jsonl"
Change = Callable[[Cell, dict[str, float]], dict[str, float]]


@pytest.fixture(scope="module")
def results() -> Results:
    """What one run on two cores measured, other processes beside it."""
    return read_results(RESULTS)


def emoji(results: Results) -> list[Cell]:
    return next(cells for (model, _), cells in groups(results.measured).items() if model == "emoji")


def changed(cell: Cell, **factors: float) -> Cell:
    """The cell with some of its values multiplied in every round."""
    samples = [
        replace(s, values={k: v * factors.get(k, 1.0) for k, v in s.values.items()}, series={}) for s in cell.samples
    ]
    return replace(cell, samples=samples)


def said(cells: list[Cell], bar: Bar | None = None) -> str:
    return "".join(answer(cells, bar or Bar()))


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 30.0), (2.0, 30.0), (2.0, 40.0), (3.0, 35.0), (4.0, 100.0), (4.0, 100.0), (1.0, 20.0)]
    assert pareto(points) == [0, 2, 4, 5]
    assert pareto([]) == []


def test_the_front_agrees_with_the_definition() -> None:
    """Against every pair of points, on many small sets with ties."""
    draw = random.Random(0)
    for _ in range(300):
        points = [(draw.randint(0, 6), draw.randint(0, 6)) for _ in range(draw.randint(1, 12))]
        beaten = {
            i
            for i, (cost, quality) in enumerate(points)
            if any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
        }
        front = pareto(points)
        assert set(front) == set(range(len(points))) - beaten
        assert front == sorted(front, key=lambda i: points[i])


def test_cells_compare_where_the_same_was_asked(results: Results) -> None:
    found = groups(results.measured)
    assert {model for model, _ in found} == {"emoji", "emotions"}
    assert all(len({(c.spec.model, c.spec.asked) for c in cells}) == 1 for cells in found.values())
    assert sum(map(len, found.values())) == len(results.measured)


def test_the_least_of_each_objective_is_chosen(results: Results) -> None:
    cells = emoji(results)
    for choice, metric in zip(choose(cells), ("latency_ms", "peak_mb", "disk_mb"), strict=True):
        assert choice.cell is not None
        assert choice.figure is not None
        assert choice.figure.median == min(f.median for c in cells if (f := c.figure(metric)))
    with pytest.raises(UsageError, match=r"no objective 'speed'. Objectives are latency, memory, disk"):
        choose(cells, objectives=["speed"])


def test_a_bar_keeps_out_what_is_below_it_or_not_known(results: Results) -> None:
    cells = emoji(results)
    (choice,) = choose(cells, Bar(psnr_db=30), ["disk"])
    assert choice.cell is not None
    assert choice.cell.spec.recipe == "int8-static"  # int4-weights are smaller, at 26.7 dB
    (choice,) = choose(cells, Bar(psnr_db=90), ["latency"])
    assert choice.cell is not None
    assert choice.cell.spec.recipe == "fp32"
    unknown = [replace(c, facts={**c.facts, "quality": "not run"}) for c in cells]
    (choice,) = choose(unknown, Bar(psnr_db=1), ["latency"])
    assert (choice.cell, choice.nearest) == (None, None)
    assert choose(unknown, Bar(agreement=0.99), ["latency"])[0].cell is not None  # asked of classifiers
    failed = [replace(c, facts={**c.facts, "failed_proof": "too far"}) for c in cells]
    assert all(choice.cell is None for choice in choose(failed))
    assert said(failed).startswith("Nothing that was measured passed its proof. ")


def test_a_bar_that_nothing_meets_names_what_comes_nearest(results: Results) -> None:
    lossy = [c for c in emoji(results) if c.spec.recipe != "fp32"]
    (choice,) = choose(lossy, Bar(psnr_db=60), ["latency"])
    assert choice.cell is None
    assert choice.nearest is not None
    assert choice.nearest.spec.recipe == "int8-static"
    text = said(lossy, Bar(psnr_db=60))
    assert text.startswith("Nothing that was measured reaches 60 dB to the source's pictures. ")
    assert f"{choice.nearest.spec.how} comes nearest: its pictures are " in text


def test_ratios_are_of_one_round(results: Results) -> None:
    cells = emoji(results)
    base = baseline_of(cells)
    assert base is cells[0]
    twice = replace(changed(base, latency_ms=2.0), spec=base.spec)
    found = relative(twice, base, "latency_ms")
    assert found is not None
    # however noisy the rounds are, each was twice its own
    assert (found.low, found.median, found.high) == pytest.approx((2.0, 2.0, 2.0))
    disk = relative(cells[1], base, "disk_mb")
    assert disk is not None
    assert disk.count == 1
    assert relative(cells[1], replace(base, samples=[]), "latency_ms") is None


def test_a_cell_that_wins_every_round_is_recommended_with_its_figures(results: Results) -> None:
    base = emoji(results)[0]
    quick = changed(replace(base, spec=replace(base.spec, runtime="openvino")), latency_ms=0.5)
    quick = replace(quick, samples=[replace(s, case=quick.name) for s in quick.samples])
    text = said([base, quick])
    assert text.startswith(f"Choose {quick.spec.how}: with ")
    assert f"it is the fastest of 2 cells, 0.50 of the time of the baseline {base.spec.how}, which takes " in text
    assert "its pictures are identical to the source's" in text
    assert "Nothing needs less memory than the baseline: " in text


def test_what_one_round_contradicts_is_not_recommended(results: Results) -> None:
    base = emoji(results)[0]
    other = replace(base, spec=replace(base.spec, runtime="openvino"))
    factors = (0.8, 0.9, 1.2)
    samples = [
        replace(s, case=other.name, values={**s.values, "latency_ms": s.values["latency_ms"] * factor})
        for s, factor in zip(base.samples, factors, strict=True)
    ]
    # the medians of both are far apart, so that only the rounds speak
    steady = [replace(s, values={**s.values, "latency_ms": 100.0}) for s in base.samples]
    samples = [
        replace(s, values={**s.values, "latency_ms": 100.0 * factor})
        for s, factor in zip(samples, factors, strict=True)
    ]
    text = said([replace(base, samples=steady), replace(other, samples=samples)])
    assert "has the lowest median of 2 cells, 90.0 ms (80.0–120) a call, but the rounds do not tell it from" in text
    assert "the ratio is 0.90 (0.80–1.20). Nothing is shown to be faster." in text
    assert "Its figure is noisy, for the rounds spread by 44 % of the median." in text
    assert "Choose" not in text


def test_where_nothing_is_better_the_baseline_stays(results: Results) -> None:
    base = emoji(results)[0]
    slow = changed(replace(base, spec=replace(base.spec, runtime="torch")), latency_ms=3.0)
    slow = replace(slow, samples=[replace(s, case=slow.name) for s in slow.samples])
    text = said([base, slow])
    assert text.startswith(f"Stay with the baseline, {base.spec.how}: nothing of 2 cells is faster than its ")
    assert "Nothing needs less memory than the baseline either: " in text


def test_without_a_float32_cell_nothing_is_compared(results: Results) -> None:
    lossy = [c for c in emoji(results) if c.spec.recipe != "fp32"]
    assert "No fp32 cell was measured that it could be compared with." in said(lossy)
    once = [replace(c, samples=c.samples[:1]) for c in lossy]
    assert "That is one round: nothing says how far another would be from it." in said(once)
