"""Samples -> figures: medians with their spread, and ratios of runs that were measured side by side.

A ratio is taken within each round and the median of those ratios is reported, since both runs of one round saw the
same machine; a ratio of two medians would mix rounds in which the machine was differently busy.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import UsageError
from .records import WARMUP, Sample

# (max - min) / median above which a figure is called noisy
THRESHOLD = 0.15
# cores used by other processes above which a row says so
_BUSY_CORES = 0.1
_MB = 1e6
METRICS = ("wall_s", "cpu_s", "peak_mb")
# how the peak was read: in the data, not in the table
_DETAIL = ("tree_rss_mb", "tree_pss_mb", "tree_uss_mb", "root_rss_mb")
_UNITS = {"s": "s", "ms": "ms", "mb": "MB"}


@dataclass(frozen=True)
class Figure:
    """A median over `count` rounds, the lowest and the highest; noisy when they lie too far apart."""

    median: float
    low: float
    high: float
    count: int
    noisy: bool

    @property
    def spread(self) -> float:
        """(high - low) / median; 0 where the median is 0."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "count": self.count,
            "spread": self.spread,
            "noisy": self.noisy,
        }


@dataclass(frozen=True)
class Row:
    """One case: its figures by metric, and their ratios to the baseline's. others_cores: the median over its runs."""

    case: str
    group: str
    baseline: str | None
    figures: Mapping[str, Figure]
    ratios: Mapping[str, Figure]
    others_cores: float

    @property
    def noisy(self) -> list[str]:
        """The metrics whose figure or ratio is noisy."""
        return [
            name
            for name, figure in self.figures.items()
            if figure.noisy or (name in self.ratios and self.ratios[name].noisy)
        ]


@dataclass(frozen=True)
class Columns:
    """The metrics that a table shows, and those among them whose ratios it shows."""

    figures: Sequence[str]
    ratios: Sequence[str]


@dataclass(frozen=True)
class Summary:
    """The rows in the order in which the cases were first seen."""

    rows: Sequence[Row]
    threshold: float

    def row(self, case: str) -> Row:
        return next(row for row in self.rows if row.case == case)


def figure(values: Sequence[float], threshold: float = THRESHOLD) -> Figure:
    """The median and range of one value a round. One round alone has no spread and is not called noisy."""
    median, low, high = statistics.median(values), min(values), max(values)
    noisy = high - low > threshold * abs(median)
    return Figure(median, low, high, len(values), noisy)


def values_of(sample: Sample) -> dict[str, float]:
    """Every figure of a sample: wall_s, cpu_s, peak_mb, what the kernel and the sampling say of memory, and its values.

    Megabytes are millions of bytes.
    """
    memory = {
        "peak_mb": sample.peak,
        "tree_rss_mb": sample.tree_rss,
        "tree_pss_mb": sample.tree_pss,
        "tree_uss_mb": sample.tree_uss,
        "root_rss_mb": sample.root_rss,
    }
    return {
        "wall_s": sample.wall_s,
        "cpu_s": sample.cpu_s,
        **{name: size / _MB for name, size in memory.items() if size is not None},
        **sample.values,
    }


