"""Several runs of one suite as one, for a comparison with more rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import BadInput
from .machine import differences, version_differences
from .results import Cell, Results


def pooled(results: Sequence[Results]) -> Results:
    """Several runs of one suite on one machine as one with all their rounds.

    Raises:
        BadInput: they are of unlike machines, other libraries, or other artifacts.
    """
    first = results[0]
    for other in results[1:]:
        unlike = differences(first.machine, other.machine) + version_differences(first.versions, other.versions)
        if unlike:
            raise BadInput(
                f"{first.path} and {other.path} were not measured alike ({'; '.join(unlike)}).",
                "Pool runs of one machine, and compare others.",
            )
    cells: dict[str, Cell] = {}
    offset = 0
    for one in results:
        for cell in one.cells:
            samples = [replace(s, round=s.round + offset) for s in cell.samples]
            known = cells.get(cell.name)
            if known is None:
                cells[cell.name] = replace(cell, samples=samples)
                continue
            if known.facts.get("artifact_id") != cell.facts.get("artifact_id"):
                raise BadInput(
                    f"{cell.name} ran another artifact in {one.path} than before.", "Compare the two instead."
                )
            cells[cell.name] = replace(known, samples=[*known.samples, *samples], failure=known.failure or cell.failure)
        offset += max((s.round for cell in one.cells for s in cell.samples), default=0)
    return replace(first, cells=list(cells.values()))
