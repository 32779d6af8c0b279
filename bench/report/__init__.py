"""The report of a bench, and of several machines' benches in one: what to choose, and everything that says why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.errors import UsageError
from ...core.publish import disk_errors
from ..results import Results
from .choice import Bar, Choice, choose, pareto
from .content import build
from .markdown import FILES, build_markdown
from .page import build_page

__all__ = ["Bar", "Choice", "choose", "pareto", "write_report"]
PAGE, TEXT = "report.html", "report.md"


def write_report(results: Sequence[Results], folder: Path, bar: Bar | None = None) -> tuple[Path, Path]:
    """Write report.html, which needs no other file, and report.md with its drawings in report-files.

    Args:
        results: of one machine, or of several, which are then set side by side.
        bar: the least quality that is accepted in the answers; None: whatever passed its proof.

    Returns:
        The two paths.

    Raises:
        UsageError: no results.
        MissingDependency: matplotlib is not installed.
        DiskError: the folder cannot be written.
    """
    if not results:
        raise UsageError("There are no results to report.", "Name a folder that `vitrify bench -o DIR` wrote.")
    document = build(results, bar or Bar())
    page, (text, files) = build_page(document), build_markdown(document)
    with disk_errors(folder):
        beside = folder / FILES
        beside.mkdir(parents=True, exist_ok=True)
        for old in [*beside.glob("*.svg"), *beside.glob("*.png")]:  # of an earlier report
            old.unlink()
        for name, content in files.items():
            (beside / name).write_bytes(content)
        (folder / PAGE).write_text(page, encoding="utf-8")
        (folder / TEXT).write_text(text, encoding="utf-8")
    return folder / PAGE, folder / TEXT
