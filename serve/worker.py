"""The process that holds the models of one device and runs jobs, one after the other.

Between two steps of a picture it looks at its pipe: a job is cancelled within a step, and classifications do not wait
for the picture to be done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..core.errors import Cancelled, VitrifyError
from ..pipelines.hooks import Hook
from ..pipelines.images import open_image
from ..pipelines.prompt_cache import Remember
from ..runtimes.base import Options
from .drawing import Drawing
from .hooks import Hooks
from .jobs import CANCELLED, Problem, Result
from .logs import set_up_logs
from .loras import ServedLoras
from .messages import (
    Began,
    Cancel,
    Close,
    Closed,
    Failed,
    Finished,
    NotOpened,
    Open,
    Opened,
    Run,
    Started,
    Stepped,
    Stop,
    Task,
)
from .models import Models
from .pictures import size_of
from .previews import Preview
from .requests import ClassifyRequest, GenerateRequest, InferRequest, models_of

log = logging.getLogger("vitrify.serve")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with. paths: model -> folder. budget: bytes of weights. batch: pictures at once.

    place, offload: as `pipelines.load` takes them; a place that a model has no component for is not for it.
    remember: what each model keeps of encoded prompts.
    pixels: of pictures that are decoded at once. lora_folder: of the LoRAs that clients may name. hooks: each with its
    options, see `hooks_of`. embeddings: files. nice: how far it steps back for the server, which must answer while it
    computes. json_logs: how it logs.
    """

    paths: Mapping[str, Path]
    device: str | None = None
    runtime: str | None = None
    options: Options = field(default_factory=Options)
    place: Mapping[str, str] = field(default_factory=dict)
    offload: str = "auto"
    remember: Remember = field(default_factory=Remember)
    budget: int = 0
    batch: int = 32
    pixels: int = 64_000_000
    lora_folder: Path | None = None
    hooks: tuple[str, ...] = ()
    embeddings: tuple[Path, ...] = ()
    nice: int = 5
    json_logs: bool = False


class Pipe(Protocol):
    """The worker's end: of a pipe between processes, or of queues within one, as Ray's replicas have it."""

    def recv(self) -> Any:
        """Raises EOFError, OSError: the other end is gone."""
        ...

    def send(self, message: Any) -> None: ...


