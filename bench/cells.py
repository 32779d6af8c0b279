"""What the cells of a matrix run: artifacts, exported and compiled once each, in processes of their own."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact, is_artifact
from ..core.errors import BadInput, VitrifyError
from ..core.progress import Event, Report
from ..pipelines.foreign import is_foreign
from ..pipelines.load import open_artifact
from ..quant.recipes import recipe
from ..quant.support import TARGETS
from .matrix import as_it_is, calibration_for
from .measure import Case, measure
from .preparing import OFFLINE, UNTIMED, answer_of, disk, forget, is_made, keep, record
from .spec import Spec
from .suite_file import Model

ARTIFACTS = "artifacts"
_SHOWN = 4  # pictures of a cell that a report shows
_BUILD_TIMEOUT = 4 * 3600.0


@dataclass(frozen=True)
class Built:
    """An artifact that lies there. build_s, build_peak_mb: what making it took; None where it was given, not made."""

    root: Path
    build_s: float | None = None
    build_peak_mb: float | None = None


@dataclass
class Builder:
    """Makes artifacts below OUT/artifacts and keeps them for the next run, with what they were made from and by.

    verify: prove also what needs more than 1 GB for that; None: what needs less; False: nothing.
    """

    out: Path
    report: Report
    verify: bool | None = None
    env: Mapping[str, str] = field(default_factory=lambda: UNTIMED)

    def source(self, model: Model) -> Built:
        """The model's artifact: the one that was named, or the model exported.

        Raises:
            CaseFailed: it cannot be exported; with its last words.
            BadInput: there is nothing of that name.
        """
        folder = Path(model.source)
        if folder.exists() and (is_artifact(folder) or is_foreign(folder)):
            return Built(folder)
        # a hub id has to be fetched
        env = self.env if folder.exists() else {k: v for k, v in self.env.items() if k not in OFFLINE}
        return self._made(f"export {model.name}", self._folder(model.name), ["export", model.source], [folder], env)

    def cell(self, model: Model, source: Built, spec: Spec) -> Built:
        """The artifact that a cell runs.

        Raises:
            CaseFailed: it cannot be compiled; with its last words.
        """
        if as_it_is(spec, open_artifact(source.root)):
            return source
        to = spec.runtime if spec.runtime in TARGETS else "onnx"
        command = ["compile", str(source.root), "--to", to, "--quant", spec.recipe, "--keep-failed"]
        given = [source.root]
        calibration = calibration_for(spec, model.axes.calibration)
        if recipe(spec.recipe).calibrated and calibration is not None:
            command += ["--calibration", str(calibration)]
            given.append(calibration)
        folder = self._folder(f"{model.name}-{to}-{spec.recipe}")
        return self._made(f"compile {model.name} for {to}, {spec.recipe}", folder, command, given, self.env)

    def _folder(self, name: str) -> Path:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        # names that differ only in what a folder's name cannot hold must not share one
        mark = "" if plain == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.out / ARTIFACTS / f"{plain}{mark}"

    def _made(
        self, what: str, folder: Path, command: Sequence[str], given: Iterable[Path], env: Mapping[str, str]
    ) -> Built:
        said = [sys.executable, "-P", "-m", "vitrify", *command, "-o", str(folder)]
        if self.verify is not None:
            said.append("--verify" if self.verify else "--no-verify")
        wanted = record(said, given)
        note = folder.with_name(f"{folder.name}.build.json")
        if not is_made(folder, wanted):
            self.report(Event(what))
            forget(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            case = Case(what, said, env, timeout=_BUILD_TIMEOUT)
            (sample,) = measure([case], rounds=1, warmup=0)
            note.write_text(json.dumps({"build_s": sample.wall_s, "build_peak_mb": sample.peak / 1e6}))
            keep(folder, wanted)
        try:
            return Built(folder, **json.loads(note.read_text()))
        except (OSError, ValueError, TypeError):
            return Built(folder)


def facts(spec: Spec, built: Built, out: Path, gflop: float | None) -> dict[str, Any]:
    """The "cell" line of a results file."""
    artifact = open_artifact(built.root)
    proof = {key: artifact.proof[key] for key in ("images", "labels") if isinstance(artifact.proof.get(key), Mapping)}
    if spec.draws_otherwise:
        proof = {}  # its pictures were drawn with all the work
    found: dict[str, Any] = {"case": spec.name, "spec": spec.to_json(), "artifact": _named(built.root, out)}
    found |= {"artifact_id": artifact.id, **disk([built.root], set())}
    found |= {"build_s": built.build_s, "build_peak_mb": built.build_peak_mb, "gflop": gflop}
    if artifact.proof.get("status") == "failed":
        found["failed_proof"] = artifact.proof.get("what")
    return {**found, "quality": proof or "not run", "pictures": _pictures(artifact, out) if proof else []}


def _pictures(artifact: Artifact, out: Path) -> list[dict[str, str]]:
    images = artifact.proof.get("images")
    drawn = images.get("drawn", []) if isinstance(images, Mapping) else []
    return [
        {"prompt": entry["prompt"], **{side: _named(artifact.root / entry[side], out) for side in _SIDES}}
        for entry in drawn[:_SHOWN]
        if all(side in entry for side in _SIDES)
    ]


_SIDES = ("reference", "artifact")


def _named(path: Path, out: Path) -> str:
    """Relative to the results where it lies below them, so that the folder can be moved."""
    whole, root = path.resolve(), out.resolve()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(whole)


def operations(say: Callable[[str], None]) -> Callable[[Spec, Path], float | None]:
    """A function that tells GFLOP of one call; it asks a process of its own, once for each model and size."""
    known: dict[tuple[str, str], float | None] = {}

    def ask(spec: Spec, artifact: Path) -> float | None:
        key = (spec.model, spec.asked)
        if key not in known:
            try:
                found = answer_of("vitrify.bench.counting", str(artifact), json.dumps(spec.to_json()))
                known[key] = float(found) / 1e9
            except BadInput as exc:
                known[key] = None
                say(f"operations of {spec.model} are not known: {exc.what}")
        return known[key]

    return ask


def exported(models: Sequence[Model], builder: Builder) -> tuple[dict[str, Built], dict[str, VitrifyError]]:
    """Every model's artifact, and what went wrong with the others."""
    found, failed = {}, {}
    for model in models:
        try:
            found[model.name] = builder.source(model)
        except VitrifyError as exc:
            failed[model.name] = exc
    if not found and failed:
        first = next(iter(failed.values()))
        raise BadInput("\n".join(e.what for e in failed.values()), first.fix) from first
    return found, failed
