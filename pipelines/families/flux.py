"""Flux: CLIP's pooled text and T5's states condition a transformer over packed latents; no classifier-free guidance.

The model dev is told the guidance that it was distilled with, schnell none; Fill sees a masked picture too. They are
called as by diffusers' FluxPipeline and FluxFillPipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.tensors import Array
from ...runtimes.base import Session
from ..prompt import PromptTokenizer
from ..settings import diffusion_settings
from .base import Conditioning, Config, FloatArray, Rows
from .clip import clip_rows
from .flow import FlowFamily
from .t5 import t5_notes, t5_rows

PATCH = 2  # latents a side that are one token
SIDE = 128  # of the latents that it was trained with; its config does not say it
DEV, SCHNELL = 512, 256  # tokens that T5 reads


class Flux(FlowFamily):
    """text_encoder (CLIP), text_encoder_2 (T5), transformer and vae_decoder; vae_encoder to start from a picture."""

    classes = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline")
    required = ("text_encoder", "text_encoder_2", "transformer", "vae_decoder")
    optional = ("vae_encoder",)
    steps = 28
    guidance = 3.5
    draws_to_fill = True

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        transformer = configs["transformer"]
        guided = bool(transformer.get("guidance_embeds"))
        settings = diffusion_settings(
            configs["vae"],
            scheduler,
            side=SIDE,
            multiple=PATCH,
            denoiser=int(transformer["in_channels"]) // PATCH**2,
            tokenizers=("tokenizer", "tokenizer_2"),
        )
        settings["text"] = {"tokens": DEV if guided else SCHNELL}
        settings["guidance_input"] = guided
        if settings["latents"]["denoiser"] > settings["latents"]["channels"]:
            return settings | {"tasks": ["inpaint"], "defaults": {"steps": 50, "guidance": 30.0}}
        return settings if guided else settings | {"defaults": {"steps": 4, "guidance": 0.0}}

    @classmethod
    def open_tokenizer(cls, folder: Path) -> PromptTokenizer:
        return PromptTokenizer.from_folder(folder, max_length=DEV if folder.name == "tokenizer_2" else None)

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(sessions, settings, root)
        files = settings["files"]
        self.told = bool(settings["guidance_input"])
        self.tokenizers["text_encoder"] = PromptTokenizer.from_folder(root / Path(files["tokenizer"]).parent)
        self.tokenizer_2 = PromptTokenizer.from_folder(
            root / Path(files["tokenizer_2"]).parent, max_length=int(settings["text"]["tokens"])
        )

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        _, pooled = clip_rows(
            self.sessions, "text_encoder", self.tokenizers["text_encoder"], prompts, pooled="pooler_output"
        )
        states = t5_rows(self.sessions, "text_encoder_2", self.tokenizer_2, prompts)
        rows: dict[str, Array] = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if self.told:
            rows["guidance"] = np.full(len(prompts), guidance, np.float32)
        return Conditioning(rows, notes=t5_notes(self.tokenizer_2, prompts))

    def denoiser_inputs(self, sample: FloatArray, timestep: float, rows: Rows) -> dict[str, Array]:
        texts = rows["encoder_hidden_states"].shape[1]
        return {
            self.sample: self.form(sample),
            "timestep": np.full(len(sample), np.float32(timestep) / np.float32(1000)),
            "img_ids": positions(sample.shape[2] // PATCH, sample.shape[3] // PATCH),
            "txt_ids": np.zeros((texts, 3), np.float32),
            **rows,
        }

    def form(self, latents: FloatArray) -> FloatArray:
        return packed(latents)

    def residual_behind(self, block: int, blocks: int, given: int) -> int:
        """Each for as many blocks, rounded up; as diffusers' FluxTransformer2DModel counts."""
        return block // -(-blocks // given)

    def prediction(self, outputs: Mapping[str, Array], sample: FloatArray) -> FloatArray:
        return unpacked(outputs[self.output].astype(np.float32, copy=False), sample.shape[2], sample.shape[3])

    def filling(self, mask: FloatArray, masked: FloatArray) -> FloatArray:
        """The masked picture, and the mask's pixels below each latent as channels: [n, channels + 64, h, w]."""
        n, _, height, width = masked.shape
        below = mask.reshape(n, height, mask.shape[2] // height, width, mask.shape[3] // width)
        pixels = below.transpose(0, 2, 4, 1, 3).reshape(n, -1, height, width)
        return np.concatenate([masked, pixels], axis=1)

    def sigmas(self, steps: int) -> FloatArray | None:
        if not isinstance(steps, int) or steps < 1:
            return None  # the scheduler refuses them
        return np.linspace(1.0, 1 / steps, steps, dtype=np.float32)

    def tokens(self, size: tuple[int, int]) -> int:
        return (size[0] // PATCH) * (size[1] // PATCH)


def packed(latents: FloatArray) -> FloatArray:
    """Squares of 2 by 2 as tokens: float32 [n, channels, h, w] to [n, h/2 * w/2, channels * 4], row by row."""
    n, channels, height, width = latents.shape
    squares = latents.reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    tokens: FloatArray = squares.transpose(0, 2, 4, 1, 3, 5).reshape(n, -1, channels * PATCH**2)
    return tokens


def unpacked(tokens: FloatArray, height: int, width: int) -> FloatArray:
    """What `packed` made, as float32 [n, channels, height, width] again."""
    squares = tokens.reshape(len(tokens), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    latents: FloatArray = squares.transpose(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)
    return latents


def positions(rows: int, columns: int) -> FloatArray:
    """Where each token of a picture lies: float32 [rows * columns, 3], of which the first is 0."""
    grid = np.zeros((rows, columns, 3), np.float32)
    grid[..., 1] = np.arange(rows, dtype=np.float32)[:, None]
    grid[..., 2] = np.arange(columns, dtype=np.float32)[None]
    return grid.reshape(-1, 3)
