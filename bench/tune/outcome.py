"""What a search leaves: the winner as a folder of its own, and tune.json with the way to it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ...core.publish import disk_errors, link_or_copy, published
from ...pipelines.load import open_artifact
from ..results import Cell
from .search import Search

BEST, OUTCOME = "best", "tune.json"


def publish(search: Search, winner: Cell, interrupted: bool = False) -> dict[str, Any]:
    """Link or copy the winner's artifact to OUT/best, with its proof, and write OUT/tune.json.

    Raises:
        DiskError: the disk is full; what was in OUT/best stays.
    """
    target = search.out / BEST
    root = search.out / str(winner.facts["artifact"])
    with published(target, replace=True) as scratch:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            link_or_copy(path, scratch / path.relative_to(root))
    open_artifact(target)
    found = outcome(search, winner, interrupted)
    file = search.out / OUTCOME
    with disk_errors(file):
        part = file.with_name(f".{OUTCOME}.part")
        part.write_text(json.dumps(found, indent=1, default=str))
        part.replace(file)
    return found


def outcome(search: Search, winner: Cell, interrupted: bool) -> dict[str, Any]:
    """The winner, what it is better than, and every candidate with its figures."""
    cells = search.results.cells
    metric = search.goal.metric
    baseline = next((c for c in cells if c.spec.recipe == "fp32" and c.figure(metric)), None)
    return {
        "artifact": str(search.out / BEST),
        "winner": _told(winner, search),
        "baseline": _told(baseline, search) if baseline else None,
        "goal": search.goal.to_json(),
        "bar": search.goal.bar,
        "interrupted": interrupted,
        "exhaustive": search.everything,
        "seconds": round(time.monotonic() - search.started, 1),
        "use": use(search.out / BEST, winner),
        "candidates": [_told(cell, search) for cell in cells],
        "not_tried": [one.to_json() for one in search.skipped],
        "notes": search.notes,
    }


def _told(cell: Cell, search: Search) -> dict[str, Any]:
    figures = {}
    for name in ("latency_ms", "peak_mb", "disk_mb"):
        found = cell.figure(name)
        figures[name] = found.median if found else None
    return {
        "cell": cell.name,
        "spec": cell.spec.to_json(),
        **figures,
        "quality": cell.quality.label if cell.quality else "not run",
        "rounds": len(cell.samples),
        "failure": cell.failure,
    }


def use(artifact: Path, winner: Cell) -> str:
    """The command that runs the winner as it was measured."""
    spec = winner.spec
    verb = f"classify {artifact} IMAGE" if spec.width is None else f'generate {artifact} "a prompt"'
    said = ["vitrify", verb, f"--runtime {spec.runtime}", f"--device {spec.device}"]
    said += [f"--threads {spec.threads}"] if spec.threads else []
    said += [_option(key, value) for key, value in spec.options.items()]
    return " ".join(said)


def _option(key: str, value: Any) -> str:
    flag = f"--{'runtime-cache' if key == 'cache' else key}"
    if isinstance(value, bool):
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag} {value}"
