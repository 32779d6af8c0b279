"""The page: it needs nothing else, shows what was measured and nothing more, and takes manifests as they come."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, DiskError
from vitrify.proof.evidence import Pair
from vitrify.proof.page import check_page_path, write_page

IMAGES: dict[str, Any] = {
    "pictures": 2, "steps": 3, "min_psnr_db": 31.25, "mean_psnr_db": 65.6, "psnr_db": [31.25, None],
    "min_ssim": 0.9876, "ssim": [0.9876, 1.0], "latent_error": [0.01, 0.02, 0.03],
    "asked": {"psnr_db": 25.0, "of": "average"},
    "drawn": [
        {"prompt": "a red apple", "seed": 0, "width": 16, "height": 16, "latent_error": [0.02, 0.03, 0.06]},
        {"prompt": "a <b>house</b> & sea", "seed": 1, "width": 16, "height": 16, "latent_error": [0.0, 0.01, 0.0]},
    ],
}  # fmt: skip
MEASURED = {
    "lpips": [0.0123, 0.0], "max_lpips": 0.0123, "clip_score": [27.25, 30.5], "clip_score_reference": [27.75, 30.5],
    "clip_similarity": [0.9987, 1.0], "measured_by": {"lpips": {"alex.pth": "ab" * 32}},
}  # fmt: skip
VOID = {"meta", "br", "img", "path", "polygon", "polyline"}


class Read(HTMLParser):
    """Tags that are open, in order; every attribute; the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data + " "


@pytest.fixture
def artifact(diffusion_artifact: Path) -> Artifact:
    return Artifact.load(diffusion_artifact)


def pairs() -> list[Pair]:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 200, (16, 16, 3), dtype=np.uint8)
    return [Pair(Image.fromarray(a), Image.fromarray(a + np.uint8(7))), Pair(Image.fromarray(a), Image.fromarray(a))]


def page(artifact: Artifact, tmp_path: Path, shown: list[Pair] | None = None, **proof: Any) -> tuple[str, Read]:
    kept = {k: v for k, v in artifact.proof.items() if k not in ("images", "labels")}
    write_page(replace(artifact, proof={**kept, **proof}), tmp_path / "page.html", shown)
    text = (tmp_path / "page.html").read_text("utf-8")
    read = Read(text)
    assert read.open == [], "every tag is closed"
    return text, read


def pictures(read: Read) -> list[np.ndarray]:
    found = [attributes["src"] for tag, attributes in read.tags if tag == "img"]
    assert all(source.startswith("data:image/png;base64,") for source in found)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(source.partition(",")[2])))) for source in found]


def test_the_pictures_lie_side_by_side_in_the_page(artifact: Artifact, tmp_path: Path) -> None:
    shown = pairs()
    text, read = page(artifact, tmp_path, shown, images=IMAGES)
    found = pictures(read)
    assert len(found) == 6
    for number, pair in enumerate(shown):
        assert (found[3 * number] == np.asarray(pair.reference)).all()
        assert (found[3 * number + 1] == np.asarray(pair.artifact)).all()
    assert (found[2] == 7 * 20).all()
    assert (found[5] == 0).all()
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == [
        *("reference", "artifact", "difference ×\u00a020"),
        *("reference", "artifact", "difference: none"),
    ]
    alts = [attributes["alt"] for tag, attributes in read.tags if tag == "img"]
    assert alts[:2] == ["a red apple: reference", "a red apple: artifact"]


def test_the_page_needs_nothing_else(artifact: Artifact, tmp_path: Path) -> None:
    text, read = page(artifact, tmp_path, pairs(), images=IMAGES | MEASURED)
    assert "<script" not in text
    assert "@import" not in text
    assert "url(" not in text
    links = [v for _, attributes in read.tags for k, v in attributes.items() if k in ("src", "href", "srcset", "data")]
    assert all(link.startswith("data:") for link in links)
    assert not [k for _, attributes in read.tags for k in attributes if k.startswith("on")]


