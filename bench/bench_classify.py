"""classify: process start to printed label, beside transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from .compiled import artifact, environment, export
from .measure import Case
from .models import VIT_B, make_picture
from .preparing import OFFLINE, untimed
from .suite import Bench, Comparison

TRANSFORMERS = "transformers pipeline"
_PIPELINE = """
import json, sys
from transformers import pipeline
print(json.dumps(pipeline("image-classification", model=sys.argv[1])(sys.argv[2])))
"""


def cases(work: Path) -> list[Case]:
    """Process start to label, both from disk; a label that differs between the two is a failure."""
    model, picture = work / "models" / VIT_B, work / "picture.png"
    exported = artifact(work, VIT_B)
    said: dict[str, str] = {}

    def agree(case: str, text: str) -> Mapping[str, float]:
        said[case] = best_label(text)
        if len(set(said.values())) > 1:
            raise BadInput(f"The labels differ: {said}.", f"Check the artifact: vitrify verify {exported}")
        return {}

    return [
        Case(
            "vitrify classify",
            [sys.executable, "-m", "vitrify", "classify", str(exported), str(picture), "--json"],
            environment(work),
            group="classify",
            after=lambda text: agree("vitrify", text),
        ),
        Case(
            TRANSFORMERS,
            [sys.executable, "-c", _PIPELINE, str(model), str(picture)],
            OFFLINE,
            group="classify",
            after=lambda text: agree("transformers", text),
        ),
    ]


def best_label(text: str) -> str:
    """The label with the highest score in the JSON that a classifier printed.

    Raises:
        BadInput: it printed none.
    """
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise BadInput(f"{text[:200]!r} is not JSON.", "Run the command alone.") from exc
    found = list(_scored(data))
    if not found:
        raise BadInput(f"{text[:200]!r} holds no label with a score.", "Run the command alone.")
    return max(found)[1]


def _scored(data: Any) -> Iterable[tuple[float, str]]:
    if isinstance(data, dict) and "label" in data and "score" in data:
        yield float(data["score"]), str(data["label"])
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _scored(item)


def prepare(work: Path) -> None:
    untimed("making the random vit-b", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "vit-b"])
    make_picture(work / "picture.png")
    export(work, VIT_B)


# A label is asked for again and again, so each case has run once before it counts.
CLASSIFY = Bench("classify", cases, prepare, (Comparison("classify", TRANSFORMERS),), warmup=1)
