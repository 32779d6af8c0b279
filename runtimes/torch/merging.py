"""Token merging in a UNet (Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", arXiv 2303.17604).

Self-attention costs the square of its tokens. Where a UNet has most of them, those that are most like another one are
averaged into it before self-attention, and get what it got after. Of each cell of 2x2 tokens one stays whatever it is
like, and the other three are candidates.

The paper draws the token that stays at random for each cell. Here it is the same corner in all cells of a block, and
another corner in the next block: a graph without random numbers, in which equal inputs give equal pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.transformers.transformer_2d import Transformer2DModel

_CORNERS = (0, 3, 1, 2)  # of a cell, row by row; of one block after the other
_LEAST = 1e-6  # of a token's length: of zeros there is no direction
_SIZE = "token_grid"  # the keyword by which a block hands (height, width) to its attentions

Tokens = torch.Tensor  # float32 [batch, tokens, channels]
Grid = tuple[int, int]  # height, width; even


class Merge:
    """Which tokens of a grid are merged into which.

    Args:
        tokens: [batch, height * width, channels], row by row.
        grid: both sides even.
        share: of all tokens, how many are merged; at most 3/4, for a quarter stays.
        corner: of each cell of 2x2, which token stays, 0 to 3, row by row.
    """

    def __init__(self, tokens: Tokens, grid: Grid, share: Fraction, corner: int) -> None:
        self._grid, self._corner = grid, corner
        self._batch = tokens.shape[0]
        self._cells = (grid[0] // 2) * (grid[1] // 2)
        self._gone = 4 * self._cells * share.numerator // share.denominator
        self._stay, self._rest = self._parted(tokens)
        scores = _directions(self._rest) @ _directions(self._stay).transpose(1, 2)  # [batch, 3 cells, cells]
        # those that are most like their partner first
        self._order = scores.amax(-1).argsort(-1, descending=True)
        self._partner = torch.gather(scores.argmax(-1), 1, self._order)[:, : self._gone]

    @property
    def _left(self) -> int:
        """How many candidates are not merged."""
        return 3 * self._cells - self._gone

    def merged(self) -> tuple[Tokens, torch.Tensor]:
        """The tokens [batch, tokens - those merged, channels], and of how many each is the average, float32 [batch, n].

        First come the candidates that are left, then the tokens that stay.
        """
        gone = _rows(self._rest, self._order[:, : self._gone])
        left = _rows(self._rest, self._order[:, self._gone :])
        # a product, for TensorRT has no scatter that adds; a column of ones beside the channels counts what is added up
        joins = self._partner.unsqueeze(1) == torch.arange(self._cells).unsqueeze(-1)
        total = _counted(self._stay) + joins.to(gone.dtype) @ _counted(gone)
        merged = torch.cat([_counted(left), total], 1)
        return merged[..., :-1] / merged[..., -1:], merged[..., -1]

    def restored(self, tokens: Tokens) -> Tokens:
        """What attention made of `merged()`, for every token of the grid: [batch, height * width, channels]."""
        left, batch = self._left, self._batch
        # where each candidate is found, in the order of `_order`
        found = torch.cat([self._partner + left, torch.arange(left).expand(batch, left)], 1)
        found = torch.zeros_like(found).scatter(1, self._order, found).reshape(batch, 3, self._cells)
        stay = torch.arange(self._cells).expand(batch, 1, self._cells) + left
        corner, (height, width) = self._corner, self._grid
        places = torch.cat([found[:, :corner], stay, found[:, corner:]], 1)
        places = places.reshape(batch, 2, 2, height // 2, width // 2).permute(0, 3, 1, 4, 2)
        return _rows(tokens, places.reshape(batch, height * width))

    def _parted(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """The tokens that stay [batch, cells, channels], and the candidates [batch, 3 cells, channels]."""
        batch, _, channels = tokens.shape
        (height, width), corner = self._grid, self._corner
        cells = tokens.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 2, 4, 1, 3, 5)
        cells = cells.reshape(batch, 4, self._cells, channels)
        rest = torch.cat([cells[:, :corner], cells[:, corner + 1 :]], 1)
        return cells[:, corner], rest.reshape(batch, 3 * self._cells, channels)


class MergedSelfAttention(AttnProcessor2_0):  # type: ignore[misc]  # the library's class has no types
    """diffusers' attention over merged tokens, for `Attention.set_processor`.

    A key counts for as many tokens as it stands for: exp(score + log n) = n exp(score), the "proportional attention" of
    Bolya et al., "Token Merging: Your ViT But Faster", arXiv 2210.09461. Without it a large plain surface, merged into
    a few tokens, loses its weight.
    """

    def __init__(self, share: Fraction, corner: int) -> None:
        super().__init__()
        self._share, self._corner = share, corner

    def __call__(
        self, attn: Attention, hidden_states: Tokens, *args: Any, token_grid: Grid | None = None, **kwargs: Any
    ) -> Tokens:
        assert token_grid is not None
        merge = Merge(hidden_states, token_grid, self._share, self._corner)
        merged, counts = merge.merged()
        kwargs["attention_mask"] = counts.log().unsqueeze(1)
        return merge.restored(super().__call__(attn, merged, *args, **kwargs))


class PlainAttention(AttnProcessor2_0):  # type: ignore[misc]  # the library's class has no types
    """diffusers' attention, told the grid like its neighbour and not minding it."""

    def __call__(
        self, attn: Attention, hidden_states: Tokens, *args: Any, token_grid: Grid | None = None, **kwargs: Any
    ) -> Tokens:
        attended: Tokens = super().__call__(attn, hidden_states, *args, **kwargs)
        return attended


