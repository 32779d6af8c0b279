"""A sweep: one picture for each combination of up to three axes, as labelled grids and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...core.artifact import Artifact
from ...core.errors import BadInput, Cancelled, DiskError, UsageError
from ...core.machine import LIBRARIES, describe_host, versions_of
from ...core.progress import Event, Report, silent
from ...core.publish import disk_errors, locked
from ...pipelines.random import random_seed
from ...runtimes.base import Options
from ..spec import DRAWING
from .artifacts import Artifacts
from .axes import Axis
from .draw import Drawing
from .given import Given
from .plan import Settings, own, plan_builds, plan_cells
from .results import ARTIFACTS, PICTURES, SAME, Row, Sweep, read_earlier, write_document

MANY = 200
"""Pictures above which a sweep warns."""


@dataclass
class SweepJob:
    """A sweep with its settings.

    target: the folder; an earlier sweep in it is gone on with. base: the parameters that no axis sets; its seed may be
    None: that of the earlier sweep in the folder, else a random one. options: how artifacts are opened, but for
    threads. calibration: a file of prompts, for recipes that need some. warm_up: before the first picture of a size;
    None: where an axis is a runtime, a recipe or threads, whose seconds are compared. given: what the pictures
    are drawn with beside their settings.
    """

    artifact: Artifact
    target: Path
    axes: Sequence[Axis]
    base: Settings
    options: Options = field(default_factory=Options)
    device: str | None = None
    calibration: Path | None = None
    warm_up: bool | None = None
    given: Given = field(default_factory=Given)
    report: Report = silent

    def run(self) -> dict[str, Any]:
        """Draw what is not there yet, and write grids, table and document.

        Returns:
            The document, which is also in sweep.json.

        Raises:
            UsageError, BadInput: axes, artifact or folder make no sweep; nothing was written.
            Cancelled: Ctrl-C; what was drawn is kept, in grids and table too.
            DiskError, Busy: pictures that were written are kept.
            VitrifyError: not one picture could be drawn; the first one's error.
        """
        if not set(DRAWING) & set(self.artifact.pipeline.get("tasks", [])):
            raise UsageError(f"{self.artifact.name} draws no pictures to sweep.", "Name a diffusion model.")
        if self.calibration is not None and not self.calibration.is_file():
            raise BadInput(f"{self.calibration} is no file of prompts.", "Give a text file with one prompt a line.")
        self.given.check(self.axes, self.base)
        earlier = read_earlier(self.target)
        base = replace(self.base, seed=_seed(self.base, earlier))
        cells = plan_cells(self.axes, base)
        builds, notes = plan_builds(list(dict.fromkeys(cell.opening for cell in cells)), self.artifact)
        if len(cells) > MANY:
            notes.append(f"warning: {len(cells)} pictures; Ctrl-C keeps those that are drawn, a second run goes on")
        for note in notes:
            self.report(Event("sweep", note=note))
        rows = [Row(cell, own(cell.settings, self.artifact)) for cell in cells]
        sweep = Sweep(self.target, self.axes, base, rows, self._facts())
        with disk_errors(self.target):
            (self.target / PICTURES).mkdir(parents=True, exist_ok=True)
            with locked(self.target.resolve()):
                # killed, it leaves a folder that a second run knows, with what was known of it
                kept = {name: earlier.get(name, []) for name in ("pictures", "grids")}
                write_document(self.target, sweep.to_json("running", []) | kept)
                return self._draw(sweep, Artifacts(
                    self.artifact, builds, self.target / ARTIFACTS, self.calibration, self.report
                ), earlier)  # fmt: skip

    def _draw(self, sweep: Sweep, artifacts: Artifacts, earlier: Mapping[str, Any]) -> dict[str, Any]:
        warm_up = self.warm_up
        if warm_up is None:
            warm_up = any(axis.name in SAME for axis in self.axes)
        drawing = Drawing(
            sweep.rows, artifacts, self.target, self.options, self.device, warm_up, self.given, _compared(earlier),
            self.report,
        )  # fmt: skip
        try:
            drawing.run()
        except BaseException as exc:
            with suppress(DiskError):  # the one that ended it is told
                sweep.write("interrupted", earlier)
            if not isinstance(exc, KeyboardInterrupt):
                raise
            there = sum(row.file is not None for row in sweep.rows)
            raise Cancelled(
                f"Interrupted: {there} of {len(sweep.rows)} pictures are in {self.target}, with grids and a table.",
                "Run it again to go on.",
            ) from exc
        document = sweep.write("complete", earlier)
        errors = [row.error for row in sweep.rows if row.error is not None]
        if len(errors) == len(sweep.rows):
            first = errors[0]
            raise type(first)(f"Not one of {len(errors)} pictures could be drawn; the first: {first.what}", first.fix)
        return document

    def _facts(self) -> dict[str, Any]:
        usual = asdict(Options())
        return {
            "model": self.artifact.name,
            "artifact": self.artifact.id,
            "source": self.artifact.model.get("source"),
            "device": self.device,
            "options": {k: v for k, v in asdict(self.options).items() if v != usual[k]},
            "calibration": str(self.calibration) if self.calibration is not None else None,
            **self.given.facts(),
            "machine": describe_host(),
            "versions": versions_of(LIBRARIES),
        }


def _seed(base: Settings, earlier: Mapping[str, Any]) -> int:
    if base.seed is not None:
        return base.seed
    settings = earlier.get("settings")
    old = settings.get("seed") if isinstance(settings, dict) else None
    return old if isinstance(old, int) else random_seed()


def _compared(earlier: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """(picture, reference) -> what an earlier run measured of them; what is damaged is measured again."""
    found = {}
    with suppress(LookupError, TypeError, AttributeError):
        for row in earlier.get("pictures", []):
            for other in row["against"].values():
                found[row["file"], other["file"]] = {k: other[k] for k in ("psnr_db", "ssim", "same")}
    return found
