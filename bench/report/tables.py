"""The tables of one machine: what each cell took, and where inside a call the time went."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress

from ..results import PERCENTILES, Cell, baseline_of
from ..summary import THRESHOLD, Figure
from .choice import relative
from .document import NOTHING, Column, Entry, Table
from .words import listed, number, share, span

_PERCENTILES = {q: calls for q, calls in PERCENTILES.items() if q > 50}  # the median stands by itself
_NOISY = "†"
# values of a sample in ms that are no component's time
_OTHER_TIMES = ("latency_ms", "own_ms", "yardstick_ms", "encode_ms", "step_ms", "decode_ms", "preprocess_ms")
_PARTS = {"encode_ms": "encode", "step_ms": "a step", "decode_ms": "decode", "preprocess_ms": "prepare"}
_Read = Callable[[Cell], Entry]


def main_table(caption: str, cells: Sequence[Cell], peak: float | None) -> Table:
    """A row a cell: latency, throughput, ratio, start, memory, disk, quality, share of peak, energy.

    peak: GFLOP/s that the machine's matrix products reach at best; None: not known.
    Columns that no cell has anything in are left out; a note names the percentiles among them.
    """
    base = baseline_of(cells)
    columns: list[tuple[Column, list[Entry]]] = [
        (Column("cell", words=True), [Entry(c.spec.how, "baseline" if c is base else "") for c in cells]),
        (
            Column("median", "latency, ms", alone="latency, ms"),
            _best([_figure(c, "latency_ms") for c in cells], cells, "latency_ms"),
        ),
        *(
            (Column(f"p{q}", "latency, ms", alone=f"p{q}, ms"), [_percentile(c, q) for c in cells])
            for q in _PERCENTILES
        ),
        (Column("÷ baseline", "latency, ms"), [_ratio(c, base) for c in cells]),
        (Column("items/s"), [_figure(c, "items_per_s", detail=False) for c in cells]),
        *(
            (Column(title, "start, s", alone=f"{title}, s"), [_figure(c, metric, detail=False) for c in cells])
            for title, metric in (
                *(("cold start", "cold_s"), ("load", "load_s"), ("compile", "compile_s")),
                ("first call", "first_s"),
            )
        ),
        (
            Column("peak memory", "MB", alone="peak memory, MB"),
            _best([_figure(c, "peak_mb", detail=False) for c in cells], cells, "peak_mb"),
        ),
        (
            Column("disk", "MB", alone="disk, MB"),
            _best([_figure(c, "disk_mb", detail=False) for c in cells], cells, "disk_mb"),
        ),
        (Column("quality"), [Entry(*_quality(c)) for c in cells]),
        (Column("of peak"), [_share_of_peak(c, peak) for c in cells]),
        (Column("J a call"), [_figure(c, "joules", detail=False) for c in cells]),
    ]
    notes = _notes(cells, base, peak)
    return _filled(caption, columns, notes)


def parts_table(caption: str, cells: Sequence[Cell]) -> Table:
    """A row a cell: the pipeline's stages, each component's time in a call, how many calls, the artifact's build."""
    metrics = dict.fromkeys(name for c in cells for s in c.samples for name in s.values)
    steps = [name for name in _PARTS if name in metrics]
    components = [name for name in metrics if name.endswith("_ms") and name not in _OTHER_TIMES]
    columns: list[tuple[Column, list[Entry]]] = [
        (Column("cell", words=True), [Entry(c.spec.how) for c in cells]),
        *(
            (Column(_PARTS[name], "stage, ms", alone=f"{_PARTS[name]}, ms"), [_figure(c, name) for c in cells])
            for name in steps
        ),
        *(
            (
                Column(name.removesuffix("_ms").replace("_", " "), "component, ms a call"),
                [_figure(c, name) for c in cells],
            )
            for name in components
        ),
        (Column("calls timed"), [Entry(f"{sum(int(s.values.get('calls', 0)) for s in c.samples):,}") for c in cells]),
        (Column("build, s"), [_build(c) for c in cells]),
    ]
    notes = ["Medians over rounds, the lowest and the highest under them."]
    if "step_ms" in metrics:
        notes.append("A step is one of the denoiser's, guidance included; encode and decode are once a call.")
    if any(c.facts.get("build_s") is None for c in cells):
        notes.append("Build “given”: the artifact was there before.")
    return _filled(caption, columns, notes)


