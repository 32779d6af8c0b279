"""The artifacts that a sweep over recipes or runtimes needs, compiled into its folder once each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...core.artifact import Artifact, hash_file, is_artifact
from ...core.errors import BadArtifact, Cancelled, DeviceError, DiskError, VitrifyError
from ...core.progress import Report
from ...core.registry import RUNTIMES, load_runtime
from ...export.compile import CompileJob
from ...quant.recipes import recipe
from .plan import Build, Opening


class Artifacts:
    """Opening -> artifact. `folder` is where compiled ones go; those of an earlier run there are used again."""

    def __init__(
        self,
        artifact: Artifact,
        builds: Mapping[Opening, Build | VitrifyError | None],
        folder: Path,
        calibration: Path | None,
        report: Report,
    ) -> None:
        self._artifact, self._builds, self._folder = artifact, builds, folder
        self._calibration, self._report = calibration, report
        self._made: dict[Build, Artifact | VitrifyError] = {}

    def get(self, opening: Opening) -> Artifact:
        """The artifact of an opening, compiled where it is not there yet.

        Raises:
            VitrifyError: it cannot be compiled; asked again, the same.
        """
        build = self._builds[opening]
        if build is None:
            return self._artifact
        if isinstance(build, VitrifyError):
            raise build
        if build not in self._made:
            try:
                self._made[build] = self._compiled(build)
            except (Cancelled, DiskError):
                raise
            except VitrifyError as exc:
                self._made[build] = exc
        made = self._made[build]
        if isinstance(made, VitrifyError):
            raise made
        return made

    def _compiled(self, build: Build) -> Artifact:
        wanted = recipe(build.recipe)
        calibration = self._calibration if wanted.calibrated else None
        # what it is made from is in its name: neither of two models or calibrations takes the other's
        made_from = [self._artifact.id, hash_file(calibration) if calibration is not None else None]
        folder = self._folder / f"{build.name}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:8]}"
        if is_artifact(folder):
            with suppress(BadArtifact):
                return Artifact.load(folder)
        if build.target in RUNTIMES:
            probe = load_runtime(build.target).probe()
            if not probe.devices:  # told before minutes of compiling
                what = probe.problem or f"The {build.target} runtime finds no device here."
                raise DeviceError(what, probe.fix or "Run `vitrify doctor`.")
        # the sweep itself shows what a recipe does to pictures, also where a proof would refuse it
        job = CompileJob(
            self._artifact, folder, build.target, wanted, calibration, verify=False, replace=True, report=self._report
        )
        return job.run().artifact
