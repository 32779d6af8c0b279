"""Names of points: none on another, none on a point, all inside."""

from __future__ import annotations

from itertools import combinations

import pytest

from vitrify.bench.report.labels import Box, place

INSIDE = Box(0, 0, 600, 300)


def test_crowded_labels_do_not_meet() -> None:
    """Sixteen points as a matrix has them: three levels of quality, several latencies close to each other."""
    points = [(60 + 34.0 * i + 5 * level, 40.0 + 100 * level) for level in range(3) for i in range(5)] + [(64.0, 41.0)]
    sizes = [(90.0 + 3 * (i % 4), 9.0) for i in range(16)]
    placed, clean = place(points, sizes, INSIDE, 4.0)
    assert clean
    assert all(a.box.overlap(b.box) == 0 for a, b in combinations(placed, 2))
    marks = [Box(x - 4, y - 4, 8, 8) for x, y in points]
    assert all(p.box.overlap(mark) == 0 for p in placed for mark in marks)
    assert all(p.box.overlap(INSIDE) == pytest.approx(p.box.width * p.box.height) for p in placed)


def test_a_label_alone_stands_beside_its_point_and_one_far_off_has_a_line() -> None:
    (found,), clean = place([(300, 150)], [(50, 10)], INSIDE, 4.0)
    assert clean
    assert found.anchor is None
    assert found.box == Box(306.5, 145.0, 50, 10)
    wall = [Box(250, 120, 110, 60)]
    (found,), clean = place([(300, 150)], [(50, 10)], INSIDE, 4.0, wall)
    assert clean
    assert found.anchor is not None
    assert found.box.overlap(wall[0]) == 0


def test_it_says_where_there_is_no_room() -> None:
    _, clean = place([(10, 10), (12, 10)], [(500, 200), (500, 200)], INSIDE, 4.0)
    assert not clean


@pytest.mark.parametrize(
    ("a", "b", "crossed"),
    [((0, 5), (20, 5), True), ((0, 0), (20, 20), True), ((0, 11), (20, 11), False), ((0, 20), (4, 0), False)],
)
def test_lines_through_a_box(a: tuple[float, float], b: tuple[float, float], crossed: bool) -> None:
    assert Box(5, 0, 10, 10).crossed(a, b) is crossed
