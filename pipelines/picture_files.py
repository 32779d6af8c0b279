"""Picture files to labels: one batch of them in memory at a time, and one that cannot be read stops no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..core.errors import BadInput
from .classification import Answer, ClassifyResult
from .images import open_image

NAMED = 10  # files that an error names; a folder may hold thousands


@dataclass(frozen=True)
class FileAnswer:
    """What came of one file: its answer, or the error that reading or preparing it met."""

    path: Path
    answer: Answer
    error: BadInput | None = None


def classify_files(
    paths: Sequence[Path],
    run: Callable[[Sequence[Image.Image]], ClassifyResult],
    *,
    batch: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> tuple[list[FileAnswer], dict[str, float]]:
    """Open, classify and drop `batch` files at a time.

    Args:
        run: answers pictures, as `ClassificationPipeline.run` does.
        on_batch: is told after each batch how many files are done, and of how many.

    Returns:
        One entry a file, in order; and the seconds of all runs, added up.
    """
    found: list[FileAnswer] = []
    seconds: dict[str, float] = {}
    for first in range(0, len(paths), batch):
        found += _batch(paths[first : first + batch], run, seconds)
        if on_batch is not None:
            on_batch(len(found), len(paths))
    return found, seconds


def _batch(
    paths: Sequence[Path], run: Callable[[Sequence[Image.Image]], ClassifyResult], seconds: dict[str, float]
) -> list[FileAnswer]:
    """A function of its own, so that no picture of a batch outlives it in a variable."""
    opened = [_opened(path) for path in paths]
    answers = iter(_answered([one for one in opened if isinstance(one, Image.Image)], run, seconds))
    outcomes = [next(answers) if isinstance(one, Image.Image) else one for one in opened]
    return [
        FileAnswer(path, [], one) if isinstance(one, BadInput) else FileAnswer(path, one)
        for path, one in zip(paths, outcomes, strict=True)
    ]


def _opened(path: Path) -> Image.Image | BadInput:
    try:
        return open_image(path)
    except BadInput as exc:
        return exc


def _answered(
    pictures: Sequence[Image.Image],
    run: Callable[[Sequence[Image.Image]], ClassifyResult],
    seconds: dict[str, float],
) -> list[Answer | BadInput]:
    """One outcome a picture; pictures that cannot be prepared together are prepared one at a time."""
    if not pictures:
        return []
    try:
        result = run(pictures)
    except BadInput as exc:
        if len(pictures) == 1:
            return [exc]
        return [outcome for one in pictures for outcome in _answered([one], run, seconds)]
    for stage, took in result.timings.items():
        seconds[stage] = seconds.get(stage, 0.0) + took
    return list(result.answers)


def failure(found: Sequence[FileAnswer]) -> BadInput | None:
    """One error for all files that have one; the very error where there was but one file."""
    failed = [one for one in found if one.error is not None]
    if not failed:
        return None
    if len(found) == 1:
        return failed[0].error
    names = ", ".join(str(one.path) for one in failed[:NAMED])
    more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    what = f"{len(failed)} of {len(found)} pictures could not be labelled: {names}{more}."
    return BadInput(what, "See what is said of each; repair them or leave them out.")
