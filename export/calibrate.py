"""What a component really gets to compute: its inputs, recorded while its pipeline runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..core.artifact import Artifact
from ..core.errors import BadInput
from ..core.progress import Event, Report, silent
from ..core.tensors import Array
from ..pipelines.images import expand, open_image
from ..pipelines.load import load
from ..pipelines.pictures_in import made_up
from ..runtimes.base import Options, Session
from ..runtimes.forwarding import ForwardingSession

Recorded = dict[str, list[dict[str, Array]]]
STEPS = 20
LIMIT = 500_000_000  # bytes of recorded inputs of one component

# Everyday subjects, styles and a few hard ones (text, hands, crowds), written for this project.
PROMPTS = (
    *("a happy face", "a sad face", "a red apple on a table", "a ghost", "a rocket at night", "a cactus in the desert"),
    *("an owl", "a slice of pizza", "a cat asleep on a chair", "two dogs running on a beach", "a bowl of soup"),
    *("a city street in the rain, photograph", "a mountain lake at dawn", "a portrait of an old man, oil painting"),
    *("a child with an umbrella", "a green car", "a wooden house in the snow", "a bunch of flowers, watercolour"),
    *("a crowd at a concert", "a hand holding a pen", "a sign that says open", "an astronaut riding a horse"),
    *("a blue bird on a branch", "a glass of water", "a bicycle against a wall", "a train station, wide angle"),
    *("a plate of fruit, still life", "a robot", "a castle on a hill", "a ship in a storm", "a clock", "a candle"),
)


class Recorder(ForwardingSession):
    """A session that keeps what it is given.

    keep: asked with the number of the call, whether to keep that one. count: told how many calls were done.
    """

    def __init__(self, session: Session, keep: Callable[[int], bool], count: Callable[[int], None]) -> None:
        super().__init__(session)
        self._keep, self._count = keep, count
        self.calls = 0
        self.seen: list[dict[str, Array]] = []

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        if self._keep(self.calls):
            self.seen.append({name: np.array(value) for name, value in tensors.items()})
        out = super().run(tensors)
        self.calls += 1
        self._count(self.calls)
        return out


def record_inputs(
    artifact: Artifact,
    components: Sequence[str],
    samples: int,
    given: Path | None = None,
    report: Report = silent,
    steps: int = STEPS,
) -> Recorded:
    """Run the artifact's pipeline and keep up to `samples` inputs of each of `components`.

    A diffusion pipeline draws as many prompts as it takes to see every timestep: the samples are spread evenly over
    prompts and steps, which quantization ranges depend on.

    Args:
        given: a text file with one prompt a line; for a classifier a folder of pictures. None: the built-in prompts.

    Raises:
        BadInput: no prompts or pictures.
    """
    if "classify" in artifact.pipeline["tasks"]:
        return _from_pictures(artifact, components, samples, given, report)
    prompts = read_prompts(given) if given is not None else list(PROMPTS)
    count = min(len(prompts), max(1, -(-samples // 4)))  # at least four steps of each
    return _from_prompts(artifact, components, samples, prompts[:count], steps, report)


def read_prompts(file: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        BadInput: not a text file, or no prompt in it.
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"{file} cannot be read as text: {exc}.", "Give a text file with one prompt a line.") from exc
    prompts = [line for line in lines if line]
    if not prompts:
        raise BadInput(f"{file} holds no prompt, and calibration needs some.", "Write one prompt a line into it.")
    return prompts


def _from_prompts(
    artifact: Artifact, components: Sequence[str], samples: int, prompts: list[str], steps: int, report: Report
) -> Recorded:
    chosen = _pairs(samples, len(prompts), steps)
    total = len(prompts) * steps

    def count(done: int) -> None:
        report(Event("calibrate", done, total, "steps"))

    def keep(call: int) -> bool:
        return divmod(call, steps) in chosen

    with _recording(artifact, components, keep, count) as (pipeline, recorders):
        height, width = pipeline.settings["size"]
        start = made_up(pipeline.settings["tasks"], (height, width))
        for number, prompt in enumerate(prompts):
            pipeline.generate(prompt, steps=steps, seed=number, width=width, height=height, **start)
        return _bounded(recorders, report)


def _from_pictures(
    artifact: Artifact, components: Sequence[str], samples: int, given: Path | None, report: Report
) -> Recorded:
    if given is None:
        raise BadInput(
            "Calibrating a classifier needs pictures of the kind that it will see.", "Give --calibration FOLDER."
        )
    paths = expand([given])
    if not paths:
        raise BadInput(f"{given} holds no picture, and calibration needs some.", "Give a folder of PNG or JPEG files.")
    chosen = [p for number, p in enumerate(paths) if _spread(samples, len(paths))(number)]

    def count(done: int) -> None:
        report(Event("calibrate", done, len(chosen), "pictures"))

    with _recording(artifact, components, lambda call: True, count) as (pipeline, recorders):
        for path in chosen:
            pipeline.classify([open_image(path)])
        return _bounded(recorders, report)


@contextmanager
def _recording(
    artifact: Artifact, components: Sequence[str], keep: Callable[[int], bool], count: Callable[[int], None]
) -> Any:
    pipeline = load(artifact, "cpu", options=Options())
    try:
        sessions: Any = pipeline.sessions
        recorders = {name: Recorder(sessions[name], keep, count) for name in components}
        sessions.update(recorders)
        yield pipeline, recorders
    finally:
        pipeline.close()


def _pairs(samples: int, prompts: int, steps: int) -> set[tuple[int, int]]:
    """`samples` of all (prompt, step), each prompt and each step as often as any other, give or take one."""
    samples = min(samples, prompts * steps)
    return {(number % prompts, number * steps // samples) for number in range(samples)}


def _spread(samples: int, total: int) -> Callable[[int], bool]:
    """Keeps `samples` of `total` calls, evenly: call i where the running share reaches the next whole number."""
    share = min(1.0, samples / max(total, 1))
    return lambda call: int((call + 1) * share) > int(call * share)


def _bounded(recorders: Mapping[str, Recorder], report: Report) -> Recorded:
    """What was seen, cut to `LIMIT` bytes a component."""
    found: Recorded = {}
    for name, recorder in recorders.items():
        size = sum(value.nbytes for one in recorder.seen for value in one.values())
        fits = len(recorder.seen) if size <= LIMIT else max(1, len(recorder.seen) * LIMIT // size)
        if fits < len(recorder.seen):
            report(
                Event("calibrate", note=f"{name}: {fits} of {len(recorder.seen)} samples kept, {LIMIT / 1e6:.0f} MB")
            )
        step = len(recorder.seen) / fits if fits else 1
        found[name] = [recorder.seen[int(i * step)] for i in range(fits)]
    return found
