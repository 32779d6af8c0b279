"""Where the labels of a scatter plot go, so that none lies on another or on a point.

Positions are tried one after another from near to far, the points of highest priority first (a greedy form of the
point-feature label placement of Christensen, Marks and Shieber, 1995).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, hypot, radians, sin


@dataclass(frozen=True)
class Box:
    """A rectangle by its lower left corner; any unit."""

    x: float
    y: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        across = min(self.x + self.width, other.x + other.width) - max(self.x, other.x)
        along = min(self.y + self.height, other.y + other.height) - max(self.y, other.y)
        return max(across, 0.0) * max(along, 0.0)

    def crossed(self, a: tuple[float, float], b: tuple[float, float]) -> bool:
        """Whether the line from a to b passes through it."""
        near, far = 0.0, 1.0
        for start, end, low, size in ((a[0], b[0], self.x, self.width), (a[1], b[1], self.y, self.height)):
            step = end - start
            if step == 0:
                if not low <= start <= low + size:
                    return False
                continue
            first, last = sorted(((low - start) / step, (low + size - start) / step))
            near, far = max(near, first), min(far, last)
        return near < far


@dataclass(frozen=True)
class Placed:
    """A label's box. anchor: the point of the box that a line to its point ends at; None where it needs no line."""

    box: Box
    anchor: tuple[float, float] | None


# degrees, in the order in which they are tried: right, left, above, below, then between
_ANGLES = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)
_DISTANCES = (0.0, 10.0, 20.0, 32.0, 46.0, 62.0, 80.0, 100.0, 125.0)


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    radius: float,
    obstacles: Sequence[Box] = (),
) -> tuple[list[Placed], bool]:
    """A place for each label, in the points' order, which is that of their priority.

    Args:
        points, sizes: of the labels, in the unit of `inside`, which none leaves.
        radius: of a point's mark.
        obstacles: what labels keep off besides the marks.

    Returns:
        The places, and whether no two of all these overlap.
    """
    marks = [Box(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in points]
    count = len(points)
    tried = [
        [
            (_fixed_cost(c, point, inside, marks, obstacles) + 1e-4 * number, c)
            for number, c in enumerate(_candidates(point, size, radius))
        ]
        for point, size in zip(points, sizes, strict=True)
    ]
    # the order in which they are placed decides much; the first is that of their priority
    orders: list[Sequence[int]] = [range(count), range(count - 1, -1, -1)]
    orders += [sorted(range(count), key=lambda i: sign * points[i][axis]) for axis in (0, 1) for sign in (1, -1)]
    least, best = float("inf"), dict[int, Placed]()
    for order in orders:
        total, placed = _in_order(order, points, tried)
        if total < least:
            least, best = total, placed
        if least < 1:
            break
    return [best[i] for i in range(count)], least < 1


def _in_order(
    order: Sequence[int], points: Sequence[tuple[float, float]], tried: Sequence[Sequence[tuple[float, Placed]]]
) -> tuple[float, dict[int, Placed]]:
    """Each label at its cheapest place beside those before it; the sum of the costs."""
    placed: dict[int, Placed] = {}
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    total = 0.0
    for i in order:
        least, found = float("inf"), tried[i][0][1]
        for fixed, candidate in tried[i]:
            if fixed < least:
                cost = fixed + _cost(candidate, points[i], placed.values(), lines)
                least, found = (cost, candidate) if cost < least else (least, found)
        total += least
        placed[i] = found
        if found.anchor is not None:
            lines.append((points[i], found.anchor))
    return total, placed


def _candidates(point: tuple[float, float], size: tuple[float, float], radius: float) -> list[Placed]:
    x, y = point
    width, height = size
    found = []
    for distance in _DISTANCES:
        for angle in _ANGLES:
            dx, dy = cos(radians(angle)), sin(radians(angle))
            reach = radius + 2.5 + distance
            # the box touches a circle around the point where that looks at it
            left = x + reach * dx - width * (1 - dx) / 2
            low = y + reach * dy - height * (1 - dy) / 2
            box = Box(left, low, width, height)
            anchor = (min(max(x, left), left + width), min(max(y, low), low + height))
            far = hypot(anchor[0] - x, anchor[1] - y) > radius + 7
            found.append(Placed(box, anchor if far else None))
    return found


def _fixed_cost(
    candidate: Placed, point: tuple[float, float], inside: Box, marks: Sequence[Box], obstacles: Sequence[Box]
) -> float:
    """Of what does not move: 0 where it touches nothing and leaves nothing; else 1 or more."""
    box = candidate.box
    outside = box.width * box.height - box.overlap(inside)
    hidden = sum(_padded(box).overlap(other) for other in (*marks, *obstacles))
    passed = 0
    if candidate.anchor is not None:  # a line through another point would seem to be that one's
        own = Box(*point, 0, 0)
        passed = sum(mark.crossed(point, candidate.anchor) for mark in marks if not _holds(mark, own))
    return 20.0 * passed + (1 + hidden if hidden > 0.01 else 0.0) + (1000 + outside if outside > 0.01 else 0.0)


def _cost(
    candidate: Placed,
    point: tuple[float, float],
    placed: Iterable[Placed],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> float:
    """Of the labels that have their places, and their lines."""
    padded, others = _padded(candidate.box), list(placed)
    hidden = sum(padded.overlap(other.box) for other in others)
    crossed = sum(padded.crossed(a, b) for a, b in lines)
    if candidate.anchor is not None:
        crossed += sum(other.box.crossed(point, candidate.anchor) for other in others)
    return (1 + hidden if hidden > 0.01 else 0.0) + 50.0 * crossed


def _holds(mark: Box, point: Box) -> bool:
    return mark.x <= point.x <= mark.x + mark.width and mark.y <= point.y <= mark.y + mark.height


def _padded(box: Box) -> Box:
    return Box(box.x - 1.5, box.y - 0.5, box.width + 3, box.height + 1)
