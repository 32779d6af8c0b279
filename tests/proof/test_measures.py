"""LPIPS and CLIP scores from the command line and from Python: in the JSON, on the page, and only where asked for."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import BadInput, MissingDependency, UsageError
from vitrify.core.progress import Event
from vitrify.export.verify import verify_artifact

pytest.importorskip("torch", reason="needs the extra export")


def test_verify_measures_what_it_is_given(
    vitrify: Callable[..., Any], diffusion_artifact: Path, lpips_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(diffusion_artifact, tmp_path / "emoji")
    given = ("--lpips", lpips_folder, "--clip", clip_folder, "--html", tmp_path / "page.html", "--json")
    done = vitrify("verify", copy, "--against", diffusion_artifact, *given)
    assert done.code == 0, done.err
    images = done.json["proof"]["images"]
    assert images["lpips"] == [0, 0]
    assert images["clip_score"] == pytest.approx(images["clip_score_reference"], abs=1e-4)
    assert all(0 <= score <= 100 for score in images["clip_score"])
    assert images["clip_similarity"] == pytest.approx([1, 1], abs=1e-5)
    assert set(images["measured_by"]["lpips"]) == {"alexnet.safetensors", "alex.pth"}
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert page.count("<dt>LPIPS</dt><dd>0.0000</dd>") == 2
    assert page.count(f"<dt>CLIP score</dt><dd>{images['clip_score'][0]:.2f}, reference") >= 1
    assert "torchao" not in done.err, "no library's chatter"
    before, after = (sorted(p.name for p in root.rglob("*")) for root in (diffusion_artifact, copy))
    assert after == before, "what is compared with another artifact is not written into this one"


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_a_missing_library_is_named_with_its_extra(
    diffusion_artifact: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingDependency, match=library) as caught:
        verify_artifact(diffusion_artifact, str(diffusion_artifact), clip=clip_folder)
    assert "vitrify[export]" in caught.value.fix


@pytest.mark.parametrize("option", ["lpips", "clip"])
def test_a_classifier_has_no_pictures_to_measure(emotions_artifact: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match="gives labels"):
        verify_artifact(emotions_artifact, **{option: tmp_path})


@pytest.mark.parametrize("option", ["lpips", "clip"])
def test_a_folder_that_is_no_good_is_refused_before_anything_is_compared(
    diffusion_artifact: Path, tmp_path: Path, option: str
) -> None:
    events: list[Event] = []
    with pytest.raises(BadInput, match=str(tmp_path)):
        verify_artifact(diffusion_artifact, **{option: tmp_path}, report=events.append)
    assert events == []
