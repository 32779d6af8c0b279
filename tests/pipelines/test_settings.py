"""What is read from a model's configs: in which size pictures come out, and which schedulers a model may name."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from vitrify.core.errors import BadInput
from vitrify.pipelines.families import pipeline_settings
from vitrify.pipelines.preprocess import ImagePreprocessor
from vitrify.pipelines.schedulers import EXCHANGEABLE_CLASSES, scheduler_from_config, scheduler_names
from vitrify.pipelines.settings import prepared_size

PREPROCESSING: list[dict[str, Any]] = [
    {"image_processor_type": "ViTImageProcessor"},
    {"image_processor_type": "ViTImageProcessor", "size": {"height": 40, "width": 60}},
    {"image_processor_type": "ViTImageProcessor", "do_resize": False},
    {"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 50}},
    {"image_processor_type": "DeiTImageProcessor"},
    {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False},
    {"image_processor_type": "ConvNextImageProcessor"},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 100}},
    {"image_processor_type": "BitImageProcessor"},
    {"image_processor_type": "BitImageProcessor", "do_center_crop": False},
    {"image_processor_type": "EfficientNetImageProcessor"},
]


@pytest.mark.parametrize("config", PREPROCESSING)
def test_the_size_of_prepared_pictures_is_known_before_there_is_one(config: dict[str, Any]) -> None:
    prepare = ImagePreprocessor.from_config(config)
    made = {prepare([Image.new("RGB", size)]).shape[2:] for size in ((90, 70), (70, 90), (300, 301))}
    known = prepared_size(config)
    assert made == {known} if known else len(made) > 1


CONFIGS: dict[str, Any] = {
    "unet": {"sample_size": 8, "block_out_channels": [8, 8], "in_channels": 4},
    "vae": {"block_out_channels": [8, 8], "latent_channels": 4},
}


@pytest.mark.parametrize("name", EXCHANGEABLE_CLASSES)
def test_a_scheduler_that_another_can_stand_in_for_is_kept(name: str) -> None:
    config = {"_class_name": name, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    settings = pipeline_settings("sd", CONFIGS, config | {"_diffusers_version": "0"}, {})
    assert settings["scheduler"] == config
    with pytest.raises(BadInput, match=rf"'{name}' is not supported\. Name one instead: ddim, euler"):
        scheduler_from_config(settings["scheduler"])
    for ours in set(scheduler_names(config)) - {"pndm"}:  # which needs an option that only its own models set
        scheduler_from_config(settings["scheduler"], ours)


@pytest.mark.parametrize(
    "config", [{"_class_name": "VQDiffusionScheduler"}, {}, {"_class_name": "DDPMScheduler", "prediction_type": "?"}]
)
def test_a_scheduler_that_none_can_stand_in_for_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        pipeline_settings("sd", CONFIGS, config, {})
