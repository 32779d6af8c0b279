"""The adapter in docs/adding-a-runtime.md is what the page says: a package of its own, found by its entry point.

That it is a runtime like the others is shown by test_contract.py, where it is one of the rows.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="the example runs on the onnx package")

from vitrify.core.registry import RUNTIMES, load_runtime, runtime_for, runtime_names


def test_it_is_found_by_its_entry_point_and_imported_late(python: Any, example: Path) -> None:
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(example)!r})\n"
        "from vitrify.core.registry import load_runtime, runtime_names\n"
        "assert 'onnx-reference' in runtime_names()\n"
        "assert 'vitrify_onnx_reference' not in sys.modules and 'onnx' not in sys.modules\n"
        "print(load_runtime('onnx-reference').probe().devices)\n"
        "assert 'onnx' in sys.modules and 'onnxruntime' not in sys.modules and 'torch' not in sys.modules\n"
    )
    ran = python(code)
    assert (ran.code, ran.out) == (0, "('cpu',)\n"), ran.err


def test_it_adds_a_name_and_takes_none(example: Path) -> None:
    assert runtime_names()[: len(RUNTIMES)] == [*RUNTIMES]
    assert runtime_names().count("onnx-reference") == 1
    assert runtime_for("onnx") == "onnx"
    assert type(load_runtime("onnx")).__module__ == "vitrify.runtimes.ort"


def test_the_pages_last_snippet_opens_a_component(example: Path, unet_model: Any, tmp_path: Path) -> None:
    from vitrify.core.artifact import Artifact

    page = (Path(__file__).resolve().parents[2] / "docs/adding-a-runtime.md").read_text("utf-8")
    snippet = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)[-1]
    assert "load_runtime" in snippet
    root = tmp_path / "artifact"
    shutil.copytree(unet_model.components["onnx"].root, root)
    Artifact(
        root,
        "x",
        {"architecture": "a", "source": "s"},
        {"family": "f", "tasks": []},
        {"model": replace(unet_model.components["onnx"], root=root)},
    ).save()
    scope: dict[str, Any] = {}
    exec(snippet.replace('"my-artifact"', repr(str(root))), scope)
    assert scope["session"].placement.runtime == "onnx-reference"
