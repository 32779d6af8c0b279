"""A report as it is read: its parts, figures, pictures, and what it makes of names that are markup."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.bench.report import Bar, write_report
from vitrify.bench.report.command import commands
from vitrify.bench.report.drawing import LIGHT, prefixed, standalone
from vitrify.bench.report.machines import between
from vitrify.bench.report.plots import Bar as Row
from vitrify.bench.report.plots import Value, bars
from vitrify.bench.report.scatter import Point, front
from vitrify.bench.report.words import number
from vitrify.bench.results import Results, read_results
from vitrify.bench.summary import figure
from vitrify.core.errors import MissingDependency, UsageError

RESULTS = Path(__file__).parents[1] / "fixtures/bench/results-1.jsonl"
EVIL = '<script>alert(1)</script> & "quoted" | `tick` $x$ [a](b) ${y}'


class Page(HTMLParser):
    """Its text, tags, attributes; that every element which needs an end has one."""

    VOID = ("meta", "img", "br", "link", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def results() -> Results:
    return read_results(RESULTS)


def written(results: Sequence[Results], folder: Path, bar: Bar | None = None) -> tuple[Page, str]:
    page, text = write_report(results, folder, bar)
    assert (page, text) == (folder / "report.html", folder / "report.md")
    found = Page(page.read_text(encoding="utf-8"))
    assert found.open == []
    return found, text.read_text(encoding="utf-8")


def of_one(results: Results, model: str = "emoji", **changes: Any) -> Results:
    """The results of one model, for a quick report."""
    return replace(results, cells=[c for c in results.cells if c.spec.model == model], skipped=[], **changes)


def test_a_report_of_one_machine(results: Results, tmp_path: Path) -> None:
    page, text = written([results], tmp_path / "new")
    order = [
        "What to choose",
        "The machine",
        "Measurements",
        "Sample pictures",
        "Skipped",
        "Failed",
        "How it was measured",
    ]
    for found in (page.text, text):
        places = [found.index(part) for part in order]
        assert places == sorted(places)
        for cell in results.measured:
            latency, memory = cell.figure("latency_ms"), cell.figure("peak_mb")
            assert latency is not None
            assert memory is not None
            for what in (cell.spec.how, number(latency.median), number(memory.median)):
                assert what in found
        for line in results.skipped:
            assert line["what"] in found
            assert line["fix"] in found
        assert "bytes, the manifest says" in found  # what the failed cell said
        assert f"torch {results.versions['torch']}" in found
    base = next(c for c in results.measured if c.spec.recipe == "fp32")
    assert f"Ratios are to {base.spec.how}" in page.text


def test_a_page_needs_nothing_else(results: Results, tmp_path: Path) -> None:
    page, text = written([of_one(results)], tmp_path)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/png;base64,", "#")), (tag, value)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and value.startswith("default-src"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"url\(#([^)]+)\)", raw)) <= set(ids)
    assert not re.search(r"url\((?!#)", raw)
    assert {v for _, n, v in page.attributes if n == "xlink:href"} <= {f"#{i}" for i in ids}
    # every variable that a drawing names is one of the page's
    assert set(re.findall(r"var\(--(\w+)\)", raw)) <= set(LIGHT) | {"tint", "warn"}
    for shown in re.findall(r"\]\((report-files/[^)]+)\)", text):
        assert (tmp_path / shown).stat().st_size > 0


def test_an_earlier_reports_files_do_not_stay(results: Results, tmp_path: Path) -> None:
    beside = tmp_path / "report-files"
    beside.mkdir()
    (beside / "old.svg").write_text("<svg/>")
    (beside / "mine.txt").write_text("kept")
    written([of_one(results, "emotions")], tmp_path)
    assert not (beside / "old.svg").exists()
    assert (beside / "mine.txt").exists()


def test_markup_in_names_stays_text(results: Results, tmp_path: Path) -> None:
    cells = []
    for cell in results.cells:
        if cell.spec.model != "emoji":
            continue
        spec = replace(cell.spec, model=EVIL, options={"x": EVIL})
        samples = [replace(s, case=spec.name, group=spec.asked) for s in cell.samples]
        facts = {**cell.facts, "pictures": [{"prompt": EVIL, "reference": EVIL, "artifact": "\0"}]}
        cells.append(replace(cell, spec=spec, samples=samples, facts=facts, failure=cell.failure and f"{EVIL}\n```"))
    skipped = [{"case": EVIL, "what": EVIL, "fix": EVIL}]
    machine, versions = {**results.machine, "cpu": EVIL, "gpus": [{"name": EVIL, "driver": None}]}, {EVIL: EVIL}
    page, text = written([replace(results, cells=cells, skipped=skipped, machine=machine, versions=versions)], tmp_path)
    assert "script" not in page.tags
    assert page.text.count('<script>alert(1)</script> & "quoted" | `tick` $x$ [a](b) ${y}') > 20
    outside = re.sub(r"(?ms)^(`{3,})\n.*?\n\1$", "", text)  # what stands in fences is shown as it is
    assert "<script" not in outside
    assert "[a](b)" not in outside
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables if EVIL[:4] in line or "alert" in line}
    assert widths
    assert "````" in text  # the failure's own fence does not end ours


def test_pictures_stand_beside_their_own_reference(results: Results, tmp_path: Path) -> None:
    for number_, name in enumerate(("a", "b", "other")):
        Image.new("RGB", (64, 64), (90 * number_, 40, 10)).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGB", (1024, 512), (1, 2, 3)).save(tmp_path / "large.png")
    chosen = [c for c in results.measured if c.spec.model == "emoji"][:3]
    named: list[list[dict[str, str]]] = [
        [{"prompt": "an apple", "reference": "a.png", "artifact": "b.png"}],
        [{"prompt": "an apple", "reference": "a.png", "artifact": "broken.png"}],
        [
            {"prompt": "an apple", "reference": "other.png", "artifact": str(tmp_path / "large.png")},
            {"prompt": "a pear", "reference": "gone.png", "artifact": "a.png"},
        ],
    ]
    cells = [replace(c, facts={**c.facts, "pictures": p}) for c, p in zip(chosen, named, strict=True)]
    page, text = written([replace(results, path=tmp_path / "results.jsonl", cells=cells, skipped=[])], tmp_path)
    assert page.text.count("an apple") == 2  # two references, two rows
    assert "broken.png" in page.text
    assert "gone.png is not there" in page.text
    assert "gone.png is not there" in text
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 5
    shown = {base64.b64decode(s.partition(",")[2])[16:24] for s in sources}
    assert {(int.from_bytes(s[:4]), int.from_bytes(s[4:])) for s in shown} == {(64, 64), (320, 160)}
    assert "artifacts whose proof drew with other steps or sizes have rows of their own" in page.text


def test_several_machines_side_by_side(results: Results, tmp_path: Path) -> None:
    slower = [
        replace(
            c, samples=[replace(s, values={**s.values, "latency_ms": 2 * s.values["latency_ms"]}) for s in c.samples]
        )
        for c in results.cells
        if c.spec.model == "emotions"
    ]
    one, other = (
        of_one(results, "emotions"),
        of_one(results, "emotions", machine={**results.machine, "usable_cores": 1}),
    )
    other = replace(other, cells=slower, versions={**results.versions, "torch": "2.8.0"})
    page, text = written([one, other], tmp_path)
    for found in (page.text, text):
        assert "Unlike machines." in found
        assert "A and B differ in usable cores: 2 and 1." in found
        assert f"A and B have other versions of torch: {results.versions['torch']} and 2.8.0." in found
        assert "Side by side" in found
        assert "emotions on 2 machines" in found
        assert "Measured on machine B" in found
    cell = one.measured[0]
    latency = cell.figure("latency_ms")
    assert latency is not None
    row = next(line for line in text.splitlines() if line.startswith(f"| {cell.spec.how} | ") and line.count("|") == 11)
    assert f"| {number(latency.median)} (" in row
    assert f"| {number(2 * latency.median)} (" in row
    assert "| 2.00 (" in row  # B beside A
    alike, _ = written([one, one], tmp_path / "alike")
    assert "Unlike machines" not in alike.text


def test_ratios_between_machines_have_the_widest_range() -> None:
    found = between(figure([10.0, 12.0, 14.0]), figure([4.0, 5.0, 6.0]))
    assert found is not None
    assert (found.median, found.low, found.high) == pytest.approx((2.4, 10 / 6, 14 / 4))
    assert between(figure([1.0]), None) is None
    assert between(figure([1.0]), figure([0.0])) is None


def test_what_was_not_reached_or_not_measured_is_said(results: Results, tmp_path: Path) -> None:
    cells = [replace(c, samples=[], failure=None) for c in results.cells if c.spec.model == "emoji"]
    page, _ = written([replace(results, cells=cells, skipped=[])], tmp_path)
    assert "Nothing of it was measured." in page.text
    assert f"The run ended before it came to {cells[0].name}," in page.text


def test_one_cell_without_a_quality_has_no_front(results: Results, tmp_path: Path) -> None:
    cell = replace(results.measured[0], facts={"artifact": "a"})
    page, text = written([replace(results, cells=[cell], skipped=[])], tmp_path)
    assert "Fewer than two cells have a known quality" in page.text
    assert "its quality was not measured" in text or "Stay with the baseline" in text


def test_a_bar_is_named(results: Results, tmp_path: Path) -> None:
    page, _ = written([of_one(results)], tmp_path, Bar(psnr_db=30))
    assert "Asked of quality: 30 dB to the source's pictures." in page.text
    assert "of those that reach 30 dB to the source's pictures" in page.text


def test_the_command_measures_the_same_again(results: Results) -> None:
    first, second = commands(results)
    assert "--runtime onnx,openvino,torch --quant fp32,int8-static,int4-weights" in first
    assert "--size 64x64 --batch 1 --threads 0 --steps 10 --guidance 7.5" in first
    assert first.startswith("vitrify bench ")
    assert "--calibration FOLDER" in second
    assert all("--rounds 3 --seconds 1.0 --calls 5" in c for c in (first, second))
    kept = replace(results, plan={**results.plan, "command": ["vitrify", "bench", "a b"]})
    assert commands(kept) == ["vitrify bench 'a b'"]


def test_it_says_that_matplotlib_is_missing(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r'need matplotlib. pip install "vitrify\[bench\]"'):
        write_report([results], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_no_results_are_no_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no results"):
        write_report([], tmp_path)


def test_drawings_are_the_same_each_time_and_hold_what_was_given() -> None:
    rows = [Row("a $x$", 0, [Value(10, 9, 12), None], True), Row("b", 1, [Value(20, 20, 20), Value(5, 5, 5)])]
    wide, narrow = bars(rows, ["latency, ms", "memory, MB"], ["onnx", "torch"])
    assert bars(rows, ["latency, ms", "memory, MB"], ["onnx", "torch"]) == (wide, narrow)
    assert "var(--c1)" in wide
    assert not re.search(r"#[0-9a-f]{6}\b", wide)  # no colour of its own
    assert "<dc:date>" not in wide
    alone = standalone(wide)
    assert "var(" not in alone
    assert LIGHT["c1"] in alone
    assert 'id="p-axes_1"' in prefixed(wide, "p")


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_front_of_any_size_is_drawn(count: int) -> None:
    """Equal points, a wide range of latencies, qualities on both sides of what is seen."""
    points = [
        Point(f"cell {i}", i % 3, Value(10.0 * 2 ** (i // 2), 9.0, 11.0 * 2**i), 26.0 + 37 * (i % 3))
        for i in range(count)
    ]
    for svg in front(points, "latency, ms", "PSNR, dB", ["a", "b", "c"], "identical"):
        assert svg.count("<svg") == 1
