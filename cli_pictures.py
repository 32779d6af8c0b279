"""What the commands that draw share: options for pictures, ControlNets, LoRAs, embeddings and plugins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from .core.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from .core.artifact import Artifact

T = TypeVar("T")
_PICTURES = "Pictures that it starts from"
_CONTROL = "ControlNets; each option once for each of them"
_WORDS = "LoRAs and embeddings"

ImageOption = Annotated[Path | None, typer.Option("--image", help="Picture to start from.", rich_help_panel=_PICTURES)]
MaskOption = Annotated[
    Path | None,
    typer.Option(
        "--mask", help="Of the picture's size; white where something new is drawn.", rich_help_panel=_PICTURES
    ),
]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength", help="How much changes, up to 1; default 0.8, with a mask 1.", rich_help_panel=_PICTURES
    ),
]
ControlPictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--control", help="Picture that a ControlNet follows; one for each --controlnet.", rich_help_panel=_CONTROL
    ),
]
ControlNets = Annotated[
    list[str] | None,
    typer.Option("--controlnet", help="A ControlNet's artifact or folder.", rich_help_panel=_CONTROL),
]
ControlFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--control-from",
        help="Make the control picture of a photo: canny, lineart, or depth=FILE.onnx, pose=FILE.onnx.",
        rich_help_panel=_CONTROL,
    ),
]
ControlStrengths = Annotated[
    list[float] | None,
    typer.Option("--control-strength", help="1 is as it was trained.", rich_help_panel=_CONTROL),
]
ControlStarts = Annotated[
    list[float] | None,
    typer.Option("--control-start", help="From which part of the steps, 0 to 1.", rich_help_panel=_CONTROL),
]
ControlEnds = Annotated[
    list[float] | None,
    typer.Option("--control-end", help="To which part of the steps, 0 to 1.", rich_help_panel=_CONTROL),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        help="NAME or FILE, and strengths as NAME:0.8 or NAME:0.5:0.8; several times.",
        rich_help_panel=_WORDS,
    ),
]
LoraFolder = Annotated[
    Path | None,
    typer.Option("--lora-folder", help="Where <lora:NAME:0.8> in a prompt is looked for.", rich_help_panel=_WORDS),
]
Embeddings = Annotated[
    list[Path] | None,
    typer.Option("--embedding", help="A textual inversion's file; several times.", rich_help_panel=_WORDS),
]
Hooks = Annotated[
    list[str] | None,
    typer.Option("--hook", help="A plugin, as wildcards:folder=DIR; may be given several times."),
]


@dataclass(frozen=True)
class ControlGiven:
    """One ControlNet as the options ask for it. net: its artifact or folder. picture: ready to be followed."""

    net: str
    picture: Image.Image
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0


def controls_given(
    pictures: Sequence[Path] | None,
    nets: Sequence[str] | None,
    made: Sequence[str] | None,
    strengths: Sequence[float] | None,
    starts: Sequence[float] | None,
    ends: Sequence[float] | None,
) -> list[ControlGiven]:
    """The ControlNets that are asked for, their pictures opened, and made from photos where `made` says how.

    Raises:
        UsageError: another number of pictures than of ControlNets, or of what belongs to them.
        BadInput: a picture cannot be read.
        MissingDependency: what makes a control picture is not installed.
    """
    from .pipelines.control_pictures import control_picture
    from .pipelines.images import open_image

    paths, names = list(pictures or []), list(nets or [])
    others = {"--control-from": made, "--control-strength": strengths, "--control-start": starts, "--control-end": ends}
    lonely = [option for option, given in others.items() if given]
    if not names and not paths and lonely:
        raise UsageError(f"{' and '.join(lonely)} belong to a ControlNet.", "Give --controlnet and --control too.")
    if len(paths) != len(names):
        raise UsageError(
            f"There are {len(paths)} control pictures for {len(names)} ControlNets.",
            "Give one --control for each --controlnet.",
        )
    count = len(names)
    ways = _each(made or ["picture"], count, "--control-from")
    numbers = (
        _each(strengths or [1.0], count, "--control-strength"),
        _each(starts or [0.0], count, "--control-start"),
        _each(ends or [1.0], count, "--control-end"),
    )
    found = []
    for path, name, way, *rest in zip(paths, names, ways, *numbers, strict=True):
        kind, _, estimator = way.partition("=")
        found.append(ControlGiven(name, control_picture(open_image(path), kind, estimator or None), *rest))
    return found


def _each(given: Sequence[T], count: int, option: str) -> list[T]:
    """One for each ControlNet, where one alone is for all of them."""
    if len(given) not in (1, count):
        raise UsageError(f"{option} is given {len(given)} times for {count} ControlNets.", "Give it once, or for each.")
    return list(given) * count if len(given) == 1 else list(given)


def net_artifact(name: str, open_artifact: Callable[[str], Artifact]) -> Artifact:
    """The artifact of a ControlNet.

    Raises:
        UsageError: it is another model's.
    """
    artifact = open_artifact(name)
    if artifact.pipeline.get("family") != "controlnet":
        raise UsageError(f"{name} is no ControlNet.", "Give the folder of one, or what `vitrify export` made of it.")
    return artifact
