"""The planted slowdown and the planted loss, really measured: what docs/bench-compare.md tells was found so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrify.bench.agreement import GIVEN, run, times
from vitrify.bench.cells import Built
from vitrify.bench.compare import compare
from vitrify.bench.noisy import PROOF, noisy_copy, prove
from vitrify.bench.runs import Job
from vitrify.bench.slower import environment, slowed
from vitrify.bench.spec import CLASSIFY, Spec
from vitrify.bench.suite_file import Suite, suite_of
from vitrify.core.artifact import Artifact

pytest.importorskip("scipy", reason="needs vitrify[bench]")
pytest.importorskip("psutil", reason="needs vitrify[bench]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")


@pytest.fixture(scope="module")
def classifier(emotions_artifact: Path) -> tuple[Suite, list[Job]]:
    suite = suite_of([str(emotions_artifact)], {**GIVEN, "quant": ["fp32"], "rounds": 4, "seconds": 0.4})
    spec = Spec("emotions", str(emotions_artifact), CLASSIFY, "onnx", "fp32")
    return suite, [Job(spec, Built(emotions_artifact), suite.models[0])]


@pytest.mark.slow
def test_twice_the_work_is_found_and_the_same_work_is_not_slower(
    classifier: tuple[Suite, list[Job]], tmp_path: Path
) -> None:
    suite, jobs = classifier
    first = run(suite, jobs, tmp_path / "first")
    again = run(suite, jobs, tmp_path / "again")
    double = run(suite, jobs, tmp_path / "double", environment(tmp_path / "plant", 1.0))
    found = compare(first, double)
    latency = next(d for d in found.differences if d.metric == "latency")
    assert latency.verdict == "slower"
    assert found.regressed
    assert latency.change == pytest.approx(1.0, abs=0.3)
    same = next(d for d in compare(first, again).differences if d.metric == "latency")
    assert same.verdict in ("no difference", "cannot tell")
    assert run(suite, jobs, tmp_path / "first").started == first.started  # it is there, and so not measured again


def test_the_plant_burns_the_share_that_was_asked_for() -> None:
    def call(seconds: float) -> str:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass
        return "done"

    start = time.thread_time()
    assert slowed(call, 0.5)(0.1) == "done"
    assert time.thread_time() - start == pytest.approx(0.15, rel=0.05)


def test_the_plant_grows_only_where_it_is_asked_for(tmp_path: Path) -> None:
    text = (
        "from vitrify.pipelines.classification import ClassificationPipeline as P; print(hasattr(P.run, '__wrapped__'))"
    )

    def said(env: dict[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "-c", text], env={**os.environ, **env}, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    planted = environment(tmp_path, 0.15)
    assert said(planted) == "True"
    assert said({"PYTHONPATH": planted["PYTHONPATH"]}) == "False"


def test_noise_in_the_denoiser_costs_quality_and_nothing_else(diffusion_artifact: Path, tmp_path: Path) -> None:
    little = noisy_copy(diffusion_artifact, tmp_path / "little", 0.004, seed=1)
    much = noisy_copy(diffusion_artifact, tmp_path / "much", 0.02, seed=1)
    for copy in (little, much):
        copy.verify(checksums=True)
        changed = {
            file
            for file in ("unet", "vae_decoder", "text_encoder")
            if [w.sha256 for w in copy.components[file].weights]
            != [w.sha256 for w in Artifact.load(diffusion_artifact).components[file].weights]
        }
        assert changed == {"unet"}
    means = [prove(copy, diffusion_artifact, replace(PROOF, prompts=2, steps=4)) for copy in (little, much)]
    assert 20 < means[1] < means[0] - 5
    proof = json.loads((much.root / "artifact.json").read_text())["proof"]["images"]
    assert np.mean(proof["psnr_db"]) == pytest.approx(means[1])
    assert [entry["seed"] for entry in proof["drawn"]] == [0, 1]


@pytest.mark.slow
def test_a_planted_slowdown_is_found_and_the_same_suite_does_not_differ(
    classifier: tuple[Suite, list[Job]], tmp_path: Path
) -> None:
    """Ten tries each, of which nine are right."""
    suite, jobs = classifier
    suite = suite_of([jobs[0].spec.source], {**GIVEN, "quant": ["fp32"], "rounds": 8, "seconds": 1.0})
    same, slow = times(suite, jobs, tmp_path, 10)
    assert sum(same.right) >= 9
    assert sum(slow.right) >= 9
