"""Pictures of several jobs in one call, each job with its own steps, previews and end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..pipelines.random import random_seed
from .jobs import Picture, Result
from .messages import Stepped, Task
from .previews import Preview
from .requests import GenerateRequest

if TYPE_CHECKING:
    from .worker import Worker

_QUALITY = {"jpeg": 95, "webp": 90}


class Drawing:
    """Jobs of one shape that are drawn in one call: their steps are told to each, and any of them may be cancelled."""

    def __init__(self, pipeline: Any, tasks: Sequence[Task], worker: Worker) -> None:
        self._pipeline, self._tasks, self._worker = pipeline, tasks, worker
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
            on_step=self._stepped,
            cancel=self._cancelled,
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
            }
            pictures = [encoded(image, request.format) for image in made.images[rows]]
            results.append(Result(pictures=pictures, details={**details, "placement": made.placement}))
        return results

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


def encoded(image: Image.Image, kind: str) -> Picture:
    """An image as a file: png, jpeg or webp."""
    out = BytesIO()
    options = {"quality": _QUALITY[kind]} if kind in _QUALITY else {"compress_level": 4}
    image.save(out, kind.upper(), **options)
    return Picture(out.getvalue(), kind)
