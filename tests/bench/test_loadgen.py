"""LoadGen itself, briefly, over a model of next to no size and the built-in ones: scenarios, verdicts, logs, ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.bench.loadgen.log import ACCURACY, DETAIL, SUMMARY
from vitrify.bench.loadgen.plan import LoadPlan
from vitrify.bench.loadgen.run import RESULT, STATEMENT, invalid, run_loadgen
from vitrify.core.errors import BadArtifact, BadInput, UsageError
from vitrify.core.progress import Event

pytest.importorskip("mlperf_loadgen", reason="needs MLPerf's LoadGen: vitrify[loadgen]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
pytest.importorskip("transformers", reason="needs vitrify[export]")
psutil = pytest.importorskip("psutil", reason="needs vitrify[bench]")

ENDS = 5.0  # seconds in which a run that is interrupted is over, on a machine that has other things to do


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that answers in a tenth of a millisecond."""
    from vitrify.bench.models import NULL, make_null
    from vitrify.export.job import export_model

    folder = tmp_path_factory.mktemp("null")
    make_null(folder)
    export_model(folder / NULL, folder / "tiny", verify=False)
    return folder / "tiny"


@pytest.fixture(autouse=True)
def found_by_children(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "VITRIFY_CACHE"):
        monkeypatch.setenv(name, environment[name])


def run(artifact: Path, output: Path, **asked: Any) -> dict[str, Any]:
    """A result, which is also what lies in the folder."""
    result = run_loadgen(LoadPlan(str(artifact), device="cpu", threads=1, **asked), output)
    assert json.loads((output / RESULT).read_text()) == result
    assert (output / DETAIL).stat().st_size > 0
    return result


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_a_short_run_of_each_scenario_is_valid_and_called_short(scenario: str, null: Path, tmp_path: Path) -> None:
    asked = {"qps": 600, "latency_ms": 5000} if scenario == "server" else {}
    result = run(null, tmp_path / "run", scenario=scenario, duration=1.5, **asked)
    assert result["valid"] is True, result["reasons"]
    assert invalid(result) is None
    assert result["samples"] >= 64
    assert result["samples_per_second"] > 0
    assert result["rule"]["min_duration_s"] == 600
    assert result["rule"]["met"] is False
    assert "Shorter than MLPerf's rule: at least 1.5 s" in result["rule"]["what"]
    assert result["statement"] == STATEMENT
    assert result["settings"]["min_duration_ms"] == 1500
    assert result["system"]["placement"]["model"]["runtime"] == "onnx"
    assert result["machine"]["cpu"]
    assert "LoadSamplesToRam" in result["library"]["prepared"]
    said = (tmp_path / "run" / SUMMARY).read_text()
    assert "Result is : VALID" in said
    if scenario == "server":
        assert result["target"] == {"percentile": 99, "qps": 600, "latency_ms": 5000}
    if scenario == "single-stream":
        assert result["early_stopping_ms"]["90"] >= result["latency_ms"]["90"]
    if scenario == "offline":
        assert result["queries"] == 1
        assert result["rule"]["min_queries"] == 24576


def test_mlperfs_rules_are_the_default(null: Path, vitrify_process: Callable[..., Any], tmp_path: Path) -> None:
    process = vitrify_process(null, "-o", tmp_path / "run", "--device", "cpu")
    wait_for(tmp_path / "run" / DETAIL)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    said = (tmp_path / "run" / DETAIL).read_text()
    assert '"key": "effective_min_duration_ms", "value": 600000' in said
    assert '"key": "effective_min_query_count", "value": 100' in said
    assert '"key": "effective_target_latency_percentile", "value": 0.9' in said


def test_a_run_that_loadgen_calls_invalid_exits_with_3_and_its_words(
    null: Path, vitrify: Callable[..., Any], tmp_path: Path
) -> None:
    done = vitrify(
        "loadgen", null, "-o", tmp_path / "run", "--scenario", "server", "--qps", 50, "--latency-ms", 0.001,
        "--duration", 1, "--json",
    )  # fmt: skip
    assert done.code == 3, done.err
    assert done.error["code"] == "invalid_run"
    assert "Reduce target QPS to improve latency." in done.error["what"]
    assert "--latency-ms" in done.error["fix"]
    assert done.json["valid"] is False
    assert json.loads((tmp_path / "run" / RESULT).read_text())["valid"] is False


