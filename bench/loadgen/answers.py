"""What answers the queries of a LoadGen run in its own process: an artifact's pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from ...core.errors import BadInput
from .plan import STEPS, LoadPlan

if TYPE_CHECKING:
    from ...core.artifact import Artifact
    from ...pipelines.classification import ClassificationPipeline
    from ...pipelines.diffusion import DiffusionPipeline


class Answering(Protocol):
    """Answers samples; a Protocol, since a pipeline and a server have nothing else in common.

    most: samples in one call at most. facts: what the result says of it.
    """

    most: int
    facts: dict[str, Any]

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        """The bytes of each answer, as the accuracy log keeps them: see `label_bytes`; of a picture, its own."""

    def close(self) -> None: ...


class Labels:
    """A classifier. Samples: float [3, height, width] that are prepared; an answer: the number of the best label."""

    def __init__(self, pipeline: ClassificationPipeline, most: int) -> None:
        self.most = most
        self.facts: dict[str, Any] = {"over": "runtime", "placement": pipeline.placement}
        self._pipeline = pipeline
        self._session = pipeline.sessions["model"]

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        return label_bytes(self._session.run({"pixel_values": stacked(samples)})["logits"])

    def close(self) -> None:
        self._pipeline.close()


class Pictures:
    """A pipeline that draws. Samples: a prompt and its seed; an answer: uint8 [height, width, 3], as its bytes."""

    def __init__(self, pipeline: DiffusionPipeline, most: int, steps: int) -> None:
        self.most = most
        self._pipeline, self._steps = pipeline, steps
        self.facts: dict[str, Any] = {
            "over": "runtime", "placement": pipeline.placement, "steps": steps, "width": pipeline.width,
            "height": pipeline.height,
        }  # fmt: skip

    def answer(self, samples: Sequence[Any]) -> list[bytes]:
        prompts, seeds = [prompt for prompt, _ in samples], [seed for _, seed in samples]
        drawn = self._pipeline.generate(prompts, steps=self._steps, seed=seeds)
        return [np.asarray(image).tobytes() for image in drawn.images]

    def close(self) -> None:
        self._pipeline.close()


def label_bytes(logits: Any) -> list[bytes]:
    """float [n, labels] -> the number of each row's highest, as an int64 in little-endian."""
    return [number.tobytes() for number in logits.argmax(axis=-1).astype("<i8")]


def stacked(samples: Sequence[Any]) -> Any:
    """float [n, 3, height, width].

    Raises:
        BadInput: the pictures came out in different sizes.
    """
    if len(samples) == 1:
        return samples[0][None]
    try:
        return np.stack(samples)
    except ValueError as exc:
        raise BadInput(
            "The pictures come out in different sizes, for this model keeps proportions.", "Give --batch 1."
        ) from exc


def open_pipeline(plan: LoadPlan, artifact: Artifact, labels: bool, most: int) -> tuple[Answering, str]:
    """The artifact, opened as the plan says; and which device was chosen, in words.

    Raises:
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    from ...pipelines.load import load
    from ...runtimes.base import Options

    chosen: list[str] = []
    options = Options(threads=plan.threads)
    pipeline = load(artifact, plan.device, options=options, runtime=plan.runtime, say=chosen.append, prompt_bytes=0)
    said = chosen[0] if chosen else str(plan.device)
    if labels:
        return Labels(cast("ClassificationPipeline", pipeline), most), said
    return Pictures(cast("DiffusionPipeline", pipeline), most, plan.steps or STEPS), said
