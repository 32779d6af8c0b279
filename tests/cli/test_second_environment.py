"""An environment without torch, made from nothing but the package and its extra `onnx`, runs what was exported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh virtual environment with vitrify[onnx] in it."""
    folder = tmp_path_factory.mktemp("bare")
    skip = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "shared", "tests")
    shutil.copytree(ROOT, folder / "tree", ignore=skip)
    venv.create(folder / "venv", with_pip=True)
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    done = subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", f"{folder / 'tree'}[onnx]"],
        capture_output=True,
        text=True,
    )
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("needs the package index")
    assert done.returncode == 0, done.stderr
    return programs


def ran(programs: Path, *arguments: object, cwd: Path) -> Any:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    done = subprocess.run(
        [programs / "vitrify", *map(str, arguments), "--json"], cwd=cwd, env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_it_has_no_torch(bare: Path, tmp_path: Path) -> None:
    code = f"import importlib.util as u; print([m for m in {ABSENT} if u.find_spec(m)], __import__('vitrify').__file__)"
    done = subprocess.run([bare / "python", "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    found, file = done.stdout.split("] ")
    assert found == "["
    assert Path(file.strip()).is_relative_to(bare.parent), "the installed package, not the checkout"


def test_it_draws_the_same_picture(bare: Path, diffusion_artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(diffusion_artifact, tmp_path / "emoji")
    done = ran(
        bare, "generate", moved, "a red apple", "--steps", 6, "--seed", 3, "-o", tmp_path / "a.png", cwd=tmp_path
    )
    assert done["placement"]["unet"]["provider"] == "CPUExecutionProvider"
    pipeline = vitrify.load(diffusion_artifact, "cpu")
    expected = np.asarray(pipeline.generate("a red apple", steps=6, seed=3).images[0]).astype(int)
    pipeline.close()
    off = np.abs(np.asarray(Image.open(tmp_path / "a.png")).astype(int) - expected)
    assert off.max() <= 2  # another version of a library may round another way


def test_it_gives_the_same_labels(bare: Path, emotions_artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(emotions_artifact, tmp_path / "emotions")
    noise = np.random.default_rng(2).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    done = ran(bare, "classify", moved, tmp_path / "noise.png", "--top-k", 7, cwd=tmp_path)
    pipeline = vitrify.load(emotions_artifact, "cpu")
    (expected,) = pipeline.classify([Image.fromarray(noise)], top_k=None)
    pipeline.close()
    got = {e["label"]: e["score"] for e in done["results"][0]["labels"]}
    assert got == pytest.approx({e["label"]: e["score"] for e in expected}, abs=1e-4)


def test_it_inspects_and_compares(bare: Path, emotions_artifact: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(emotions_artifact, tmp_path / "emotions")
    assert ran(bare, "inspect", moved, "--checksums", cwd=tmp_path)["checksums"] == "verified"
    compared = ran(bare, "verify", moved, "--against", emotions_artifact, cwd=tmp_path)
    assert compared["components"]["model"]["numeric"]["relative"] <= 1e-4


def test_an_export_there_names_the_extra(bare: Path, emotions_source: Path, tmp_path: Path) -> None:
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    own["VITRIFY_CACHE"] = str(tmp_path / "cache")
    done = subprocess.run(
        [bare / "vitrify", "export", emotions_source, "-o", tmp_path / "out", "--json"],
        env=own, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["error"]["fix"] == 'pip install "vitrify[export]"'
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
