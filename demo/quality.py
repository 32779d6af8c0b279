"""Are compiled artifacts of the built-in models as good as the float ones? Tables, a sheet of pictures, verdicts.

    python -m vitrify.demo.quality --work DIR

A cell is a target with a recipe, such as "onnx:int8-weights", and maybe a preset that the painter draws with, such as
"onnx:fp32:preset=fast". It passes when it reaches the bars of its recipe and
loses no more than `Cell.points`; everything is compared with the float artifact on ONNX Runtime. Exit code 3 when one
fails.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..bench.machine import describe_machine, versions
from ..core.artifact import Artifact, is_artifact
from ..core.errors import ProofFailed, UsageError, VitrifyError
from ..core.progress import Event, Report, silent
from ..pipelines.load import load
from ..pipelines.presets import preset_named
from ..proof.quality import agreement, psnr, ssim
from ..quant.recipes import Recipe, recipe
from ..quant.support import check
from ..runtimes.base import Options
from .emoji import EXPRESSIONS, EmojiSet, captions
from .evaluate import MODELS, caption_pictures, held_out_views, nearest_right, training_pictures
from .quality_shown import PAINTER, READER, contact_sheet, to_markdown

CELLS = (
    *("onnx:int8-weights", "openvino:int8-weights", "onnx:int4-weights:group=32", "openvino:int4-weights:group=32"),
    *("openvino:nf4-weights", "torch:nf4-weights", "onnx:int8-static", "openvino:int8-static", "onnx:int8-dynamic"),
)
MAIN = {PAINTER: "unet", READER: "model"}  # what a cell must change for the model to be asked about it
GUIDANCE, SCHEDULER, BATCH = 3.0, "ddim", 8  # as the painter's card has them
LESS_PSNR = 28.0  # dB that a preset's pictures must reach beside those of all the work
_PRESET = ":preset="
CALIBRATION_SEED, CALIBRATION_VIEWS = 1001, 2  # other views of the trained glyphs than the held-out ones


@dataclass(frozen=True)
class Cell:
    """A target with a recipe. preset: what the painter draws with; None: all of the work."""

    to: str
    recipe: Recipe
    preset: str | None = None

    @property
    def id(self) -> str:
        return f"{self.to}:{self.recipe.id}" + (f"{_PRESET}{self.preset}" if self.preset else "")

    @property
    def as_exported(self) -> bool:
        """Whether nothing has to be compiled for it."""
        return self.recipe.lossless and self.to == "onnx"

    @property
    def min_psnr(self) -> float:
        """dB, on average, of the painter's pictures."""
        return min(self.recipe.min_psnr, LESS_PSNR) if self.preset else self.recipe.min_psnr

    def asks(self, model: str) -> bool:
        """Whether it changes what this model answers."""
        if self.preset is not None:
            return model == PAINTER
        return self.recipe.applies_to(MAIN[model])

    @property
    def points(self) -> float:
        """Percentage points that captions drawn right and expressions read right may fall."""
        return 8.0 if self.recipe.weights in ("int4", "nf4") else 3.0


FLOAT = Cell("onnx", recipe("fp32"))


@dataclass(frozen=True)
class Asked:
    """How much each model is asked.

    prompts: captions drawn. seeds: how often each expression is drawn. views: of each glyph that is read.
    min_psnr: dB asked for where a cell's recipe asks for less. threads: 0 leaves the choice to the runtime.
    """

    prompts: int = 32
    seeds: int = 20
    steps: int = 20
    views: int = 10
    min_psnr: float = 0.0
    threads: int = 0


class Exam(Protocol):
    """What one model is asked. The painter and the reader differ in everything but this."""

    calibration: Path | None

    def answer(self, artifact: Artifact, cell: Cell) -> Any: ...
    def figures(self, answer: Any, reference: Any) -> dict[str, Any]: ...
    def failures(self, cell: Cell, row: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]: ...