def test_too_few_queries_for_the_duration_are_no_valid_run(null: Path, tmp_path: Path) -> None:
    result = run(null, tmp_path / "run", scenario="offline", qps=20, duration=2)
    error = invalid(result)
    assert error is not None
    assert "Increase expected QPS" in error.what
    assert "--qps" in error.fix


@pytest.mark.slow
def test_the_built_in_classifier_in_accuracy_mode(
    emotions_artifact: Path, vitrify: Callable[..., Any], tmp_path: Path
) -> None:
    """The same labels as `vitrify classify` gives, and as many right as there are."""
    for name, colour in (("happy/a.png", "yellow"), ("sad/b.png", "blue"), ("sad/c.png", "black")):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), colour).save(tmp_path / "faces" / name)
    asked = ["--mode", "accuracy", "--scenario", "offline", "--pictures", tmp_path / "faces", "--json"]
    done = vitrify("loadgen", emotions_artifact, "-o", tmp_path / "run", *asked)
    assert done.code == 0, done.err
    found = done.json["accuracy"]
    rows = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert done.json["valid"] is None
    assert found["samples"] == found["known"] == 3
    assert found["right"] == sum(row["label"] == row["truth"] for row in rows)
    assert found["accuracy"] == found["right"] / 3
    assert len(json.loads((tmp_path / "run" / ACCURACY).read_text())) == 3
    paths = [tmp_path / "faces" / row["picture"] for row in rows]
    labels = vitrify("classify", emotions_artifact, *paths, "--top-k", 1, "--device", "cpu", "--json").json["results"]
    assert [row["label"] for row in rows] == [one["labels"][0]["label"] for one in labels]


@pytest.mark.slow
def test_a_pipeline_that_draws(diffusion_artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\na cat\n")
    asked: dict[str, Any] = {"scenario": "offline", "steps": 2, "prompts": str(tmp_path / "prompts.txt")}
    result = run(diffusion_artifact, tmp_path / "run", duration=1, batch=2, **asked)
    assert result["valid"] is True, result["reasons"]
    assert result["rule"]["benchmark"] == "stable-diffusion-xl"
    assert result["rule"]["min_queries"] == 2  # the data set's size is the limit
    assert set(result["system"]["placement"]) == {"text_encoder", "unet", "vae_decoder"}
    answered = run(diffusion_artifact, tmp_path / "accuracy", mode="accuracy", **asked)
    assert answered["accuracy"]["samples"] == 2
    rows = json.loads((tmp_path / "accuracy" / "answers.json").read_text())
    assert [row["prompt"] for row in rows] == ["a red apple", "a cat"]
    for row in rows:
        with Image.open(tmp_path / "accuracy" / row["picture"]) as image:
            assert image.size == (answered["system"]["width"], answered["system"]["height"])


def test_a_picture_that_cannot_be_read_ends_the_run_with_its_name(null: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16)).save(tmp_path / "pictures" / f"{number:02}.png")
    (tmp_path / "pictures" / "39.png").write_bytes(b"no picture")
    start = time.monotonic()
    with pytest.raises(BadInput, match=r"39\.png"):
        run(null, tmp_path / "run", pictures=str(tmp_path / "pictures"))
    assert time.monotonic() - start < 60  # not LoadGen's ten minutes


