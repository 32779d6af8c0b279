"""Narrow twins: the same structure with a few channels, for proofs of graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NARROW = 128  # width of a transformer below which it needs no narrower twin


def attention_width(config: Mapping[str, Any]) -> int:
    """All heads of a transformer side by side."""
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def per_block(value: Any, blocks: int) -> list[int]:
    """A config's entry for each of `blocks` blocks, where one number stands for all of them."""
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)] * blocks


def narrow_channels(channels: Sequence[int], heads: Sequence[int], groups: int) -> list[int]:
    """Channels 16/min as wide, each a multiple of its heads and of `groups`; equal widths stay equal."""
    scale = 16 / min(channels)
    units = [math.lcm(h, groups) for h in heads]
    return [unit * math.ceil(c * scale / unit) for c, unit in zip(channels, units, strict=True)]


def are_alike(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether the same pairs are equal in both.

    A graph shares what it computes of equal sizes; a twin in which other sizes are equal has other operators.
    """
    pairs = [(i, j) for i in range(len(sizes)) for j in range(i)]
    return all((sizes[i] == sizes[j]) == (others[i] == others[j]) for i, j in pairs)


def first_alike(
    config: Mapping[str, Any], sizes: Callable[[Mapping[str, Any]], Sequence[int]], changes: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The config with the first of `changes` that leaves the same sizes equal; see `are_alike`.

    Raises:
        ValueError: none does.
    """
    own = sizes(config)
    for change in changes:
        if are_alike(own, sizes({**config, **change})):
            return {**config, **change}
    raise ValueError("sizes of which these are equal have no narrow twin")
