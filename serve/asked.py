"""What clients may ask for in JSON, as models that name every field, refuse others and are shown in the OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..pipelines.control import MAX_STRENGTH
from ..pipelines.guiding import MOST
from .catalogue import ModelInfo
from .errors import BadRequest
from .pictures import all_checked
from .requests import ClassifyRequest, GenerateRequest
from .resolved import resolved
from .settings import Settings

MAX_CONTROL = 8  # ControlNets of one job
Side = Annotated[int, Field(ge=8, le=4096)]
LoraStrengths = Annotated[list[float], Field(min_length=2, max_length=2)]
Interval = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]


class Exact(BaseModel):
    """No other fields, no types that would have to be converted, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ControlBody(Exact):
    """A ControlNet that the picture follows."""

    net: str = Field(max_length=200, description="One of the model's `controlnets`.")
    picture: str = Field(description="PNG, JPEG or WebP, as base64; resized to what is drawn.")
    made_by: Literal["picture", "canny", "lineart"] = Field(
        "picture", description="The picture is a control picture already, or its edges or lines are found first."
    )
    strength: float = Field(1.0, ge=0, le=MAX_STRENGTH, description="1 is what it was trained with.")
    start: float = Field(0.0, ge=0, lt=1, description="From which part of the steps it works.")
    end: float = Field(1.0, gt=0, le=1, description="To which part of the steps.")


class GenerateBody(Exact):
    """Pictures from a prompt, or from a picture."""

    kind: Literal["generate"] = "generate"
    model: str = Field(description="One of GET /v1/models.")
    prompt: str = Field(max_length=20_000, description="(red:1.3) weighs words; <lora:name:0.8> lays a LoRA on.")
    negative_prompt: str = Field("", max_length=20_000)
    width: Side | None = Field(None, description="Pixels; without both those of `image`, or the model's own.")
    height: Side | None = Field(None, description="Pixels; without both those of `image`, or the model's own.")
    steps: int | None = Field(None, ge=1, le=1000, description="Without it the model's own.")
    guidance: float | None = Field(
        None, ge=0, le=100, description="How closely to follow the prompt; 0 or 1: no guidance. Without it the model's."
    )
    seed: int | None = Field(None, ge=0, lt=2**64, description="Without it a random one, which the result names.")
    scheduler: str | None = Field(
        None, max_length=64, description="One of the model's, also by AUTOMATIC1111's or diffusers' names."
    )
    images: int = Field(1, ge=1, le=16, description="How many, with seeds that grow by 1.")
    format: Literal["png", "jpeg", "webp"] = "png"
    previews: bool = Field(False, description="Whether each step comes with a small picture.")
    image: str | None = Field(None, description="The picture to start from: PNG, JPEG or WebP, as base64.")
    mask: str | None = Field(None, description="Of that picture's size: white where something new is drawn.")
    strength: float | None = Field(
        None, gt=0, le=1, description="How much of the picture changes; without it 0.8, with a mask 1."
    )
    control: list[ControlBody] = Field(default_factory=list, max_length=MAX_CONTROL)
    loras: dict[str, float | LoraStrengths] = Field(
        default_factory=dict,
        description="One of the model's -> strength, or those of the denoiser and of the text encoders.",
    )
    hooks: list[str] | None = Field(None, max_length=100, description="Of the model's; without it all of them.")
    preset: Literal["exact", "fast", "small"] | None = Field(
        None, description="What of the work is left out where the next four do not say; without it the server's."
    )
    step_cache: str | None = Field(
        None, max_length=16, description='"3": every third step is computed whole; "0.1": as few as keep the features.'
    )
    guidance_interval: Interval | None = Field(
        None, description="The part of the steps in which guidance acts, as [0.1, 0.8]; the others cost half."
    )
    guidance_every: int | None = Field(
        None, ge=1, le=MOST, description="Of the whole steps each so-many-th computes the negative prompt."
    )
    decoder: Literal["vae", "preview"] | None = Field(None, description="preview: the model's small decoder.")

    def request(self, info: ModelInfo, settings: Settings) -> GenerateRequest:
        """Raises BadField, Unsupported, TooLarge: what this model cannot draw, see `resolved`."""
        return resolved(self, info, settings)


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
        pictures = all_checked({f"pictures.{n}": text for n, text in enumerate(self.pictures)}, settings.pixels)
        return ClassifyRequest(
            pictures=tuple(pictures.values()),
            **self.model_dump(include=set(ClassifyBody.model_fields) - {"kind", "pictures"}),
        )


class JobOptions(Exact):
    """Of a job, whatever it does."""

    priority: int = Field(0, ge=-10, le=10, description="Higher ones run first.")
    timeout: float | None = Field(None, gt=0, description="Seconds; the server's own bound holds too.")


class GenerateJob(GenerateBody, JobOptions):
    """To draw pictures."""


class ClassifyJob(ClassifyBody, JobOptions):
    """To label pictures."""


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """Its JSON schema in one piece: what refers to $defs finds them nowhere in an OpenAPI document."""
    schema = kind.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return whole(parts[part["$ref"].removeprefix("#/$defs/")])
        return {name: whole(one) for name, one in part.items()}

    found: dict[str, Any] = whole(schema)
    return found
