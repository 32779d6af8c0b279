"""Stable Diffusion 1.x and 2.x: CLIP's states condition a UNet; inpainting models take nine channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...runtimes.base import Session
from ..prompt import PromptTokenizer
from ..settings import diffusion_settings
from .base import Conditioning, Config, Family, FloatArray
from .clip import clip_rows

# of latent consistency models: what LatentConsistencyModelPipeline of diffusers draws with
LCM_DEFAULTS = {"steps": 4, "guidance": 8.5}


class StableDiffusion(Family):
    """text_encoder, unet and vae_decoder; vae_encoder for tasks that start from a picture."""

    classes = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
    )
    required = ("text_encoder", "unet", "vae_decoder")
    optional = ("vae_encoder",)

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        return unet_settings(configs, scheduler, side=64)

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(sessions, settings, root)
        folder = root / Path(settings["files"]["tokenizer"]).parent
        self.tokenizers["text_encoder"] = PromptTokenizer.from_folder(folder)

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        count, told = len(prompts), guidance_rows(self.settings, guidance, len(prompts))
        guided = guidance > 1 and not told
        texts = [*([negative] * count if guided else []), *prompts]
        states, _ = clip_rows(self.sessions, "text_encoder", self.tokenizers["text_encoder"], texts)
        name = "encoder_hidden_states"
        if not guided:
            return Conditioning({name: states, **told})
        return Conditioning({name: states[count:]}, {name: states[:count]})


def unet_settings(
    configs: Mapping[str, Config], scheduler: Config, *, side: int, tokenizers: Sequence[str] = ("tokenizer",)
) -> dict[str, Any]:
    """`diffusion_settings` of a model with a UNet.

    Args:
        side: of the latents, where the UNet's config names none.
    """
    unet = configs["unet"]
    settings = diffusion_settings(
        configs["vae"],
        scheduler,
        side=unet.get("sample_size") or side,
        multiple=2 ** (len(unet["block_out_channels"]) - 1),
        denoiser=int(unet["in_channels"]),
        tokenizers=tokenizers,
    )
    if unet.get("time_cond_proj_dim"):
        settings |= {"guidance_input": int(unet["time_cond_proj_dim"]), "defaults": dict(LCM_DEFAULTS)}
    return settings


def guidance_rows(settings: Mapping[str, Any], guidance: float, count: int) -> dict[str, FloatArray]:
    """What a latent consistency model is told in place of a second call, `timestep_cond`: float32 [count, length].

    Nothing for models that take none.
    """
    length = int(settings.get("guidance_input") or 0)
    if not length:
        return {}
    return {"timestep_cond": np.repeat(guidance_embedding(guidance - 1, length)[None], count, axis=0)}


def guidance_embedding(guidance: float, length: int) -> FloatArray:
    """Sinusoids of the guidance scale, float32 [length]: half sines, half cosines (Luo et al., arXiv 2310.04378).

    As `get_guidance_scale_embedding` of diffusers' LatentConsistencyModelPipeline, in float32: of a phase of thousands
    little is exact.
    """
    half = length // 2
    step = np.log(np.float32(10000)) / np.float32(half - 1)
    angles = np.float32(guidance) * np.float32(1000) * np.exp(np.arange(half, dtype=np.float32) * -step)
    waves: FloatArray = np.concatenate([np.sin(angles), np.cos(angles)]).astype(np.float32)
    return np.pad(waves, (0, length % 2))
