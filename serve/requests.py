"""What a client asks for, whatever protocol it came by; and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ..core.tensors import Array
from ..pipelines.guiding import Guiding
from ..pipelines.pictures_in import usual_strength
from ..pipelines.step_cache import StepCache
from .saved import share_of_work

_LEFT_OUT: Mapping[str, Any] = {
    "step_cache": None, "guidance_interval": (0.0, 1.0), "guidance_every": 1, "decoder": "vae", "preset": None,
}  # fmt: skip


@dataclass(frozen=True)
class ControlRequest:
    """A ControlNet that a job follows.

    net: a served ControlNet's name. picture: a whole file, checked. made_by: "picture" where it is one already, "canny"
    or "lineart" to make it of a photo. strength: 1 as trained. start, end: the part of the steps, 0 to 1.
    """

    net: str
    picture: bytes = field(repr=False)
    made_by: str = "picture"
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Without the picture."""
        return {name: value for name, value in vars(self).items() if name != "picture"}


@dataclass(frozen=True)
class GenerateRequest:
    """Pictures from a prompt. width, height: pixels. images: how many, with seeds that grow by 1.

    format: png, jpeg or webp. previews: whether steps come with a small picture. image, mask: whole files, checked; the
    mask is white where something new is drawn. strength: of the change; None for the pipeline's own. loras: name in the
    server's folder -> strength, or the denoiser's and the text encoders'. hooks: of those that the server was started
    with; None for all. step_cache, guidance_interval, guidance_every, decoder: what of the work is left out, those of
    `preset` among it as far as the model can do it; preset: its name, for what it cannot.
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
    image: bytes | None = field(default=None, repr=False)
    mask: bytes | None = field(default=None, repr=False)
    strength: float | None = None
    control: tuple[ControlRequest, ...] = ()
    loras: Mapping[str, float | tuple[float, float]] = field(default_factory=dict)
    hooks: tuple[str, ...] | None = None
    step_cache: str | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_every: int = 1
    decoder: str = "vae"
    preset: str | None = None

    @property
    def pictures(self) -> tuple[bytes, ...]:
        """All that came with it, in this order: the picture, the mask, those of the ControlNets."""
        own = (data for data in (self.image, self.mask) if data is not None)
        return (*own, *(unit.picture for unit in self.control))

    @property
    def steps_done(self) -> int:
        """How many of the steps are: of a picture only the share `strength`."""
        if self.image is None:
            return self.steps
        strength = usual_strength(self.mask is not None) if self.strength is None else self.strength
        return max(1, min(self.steps, int(self.steps * strength)))

    @property
    def cost(self) -> int:
        """Pixels times steps that are done, less what is left out of them, times pictures."""
        one = self.width * self.height * self.steps_done
        guiding = Guiding.of(self.guidance_interval, self.guidance_every)
        if self._cache is not None or guiding.saves:
            one = max(1, round(one * share_of_work(self._cache, guiding, self.steps_done, self.guidance > 1)))
        return one * self.images

    @property
    def _cache(self) -> StepCache | None:
        return None if self.step_cache is None else StepCache.parse(self.step_cache)

    def shape(self) -> GenerateRequest | None:
        """What jobs must have in common to be done in one call; None for one that is done alone.

        That is one with pictures, and one whose features are measured: those of others would change its steps.
        """
        if self.image is not None or self.control or (self._cache is not None and self._cache.change is not None):
            return None
        return replace(self, prompt="", seed=None, images=1, format="png", previews=False)

    def without_data(self) -> GenerateRequest:
        """What may be remembered of it; of pictures that there were some."""
        if not self.pictures:
            return self
        image, mask = (None if data is None else b"" for data in (self.image, self.mask))
        return replace(self, image=image, mask=mask, control=tuple(replace(unit, picture=b"") for unit in self.control))

    def to_json(self) -> dict[str, Any]:
        """Without the pictures, which are kept as files; `pictures` says whether there are an image and a mask.

        Of what is left out of the work only what is: so a request is written as by versions that left out nothing.
        """
        apart = ("image", "mask", "control", "loras", "hooks", *_LEFT_OUT)
        said = {name: value for name, value in vars(self).items() if name not in apart}
        said["loras"] = {n: list(one) if isinstance(one, tuple) else one for n, one in self.loras.items()}
        said["hooks"] = None if self.hooks is None else list(self.hooks)
        for name, usual in _LEFT_OUT.items():
            value = getattr(self, name)
            if value != usual:
                said[name] = list(value) if isinstance(value, tuple) else value
        said["control"] = [unit.to_json() for unit in self.control]
        said["pictures"] = [name for name in ("image", "mask") if getattr(self, name) is not None]
        return {"kind": self.kind, **said}


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


def models_of(request: Request) -> tuple[str, ...]:
    """All that it needs: its model, and its ControlNets, each once."""
    nets = (unit.net for unit in request.control) if isinstance(request, GenerateRequest) else ()
    return tuple(dict.fromkeys((request.model, *nets)))


def request_from_json(data: Mapping[str, Any], folder: Path | None) -> GenerateRequest | ClassifyRequest:
    """A request that `to_json` wrote; its pictures from `folder`, as input-0, input-1, ... or without what they hold.

    Raises:
        KeyError, TypeError, ValueError, OSError: it is no such request, or a picture is gone.
    """
    given = dict(data)
    kind = given.pop("kind")
    if kind == GenerateRequest.kind:
        return _generate(given, folder)
    if kind == ClassifyRequest.kind:
        count = int(given.pop("pictures"))
        files = [folder / f"input-{number}" for number in range(count)] if folder is not None else []
        return ClassifyRequest(pictures=tuple(file.read_bytes() for file in files), **given)
    raise ValueError(f"a request of the kind {kind!r}")


def _generate(given: dict[str, Any], folder: Path | None) -> GenerateRequest:
    """What a version before wrote has no pictures, LoRAs or hooks, and leaves nothing of the work out."""
    names, control = given.pop("pictures", []), given.pop("control", [])
    numbers = range(len(names) + len(control))
    files = [(folder / f"input-{number}").read_bytes() if folder is not None else b"" for number in numbers]
    pictures = dict(zip(names, files, strict=False))
    units = (ControlRequest(picture=data, **one) for one, data in zip(control, files[len(names) :], strict=True))
    loras = {n: tuple(one) if isinstance(one, list) else one for n, one in given.pop("loras", {}).items()}
    hooks, interval = given.pop("hooks", None), given.pop("guidance_interval", None)
    if interval is not None:
        start, end = interval
        given["guidance_interval"] = (float(start), float(end))
    return GenerateRequest(
        **given,
        image=pictures.get("image"),
        mask=pictures.get("mask"),
        control=tuple(units),
        loras=loras,
        hooks=None if hooks is None else tuple(hooks),
    )
