"""What a LoRA looks made for and what a model is, for messages: read from names and the sizes of text attention."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...core.artifact import Component
from ...runtimes.stored import stored_weights
from ..settings import DENOISERS
from .files import Lora
from .keys import owners, spelled

# the width of the text states that the UNet attends to
_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
_TEXT = re.compile(r"attn2_to_[kv]$")
# spelled names that only one architecture has, the most specific first
_MARKS = (
    (re.compile(r"^(double_blocks|single_blocks|single_transformer_blocks)_\d"), "Flux"),
    (re.compile(r"^joint_blocks_\d|^transformer_blocks_\d+_(attn_add_[qkv]_proj|norm1_context|ff_context)"),
     "Stable Diffusion 3"),
    (re.compile(r"^transformer_blocks_\d+_(ff_conv|attn2_to_[qkv])"), "Sana"),
    (re.compile(r"^(input|output)_blocks_\d|^middle_block_\d|^(down|up)_blocks_\d|^mid_block_"), "a UNet"),
)  # fmt: skip


def describe_lora(lora: Lora) -> str:
    """Such as "It looks made for Stable Diffusion XL"."""
    layers = {owners(name)[1]: layer.sizes[1] for name, layer in lora.layers.items()}
    made = _architecture(layers)
    if made == "" and all(owners(name)[0] != DENOISERS for name in lora.layers):
        made = "a text encoder alone"
    return f"It looks made for {made}" if made else "Its names are of no model that is known"


def describe_components(components: Mapping[str, Component]) -> str:
    """Such as "this model is Stable Diffusion 1.x"."""
    for name in DENOISERS:
        if name not in components:
            continue
        layers = {spelled(weight.removesuffix(".weight")): 0 for weight in stored_weights(components[name])}
        made = _architecture(layers)
        if made == "a UNet":
            given = components[name].inputs.get("encoder_hidden_states")
            width = None if given is None else given.shape[-1]
            made = _WIDTHS.get(width, made) if isinstance(width, int) else made
        return f"this model is {made}" if made else f"this model's {name} is another one"
    return f"this model has {', '.join(components)}"


def _architecture(layers: Mapping[str, int]) -> str:
    """The model with layers of these names; each with its number of inputs."""
    made = next((model for pattern, model in _MARKS if _any(pattern, layers)), "")
    if made != "a UNet":
        return made
    widths = [inputs for name, inputs in layers.items() if _TEXT.search(name)]
    return _WIDTHS.get(widths[0], made) if widths else made


def _any(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return any(pattern.search(name) for name in names)
