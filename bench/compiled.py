"""Artifacts for the benches: the model as it is exported, and what `vitrify compile` makes of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput
from .measure import Case
from .preparing import OFFLINE, disk, forget, keep, made, record


def environment(work: Path) -> dict[str, str]:
    return {**OFFLINE, "VITRIFY_CACHE": str(work / "cache")}


def artifact(work: Path, model: str) -> Path:
    """Where the artifact of a model in WORK/models lies."""
    return work / "artifacts" / model


def export(work: Path, model: str) -> None:
    """Export a model of WORK/models."""
    source, target = work / "models" / model, artifact(work, model)
    command = [sys.executable, "-m", "vitrify", "export", str(source), "-o", str(target)]
    made(f"exporting {model}", target, command, [source], environment(work))


@dataclass(frozen=True)
class Compiled:
    """What a recipe makes of a model's artifact for a target. options: more of `vitrify compile`'s."""

    model: str
    target: str
    recipe: str
    options: tuple[str, ...] = ()

    def folder(self, work: Path) -> Path:
        return work / "compiled" / f"{self.model}-{self.target}-{self.recipe}"

    def command(self, work: Path) -> list[str]:
        """Without the numeric proof, which no full-size model gets unless it is asked for."""
        command = [sys.executable, "-m", "vitrify", "compile", str(artifact(work, self.model))]
        command += ["-o", str(self.folder(work)), "--to", self.target, "--quant", self.recipe, "--no-verify", "--force"]
        return [*command, *(option.format(work=work) for option in self.options)]

    def make(self, work: Path) -> None:
        """Compile it, unless it lies there. A failure is told by the cases that need it."""
        given, what = [artifact(work, self.model)], f"compiling {self.folder(work).name}"
        try:
            made(what, self.folder(work), self.command(work), given, environment(work))
        except BadInput as exc:
            print(exc.what, file=sys.stderr)

    def case(self, work: Path, name: str, component: str, group: str) -> Case:
        """Its compilation as a case, which leaves the result as `make` does.

        Values: the disk of the component's folder in MB, and as a share of the exported one's.
        """
        folder, source = self.folder(work), artifact(work, self.model)

        def after(_: str) -> Mapping[str, float]:
            keep(folder, record(self.command(work), [source]))
            size, whole = (disk([root / component], set())["disk_mb"] for root in (folder, source))
            return {f"{component}_mb": size, f"{component}_share": size / whole}

        return Case(
            name,
            self.command(work),
            environment(work),
            group=group,
            before=lambda: forget(folder),
            after=after,
        )
