"""CLIP text encoders, shared by the families: with the states of every layer, and with a projection."""

from __future__ import annotations

from ...core.tensors import DType, TensorSpec
from ..spec import ComponentSpec, Config

F32 = DType.FLOAT32


def clip_text(name: str = "text_encoder", kind: str = "clip_text") -> ComponentSpec:
    """The spec of a CLIP text encoder.

    Args:
        name: of the component, and of its folder in the source.
        kind: clip_text gives last_hidden_state and pooler_output; clip_text_hidden also hidden_states.0 (the
            embeddings) to hidden_states.N (the last layer, before the final norm); clip_text_projection gives
            text_embeds (the pooled text, projected), last_hidden_state and the hidden states.
    """
    return ComponentSpec(
        name=name,
        kind=kind,
        folder=name,
        stem="model",
        library="transformers",
        inputs=_inputs,
        outputs=_OUTPUTS[kind],
        example=lambda c: {"batch": 3, "tokens": min(77, int(c.get("max_position_embeddings", 77)))},
        shapes=lambda c: {"batch": (1, 2, 16), "tokens": (1, 77, 77)},
        checks=lambda c: [{"batch": 1, "tokens": 77}, {"batch": 2, "tokens": 41}],
        narrow=_narrow,
        samples=lambda c: {"input_ids": [0, int(c.get("vocab_size", 49408)) - 1]},
    )


def _inputs(config: Config) -> dict[str, TensorSpec]:
    return {"input_ids": TensorSpec(DType.INT64, ("batch", "tokens"))}


def _states(config: Config) -> TensorSpec:
    return TensorSpec(F32, ("batch", "tokens", int(config["hidden_size"])))


def _layers(config: Config) -> dict[str, TensorSpec]:
    count = int(config.get("num_hidden_layers", 12)) + 1
    return {f"hidden_states.{layer}": _states(config) for layer in range(count)}


def _plain(config: Config) -> dict[str, TensorSpec]:
    pooled = TensorSpec(F32, ("batch", int(config["hidden_size"])))
    return {"last_hidden_state": _states(config), "pooler_output": pooled}


def _hidden(config: Config) -> dict[str, TensorSpec]:
    return _plain(config) | _layers(config)


def _projected(config: Config) -> dict[str, TensorSpec]:
    # Optimum's pipelines take an encoder's first output for the pooled text
    embeds = TensorSpec(F32, ("batch", int(config.get("projection_dim", 512))))
    return {"text_embeds": embeds, "last_hidden_state": _states(config), **_layers(config)}


def _narrow(config: Config) -> Config:
    heads = int(config.get("num_attention_heads", 12))
    return config | {"hidden_size": 2 * heads, "intermediate_size": 8 * heads, "projection_dim": 2 * heads}


_OUTPUTS = {"clip_text": _plain, "clip_text_hidden": _hidden, "clip_text_projection": _projected}
