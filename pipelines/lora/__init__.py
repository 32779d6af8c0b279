"""LoRAs at load time: files to changed weights, on any artifact, and back again by opening it without them."""

from __future__ import annotations

from .changes import Changes, LoraUse, lora_overrides
from .files import Lora, LoraLayer, read_lora
from .tags import find_lora, lora_paths, split_loras

__all__ = [
    "Changes",
    "Lora",
    "LoraLayer",
    "LoraUse",
    "find_lora",
    "lora_overrides",
    "lora_paths",
    "read_lora",
    "split_loras",
]
