"""A results folder read: what `vitrify bench -o DIR` measured, cell by cell, for reports and comparisons."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from .records import Json, Sample, read
from .spec import Spec
from .summary import Figure, figure, per_round, ratio, values_of

RESULTS = "results.jsonl"
FP32 = "fp32"
# what is to be small -> the figure of a cell that says how small it is
OBJECTIVES: Mapping[str, str] = {"latency": "latency_ms", "memory": "peak_mb", "disk": "disk_mb"}
# how many calls a percentile needs before one call decides it no longer
PERCENTILES = {50: 1, 90: 10, 95: 20, 99: 100}


@dataclass(frozen=True)
class Quality:
    """How near a cell's artifact is to its source, from the proof in its manifest.

    psnr_db: one a picture; None where the two are equal. agreement: share of pictures with the same best label.
    """

    psnr_db: Sequence[float | None] = ()
    agreement: float | None = None

    @property
    def mean_psnr_db(self) -> float | None:
        """On average, equal pictures counted as 100 dB; None of a classifier."""
        if not self.psnr_db:
            return None
        return statistics.fmean(100.0 if v is None else min(v, 100.0) for v in self.psnr_db)

    @property
    def identical(self) -> bool:
        return bool(self.psnr_db) and all(v is None for v in self.psnr_db)

    @property
    def label(self) -> str:
        if self.identical:
            return "identical"
        mean = self.mean_psnr_db
        return f"{self.agreement:.1%} of labels" if mean is None else f"{mean:.1f} dB"

    @property
    def score(self) -> float:
        """What a higher one of is better: dB, or percent of labels."""
        mean = self.mean_psnr_db
        return 100.0 * (self.agreement or 0.0) if mean is None else mean

    @classmethod
    def of(cls, proof: Any) -> Quality | None:
        """Of a "cell" line's `quality`; None where no proof was run."""
        if not isinstance(proof, Mapping):
            return None
        images, labels = proof.get("images"), proof.get("labels")
        if isinstance(images, Mapping) and images.get("psnr_db"):
            return cls(psnr_db=tuple(images["psnr_db"]))
        if isinstance(images, Mapping) and "min_psnr_db" in images:  # of an older manifest: the worst, or None
            return cls(psnr_db=(images["min_psnr_db"],))
        if isinstance(labels, Mapping) and "agreement" in labels:
            return cls(agreement=float(labels["agreement"]))
        return None


@dataclass(frozen=True)
class Cell:
    """One cell with its counted samples.

    facts: artifact, disk_mb, build_s, gflop, quality, pictures. failure: how it ended, where it did so badly.
    """

    spec: Spec
    samples: Sequence[Sample]
    facts: Mapping[str, Any] = field(default_factory=dict)
    failure: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def metrics(self) -> list[str]:
        """The names that `figure` knows of this cell."""
        facts = [k for k, v in self.facts.items() if isinstance(v, int | float)]
        return list(dict.fromkeys([*(name for s in self.samples for name in values_of(s)), *facts]))

    def per_round(self, metric: str) -> dict[int, float]:
        """The metric in each round."""
        return per_round(self.samples, self.name, metric)

    def figure(self, metric: str) -> Figure | None:
        """Median and range over rounds of a value, of wall_s, peak_mb; of a fact the fact; None: not measured."""
        fact = self.facts.get(metric)
        if isinstance(fact, int | float):
            return figure([float(fact)])
        values = list(self.per_round(metric).values())
        return figure(values) if values else None

    def latencies(self) -> list[float]:
        """Of all calls of all rounds, ms."""
        return [ms for sample in self.samples for ms in sample.series.get("latency_ms", ())]

    def percentile(self, q: int) -> float | None:
        """Of all calls of all rounds, ms; None where so few calls cannot tell it."""
        found = sorted(self.latencies())
        if len(found) < max(1, PERCENTILES.get(q, 100)):
            return None
        return found[min(len(found) - 1, math.ceil(q / 100 * len(found)) - 1)]  # nearest rank

    def share_of(self, peak: float | None) -> float | None:
        """Operations a second as a share of `peak`, in GFLOP a second; None where one is not known."""
        gflop, latency = self.figure("gflop"), self.figure("latency_ms")
        if gflop is None or latency is None or not latency.median or not peak:
            return None
        return gflop.median / (latency.median / 1e3) / peak

    @cached_property
    def quality(self) -> Quality | None:
        return Quality.of(self.facts.get("quality"))


