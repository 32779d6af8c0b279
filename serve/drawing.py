"""Pictures of several jobs in one call, each job with its own steps, previews and end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..core.errors import UsageError
from ..pipelines.control import ControlNet, ControlUnit
from ..pipelines.control_pictures import control_picture
from ..pipelines.images import open_image
from ..pipelines.random import random_seed
from ..pipelines.result import GenerateResult
from .jobs import Picture, Result
from .messages import Stepped, Task
from .previews import Preview
from .requests import ControlRequest, GenerateRequest

if TYPE_CHECKING:
    from .worker import Worker

_QUOTED = 40  # characters of a prompt that a note repeats
_QUALITY = {"jpeg": 95, "webp": 90}


class Drawing:
    """Jobs of one shape that are drawn in one call: their steps are told to each, and any of them may be cancelled.

    Args:
        nets: the ControlNets that they follow, open.
    """

    def __init__(self, pipeline: Any, nets: Sequence[ControlNet], tasks: Sequence[Task], worker: Worker) -> None:
        self._pipeline, self._tasks, self._worker = pipeline, tasks, worker
        self._nets = {net.root.name: net for net in nets}
        self._requests = [task.request for task in tasks if isinstance(task.request, GenerateRequest)]
        self._last: Any = None
        self._before = 0.0
        self._preview: Preview | None = None

    def run(self) -> list[Result]:
        """Raises Cancelled: none of them is wanted any more; and what the pipeline raises."""
        first = self._requests[0]
        if any(request.previews for request in self._requests):
            self._preview = self._worker.preview_of(first.model, self._pipeline)
        seeds = [
            seed + number
            for request in self._requests
            for seed in [request.seed if request.seed is not None else random_seed()]
            for number in range(request.images)
        ]
        self._before = time.perf_counter()
        made = self._pipeline.generate(
            [request.prompt for request in self._requests for _ in range(request.images)],
            negative_prompt=first.negative_prompt,
            width=first.width,
            height=first.height,
            steps=first.steps,
            guidance=first.guidance,
            seed=seeds,
            scheduler=first.scheduler,
            **_from_pictures(first),
            control=[self._unit(one) for one in first.control],
            loras=first.loras,
            step_cache=first.step_cache,
            guidance_interval=first.guidance_interval,
            guidance_every=first.guidance_every,
            decoder=first.decoder,
            preset=first.preset,
            hooks=self._worker.hooks_for(first, self._pipeline),
            on_step=self._stepped,
            cancel=self._cancelled,
        )
        if len(made.images) != len(seeds):
            raise UsageError(
                f"A hook made {len(made.images)} pictures of {len(seeds)}.", "Start the server without it."
            )
        if self._preview is not None and self._last is not None:
            self._preview.learn(self._last, made.images)
        results = []
        for place, (request, rows) in enumerate(self._rows()):
            details = {
                "place": place,
                "seed": seeds[rows.start],
                "parameters": made.parameters[rows],
                "timings": made.timings,
                "notes": self._notes(made, rows),
            }
            pictures = [encoded(image, request.format) for image in made.images[rows]]
            results.append(Result(pictures=pictures, details={**details, "placement": made.placement}))
        return results

    def _unit(self, one: ControlRequest) -> ControlUnit:
        picture = control_picture(open_image(BytesIO(one.picture)), one.made_by)
        return ControlUnit(picture, self._nets[one.net], one.strength, one.start, one.end)

    def _notes(self, made: GenerateResult, rows: slice) -> list[str]:
        """What a job is told of its prompts."""
        own = {table["prompt"] for table in made.parameters[rows]} | {self._requests[0].negative_prompt}
        notes = own_notes(made.notes, {table["prompt"] for table in made.parameters} - own)
        for word, why in self._worker.untaught(self._requests[0].model).items():
            if any(word in prompt for prompt in own):
                notes.append(f"{word!r} is no word of this model: {why}")
        return notes

    def _rows(self) -> Iterator[tuple[GenerateRequest, slice]]:
        start = 0
        for request in self._requests:
            yield request, slice(start, start + request.images)
            start += request.images

    def _stepped(self, step: Any) -> None:
        self._last, now = step.latents, time.perf_counter()
        for task, (request, rows) in zip(self._tasks, self._rows(), strict=True):
            if self._worker.wanted(task):
                shown = self._preview.draw(step.latents[rows]) if self._preview and request.previews else None
                self._worker.stepped(Stepped(task.id, step.number, step.total, now - self._before, shown))
        self._before = now

    def _cancelled(self) -> bool:
        start = time.perf_counter()
        wanted = self._worker.still_wanted(self._tasks)
        self._before += time.perf_counter() - start  # what others took is no part of the step
        return not wanted


def _from_pictures(request: GenerateRequest) -> dict[str, Any]:
    """What `generate` takes beside the prompt, of a request that starts from a picture."""
    if request.image is None:
        return {}
    mask = open_image(BytesIO(request.mask)) if request.mask is not None else None
    return {"image": open_image(BytesIO(request.image)), "mask": mask, "strength": request.strength}


def own_notes(notes: Sequence[str], others: Collection[str]) -> list[str]:
    """Without those that repeat the prompts of other jobs in the same call: these are of other clients."""
    return [note for note in notes if not any(repr(prompt[:_QUOTED]) in note for prompt in others)]


def encoded(image: Image.Image, kind: str) -> Picture:
    """An image as a file: png, jpeg or webp."""
    out = BytesIO()
    options = {"quality": _QUALITY[kind]} if kind in _QUALITY else {"compress_level": 4}
    image.save(out, kind.upper(), **options)
    return Picture(out.getvalue(), kind)
