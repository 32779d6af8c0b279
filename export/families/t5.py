"""T5's encoder, which reads the prompts of SD3 and Flux."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config
from .narrow import first_alike

_NARROW = 256  # width below which an encoder needs no narrower twin


def t5_encoder(name: str, *, optional: bool = False) -> ComponentSpec:
    """The spec of a T5 encoder.

    Args:
        name: of the component, and of its folder in the source.
        optional: a pipeline may come without it.
    """
    return ComponentSpec(
        name=name,
        kind="t5_encoder",
        folder=name,
        stem="model",
        library="transformers",
        inputs=_inputs,
        outputs=_outputs,
        example=lambda c: {"batch": 3, "tokens": 41},
        shapes=lambda c: {"batch": (1, 2, 16), "tokens": (1, 256, 512)},
        # beyond the distance from which on all positions share one bias
        checks=lambda c: [{"batch": 1, "tokens": 2 * _distance(c)}, {"batch": 2, "tokens": 77}],
        narrow=_narrow,
        optional=optional,
        samples=lambda c: {"input_ids": [0, int(c["vocab_size"]) - 1]},
    )


def _inputs(config: Config) -> dict[str, TensorSpec]:
    return {"input_ids": TensorSpec(DType.INT64, ("batch", "tokens"))}


def _outputs(config: Config) -> dict[str, TensorSpec]:
    return {"last_hidden_state": TensorSpec(DType.FLOAT32, ("batch", "tokens", int(config["d_model"])))}


def _distance(config: Config) -> int:
    return int(config.get("relative_attention_max_distance", 128))


def _narrow(config: Config) -> Config:
    """A few heads; an encoder that is narrow already is its own twin."""
    if max(_sizes(config)) <= _NARROW:
        return config
    changes = (
        {"num_heads": heads, "d_kv": width, "d_model": model, "d_ff": inner}
        for heads, width, model, inner in product((2, 4), (8, 4), (16, 24), (40, 16, 24))
    )
    return first_alike(config, _sizes, changes)


def _sizes(config: Mapping[str, Any]) -> list[int]:
    heads, width = int(config["num_heads"]), int(config["d_kv"])
    return [heads, width, heads * width, int(config["d_model"]), int(config["d_ff"])]
