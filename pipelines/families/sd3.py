"""Stable Diffusion 3 and 3.5: two CLIPs and T5 condition a transformer (Esser et al., arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import BadInput
from ...runtimes.base import Session
from ..prompt import PromptTokenizer
from ..settings import diffusion_settings
from .base import Conditioning, Config, FloatArray
from .clip import clip_chunks, clip_rows
from .flow import FlowFamily
from .t5 import t5_notes, t5_rows

TOKENS = 256  # that T5 reads; diffusers' default
CLIPS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}


class StableDiffusion3(FlowFamily):
    """text_encoder and text_encoder_2 (CLIP with projections), transformer and vae_decoder.

    vae_encoder is for tasks that start from a picture. text_encoder_3 is T5: a model that was exported without it gets
    zeros in the place of its states, as in diffusers.
    """

    classes = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    required = ("text_encoder", "text_encoder_2", "transformer", "vae_decoder")
    optional = ("vae_encoder", "text_encoder_3")
    steps = 28
    guidance = 7.0

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        transformer = configs["transformer"]
        patch = int(transformer["patch_size"])
        tokenizers = ["tokenizer", "tokenizer_2", *(["tokenizer_3"] if "text_encoder_3" in configs else [])]
        settings = diffusion_settings(
            configs["vae"],
            scheduler,
            side=transformer.get("sample_size") or 128,
            multiple=patch,
            denoiser=int(transformer["in_channels"]),
            tokenizers=tokenizers,
        )
        settings["text"] = {
            "tokens": TOKENS,
            "width": int(transformer["joint_attention_dim"]),
            "t5": "text_encoder_3" in configs,
            # the states before the last layer, of which there are one more than layers
            "states": {n: f"hidden_states.{int(configs[n].get('num_hidden_layers', 12)) - 1}" for n in CLIPS},
        }
        # the table of positions that the pictures' are cut out of
        settings["latents"]["largest"] = int(transformer["pos_embed_max_size"]) * patch
        return settings

    @classmethod
    def open_tokenizer(cls, folder: Path) -> PromptTokenizer:
        return PromptTokenizer.from_folder(folder, max_length=TOKENS if folder.name == "tokenizer_3" else None)

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(sessions, settings, root)
        text, files, latents = settings["text"], settings["files"], settings["latents"]
        self.length, self.width, self.states = int(text["tokens"]), int(text["width"]), dict(text["states"])
        self.patch, self.largest = int(latents["multiple"]), int(latents["largest"]) * int(latents["scale"])
        self.tokenizers = {
            encoder: PromptTokenizer.from_folder(root / Path(files[name]).parent) for encoder, name in CLIPS.items()
        }
        self.tokenizer_3 = None
        if text["t5"]:
            folder = root / Path(files["tokenizer_3"]).parent
            self.tokenizer_3 = PromptTokenizer.from_folder(folder, max_length=self.length)

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        if max(size) > self.largest:
            raise BadInput(
                f"The picture is {size[1]}x{size[0]}; this model has positions for {self.largest} pixels a side.",
                f"Give {self.largest} or less.",
            )
        count = len(prompts)
        guided = guidance > 1
        texts = [*([negative] * count if guided else []), *prompts]
        states, pooled = self._clip(texts)
        rows = {"encoder_hidden_states": self._with_t5(states, texts), "pooled_projections": pooled}
        notes = () if self.tokenizer_3 is None else t5_notes(self.tokenizer_3, texts)
        if not guided:
            return Conditioning(rows, notes=notes)
        return Conditioning({n: v[count:] for n, v in rows.items()}, {n: v[:count] for n, v in rows.items()}, notes)

    def tokens(self, size: tuple[int, int]) -> int:
        return (size[0] // self.patch) * (size[1] // self.patch)

    def residual_behind(self, block: int, blocks: int, given: int) -> int:
        """Spread evenly over all blocks, of which the last takes none; as diffusers' SD3Transformer2DModel counts."""
        return int(block / ((blocks + 1) / given))

    def _clip(self, texts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """The states of both CLIPs side by side, [n, tokens, dim + dim_2], and their pooled texts, [n, dim + dim_2]."""
        chunks = clip_chunks(self.tokenizers.values(), texts)
        found = [
            clip_rows(self.sessions, name, tokenizer, texts, self.states[name], "text_embeds", chunks)
            for name, tokenizer in self.tokenizers.items()
        ]
        return np.concatenate([s for s, _ in found], axis=2), np.concatenate([p for _, p in found], axis=1)

    def _with_t5(self, states: FloatArray, texts: Sequence[str]) -> FloatArray:
        """CLIP's states, filled up with zeros to the transformer's width, and after them those of T5."""
        filled = np.pad(states, ((0, 0), (0, 0), (0, self.width - states.shape[2])))
        if self.tokenizer_3 is None:
            more = np.zeros((len(texts), self.length, self.width), np.float32)
        else:
            more = t5_rows(self.sessions, "text_encoder_3", self.tokenizer_3, texts)
        return np.concatenate([filled, more], axis=1)
