"""Options of the commands that draw, for what of the work is left out."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class DecoderName(StrEnum):
    """What makes pixels of latents."""

    VAE = "vae"
    PREVIEW = "preview"


PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="exact: nothing is left out; fast: a part of the time; small: the least memory.",
        metavar="exact|fast|small",
    ),
]
StepCacheOption = Annotated[
    str | None,
    typer.Option(
        "--step-cache",
        help="3: every third step is computed whole; 0.1: as few as keep the features within a tenth.",
        metavar="STEPS|SHARE",
    ),
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        "--guidance-interval",
        help="0.1:0.8: the part of the steps in which guidance acts; the others cost half.",
        metavar="START:END",
    ),
]
GuidanceEvery = Annotated[
    int | None,
    typer.Option(
        "--guidance-every", help="2: every second whole step computes the negative prompt; the others cost half."
    ),
]
DecoderOption = Annotated[
    DecoderName | None,
    typer.Option("--decoder", help="preview: the artifact's small decoder, in place of its VAE's."),
]
