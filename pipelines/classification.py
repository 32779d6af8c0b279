"""Pictures to labels: prepare, run, read off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadArtifact, BadInput, Cancelled, UsageError
from ..runtimes.base import Session
from .faces import Detector, FaceBox, crop, detect_faces, open_detector
from .preprocess import ImagePreprocessor

FUNCTIONS = ("softmax", "sigmoid", "none")
Answer = list[dict[str, Any]]
"""Of one picture: {"label", "score"}, the highest first; where faces were asked for, {"box", "labels"} of each face."""

_Piece = tuple[int, FaceBox | None, Image.Image]  # the picture's number, where the face is, what is classified


@dataclass(frozen=True)
class ClassifyResult:
    """One answer a picture, and how they came about.

    timings: seconds for "preprocess" and "model", with faces also for "faces". placement: component -> what ran it.
    """

    answers: list[Answer]
    timings: dict[str, float]
    placement: dict[str, dict[str, str]]


class ClassificationPipeline:
    """A classifier's session with its labels and preprocessing. It keeps nothing of a call.

    Args:
        session: pixel_values -> logits.
        settings: the manifest's `pipeline` part.

    Raises:
        BadArtifact: the settings name another number of labels than the model has, or an unknown function.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions = sessions
        self.settings = settings
        self.labels: list[str] = list(settings["labels"])
        self.function = str(settings["function"])
        self.preprocess = ImagePreprocessor.from_config(settings["preprocess"])
        width = sessions["model"].outputs["logits"].shape[-1]
        if isinstance(width, int) and width != len(self.labels):
            raise BadArtifact(f"The model has {width} outputs and {len(self.labels)} labels.", "Export it again.")
        if self.function not in FUNCTIONS:
            raise BadArtifact(f"The manifest names the function {self.function!r}.", "Export the model again.")

    @property
    def placement(self) -> dict[str, dict[str, str]]:
        """Component -> what really runs it."""
        return {n: s.placement.to_json() for n, s in self.sessions.items()}

    def classify(
        self,
        images: Sequence[Image.Image],
        *,
        top_k: int | None = 5,
        function: str | None = None,
        threshold: float | None = None,
        faces: bool = False,
        detector: Path | Detector | None = None,
        batch: int = 8,
        on_batch: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[Answer]:
        """The answers of `run` alone, which takes the same arguments."""
        result = self.run(
            images,
            top_k=top_k,
            function=function,
            threshold=threshold,
            faces=faces,
            detector=detector,
            batch=batch,
            on_batch=on_batch,
            cancel=cancel,
        )
        return result.answers

    def run(
        self,
        images: Sequence[Image.Image],
        *,
        top_k: int | None = 5,
        function: str | None = None,
        threshold: float | None = None,
        faces: bool = False,
        detector: Path | Detector | None = None,
        batch: int = 8,
        on_batch: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> ClassifyResult:
        """Label each picture, or each face in it.

        Args:
            top_k: how many labels; None for all.
            function: softmax, sigmoid or none (the logits); None for the model's own.
            threshold: only labels with at least this score, however many.
            faces: find faces first and classify each of them with a margin; a picture without one gives [].
            detector: a YuNet ONNX file, or a detector that `faces.open_detector` opened; None for the bundled cascade.
            batch: pictures that are prepared together, and at most as many faces in one run of the model.
            on_batch: is told after each batch how many pictures are done, and of how many.
            cancel: asked before each batch, and before each picture in which faces are looked for.

        Raises:
            BadInput: no pictures, or one that cannot be prepared.
            UsageError: an option's value makes no sense.
            Cancelled: `cancel` said so.
        """
        function = function or self.function
        if function not in FUNCTIONS:
            raise UsageError(f"There is no function {function!r}.", f"Functions are {', '.join(FUNCTIONS)}.")
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k is {top_k}.", "Give 1 or more.")
        if batch < 1:
            raise UsageError(f"The batch is {batch}.", "Give 1 or more.")
        if not images:
            raise BadInput("There is no picture to classify.", "Give at least one.")
        eye = open_detector(detector) if faces else None
        seconds = {"faces": 0.0} if faces else {}
        seconds |= {"preprocess": 0.0, "model": 0.0}
        answers: list[Answer] = [[] for _ in images]
        for first in range(0, len(images), batch):
            part = range(first, min(first + batch, len(images)))
            pieces = self._pieces(images, part, eye, seconds, cancel)
            for start in range(0, len(pieces), batch):
                _stop(cancel)
                some = pieces[start : start + batch]
                rows = scores(self._logits([picture for _, _, picture in some], seconds), function)
                for (number, box, _), row in zip(some, rows, strict=True):
                    labels = self._read(row, top_k, threshold)
                    if box is None:
                        answers[number] = labels
                    else:
                        answers[number].append({"box": dict(box._asdict()), "labels": labels})
            if on_batch is not None:
                on_batch(part.stop, len(images))
        return ClassifyResult(answers, seconds, self.placement)

    def _pieces(
        self,
        images: Sequence[Image.Image],
        part: range,
        eye: Detector | None,
        seconds: dict[str, float],
        cancel: Callable[[], bool] | None,
    ) -> list[_Piece]:
        """What is classified of these pictures: each whole, or the faces that `eye` sees in it."""
        if eye is None:
            return [(number, None, images[number]) for number in part]
        pieces: list[_Piece] = []
        for number in part:
            _stop(cancel)
            start = time.perf_counter()
            pieces += [(number, box, crop(images[number], box)) for box in detect_faces(images[number], eye)]
            seconds["faces"] += time.perf_counter() - start
        return pieces

    def _logits(self, pictures: Sequence[Image.Image], seconds: dict[str, float]) -> npt.NDArray[Any]:
        """float [n, labels]."""
        start = time.perf_counter()
        pixels = self.preprocess(pictures)
        prepared = time.perf_counter()
        dtype = self.sessions["model"].inputs["pixel_values"].dtype.value
        logits = self.sessions["model"].run({"pixel_values": pixels.astype(dtype, copy=False)})["logits"]
        seconds["preprocess"] += prepared - start
        seconds["model"] += time.perf_counter() - prepared
        return logits

    def _read(self, row: npt.NDArray[np.float32], top_k: int | None, threshold: float | None) -> Answer:
        order = np.argsort(-row, kind="stable")
        if threshold is not None:
            order = order[row[order] >= threshold]
        elif top_k is not None:
            order = order[:top_k]
        return [{"label": self.labels[i], "score": float(row[i])} for i in order]

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


def _stop(cancel: Callable[[], bool] | None) -> None:
    if cancel is not None and cancel():
        raise Cancelled("Stopped between two batches.", "Run it again.")


def scores(logits: npt.NDArray[Any], function: str) -> npt.NDArray[np.float32]:
    """float [n, labels] logits to float32 scores: softmax over the labels, sigmoid of each, or as they are."""
    values = logits.astype(np.float64)
    if function == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        values = powers / powers.sum(axis=-1, keepdims=True)
    elif function == "sigmoid":
        values = 0.5 * (1 + np.tanh(0.5 * values))  # does not overflow
    return values.astype(np.float32)
