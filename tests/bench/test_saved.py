"""Cells that leave out some of the work: how they are asked for, told apart, refused, counted and called."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vitrify
from vitrify.bench.calls import NEGATIVE, PROMPT, SEED, call_of
from vitrify.bench.cells import Built, facts
from vitrify.bench.counting import call_flops
from vitrify.bench.matrix import Axes, expand
from vitrify.bench.saved import combined, label_saved, saved
from vitrify.bench.spec import Spec
from vitrify.bench.suite_file import suite_of
from vitrify.bench.worker import run_cell
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError

SPEC = Spec("m", "m", "text2img", "onnx", "fp32", width=64, height=64, steps=4, guidance=3.0, threads=1)


def lacking(**values: Any) -> Spec:
    return replace(SPEC, saved=values)


@pytest.mark.parametrize(
    ("name", "text", "value", "label"),
    [
        ("preset", "FAST", "fast", "preset fast"), ("preset", "none", None, "preset none"),
        ("step_cache", "3.0", "3", "step cache 3"), ("step_cache", "0.10", "0.1", "step cache 0.1"),
        ("guidance_interval", "0.1:0.80", "0.1:0.8", "guidance interval 0.1:0.8"),
        ("guidance_interval", ":0.5", "0:0.5", "guidance interval 0:0.5"),
        ("guidance_interval", "0:1", None, "guidance interval none"),
        ("guidance_every", "2", 2, "guidance every 2"), ("guidance_every", "1", None, "guidance every 1"),
        ("decoder", "preview", "preview", "preview"), ("decoder", "vae", None, "vae"),
    ],
)  # fmt: skip
def test_values(name: str, text: str, value: Any, label: str) -> None:
    assert saved(name, text, "here") == value
    assert label_saved(name, value) == label


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("preset", "quick", "here: There is no preset 'quick'"), ("step_cache", "1", "here: The step cache is '1'"),
        ("guidance_interval", "0.8:0.1", "here: The guidance interval"), ("guidance_every", "2.5", "not a whole"),
        ("guidance_every", "11", "Guidance every 11"), ("decoder", "taesd", "no decoder 'taesd'"),
    ],
)  # fmt: skip
def test_what_is_no_value(name: str, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        saved(name, text, "here")


def test_every_combination_once() -> None:
    found = list(combined({"step_cache": (None, "3"), "guidance_every": (None, 2)}))
    assert found == [{}, {"guidance_every": 2}, {"step_cache": "3"}, {"step_cache": "3", "guidance_every": 2}]
    assert list(combined({})) == [{}]


def test_a_name_tells_what_is_left_out_and_such_cells_are_asked_something_else() -> None:
    one = lacking(preset="fast", step_cache="2", guidance_interval="0.1:0.8")
    assert one.name == (
        "m onnx fp32 64x64 steps 4 guidance 3 preset fast step cache 2 guidance interval 0.1:0.8 batch 1 threads 1"
    )
    assert one.how == SPEC.how == "onnx fp32 threads 1"
    assert one.asked != SPEC.asked
    assert one.saving == {"preset": "fast", "step_cache": "2", "guidance_interval": (0.1, 0.8)}
    assert Spec.from_json(one.to_json()) == one
    old = {name: value for name, value in SPEC.to_json().items() if name != "saved"}
    assert Spec.from_json(old) == SPEC
    assert one.draws_otherwise
    assert not SPEC.draws_otherwise
    assert not lacking(preset="exact").draws_otherwise


def test_a_suite_and_options_name_them(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    file = tmp_path / "suite.toml"
    file.write_text(
        'step_cache = ["none", "3", 0.1]\n[[model]]\nsource = "emoji"\nguidance_every = [1, 2]\npreset = "fast"\n'
        'guidance_interval = ["0.1:0.8"]\n'
    )
    (model,) = suite_of([str(file)], {}).models
    assert model.axes.saved == {
        "step_cache": (None, "3", "0.1"), "guidance_every": (None, 2), "preset": ("fast",),
        "guidance_interval": ("0.1:0.8",),
    }  # fmt: skip
    (model,) = suite_of([str(tmp_path / "emoji")], {"preset": ["none", "fast"], "guidance_every": ["2"]}).models
    assert model.axes.saved == {"preset": (None, "fast"), "guidance_every": (2,)}
    file.write_text('step_cache = [true]\n[[model]]\nsource = "emoji"\n')
    with pytest.raises(BadInput, match="step_cache is True"):
        suite_of([str(file)], {})


def test_cells_of_a_model(cached_artifact: Path, diffusion_artifact: Path, emotions_artifact: Path) -> None:
    axes = Axes(("onnx",), steps=4, saved={"preset": (None, "fast"), "step_cache": (None, "2")})
    matrix = expand("m", "m", Artifact.load(cached_artifact), axes)
    assert not matrix.skipped
    assert [one.saved for one in matrix.specs] == [
        {}, {"step_cache": "2"}, {"preset": "fast"}, {"preset": "fast", "step_cache": "2"},
    ]  # fmt: skip
    assert len({one.name for one in matrix.specs}) == len({one.asked for one in matrix.specs}) == 4
    matrix = expand("m", "m", Artifact.load(diffusion_artifact), axes)
    assert [one.saved for one in matrix.specs] == [{}, {"preset": "fast"}], "a preset does what it can"
    assert all("no graph that takes deep features" in one.what for one in matrix.skipped)
    compiled = Axes(("torch",), ("nf4-weights",), saved={"step_cache": ("2",)})
    (one,) = expand("m", "m", Artifact.load(cached_artifact), compiled).skipped
    assert "compiled for torch has no graph" in one.what
    (spec,) = expand("e", "e", Artifact.load(emotions_artifact), Axes(("onnx",), saved=axes.saved)).specs
    assert spec.saved == {}


def test_operations_that_are_not_done_are_not_counted(cached_artifact: Path) -> None:
    artifact = Artifact.load(cached_artifact)

    def count(steps: int = 4, **values: Any) -> int:
        return call_flops(artifact, replace(SPEC, steps=steps, saved=values))

    plain, step = count(), count() - count(3)
    assert count(guidance_every=2) == count(guidance_interval="0.25:0.75") == plain - step
    assert count(guidance_interval="0.5:1") == plain - step
    less = count(3) - count(3, step_cache="2")  # one of three steps is shallow
    assert 0.2 * step < less < step
    assert count(step_cache="2") == plain - 2 * less
    assert count(preset="fast") == count(step_cache="2")
    with pytest.raises(BadInput, match="the features decide"):
        count(step_cache="0.1")


def test_what_is_timed_is_what_generate_draws(cached_artifact: Path) -> None:
    pipeline: Any = vitrify.load(cached_artifact, "cpu")
    call, parts = call_of(pipeline, lacking(step_cache="2", guidance_interval="0:0.5"))
    made: Any = call()
    asked = {"width": 64, "height": 64, "steps": 4, "guidance": 3.0, "seed": SEED, "negative_prompt": NEGATIVE}
    own = pipeline.generate(PROMPT, **asked, step_cache="2", guidance_interval=(0.0, 0.5))
    pipeline.close()
    assert made.images[0].tobytes() == own.images[0].tobytes()
    assert len(parts["step_ms"]) == 4


def test_a_process_tells_its_share_of_the_shallow_graph(cached_artifact: Path) -> None:
    values, _ = run_cell(cached_artifact, lacking(preset="fast"), 0.01, 1, time.time())
    assert values["unet_shallow_ms"] > 0
    assert values["unet_ms"] > 0


def test_the_proof_of_an_artifact_is_none_of_such_pictures(cached_artifact: Path, tmp_path: Path) -> None:
    built = Built(cached_artifact)
    assert facts(SPEC, built, tmp_path, None)["quality"] != "not run"
    assert facts(lacking(preset="exact"), built, tmp_path, None)["quality"] != "not run"
    found = facts(lacking(step_cache="3"), built, tmp_path, None)
    assert (found["quality"], found["pictures"]) == ("not run", [])
