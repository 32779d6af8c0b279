"""The tools' scripts on a small trained model, by their paths, as in an environment that has no vitrify."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.bench.measure import MARK
from vitrify.bench.peers.drawing import NoPicture, picture
from vitrify.bench.peers.source import make
from vitrify.bench.peers.table import HERE
from vitrify.pipelines.random import TorchCpuGenerator
from vitrify.proof.quality import psnr

pytest.importorskip("torch", reason="needs the extra export")
pytestmark = pytest.mark.slow  # each picture imports torch anew

SIDE, SEED = 64, 7
BY_PATH = [sys.executable, "-P", str(HERE / "draw.py")]


@pytest.fixture(scope="module")
def model(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, laid out as the tools get theirs. Copy its files before changing them."""
    target = tmp_path_factory.mktemp("peers") / "model"
    make(diffusion_source, target)
    return target


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("noise") / "noise.npy"
    np.save(file, TorchCpuGenerator(SEED).normal((1, 4, SIDE // 4, SIDE // 4)))
    return file


def run(start: list[str], tool: str, model: Path, noise: Path, target: Path, **more: Any) -> Any:
    """A tool's script: the process that ended. The environment has no path to vitrify but the interpreter's own."""
    words = [*start, tool, str(model), "--noise", str(noise), "--picture", str(target), "--prompt", "a happy face"]
    words += ["--seed", str(SEED), "--side", str(more.pop("side", SIDE)), "--steps", "4", "--guidance", "3"]
    words += [f"--{name}={value}" for name, value in more.pop("options", {}).items()]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **more)


def values(done: Any) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(MARK))
    found: dict[str, float] = json.loads(line.removeprefix(MARK))
    return found


def test_diffusers_and_vitrify_draw_one_picture_from_one_noise(
    model: Path, noise: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    theirs, ours, artifact = tmp_path / "theirs.png", tmp_path / "ours.png", tmp_path / "artifact"
    told = values(run(BY_PATH, "diffusers_eager", model, noise, theirs, cwd=tmp_path))
    assert told.keys() == {"import_s", "load_s", "first_image_s", "image_s", "step_ms"}
    assert told["image_s"] * 1000 > 4 * told["step_ms"] > 0
    from vitrify.export.job import export_model

    export_model(model, artifact, verify=False)
    module = [sys.executable, "-m", "vitrify.bench.peers.draw"]
    told = values(run(module, "ours", artifact, noise, ours, env=environment, options={"variant": "onnx"}))
    assert told.keys() == {"import_s", "load_s", "first_image_s", "image_s", "step_ms"}
    pictures = [np.asarray(Image.open(path)) for path in (theirs, ours)]
    assert pictures[0].shape == (SIDE, SIDE, 3)
    assert psnr(*pictures) > 60


def test_a_script_imports_nothing_of_vitrify(model: Path, noise: Path, tmp_path: Path) -> None:
    """Each tool's module, loaded as by its path; what it needs at its top is there in any environment."""
    code = (
        "import runpy, sys\n"
        "draw = runpy.run_path(sys.argv[1])\n"
        "for name in sys.argv[2:]: draw['tool'](name)\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('vitrify', 'numpy', 'torch', 'PIL')))\n"
    )
    tools = ["drawing", "diffusers_eager", "diffusers_compile", "optimum_onnx", "optimum_intel", "genai", "sdcpp"]
    command = [sys.executable, "-P", "-c", code, str(HERE / "draw.py"), *tools]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize(("value", "said"), [(0.0, "The picture is plain"), (float("nan"), "holds NaN or infinity")])
def test_a_model_that_draws_nothing_fails(model: Path, noise: Path, tmp_path: Path, value: float, said: str) -> None:
    """The decoder's last layer, overwritten: its output is 0 everywhere, or NaN."""
    import shutil

    from safetensors.torch import load_file, save_file

    broken, target = tmp_path / "model", tmp_path / "picture.png"
    shutil.copytree(model, broken)
    file = broken / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        tensors[name] = tensors[name] * 0 + value
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    done = run(BY_PATH, "diffusers_eager", broken, noise, target, options={"draws": 1})
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert MARK not in done.stdout
    assert not target.exists()


def test_a_picture_is_checked_in_every_form_that_tools_give_one() -> None:
    ramp = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
    eight = (ramp * 255).round().astype("uint8")
    for pixels in (ramp, eight, Image.fromarray(eight), Image.fromarray(eight).convert("RGBA")):
        assert np.array_equal(np.asarray(picture(pixels)), eight)
    for plain in (np.full((8, 8, 3), 0.5), np.zeros((8, 8, 3), "uint8"), Image.new("RGB", (8, 8), "red")):
        with pytest.raises(NoPicture, match="plain"):
            picture(plain)
    for bad in (np.nan, np.inf, -np.inf):
        spoiled = ramp.copy()
        spoiled[3, 3, 1] = bad
        with pytest.raises(NoPicture, match="NaN or infinity"):
            picture(spoiled)


def test_a_tool_that_is_missing_ends_with_its_name(model: Path, noise: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-I", str(HERE / "draw.py")], "sdcpp", model, noise, tmp_path / "x.png")
    assert done.returncode == 1
    assert "No module named 'stable_diffusion_cpp'" in done.stderr.splitlines()[-1]
