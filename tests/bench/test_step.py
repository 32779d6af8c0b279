"""Steps timed from inside, by every opener, on the built-in classifier: they agree, and what is wrong is no figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.measure import MARK, Case, CaseFailed, measure
from vitrify.bench.step import held

pytest.importorskip("torch", reason="needs vitrify[export]")


@pytest.fixture(scope="module")
def inputs(emotions_artifact: Path, emotions_source: Path, environment: dict[str, str], tmp_path_factory: Any) -> Path:
    pytest.importorskip("transformers", reason="needs vitrify[export]")
    file = tmp_path_factory.mktemp("inputs") / "vit.safetensors"
    command = [sys.executable, "-m", "vitrify.bench.inputs", emotions_artifact, "model", "transformers"]
    subprocess.run([*command, emotions_source, file, "batch=2"], env=environment, check=True)
    return file


def arguments(how: str, runtime: str, artifact: Path, source: Path) -> list[str]:
    """What opens the built-in classifier."""
    if how == "vitrify":
        return [how, str(artifact), "--component", "model", "--runtime", runtime]
    return [how, str(source if how == "transformers" else artifact / "model.onnx")]


@pytest.mark.parametrize(
    ("how", "runtime", "library"),
    [
        ("transformers", "", "transformers"),
        ("onnxruntime", "", "onnxruntime"),
        ("openvino", "", "openvino"),
        ("vitrify", "onnx", "onnxruntime"),
        ("vitrify", "openvino", "openvino"),
    ],
)
def test_a_step_is_timed_and_right(
    how: str, runtime: str, library: str, inputs: Path, emotions_artifact: Path, emotions_source: Path,
    environment: dict[str, str],
) -> None:  # fmt: skip
    pytest.importorskip(library, reason=f"needs {library}")
    how, *rest = arguments(how, runtime, emotions_artifact, emotions_source)
    # as many steps as it takes to be seen at its peak, where the system tells none of a process that small
    command = [sys.executable, "-m", "vitrify.bench.step", how, rest[0], str(inputs), *rest[1:], "--steps", "40"]
    sample = measure([Case("a", [*command, "--threads", "1"], env=environment)], rounds=1, warmup=0)[0]
    assert sample.values["step_ms"] > 0
    assert sample.values["load_s"] < sample.wall_s
    if sys.platform == "linux":
        for moment in ("loaded", "ran"):
            assert 0 < sample.values[f"{moment}_anonymous_mb"] < sample.values[f"{moment}_mb"]
        assert sample.values["ran_mb"] <= 1.01 * sample.peak / 1e6


def test_another_output_is_a_failure(
    inputs: Path, emotions_artifact: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    from safetensors.numpy import load_file, save_file

    tensors = load_file(inputs)
    tensors["expected"] = 1.01 * tensors["expected"]
    save_file(tensors, tmp_path / "other.safetensors")
    # as many steps as it takes to be seen at its peak, where the system tells none of a process that small
    command = [sys.executable, "-m", "vitrify.bench.step", "onnxruntime", str(emotions_artifact / "model.onnx")]
    command += [str(tmp_path / "other.safetensors"), "--steps", "1"]
    with pytest.raises(CaseFailed, match=r"exited with 3.*\n.* 40\.\d dB below the output .*; 60 dB are wanted"):
        measure([Case("a", command, env=environment)], rounds=1, warmup=0)
    done = subprocess.run([*command, "--minimum-db", "30"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix(MARK)).keys() >= {"step_ms", "load_s"}


def test_inputs_that_are_missing_are_named(python: Callable[..., Any], tmp_path: Path) -> None:
    done = python("import sys; from vitrify.bench.step import main; sys.exit(main(['openvino', 'x', sys.argv[1]]))",
                  tmp_path / "no.safetensors")  # fmt: skip
    assert done.code == 2
    assert f"{tmp_path / 'no.safetensors'} is missing." in done.err


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_anonymous_memory_is_told_from_mapped_files(tmp_path: Path) -> None:
    import mmap

    before = held("loaded")
    (tmp_path / "file").write_bytes(b"x" * 60_000_000)
    own = b"y" * 40_000_000  # over 32 MiB malloc always asks for fresh pages, and gives none that were freed before
    with (tmp_path / "file").open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) > 0  # every page
        after = held("loaded")
    grown = {name: after[name] - before[name] for name in before}
    assert grown["loaded_anonymous_mb"] == pytest.approx(40, abs=5)
    assert grown["loaded_mb"] == pytest.approx(100, abs=10)
    assert len(own) == 40_000_000
