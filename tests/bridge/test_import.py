"""The bridge is there under the names that users call, and costs nothing until it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def test_importing_it_loads_no_library(python: Callable[..., Any]) -> None:
    done = python(
        "import sys, vitrify, vitrify.bridge; print(dir(vitrify.bridge), *(m for m in ('torch', 'diffusers', "
        "'transformers', 'onnxruntime', 'openvino') if m in sys.modules))"
    )
    assert (done.code, done.out.strip()) == (0, "['compile_pipeline', 'pipeline', 'wrap']"), done.err


def test_its_names_are_there(python: Callable[..., Any]) -> None:
    pytest.importorskip("diffusers", reason="needs vitrify[export]")
    done = python(
        "import vitrify; assert vitrify.compile_pipeline is vitrify.bridge.compile_pipeline\n"
        "print(vitrify.bridge.wrap.__name__, vitrify.bridge.pipeline.__name__, 'compile_pipeline' in vitrify.__all__)\n"
        "try:\n    vitrify.bridge.warp\nexcept AttributeError as exc:\n    print(exc)"
    )
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["wrap pipeline True", "module 'vitrify.bridge' has no attribute 'warp'"]


def test_without_torch_it_says_what_to_install(python: Callable[..., Any]) -> None:
    done = python(
        "import sys; sys.modules['torch'] = None\nimport vitrify.bridge\n"
        "try:\n    vitrify.bridge.wrap\nexcept vitrify.VitrifyError as exc:\n    print(exc.code, exc.what, exc.fix)"
    )
    assert done.code == 0, done.err
    assert done.out.startswith("missing_dependency vitrify.bridge needs torch")
    assert 'pip install "vitrify[torch]"' in done.out
