"""What an OpenVINO IR says of its constants, read with no library: the .xml names the bytes of the .bin beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from ..core.errors import BadArtifact


@dataclass(frozen=True)
class Constant:
    """type: as the IR writes it, such as "f32" or "i4". offset: of its first byte in the .bin."""

    type: str
    shape: tuple[int, ...]
    offset: int


def constant_bytes(graph: Path) -> int:
    """Bytes of all constants of an IR, as they are stored; raises as `constants` does."""
    found = constants(graph).values()
    return sum(math.prod(one.shape) * int(next(iter(re.findall(r"\d+", one.type)), 8)) for one in found) // 8


def constants(graph: Path) -> dict[str, Constant]:
    """Every constant of an IR by its name.

    Raises:
        BadArtifact: the file is missing or is no IR.
    """
    found: dict[str, Constant] = {}
    try:
        for _, layer in ElementTree.iterparse(graph):
            if layer.tag != "layer":
                continue
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                sizes = [int(d) for d in data.attrib.get("shape", "").split(",") if d.strip()]
                offset = int(data.attrib["offset"])
                found[layer.attrib["name"]] = Constant(data.attrib["element_type"], tuple(sizes), offset)
            layer.clear()  # a large model has many
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as exc:
        raise BadArtifact(f"{graph} does not load: {exc}.", "Copy the whole folder again or export again.") from exc
    return found
