"""Gemma 2 as a text encoder: its last hidden states."""

from __future__ import annotations

import math

from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config

_HEAD, _WINDOW = 8, 16  # of the twin
_WORDS = 1024  # of its vocabulary: how many rows a table has is not of the graph


def _inputs(config: Config) -> dict[str, TensorSpec]:
    tokens = TensorSpec(DType.INT64, ("batch", "tokens"))
    return {"input_ids": tokens, "attention_mask": tokens}


def _outputs(config: Config) -> dict[str, TensorSpec]:
    return {"last_hidden_state": TensorSpec(DType.FLOAT32, ("batch", "tokens", int(config["hidden_size"])))}


def _narrow(config: Config) -> Config:
    """All widths divided by one number, which leaves equal what is equal and heads of 8."""
    keys = ("hidden_size", "intermediate_size", "head_dim")
    widths = {key: int(config[key]) for key in keys}
    shrunk = math.gcd(*widths.values()) // _HEAD
    fits = shrunk > 1 and widths["hidden_size"] % (shrunk * int(config["num_attention_heads"])) == 0
    if fits and all(width % shrunk == 0 for width in widths.values()):
        widths = {key: width // shrunk for key, width in widths.items()}
    return config | {
        **widths,
        "query_pre_attn_scalar": widths["head_dim"],
        "vocab_size": min(_WORDS, int(config["vocab_size"])),
        # shorter than a check, so that the layers with a window are proved to have one
        "sliding_window": min(_WINDOW, int(config.get("sliding_window") or _WINDOW)),
    }


GEMMA2 = ComponentSpec(
    name="text_encoder",
    kind="gemma2_text",
    folder="text_encoder",
    stem="model",
    library="transformers",
    inputs=_inputs,
    outputs=_outputs,
    example=lambda c: {"batch": 3, "tokens": 37},
    shapes=lambda c: {"batch": (1, 1, 16), "tokens": (1, 300, 1024)},
    checks=lambda c: [{"batch": 1, "tokens": 9}, {"batch": 2, "tokens": 41}],
    narrow=_narrow,
    samples=lambda c: {"input_ids": [0, int(c["vocab_size"]) - 1], "attention_mask": [0, 1]},
)
