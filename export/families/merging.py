"""UNets that merge tokens before self-attention where they have most of them; see runtimes/torch/merging.py."""

from __future__ import annotations

import math
from dataclasses import replace

from ...core.errors import BadInput, UsageError
from ..spec import ComponentSpec, Config

MOST = 0.75  # of each cell of four tokens one stays
_MARK = ":tome="
_LEAVE_OUT = "Leave --tome out."


def check_ratio(ratio: float) -> None:
    """Refuse a share of tokens that cannot be merged.

    Raises:
        UsageError: it is not within 0 to 0.75.
    """
    if not (math.isfinite(ratio) and 0 <= ratio <= MOST):
        raise UsageError(
            f"--tome {ratio:g} is not from 0 to {MOST}.",
            "Of four tokens one stays; give 0.5, as the paper does.",
        )


def with_merging(spec: ComponentSpec, ratio: float) -> ComponentSpec:
    """The UNet's spec with `ratio` of its tokens merged, in thousandths; 0 leaves it as it is.

    Its inputs, outputs and the names of its weights stay.

    Raises:
        UsageError: the ratio is not within 0 to 0.75.
    """
    check_ratio(ratio)
    rounded = round(ratio, 3)
    return replace(spec, kind=f"{spec.kind}{_MARK}{rounded}") if rounded else spec


def ratio_of(kind: object) -> float:
    """The share of tokens that a component of this kind merges; 0 for one that merges none."""
    _, mark, value = str(kind).partition(_MARK)
    return float(value) if mark else 0.0


def check_merges(given: str, config: Config) -> None:
    """Refuse a UNet whose tokens do not come in cells of 2x2 where it has most of them.

    Args:
        given: the model, as the user named it. config: its UNet's.

    Raises:
        BadInput: it attends nowhere, or only where the sizes may be odd; or its blocks are of other kinds.
    """
    down, up = list(config["down_block_types"]), list(reversed(config["up_block_types"]))
    level = next((number for number, kind in enumerate(down) if kind.startswith("CrossAttn")), None)
    only = config.get("only_cross_attention")
    if level is None or not up[level].startswith("CrossAttn") or config.get("dual_cross_attention") or _any(only):
        raise BadInput(f"{given}: its UNet has no self-attention over pixels that could be merged.", _LEAVE_OUT)
    if level == len(down) - 1:
        raise BadInput(
            f"{given}: its UNet attends at its smallest size alone, whose sides may be odd; cells of tokens are 2x2.",
            _LEAVE_OUT,
        )


def _any(value: object) -> bool:
    return any(value) if isinstance(value, list | tuple) else bool(value)
