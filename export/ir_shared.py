"""An IR that was cut out of another one reads its constants from that one's .bin, so that none lies on disk twice.

An .xml names the place of each constant in the .bin beside it, which becomes a hard link to the other's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..core.artifact import Component
from ..core.publish import can_link, disk_errors, link_or_copy
from ..core.tensors import Array


def share_constants(part: Component, whole: Component) -> Component:
    """The part with its constants in the whole one's file; as it is where one of them is not there, or no link can be.

    Args:
        part, whole: format openvino, below one root.

    Raises:
        DiskError: the disk is full.
    """
    graph, own, other = part.graph_path, _bin(part), _bin(whole)
    if not can_link(other, graph.parent):
        return part
    tree = ElementTree.parse(graph)
    if not _moved(tree.getroot(), np.memmap(own, np.uint8, "r"), whole.graph_path, np.memmap(other, np.uint8, "r")):
        return part
    with disk_errors(part.root):
        tree.write(graph, encoding="utf-8", xml_declaration=True)
        own.unlink()
        link_or_copy(other, own)
    (file,), (shared,) = part.weights, whole.weights
    return replace(part, weights=(replace(shared, path=file.path),))


def _bin(component: Component) -> Path:
    return component.graph_path.with_suffix(".bin")


def _moved(graph: ElementTree.Element, values: Array, whole: Path, there: Array) -> bool:
    """Point every constant to the same bytes of the whole one's; False where it has not got them all."""
    by_name: dict[str, int] = {}
    by_size: dict[int, dict[int, None]] = {}  # the places of constants of a size; scales have no names of their own
    for name, data in _constants(ElementTree.parse(whole).getroot()):
        start, size = int(data.attrib["offset"]), int(data.attrib["size"])
        by_name[name] = start
        by_size.setdefault(size, {})[start] = None
    for name, data in _constants(graph):
        start, size = int(data.attrib["offset"]), int(data.attrib["size"])
        mine, places = values[start : start + size], by_size.get(size, {})
        first = [by_name[name]] if by_name.get(name) in places else []
        found = (place for place in (*first, *places) if np.array_equal(mine, there[place : place + size]))
        place = next(found, None)
        if place is None:
            return False
        data.set("offset", str(place))
    return True


def _constants(graph: ElementTree.Element) -> list[tuple[str, ElementTree.Element]]:
    """Name and place of each constant."""
    found = [(layer, layer.find("data")) for layer in graph.iter("layer") if layer.get("type") == "Const"]
    return [(layer.attrib["name"], data) for layer, data in found if data is not None]
