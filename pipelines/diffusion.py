"""Prompts, and pictures, to pictures with a diffusion model: condition, noise, denoise, decode."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import BadArtifact, BadInput, Cancelled, UsageError
from ..runtimes.base import Session
from .adapters import Adapters
from .autoencoder import Autoencoder
from .budget import Budget
from .components import Components, budget_of, watch_of
from .control import Controls, ControlUnit, prepared_pictures
from .denoiser import Denoiser
from .families import FAMILIES
from .families.base import Conditioning, FloatArray, check_finite
from .first_latents import Kept, blended, first_latents
from .generation import Generation, Strengths, prompts_of, seeds_of, size_of
from .guiding import Guide
from .hooks import Hook
from .memory_report import begin, report
from .pictures_in import Picture, Start, start_of, usual_strength
from .prompt_cache import encoding
from .random import Generator, generator
from .result import GenerateResult, Step
from .saving import Saving
from .schedulers import Scheduler, scheduler_from_config
from .settings import PREVIEW
from .step_cache import SHALLOW


class _Batch:
    """One stream of random numbers a picture, so that each is the same alone and in a batch."""

    def __init__(self, streams: Sequence[Generator]) -> None:
        self._streams = streams

    def normal(self, shape: Sequence[int]) -> FloatArray:
        return np.concatenate([stream.normal((1, *shape[1:])) for stream in self._streams])


class DiffusionPipeline:
    """The one loop of all families.

    Args:
        sessions: component -> session.
        settings: the manifest's `pipeline` part; its `family` says whose conditioning and denoiser's call it is.
        root: the artifact's folder, for the tokenizers.

    Raises:
        BadInput: a tokenizer's files are missing or damaged.
        BadArtifact: the settings hold a number that makes no sense.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions = sessions
        self.settings = settings
        self.family = FAMILIES[settings["family"]](sessions, settings, root)
        latents = settings["latents"]
        self.scale, self.channels = int(latents["scale"]), int(latents["channels"])
        self.denoiser_channels = int(latents.get("denoiser", self.channels))
        # a UNet halves the latents several times, and its graph joins them again at the very same sizes
        self.unit = self.scale * int(latents.get("multiple", 1))
        self.height, self.width = (int(side) for side in settings["size"])
        self.adapters = Adapters(sessions, self.family)
        self.vae = Autoencoder(sessions, settings["vae"], self.channels, self.scale)
        self._previews: Autoencoder | None = None
        if "preview" in settings and PREVIEW in sessions:
            self._previews = Autoencoder(sessions, settings["preview"], self.channels, self.scale, PREVIEW)
        self.scheduler = dict(settings["scheduler"])
        defaults = settings.get("defaults", {})
        self.steps = int(defaults.get("steps", self.family.steps))
        self.guidance = float(defaults.get("guidance", self.family.guidance))
        if min(self.scale, self.channels, self.unit, self.height, self.width) < 1 or not self.vae.scaling:
            raise BadArtifact(f"The manifest of {root} has a size or a factor below 1.", "Export the model again.")

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it, of those that were opened."""
        if isinstance(self.sessions, Components):
            return self.sessions.placement
        return {n: s.placement.to_json() for n, s in self.sessions.items()}

    @property
    def budget(self) -> Budget | None:
        """What bounds the memory of the sessions, if anything does."""
        return budget_of(self.sessions)

    @property
    def fills(self) -> bool:
        """Whether the denoiser is an inpainting model, which sees the mask and the masked picture."""
        return self.denoiser_channels > self.channels

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = None,
        scheduler: str | None = None,
        batch: int = 1,
        rng: str = "cpu",
        image: Picture | None = None,
        mask: Picture | None = None,
        strength: float | None = None,
        control: Sequence[ControlUnit] = (),
        loras: Mapping[str, Strengths] | None = None,
        step_cache: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_every: int | None = None,
        decoder: str | None = None,
        preset: str | None = None,
        hooks: Sequence[Hook] = (),
        on_step: Callable[[Step], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> GenerateResult:
        """Draw `batch` pictures of each prompt, from noise or from a picture.

        Picture i gets the seed `seed + i`, as diffusers does with a list of generators; so it can be made again alone.

        Args:
            prompt: text, with weights as (red:1.3); longer than the encoder takes, it is encoded in chunks.
            width, height: pixels; None for the model's own; with an image both None for its size, made divisible.
            steps: from 1 to as many as the model was trained with; None for the model's own number.
            guidance: of classifier-free guidance; at 1 or less the negative prompt is not used and a step costs half.
                None for the model's own.
            seed: from 0 to 2**64 - 1; None draws one. Several: one a picture, in the order of the pictures.
            scheduler: one of `scheduler_names()`; None for the model's own.
            rng: "cpu" gives torch's CPU numbers, "philox" those of CUDA.
            image: the picture to start from, resized to width x height. One for all, or one a picture.
            mask: grey, of the picture's size: where it is white, something new is drawn. One for all, or one a picture.
            strength: above 0 to 1, how much of `image` is changed; None is 0.8, and 1 with a mask. That share of the
                steps is done.
            control: ControlNets with their pictures; several add up.
            loras: name or path -> strength, or the denoiser's and the text encoders'; beside those that the prompt
                names as <lora:name:0.8>. They stay until a call that wants others.
            step_cache: "3" computes every third step whole, "0.1" as few as keep the deep features within a tenth;
                the others take those of the last whole one. For artifacts that were made with --step-cache.
            guidance_interval: the part of the steps, 0 to 1, in which guidance acts; a step outside costs half.
            guidance_every: of the steps that are computed whole, each so-many-th computes the negative prompt; the
                others add what guidance added at the last that did, and cost half. None for 1.
            decoder: "vae", or "preview" for the artifact's small decoder; None for "vae".
            preset: what is not given of the last four; see `pipelines.presets`.
            hooks: see and may change the request, each step and the result; see `hooks_of`.
            on_step: is told of each step that is done.
            cancel: asked before each step.

        Raises:
            BadInput: a size that the VAE cannot divide, no prompt, steps or a seed out of range, an unknown scheduler,
                a mask without a picture or of another size, a picture for an artifact that encodes none, a graph or a
                decoder that the artifact does not have.
            UsageError: a number that makes no sense, an unknown preset.
            Cancelled: `cancel` said so.
        """
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else guidance
        if strength is None:
            strength = usual_strength(mask is not None)
        prompts = prompts_of(prompt, batch)
        saving, told = Saving.of(
            preset, step_cache=step_cache, guidance_interval=guidance_interval, guidance_every=guidance_every,
            decoder=decoder, shallow=self.family.denoiser + SHALLOW in self.sessions,
        )  # fmt: skip
        request = Generation(
            prompts, seeds_of(seed, len(prompts)), negative_prompt, width, height, steps, guidance, scheduler, rng,
            image, mask, strength, tuple(control), dict(loras or {}), saving, told,
        )  # fmt: skip
        for hook in hooks:
            request = hook.before(request)
        request = self.adapters.wanted(request)
        result = self._draw(request, hooks, on_step, cancel)
        for hook in hooks:
            result = hook.after(result)
        return result

    def _draw(
        self,
        request: Generation,
        hooks: Sequence[Hook],
        on_step: Callable[[Step], None] | None,
        cancel: Callable[[], bool] | None,
    ) -> GenerateResult:
        if not np.isfinite(request.guidance):
            raise UsageError(f"guidance is {request.guidance}.", "Give a number.")
        count, steps, strength = len(request.prompts), request.steps, request.strength
        size = size_of(request, self.unit, (self.height, self.width))
        given = start_of(request.image, request.mask, strength, size, count)
        self._check_task(given)
        decoder = self._decoder(request.saving.decoder)
        sampler = scheduler_from_config(self.scheduler, request.scheduler)
        inner = (size[0] // self.scale, size[1] // self.scale)
        sampler.set_timesteps(steps, sigmas=self.family.sigmas(steps), tokens=self.family.tokens(inner))
        first = self._first_call(sampler, steps, strength) if given is not None else 0
        self.adapters.lay_on(request.loras)
        noise = _Batch([generator(request.rng, one) for one in request.seeds])

        begin(self.budget, watch_of(self.sessions))
        start = time.perf_counter()
        self._ahead(self.family.denoiser)
        with encoding(self.family.sessions) as texts:
            conditioning = self.family.encode_prompt(request.prompts, request.negative_prompt, size, request.guidance)
        encoded = time.perf_counter()
        # diffusers draws what it needs for these before all else
        pictures = prepared_pictures(request.control, size, count, self.family, self.vae, noise)
        latents, kept = first_latents(
            given, self.vae, sampler, first, strength, (count, self.channels, *inner), noise, self.family, self.fills
        )
        begun = time.perf_counter()
        denoiser = self.sessions[self.family.denoiser]  # may have to be opened first
        if request.saving.step_cache is not None and self.family.denoiser + SHALLOW in self.sessions:
            self.sessions[self.family.denoiser + SHALLOW]
        controls = Controls(request.control, pictures, denoiser, self.family, self.scale)
        self._ahead(decoder.decoder)
        before = time.perf_counter()
        seconds = []
        loop = self.denoise(
            latents, conditioning, sampler, request.guidance, noise,
            first=first, kept=kept, controls=controls, saving=request.saving, hooks=hooks, cancel=cancel,
        )  # fmt: skip
        for step in loop:
            seconds.append(time.perf_counter() - before)
            latents = step.latents
            if on_step is not None:
                on_step(step)
            before = time.perf_counter()
        started = time.perf_counter()
        images = decoder.decode(latents)
        done = time.perf_counter()

        common: dict[str, Any] = {"negative_prompt": request.negative_prompt, "width": size[1], "height": size[0]}
        common |= {"steps": steps, "guidance": request.guidance, "scheduler": sampler.name, "rng": request.rng}
        timings: dict[str, Any] = {"encode": encoded - start, "steps": seconds, "decode": done - started}
        timings |= texts.to_json()
        common |= request.saving.to_json()
        if request.loras:
            common["loras"] = dict(request.loras)
        if request.control:
            common["control"] = [unit.to_json() for unit in request.control]
        if given is not None:
            common["strength"] = strength
            timings["encode_picture"] = begun - encoded
        tables = [{"prompt": p, "seed": one, **common} for p, one in zip(request.prompts, request.seeds, strict=True)]
        timings["total"] = done - start
        memory = report(self.budget, watch_of(self.sessions))
        placement, notes = self.placement, conditioning.notes + request.notes
        for number, unit in enumerate(request.control):
            placement |= {f"{name}.{number}": where for name, where in unit.net.placement.items()}
        if request.saving.guiding.saves and not conditioning.guided:
            notes += ("Guidance is off, or this model has none, so that no step of it is left out.",)
        if request.negative_prompt and not conditioning.guided:
            notes += ("The negative prompt is not read: guidance is off, or this model has none.",)
        return GenerateResult(images, request.seeds[0], tables, timings, placement, memory, notes)

    def denoise(
        self,
        latents: FloatArray,
        conditioning: Conditioning,
        scheduler: Scheduler,
        guidance: float,
        noise: Generator,
        *,
        first: int = 0,
        kept: Kept | None = None,
        controls: Controls | None = None,
        saving: Saving | None = None,
        hooks: Sequence[Hook] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[Step]:
        """The loop, one `Step` at a time. latents: float32 [n, channels, h, w], as noisy as call `first` wants them."""
        family, saving = self.family, saving or Saving()
        denoiser = Denoiser(self.sessions, family, self.budget, saving.step_cache, len(latents))
        everything = conditioning.rows()
        total = len(scheduler.timesteps) - first
        guide = Guide(guidance, saving.guiding, total, guided=conditioning.guided)
        for index in range(first, first + total):
            done = index - first
            if cancel is not None and cancel():
                raise Cancelled(f"Stopped before step {done + 1} of {total}.", "Run it again.")
            timestep = float(scheduler.timesteps[index])
            sample = scheduler.scale_model_input(latents, index)
            whole = denoiser.whole() or guide.wants_whole(done)
            both = guide.both(done, whole=whole)
            given = rows = everything if both else conditioning.positive
            if controls is not None:
                given = {**rows, **controls.residuals(sample, timestep, rows, done, total, guided=both)}
            if kept is not None and kept.channels is not None:
                sample = np.concatenate([sample, kept.channels], axis=1)
            if both:
                sample = np.concatenate([sample, sample])
            out = denoiser.predicted(sample, timestep, given, whole=whole)
            check_finite(family.denoiser, out, f"at step {done + 1} of {total}")
            out = guide.combined(out, done, both=both)
            latents = scheduler.step(out, index, latents, noise)
            if kept is not None and kept.channels is None:
                latents = blended(latents, kept, scheduler, index + 1, first + total)
            step = Step(done + 1, total, timestep, latents)
            for hook in hooks:
                changed = hook.step(step)
                step = step if changed is None else replace(step, latents=changed)
            latents = step.latents
            yield step

    def _ahead(self, name: str) -> None:
        if isinstance(self.sessions, Components):
            self.sessions.ahead(name)

    def decode(self, latents: FloatArray) -> list[Image.Image]:
        """Latents, float32 [n, channels, h, w], to pictures."""
        return self.vae.decode(latents)

    def preview(self, latents: FloatArray) -> list[Image.Image] | None:
        """Latents, float32 [n, channels, h, w], to pictures by the artifact's `preview_decoder`, as `on_step` may want.

        None where there is none, and within a budget: to open it then could close the denoiser that is at work.
        """
        if self._previews is None or self.budget is not None:
            return None
        return self._previews.decode(latents)

    def _decoder(self, name: str) -> Autoencoder:
        """Raises:
        BadInput: the artifact has no such decoder.
        """
        if name == "vae":
            return self.vae
        if self._previews is None:
            raise BadInput("This artifact has no decoder for previews.", "Export it again, with --preview-vae.")
        return self._previews

    def close(self) -> None:
        """Close every session."""
        if isinstance(self.sessions, Components):
            self.sessions.close()
            return
        for session in self.sessions.values():
            session.close()

    def _check_task(self, given: Start | None) -> None:
        if self.fills and (given is None or given.mask is None):
            raise BadInput(
                "This is an inpainting model: it draws into a picture.", "Give a picture and a mask, or another model."
            )
        if given is not None and "vae_encoder" not in self.sessions:
            raise BadInput(
                "This artifact has no vae_encoder, so it cannot start from a picture.", "Export the model again."
            )
        if given is None and "text2img" not in self.settings["tasks"]:
            raise BadInput("This is a refiner: it changes pictures that another model drew.", "Give a picture.")

    def _first_call(self, sampler: Scheduler, steps: int, strength: float) -> int:
        """The index of the first model call of a run that starts from a picture."""
        skipped = self.family.skipped_steps(steps, strength)
        if skipped >= steps:
            raise BadInput(
                f"A strength of {strength} is less than one of {steps} steps.",
                f"Give a strength of {1 / steps:.2g} or more, or more steps.",
            )
        return skipped * sampler.order
