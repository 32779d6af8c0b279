"""What the denoising loop starts from: noise, a noised picture, or a picture of which a part is kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .autoencoder import Autoencoder
from .families.base import Family, FloatArray
from .pictures_in import Start, to_latents
from .random import Generator
from .schedulers import Scheduler


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps of a picture. All float32, of the latents' size.

    latents: the picture's, [n, channels, h, w]. noise: what they are noised with. mask: [n, 1, h, w], 1 is drawn anew.
    channels: mask and masked picture that an inpainting model sees beside the latents; None where the steps blend.
    """

    latents: FloatArray
    noise: FloatArray
    mask: FloatArray
    channels: FloatArray | None


def first_latents(
    given: Start | None,
    vae: Autoencoder,
    sampler: Scheduler,
    first: int,
    strength: float,
    shape: tuple[int, int, int, int],
    noise: Generator,
    family: Family,
    fills: bool,
) -> tuple[FloatArray, Kept | None]:
    """The latents that call `first` starts from, and what of a picture is kept.

    Numbers are drawn in the order of diffusers' pipelines.

    Args:
        given: the pictures; None for noise alone.
        shape: of the latents, [n, channels, h, w].
        family: says what an inpainting model sees.
        fills: whether the denoiser is an inpainting model.
    """
    scaled = np.float32(sampler.init_noise_sigma)
    if given is None:
        return (noise.normal(shape) * scaled).astype(np.float32), None
    if given.mask is None:
        clean = vae.encode(given.image, noise)
        return sampler.add_noise(clean, noise.normal(shape), first), None
    anew = strength == 1.0
    clean = np.zeros(shape, np.float32) if fills and anew else vae.encode(given.image, noise)
    if fills and anew and family.draws_to_fill:
        vae.draws(shape[2:], shape[0], noise)
    drawn = noise.normal(shape)
    latents = drawn * scaled if anew else sampler.add_noise(clean, drawn, first)
    mask = to_latents(given.mask, shape[2:])
    if not fills:
        vae.draws(shape[2:], shape[0], noise)
        return latents, Kept(clean, drawn, mask, None)
    masked = vae.encode(given.image * (given.mask < 0.5), noise)
    return latents, Kept(clean, drawn, mask, family.filling(given.mask, masked))


def blended(latents: FloatArray, kept: Kept, scheduler: Scheduler, index: int, total: int) -> FloatArray:
    """Outside of the mask, the picture's own latents, as noisy as call `index` wants them."""
    clean = kept.latents
    if index < total:
        clean = scheduler.add_noise(clean, kept.noise, index)
    mixed: FloatArray = (1 - kept.mask) * clean + kept.mask * latents
    return mixed
