"""Image classifiers of transformers: ViT, DeiT, Swin, ConvNeXt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ...pipelines.settings import labels_of, prepared_size
from ..spec import ComponentSpec, Config

MODEL_TYPES = ("vit", "deit", "swin", "convnext")
ANY_SIZE = ("convnext",)  # no position embeddings and no windows: pictures of every size


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) that the model was trained at; 224 where the config leaves it open."""
    size = config.get("image_size") or 224
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def check_size(given: str, config: Config, preprocess: Mapping[str, Any]) -> None:
    """Refuse a classifier whose pictures are prepared in another size than its graph takes.

    Raises:
        BadInput: says both sizes.
    """
    if config["model_type"] in ANY_SIZE:
        return
    wanted, made = image_size(config), prepared_size(preprocess)
    if made == wanted:
        return
    height, width = wanted
    size = f'{{"height": {height}, "width": {width}}}'
    what = f"sized {made[1]}x{made[0]}" if made else "in sizes that follow from their own"
    raise BadInput(
        f"{given} takes pictures of {width}x{height} (image_size in config.json), but preprocessor_config.json makes "
        f"them {what}.",
        f'Set "size" in preprocessor_config.json to {size} (where "do_center_crop" is set, "crop_size"), or take the '
        "file from the model's page.",
    )


def _unit(config: Config) -> int:
    """Pixels along one side for one place of ConvNeXt's last stage: the patches, halved once a further stage."""
    stages = len(config.get("depths") or (3, 3, 9, 3))
    return int(config.get("patch_size", 4)) << (stages - 1)


def _inputs(config: Config) -> dict[str, TensorSpec]:
    sides: tuple[int | str, ...] = ("height", "width") if config["model_type"] in ANY_SIZE else image_size(config)
    return {"pixel_values": TensorSpec(DType.FLOAT32, ("batch", int(config.get("num_channels", 3)), *sides))}


def _outputs(config: Config) -> dict[str, TensorSpec]:
    return {"logits": TensorSpec(DType.FLOAT32, ("batch", len(labels_of(config))))}


def _example(config: Config) -> dict[str, int]:
    if config["model_type"] not in ANY_SIZE:
        return {"batch": 3}
    unit = _unit(config)
    return {"batch": 3, "height": 3 * unit + 7, "width": 5 * unit + 3}


def _shapes(config: Config) -> dict[str, tuple[int, int, int]]:
    shapes = {"batch": (1, 1, 64)}
    if config["model_type"] in ANY_SIZE:
        for name, side in zip(("height", "width"), image_size(config), strict=True):
            shapes[name] = (min(side, _unit(config)), side, max(2 * side, 1024))
    return shapes


def _checks(config: Config) -> list[dict[str, int]]:
    if config["model_type"] not in ANY_SIZE:
        return [{"batch": 1}, {"batch": 5}]
    unit = _unit(config)
    # the second is no multiple of the strides: the convolutions leave a border out
    return [
        {"batch": 1, "height": 2 * unit, "width": 4 * unit},
        {"batch": 5, "height": 4 * unit + 1, "width": 2 * unit + 5},
    ]


def _narrow(config: Config) -> Config:
    kind = config["model_type"]
    if kind == "convnext":
        return config | {
            "hidden_sizes": [max(8, int(c) // 12) for c in config.get("hidden_sizes") or (96, 192, 384, 768)]
        }
    if kind == "swin":
        heads = config.get("num_heads") or (3, 6, 12, 24)
        return config | {"embed_dim": 4 * int(heads[0])}
    heads = int(config.get("num_attention_heads", 12))
    return config | {"hidden_size": 4 * heads, "intermediate_size": 16 * heads}


CLASSIFIER = (
    ComponentSpec(
        name="model",
        kind="image_classifier",
        folder="",
        stem="model",
        library="transformers",
        inputs=_inputs,
        outputs=_outputs,
        example=_example,
        shapes=_shapes,
        checks=_checks,
        narrow=_narrow,
    ),
)
