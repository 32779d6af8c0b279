"""The loop of a sweep: each artifact opened once, pictures that are there already taken as they are."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from ...core.artifact import Artifact
from ...core.errors import BadInput, Cancelled, DiskError, UsageError, VitrifyError
from ...core.machine import LIBRARIES, versions_of
from ...core.progress import Event, Report
from ...core.registry import RUNTIMES, runtime_for
from ...pipelines.control import ControlNet, ControlUnit
from ...pipelines.diffusion import DiffusionPipeline
from ...pipelines.images import read_parameters, save_png
from ...pipelines.load import family_of, load
from ...pipelines.presets import opened_with
from ...pipelines.result import GenerateResult
from ...pipelines.schedulers import stand_in_name
from ...proof.quality import psnr, ssim
from ...runtimes.base import Options, Placement
from ..saved import SAVED, refuse_saved
from .artifacts import Artifacts
from .axes import LETTERS
from .given import Given
from .plan import Index, Opening, Settings
from .results import PICTURES, Row

_WINDOW = 11  # pixels of SSIM's window
_WARM = 5  # steps of a preset until each kind of call was made: whole and shallow, with the negative prompt and without
_ENDING = (Cancelled, DiskError)  # what ends a sweep; any other error is told in its cell

Json = dict[str, Any]


@dataclass
class Drawing:
    """The rows of a sweep, which `run` fills in.

    warm_up: before the first picture of a size, let the runtime prepare what it prepares then.
    given: what they are drawn with beside their settings.
    known: (picture, reference) -> what an earlier run measured of these two files.
    """

    rows: Sequence[Row]
    artifacts: Artifacts
    folder: Path
    options: Options
    device: str | None
    warm_up: bool
    given: Given
    known: Mapping[tuple[str, str], Json]
    report: Report
    _done: int = 0
    _stage: str = "draw"
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._at = {row.cell.index: row for row in self.rows}
        self._early: dict[Index, list[tuple[Row, str]]] = {}

    def run(self) -> None:
        """Draw every row, one opening after the other.

        Raises:
            Cancelled, DiskError: the rows that are done stay so.
        """
        for opening in dict.fromkeys(row.cell.opening for row in self.rows):
            self._stage = f"draw {opening}".strip()
            rows = [row for row in self.rows if row.cell.opening == opening]
            try:
                artifact = self.artifacts.get(opening)
                self._draw_all(opening, artifact, rows)
            except _ENDING:
                raise
            except VitrifyError as exc:  # it cannot be compiled or opened
                self._fail([row for row in rows if row.state == "missing"], exc)

    def _draw_all(self, opening: Opening, artifact: Artifact, rows: Sequence[Row]) -> None:
        """The rows of one opening; the artifact is opened where one of them is not there yet."""
        needed = [artifact.components[name] for name in family_of(artifact).components]
        runtimes = tuple(dict.fromkeys(runtime_for(c.format, opening.runtime) for c in needed))
        opened: _Opened | None = None
        shapes: set[tuple[Any, ...]] = set()
        laid: Any = []
        # another LoRA opens components again: pictures with the same one follow each other
        groups = list(dict.fromkeys(row.settings.lora for row in rows))
        try:
            for row in sorted(rows, key=lambda row: groups.index(row.settings.lora)):
                asked = self._asked(row.settings, artifact, runtimes)
                name = f"{PICTURES}/{_name(row.settings, asked)}"
                row.artifact, said = artifact.id, _found(self.folder / name, asked)
                if said is not None:
                    self._take(row, name, said, "reused")
                    continue
                if opened is None:
                    opened = self._open(artifact, opening)
                if asked.get("loras", []) != laid:
                    laid = asked.get("loras", [])
                    shapes.clear()
                shape = _shape(row.settings)
                try:
                    refuse_saved(row.settings.saved, artifact)
                    request = self.given.request(row.settings) | {"control": opened.controls(self.given, row.settings)}
                    if self.warm_up and shape not in shapes:
                        shapes.add(shape)
                        _warm_up(opened.pipeline, request)
                    result = opened.pipeline.generate(**request, on_step=self._stepped)
                except _ENDING:
                    raise
                except VitrifyError as exc:
                    self._fail([row], exc)
                    continue
                said = _said(result, artifact, asked, shape not in shapes)
                shapes.add(shape)
                save_png(result.images[0], self.folder / name, said)
                self._take(row, name, said, "drawn")
        finally:
            if opened is not None:
                opened.close()

    def _open(self, artifact: Artifact, opening: Opening) -> _Opened:
        options, offload = opened_with(opening.preset, replace(self.options, threads=opening.threads), "auto")

        def opened(one: Artifact) -> Any:
            return load(
                one,
                self.device,
                options=options,
                runtime=opening.runtime,
                prompt_bytes=0,  # what is timed encodes its prompt
                offload=offload,
                say=lambda line: self._note(f"device: {line}"),
            )

        made = _Opened(opened(artifact), [])
        try:
            made.pipeline.adapters.folder = self.given.lora_folder
            for file in self.given.embeddings:
                made.pipeline.adapters.add_embedding(file)
            for control in self.given.controls:
                made.nets.append(opened(control.net))
        except BaseException:
            made.close()
            raise
        return made

    def _asked(self, settings: Settings, artifact: Artifact, runtimes: Sequence[str]) -> Json:
        """Everything that decides what is drawn, and how fast: a picture of the same is not drawn again."""
        libraries = [RUNTIMES[r].library.replace("_", "-") for r in runtimes if r in RUNTIMES]
        versions = {k: v for k, v in versions_of(LIBRARIES).items() if k.startswith(("vitrify", *libraries))}
        options = asdict(replace(self.options, threads=settings.threads))
        del options["optional"]  # says nothing of what is drawn
        return {
            **settings.drawing,
            **self.given.asked(settings),
            "artifact": artifact.id,
            "runtimes": list(runtimes),
            "device": self.device,
            "options": options,
            "versions": versions,
        }

    def _take(self, row: Row, name: str, said: Json, state: str) -> None:
        kept = said["sweep"]
        row.state, row.file, row.first = state, name, bool(kept["first"])
        row.seconds, row.placement = dict(kept["seconds"]), str(kept["placement"])
        row.settings = replace(row.settings, width=said["width"], height=said["height"])
        for number, letter in enumerate(LETTERS):
            index = cast("Index", tuple(0 if n == number else i for n, i in enumerate(row.cell.index)))
            if index == row.cell.index:
                continue
            if self._at[index].file is None:  # failed, or of a LoRA whose turn comes later
                self._early.setdefault(index, []).append((row, letter))
            else:
                self._hold(row, letter, self._at[index])
        for other, letter in self._early.pop(row.cell.index, []):
            self._hold(other, letter, row)
        self._count(1)

    def _hold(self, row: Row, letter: str, first: Row) -> None:
        """Compare a picture with that at the axis's first value."""
        assert row.file is not None
        assert first.file is not None
        known = self.known.get((row.file, first.file)) if row.state == first.state == "reused" else None
        found = known or _compare(self.folder / first.file, self.folder / row.file)
        if found is not None:
            row.against[letter] = {"file": first.file, **found}

    def _fail(self, rows: Sequence[Row], exc: VitrifyError) -> None:
        for row in rows:
            row.state, row.error = "failed", exc
        self._note(f"failed: {exc.what} {exc.fix}")
        self._count(len(rows))

    def _count(self, more: int) -> None:
        self._done += more
        self.report(Event(self._stage, self._done, len(self.rows), "pictures"))

    def _note(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.report(Event(self._stage, self._done, len(self.rows), "pictures", note=line))

    def _stepped(self, step: Any) -> None:
        self.report(Event(self._stage, step.number, step.total, "steps"))


@dataclass
class _Opened:
    """What is open for one opening: the pipeline, and the ControlNets in their order."""

    pipeline: DiffusionPipeline
    nets: list[ControlNet]

    def controls(self, given: Given, settings: Settings) -> list[ControlUnit]:
        """Raises UsageError: a strength, or a part of the steps, that makes no sense."""
        rows = zip(given.controls, self.nets, given.control_strengths(settings), strict=True)
        return [ControlUnit(one.picture, net, strength, one.start, one.end) for one, net, strength in rows]

    def close(self) -> None:
        self.pipeline.close()
        for net in self.nets:
            net.close()


def _shape(settings: Settings) -> tuple[Any, ...]:
    """What a runtime prepares for: the size, which may be a picture's own, the rows, and the graphs."""
    saved = tuple(sorted(settings.saved.items()))
    return settings.width, settings.height, settings.image, (settings.guidance or 0.0) > 1, saved


def _warm_up(pipeline: DiffusionPipeline, request: Json) -> None:
    """One step of a picture of this size, which nobody sees; more where they are not all alike."""
    steps = _WARM if any(name in request for name in SAVED) else 1
    asked = request | {"steps": steps, "scheduler": stand_in_name(pipeline.settings["scheduler"]), "hooks": ()}
    if "image" in request:
        asked["strength"] = 1.0  # less of one step is none
    with suppress(UsageError, BadInput):  # as what follows is told in its cell
        pipeline.generate(**asked)


def _name(settings: Settings, asked: Json) -> str:
    """A picture's file: a few words for people, and a hash of everything that was asked for."""
    words = "-".join(re.findall(r"[a-z0-9]+", settings.prompt.lower())[:5])[:40].strip("-")
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    return "-".join(filter(None, (words, settings.scheduler, str(settings.steps), str(settings.seed), key))) + ".png"


def _said(result: GenerateResult, artifact: Artifact, asked: Json, first: bool) -> Json:
    """What a picture's file says of it."""
    timings = result.timings
    seconds = {
        "encode": timings["encode"],
        "steps": sum(timings["steps"]),
        "step": statistics.median(timings["steps"]),
        "decode": timings["decode"],
        "total": timings["total"],
    }
    placement = "; ".join(dict.fromkeys(str(Placement(**p)) for p in result.placement.values()))
    return {
        **result.parameters[0],
        "model": artifact.name,
        "artifact": artifact.id,
        "source": artifact.model.get("source"),
        "revision": artifact.model.get("revision"),
        "version": asked["versions"].get("vitrify"),
        "sweep": {"asked": asked, "seconds": seconds, "placement": placement, "first": first},
    }


def _found(path: Path, asked: Json) -> Json | None:
    """What the picture says of itself, where it is there, whole, and of exactly what is asked."""
    if not path.is_file():
        return None
    try:
        said = read_parameters(path)
    except BadInput:
        return None
    kept = said.get("sweep")
    return said if isinstance(kept, dict) and kept.get("asked") == asked else None


def _compare(reference: Path, picture: Path) -> Json | None:
    """PSNR and SSIM of two picture files; None where their sizes differ."""
    with Image.open(reference) as a, Image.open(picture) as b:
        if a.size != b.size:
            return None
        x, y = np.asarray(a.convert("RGB")), np.asarray(b.convert("RGB"))
    same = bool((x == y).all())
    likeness = ssim(x, y) if min(x.shape[:2]) >= _WINDOW else None
    return {"psnr_db": None if same else psnr(x, y), "ssim": likeness, "same": same}
