"""What a client asks for, whatever protocol it came by; and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ..core.tensors import Array


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures from a prompt. width, height: pixels. images: how many, with seeds that grow by 1.

    format: png, jpeg or webp. previews: whether steps come with a small picture.
    """

    kind: ClassVar[str] = "generate"
    model: str
    prompt: str
    width: int
    height: int
    negative_prompt: str = ""
    steps: int = 50
    guidance: float = 7.5
    seed: int | None = None
    scheduler: str | None = None
    images: int = 1
    format: str = "png"
    previews: bool = False

    @property
    def cost(self) -> int:
        """Pixels times steps times pictures."""
        return self.width * self.height * self.steps * self.images

    def shape(self) -> GenerateRequest:
        """What jobs must have in common to be done in one call."""
        return replace(self, prompt="", seed=None, images=1, format="png", previews=False)

    def without_data(self) -> GenerateRequest:
        """What may be remembered of it."""
        return self

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ClassifyRequest:
    """Labels of pictures. pictures: whole files, each checked for its format and size.

    top_k: None for all labels. function: softmax, sigmoid or none; None for the model's own.
    """

    kind: ClassVar[str] = "classify"
    model: str
    pictures: tuple[bytes, ...] = field(repr=False)
    top_k: int | None = 5
    function: str | None = None
    threshold: float | None = None
    faces: bool = False

    @property
    def cost(self) -> int:
        """Pictures."""
        return len(self.pictures)

    def shape(self) -> ClassifyRequest:
        """What jobs must have in common to be done in one call."""
        return self.without_data()

    def without_data(self) -> ClassifyRequest:
        return replace(self, pictures=())

    def to_json(self) -> dict[str, Any]:
        """Without the pictures, which are kept as files."""
        said = {k: v for k, v in asdict(self).items() if k != "pictures"}
        return {"kind": self.kind, **said, "pictures": len(self.pictures)}


@dataclass(frozen=True)
class InferRequest:
    """One component's own tensors, by name; what the Open Inference Protocol asks for. Lives as long as its client."""

    kind: ClassVar[str] = "infer"
    model: str
    tensors: Mapping[str, Array] = field(repr=False)

    @property
    def cost(self) -> int:
        """Rows of the first tensor."""
        return max((len(t) for t in self.tensors.values() if t.ndim), default=1)

    def shape(self) -> None:
        """Tensors are inferred one by one."""
        return

    def without_data(self) -> InferRequest:
        return replace(self, tensors={})


Request = GenerateRequest | ClassifyRequest | InferRequest


def request_from_json(data: Mapping[str, Any], folder: Path | None) -> GenerateRequest | ClassifyRequest:
    """A request that `to_json` wrote; its pictures from `folder`, as input-0, input-1, ... or none of them.

    Raises:
        KeyError, TypeError, ValueError, OSError: it is no such request, or a picture is gone.
    """
    given = dict(data)
    kind = given.pop("kind")
    if kind == GenerateRequest.kind:
        return GenerateRequest(**given)
    if kind == ClassifyRequest.kind:
        count = int(given.pop("pictures"))
        files = [folder / f"input-{number}" for number in range(count)] if folder is not None else []
        return ClassifyRequest(pictures=tuple(file.read_bytes() for file in files), **given)
    raise ValueError(f"a request of the kind {kind!r}")
