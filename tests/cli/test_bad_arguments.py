"""Arguments that make no sense, and libraries that are missing: what a command that runs a model says."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

DRAWN = "out/picture.png"
GENERATE = [
    (["--width", 100], 2, "bad_input", "100, not a multiple of 16", "96"),
    (["--width", 0], 2, "bad_input", "width", "16"),
    (["--height", 0], 2, "bad_input", "height", "16"),
    (["--seed", -1], 2, "bad_input", "seed is -1", "random"),
    (["--scheduler", "huen"], 2, "bad_input", "huen", "Did you mean heun?"),
    (["--steps", 0], 2, "bad_input", "steps"),
    (["--steps", -3], 2, "bad_input", "steps"),
    (["--steps", 2000], 2, "bad_input", "steps"),
    (["--steps", "many"], 2, "usage", "--steps", "--help"),
    (["--stepz", 3], 2, "usage", "--stepz", "--help"),
    (["and", "a", "pear"], 2, "usage", "and a pear", "in quotes"),
]
CLASSIFY = [
    (["--device", "toaster"], 2, "usage", "'toaster' is not a device", "cpu, cuda"),
    (["--device", "cuda:9"], 5, "device", "cuda:9"),
    (["--hint", "luck"], 2, "usage", "hint"),
    (["--precision", "int3"], 2, "usage", "precision"),
    (["--streams", -1], 2, "usage", "streams"),
    (["--threads", -1], 2, "usage", "threads"),
    (["--runtime", "abacus"], 2, "usage", "runtime"),
    (["--detector", "picture.png"], 2, "usage", "--detector", "--faces"),
]


@pytest.mark.parametrize("row", GENERATE, ids=lambda row: " ".join(map(str, row[0])))
def test_what_generate_does_not_take(at: Any, refuses: Callable[..., Any], row: tuple[Any, ...]) -> None:
    options, *expected = row
    refuses(["generate", at.drawing, "a red apple", "-o", DRAWN, *options], *expected)


@pytest.mark.parametrize("row", CLASSIFY, ids=lambda row: " ".join(map(str, row[0])))
def test_what_classify_does_not_take(at: Any, refuses: Callable[..., Any], row: tuple[Any, ...]) -> None:
    options, *expected = row
    refuses(["classify", at.labelling, at.picture, *options], *expected)


@pytest.mark.parametrize(
    ("name", "kind", "what", "fix"),
    [
        ("picture.jpg", "usage", ".jpg", ".png"),
        ("picture", "usage", "picture", ".png"),
        ("nothing/picture.png", "disk", "picture.png", ""),
    ],
)
def test_where_the_picture_shall_go_is_checked_before_it_is_drawn(
    at: Any, refuses: Callable[..., Any], name: str, kind: str, what: str, fix: str
) -> None:
    done = refuses(["generate", at.drawing, "a red apple", "--steps", 1, "-o", name], 2, kind, what, fix)
    assert "device:" not in done.err, "the pipeline was opened for nothing"


def test_pictures_that_are_none(at: Any, refuses: Callable[..., Any]) -> None:
    (at.tmp / "text.png").write_text("Dear Sir or Madam,")
    (at.tmp / "empty.jpg").touch()
    for name, what in (("text.png", "is not a picture"), ("empty.jpg", "empty (0 bytes)"), ("out", "no pictures")):
        refuses(["classify", at.labelling, name], 2, "bad_input", what)


def test_a_model_for_another_task(at: Any, refuses: Callable[..., Any]) -> None:
    refuses(["generate", at.labelling, "a red apple", "-o", DRAWN], 2, "usage", "cannot generate", "classify")
    refuses(["classify", at.drawing, at.picture], 2, "usage", "cannot classify", "generate")


def test_a_command_that_is_none(refuses: Callable[..., Any]) -> None:
    refuses(["paint", "emoji"], 2, "usage", "paint", "--help")


HIDE = """
from importlib.machinery import PathFinder
found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] == {library!r} else found(name, *rest)
"""


@pytest.mark.parametrize(
    ("library", "command", "fix"),
    [
        ("onnxruntime", "classify", "onnx"),
        ("onnxruntime", "trace", "onnx"),
        ("skimage", "faces", "faces"),
        ("torch", "export", "torch"),
        ("onnx_ir", "export", "export"),
        ("onnx", "verify", "export"),
        ("matplotlib", "bench", "bench"),
        ("matplotlib", "tune", "bench"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    vitrify: Callable[..., Any], environment: dict[str, str], at: Any, library: str, command: str, fix: str
) -> None:
    site = at.tmp / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDE.format(library=library))
    arguments: dict[str, list[object]] = {
        "classify": ["classify", at.labelling, at.picture],
        "faces": ["classify", at.labelling, at.picture, "--faces"],
        "export": ["export", at.emotions, "-o", at.out],
        "trace": ["export", at.emotions, "-o", at.out],
        "verify": ["verify", at.copy(at.labelling)],
        "bench": ["bench", at.labelling, "--rounds", 1, "-o", at.out],
        "tune": ["tune", at.labelling, "-o", at.out],
    }
    changed = {"PYTHONPATH": os.pathsep.join([str(site), environment["PYTHONPATH"]]), "PYTHONDONTWRITEBYTECODE": "1"}
    if command == "trace":  # no graph is known
        changed["VITRIFY_CACHE"] = str(at.tmp / "cache")
    done = vitrify(*arguments[command], "--json", **changed)
    assert "Traceback" not in done.err, done.err
    assert "no graph" not in done.err, "it was traced for nothing"
    assert (done.code, done.error["code"]) == (4, "missing_dependency"), done.err
    assert {"skimage": "scikit-image"}.get(library, library) in done.error["what"]
    assert done.error["fix"] == f'pip install "vitrify[{fix}]"'
    assert list((at.tmp / "out").iterdir()) == []