@dataclass(frozen=True)
class Drawn:
    """captions, faces: uint8 [n, height, width, 3]. right: bool [n], the nearest training picture is the caption's."""

    captions: np.ndarray[Any, Any]
    right: np.ndarray[Any, Any]
    faces: np.ndarray[Any, Any]


class Drawing:
    """The painter draws captions and expressions; the float reader reads the expressions."""

    calibration: Path | None = None  # the built-in prompts, as users get them

    def __init__(self, emoji: EmojiSet, reader: Artifact, asked: Asked, report: Report) -> None:
        self._reader, self._asked, self._report = reader, asked, report
        self.captions = chosen_captions(asked.prompts)
        table = list(captions())
        self._truth, self._which = caption_pictures(emoji), [table.index(c) for c in self.captions]
        self.drawn: dict[str, Drawn] = {}

    def answer(self, artifact: Artifact, cell: Cell) -> Drawn:
        faces = [caption for caption, _ in EXPRESSIONS.values()]
        rows = [(self.captions[i : i + BATCH], i) for i in range(0, len(self.captions), BATCH)]
        rows += [(faces, 1000 * seed) for seed in range(1, self._asked.seeds + 1)]
        images: list[Image.Image] = []
        pipeline: Any = _opened(artifact, cell, self._asked)
        try:
            for number, (prompts, seed) in enumerate(rows):
                self._report(Event(f"draw with {cell.id}", number, len(rows), "batches"))
                settings: dict[str, Any] = {"steps": self._asked.steps, "guidance": GUIDANCE, "scheduler": SCHEDULER}
                settings["preset"] = cell.preset
                images += pipeline.generate(prompts, seed=seed, **settings).images
        finally:
            pipeline.close()
        pictures = np.stack([np.asarray(image) for image in images])
        mine, others = np.split(pictures, [len(self.captions)])
        self.drawn[cell.id] = Drawn(mine, nearest_right(mine, self._truth, self._which), others)
        return self.drawn[cell.id]

    def figures(self, answer: Drawn, reference: Drawn) -> dict[str, Any]:
        pairs = list(zip(reference.captions, answer.captions, strict=True))
        decibel = [min(psnr(a, b), 100.0) for a, b in pairs]  # two equal pictures have no finite PSNR
        read = _labels(self._reader, FLOAT, [Image.fromarray(face) for face in answer.faces], self._asked)
        meant = list(EXPRESSIONS) * self._asked.seeds
        return {
            "psnr_db": float(np.mean(decibel)),
            "median_psnr_db": float(np.median(decibel)),
            "min_psnr_db": min(decibel),
            "ssim": float(np.mean([ssim(a, b) for a, b in pairs])),
            "captions_right": float(answer.right.mean()),
            "expressions_right": _share(_best(read), meant),
            "psnr_db_each": dict(zip(self.captions, decibel, strict=True)),
        }

    def failures(self, cell: Cell, row: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
        failed, least = [], max(cell.min_psnr, self._asked.min_psnr)
        if row["psnr_db"] < least:
            failed.append(f"PSNR {row['psnr_db']:.1f} dB, at least {least:g} is asked for")
        for key, what in (("captions_right", "captions"), ("expressions_right", "expressions")):
            lost = 100 * (reference[key] - row[key])
            if lost > cell.points:
                failed.append(f"{what} lose {lost:.1f} points, at most {cell.points:g} may go")
        return failed


class Reading:
    """The reader names the expressions of views that it was not trained on."""

    def __init__(self, emoji: EmojiSet, work: Path, asked: Asked) -> None:
        self._asked = asked
        self._pictures, self._meant = held_out_views(emoji, asked.views)
        self.calibration: Path | None = calibration_pictures(emoji, work / "calibration")

    def answer(self, artifact: Artifact, cell: Cell) -> list[dict[str, float]]:
        return _labels(artifact, cell, self._pictures, self._asked)

    def figures(self, answer: list[dict[str, float]], reference: list[dict[str, float]]) -> dict[str, Any]:
        found = agreement(reference, answer)
        return {"pictures": len(self._pictures), **found, "accuracy": _share(_best(answer), self._meant)}

    def failures(self, cell: Cell, row: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
        least = cell.recipe.min_agreement
        if row["agreement"] < least:
            return [f"{row['agreement']:.1%} of the labels agree, at least {least:.0%} are asked for"]
        return []


def parse_cells(text: str) -> list[Cell]:
    """The cells of a list such as "openvino:int4-weights:group=32,symmetric=no,onnx:fp32:preset=fast".

    Raises:
        UsageError: an unknown target, recipe or preset, or a recipe that does not run there.
    """
    cells = []
    for part in re.split(r",(?=[a-z-]+:)", text):  # a comma before an option of a recipe divides no cells
        whole, said, preset = part.strip().partition(_PRESET)
        to, colon, id = whole.partition(":")
        if not colon:
            raise UsageError(f"{part!r} is no cell.", "Give a target and a recipe, as in onnx:int8-weights.")
        if said:
            preset_named(preset)
        cells.append(Cell(to, recipe(id), preset if said else None))
        if not (said and cells[-1].as_exported):
            check(cells[-1].recipe, to, MAIN.values())
    return cells


def chosen_captions(count: int) -> list[str]:
    """The seven expressions, then captions evenly spread over the others."""
    table = list(captions())
    faces, others = table[: len(EXPRESSIONS)], table[len(EXPRESSIONS) :]
    rest = min(max(0, count - len(faces)), len(others))
    return [*faces[:count], *(others[i * len(others) // rest] for i in range(rest))]


def calibration_pictures(emoji: EmojiSet, folder: Path) -> Path:
    """Views of the trained glyphs as PNG files, none of them a held-out one."""
    from .train_emotions import GLYPHS, views

    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(views(emoji, GLYPHS, CALIBRATION_VIEWS, CALIBRATION_SEED)[0]):
        picture.save(folder / f"{number:03}.png")
    return folder


def evaluate(
    work: Path, cells: Sequence[Cell], asked: Asked, models: Sequence[str] = tuple(MAIN), report: Report = silent
) -> dict[str, Any]:
    """Export what is not there, compile every cell anew, ask, judge; write quality.json, .md and .png into `work`.

    Returns:
        What quality.json holds. A cell that does not compile or run fails, with what went wrong.

    Raises:
        MissingDependency: there are no training pictures, or a library is not installed.
        VitrifyError: a model cannot be exported.
    """
    emoji = training_pictures(work)
    sources = {model: _exported(work / "artifacts" / model, model, report) for model in MAIN}
    settings = {**asdict(asked), "guidance": GUIDANCE, "scheduler": SCHEDULER}
    found: dict[str, Any] = {}
    results = {"kind": "vitrify quality", "schema": 1, "date": time.strftime("%Y-%m-%d"), "settings": settings}
    results |= {"machine": describe_machine(), "versions": versions(), "models": found}
    for model in models:
        exam: Exam = Drawing(emoji, sources[READER], asked, report) if model == PAINTER else Reading(emoji, work, asked)
        report(Event(model, note=f"{model}: {FLOAT.id}"))
        reference = exam.answer(sources[model], FLOAT)
        found[model] = [
            {"cell": FLOAT.id, "mb": sources[model].weight_bytes / 1e6, **exam.figures(reference, reference)}
        ]
        for cell in (c for c in cells if c.asks(model)):
            report(Event(model, note=f"{model}: {cell.id}"))
            try:
                source = sources[model]
                if cell.preset is not None:
                    source = _exported(work / "artifacts" / f"{model}-step-cache", model, report, step_cache=1)
                made = _compiled(source, work / "cells" / model / cell.id.replace(":", "-"), cell, exam, report)
                row = {"mb": made.weight_bytes / 1e6, **exam.figures(exam.answer(made, cell), reference)}
                failed = exam.failures(cell, row, found[model][0])
            except VitrifyError as exc:
                row, failed = {}, [exc.what]
            found[model].append({"cell": cell.id, **row, "verdict": "FAIL" if failed else "pass", "failed": failed})
            _write(work, results)  # what was measured stays, whatever ends the run
        _write(work, results)
        if isinstance(exam, Drawing):
            contact_sheet(exam.captions, exam.drawn).save(work / "quality.png")
    return results


def _write(work: Path, results: Mapping[str, Any]) -> None:
    (work / "quality.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (work / "quality.md").write_text(to_markdown(results), encoding="utf-8")


def _exported(target: Path, model: str, report: Report, step_cache: int | None = None) -> Artifact:
    if not is_artifact(target):
        from ..export.job import export_model

        export_model(MODELS / model, target, step_cache=step_cache, report=report)
    return Artifact.load(target)


def _compiled(source: Artifact, target: Path, cell: Cell, exam: Exam, report: Report) -> Artifact:
    if cell.as_exported:
        return source
    from ..export.compile import CompileJob

    calibration = exam.calibration if cell.recipe.calibrated else None
    job = CompileJob(
        source, target, cell.to, cell.recipe, calibration, verify=False, replace=True, report=report
    )  # fmt: skip
    return job.run().artifact


def _opened(artifact: Artifact, cell: Cell, asked: Asked) -> Any:
    device = None if cell.to.startswith("tensorrt") else "cpu"  # plans run on a GPU alone
    return load(artifact, device, options=Options(threads=asked.threads))


def _labels(artifact: Artifact, cell: Cell, pictures: Sequence[Image.Image], asked: Asked) -> list[dict[str, float]]:
    """The score of every label, a picture each."""
    pipeline = _opened(artifact, cell, asked)
    try:
        answers = pipeline.classify(pictures, top_k=None)
    finally:
        pipeline.close()
    scores = [{one["label"]: one["score"] for one in answer} for answer in answers]
    if not np.isfinite([value for one in scores for value in one.values()]).all():
        raise ProofFailed(f"{cell.id} gives scores that are no numbers.", "Use a milder recipe, or keep more layers.")
    return scores


def _best(scores: Sequence[Mapping[str, float]]) -> list[str]:
    return [max(one, key=one.__getitem__) for one in scores]


def _share(given: Sequence[str], meant: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(given, meant, strict=True)) / len(meant)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitrify.demo.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the emoji package, artifacts and results")
    parser.add_argument(
        "--cells", default=",".join(CELLS), help="TARGET:RECIPE[:preset=NAME],... (default %(default)s)"
    )
    parser.add_argument("--only", choices=tuple(MAIN), help="ask one model")
    parser.add_argument("--prompts", type=int, default=Asked.prompts, help="captions drawn (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=Asked.seeds, help="of each expression (default %(default)s)")
    parser.add_argument("--steps", type=int, default=Asked.steps, help="denoising steps (default %(default)s)")
    parser.add_argument("--views", type=int, default=Asked.views, help="of each held-out glyph (default %(default)s)")
    parser.add_argument("--min-psnr", type=float, default=0.0, help="dB to ask for where a recipe asks for less")
    parser.add_argument("--threads", type=int, default=0, help="0: the runtime's choice")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout instead of tables")
    given = parser.parse_args(arguments)
    if min(given.prompts, given.seeds, given.steps, given.views) < 1:
        parser.error("prompts, seeds, steps and views are 1 or more")
    asked = Asked(given.prompts, given.seeds, given.steps, given.views, given.min_psnr, given.threads)
    try:
        cells, models = parse_cells(given.cells), [given.only] if given.only else list(MAIN)
        results = evaluate(given.work.absolute(), cells, asked, models, _progress)
    except VitrifyError as exc:
        if given.json:
            print(json.dumps({"error": {"code": exc.code, "what": exc.what, "fix": exc.fix}}))
        print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
        return exc.exit_code
    print(json.dumps(results, indent=1) if given.json else to_markdown(results), end="\n" if given.json else "")
    failed = any(row.get("failed") for rows in results["models"].values() for row in rows)
    return ProofFailed.exit_code if failed else 0


def _progress(event: Event) -> None:
    if event.note:
        print(event.note, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
