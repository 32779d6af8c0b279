"""Pictures to a classifier's input, from transformers' preprocessor_config.json and without transformers.

The arithmetic is that of transformers' Pillow processors (image_processing_backends.PilBackend, "slow" before
version 5); the Torchvision ones ("Fast") differ from them by a rounding step here and there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadInput
from .images import MAX_PIXELS

_HALF = [0.5, 0.5, 0.5]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_OPENAI = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_BILINEAR, _BICUBIC = 2, 3

_COMMON: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "include_top": False,
    "image_mean": _HALF,
    "image_std": _HALF,
    "resample": _BICUBIC,
    "crop_size": None,
    "crop_pct": None,
    "square": True,  # a size that is one number means both sides; else the shorter one
}

_MOBILENET = {"size": 256, "square": False, "do_center_crop": True, "crop_size": 224, "resample": _BILINEAR}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": 224, "resample": _BILINEAR},
    "DeiTImageProcessor": {"size": 256, "do_center_crop": True, "crop_size": 224},
    "ConvNextImageProcessor": {"size": 384, "square": False, "crop_pct": 224 / 256},
    "BeitImageProcessor": {"size": 224, "crop_size": 224},
    "PvtImageProcessor": {"size": 224, **_IMAGENET},
    "SiglipImageProcessor": {"size": {"height": 224, "width": 224}, "square": False},
    "BitImageProcessor": {"size": 224, "square": False, "do_center_crop": True, "crop_size": 224, **_OPENAI},
    "CLIPImageProcessor": {"size": 224, "square": False, "do_center_crop": True, "crop_size": 224, **_OPENAI},
    "MobileNetV1ImageProcessor": _MOBILENET,
    "MobileNetV2ImageProcessor": _MOBILENET,
    "EfficientNetImageProcessor": {"size": 346, "crop_size": 289, "include_top": True},
}
"""What each transformers class takes where its config says nothing (transformers 5.23); over `_COMMON`."""

_OF_MODEL = {
    "vit": "ViTImageProcessor",
    "swin": "ViTImageProcessor",
    "swinv2": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "regnet": "ConvNextImageProcessor",
    "cvt": "ConvNextImageProcessor",
    "dinov2": "BitImageProcessor",
    "pvt": "PvtImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "mobilenet_v1": "MobileNetV1ImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "efficientnet": "EfficientNetImageProcessor",
}
"""model_type -> class (transformers' IMAGE_PROCESSOR_MAPPING_NAMES), for old configs that name no class."""


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resize, crop, rescale and normalize, in this order; each step only where its `do_` says so.

    Attributes:
        kind: the transformers class it stands for, without Fast or Pil.
        size: {"height", "width"}: squashed to that; {"shortest_edge"}: scaled with its proportions kept.
        resample: Pillow's number of the filter.
        crop_pct: ConvNeXt's way to resize: a shortest_edge under 384 is scaled to shortest_edge / crop_pct and cut
            square from the middle; from 384 on the picture is squashed. None: no such thing.
        crop_size: (height, width) cut from the middle, with black around a smaller picture; None: nothing is cut.
        rescale_factor: bytes are multiplied by it.
        rescale_offset: 1 is subtracted after rescaling.
        include_top: the result is divided by image_std a second time (EfficientNet).
    """

    kind: str
    do_resize: bool
    size: Mapping[str, int]
    resample: int
    crop_pct: float | None
    do_center_crop: bool
    crop_size: tuple[int, int] | None
    do_rescale: bool
    rescale_factor: float
    rescale_offset: bool
    do_normalize: bool
    include_top: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, model_type: str | None = None) -> ImagePreprocessor:
        """Read the contents of a preprocessor_config.json.

        Args:
            config: the file's object; what it does not give, or gives as null, is its class's default.
            model_type: from the model's config.json, for old files that name no class.

        Raises:
            BadInput: a class, size or value that is not supported.
        """
        kind = _kind(config, model_type)
        given = {name: value for name, value in config.items() if value is not None}
        if given.get("do_pad"):
            raise BadInput(
                f"{kind} with do_pad is not supported.", "Set do_pad to false, or preprocess the pictures yourself."
            )
        values = {**_COMMON, **_DEFAULTS[kind], **given}
        crop_pct = values["crop_pct"] if kind == "ConvNextImageProcessor" else None
        size = _size(values["size"], values["square"])
        if crop_pct is not None and "shortest_edge" not in size:
            raise BadInput(f"{kind} takes a size of shortest_edge, not {dict(size)}.", 'Give {"shortest_edge": 224}.')
        crop = None if values["crop_size"] is None else _size(values["crop_size"], True)
        if crop is not None and "height" not in crop:
            raise BadInput(f"A crop_size of {dict(crop)} is not supported.", 'Give {"height": 224, "width": 224}.')
        if crop is None and values["do_center_crop"]:
            raise BadInput("do_center_crop is set and crop_size is missing.", 'Give {"height": 224, "width": 224}.')
        if values["resample"] not in list(Image.Resampling):
            raise BadInput(f"resample is {values['resample']!r}, not one of Pillow's 0 to 5.", "3 is bicubic.")
        top = kind == "EfficientNetImageProcessor"
        return cls(
            kind=kind,
            do_resize=bool(values["do_resize"]),
            size=size,
            resample=int(values["resample"]),
            crop_pct=None if crop_pct is None else _positive("crop_pct", crop_pct),
            do_center_crop=bool(values["do_center_crop"]),
            crop_size=None if crop is None else (crop["height"], crop["width"]),
            do_rescale=bool(values["do_rescale"]),
            rescale_factor=_positive("rescale_factor", values["rescale_factor"]),
            rescale_offset=top and bool(values["rescale_offset"]),
            do_normalize=bool(values["do_normalize"]),
            include_top=top and bool(values["include_top"]),
            image_mean=_channels("image_mean", values["image_mean"]),
            image_std=_channels("image_std", values["image_std"]),
        )

    def to_json(self) -> dict[str, Any]:
        """A preprocessor_config.json that `from_config` and transformers read; every value is in it."""
        data: dict[str, Any] = {
            "image_processor_type": self.kind,
            "do_resize": self.do_resize,
            "size": dict(self.size),
            "resample": self.resample,
            "do_center_crop": self.do_center_crop,
            "do_rescale": self.do_rescale,
            "rescale_factor": self.rescale_factor,
            "do_normalize": self.do_normalize,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
        }
        if self.crop_size is not None:
            data["crop_size"] = {"height": self.crop_size[0], "width": self.crop_size[1]}
        if self.crop_pct is not None:
            data["crop_pct"] = self.crop_pct
        if self.kind == "EfficientNetImageProcessor":
            data |= {"rescale_offset": self.rescale_offset, "include_top": self.include_top}
        return data

    def __call__(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Pictures to float32 [n, 3, height, width].

        Raises:
            BadInput: no picture, pictures that come out in different sizes, or one too long and narrow to resize.
        """
        if not images:
            raise BadInput("There is no picture to classify.", "Give at least one.")
        arrays = [self._one(image if image.mode == "RGB" else image.convert("RGB")) for image in images]
        sizes = sorted({f"{array.shape[2]}x{array.shape[1]}" for array in arrays})
        if len(sizes) > 1:
            raise BadInput(
                f"The pictures come out in different sizes ({', '.join(sizes)}), for this model keeps proportions.",
                "Give them one at a time.",
            )
        return np.stack(arrays)

    def _one(self, image: Image.Image) -> npt.NDArray[np.float32]:
        if self.do_resize:
            image = self._resized(image)
        if self.do_center_crop and self.crop_size is not None:
            image = _center(image, *self.crop_size)
        pixels = np.asarray(image).transpose(2, 0, 1)
        if self.do_rescale:  # in float64, as the reference has it
            values = (pixels * np.float64(self.rescale_factor)).astype(np.float32) - np.float32(self.rescale_offset)
        else:
            values = pixels.astype(np.float32)
        std = np.array(self.image_std, np.float32)[:, None, None]
        if self.do_normalize:
            values = (values - np.array(self.image_mean, np.float32)[:, None, None]) / std
        return values / std if self.include_top else values

    def _resized(self, image: Image.Image) -> Image.Image:
        if "shortest_edge" not in self.size:
            return image.resize((self.size["width"], self.size["height"]), self.resample)
        edge = self.size["shortest_edge"]
        if self.crop_pct is None:
            return self._with_shortest(image, edge)
        if edge < 384:  # torchvision's and timm's way of evaluation
            return _center(self._with_shortest(image, int(edge / self.crop_pct)), edge, edge)
        return image.resize((edge, edge), self.resample)

    def _with_shortest(self, image: Image.Image, edge: int) -> Image.Image:
        width, height = image.size
        long = int(edge * max(width, height) / min(width, height))
        if edge * long > MAX_PIXELS:
            raise BadInput(
                f"A picture of {width}x{height} is too long and narrow to be scaled to {edge} pixels.", "Cut it first."
            )
        return image.resize((edge, long) if width <= height else (long, edge), self.resample)


def _center(image: Image.Image, height: int, width: int) -> Image.Image:
    """The middle of the picture; Pillow fills what lies outside with black."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _kind(config: Mapping[str, Any], model_type: str | None) -> str:
    named = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = str(named or _OF_MODEL.get(model_type or "", ""))
    for suffix in ("Fast", "Pil"):
        kind = kind.removesuffix(suffix)
    kind = kind.replace("FeatureExtractor", "ImageProcessor")
    if kind not in _DEFAULTS:
        what = f"The image processor {named} is" if named else f"An image processor for model type {model_type} is"
        raise BadInput(f"{what} not supported.", f"Supported: {', '.join(sorted(_DEFAULTS))}.")
    return kind


def _size(size: Any, square: bool) -> Mapping[str, int]:
    """A size in any of the forms that configs have had."""
    if isinstance(size, int) and not isinstance(size, bool):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    elif isinstance(size, list | tuple) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        sides: dict[str, int] = {name: value for name, value in size.items() if value is not None}
        whole = all(isinstance(value, int) and value > 0 for value in sides.values())
        if whole and set(sides) in ({"height", "width"}, {"shortest_edge"}):
            return sides
    raise BadInput(
        f"A size of {size!r} is not supported.", 'Give {"height": 224, "width": 224} or {"shortest_edge": 224}.'
    )


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not value > 0:
        raise BadInput(f"{name} is {value!r}, not a number above 0.", "Correct it in preprocessor_config.json.")
    return float(value)


def _channels(name: str, value: Any) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, int | float) else value
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(isinstance(one, int | float) for one in values)
        or (name == "image_std" and not all(values))
    ):
        raise BadInput(f"{name} is {value!r}, not three numbers.", "Correct it in preprocessor_config.json.")
    return float(values[0]), float(values[1]), float(values[2])
