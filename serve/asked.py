"""What clients may ask for in JSON, as models that name every field, refuse others and are shown in the OpenAPI."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..pipelines.schedulers import scheduler_names
from .catalogue import ModelInfo
from .errors import BadField, BadRequest
from .pictures import checked, from_base64, size_of
from .requests import ClassifyRequest, GenerateRequest
from .settings import Settings

Side = Annotated[int, Field(ge=8, le=4096)]


class Exact(BaseModel):
    """No other fields, no types that would have to be converted, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GenerateBody(Exact):
    """Pictures from a prompt."""

    kind: Literal["generate"] = "generate"
    model: str = Field(description="One of GET /v1/models.")
    prompt: str = Field(max_length=20_000)
    negative_prompt: str = Field("", max_length=20_000)
    width: Side | None = Field(None, description="Pixels; without it the model's own.")
    height: Side | None = Field(None, description="Pixels; without it the model's own.")
    steps: int = Field(30, ge=1, le=1000)
    guidance: float = Field(7.5, ge=0, le=100, description="How closely to follow the prompt; 0 or 1: no guidance.")
    seed: int | None = Field(None, ge=0, lt=2**64, description="Without it a random one, which the result names.")
    scheduler: str | None = Field(None, max_length=64, description="Without it the model's own.")
    images: int = Field(1, ge=1, le=16, description="How many, with seeds that grow by 1.")
    format: Literal["png", "jpeg", "webp"] = "png"
    previews: bool = Field(False, description="Whether each step comes with a small picture.")

    def request(self, info: ModelInfo) -> GenerateRequest:
        """Raises BadField: no such scheduler, a seed that would overflow, a size that cannot be drawn."""
        if self.scheduler not in (None, *scheduler_names()):
            raise BadField(
                f"There is no scheduler {self.scheduler!r}.", f"Choose one of: {', '.join(scheduler_names())}.",
                "scheduler",
            )  # fmt: skip
        if self.seed is not None and self.seed + self.images > 2**64:
            what = f"The seed {self.seed} is too large for {self.images} pictures, for it grows by 1."
            raise BadField(what, "Give a smaller one.", "seed")
        width, height = self.width or info.size[0], self.height or info.size[1]
        for name, side in (("width", width), ("height", height)):
            if info.unit and side % info.unit:
                near = max(info.unit, round(side / info.unit) * info.unit)
                raise BadField(f"The {name} is {side}, not a multiple of {info.unit}.", f"Give {near}.", name)
        given = self.model_dump(include=set(GenerateBody.model_fields) - {"kind", "width", "height"})
        return GenerateRequest(width=width, height=height, **given)


class ClassifyBody(Exact):
    """Labels of pictures, each as base64."""

    kind: Literal["classify"] = "classify"
    model: str = Field(description="One of GET /v1/models.")
    pictures: list[str] = Field(min_length=1, description="PNG, JPEG or WebP, as base64.")
    top_k: int | None = Field(5, ge=1, description="How many labels; null for all.")
    function: Literal["softmax", "sigmoid", "none"] | None = Field(None, description="Without it the model's own.")
    threshold: float | None = Field(None, description="Labels with a lower score are left out.")
    faces: bool = Field(False, description="Whether faces are found and labelled each by itself.")

    def request(self, settings: Settings) -> ClassifyRequest:
        """Raises BadRequest, TooLarge for what is no picture that may be decoded."""
        if len(self.pictures) > settings.pictures:
            raise BadRequest(f"{len(self.pictures)} pictures at once; {settings.pictures} are taken.", "Send fewer.")
        pictures, left = [], settings.pixels  # of all of them: together they are decoded
        for text in self.pictures:
            pictures.append(checked(from_base64(text), left))
            left -= math.prod(size_of(pictures[-1]))
        return ClassifyRequest(
            pictures=tuple(pictures), **self.model_dump(include=set(ClassifyBody.model_fields) - {"kind", "pictures"})
        )


class JobOptions(Exact):
    """Of a job, whatever it does."""

    priority: int = Field(0, ge=-10, le=10, description="Higher ones run first.")
    timeout: float | None = Field(None, gt=0, description="Seconds; the server's own bound holds too.")


class GenerateJob(GenerateBody, JobOptions):
    """To draw pictures."""


class ClassifyJob(ClassifyBody, JobOptions):
    """To label pictures."""
