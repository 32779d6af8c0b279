"""What the transformers trained by flow matching have in common: SD3, Flux, Sana."""

from __future__ import annotations

from .base import Family


class FlowFamily(Family):
    """A family whose denoiser is a transformer, with the tensor names that Optimum gives it."""

    denoiser = "transformer"
    sample = "hidden_states"
    output = "out_hidden_states"

    @classmethod
    def skipped_steps(cls, steps: int, strength: float) -> int:
        """As `get_timesteps` of diffusers' StableDiffusion3Img2ImgPipeline: what is skipped is rounded down, not what
        is done."""
        return int(max(steps - min(steps * strength, steps), 0))
