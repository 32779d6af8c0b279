"""How far leaving out work takes the pictures: figures beside the same artifact or another, and bars."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify as package
from vitrify.core.errors import BadInput, ProofFailed, UsageError
from vitrify.export.verify_less import Less, verify_less
from vitrify.proof.quality import PROMPTS, psnr, ssim

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

STEPS = 4


def test_figures_are_of_pictures_of_all_the_work(cached_artifact: Path, diffusion_artifact: Path) -> None:
    before = (cached_artifact / "artifact.json").read_bytes()
    found = verify_less(cached_artifact, Less({"preset": "fast"}, steps=STEPS)).proof["images"]
    assert (cached_artifact / "artifact.json").read_bytes() == before, "it is said of the artifact's source"
    pipeline: Any = package.load(cached_artifact, "cpu")
    asked = {"seed": 1, "steps": STEPS, "scheduler": "ddim"}
    whole, fast = (
        np.asarray(pipeline.generate(PROMPTS[1], **asked, preset=preset).images[0]) for preset in (None, "fast")
    )
    pipeline.close()
    assert found["psnr_db"][1] == pytest.approx(psnr(whole, fast), abs=0.05)
    assert found["ssim"][1] == pytest.approx(ssim(whole, fast), abs=1e-3)
    assert (found["pictures"], found["steps"], found["less"]) == (8, STEPS, {"preset": "fast"})
    assert found["mean_ssim"] == pytest.approx(np.mean(found["ssim"]))
    other = verify_less(cached_artifact, Less({"preset": "fast"}, steps=STEPS), str(diffusion_artifact))
    assert other.proof["images"]["mean_psnr_db"] == pytest.approx(found["mean_psnr_db"], abs=0.05)


def test_bars(cached_artifact: Path, tmp_path: Path) -> None:
    page = tmp_path / "less.html"
    with pytest.raises(ProofFailed, match="at least 90 is asked for") as caught:
        verify_less(cached_artifact, Less({"step_cache": "3"}, psnr=90.0, steps=STEPS), html=page)
    assert caught.value.fix == "Leave less of the work out."
    assert "FAILED" in page.read_text()
    with pytest.raises(ProofFailed, match="SSIM"):
        verify_less(cached_artifact, Less({"step_cache": "3"}, psnr=1.0, ssim=0.99999, steps=STEPS))
    passed = verify_less(cached_artifact, Less({"step_cache": "3"}, psnr=5.0, ssim=0.01, steps=STEPS))
    assert passed.proof["images"]["asked"] == {"psnr_db": 5.0, "of": "average", "ssim": 0.01}


def test_what_makes_no_sense(
    cached_artifact: Path, diffusion_artifact: Path, diffusion_source: Path, emotions_artifact: Path
) -> None:
    with pytest.raises(UsageError, match="Nothing of the work is left out"):
        verify_less(cached_artifact, Less({"preset": "exact"}))
    with pytest.raises(UsageError, match="Nothing of the work is left out"):
        verify_less(cached_artifact, Less(psnr=20.0))
    with pytest.raises(UsageError, match="draws no pictures"):
        verify_less(emotions_artifact, Less({"preset": "fast"}))
    with pytest.raises(BadInput, match="no artifact"):
        verify_less(cached_artifact, Less({"preset": "fast"}), str(diffusion_source))
    with pytest.raises(BadInput, match="another kind"):
        verify_less(cached_artifact, Less({"preset": "fast"}), str(emotions_artifact))
    with pytest.raises(BadInput, match="no graph that takes deep features"):
        verify_less(diffusion_artifact, Less({"step_cache": "3"}, steps=2))


def test_the_command(vitrify: Callable[..., Any], cached_artifact: Path) -> None:
    common = ("verify", cached_artifact, "--against", cached_artifact, "--step-cache", "3", "--guidance-every", "2")
    done = vitrify(*common, "--steps", STEPS, "--json")
    assert done.code == 0, done.err
    images = done.json["proof"]["images"]
    assert images["less"] == {"step_cache": "3", "guidance_every": 2}
    assert images["mean_psnr_db"] < 99
    done = vitrify(*common, "--steps", 2, "--min-psnr", 95)
    assert done.code == 3
    assert "at least 95 is asked for" in done.err
    done = vitrify("verify", cached_artifact, "--preset", "fast", "--revision", "x", "--json")
    assert (done.code, json.loads(done.out)["error"]["code"]) == (2, "usage")