def per_round(samples: Sequence[Sample], case: str, metric: str) -> dict[int, float]:
    """The metric in each round: the median where a case ran more than once in it. Warm-ups are left out."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        value = values_of(sample).get(metric)
        if sample.case == case and sample.round != WARMUP and value is not None:
            rounds.setdefault(sample.round, []).append(value)
    return {number: statistics.median(values) for number, values in sorted(rounds.items())}


def ratio(
    samples: Sequence[Sample], case: str, baseline: str, metric: str, threshold: float = THRESHOLD
) -> Figure | None:
    """case / baseline in each round that has both; None where there is no such round or the baseline is 0."""
    above, below = per_round(samples, case, metric), per_round(samples, baseline, metric)
    ratios = [above[number] / below[number] for number in above if below.get(number)]
    return figure(ratios, threshold) if ratios else None


def summarize(
    samples: Sequence[Sample],
    baselines: Mapping[str, str | None] | None = None,
    threshold: float = THRESHOLD,
) -> Summary:
    """Figures of every case, and ratios to the baseline of its group.

    Args:
        samples: of one call of `measure`; rounds of different calls are no pairs.
        baselines: group -> case, or None for no ratios; a group that is not named is compared with its first case.

    Raises:
        UsageError: a baseline that was not measured.
    """
    counted = [s for s in samples if s.round != WARMUP]
    groups: dict[str, list[str]] = {}
    for sample in counted:
        cases = groups.setdefault(sample.group, [])
        if sample.case not in cases:
            cases.append(sample.case)
    for group, case in (baselines or {}).items():
        if case is not None and case not in groups.get(group, []):
            raise UsageError(
                f"The baseline {case!r} has no sample in group {group!r}.", f"Measured: {groups.get(group, [])}."
            )
    rows = []
    for group, cases in groups.items():
        baseline = (baselines or {}).get(group, cases[0])
        rows += [_row(counted, group, case, None if case == baseline else baseline, threshold) for case in cases]
    return Summary(rows, threshold)


def _row(samples: Sequence[Sample], group: str, case: str, baseline: str | None, threshold: float) -> Row:
    own = [s for s in samples if s.case == case]
    metrics = list(dict.fromkeys(name for sample in own for name in values_of(sample)))
    figures = {name: figure(list(per_round(samples, case, name).values()), threshold) for name in metrics}
    ratios = {}
    if baseline is not None:
        found = {name: ratio(samples, case, baseline, name, threshold) for name in metrics}
        ratios = {name: value for name, value in found.items() if value is not None}
    return Row(case, group, baseline, figures, ratios, statistics.median(s.others_cores for s in own))


def to_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain data; ratios are case / baseline, paired by round."""
    return {
        "threshold": summary.threshold,
        "cases": [
            {
                "case": row.case,
                "group": row.group,
                "baseline": row.baseline,
                "figures": {name: value.to_json() for name, value in row.figures.items()},
                "ratios": {name: value.to_json() for name, value in row.ratios.items()},
                "noisy": row.noisy,
                "others_cores": row.others_cores,
            }
            for row in summary.rows
        ],
    }


def to_table(summary: Summary, columns: Mapping[str, Columns] | None = None) -> str:
    """One markdown table a group: median (lowest-highest) of each metric, ratios to the baseline, and notes.

    columns: by group; of a group that is not named, everything is shown.
    """
    return "\n\n".join(
        _table([row for row in summary.rows if row.group == group], (columns or {}).get(group))
        for group in dict.fromkeys(row.group for row in summary.rows)
    )


def _table(rows: Sequence[Row], columns: Columns | None) -> str:
    printed = dict.fromkeys(name for row in rows for name in row.figures)
    metrics = [*METRICS, *(name for name in printed if name not in METRICS and name not in _DETAIL)]
    if columns is not None:
        metrics = [name for name in columns.figures if name in printed]
    compared = [name for name in (columns.ratios if columns else metrics) if any(name in row.ratios for row in rows)]
    baseline = next((row.baseline for row in rows if row.baseline), "")
    head = ["case", *(" ".join(filter(None, _words(m))) for m in metrics)]
    head += [f"{_title(m)} ratio" for m in compared] + ["notes"]
    lines = [head, ["---", *("---:" for _ in head[2:]), "---"]]
    for row in rows:
        cells = [row.case, *(_cell(row.figures.get(m)) for m in metrics), *(_cell(row.ratios.get(m)) for m in compared)]
        lines.append([*cells, _notes(row, metrics)])
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return text + (f"\n\nRatios are to {baseline}, paired by round." if baseline else "")


def _words(metric: str) -> tuple[str, str]:
    """A metric's name in words, and its unit: `peak_mb` is ("peak", "MB")."""
    name, _, unit = metric.rpartition("_")
    words = (name if name and unit in _UNITS else metric).replace("_", " ")
    return {"cpu": "CPU"}.get(words, words), _UNITS.get(unit, "") if name else ""


def _title(metric: str) -> str:
    """The metric's name without its unit."""
    return _words(metric)[0]


def _cell(value: Figure | None) -> str:
    if value is None:
        return "-"
    if value.count == 1:
        return _number(value.median)
    return f"{_number(value.median)} ({_number(value.low)}-{_number(value.high)})"


def _number(value: float) -> str:
    """Three digits, and all of those before the point."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _notes(row: Row, metrics: Sequence[str]) -> str:
    rounds = max(value.count for value in row.figures.values())
    notes = [f"{rounds} round" + "s" * (rounds != 1)]
    noisy = [name for name in row.noisy if name in metrics]
    if noisy:
        notes.append("noisy: " + ", ".join(_title(name) for name in noisy))
    if row.others_cores > _BUSY_CORES:
        notes.append(f"others used {row.others_cores:.1f} cores")
    return "; ".join(notes)
