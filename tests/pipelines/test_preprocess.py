"""Preprocessing: equal to transformers' own Pillow processors, for every class and form of config."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.errors import BadInput
from vitrify.pipelines.preprocess import _DEFAULTS, _OF_MODEL, ImagePreprocessor

CONFIGS: list[dict[str, Any]] = [
    *({"image_processor_type": kind} for kind in _DEFAULTS),
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 128}, "resample": 3},
    {
        "image_processor_type": "ViTImageProcessor",
        "size": {"shortest_edge": 100},
        "do_center_crop": True,
        "crop_size": 90,
    },
    {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "image_mean": [120.0] * 3, "image_std": 60.0},
    {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "rescale_factor": 1 / 127.5},
    {"image_processor_type": "ViTImageProcessor", "size": [64, 32]},
    {"image_processor_type": "DeiTImageProcessor", "size": 256, "crop_size": 224, "resample": 1},
    {"image_processor_type": "DeiTImageProcessor", "do_resize": False, "crop_size": {"height": 301, "width": 200}},
    {"image_processor_type": "DeiTImageProcessor", "size": 33, "crop_size": 64, "resample": 0},
    {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0.95},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 383}, "resample": 2},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 512}, "crop_pct": None},
    {"image_processor_type": "CLIPImageProcessor", "size": 61, "crop_size": 60},
    {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True, "rescale_factor": 1 / 127.5},
    {"image_processor_type": "EfficientNetImageProcessor", "include_top": False, "do_center_crop": True},
]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    data = pytest.importorskip("skimage.data", reason="needs scikit-image's pictures")
    photographs = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "cat", "coffee")]
    rng = np.random.default_rng(0)
    sizes = [(224, 224), (1, 1), (37, 211), (500, 3), *rng.integers(20, 500, (3, 2)).tolist()]
    return photographs + [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def reference(config: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers as the reference")
    kind = config["image_processor_type"]
    # the Pillow classes have no suffix before transformers 5
    return getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: json.dumps(config)[26:80])
def test_values_are_the_references(config: dict[str, Any], pictures: list[Image.Image]) -> None:
    ours = ImagePreprocessor.from_config(config)
    theirs = reference(config)(**{name: value for name, value in config.items() if name != "image_processor_type"})
    for picture in pictures:
        expected = theirs(picture, return_tensors="np")["pixel_values"]
        found = ours([picture])
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, f"{picture.size}")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: json.dumps(config)[26:80])
def test_json_round_trips_and_transformers_reads_it(config: dict[str, Any], pictures: list[Image.Image]) -> None:
    ours = ImagePreprocessor.from_config(config)
    written = json.loads(json.dumps(ours.to_json()))
    assert ImagePreprocessor.from_config(written) == ours
    theirs = reference(config).from_dict(written)
    expected = theirs(pictures[0], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ours(pictures[:1]), expected)


def test_configs_that_transformers_saves_are_read(pictures: list[Image.Image]) -> None:
    for kind in _DEFAULTS:
        theirs = reference({"image_processor_type": kind})()
        saved = json.loads(theirs.to_json_string())
        expected = theirs(pictures[1], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(ImagePreprocessor.from_config(saved)(pictures[1:2]), expected, kind)


@pytest.mark.parametrize(
    ("config", "model_type", "kind"),
    [
        ({"image_processor_type": "ViTImageProcessorFast"}, None, "ViTImageProcessor"),
        ({"image_processor_type": "DeiTImageProcessorPil"}, None, "DeiTImageProcessor"),
        ({"feature_extractor_type": "ViTFeatureExtractor"}, "swin", "ViTImageProcessor"),
        ({"feature_extractor_type": "ConvNextFeatureExtractor"}, None, "ConvNextImageProcessor"),
        ({"size": 224}, "vit", "ViTImageProcessor"),
        ({"size": 224}, "swinv2", "ViTImageProcessor"),
        ({"size": 224}, "resnet", "ConvNextImageProcessor"),
    ],
)
def test_names_of_every_age_are_known(config: dict[str, Any], model_type: str | None, kind: str) -> None:
    assert ImagePreprocessor.from_config(config, model_type=model_type).kind == kind


def test_null_is_the_default() -> None:
    nulls = {"image_processor_type": "DeiTImageProcessor", "size": None, "image_mean": None, "do_center_crop": None}
    plain = ImagePreprocessor.from_config({"image_processor_type": "DeiTImageProcessor"})
    assert ImagePreprocessor.from_config(nulls) == plain


def test_model_types_are_mapped_as_transformers_maps_them() -> None:
    auto = pytest.importorskip("transformers.models.auto.image_processing_auto", reason="needs transformers")
    for model_type, kind in _OF_MODEL.items():
        assert kind in str(auto.IMAGE_PROCESSOR_MAPPING_NAMES[model_type]), model_type


def test_a_batch_is_its_pictures_and_modes_do_not_matter(pictures: list[Image.Image]) -> None:
    ours = ImagePreprocessor.from_config({"image_processor_type": "ViTImageProcessor"})
    batch = ours(pictures)
    assert batch.shape == (len(pictures), 3, 224, 224)
    np.testing.assert_array_equal(batch[2:3], ours(pictures[2:3]))
    grey = pictures[0].convert("L")
    np.testing.assert_array_equal(ours([grey]), ours([grey.convert("RGB")]))


def test_pictures_that_cannot_be_taken_say_so(pictures: list[Image.Image]) -> None:
    ours = ImagePreprocessor.from_config({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 32}})
    with pytest.raises(BadInput, match=r"different sizes \(32x32, 48x32\).*one at a time"):
        ours([pictures[0], pictures[2]])
    with pytest.raises(BadInput, match="1x200000 is too long and narrow"):
        ours([Image.new("RGB", (1, 200_000))])
    with pytest.raises(BadInput, match="no picture to classify"):
        ours([])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, r"SamImageProcessor is not supported.*ConvNext.*ViTImage"),
        ({}, "model type None is not supported"),
        ({"size": {"longest_edge": 100}}, r"size of \{'longest_edge': 100\} is not supported.*shortest_edge"),
        ({"size": {"height": 0, "width": 4}}, "is not supported"),
        ({"size": "224"}, "is not supported"),
        ({"crop_size": {"shortest_edge": 4}}, "crop_size of .* is not supported"),
        ({"do_center_crop": True}, "crop_size is missing"),
        ({"resample": 9}, "resample is 9"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"image_mean": [0.5]}, "image_mean is .*not three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is"),
        ({"do_pad": True}, "do_pad is not supported"),
        ({"image_processor_type": "ConvNextImageProcessor", "size": [9, 9]}, "takes a size of shortest_edge"),
    ],
)
def test_configs_that_are_not_supported_say_so(config: dict[str, Any], message: str) -> None:
    if config and "image_processor_type" not in config:
        config = {"image_processor_type": "ViTImageProcessor", **config}
    with pytest.raises(BadInput, match=message):
        ImagePreprocessor.from_config(config)
