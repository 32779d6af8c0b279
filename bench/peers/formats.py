"""What each tool reads, made by its own exporter in its own environment; measured by the harness, but in no row's time.

What was made is kept for the next call, beside a record of what it was made from and by (see `preparing`). The runs
are in WORK/peers/formats.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, VitrifyError
from ..measure import Case, measure
from ..preparing import MB, forget, is_made, keep, record, required
from ..records import read
from .table import Format, cache, home, variables

TIMEOUT = 3600.0


def make(one: Format, work: Path) -> None:
    """Make it, unless it is there. A failure is told by the cases that need it.

    Raises:
        BadInput: it could not be made.
    """
    folder, wanted = one.folder(work), _made_from(one, work)
    if is_made(folder, wanted):
        return
    forget(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {one.name} ...", file=sys.stderr, flush=True)
    try:
        _needed(one, work)
        forget(cache(work))  # else a second export would find its graphs there, and its time be no export's
        case = Case(one.name, one.command(work), variables(work))
        measure([case], rounds=1, warmup=0, out=_log(work), timeout=TIMEOUT)
        if not folder.exists():
            raise BadInput(f"The exporter of {one.name} ended well and wrote nothing.", "Run it alone.")
    except VitrifyError as exc:
        forget(folder)
        keep(folder, {"failed": exc.what, "fix": exc.fix})  # as `preparing.required` reads it
        raise BadInput(exc.what, exc.fix) from exc
    keep(folder, wanted)


def figures(one: Format, work: Path) -> dict[str, float]:
    """prepare_s and prepare_mb: the time and the peak memory of the run that made it."""
    samples = [s for s in read(_log(work)).samples if s.case == one.name]
    return {"prepare_s": samples[-1].wall_s, "prepare_mb": samples[-1].peak / MB} if samples else {}


def _needed(one: Format, work: Path) -> None:
    if one.environment is not None:
        one.environment.required(work)
    if one.of:
        required(one.source(work))


def _made_from(one: Format, work: Path) -> Mapping[str, Any]:
    """A change of vitrify's sources makes vitrify's own anew, a change of pins what that environment made."""
    made_from = record(one.command(work), [one.source(work)] if one.source(work).exists() else [])
    if one.environment is None:
        return made_from
    return {"command": made_from["command"], "given": made_from["given"], **one.environment.made_from()}


def _log(work: Path) -> Path:
    return home(work) / "formats.jsonl"
