"""People as coloured skeletons on black, as OpenPose draws them: what the pose ControlNets were trained on."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SEEN = 0.3  # points with a lower score are not drawn

# OpenPose's 18 points: nose, neck, right shoulder, elbow, wrist, the left ones, right hip, knee, ankle, the left ones,
# right eye, left eye, right ear, left ear
_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
_COLOURS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
_FROM_COCO = (0, -1, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)  # -1 is the neck, which COCO does not have
_COCO_SHOULDERS = (5, 6)
_WIDTH = 4  # half the thickness of a limb and the radius of a joint, in a picture of `_SIDE`
_SIDE = 512
_DIM = 0.6  # limbs are darker than the joints on them

Floats = npt.NDArray[np.float32]


def draw_people(people: Floats, size: tuple[int, int]) -> Image.Image:
    """The skeletons, RGB of `size` (width, height).

    Args:
        people: [n, 17, 3] in COCO's order or [n, 18, 3] in OpenPose's: x and y as parts of width and height, a score.
    """
    picture = Image.new("RGB", size)
    brush = ImageDraw.Draw(picture)
    radius = max(1.0, _WIDTH * min(size) / _SIDE)
    for person in people:
        points = _with_neck(person) if len(person) == 17 else person
        places = [(float(x) * size[0], float(y) * size[1]) for x, y, _ in points]
        seen = [float(score) >= SEEN for *_, score in points]
        for (start, end), colour in zip(_LIMBS, _COLOURS, strict=False):
            if seen[start] and seen[end]:
                dim = tuple(int(value * _DIM) for value in colour)
                brush.polygon(_ellipse(places[start], places[end], radius), fill=dim)
        for (x, y), visible, colour in zip(places, seen, _COLOURS, strict=True):
            if visible:
                brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _with_neck(person: Floats) -> Floats:
    """COCO's 17 points in OpenPose's order; the neck is between the shoulders, where both are seen."""
    shoulders = person[list(_COCO_SHOULDERS)]
    neck = np.append(shoulders[:, :2].mean(axis=0), shoulders[:, 2].min())
    ordered: Floats = np.stack([neck if index < 0 else person[index] for index in _FROM_COCO])
    return ordered


def _ellipse(start: tuple[float, float], end: tuple[float, float], radius: float) -> list[tuple[float, float]]:
    """An ellipse from joint to joint, as a polygon."""
    (x, y), (to_x, to_y) = start, end
    angle, half = math.atan2(to_y - y, to_x - x), math.hypot(to_x - x, to_y - y) / 2
    middle = ((x + to_x) / 2, (y + to_y) / 2)
    corners = []
    for step in range(36):
        along, across = half * math.cos(step * math.pi / 18), radius * math.sin(step * math.pi / 18)
        corners.append(
            (
                middle[0] + along * math.cos(angle) - across * math.sin(angle),
                middle[1] + along * math.sin(angle) + across * math.cos(angle),
            )
        )
    return corners