def test_each_picture_has_its_figures(artifact: Artifact, tmp_path: Path) -> None:
    text, _ = page(artifact, tmp_path, pairs(), images=IMAGES)
    first, second = (dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card)) for card in text.split('"card"')[1:])
    assert first == {"PSNR": "31.2 dB", "SSIM": "0.9876"}
    assert second == {"PSNR": "identical", "SSIM": "1.0000"}
    assert "seed 0, 16×16 pixels" in text
    assert "LPIPS" not in text
    assert "CLIP" not in text


def test_what_else_was_measured_is_shown(artifact: Artifact, tmp_path: Path) -> None:
    text, _ = page(artifact, tmp_path, pairs(), images=IMAGES | MEASURED)
    first, second = (dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card)) for card in text.split('"card"')[1:])
    assert first["LPIPS"] == "0.0123"
    assert first["CLIP score"] == "27.25, reference 27.75"
    assert first["CLIP likeness"] == "0.9987"
    assert second["LPIPS"] == "0.0000"
    assert f"lpips was measured with alex.pth (sha256 {'ab' * 8})" in text


def test_the_latents_are_drawn_on_one_scale(artifact: Artifact, tmp_path: Path) -> None:
    text, _ = page(artifact, tmp_path, pairs(), images=IMAGES)
    lines = re.findall(r'<polyline points="(.*?)"', text)
    drawn = [[float(point.split(",")[1]) for point in line.split()] for line in lines]
    expected = [[58 - 56 * v / 0.06 for v in row["latent_error"]] for row in IMAGES["drawn"]]
    assert drawn[0] == pytest.approx(expected[0], abs=0.06)
    assert drawn[1] == pytest.approx(expected[1], abs=0.06)
    assert [line.split()[-1].split(",")[0] for line in lines] == ["200.0", "200.0"]
    assert "after each of 3 steps: 0.02, 0.03, 0.06" in text


