"""Sweeps over what is left out of the work: the very pictures of `generate`, beside those of all the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.bench.sweep.axes import parse_axes
from vitrify.bench.sweep.job import SweepJob
from vitrify.bench.sweep.plan import Settings, plan_cells
from vitrify.core.artifact import Artifact
from vitrify.proof.quality import psnr
from vitrify.runtimes.base import Options

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

PLAIN: dict[str, Any] = {"steps": 4, "guidance": 3.0, "seed": 3}


def swept(artifact: Path, folder: Path, x: str, y: str | None = None, **settings: Any) -> dict[str, Any]:
    base = Settings(**{"prompt": "a red apple"} | PLAIN | settings)
    return SweepJob(Artifact.load(artifact), folder, parse_axes(x, y, None), base, Options(threads=1)).run()


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_two_axes_of_less_work(cached_artifact: Path, tmp_path: Path) -> None:
    made = swept(cached_artifact, tmp_path / "s", "step_cache=none,2", "guidance_interval=none,0:0.5")
    assert made["counts"]["drawn"] == 4
    pipeline: Any = vitrify.load(cached_artifact, "cpu", options=Options(threads=0))
    plain = None
    for row in made["pictures"]:
        cache, part = row["values"]["x"], row["values"]["y"]
        interval = (0.0, 0.5) if part is not None else None
        own = pipeline.generate("a red apple", **PLAIN, step_cache=cache, guidance_interval=interval).images[0]
        found = pixels(tmp_path / "s" / row["file"])
        assert psnr(found, np.asarray(own)) > 60
        plain = found if cache is None and part is None else plain
        if cache == "2" and part is None:
            assert plain is not None
            assert row["against"]["x"]["psnr_db"] == pytest.approx(psnr(plain, found))
            assert row["against"]["x"]["psnr_db"] < 60
        assert row["parameters"]["step_cache"] == cache
    pipeline.close()
    again = swept(cached_artifact, tmp_path / "s", "step_cache=none,2", "guidance_every=1,2")
    assert again["counts"] == {"drawn": 2, "reused": 2, "failed": 0, "missing": 0}


def test_a_cell_says_what_an_artifact_lacks(diffusion_artifact: Path, tmp_path: Path) -> None:
    made = swept(diffusion_artifact, tmp_path / "s", "step_cache=none,2", steps=1)
    (failed,) = (row for row in made["pictures"] if row["state"] == "failed")
    assert "no graph that takes deep features" in failed["error"]["what"]


def test_only_a_preset_that_says_how_to_open_opens_again() -> None:
    axes = parse_axes("preset=none,fast,small", None, None)
    openings = [cell.opening.preset for cell in plan_cells(axes, Settings("a fox"))]
    assert openings == [None, None, "small"]
