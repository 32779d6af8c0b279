"""The matrix: which cells there are, and why others cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrify.bench.matrix import Axes, as_it_is, expand
from vitrify.bench.spec import Spec
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.export.compile import compile_model


def test_every_combination_is_a_cell(diffusion_artifact: Path) -> None:
    axes = Axes(("onnx", "openvino"), ("fp32", "int8-weights"), ((64, 64), (128, 64)), (1, 2), (0, 1), steps=4)
    matrix = expand("emoji", "given", Artifact.load(diffusion_artifact), axes)
    assert not matrix.skipped
    assert len(matrix.specs) == 2 * 2 * 2 * 2 * 2
    assert len({s.name for s in matrix.specs}) == len(matrix.specs)
    assert matrix.specs[0].name == "emoji onnx fp32 64x64 steps 4 batch 1"
    assert matrix.specs[-1].name == "emoji openvino int8-weights 128x64 steps 4 batch 2 threads 1"
    assert matrix.specs[-1].how == "openvino int8-weights threads 1"


def test_what_cannot_be_is_skipped_with_the_reason(emotions_artifact: Path) -> None:
    axes = Axes(("onnx", "torch", "openvino"), ("int8-static", "nf4-weights", "int8-dynamic"))
    matrix = expand("emotions", "given", Artifact.load(emotions_artifact), axes)
    said = {s.spec.how: (s.what, s.fix) for s in matrix.skipped}
    assert "needs pictures to calibrate with" in said["onnx int8-static"][0]
    assert "--calibration" in said["onnx int8-static"][1]
    assert "no nf4 type" in said["onnx nf4-weights"][0]
    assert "does not run on torch" in said["torch int8-static"][0]
    assert "does not run on openvino" in said["openvino int8-dynamic"][0]
    assert [s.how for s in matrix.specs] == ["onnx int8-dynamic", "torch nf4-weights", "openvino nf4-weights"]


def test_a_size_and_steps_are_of_pipelines_alone(emotions_artifact: Path) -> None:
    matrix = expand("e", "e", Artifact.load(emotions_artifact), Axes(("onnx",), sizes=((64, 64),), batches=(8,)))
    (spec,) = matrix.specs
    assert (spec.width, spec.steps, spec.guidance) == (None, None, None)
    assert spec.asked == "batch 8"


def test_a_compiled_artifact_is_run_as_it_is(emotions_artifact: Path, tmp_path: Path) -> None:
    made = compile_model(emotions_artifact, tmp_path / "int8", to="openvino", quant="int8-weights", verify=False)
    matrix = expand("e", "e", made, Axes(recipes=("fp32", "int4-weights")))
    (spec,) = matrix.specs
    assert (spec.runtime, spec.recipe) == ("openvino", "int8-weights")
    assert as_it_is(spec, made)
    refused = expand("e", "e", made, Axes(("onnx",))).skipped
    assert refused[0].what == "onnx does not open openvino."


def test_a_number_below_one_is_refused(emotions_artifact: Path) -> None:
    with pytest.raises(UsageError, match="below 1"):
        expand("e", "e", Artifact.load(emotions_artifact), Axes(batches=(0,)))


def test_a_spec_survives_json_and_bears_newer_fields() -> None:
    spec = Spec("m", "s", "classify", "onnx", "fp32", batch=4, options={"prepack": False})
    assert Spec.from_json({**spec.to_json(), "newer": 1}) == spec
    assert spec.name == "m onnx fp32 batch 4 prepack false"
    with pytest.raises(BadInput, match="lacks something"):
        Spec.from_json({"model": "m"})