def test_what_others_wrote_is_text_and_no_markup(artifact: Artifact, tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    images = IMAGES | {"drawn": [{"prompt": evil, "seed": evil, "width": evil}], "steps": evil, "pictures": evil}
    images |= {"measured_by": {evil: {evil: evil}}, "asked": {"psnr_db": evil, "of": evil}, "psnr_db": [evil]}
    component = replace(artifact.components["unet"], name=evil, precision={"recipe": evil})
    made = replace(artifact, components={evil: component}, id=evil, model={"architecture": evil, "source": evil})
    labels = {"pictures": evil, "most_changed": [{"reference": evil, "artifact": "x", "picture": evil}]}
    for proof in ({"images": images}, {"labels": labels}, {"status": "failed", "what": evil}):
        text, read = page(made, tmp_path, pairs(), **proof, versions={evil: evil}, machine={evil: evil})
        assert "script" not in {tag for tag, _ in read.tags}
        assert "<script" not in text


@pytest.mark.parametrize(
    ("proof", "kind", "said"),
    [
        ({"images": IMAGES}, "ok", "Passed: PSNR 65.6 dB on average of 2 pictures; at least 25 dB were asked for."),
        (
            {"images": IMAGES | {"asked": {"psnr_db": 50, "of": "worst"}, "min_psnr_db": 61.04}}, "ok",
            "Passed: PSNR 61.0 dB of the worst picture; at least 50 dB were asked for.",
        ),
        (
            {"images": IMAGES | {"asked": {"psnr_db": 50, "of": "worst"}, "min_psnr_db": None}}, "ok",
            "Passed: all 2 pictures are identical to the reference's; 50 dB were asked for.",
        ),
        ({"status": "failed", "what": "PSNR 9 dB.", "images": IMAGES}, "failed", "FAILED its proof: PSNR 9 dB."),
        ({"images": {"status": "failed", "min_psnr_db": 3.0}}, "failed", "FAILED: PSNR at least 3.0 dB"),
        ({"images": "not run"}, "", "The whole pipeline was not compared: pictures and labels are not run."),
        (
            {"labels": {"pictures": 64, "agreement": 0.984, "max_score_difference": 0.12,
                        "asked": {"agreement": 0.95, "score": 1.0}}}, "ok",
            "Passed: 98.4% of 64 pictures have the reference's label, a score changes by at most 0.12; at least 95% "
            "were asked for.",
        ),
        (
            {"labels": {"pictures": 4, "agreement": 1.0, "max_score_difference": 1e-6,
                        "asked": {"agreement": 1.0, "score": 1e-3}}}, "ok",
            "Passed: 100.0% of 4 pictures have the reference's label, a score changes by at most 1e-06; at least 100%, "
            "and at most 0.001 were asked for.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_names_figure_and_limit(
    artifact: Artifact, tmp_path: Path, proof: dict[str, Any], kind: str, said: str
) -> None:
    text, _ = page(artifact, tmp_path, pairs(), **proof)
    ((found, shown),) = re.findall(r'<p class="verdict ?(\w*)">(.*?)</p>', text)
    assert (found, shown.replace("&#x27;", "'")) == (kind, said)


def test_a_classifier_has_a_table_of_what_changed(artifact: Artifact, tmp_path: Path) -> None:
    row = {"picture": 3, "reference": "fear", "reference_score": 0.6, "artifact": "joy", "artifact_score": 0.5}
    labels = {"pictures": 64, "agreement": 0.984, "max_score_difference": 0.25}
    labels["most_changed"] = [row | {"max_score_difference": 0.25}, row | {"artifact": "fear", "picture": 9}]
    text, _ = page(artifact, tmp_path, labels=labels)
    cells = re.findall(r"<td>(.*?)</td>", text)
    assert [cells[i : i + 2] for i in (0, 2, 4)] == [
        ["pictures", "64"], ["same best label", "98.4%"], ["largest change of a score", "0.25"]
    ]  # fmt: skip
    assert cells[6:10] == ["3", "fear 0.6000", '<span class="failed">joy 0.5000</span>', "2.50e-01"]
    assert cells[10:14] == ["9", "fear 0.6000", "fear 0.5000", "-"]


def test_components_and_every_comparison_are_listed(artifact: Artifact, tmp_path: Path) -> None:
    _, read = page(artifact, tmp_path, images="not run")
    for name, component in artifact.components.items():
        assert read.text.count(name) > len(component.proof["numeric"]["outputs"])
    assert "Numbers were compared with torch float32." in read.text
    assert "tensors traced" in read.text


def test_a_failed_component_stands_out(artifact: Artifact, tmp_path: Path) -> None:
    unet = artifact.components["unet"]
    numeric = unet.proof["numeric"] | {"status": "failed", "max_abs": None, "relative": None}
    made = replace(artifact, components={"unet": replace(unet, proof=unet.proof | {"numeric": numeric})})
    text, _ = page(made, tmp_path, images="not run", status="failed", what="unet: off")
    assert re.search(r'<span class="failed">FAILED: .*?</span>', text)


@pytest.mark.parametrize(
    "images",
    [
        {},
        {"pictures": 2, "steps": 4, "min_psnr_db": None},
        {"pictures": 2, "min_psnr_db": 40.0, "latent_error": [0.1, 0.2]},
        {"drawn": [{}], "psnr_db": []},
        {"drawn": [None, 7], "psnr_db": "x", "latent_error": ["a"]},
        {"drawn": [{"latent_error": [float("nan")]}], "ssim": [True]},
        {"drawn": "x", "measured_by": 7, "asked": 7},
    ],
)
def test_manifests_of_other_versions_are_shown_too(artifact: Artifact, tmp_path: Path, images: dict[str, Any]) -> None:
    text, _ = page(artifact, tmp_path, images=images)
    assert "<h2>Pictures</h2>" in text
    assert ("<polyline" in text) is (images.get("latent_error") == [0.1, 0.2])


def test_one_step_and_no_error_are_drawn_flat(artifact: Artifact, tmp_path: Path) -> None:
    one = {"drawn": [{"prompt": "x", "latent_error": [0.0]}]}
    text, _ = page(artifact, tmp_path, images=one)
    assert '<polyline points="0.0,58.0 200.0,58.0"' in text
    assert "The pictures were not kept." in text


def test_a_path_that_cannot_be_written_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        check_page_path(tmp_path / "no/page.html")
    with pytest.raises(BadInput, match="is a folder"):
        check_page_path(tmp_path)
    check_page_path(tmp_path / "page.html")
    with pytest.raises((BadInput, DiskError)):
        write_page(artifact, tmp_path)
