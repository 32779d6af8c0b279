"""Image classifiers of transformers: ViT, DeiT, Swin, ConvNeXt."""

from __future__ import annotations

from ...core.tensors import DType, TensorSpec
from ...pipelines.settings import labels_of
from ..spec import ComponentSpec, Config

MODEL_TYPES = ("vit", "deit", "swin", "convnext")


def image_size(config: Config) -> tuple[int, int]:
    """(height, width) that the model was trained at; 224 where the config leaves it open."""
    size = config.get("image_size") or 224
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _inputs(config: Config) -> dict[str, TensorSpec]:
    return {
        "pixel_values": TensorSpec(DType.FLOAT32, ("batch", int(config.get("num_channels", 3)), *image_size(config)))
    }


def _outputs(config: Config) -> dict[str, TensorSpec]:
    return {"logits": TensorSpec(DType.FLOAT32, ("batch", len(labels_of(config))))}


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
        example=lambda c: {"batch": 3},
        shapes=lambda c: {"batch": (1, 1, 64)},
        checks=lambda c: [{"batch": 1}, {"batch": 5}],
        narrow=_narrow,
    ),
)
