"""The benches: `python -m vitrify.bench.first --work DIR [--only NAME]`.

Models are of full size with random weights, made once under DIR. Each bench is a file of its own, and a line here.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ..core.errors import VitrifyError
from .bench_classify import CLASSIFY
from .bench_export import EXPORT
from .bench_less import LESS
from .bench_peers import PEERS
from .bench_quantize import QUANTIZE
from .bench_serve import SERVE
from .bench_unet import UNET
from .bench_vit import VIT
from .machine import describe_machine, versions
from .measure import CaseFailed
from .records import Sample
from .summary import THRESHOLD, Columns, Row, Summary, to_json, to_table

# in this order: quantize leaves what unet runs
BENCHES = {bench.name: bench for bench in (EXPORT, CLASSIFY, QUANTIZE, UNET, VIT, SERVE)}

# they need environments of their own, and run only where they are named
EXTRA = {bench.name: bench for bench in (PEERS, LESS)}


def main(arguments: Sequence[str] | None = None) -> int:
    warmup = ", ".join(f"{b.name} {b.warmup}" for b in BENCHES.values())
    rounds = ", ".join(f"{b.name} {b.rounds}" for b in BENCHES.values())
    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.first", description="The benches.")
    parser.add_argument("--work", type=Path, required=True, help="folder for models (9 GB), results and samples")
    parser.add_argument("--only", choices=[*BENCHES, *EXTRA], help="run one bench")
    parser.add_argument("--rounds", type=int, help=f"counted rounds (default: {rounds})")
    parser.add_argument("--warmup", type=int, help=f"rounds before them (default: {warmup})")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of tables")
    given = parser.parse_args(arguments)
    # a polite kill cleans up as Ctrl-C does
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _main(given)
    except KeyboardInterrupt:
        print("Interrupted; what was measured is in the files.", file=sys.stderr)
        return 130


def _main(given: argparse.Namespace) -> int:
    work = given.work.absolute()
    rows: list[Row] = []
    columns: dict[str, Columns] = {}
    errors: list[VitrifyError] = []
    for bench in [(BENCHES | EXTRA)[given.only]] if given.only else BENCHES.values():
        samples: list[Sample] = []
        try:
            samples = bench.run(work, given.rounds, given.warmup)
        except CaseFailed as exc:
            samples = exc.samples
            errors.append(exc)
        except VitrifyError as exc:
            errors.append(exc)
        rows += bench.compare(samples)
        if bench.columns is not None:
            columns |= {one.title: bench.columns for one in bench.comparisons}
    summary = Summary(rows, THRESHOLD)
    if given.json:
        document = {"machine": describe_machine(), "versions": versions(), **to_json(summary)}
        if errors:
            what, fix = "\n".join(e.what for e in errors), " ".join(e.fix for e in errors)
            document["error"] = {"code": errors[0].code, "what": what, "fix": fix}
        print(json.dumps(document, indent=1))
    elif rows:
        machine = describe_machine()
        print(f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}, {machine['python']}\n")
        print(to_table(summary, columns))
    for error in errors:
        print(f"{error.what}\n{error.fix}", file=sys.stderr)
    return errors[0].exit_code if errors else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
