"""What a sweep draws: every cell's parameters, and which artifact has to be opened by which runtime for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ...core.artifact import Artifact
from ...core.errors import BadInput, MissingDependency, UsageError, VitrifyError
from ...core.registry import RUNTIMES, runtime_for
from ...quant.recipes import recipe
from ...quant.support import TARGETS, check
from ..matrix import recipes_of
from ..saved import SAVED, drawn_with, opens_otherwise
from .axes import LETTERS, NO_LORA, SEARCH, Axis

Index = tuple[int, int, int]
"""Which value of x, y and z; 0 where there is no such axis."""


@dataclass(frozen=True)
class Settings:
    """The parameters of one picture; those that are None are the artifact's own.

    seed: None until the sweep starts. recipe, runtime: None where neither an axis nor an option says.
    image, mask: files. control_strength: of every ControlNet; None: each one's own. lora: as `parse_lora` takes them.
    preset to decoder: what of the work is left out, as `bench.saved` has them.
    """

    prompt: str
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    rng: str = "cpu"
    threads: int = 0
    runtime: str | None = None
    recipe: str | None = None
    image: str | None = None
    mask: str | None = None
    strength: float | None = None
    control_strength: float | None = None
    lora: tuple[str, ...] = ()
    preset: str | None = None
    step_cache: str | None = None
    guidance_interval: str | None = None
    guidance_every: int | None = None
    decoder: str | None = None

    @property
    def drawing(self) -> dict[str, Any]:
        """What of a pipeline's `generate` is a number or a word, whatever the picture is drawn from."""
        return {name: getattr(self, name) for name in _DRAWING}

    @property
    def saved(self) -> dict[str, Any]:
        """What of the work is left out: those that are not None."""
        return {name: value for name in SAVED if (value := getattr(self, name)) is not None}

    @property
    def saving(self) -> dict[str, Any]:
        """The same as `generate` takes it."""
        return drawn_with(self.saved)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"lora": list(self.lora)}


_DRAWING = ("prompt", "negative_prompt", "width", "height", "steps", "guidance", "seed", "scheduler", "rng")


@dataclass(frozen=True)
class Opening:
    """What has to be opened for a cell: the outermost loop, so that each is opened once."""

    recipe: str | None
    runtime: str | None
    threads: int
    preset: str | None = None  # where it says how an artifact is opened

    def __str__(self) -> str:
        words = [self.recipe, self.runtime and f"on {self.runtime}", self.threads and f"with {self.threads} threads"]
        words += [self.preset and f"preset {self.preset}"]
        return " ".join(str(word) for word in words if word)


@dataclass(frozen=True)
class Cell:
    """One picture to draw."""

    index: Index
    settings: Settings

    @property
    def opening(self) -> Opening:
        own = self.settings
        return Opening(own.recipe, own.runtime, own.threads, own.preset if opens_otherwise(own.preset) else None)


@dataclass(frozen=True)
class Build:
    """An artifact that a cell needs and that has to be compiled: the recipe's id, and the target."""

    recipe: str
    target: str

    @property
    def name(self) -> str:
        """Its folder, below `artifacts`."""
        return re.sub(r"[^\w.-]+", "-", f"{self.target}-{self.recipe}").strip("-")


def plan_cells(axes: Sequence[Axis], base: Settings) -> list[Cell]:
    """Every combination of the axes' values, x within y within z.

    Raises:
        UsageError: the words that an axis searches for are not in a prompt.
    """
    by_letter = {axis.letter: axis for axis in axes}
    ranges = [range(len(by_letter[letter].values)) if letter in by_letter else range(1) for letter in LETTERS]
    cells = []
    for z, y, x in itertools.product(*reversed(ranges)):
        index = dict(zip(LETTERS, (x, y, z), strict=True))
        cells.append(Cell((x, y, z), _settings(axes, base, index)))
    return cells


def _settings(axes: Sequence[Axis], base: Settings, index: Mapping[str, int]) -> Settings:
    made, swaps = base, {}
    weight: float | None = None
    for axis in axes:
        value = axis.values[index[axis.letter]]
        if axis.name == SEARCH:
            swaps[axis.values[0]] = (axis, value)
        elif axis.name == "size":
            made = replace(made, width=value[0], height=value[1])
        elif axis.name == "lora":
            made = replace(made, lora=() if value == NO_LORA else (value,))
        elif axis.name == "lora_strength":
            weight = value
        else:
            made = replace(made, **{axis.name: value})
    if weight is not None:  # of whichever LoRA another axis has put in
        made = replace(made, lora=tuple(f"{text}:{weight}" for text in made.lora))
    for word, (axis, _) in swaps.items():
        if word not in made.prompt and word not in made.negative_prompt:
            raise UsageError(
                f"--{axis.letter} {SEARCH} searches for {word!r}, which is not in the prompt {made.prompt!r}.",
                "The first value is what is searched for, as it is written in the prompt.",
            )
    if not swaps:
        return made
    # all at once, the longest first: what one axis puts in is not searched by the next
    words = re.compile("|".join(re.escape(word) for word in sorted(swaps, key=len, reverse=True)))

    def swapped(text: str) -> str:
        return words.sub(lambda found: swaps[found[0]][1], text)

    return replace(made, prompt=swapped(made.prompt), negative_prompt=swapped(made.negative_prompt))