def main(pipe: Connection, settings: WorkerSettings) -> None:
    """The process's own main function: runs until it is told to stop, or the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server says when to end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(settings.nice)
    set_up_logs(as_json=settings.json_logs)
    Image.MAX_IMAGE_PIXELS = None  # the server has checked the sizes
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone
        Worker(pipe, settings).work()


class Worker:
    """Jobs in their order. A thread of its own reads the pipe, so that the server never waits to be heard."""

    def __init__(self, pipe: Pipe, settings: WorkerSettings) -> None:
        self._pipe, self._settings = pipe, settings
        self._models = Models(
            settings.paths,
            device=settings.device,
            runtime=settings.runtime,
            options=settings.options,
            place=settings.place,
            offload=settings.offload,
            remember=settings.remember,
            budget=settings.budget,
            embeddings=settings.embeddings,
            opened=lambda *given: pipe.send(Opened(*given)),
            closed=self._closed,
        )
        self._hooks = Hooks(settings.hooks)
        self._previews: dict[str, Preview] = {}
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: deque[Run | Open | Close] = deque()
        self._known: set[str] = set()  # jobs that wait here or run
        self._cancelled: set[str] = set()
        self._stopping = False

    def work(self) -> None:
        threading.Thread(target=self._listen, daemon=True, name="from server").start()
        self._pipe.send(Started(self._settings.device or "auto"))
        while True:
            self._read(wait=not self._waiting and not self._stopping)
            if not self._waiting:
                if self._stopping:
                    break
                continue
            self._do(self._waiting.popleft())
        self._models.close_all()

    def _listen(self) -> None:
        """In a thread: everything that the server says. Without a server there is nothing left to do."""
        try:
            while True:
                self._inbox.put(self._pipe.recv())
        except (EOFError, OSError):
            os._exit(1)

    def _read(self, wait: bool = False) -> None:
        """Take in what has come."""
        while wait or not self._inbox.empty():
            wait = False
            message = self._inbox.get()
            if isinstance(message, Cancel):
                if message.id in self._known:
                    self._cancelled.add(message.id)
            elif isinstance(message, Stop):
                self._stopping = True
            else:
                if isinstance(message, Run):
                    self._known.update(task.id for task in message.tasks)
                self._waiting.append(message)

    def _do(self, message: Run | Open | Close) -> None:
        if isinstance(message, Close):
            self._models.close(message.model)
        elif isinstance(message, Open):
            try:
                self._models.get(message.model, pinned=message.pinned)
            except Exception as exc:
                self._pipe.send(NotOpened(message.model, problem_of(exc)))
        else:
            self._run([task for task in message.tasks if not self._is_cancelled(task)])

    def _closed(self, model: str, why: str) -> None:
        """Of every model that is closed, also to make room."""
        self._previews.pop(model, None)  # it holds the pipeline, and would open its decoder again
        self._pipe.send(Closed(model, why))

    def _run(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        start = time.perf_counter()
        self._pipe.send(Began(tuple(task.id for task in tasks)))
        opened = False
        try:
            pipeline, *nets = self._models.together(models_of(tasks[0].request))
            opened = True
            start = time.perf_counter()  # loading is no part of the speed
            results = self._results(pipeline, nets, tasks)
        except Exception as exc:
            if not isinstance(exc, VitrifyError | MemoryError):
                log.exception("a job failed", extra={"jobs": [task.id for task in tasks]})
            left = [task for task in tasks if task.id in self._known]
            if opened and len(tasks) > 1 and not isinstance(exc, MemoryError):
                for task in left:  # one bad picture must not fail the others
                    self._run([task])
                return
            for task in left:
                self._ended(task.id, Failed(task.id, problem_of(exc)))
            return
        seconds = (time.perf_counter() - start) / len(tasks)
        for task, result in zip(tasks, results, strict=True):
            if task.id in self._known:
                self._ended(task.id, Finished(task.id, result, seconds))

    def _ended(self, id: str, message: Finished | Failed) -> None:
        self._known.discard(id)
        self._cancelled.discard(id)
        self._pipe.send(message)

    def _results(self, pipeline: Any, nets: list[Any], tasks: list[Task]) -> list[Result]:
        request = tasks[0].request
        if isinstance(request, GenerateRequest):
            return self._drawn(pipeline, nets, tasks)
        if isinstance(request, ClassifyRequest):
            return self._labelled(pipeline, [t.request for t in tasks if isinstance(t.request, ClassifyRequest)])
        return [self._inferred(pipeline, t.request) for t in tasks if isinstance(t.request, InferRequest)]

    def _drawn(self, pipeline: Any, nets: list[Any], tasks: list[Task]) -> list[Result]:
        """Of one shape. Together where their prompts are encoded to one length; else the others would change them."""
        lengths: dict[int, list[int]] = {}
        for number, task in enumerate(tasks):
            assert isinstance(task.request, GenerateRequest)
            lengths.setdefault(pipeline.family.chunks(task.request.prompt), []).append(number)
        found: dict[int, Result] = {}
        for numbers in lengths.values():
            drawing = Drawing(pipeline, nets, [tasks[number] for number in numbers], self)
            found |= dict(zip(numbers, drawing.run(), strict=True))
        return [found[number] for number in range(len(tasks))]

    def hooks_for(self, request: GenerateRequest, pipeline: Any) -> list[Hook]:
        """Those that it wants, in the server's order, and the one that opens its LoRAs."""
        return [
            *self._hooks.wanted(request.hooks),
            ServedLoras(self._settings.lora_folder, pipeline.adapters),
        ]

    def untaught(self, model: str) -> Mapping[str, str]:
        """Words of the server's embeddings that this model did not learn, and why."""
        return self._models.untaught(model)

    def stepped(self, message: Stepped) -> None:
        self._pipe.send(message)

    def still_wanted(self, tasks: Sequence[Task]) -> bool:
        """Between two steps: whether any of these is; those that are no more have ended."""
        self._between()
        for task in tasks:
            if task.id in self._known:
                self._is_cancelled(task)
        return any(task.id in self._known for task in tasks)

    def wanted(self, task: Task) -> bool:
        return task.id in self._known

    def preview_of(self, model: str, pipeline: Any) -> Preview:
        if model not in self._previews:
            self._previews[model] = Preview(pipeline)
        return self._previews[model]

    def _between(self) -> None:
        """Between two steps: what was cancelled, and the classifications that came meanwhile."""
        self._read()
        for run in [m for m in self._waiting if isinstance(m, Run) and m.tasks[0].request.kind != GenerateRequest.kind]:
            if self._models.fits(run.tasks[0].request.model):  # loading another might put out the one that draws
                self._waiting.remove(run)
                self._do(run)

    def _labelled(self, pipeline: Any, requests: list[ClassifyRequest]) -> list[Result]:
        """Those who asked alike together, see `Dispatcher`; never more decoded at once than one may be large."""
        first = requests[0]
        files = [data for request in requests for data in request.pictures]
        answers: list[Any] = []
        seconds: Counter[str] = Counter()
        for part in _parts(files, self._settings.pixels):
            made = pipeline.run(
                [open_image(BytesIO(data)) for data in part],
                top_k=first.top_k,
                function=first.function,
                threshold=first.threshold,
                faces=first.faces,
                batch=self._settings.batch,
            )
            answers += made.answers
            seconds.update(made.timings)
        details = {"timings": dict(seconds), "placement": made.placement, "batch": len(files)}
        given = iter(answers)
        return [
            Result(answers=[next(given) for _ in request.pictures], details={**details, "place": place})
            for place, request in enumerate(requests)
        ]

    def _inferred(self, pipeline: Any, request: InferRequest) -> Result:
        session = pipeline.sessions["model"]
        tensors = session.run({name: np.ascontiguousarray(t) for name, t in request.tensors.items()})
        return Result(tensors={name: np.asarray(value) for name, value in tensors.items()})

    def _is_cancelled(self, task: Task) -> bool:
        if task.id not in self._cancelled:
            return False
        self._ended(task.id, Failed(task.id, CANCELLED))
        return True


def _parts(files: Sequence[bytes], pixels: int) -> Iterator[list[bytes]]:
    """The files in parts of at most so many pixels each, or of one file."""
    part: list[bytes] = []
    left = pixels
    for data in files:
        width, height, _ = size_of(data)
        if part and width * height > left:
            yield part
            part, left = [], pixels
        part.append(data)
        left -= width * height
    if part:
        yield part


def problem_of(exc: BaseException) -> Problem:
    """What a client is told of an exception."""
    if isinstance(exc, Cancelled):
        return CANCELLED
    if isinstance(exc, VitrifyError):
        return Problem.of(exc)
    if isinstance(exc, MemoryError):
        return Problem(
            "out_of_memory", "The job needs more memory than there is.", "Ask for less: fewer or smaller pictures."
        )
    return Problem("error", f"The worker failed: {type(exc).__name__}.", "Report it with the server's log.")
