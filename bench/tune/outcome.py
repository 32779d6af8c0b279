"""What a search leaves: the winner as a folder of its own, and tune.json with the way to it."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Any

from ...core.publish import link_or_copy, published, write_whole
from ...pipelines.load import open_artifact
from ...runtimes.options import SPECIAL
from ..results import Cell, baseline_of
from .search import BEST, OUTCOME, Search


def publish(search: Search, winner: Cell | None, interrupted: bool = False) -> dict[str, Any]:
    """Link or copy the winner's artifact to OUT/best, with its proof, and write OUT/tune.json.

    winner: None where none reaches the bar; then only tune.json is written.

    Raises:
        DiskError: the disk is full; what was in OUT/best stays.
    """
    if winner is not None:
        target = search.out / BEST
        root = search.out / str(winner.facts["artifact"])
        with published(target, replace=True) as scratch:
            for path in sorted(p for p in root.rglob("*") if p.is_file()):
                link_or_copy(path, scratch / path.relative_to(root))
        open_artifact(target)
    found = outcome(search, winner, interrupted)
    write_whole(search.out / OUTCOME, json.dumps(found, indent=1, default=str))
    return found


def outcome(search: Search, winner: Cell | None, interrupted: bool) -> dict[str, Any]:
    """The winner, what it is better than, and every candidate with its figures."""
    cells = search.results.cells
    baseline = baseline_of(cells)
    return {
        "artifact": str(search.out / BEST) if winner else None,
        "winner": _told(winner) if winner else None,
        "baseline": _told(baseline) if baseline else None,
        "goal": search.goal.to_json(),
        "bar": search.goal.bar,
        "interrupted": interrupted,
        "exhaustive": search.everything,
        "seconds": round(time.monotonic() - search.started, 1),
        "use": use(search.out / BEST, winner) if winner else None,
        "candidates": [_told(cell) for cell in cells],
        "not_tried": [one.to_json() for one in search.skipped],
        "notes": search.notes,
    }


def _told(cell: Cell) -> dict[str, Any]:
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
    said = ["vitrify", "classify", str(artifact), "IMAGE"]
    if spec.width is not None:
        said = [
            "vitrify",
            "generate",
            str(artifact),
            "PROMPT",
            "--width",
            str(spec.width),
            "--height",
            str(spec.height),
        ]
        said += [word for option in _PICTURES.get(spec.task, ()) for word in (f"--{option}", option.upper())]
        said += ["--steps", str(spec.steps), "--guidance", f"{spec.guidance:g}", "--batch", str(spec.batch)]
    said += ["--runtime", spec.runtime, "--device", spec.device]
    said += ["--threads", str(spec.threads)] if spec.threads else []
    return shlex.join([*said, *(word for key, value in spec.options.items() for word in _option(key, value))])


# of a model that draws only into pictures, what its command has to name
_PICTURES = {"img2img": ("image",), "inpaint": ("image", "mask")}


def _option(key: str, value: Any) -> list[str]:
    if key in SPECIAL and key != "static":
        said = ("no", "yes")[value] if isinstance(value, bool) else value
        return ["-O", f"{key}={said}"]
    flag = f"--{'runtime-cache' if key == 'cache' else key}"
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, str(value)]
