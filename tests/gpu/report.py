"""What a run of this folder found: a line for each check and place, as JSON and as a table."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitrify.core.machine import cpu_model, installed, versions_of

from .places import GPUS, NO_GPU

LIBRARIES = (
    *("vitrify", "torch", "diffusers", "transformers", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx-cu12"),
    *("tensorrt", "torchao", "bitsandbytes", "numpy"),
)
FIGURE = "figure:"  # in front of a figure's name among pytest's properties
_WORD = {"passed": "pass", "failed": "FAIL", "skipped": "skip"}


@dataclass
class Line:
    """One check at one place. outcome: pass, FAIL or skip. why: what failed, or what a skipped one needs."""

    check: str
    place: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def line_of(report: Any) -> Line | None:
    """A line of pytest's report of a test's call, or of a setup that failed or skipped it; None of all else."""
    if report.when != "call" and report.outcome == "passed":
        return None
    file, _, name = report.nodeid.partition("::")
    check, _, place = name.partition("[")
    figures = {n.removeprefix(FIGURE): v for n, v in report.user_properties if str(n).startswith(FIGURE)}
    return Line(
        f"{Path(file).stem.removeprefix('test_')}: {check.removeprefix('test_').replace('_', ' ')}",
        place.rstrip("]") or "-",
        _WORD[report.outcome],
        _why(report),
        round(report.duration, 2),
        figures,
    )


def _why(report: Any) -> str:
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):  # of a skipped one: file, line, reason
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join(str(crash.message if crash else report.longrepr).split())[:500]


def machine() -> dict[str, Any]:
    """What ran it."""
    return {
        "gpus": [{"name": g.name, "compute_capability": "{}.{}".format(*g.capability)} for g in GPUS],
        "why_none": NO_GPU,
        "driver": _driver(),
        "cpu": cpu_model(),
        "versions": versions_of(LIBRARIES),
    }


def _driver() -> str | None:
    """The driver's version, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def table(lines: list[Line], about: dict[str, Any]) -> str:
    """The lines as Markdown, those that failed first."""
    gpus = ", ".join(f"{g['name']} ({g['compute_capability']})" for g in about["gpus"]) or "no GPU"
    counts = {word: sum(line.outcome == word for line in lines) for word in ("pass", "FAIL", "skip")}
    head = [
        f"# vitrify on {gpus}",
        "",
        f"vitrify {installed('vitrify')}, driver {about['driver']}, {about['cpu']}. "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        "",
        ", ".join(f"{count} {word}" for word, count in counts.items()),
        "",
        "| | check | where | s | figures, or why |",
        "|---|---|---|---|---|",
    ]
    order = {"FAIL": 0, "pass": 1, "skip": 2}
    rows = [
        f"| {line.outcome} | {line.check} | {line.place} | {line.seconds:.1f} | {_cell(line)} |"
        for line in sorted(lines, key=lambda one: order[one.outcome])
    ]
    return "\n".join([*head, *rows, ""])


def _cell(line: Line) -> str:
    figures = ", ".join(f"{name} {_short(value)}" for name, value in line.figures.items())
    return "; ".join(part for part in (figures, line.why) if part).replace("|", "\\|")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(lines: list[Line], folder: Path) -> str:
    """report.json and report.md in `folder`; gives the table."""
    about = machine()
    folder.mkdir(parents=True, exist_ok=True)
    said = table(lines, about)
    (folder / "report.md").write_text(said, encoding="utf-8")
    whole = {"machine": about, "lines": [asdict(line) for line in lines]}
    (folder / "report.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return said