def test_pictures_of_different_sizes_end_the_run_with_what_to_do(null: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "kept"
    shutil.copytree(null, artifact)
    manifest = json.loads((artifact / "artifact.json").read_text())
    manifest["pipeline"]["preprocess"] |= {"size": {"shortest_edge": 16}}
    (artifact / "artifact.json").write_text(json.dumps(manifest))
    (tmp_path / "pictures").mkdir()
    for number, size in enumerate([(16, 16), (32, 16)] * 4):
        Image.new("RGB", size).save(tmp_path / "pictures" / f"{number}.png")
    with pytest.raises(BadInput, match="different sizes") as caught:
        run(artifact, tmp_path / "run", scenario="offline", pictures=str(tmp_path / "pictures"))
    assert "--batch 1" in caught.value.fix
    assert not (tmp_path / "run").exists()  # nothing was logged yet


def test_a_folder_that_holds_another_run_is_left_alone(null: Path, tmp_path: Path) -> None:
    (tmp_path / DETAIL).write_text("of another run")
    with pytest.raises(BadInput, match="holds another run"):
        run_loadgen(LoadPlan(str(null)), tmp_path)
    assert (tmp_path / DETAIL).read_text() == "of another run"
    with pytest.raises(BadInput, match="is a file"):
        run_loadgen(LoadPlan(str(null)), tmp_path / DETAIL)


def test_what_cannot_be_asked_is_refused_before_anything_is_made(null: Path, tmp_path: Path) -> None:
    for plan, error in (
        (LoadPlan(str(null), steps=3), UsageError),
        (LoadPlan(str(tmp_path / "missing")), BadInput),
    ):
        with pytest.raises(error):
            run_loadgen(plan, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(null, other)
    manifest = json.loads((other / "artifact.json").read_text())
    manifest["pipeline"]["tasks"] = ["sing"]
    (other / "artifact.json").write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match="neither labels"):
        run_loadgen(LoadPlan(str(other)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_progress_is_told(null: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    run_loadgen(LoadPlan(str(null), device="cpu", duration=2.5), tmp_path / "run", events.append)
    assert [event.note for event in events if event.note][:1] == ["device: cpu"]
    assert any(event.note.startswith("warm-up: ") for event in events)
    seconds = [event.done for event in events if event.total == 2.5]
    assert len(seconds) >= 2
    assert seconds == sorted(seconds)


@pytest.fixture
def vitrify_process(environment: dict[str, str], tmp_path: Path) -> Any:
    """Starts `vitrify loadgen`; what is left at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vitrify", "loadgen", *map(str, arguments)]
        with (tmp_path / "stderr").open("w") as err:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=err, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(file: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if file.is_file() and "effective_scenario" in file.read_text():
            return
        time.sleep(0.05)
    pytest.fail(f"{file} did not come")


@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_ctrl_c_ends_it_and_leaves_the_logs(
    scenario: str, null: Path, vitrify_process: Callable[..., Any], tmp_path: Path
) -> None:
    process = vitrify_process(null, "-o", tmp_path / "run", "--scenario", scenario, "--device", "cpu", "--json")
    wait_for(tmp_path / "run" / DETAIL)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert time.monotonic() - start < ENDS
    assert process.returncode == 130
    error = json.loads(out)["error"]
    assert error["code"] == "cancelled"
    assert str(tmp_path / "run") in error["fix"]
    assert not psutil.wait_procs(children, timeout=ENDS)[1]
    assert (tmp_path / "run" / DETAIL).stat().st_size > 0
    assert not (tmp_path / "run" / RESULT).exists()


@pytest.mark.slow
def test_no_process_outlives_a_command_that_is_killed(
    null: Path, vitrify_process: Callable[..., Any], tmp_path: Path
) -> None:
    process = vitrify_process(null, "-o", tmp_path / "run", "--device", "cpu")
    wait_for(tmp_path / "run" / DETAIL)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    assert children
    assert not psutil.wait_procs(children, timeout=ENDS)[1]


def test_without_loadgen_it_says_what_to_install(null: Path, python: Callable[..., Any], tmp_path: Path) -> None:
    done = python(
        "import sys; sys.modules['mlperf_loadgen'] = None; from vitrify import cli; cli.main()",
        "loadgen", null, "-o", tmp_path / "run", "--json",
    )  # fmt: skip
    assert done.code == 4, done.err
    assert done.error["code"] == "missing_dependency"
    assert done.error["fix"] == 'pip install "vitrify[loadgen]"'
