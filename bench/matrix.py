"""Models x runtimes x recipes x sizes x batches x threads -> cells, and those that cannot be, with the reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from ..core.artifact import Artifact
from ..core.errors import BadInput, UsageError, VitrifyError
from ..core.registry import RUNTIMES, load_runtime, runtime_names
from ..quant.recipes import Recipe, recipe
from ..quant.support import TARGETS, check
from ..runtimes.base import Options
from ..runtimes.options import SPECIAL, check_options
from .saved import combined, refuse_saved
from .spec import CLASSIFY, DRAWING, Spec

STEPS, GUIDANCE = 20, 7.5
UNCUT = ("torch", "aotinductor")  # compile leaves the shallow graph out of these
ON_CPU = ("onnx", "openvino", "torch")
Size = tuple[int, int]


@dataclass(frozen=True)
class Axes:
    """What is varied. Empty, runtimes are those installed, recipes fp32, and the size the model's own.

    sizes: width and height in pixels. options: tables of `runtimes.base.Options`, one a value.
    steps, guidance: None: 20 and 7.5, or those of a model that is made for others, such as one of few steps.
    calibration: prompts or pictures for the recipes that need some.
    saved: what of a picture's work is left out: name -> values, as `bench.saved` has them.
    """

    runtimes: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (0,)
    options: tuple[Mapping[str, Any], ...] = ({},)
    steps: int | None = None
    guidance: float | None = None
    device: str = "cpu"
    calibration: Path | None = None
    saved: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Skipped:
    """A cell that cannot be: why, and what would change that."""

    spec: Spec
    what: str
    fix: str

    def to_json(self) -> dict[str, Any]:
        return {"case": self.spec.name, "spec": self.spec.to_json(), "what": self.what, "fix": self.fix}


@dataclass
class Matrix:
    """The cells in the order in which they are shown."""

    specs: list[Spec] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def check_axes(axes: Axes) -> None:
    """Refuse what no model could make sense of.

    Raises:
        UsageError: no such runtime or recipe, or a number below 1.
    """
    for name in axes.runtimes:
        if name not in runtime_names():
            raise UsageError(f"There is no runtime {name!r}.", f"Runtimes are {', '.join(runtime_names())}.")
    for name in axes.recipes:
        recipe(name)
    if (
        any(b < 1 for b in axes.batches)
        or any(t < 0 for t in axes.threads)
        or (axes.steps is not None and axes.steps < 1)
    ):
        raise UsageError("A batch or a number of steps is below 1, or threads below 0.", "Give larger numbers.")
    if any(side < 1 for size in axes.sizes for side in size):
        raise UsageError("A size is below 1.", "Give sizes such as 512x512.")


def expand(name: str, source: str, artifact: Artifact, axes: Axes) -> Matrix:
    """Every cell of one model.

    Args:
        name: of the model, as it is shown. source: as it was given. artifact: of it, exported or compiled.

    Raises:
        UsageError: an option that no cell could have, or a model that does nothing by itself.
    """
    check_axes(axes)
    made = Matrix()
    task = task_of(artifact)
    drawing = task in DRAWING
    # few-step models say their own; all others are asked for the same
    usual = artifact.pipeline.get("defaults") or {}
    steps = int(usual.get("steps", STEPS)) if axes.steps is None else axes.steps
    guidance = float(usual.get("guidance", GUIDANCE)) if axes.guidance is None else axes.guidance
    own = artifact.pipeline.get("size") or (0, 0)
    sizes: Sequence[Size | None] = (axes.sizes or ((int(own[1]), int(own[0])),)) if drawing else (None,)
    savings = list(combined(axes.saved)) if drawing else [{}]
    for size, batch, saving in product(sizes, axes.batches, savings):
        for runtime, recipe_, threads, options in _hows(artifact, axes):
            spec = Spec(
                model=name,
                source=source,
                task=task,
                runtime=runtime,
                recipe=recipe_,
                device=axes.device,
                batch=batch,
                width=size[0] if size else None,
                height=size[1] if size else None,
                steps=steps if drawing else None,
                guidance=guidance if drawing else None,
                threads=threads,
                options=options,
                saved=saving,
            )
            try:
                refuse(spec, artifact, axes.calibration)
            except VitrifyError as exc:
                made.skipped.append(Skipped(spec, exc.what, exc.fix))
            else:
                made.specs.append(spec)
    return made


def _hows(artifact: Artifact, axes: Axes) -> Iterator[tuple[str, str, int, Mapping[str, Any]]]:
    recipes = [recipe(r).id for r in axes.recipes or ("fp32",)] if is_exported(artifact) else [recipe_of(artifact)]
    return product(axes.runtimes or _installed(artifact), recipes, axes.threads, axes.options)


def _installed(artifact: Artifact) -> list[str]:
    """The runtimes of a CPU whose library is there; of a compiled artifact those that open it."""
    there = [n for n, row in RUNTIMES.items() if importlib.util.find_spec(row.library) is not None]
    if is_exported(artifact):
        return [n for n in there if n in ON_CPU]
    formats = {c.format for c in artifact.components.values()}
    return [n for n in there if formats <= set(RUNTIMES[n].formats)]


def is_exported(artifact: Artifact) -> bool:
    """Whether it is what `vitrify export` makes, from which others can be compiled."""
    return not recipes_of(artifact) and all(c.format == "onnx" for c in artifact.components.values())


def recipes_of(artifact: Artifact) -> list[str]:
    """The recipes that its components were made with, each once; none where all are in fp32."""
    found = dict.fromkeys(str(c.precision.get("recipe") or "fp32") for c in artifact.components.values())
    return [name for name in found if name != "fp32"]


def recipe_of(artifact: Artifact) -> str:
    """The recipe that an artifact was made with."""
    return next(iter(recipes_of(artifact)), "fp32")


def task_of(artifact: Artifact) -> str:
    """What a bench asks of it: labels, else the first of `DRAWING` that it does.

    Raises:
        UsageError: neither, as of a ControlNet alone.
    """
    for task in (CLASSIFY, *DRAWING):
        if task in artifact.pipeline["tasks"]:
            return task
    raise UsageError(
        f"{artifact.name} neither labels pictures nor draws any: there is no call to measure.",
        "Name a classifier or a diffusion pipeline.",
    )


def as_it_is(spec: Spec, artifact: Artifact) -> bool:
    """Whether a cell runs the artifact that was given, with nothing compiled."""
    if not is_exported(artifact):
        return True
    return recipe(spec.recipe).lossless and (spec.runtime == "onnx" or spec.runtime not in TARGETS)


def refuse(spec: Spec, artifact: Artifact, calibration: Path | None) -> None:
    """Raise the error that says why a cell cannot be, before anything is made for it.

    Raises:
        UsageError: the recipe does not run there, changes nothing, or wants pictures; the runtime opens no such format,
            or has no such option.
        BadInput: the artifact has no graph or decoder for what is left out.
        MissingDependency: the runtime's library is not installed.
    """
    row = RUNTIMES.get(spec.runtime)
    if row is None or importlib.util.find_spec(row.library) is None:
        load_runtime(spec.runtime)  # says what is missing
    if set(spec.options) & set(SPECIAL):
        check_options([load_runtime(spec.runtime)], Options(**spec.options))
    if spec.draws:
        refuse_saved(spec.saved, artifact)
    if as_it_is(spec, artifact):
        formats = {c.format for c in artifact.components.values()}
        if row is not None and not formats <= set(row.formats):
            raise UsageError(
                f"{spec.runtime} does not open {', '.join(sorted(formats))}.", "Name the artifact it was compiled from."
            )
        return
    if spec.saved.get("step_cache") is not None and spec.runtime in UNCUT:
        raise BadInput(f"What is compiled for {spec.runtime} has no graph that takes deep features.", "Use onnx.")
    wanted: Recipe = recipe(spec.recipe)
    check(wanted, spec.runtime, artifact.components)
    if wanted.calibrated and spec.task == CLASSIFY and calibration_for(spec, calibration) is None:
        raise UsageError(
            f"{spec.recipe} of a classifier needs pictures to calibrate with.", "Give --calibration FOLDER."
        )


def calibration_for(spec: Spec, given: Path | None) -> Path | None:
    """What was given to calibrate with, where it is of this model's kind: pictures for a classifier, else prompts."""
    return given if given is not None and given.is_dir() == (spec.task == CLASSIFY) else None