@dataclass(frozen=True)
class Results:
    """What one run measured. cells: those that have samples, and those that failed. skipped: cells that cannot be."""

    path: Path
    machine: Json
    versions: dict[str, str]
    started: float
    cells: list[Cell]
    skipped: list[Json]
    plan: Json

    @property
    def measured(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.failure is None and cell.samples]

    @property
    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.failure is not None]

    @property
    def peak_gflops(self) -> float | None:
        """The best float32 matrix product that any process timed here, in GFLOP a second."""
        return max(
            (s.values["peak_gflops"] for c in self.cells for s in c.samples if "peak_gflops" in s.values), default=None
        )


def read_results(path: Path) -> Results:
    """Read a folder that `vitrify bench` wrote, or its results.jsonl.

    Raises:
        BadInput: there are none, they are of another schema, or hold no cell.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.exists():
        raise BadInput(f"{path} holds no {RESULTS}.", "Name a folder that `vitrify bench -o DIR` wrote.")
    found = read(file)
    failures = {str(line.get("case")): str(line.get("what")) for line in found.failures}
    cells = []
    # of a cell that was written again, such as with its quality, the last line holds
    for line in {str(line.get("case")): line for line in found.cells}.values():
        spec = Spec.from_json(line.get("spec") or {})
        own = [s for s in found.counted if s.case == spec.name]
        cells.append(Cell(spec, own, line, failures.get(spec.name)))
    if not cells and not found.skipped:
        raise BadInput(f"{file} holds no cell of a matrix.", "Name a folder that `vitrify bench -o DIR` wrote.")
    header = found.headers[-1]
    return Results(
        file, header["machine"], header["versions"], float(header["started"]), cells, found.skipped, header["plan"]
    )


def to_json(results: Results) -> Json:
    """What was measured as plain data: each cell's figures, its quality, and what did not run."""
    return {
        "path": str(results.path),
        "machine": results.machine,
        "versions": results.versions,
        "cells": [
            {
                "case": cell.name,
                "spec": cell.spec.to_json(),
                "failure": cell.failure,
                "figures": {name: made.to_json() for name in cell.metrics if (made := cell.figure(name))},
                "percentiles_ms": {f"p{q}": cell.percentile(q) for q in PERCENTILES},
                "quality": None if cell.quality is None else asdict(cell.quality),
                "peak_share": cell.share_of(results.peak_gflops),
                "facts": {k: v for k, v in cell.facts.items() if k not in ("case", "spec", "quality")},
            }
            for cell in results.cells
        ],
        "skipped": results.skipped,
    }


def rows(results: Results) -> list[tuple[str, list[str], list[list[str]]]]:
    """For a terminal: of each model and what it was asked a title, a head, and a line a cell."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in results.measured:
        groups.setdefault((cell.spec.model, cell.spec.asked), []).append(cell)
    head = ["cell", "latency ms", "p95", "pictures/s", "ratio", "cold s", "memory MB", "disk MB", "quality"]
    return [
        (f"{model}, {asked}", head, [_row(cell, baseline_of(cells)) for cell in cells])
        for (model, asked), cells in groups.items()
    ]


def baseline_of(cells: Iterable[Cell]) -> Cell | None:
    """The first float32 cell that was measured, which the others are divided by."""
    return next((c for c in cells if c.spec.recipe == FP32 and c.failure is None and c.samples), None)


def _row(cell: Cell, baseline: Cell | None) -> list[str]:
    def said(metric: str, digits: int = 1) -> str:
        found = cell.figure(metric)
        return "-" if found is None else f"{found.median:.{digits}f}"

    p95 = cell.percentile(95)
    compared = None
    if baseline is not None:
        compared = ratio([*cell.samples, *baseline.samples], cell.name, baseline.name, "latency_ms")
    return [
        cell.spec.how,
        said("latency_ms"),
        "-" if p95 is None else f"{p95:.1f}",
        said("items_per_s", 2),
        "1" if cell is baseline else "-" if compared is None else f"{compared.median:.2f}",
        said("cold_s", 2),
        said("peak_mb", 0),
        said("disk_mb", 1),
        cell.quality.label if cell.quality else "not run",
    ]
