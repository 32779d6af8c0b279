"""Which component a LoRA's layer is for, by what its name begins with, and the rest of the name in one spelling.

Trainers write dots, underscores or both, so both sides are compared with underscores alone.
"""

from __future__ import annotations

import re

from ..settings import DENOISERS

_ENCODER = ("text_encoder",)
_SECOND = ("text_encoder_2",)
_T5 = ("text_encoder_3", "text_encoder_2")  # Stable Diffusion 3 has it third, Flux second

# the longest first: one may begin with another
_PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("lora_unet_", DENOISERS),
    ("lora_transformer_", DENOISERS),
    ("lora_te1_", _ENCODER),
    ("lora_te2_", _SECOND),
    ("lora_te3_", _T5),
    ("lora_te_", _ENCODER),
    ("base_model.model.", (*DENOISERS, *_ENCODER, *_SECOND)),
    ("model.diffusion_model.", DENOISERS),
    ("diffusion_model.", DENOISERS),
    ("text_encoders.clip_l.transformer.", _ENCODER),
    ("text_encoders.clip_g.transformer.", _SECOND),
    ("text_encoders.t5xxl.transformer.", _T5),
    ("unet.", DENOISERS),
    ("transformer.", DENOISERS),
    ("text_encoder.", _ENCODER),
    ("text_encoder_2.", _SECOND),
    ("text_encoder_3.", ("text_encoder_3",)),
)
# attention in diffusers before its 0.17, and what its own layout makes of it
_OLD = (
    (re.compile(r"_processor_"), "_"),
    (re.compile(r"(self_attn)_to_([qkv]|out)$"), r"\1_\2_proj"),
    (re.compile(r"(attn\d?)_to_out$"), r"\1_to_out_0"),
)


def owners(name: str) -> tuple[tuple[str, ...], str]:
    """(components that the layer may belong to, the rest of its name with underscores)."""
    for prefix, components in _PREFIXES:
        if name.startswith(prefix):
            return components, spelled(name.removeprefix(prefix))
    return (*DENOISERS, *_ENCODER), spelled(name)


def spelled(layer: str) -> str:
    """A layer's name as it is compared: underscores for dots, without the prefix that only some CLIPs have."""
    name = layer.replace(".", "_").removeprefix("text_model_")
    for pattern, new in _OLD:
        name = pattern.sub(new, name)
    return name
