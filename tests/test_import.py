"""Importing vitrify is cheap, and its command line answers without a heavy library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "onnxruntime", "onnx", "onnxscript", "onnx_ir", "openvino",
         "tensorrt", "skimage")  # fmt: skip
TELL = f"print(*sorted(m for m in {HEAVY} if m in sys.modules))"
COMMANDS = ("doctor", "export", "compile", "verify", "inspect", "generate", "classify", "demo", "cache")


@pytest.mark.parametrize("module", ["vitrify", "vitrify.cli", "vitrify.core.artifact", "vitrify.pipelines.prompt"])
def test_no_heavy_library_is_imported(python: Callable[..., Any], module: str) -> None:
    done = python(f"import sys, {module}; {TELL}")
    assert (done.code, done.out.split(), done.err) == (0, [], "")


@pytest.mark.parametrize("arguments", [["--help"], *([c, "--help"] for c in COMMANDS), ["--version"], ["cache", "ls"]])
def test_the_command_line_answers_without_one(python: Callable[..., Any], arguments: list[str]) -> None:
    done = python(
        f"import sys\nfrom vitrify.cli import main\nsys.argv[0] = 'vitrify'\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\nprint('after')\n{TELL}",
        *arguments,
    )
    assert done.code == 0, done.err
    shown, loaded = done.out.split("after\n")
    assert loaded.split() == []
    assert shown.strip(), "it shows something"
    assert "Traceback" not in done.err


def test_help_names_every_command(vitrify: Callable[..., Any]) -> None:
    done = vitrify("--help")
    assert [c for c in COMMANDS if c not in done.out] == []


def test_reading_an_artifact_loads_no_runtime(python: Callable[..., Any], emotions_artifact: Path) -> None:
    done = python(
        f"import sys, vitrify; a = vitrify.Artifact.load(__import__('pathlib').Path(sys.argv[1])); "
        f"assert a.components; {TELL}",
        emotions_artifact,
    )
    assert (done.code, done.out.split()) == (0, []), done.err


@pytest.mark.parametrize("name", ["Artifact", "VitrifyError", "export_model", "compile_model", "load", "__version__"])
def test_the_public_names_are_there(python: Callable[..., Any], name: str) -> None:
    done = python(
        f"import vitrify; assert {name!r} in dir(vitrify) and {name!r} in vitrify.__all__; print(vitrify.{name})"
    )
    assert done.code == 0, done.err
    assert done.out.strip()


def test_a_name_that_is_not_there_says_so(python: Callable[..., Any]) -> None:
    done = python("import vitrify\ntry:\n    vitrify.lod\nexcept AttributeError as exc:\n    print(exc)")
    assert "no attribute 'lod'" in done.out
