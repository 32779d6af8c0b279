"""Sana (Xie et al., arXiv 2410.10629) and Sana-Sprint: Gemma's states condition a linear transformer.

Where diffusers' SanaPipeline pads every prompt to 300 tokens, here each is encoded and attended to as long as it is:
the padding is masked out there, so the pictures are the same and a short prompt costs less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core.tensors import Array
from ...runtimes.base import Session
from ..settings import diffusion_settings
from .base import Conditioning, Config, FloatArray, Rows
from .flow import FlowFamily
from .gemma import GemmaTokenizer, gemma_states

MAX_TOKENS = 300  # of a prompt that the denoiser sees

# "Complex human instruction": what Sana was trained to read before a prompt (arXiv 2410.10629, section 2.3; its text is
# that of the authors' configs and of diffusers' SanaPipeline).
INSTRUCTION = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for "
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
        "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
        "skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    )
)


class Sana(FlowFamily):
    """text_encoder, transformer and vae_decoder; vae_encoder for tasks that start from a picture.

    instruction: stands before each prompt, but not before the negative one; "" for none. It is the manifest's, and a
    program may set it.

    Weights as in (red:1.3) are plain text to a language model. Sprint models take the guidance as an input: a step is
    one call whatever it is, and the negative prompt is not used.
    """

    classes = ("SanaPipeline", "SanaSprintPipeline", "SanaSprintImg2ImgPipeline")
    required = ("text_encoder", "transformer", "vae_decoder")
    optional = ("vae_encoder",)
    steps = 20
    guidance = 4.5

    @classmethod
    def describe(cls, configs: Mapping[str, Config], scheduler: Config, index: Config) -> dict[str, Any]:
        transformer = configs["transformer"]
        settings = diffusion_settings(
            configs["vae"],
            scheduler,
            side=int(transformer.get("sample_size") or 32),
            multiple=int(transformer.get("patch_size") or 1),
            denoiser=int(transformer["in_channels"]),
        )
        settings |= {"instruction": INSTRUCTION, "timestep_scale": float(transformer.get("timestep_scale") or 1.0)}
        if transformer.get("guidance_embeds"):
            # a Sprint model's scheduler gives the timesteps as the transformer wants them
            scale = float(transformer.get("guidance_embeds_scale", 0.1))
            settings |= {
                "guidance_embeds_scale": scale,
                "timestep_scale": 1.0,
                "defaults": {"steps": 2, "guidance": 4.5},
            }
        return settings

    @classmethod
    def open_tokenizer(cls, folder: Path) -> GemmaTokenizer:
        return GemmaTokenizer.from_folder(folder)

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        super().__init__(sessions, settings, root)
        self.tokenizer = self.open_tokenizer(root / Path(settings["files"]["tokenizer"]).parent)
        self.instruction = str(settings.get("instruction") or "")
        self._timestep_scale = float(settings.get("timestep_scale", 1.0))
        self._guidance_scale = float(settings.get("guidance_embeds_scale") or 0.0)

    def encode_prompt(
        self, prompts: Sequence[str], negative: str, size: tuple[int, int], guidance: float
    ) -> Conditioning:
        known = {p: self._states(p, self.instruction) for p in dict.fromkeys(prompts)}
        states, notes = [known[p] for p in prompts], self._notes(list(known), self.instruction)
        if self._guidance_scale:
            told = np.full(len(prompts), guidance * self._guidance_scale, dtype=np.float32)
            return Conditioning({**_padded(states, _longest(states)), "guidance": told}, notes=notes)
        if guidance <= 1:
            return Conditioning(_padded(states, _longest(states)), notes=notes)
        unwanted = self._states(negative, "")
        length = _longest([unwanted, *states])
        notes = (*notes, *self._notes([negative], ""))
        return Conditioning(_padded(states, length), _padded([unwanted] * len(prompts), length), notes)

    def denoiser_inputs(self, sample: FloatArray, timestep: float, rows: Rows) -> dict[str, Array]:
        return super().denoiser_inputs(sample, timestep * self._timestep_scale, rows)

    def prediction(self, outputs: Mapping[str, Array], sample: FloatArray) -> FloatArray:
        out = super().prediction(outputs, sample)
        return out[:, : sample.shape[1]]  # where variances were learned, they are the second half

    def _states(self, prompt: str, instruction: str) -> FloatArray:
        """What the denoiser sees of a prompt, float32 [tokens, dim]: the first token and those that are the prompt's.

        As `encode_prompt` of diffusers' SanaPipeline selects them: of the instruction its last token stays too.
        """
        text, limit = instruction + prompt.lower().strip(), self._limit(instruction)
        hidden = gemma_states(self.sessions, "text_encoder", self.tokenizer.ids(text, limit))
        return np.concatenate([hidden[:1], hidden[limit - MAX_TOKENS + 1 :]])

    def _limit(self, instruction: str) -> int:
        """How many tokens the encoder reads of a prompt with this before it."""
        return MAX_TOKENS + (len(self.tokenizer.ids(instruction)) - 2 if instruction else 0)

    def _notes(self, prompts: Sequence[str], instruction: str) -> tuple[str, ...]:
        """One line for each prompt that is not read to its end."""
        notes, limit = [], self._limit(instruction)
        for prompt in prompts:
            cut = len(self.tokenizer.ids(instruction + prompt.lower().strip())) - limit
            if cut > 0:
                notes.append(f"Gemma reads {MAX_TOKENS} tokens: the last {cut} of {prompt[:40]!r}... are left out")
        return tuple(notes)


def _longest(states: Sequence[FloatArray]) -> int:
    return max(len(one) for one in states)


def _padded(states: Sequence[FloatArray], length: int) -> dict[str, Array]:
    """One row a prompt, each `length` tokens; the mask says which are there."""
    hidden = np.zeros((len(states), length, states[0].shape[1]), dtype=np.float32)
    mask = np.zeros((len(states), length), dtype=np.int64)
    for row, one in enumerate(states):
        hidden[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
