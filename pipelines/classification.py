"""Pictures to labels: prepare, run, read off."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..core.errors import BadArtifact, BadInput, Cancelled, UsageError
from ..runtimes.base import Session
from .faces import FaceBox, YuNet, crop, detect_faces
from .preprocess import ImagePreprocessor

FUNCTIONS = ("softmax", "sigmoid", "none")


class ClassificationPipeline:
    """A classifier's session with its labels and preprocessing.

    Args:
        session: pixel_values -> logits.
        settings: the manifest's `pipeline` part.
    """

    def __init__(self, sessions: Mapping[str, Session], settings: Mapping[str, Any], root: Path) -> None:
        self.sessions = sessions
        self.settings = settings
        self.labels: list[str] = list(settings["labels"])
        self.preprocess = ImagePreprocessor.from_config(settings["preprocess"])
        self.timings: dict[str, float] = {}
        width = sessions["model"].outputs["logits"].shape[-1]
        if isinstance(width, int) and width != len(self.labels):
            raise BadArtifact(f"The model has {width} outputs and {len(self.labels)} labels.", "Export it again.")

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
        detector: Path | YuNet | None = None,
        batch: int = 8,
        on_batch: Callable[[int, int], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> list[list[dict[str, Any]]]:
        """One list of {"label", "score"} a picture, the highest first (with `faces`, an entry a face: "box", "labels").

        Args:
            top_k: how many labels; None for all.
            function: softmax, sigmoid or none (the logits); None for the model's own.
            threshold: only labels with at least this score, however many.
            faces: find faces first and classify each of them with a margin; a picture without one gives [].
            detector: a YuNet ONNX file (or one opened); None for the bundled cascade.
            batch: pictures a run.

        Raises:
            BadInput: no pictures, or one that cannot be prepared.
            UsageError: an option's value makes no sense.
            Cancelled: `cancel` said so between two batches.
        """
        function = function or str(self.settings["function"])
        if function not in FUNCTIONS:
            raise UsageError(f"There is no function {function!r}.", f"Functions are {', '.join(FUNCTIONS)}.")
        if top_k is not None and top_k < 1:
            raise UsageError(f"top_k is {top_k}.", "Give 1 or more.")
        if batch < 1:
            raise UsageError(f"The batch is {batch}.", "Give 1 or more.")
        if not images:
            raise BadInput("There is no picture to classify.", "Give at least one.")
        start = time.perf_counter()
        work: list[tuple[int, FaceBox | None, Image.Image]] = []
        for number, image in enumerate(images):
            if faces:
                work += [(number, box, crop(image, box)) for box in detect_faces(image, detector)]
            else:
                work.append((number, None, image))
        self.timings = {"faces": time.perf_counter() - start} if faces else {}
        prepared = ran = 0.0
        answers: list[list[dict[str, Any]]] = [[] for _ in images]
        for first in range(0, len(work), batch):
            if cancel is not None and cancel():
                raise Cancelled("Stopped between two batches.", "Run it again.")
            part = work[first : first + batch]
            start = time.perf_counter()
            pixels = self.preprocess([picture for _, _, picture in part])
            prepared += time.perf_counter() - start
            start = time.perf_counter()
            dtype = self.sessions["model"].inputs["pixel_values"].dtype.value
            logits = self.sessions["model"].run({"pixel_values": pixels.astype(dtype, copy=False)})["logits"]
            ran += time.perf_counter() - start
            for (number, box, _), row in zip(part, scores(logits, function), strict=True):
                labels = self._read(row, top_k, threshold)
                if box is None:
                    answers[number] = labels
                else:
                    answers[number].append({"box": dict(box._asdict()), "labels": labels})
            if on_batch is not None:
                on_batch(min(first + batch, len(work)), len(work))
        self.timings |= {"preprocess": prepared, "model": ran}
        return answers

    def _read(self, row: npt.NDArray[np.float32], top_k: int | None, threshold: float | None) -> list[dict[str, Any]]:
        order = np.argsort(-row, kind="stable")
        if threshold is not None:
            order = order[row[order] >= threshold]
        elif top_k is not None:
            order = order[:top_k]
        return [{"label": self.labels[i], "score": float(row[i])} for i in order]

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()


def scores(logits: npt.NDArray[Any], function: str) -> npt.NDArray[np.float32]:
    """float [n, labels] logits to float32 scores: softmax over the labels, sigmoid of each, or as they are."""
    values = logits.astype(np.float64)
    if function == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        values = powers / powers.sum(axis=-1, keepdims=True)
    elif function == "sigmoid":
        values = 0.5 * (1 + np.tanh(0.5 * values))  # does not overflow
    return values.astype(np.float32)
