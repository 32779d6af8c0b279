"""Stable Diffusion XL and its refiner: two CLIPs, their pooled text and the picture's sizes condition a UNet.

Podell et al., arXiv 2307.01952.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import BadArtifact, BadInput
from ...runtimes.base import Session
from ..prompt import PromptTokenizer
from .base import Conditioning, Config, Family, FloatArray, Rows
from .clip import clip_chunks, clip_rows
from .sd import guidance_rows, unet_settings

_ENCODERS = ("text_encoder", "text_encoder_2")
_TIME_IDS = 6  # original size, crop, size; of a refiner the last two are one aesthetic score
# what diffusers asks for, and what it asks to avoid; 1 to 10, as the refiner's training pictures were rated
_AESTHETIC, _NEGATIVE_AESTHETIC = 6.0, 2.5


class StableDiffusionXL(Family):
    """text_encoder_2 (CLIP with a projection), unet and vae_decoder; text_encoder, which refiners do not have.

    vae_encoder is for tasks that start from a picture. A model that was trained so gets zeros for an empty negative
    prompt, as diffusers gives it where there is none.
    """

    classes = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
    required = ("text_encoder_2", "unet", "vae_decoder")
    optional = ("text_encoder", "vae_encoder")
    guidance = 5.0

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        encoders = [name for name in _ENCODERS if name in configs]
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
        settings = unet_settings(configs, scheduler, side=128, tokenizers=tokenizers)
        rated = bool(index.get("requires_aesthetics_score", False))
        _check_time_ids(configs, rated)
        if rated:  # a refiner: its pictures come from another model
            settings["tasks"] = [task for task in settings["tasks"] if task != "text2img"]
        settings["text"] = {
            # the states before the last layer, of which there are one more than layers
            "states": {n: f"hidden_states.{int(configs[n].get('num_hidden_layers', 12)) - 1}" for n in encoders},
            "zeros": bool(index.get("force_zeros_for_empty_prompt", True)),
            "aesthetics": rated,
        }
        return settings

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(sessions, settings, root)
        text, files = settings["text"], settings["files"]
        self.states, self.zeros, self.aesthetics = dict(text["states"]), bool(text["zeros"]), bool(text["aesthetics"])
        missing = [name for name in self.states if name not in sessions]
        if missing or "text_encoder_2" not in self.states:
            raise BadArtifact(f"{root} has no {', '.join(missing) or 'text_encoder_2'}.", "Export the model again.")
        folders = {name: Path(files[name.replace("text_encoder", "tokenizer")]).parent for name in self.states}
        self.tokenizers = {name: PromptTokenizer.from_folder(root / folder) for name, folder in folders.items()}

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        count, told = len(prompts), guidance_rows(self.settings, guidance, len(prompts))
        guided = guidance > 1 and not told
        zeros = guided and not negative and self.zeros
        texts = [*([negative] * count if guided and not zeros else []), *prompts]
        states, pooled = self._encoded(texts)
        positive = self._rows(states[-count:], pooled[-count:], size, _AESTHETIC)
        if not guided:
            return Conditioning({**positive, **told})
        if zeros:
            states, pooled = np.zeros_like(states), np.zeros_like(pooled)
        return Conditioning(positive, self._rows(states[:count], pooled[:count], size, _NEGATIVE_AESTHETIC))

    def _encoded(self, texts: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """States of all encoders side by side, float32 [n, tokens, dim], and encoder 2's pooled text, [n, dim]."""
        chunks = clip_chunks(self.tokenizers.values(), texts)
        states, pooled = [], np.zeros((len(texts), 0), np.float32)
        for name, layer in self.states.items():
            second = "text_embeds" if name == "text_encoder_2" else None
            hidden, pooled = clip_rows(self.sessions, name, self.tokenizers[name], texts, layer, second, chunks)
            states.append(hidden)
        return np.concatenate(states, axis=2), pooled

    def _rows(self, states: FloatArray, pooled: FloatArray, size: tuple[int, int], score: float) -> Rows:
        """The denoiser's inputs; sizes as those of a picture that nothing was cropped off and that was not scaled."""
        last = (score,) if self.aesthetics else size
        sizes = np.asarray([*size, 0, 0, *last], np.float32)
        return {
            "encoder_hidden_states": states,
            "text_embeds": pooled,
            "time_ids": np.repeat(sizes[None], len(states), axis=0),
        }


def _check_time_ids(configs: Mapping[str, Config], rated: bool) -> None:
    """Refuse a UNet that takes another number of sizes than the pipeline would give it.

    Raises:
        BadInput: says both numbers.
    """
    unet = configs["unet"]
    width = int(unet["projection_class_embeddings_input_dim"]) - int(configs["text_encoder_2"]["projection_dim"])
    taken, given = width / int(unet["addition_time_embed_dim"]), _TIME_IDS - 1 if rated else _TIME_IDS
    if taken == given:
        return
    rating = taken in (_TIME_IDS - 1, _TIME_IDS)
    raise BadInput(
        f"The UNet takes {taken:g} numbers beside the pooled text; with requires_aesthetics_score={rated} it would "
        f"be given {given}.",
        f"Set requires_aesthetics_score in model_index.json to {str(not rated).lower()}."
        if rating
        else "Use another model.",
    )