def _filled(caption: str, columns: Iterable[tuple[Column, list[Entry]]], notes: Sequence[str]) -> Table:
    held = [(column, entries) for column, entries in columns if any(e != NOTHING for e in entries)]
    rows = list(zip(*(entries for _, entries in held), strict=True))
    return Table(caption, [column for column, _ in held], rows, notes)


def _figure(cell: Cell, metric: str, detail: bool = True) -> Entry:
    found = cell.figure(metric)
    if found is None:
        return NOTHING
    return Entry(number(found.median) + (_NOISY if found.noisy else ""), span(found) if detail else "")


def _best(entries: list[Entry], cells: Sequence[Cell], metric: str) -> list[Entry]:
    """The entries, the lowest marked; none where all are the same."""
    found = [figure.median if (figure := c.figure(metric)) else None for c in cells]
    known = [v for v in found if v is not None]
    if len(set(known)) < 2:
        return entries
    return [Entry(e.text, e.detail, v == min(known)) for e, v in zip(entries, found, strict=True)]


def _percentile(cell: Cell, q: int) -> Entry:
    value = cell.percentile(q)
    return NOTHING if value is None else Entry(number(value))


def _ratio(cell: Cell, base: Cell | None) -> Entry:
    if base is None:
        return NOTHING
    if cell is base:
        return Entry("1")
    found: Figure | None = relative(cell, base, "latency_ms")
    return NOTHING if found is None else Entry(number(found.median) + (_NOISY if found.noisy else ""), span(found))


def _quality(cell: Cell) -> tuple[str, str]:
    quality = cell.quality
    failed = "failed its proof" if "failed_proof" in cell.facts else ""
    if quality is None:
        return "not run", failed
    if quality.identical or quality.mean_psnr_db is None:
        return quality.label, failed
    known = [v for v in quality.psnr_db if v is not None]
    return quality.label, failed or (f"worst {min(known):.1f}" if len(quality.psnr_db) > 1 and known else "")


def _build(cell: Cell) -> Entry:
    seconds = cell.facts.get("build_s")
    if not isinstance(seconds, int | float):
        return Entry("given")
    peak = cell.facts.get("build_peak_mb")
    return Entry(number(seconds), f"{number(peak)} MB" if isinstance(peak, int | float) else "")


def _share_of_peak(cell: Cell, peak: float | None) -> Entry:
    found = cell.share_of(peak)
    return NOTHING if found is None else Entry(share(found))


def _notes(cells: Sequence[Cell], base: Cell | None, peak: float | None) -> list[str]:
    notes = ["Median over rounds, the lowest and the highest under it; bold is the column's least."]
    if base is None:
        notes.append("No fp32 cell was measured, so there are no ratios.")
    else:
        notes.append(f"Ratios are to {base.spec.how}, each taken within a round.")
    short = list(
        compress((f"p{q}" for q in _PERCENTILES), [any(c.percentile(q) is None for c in cells) for q in _PERCENTILES])
    )
    if short:
        least = listed([f"{n} for p{q}" for q, n in _PERCENTILES.items() if f"p{q}" in short])
        notes.append(f"Percentiles want {least} calls; – stands where there were fewer, or nothing was measured.")
    if any(f and f.noisy for c in cells for f in (c.figure(m) for m in ("latency_ms", "peak_mb", "cold_s"))):
        notes.append(f"{_NOISY} noisy: the rounds spread by over {share(THRESHOLD)} of the median.")
    if peak is not None and any(c.figure("gflop") for c in cells):
        notes.append(
            f"Of peak: the model's operations a second, beside the {number(peak)} GFLOP/s that this machine's float32 "
            "matrix products reached at best."
        )
    return notes
