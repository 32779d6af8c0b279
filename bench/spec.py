"""One cell of a bench's matrix: a model, what runs it, and what it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..core.errors import BadInput
from .saved import changes_pictures, drawn_with, said

TEXT2IMG, CLASSIFY = "text2img", "classify"
DRAWING = (TEXT2IMG, "img2img", "inpaint")
"""The tasks of a diffusion pipeline; a bench asks for the first of them that a model does."""
PICTURE = (512, 384)  # pixels, of what a classifier is given


@dataclass(frozen=True)
class Spec:
    """What is run.

    model: the name that is shown. source: the artifact, model folder or hub id as it was given.
    task: "classify", or one of `DRAWING`. recipe: its id. batch: pictures a call.
    width, height: pixels; steps, guidance: of a diffusion pipeline; None of a classifier, whose preprocessing decides.
    threads: 0 leaves the choice to the runtime. options: of `runtimes.base.Options`, those that are not its defaults.
    saved: what of a picture's work is left out, as `bench.saved` has it; those that are not as usual.
    """

    model: str
    source: str
    task: str
    runtime: str
    recipe: str
    device: str = "cpu"
    batch: int = 1
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    threads: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def saving(self) -> dict[str, Any]:
        """What `generate` is given of `saved`."""
        return drawn_with(self.saved)

    @property
    def draws_otherwise(self) -> bool:
        """Whether another picture comes out than of all the work."""
        return changes_pictures(self.saved)

    @property
    def draws(self) -> bool:
        """Whether it is a diffusion pipeline's."""
        return self.task in DRAWING

    @property
    def name(self) -> str:
        """Everything that tells it from others, in words: "emoji onnx int8-static 64x64 steps 20 batch 1"."""
        words = [self.model, self.runtime, self.recipe]
        words += [] if self.device == "cpu" else [self.device]
        words += [self.asked]
        words += [] if not self.threads else [f"threads {self.threads}"]
        words += [f"{key} {str(value).lower()}" for key, value in sorted(self.options.items())]
        return " ".join(words)

    @property
    def asked(self) -> str:
        """What a call is: "64x64 steps 20 batch 1", "batch 8"; cells that are asked the same compare.

        Those that leave out other work do not: they draw other pictures.
        """
        size = [] if self.width is None else [f"{self.width}x{self.height}"]
        steps = [] if self.steps is None else [f"steps {self.steps}"]
        guidance = [] if self.guidance in (None, 7.5) else [f"guidance {self.guidance:g}"]
        return " ".join([*size, *steps, *guidance, *said(self.saved), f"batch {self.batch}"])

    @property
    def how(self) -> str:
        """What runs it, without the model and what is asked: "onnx int8-static threads 1"."""
        return " ".join(self.name.replace(f"{self.model} ", "", 1).replace(self.asked, "").split())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "options": dict(self.options), "saved": dict(self.saved)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Fields that this version does not know are left out.

        Raises:
            BadInput: one that it needs is missing.
        """
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in data.items() if k in known})
        except TypeError as exc:
            raise BadInput(f"A cell of a bench lacks something ({exc}).", "Run the bench again.") from exc
