"""JSON objects read from files that others wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import BadInput


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BadInput: missing, not readable, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise BadInput(f"{path} is missing.", "Download the model again, whole.") from exc
    except (OSError, ValueError, RecursionError) as exc:  # no text, no JSON, or JSON nested without end
        raise BadInput(f"{path} is not readable JSON: {exc}.", "Download the model again.") from exc
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds no JSON object.", "Download the model again.")
    return data
