"""Prompts to pictures with Stable Diffusion 1.x and 2.x: encode the prompt, make noise, denoise, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadArtifact, BadInput, Cancelled, NotFinite, UsageError
from ..runtimes.base import Session
from .images import to_uint8
from .prompt import PromptTokenizer, PromptTokens, apply_weights, join_chunks, pad_chunks
from .random import Generator, generator, random_seed
from .schedulers import Scheduler, scheduler_from_config

FloatArray = npt.NDArray[np.float32]
MAX_SIDE = 4096
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Step:
    """One denoising step that is done. number: from 1. latents: float32 [batch, channels, h, w], after the step."""

    number: int
    total: int
    timestep: float
    latents: FloatArray


@dataclass(frozen=True)
class GenerateResult:
    """Pictures, and everything needed to make them again.

    parameters: one table a picture. timings: seconds a stage; "steps" holds one number a step.
    """

    images: list[Image.Image]
    seed: int
    parameters: list[dict[str, Any]]
    timings: dict[str, Any]
    placement: dict[str, dict[str, str]] = field(default_factory=dict)


class _Batch:
    """One stream of random numbers a picture, so that each is the same alone and in a batch."""

    def __init__(self, streams: Sequence[Generator]) -> None:
        self._streams = streams

    def normal(self, shape: Sequence[int]) -> FloatArray:
        return np.concatenate([stream.normal((1, *shape[1:])) for stream in self._streams])


class TextToImagePipeline:
    """The sessions text_encoder, unet and vae_decoder with a tokenizer and a scheduler.

    Args:
        settings: the manifest's `pipeline` part.
        root: the artifact's folder, for the tokenizer.

    Raises:
        BadInput: the tokenizer's files are missing or damaged.
        BadArtifact: the settings hold a number that makes no sense.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions = sessions
        self.settings = settings
        self.tokenizer = PromptTokenizer.from_folder(root / Path(settings["files"]["tokenizer"]).parent)
        latents, vae = settings["latents"], settings["vae"]
        self.scale, self.channels = int(latents["scale"]), int(latents["channels"])
        # the UNet halves the latents several times, and its graph joins them again at the very same sizes
        self.unit = self.scale * int(latents.get("multiple", 1))
        self.height, self.width = (int(side) for side in settings["size"])
        self.scaling, self.shift = float(vae["scaling_factor"]), float(vae["shift_factor"])
        self.scheduler = dict(settings["scheduler"])
        if min(self.scale, self.channels, self.unit, self.height, self.width) < 1 or not self.scaling:
            raise BadArtifact(f"The manifest of {root} has a size or a factor below 1.", "Export the model again.")

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it."""
        return {n: s.placement.to_json() for n, s in self.sessions.items()}

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        seed: int | Sequence[int] | None = None,
        scheduler: str | None = None,
        batch: int = 1,
        rng: str = "cpu",
        on_step: Callable[[Step], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> GenerateResult:
        """Draw `batch` pictures of each prompt.

        Picture i gets the seed `seed + i`, as diffusers does with a list of generators; so it can be made again alone.

        Args:
            prompt: text, with weights as (red:1.3); longer than the encoder takes, it is encoded in chunks.
            width, height: pixels; None for the model's own size.
            guidance: of classifier-free guidance; at 1 or less the negative prompt is not used and a step costs half.
            steps: from 1 to as many as the model was trained with.
            seed: from 0 to 2**64 - 1; None draws one. Several: one a picture, in the order of the pictures.
            scheduler: one of `scheduler_names()`; None for the model's own.
            rng: "cpu" gives torch's CPU numbers, "philox" those of CUDA.
            on_step: is told of each step that is done.
            cancel: asked before each step.

        Raises:
            BadInput: a size that the VAE cannot divide, no prompt, steps or a seed out of range, an unknown scheduler.
            UsageError: a number that makes no sense.
            Cancelled: `cancel` said so.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        height, width = self._size(height, width)
        if not prompts:
            raise BadInput("There is no prompt.", "Give at least one.")
        if batch < 1 or not np.isfinite(guidance):
            raise UsageError(f"batch is {batch} and guidance {guidance}.", "Give a batch of 1 or more and a number.")
        prompts = [p for p in prompts for _ in range(batch)]
        seeds = _seeds(seed, len(prompts))
        sampler = scheduler_from_config(self.scheduler, scheduler)
        sampler.set_timesteps(steps)
        streams = _Batch([generator(rng, one) for one in seeds])

        start = time.perf_counter()
        text = self.encode_prompt(prompts, negative_prompt if guidance > 1 else None)
        encoded = time.perf_counter()
        shape = (len(prompts), self.channels, height // self.scale, width // self.scale)
        latents = (streams.normal(shape) * np.float32(sampler.init_noise_sigma)).astype(np.float32)
        seconds = []
        before = time.perf_counter()
        for step in self.denoise(latents, text, sampler, guidance, streams, cancel):
            seconds.append(time.perf_counter() - before)
            latents = step.latents
            if on_step is not None:
                on_step(step)
            before = time.perf_counter()
        started = time.perf_counter()
        images = self.decode(latents)
        done = time.perf_counter()

        common = {"negative_prompt": negative_prompt, "width": width, "height": height, "steps": steps}
        common |= {"guidance": guidance, "scheduler": sampler.name, "rng": rng}
        tables = [{"prompt": p, "seed": one, **common} for p, one in zip(prompts, seeds, strict=True)]
        timings = {"encode": encoded - start, "steps": seconds, "decode": done - started, "total": done - start}
        return GenerateResult(images, seeds[0], tables, timings, self.placement)

    def encode_prompt(self, prompts: Sequence[str], negative: str | None) -> FloatArray:
        """Text embeddings, float32 [n, tokens, dim]; with a negative prompt [2n, ...], the negative ones first."""
        cache: dict[str, PromptTokens] = {}
        rows = [cache.setdefault(p, self.tokenizer.encode(p)) for p in prompts]
        if negative is not None:
            refusal = self.tokenizer.encode(negative)
            rows = [refusal] * len(prompts) + rows
        longest = max(rows, key=lambda r: len(r.ids))
        hidden: dict[int, FloatArray] = {}
        out = []
        for row in rows:
            if id(row) not in hidden:
                tokens = pad_chunks(row, longest, self.tokenizer)[0]
                ids = tokens.ids.astype(self.sessions["text_encoder"].inputs["input_ids"].dtype.value)
                states = self.sessions["text_encoder"].run({"input_ids": ids})["last_hidden_state"].astype(np.float32)
                _finite("text_encoder", states, "of a prompt")
                hidden[id(row)] = join_chunks(apply_weights(states, tokens.weights))
            out.append(hidden[id(row)])
        return np.concatenate(out)

    def denoise(
        self,
        latents: FloatArray,
        text: FloatArray,
        scheduler: Scheduler,
        guidance: float,
        noise: Generator,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[Step]:
        """The loop, one `Step` at a time. latents: float32 [n, channels, h, w], scaled by `init_noise_sigma`.

        Guidance (Ho and Salimans, 2022): out = negative + guidance * (positive - negative).
        """
        unet = self.sessions["unet"]
        spec = {name: tensor.dtype.value for name, tensor in unet.inputs.items()}
        rank = len(unet.inputs["timestep"].shape)
        guided = len(text) == 2 * len(latents)
        text = text.astype(spec["encoder_hidden_states"], copy=False)
        total = len(scheduler.timesteps)
        for index, timestep in enumerate(scheduler.timesteps):
            if cancel is not None and cancel():
                raise Cancelled(f"Stopped before step {index + 1} of {total}.", "Run it again.")
            scaled = scheduler.scale_model_input(latents, index)
            sample = np.concatenate([scaled, scaled]) if guided else scaled
            # graphs written by others may want the timestep as [1] or [batch]
            when = np.asarray(timestep, dtype=spec["timestep"])
            if rank:
                size = unet.inputs["timestep"].shape[0]
                when = np.full((size if isinstance(size, int) else len(sample),), when, dtype=spec["timestep"])
            given = {"sample": sample.astype(spec["sample"], copy=False), "timestep": when}
            out = unet.run(given | {"encoder_hidden_states": text})["out_sample"].astype(np.float32, copy=False)
            _finite("unet", out, f"at step {index + 1} of {total}")
            if guided:
                negative, positive = np.split(out, 2)
                out = negative + np.float32(guidance) * (positive - negative)
            latents = scheduler.step(out, index, latents, noise)
            yield Step(index + 1, total, float(timestep), latents)

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """Latents, float32 [n, channels, h, w], to pictures; one at a time, for the VAE needs the most memory."""
        latents = latents / np.float32(self.scaling) + np.float32(self.shift)
        decoder = self.sessions["vae_decoder"]
        dtype = decoder.inputs["latent_sample"].dtype.value
        out = []
        for one in latents:
            picture = decoder.run({"latent_sample": one[None].astype(dtype)})["sample"].astype(np.float32)
            _finite("vae_decoder", picture, "instead of a picture")
            out.append(Image.fromarray(to_uint8(picture)[0]))
        return out

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        height = self.height if height is None else height
        width = self.width if width is None else width
        unit = self.unit
        for name, side in (("height", height), ("width", width)):
            if not isinstance(side, int):
                raise BadInput(f"The {name} is {side!r}, not a whole number.", f"Give a multiple of {unit}.")
            if side > MAX_SIDE:
                raise BadInput(f"The {name} is {side}; at most {MAX_SIDE} is taken.", f"Give {MAX_SIDE} or less.")
            if side < unit or side % unit:
                near = max(unit, round(side / unit) * unit)
                raise BadInput(f"The {name} is {side}, not a multiple of {unit}.", f"Give {near}.")
        return height, width

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


def _checked_seed(seed: int) -> int:
    """The seed, refused where torch would read another one out of it (negative) or none (2.5, nan)."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise BadInput(
            f"The seed is {seed!r}, not a whole number from 0 to {MAX_SEED}.", "Give one, or none for a random one."
        )
    return int(seed)


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One a picture."""
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != count:
            raise BadInput(f"There are {len(seed)} seeds for {count} pictures.", "Give one for each picture.")
        return [_checked_seed(one) for one in seed]
    first = random_seed() if seed is None else _checked_seed(seed)
    return [first + number for number in range(count)]


def _finite(component: str, values: FloatArray, where: str) -> None:
    """Name the component that made NaN: pictures of it are black, and nobody knows why.

    Raises:
        NotFinite: `values` holds NaN or infinity.
    """
    if not np.isfinite(values).all():
        raise NotFinite(
            f"{component} gives NaN or infinity {where}.",
            "Compute in float32: leave --precision out, or use the artifact that `vitrify export` made.",
        )
