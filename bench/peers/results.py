"""The last run as markdown: `python -m vitrify.bench.peers.results --work DIR`.

One line a tool, fastest first, float32 and the rest apart; what failed, with its reason; and what made the formats.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...core.errors import VitrifyError
from ..bench_less import IN_8_BITS, IN_FLOAT32
from ..records import Json, Sample, read
from ..summary import Figure, figure, per_round, ratio
from .table import BFLOAT16, EAGER, FLOAT32, IDENTICAL_DB, QUANTIZED, Peer

METRICS = {
    "image_s": "image s",
    "first_image_s": "first s",
    "load_s": "load s",
    "compile_s": "compile s",
    "step_ms": "step ms",
    "peak_mb": "peak MB",
    "disk_mb": "disk MB",
    "psnr_db": "PSNR dB",
    "prepare_s": "export s",
    "prepare_mb": "export peak MB",
}
# bench -> title -> rows
TABLES: Mapping[str, Mapping[str, Sequence[Peer]]] = {
    "peers": {"float32": FLOAT32, "8 bits": QUANTIZED, "bfloat16": BFLOAT16},
    "less": {"float32": IN_FLOAT32, "8 bits": IN_8_BITS},
}


def table(log: Path, tables: Mapping[str, Sequence[Peer]]) -> str:
    """Of the last run in a file of the bench, its rows in these tables.

    Raises:
        BadInput: no such file, or none of a bench.
    """
    recording = read(log)
    header = recording.headers[-1]
    # a file holds every run; a sample says when it began
    samples = [s for s in recording.samples if s.round and s.started >= header["started"]]
    names = [case["name"] for case in header["plan"]["cases"]]
    machine = header["machine"]
    parts = [f"{machine['cpu']}, {machine['usable_cores']} cores, {header['plan']['rounds']} rounds."]
    for title, peers in tables.items():
        measured = [p.name for p in peers if any(s.case == p.name for s in samples)]
        if measured:
            parts.append(f"{title}:\n\n{_rows(samples, measured)}")
    missing = [name for name in names if not any(s.case == name for s in samples)]
    parts += [f"- {name}: {_reason(recording.failures, name)}" for name in missing]
    return "\n\n".join(parts)


def _rows(samples: Sequence[Sample], names: Sequence[str]) -> str:
    rows = {name: {m: _figure(samples, name, m) for m in METRICS} for name in names}
    lines = [["tool", *METRICS.values(), "to eager"], ["---", *("---:" for _ in METRICS), "---:"]]
    for name in sorted(names, key=lambda n: _median(rows[n]["image_s"])):
        beside = ratio(samples, name, EAGER.name, "image_s")
        cells = [_cell(metric, value) for metric, value in rows[name].items()]
        lines.append([name, *cells, f"{beside.median:.2f}" if beside else "-"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(samples: Sequence[Sample], case: str, metric: str) -> Figure | None:
    values = list(per_round(samples, case, metric).values())
    return figure(values) if values else None


def _median(value: Figure | None) -> float:
    return value.median if value else float("inf")


def _cell(metric: str, value: Figure | None) -> str:
    """The median, and the range where it is wider than a tenth; exact where all rounds gave one number."""
    if value is None:
        return "-"
    if metric == "psnr_db":
        return "identical" if value.low >= IDENTICAL_DB else f"{value.median:.1f}"
    digits = 1 if metric in ("image_s", "first_image_s", "load_s", "compile_s") else 0
    wide = f" ({value.low:.{digits}f}-{value.high:.{digits}f})" if value.spread > 0.1 else ""
    return f"{value.median:.{digits}f}{wide}"


def _reason(failures: Sequence[Json], name: str) -> str:
    told = [failure["what"] for failure in failures if failure.get("case") == name]
    return " ".join(told[-1].split()) if told else "it was not run"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vitrify.bench.peers.results", description="The last run, as markdown."
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of the benches")
    parser.add_argument("--bench", choices=list(TABLES), default="peers", help="whose (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(table(given.work / f"{given.bench}.jsonl", TABLES[given.bench]))
    except VitrifyError as exc:
        print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
