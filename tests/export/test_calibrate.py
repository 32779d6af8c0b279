"""What is recorded is what the component really got: evenly over prompts and timesteps, as many as were asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput
from vitrify.core.progress import Event
from vitrify.export import calibrate
from vitrify.export.calibrate import _pairs, _spread, read_prompts, record_inputs
from vitrify.pipelines.load import load

pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")


@pytest.fixture(scope="module")
def drawing(diffusion_artifact: Path) -> Artifact:
    return Artifact.load(diffusion_artifact)


@pytest.fixture(scope="module")
def labelling(emotions_artifact: Path) -> Artifact:
    return Artifact.load(emotions_artifact)


@pytest.mark.parametrize(
    ("samples", "total"), [(1, 1), (1, 20), (7, 20), (64, 320), (20, 20), (64, 10), (3, 1000), (99, 100)]
)
def test_of_all_calls_as_many_as_wanted_are_kept_evenly(samples: int, total: int) -> None:
    keep = _spread(samples, total)
    kept = [call for call in range(total) if keep(call)]
    assert abs(len(kept) - min(samples, total)) == 0
    gaps = np.diff([-1, *kept])
    assert gaps.max() - gaps.min() <= 1


def distinct(arrays: list[np.ndarray]) -> int:
    return len({a.tobytes() for a in arrays})


def test_samples_are_spread_over_prompts_and_all_timesteps(drawing: Artifact) -> None:
    events: list[Event] = []
    seen = record_inputs(drawing, ["unet"], 16, report=events.append, steps=8)["unet"]
    assert len(seen) == 16
    times = Counter(float(s["timestep"]) for s in seen)
    assert len(times) == 8, f"of 8 timesteps {len(times)} were seen"
    assert set(times.values()) == {2}
    assert distinct([s["encoder_hidden_states"] for s in seen]) == 4
    assert distinct([s["sample"] for s in seen]) == 16
    assert [(e.done, e.total, e.unit) for e in events] == [(n, 32, "steps") for n in range(1, 33)]
    shapes = {n: v.shape for n, v in seen[0].items()}
    assert shapes == {"sample": (2, 4, 16, 16), "timestep": (), "encoder_hidden_states": (2, 77, 64)}
    specs = drawing.components["unet"].inputs
    assert {n: v.dtype.name for n, v in seen[0].items()} == {n: s.dtype.value for n, s in specs.items()}


@pytest.mark.parametrize(
    ("samples", "prompts", "steps"), [(64, 16, 20), (64, 2, 20), (10, 3, 20), (5, 2, 20), (3, 1, 4), (37, 5, 8)]
)
def test_no_prompt_and_no_timestep_is_seen_more_than_another(samples: int, prompts: int, steps: int) -> None:
    kept = _pairs(samples, prompts, steps)
    assert len(kept) == min(samples, prompts * steps)
    for counts, possible in (
        (Counter(prompt for prompt, _ in kept), prompts),
        (Counter(step for _, step in kept), steps),
    ):
        assert len(counts) == min(possible, samples)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert set(counts) <= set(range(possible))


def test_each_step_of_the_pipeline_is_one_call(drawing: Artifact) -> None:
    """What the spread counts on."""
    seen = record_inputs(drawing, ["unet"], 12, steps=3)
    assert len(seen["unet"]) == 3 * 3
    assert [float(s["timestep"]) for s in seen["unet"][:6]] == [float(s["timestep"]) for s in seen["unet"][:3]] * 2


def test_the_prompts_of_a_file_are_drawn(drawing: Artifact, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a green dragon\n\n  a red dragon  \n", "utf-8")
    assert read_prompts(file) == ["a green dragon", "a red dragon"]
    seen = record_inputs(drawing, ["unet"], 100, file, steps=2)["unet"]
    assert len(seen) == 4, "there are no more to keep"
    states = [s["encoder_hidden_states"][1] for s in seen]  # the second row is the prompt's
    assert distinct(states) == 2
    pipeline: Any = load(drawing, "cpu")
    try:
        given = pipeline.family.encode_prompt(["a green dragon"], "", (64, 64), 1.0).positive
        wanted = given["encoder_hidden_states"][0]
    finally:
        pipeline.close()
    assert np.abs(states[0] - wanted).max() < 1e-5


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_without_a_prompt_is_refused(drawing: Artifact, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(BadInput, match=r"prompts\.txt holds no prompt.*one prompt a line"):
        record_inputs(drawing, ["unet"], 8, tmp_path / "prompts.txt")


@pytest.mark.parametrize("kind", ["missing", "folder", "picture"])
def test_what_is_no_text_is_refused(drawing: Artifact, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "given"
    if kind == "folder":
        path.mkdir()
    elif kind == "picture":
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path, "PNG")
    with pytest.raises(BadInput, match="cannot be read as text"):
        record_inputs(drawing, ["unet"], 8, path)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(folder / f"{number:02}.png")
    return folder


@pytest.mark.parametrize(("count", "samples", "kept"), [(3, 64, 3), (10, 5, 5), (10, 4, 4)])
def test_a_classifier_sees_the_pictures_of_a_folder(
    labelling: Artifact, tmp_path: Path, count: int, samples: int, kept: int
) -> None:
    seen = record_inputs(labelling, ["model"], samples, pictures(tmp_path / "pictures", count))["model"]
    assert len(seen) == kept
    assert {n: v.shape for n, v in seen[0].items()} == {"pixel_values": (1, 3, 224, 224)}
    reds = [round((float(s["pixel_values"][0, 0, 0, 0]) / 2 + 0.5) * 255 / 10) for s in seen]
    assert reds == sorted(set(reds)), "each picture once, in order"
    assert np.diff([-1, *reds]).max() - np.diff([-1, *reds]).min() <= 1


def test_a_classifier_without_pictures_is_refused(labelling: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"needs pictures.*--calibration FOLDER"):
        record_inputs(labelling, ["model"], 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="has no pictures"):
        record_inputs(labelling, ["model"], 8, tmp_path / "empty")
    with pytest.raises(BadInput, match="does not exist"):
        record_inputs(labelling, ["model"], 8, tmp_path / "missing")
    (tmp_path / "empty/text.png").write_text("no picture")
    with pytest.raises(BadInput, match="is not a picture"):
        record_inputs(labelling, ["model"], 8, tmp_path / "empty")


def test_no_more_is_kept_than_fits(labelling: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "LIMIT", 3 * 224 * 224 * 4 * 2 + 1)  # two pictures
    events: list[Event] = []
    seen = record_inputs(labelling, ["model"], 8, pictures(tmp_path / "pictures", 6), events.append)["model"]
    assert len(seen) == 2
    assert distinct([s["pixel_values"] for s in seen]) == 2
    assert [e.note for e in events if e.note] == ["model: 2 of 6 samples kept, 1 MB"]
    monkeypatch.setattr(calibrate, "LIMIT", 1)
    assert len(record_inputs(labelling, ["model"], 8, tmp_path / "pictures")["model"]) == 1


def test_what_was_recorded_does_not_change_afterwards(drawing: Artifact) -> None:
    pipeline: Any = load(drawing, "cpu")
    told: list[int] = []
    try:
        recorder = calibrate.Recorder(pipeline.sessions["unet"], lambda call: True, told.append)
        assert dict(recorder.inputs) == dict(drawing.components["unet"].inputs)
        assert dict(recorder.outputs) == dict(drawing.components["unet"].outputs)
        assert recorder.placement.device == "cpu"
        tensors = {
            "sample": np.ones((1, 4, 8, 8), np.float32),
            "timestep": np.array(3, np.float32).astype(recorder.inputs["timestep"].dtype.value),
            "encoder_hidden_states": np.zeros((1, 77, 64), np.float32),
        }
        out = recorder.run(tensors)
        tensors["sample"][:] = 7
        assert out["out_sample"].shape == (1, 4, 8, 8)
        assert (recorder.seen[0]["sample"] == 1).all()
        assert told == [1]
    finally:
        pipeline.close()
