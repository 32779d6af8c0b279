"""The page and the table, on results as a small run leaves them."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vitrify.demo.page import build_page, build_table, summary_lines
from vitrify.pipelines.images import save_png

VOID = {"meta", "link", "img"}


def _picture(root, file, prompt, seed, size=8):
    save_png(Image.new("RGB", (size, size), (seed * 20 % 256, 90, 90)), root / file, {"prompt": prompt, "seed": seed})
    return {"file": file, "prompt": prompt, "seed": seed, "width": size, "height": size}


@pytest.fixture
def results(tmp_path):
    (tmp_path / "pictures").mkdir()

    def draw(stem, prompts, size=8):
        return [_picture(tmp_path, f"pictures/{stem}-{i}.png", p, i, size) for i, p in enumerate(prompts)]

    proof = {
        "graph": {"max_abs": 1e-7, "relative": 1e-7},
        "weights": {"tensors": 12, "sha256": "0"},
        "numeric": {"max_abs": 2e-6, "relative": 1e-6},
    }
    drawn = {"images": {"pictures": 2, "steps": 4, "min_psnr_db": 81.5}, "labels": "not run"}
    read = {"images": "not run", "labels": {"pictures": 4, "max_score_difference": 1e-6}}
    figures = {
        "torch": {"median": 0.4, "min": 0.3, "max": 0.5},
        "runtime": {"median": 0.2, "min": 0.1, "max": 0.3},
        "rounds": 5,
        "ratio": 2.0,
        "threads": 2,
        "others": 0.05,
        "busy": False,
    }
    grid = []
    for size in (8, 16):
        for batch in (2, 1):
            pictures = draw(f"grid-{size}-{batch}", ["a red apple", "<b>fish & chips</b>"][:batch], size)
            grid.append({"size": size, "batch": batch, "seconds": 1.5, "pictures": pictures})
        grid[-1]["differs_from_batch"] = 0
    faces = [
        {"picture": p, "expected": e, "labels": [{"label": "sad", "score": 0.83}], "right": e == "sad"}
        for p, e in zip(draw("face", ["a sad face", "a happy face"]), ("sad", "happy"), strict=True)
    ]
    pairs = zip(draw("white", ["a fox face"]), draw("night", ["a fox face"]), strict=True)
    return {
        "date": "2026-01-02",
        "seconds": 150.4,
        "settings": {"steps": 20, "guidance": 3.0, "scheduler": "ddim", "threads": 2},
        "machine": {"cpu": "A CPU", "usable_cores": 2, "system": "Linux", "python": "CPython 3.11.7"},
        "versions": {"vitrify": "0.1.0"},
        "commands": [{"what": "Draw", "command": 'vitrify generate a "b" & c'}],
        "exports": [
            {
                "name": "emoji-diffusion",
                "components": {"unet": proof},
                "proof": drawn,
                "seconds": 70.0,
                "notes": ["made"],
            },
            {
                "name": "emoji-emotions",
                "components": {"model": proof},
                "proof": read,
                "seconds": 14.0,
                "notes": ["made"],
            },
        ],
        "grid": grid,
        "swap": {
            "name": "emoji-night",
            "components": {"unet": proof | {"numeric": "not run"}},
            "proof": {"images": "not run", "labels": "not run"},
            "seconds": 1.4,
            "proof_seconds": 3.0,
            "torch_imported": False,
            "notes": ["unet: graph 1234 from the cache"],
            "changed": 193,
            "tensors": 326,
            "bytes": 67808,
            "pairs": [{"before": a, "after": b} for a, b in pairs],
        },
        "faces": faces,
        "timing": {
            "draw": figures | {"min_psnr_db": 80.0},
            "read": figures | {"batch": 2, "max_score_difference": 1e-6},
        },
    }


class _Reader(HTMLParser):
    """Links, pictures and open elements of a page."""

    def __init__(self):
        super().__init__()
        self.links, self.pictures, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[k] for k in ("src", "href") if k in attrs]
        if tag == "img":
            self.pictures.append(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_file_is_there_and_nothing_comes_from_elsewhere(results, tmp_path):
    page = build_page(results)
    reader = _Reader()
    reader.feed(page)
    assert not reader.open
    written = {"results.json", "results.md"}
    assert all((tmp_path / link).is_file() for link in reader.links if link not in written)
    assert not re.search(r"https?:|//|@import|url\(|<script", page)
    assert len(reader.pictures) >= 6 + 2 + 2


def test_every_picture_says_what_it_shows(results):
    reader = _Reader()
    reader.feed(build_page(results))
    assert all(p["alt"] and p["width"] and p["height"] for p in reader.pictures)


def test_text_is_escaped(results):
    page = build_page(results)
    assert "<b>fish" not in page
    assert "&lt;b&gt;fish &amp; chips&lt;/b&gt;" in page
    assert "$" not in page  # every placeholder is filled


def test_the_page_does_not_hide_what_went_wrong(results):
    results = copy.deepcopy(results)
    results["swap"]["torch_imported"] = True
    results["timing"]["draw"]["ratio"] = 0.8
    page = build_page(results)
    assert "read as sad: wrong, happy was meant" in page
    assert "1 of 2" in page
    assert "not run" in page
    assert "with PyTorch loaded" in page
    assert "ONNX Runtime is slower" in page
    assert "identical" not in page


def test_a_busy_machine_gives_no_ratio(results):
    results["timing"]["draw"] |= {"busy": True, "others": 1.31, "ratio": 14.2}
    for text in (build_page(results), build_table(results), "\n".join(summary_lines(results))):
        assert "14.2" not in text
        assert "no fair figure, other programs used 1.3 cores" in text


def test_equal_pictures_have_no_psnr(results):
    results["timing"]["draw"]["min_psnr_db"] = None
    assert "None" not in build_page(results) + build_table(results)
    assert "identical" in build_page(results)


def test_the_table_and_the_lines_hold_the_figures(results):
    table, lines = build_table(results), "\n".join(summary_lines(results))
    assert "| a happy face | sad | 0.83 | read as sad: wrong, happy was meant |" in table
    assert "| emoji-night | unet | within 1.0e-07 | 12 tensors traced | not run |" in table
    assert "2 min 30 s" in table
    assert "193 of 326" in lines
    assert "a happy face as sad" in lines