def merge_tokens(unet: torch.nn.Module, ratio: float) -> torch.nn.Module:
    """A UNet2DConditionModel whose self-attentions at the highest resolution merge tokens; changed in place.

    Names and values of its parameters stay.

    Args:
        ratio: the share of the tokens that are merged, above 0 to 0.75.
    """
    share = Fraction(str(ratio))
    for number, (transformer, block) in enumerate(_blocks(unet)):
        block.attn1.set_processor(MergedSelfAttention(share, _CORNERS[number % len(_CORNERS)]))
        block.attn2.set_processor(PlainAttention())
        if block is transformer.transformer_blocks[0]:
            transformer.register_forward_pre_hook(_told_the_grid, with_kwargs=True)
    return unet


def _blocks(unet: Any) -> Iterator[tuple[Any, Any]]:
    """The transformer blocks of the first level that has any, down and up, each with what holds it."""
    levels = list(zip(unet.down_blocks, reversed(unet.up_blocks), strict=True))
    for level in levels:
        found = [t for side in level for t in getattr(side, "attentions", []) if isinstance(t, Transformer2DModel)]
        if found:
            yield from ((transformer, block) for transformer in found for block in transformer.transformer_blocks)
            return


def _told_the_grid(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A Transformer2DModel's call, with the height and width of what it is given among its attentions' keywords."""
    pixels = args[0] if args else kwargs["hidden_states"]
    told = {**(kwargs.get("cross_attention_kwargs") or {}), _SIZE: tuple(pixels.shape[-2:])}
    return args, {**kwargs, "cross_attention_kwargs": told}


def _directions(tokens: Tokens) -> Tokens:
    unit: Tokens = tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=_LEAST)
    return unit


def _counted(tokens: Tokens) -> Tokens:
    return torch.cat([tokens, torch.ones_like(tokens[..., :1])], -1)


def _rows(tokens: Tokens, index: torch.Tensor) -> Tokens:
    """Rows [batch, n] of each batch entry: a gather of whole rows, which runtimes copy as they lie."""
    batch, count, channels = tokens.shape
    flat = (index + torch.arange(batch).unsqueeze(1) * count).reshape(-1)
    found = torch.index_select(tokens.reshape(batch * count, channels), 0, flat)
    return found.reshape(batch, index.shape[1], channels)