def plan_builds(
    openings: Sequence[Opening], artifact: Artifact
) -> tuple[dict[Opening, Build | VitrifyError | None], list[str]]:
    """What each opening needs: None the artifact itself, a `Build` one compiled from it, an error that it cannot be.

    Returns:
        Those, and warnings.

    Raises:
        UsageError, BadInput: a recipe or a runtime is possible in none of them; or nothing can be compiled.
    """
    builds: dict[Opening, Build | VitrifyError | None] = {}
    notes: list[str] = []
    for opening in openings:
        try:
            build, said = _build(opening, artifact)
        except (UsageError, BadInput, MissingDependency) as exc:
            builds[opening] = exc
            continue
        builds[opening] = build
        notes += said
    for part in ("recipe", "runtime"):
        for value in dict.fromkeys(getattr(o, part) for o in openings):
            found = [b for o, b in builds.items() if getattr(o, part) == value]
            errors = [b for b in found if isinstance(b, VitrifyError)]
            if len(errors) == len(found):
                raise errors[0]
    return builds, list(dict.fromkeys(notes))


def _build(opening: Opening, artifact: Artifact) -> tuple[Build | None, list[str]]:
    formats = {c.format for c in artifact.components.values()}
    if opening.recipe is not None:
        made_with = recipes_of(artifact)
        if made_with or formats != {"onnx"}:
            raise BadInput(
                f"{artifact.root} is compiled already ({', '.join(sorted(made_with or formats))}).",
                "Sweep recipes over the artifact that `vitrify export` made, or over the model itself.",
            )
    wanted = recipe(opening.recipe or "fp32")
    if wanted.lossless and (opening.runtime is None or _opens(opening.runtime, formats)):
        for form in formats:
            runtime_for(form, opening.runtime)  # there may be none for it
        return None, []
    target = opening.runtime or "onnx"
    if target not in TARGETS:
        raise UsageError(
            f"The {target} runtime opens no {', '.join(sorted(formats))}, and nothing is compiled for it.",
            f"Use one of {', '.join(TARGETS)}.",
        )
    if formats != {"onnx"}:
        raise BadInput(
            f"{artifact.root} is compiled already ({', '.join(sorted(formats))}), which {target} does not open.",
            "Sweep over the artifact that `vitrify export` made, or over the model itself.",
        )
    try:
        return Build(wanted.id, target), check(wanted, target, artifact.components)
    except UsageError as exc:  # told in the words of another command
        raise UsageError(exc.what, exc.fix.replace("--to ", "--runtime ")) from exc


def _opens(runtime: str, formats: set[str]) -> bool:
    try:
        return all(runtime_for(form, runtime) == runtime for form in formats)
    except UsageError:
        if runtime not in RUNTIMES:
            raise
        return False


def own(settings: Settings, artifact: Artifact) -> Settings:
    """The settings with the artifact's own where they are None, so that a table says them.

    A scheduler that is none of ours stays None: drawing says what is wrong with it. So does a size that is that of the
    picture to start from.
    """
    from ...pipelines.families import FAMILIES
    from ...pipelines.pictures_in import usual_strength
    from ...pipelines.schedulers import own_name, scheduler_name

    pipeline = artifact.pipeline
    family, defaults = FAMILIES[pipeline["family"]], pipeline.get("defaults", {})
    config = pipeline["scheduler"]
    components = artifact.components.values()
    quantized = recipes_of(artifact)
    runtimes = dict.fromkeys(runtime_for(c.format) for c in components) if settings.runtime is None else ()
    made = replace(
        settings,
        steps=settings.steps if settings.steps is not None else int(defaults.get("steps", family.steps)),
        guidance=settings.guidance
        if settings.guidance is not None
        else float(defaults.get("guidance", family.guidance)),
        scheduler=scheduler_name(settings.scheduler, config) if settings.scheduler else own_name(config),
        runtime=settings.runtime or "+".join(runtimes),
        recipe=settings.recipe or "+".join(quantized or ["fp32"]),
    )
    if made.image is not None and made.strength is None:
        made = replace(made, strength=usual_strength(made.mask is not None))
    if made.image is not None and made.width is None and made.height is None:
        return made  # the picture's own
    height, width = pipeline["size"]
    return replace(
        made,
        width=made.width if made.width is not None else width,
        height=made.height if made.height is not None else height,
    )
