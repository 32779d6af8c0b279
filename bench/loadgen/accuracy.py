"""What an accuracy run answered: the labels, or the pictures, that LoadGen wrote down in hexadecimal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import BadInput
from .log import ACCURACY

ANSWERS = "answers.json"
PICTURES = "pictures"


def read_answers(folder: Path) -> dict[int, bytes]:
    """Number of the sample -> the answer's bytes.

    Raises:
        BadInput: LoadGen's accuracy log is missing or damaged.
    """
    file = folder / ACCURACY
    try:
        return {int(one["qsl_idx"]): bytes.fromhex(one["data"]) for one in json.loads(file.read_bytes())}
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise BadInput(f"{file} cannot be read: {exc}.", "Run it again.") from exc


def write_labels(
    folder: Path, names: Sequence[str], truths: Sequence[int | None], labels: Sequence[str]
) -> dict[str, Any]:
    """Write each picture's label to answers.json.

    Returns:
        How many were labelled, how often each label was given, and how many were right of those whose truth is known.
    """
    given = {number: int.from_bytes(data, "little") for number, data in read_answers(folder).items()}
    rows = [
        {"picture": names[number], "label": labels[label]}
        | ({"truth": labels[truth]} if (truth := truths[number]) is not None else {})
        for number, label in sorted(given.items())
    ]
    (folder / ANSWERS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    known = [(label, truths[number]) for number, label in given.items() if truths[number] is not None]
    right = sum(label == truth for label, truth in known)
    return {
        "samples": len(given),
        "labels": dict(Counter(row["label"] for row in rows).most_common()),
        "known": len(known),
        "right": right,
        "accuracy": right / len(known) if known else None,
    }


def write_pictures(folder: Path, prompts: Sequence[str], size: Sequence[int | None]) -> dict[str, Any]:
    """Write each picture as a PNG, and which prompt it is of to answers.json.

    Args:
        size: width and height of answers that are bare pixels; those of a server are PNG files.
    """
    from PIL import Image

    (folder / PICTURES).mkdir(exist_ok=True)
    rows: list[Mapping[str, Any]] = []
    for number, data in sorted(read_answers(folder).items()):
        file = folder / PICTURES / f"{number:04}.png"
        if data.startswith(b"\x89PNG"):
            file.write_bytes(data)
        else:
            width, height = (side or 0 for side in size)
            Image.frombytes("RGB", (width, height), data).save(file)
        rows.append({"prompt": prompts[number], "seed": number, "picture": f"{PICTURES}/{file.name}"})
    (folder / ANSWERS).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return {"samples": len(rows), "pictures": PICTURES}
