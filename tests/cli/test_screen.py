"""What is printed of proofs, placements, checksums and answers, also of manifests that have less or more in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrify import screen
from vitrify.core.artifact import Artifact, Component
from vitrify.core.errors import BadInput


def printed(capsys: pytest.CaptureFixture[str], numeric: Any, **whole: Any) -> str:
    component = Component("unet", "onnx", "unet/model.onnx", {}, {})
    component = replace(component, proof={"graph": "not run", "weights": {"tensors": 3}, "numeric": numeric})
    screen.print_proofs(Artifact(Path("a"), "", {}, {}, {"unet": component}, proof=whole))
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("numeric", "shown"),
    [
        ({"max_abs": 1e-5, "relative": 2e-6}, "max error 1.0e-05, 2.0e-06 of the range"),
        ({"max_abs": 1e-5}, "max error 1.0e-05"),
        ({"snr_db": 31.24, "status": "passed"}, "SNR 31.2 dB"),
        ({"snr_db": 3.0, "status": "failed"}, "FAILED: SNR 3.0 dB"),
        ({"status": "failed"}, "FAILED: failed"),
        ({"snr_db": None, "max_abs": 0.0, "relative": None}, "max error 0.0e+00"),
        ({}, "run, without figures"),
        ("not run", "not run"),
        (None, "None"),
    ],
)
def test_a_proof_shows_the_figures_that_it_has(capsys: pytest.CaptureFixture[str], numeric: Any, shown: str) -> None:
    line = next(row for row in printed(capsys, numeric).splitlines() if "3 tensors traced" in row)
    assert line.rstrip().endswith(shown)
    assert "FAILED" in line or "FAILED" not in shown


@pytest.mark.parametrize(
    ("images", "shown"),
    [
        ({"pictures": 2, "min_psnr_db": 61.26}, "pictures: 2 compared, PSNR at least 61.3 dB"),
        ({"pictures": 2, "min_psnr_db": None}, "pictures: 2 compared, identical"),
        ({"pictures": 2}, "pictures: 2 compared"),
        ({"min_psnr_db": 12.0, "status": "failed"}, "pictures: FAILED: PSNR at least 12.0 dB"),
    ],
)
def test_pictures_and_labels_too(capsys: pytest.CaptureFixture[str], images: Any, shown: str) -> None:
    out = printed(capsys, "not run", images=images, labels={"pictures": 4, "max_score_difference": 2e-7})
    assert out.splitlines()[-2:] == [shown, "labels: 4 compared, scores within 2.0e-07"]


def test_each_kind_of_placement_is_told_once() -> None:
    cpu = {"runtime": "onnx", "provider": "CPUExecutionProvider", "device": "cpu", "precision": "float32"}
    gpu = {"runtime": "openvino", "provider": "GPU", "device": "gpu", "precision": "float16"}
    assert screen.placements({"a": cpu, "b": cpu}) == "onnx CPUExecutionProvider on cpu, float32"
    both = screen.placements({"transformer": gpu, "b": cpu, "c": gpu})
    assert both == "openvino GPU on gpu, float16; onnx CPUExecutionProvider on cpu, float32"
    assert screen.placements({"a": gpu}, "int8-weights") == "openvino GPU on gpu, float16 (int8-weights)"
    dynamic = {"a": cpu | {"precision": "int8-dynamic"}}
    assert screen.placements(dynamic, "int8-dynamic") == "onnx CPUExecutionProvider on cpu, int8-dynamic"


def test_checksums_say_what_was_not_hashed() -> None:
    assert screen.checksums(3, []) == "3 files are those that were built"
    assert screen.checksums(3, ["a", "b"]) == "3 files are those that were built; 2 have no recorded hash: a, b"
    assert screen.checksums(1, list("abcdefg")).endswith("7 have no recorded hash: a, b, c, d, e and 2 more")
    assert screen.checksums(0, ["a"]) == "not recorded in this folder"


def test_an_answer_goes_to_stdout_and_an_error_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    box = {"left": 1, "top": 2, "width": 3, "height": 4, "score": None}
    happy = [{"label": "happy", "score": 0.75}]
    screen.print_answer(Path("a.png"), happy, False, None)
    screen.print_answer(Path("b.png"), [{"box": box, "labels": happy}], True, None)
    screen.print_answer(Path("c.png"), [], True, None)
    screen.print_answer(Path("d.png"), [{"label": "sad"}], False, None)
    screen.print_answer(Path("e.png"), [], False, BadInput("e.png is empty.", "Save it again."))
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "a.png  happy 0.750", "b.png  1,2 3x4  happy 0.750", "c.png  no face found", "d.png  sad"
    ]  # fmt: skip
    assert shown.err == "e.png  e.png is empty.\n"


def test_recipes_say_where_they_run_and_what_speaks_against_them(capsys: pytest.CaptureFixture[str]) -> None:
    no = {"runs": False, "why": "It has none: use another.", "buys": ""}
    shares = {"disk": 0.25, "memory": 0.5, "time": 1.25}
    targets = {"onnx": {"runs": True, "why": "", "buys": "disk", "measured": shares}, "openvino": no, "coreml": no}
    screen.print_recipes({"int3": {"buys": "disk", "here": ["int3 gains nothing."], "targets": targets}})
    out = capsys.readouterr().out
    first, second = (
        line.split() for line in out.splitlines() if line.strip().startswith("int3 ") and "not on" not in line
    )
    assert first == ["int3", "yes", "no", "no", "disk"]
    assert second == ["int3", "onnx", "0.25", "0.50", "1.25"]
    assert out.splitlines()[-2:] == [
        "int3 not on openvino and coreml: It has none: use another.", "on this machine: int3 gains nothing."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        ({}, None),
        ({"status": "failed", "what": "PSNR 9 dB."}, "PSNR 9 dB."),
        ({"status": "failed"}, "it does not say how"),
        ({"status": "passed", "what": "nothing"}, None),
    ],
)
def test_an_artifact_that_failed_its_proof_says_so(
    capsys: pytest.CaptureFixture[str], proof: dict[str, Any], said: str | None
) -> None:
    assert screen.failure_of(Artifact(Path("a"), "", {}, {}, {}, proof=proof)) == said
    last = printed(capsys, "not run", **proof).splitlines()[-1]
    assert (last == f"FAILED: {said}") is (said is not None)
