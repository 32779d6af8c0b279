"""Runtimes by name: the table's, those that other packages add, and what is said when a library is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import MissingDependency, UsageError
from vitrify.core.registry import RUNTIMES, load_runtime, runtime_for, runtime_names

Install = Callable[..., None]

# Ends with the error's kind, what, fix and cause.
TELL = """
import sys
sys.path[:0] = sys.argv[3:]
if sys.argv[2]:
    sys.modules[sys.argv[2]] = None  # as if it were not installed
from vitrify.core.errors import VitrifyError
from vitrify.core.registry import load_runtime
try:
    print(load_runtime(sys.argv[1]))
except VitrifyError as exc:
    print(type(exc).__name__, exc.what, exc.fix, type(exc.__cause__).__name__, sep="\\n")
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(point, "module:attribute", code): a package with one entry point, as pip would lay it out."""
    site = tmp_path / "site"
    site.mkdir()

    def make(point: str, value: str, code: str | None = "", package: str = "other-package") -> None:
        if code is not None:
            (site / f"{value.partition(':')[0]}.py").write_text(code)
        info = site / f"{package.replace('-', '_')}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[vitrify.runtimes]\n{point} = {value}\n")

    monkeypatch.syspath_prepend(site)
    return make


@pytest.mark.parametrize(("name", "library", "extra"), [(n, r.library, r.extra) for n, r in RUNTIMES.items()])
def test_a_missing_library_names_its_extra(python: Any, name: str, library: str, extra: str) -> None:
    ran = python(TELL, name, library)
    kind, what, fix, cause = ran.out.splitlines()
    assert (kind, what) == ("MissingDependency", f"The {name} runtime needs {library}, which is not installed."), (
        ran.err
    )
    if name == "ipex":  # which goes with an older PyTorch, and says so before it is imported
        assert fix == 'It needs an environment of its own: pip install "vitrify[ipex]" in a new one.'
    else:
        assert (fix, cause) == (f'pip install "vitrify[{extra}]"', "ModuleNotFoundError")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError"),
        ("raise OSError('libgomp.so.1: cannot allocate memory in static TLS block')", "OSError"),
        ("import onnxruntime.capi._not_built", "ModuleNotFoundError"),
        ("raise RuntimeError('built for another numpy')", "RuntimeError"),
    ],
    ids=["import", "shared library", "a part is missing", "its own check"],
)
def test_a_broken_library_is_not_called_missing(python: Any, tmp_path: Path, code: str, cause: str) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime/__init__.py").write_text(code)
    kind, what, fix, chained = python(TELL, "onnx", "", tmp_path).out.splitlines()
    assert kind == "MissingDependency"
    assert what.startswith(f"onnxruntime is installed but does not import: {cause}: ")
    assert fix == 'pip install --force-reinstall "vitrify[onnx]"'
    assert chained == cause


def test_another_missing_package_is_the_one_that_is_named(python: Any) -> None:
    """Not the runtime's library, which is there."""
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    kind, what, *_ = python(TELL, "openvino", "numpy").out.splitlines()
    assert (kind, what) == ("MissingDependency", "The openvino runtime needs numpy, which is not installed.")


def test_an_unknown_runtime_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no runtime 'pebbles'.*onnx, .*torch"):
        load_runtime("pebbles")
    with pytest.raises(UsageError, match=r"No runtime opens 'pebbles' components.*onnx, .*torch"):
        runtime_for("pebbles")


def test_an_entry_point_adds_a_runtime(install: Install) -> None:
    before = runtime_names()
    install("abacus", "abacus_adapter:RUNTIME", "class RUNTIME: name, formats = 'abacus', ('beads', 'onnx')")
    assert runtime_names() == [*before, "abacus"]
    assert load_runtime("abacus").name == "abacus"
    assert runtime_for("beads") == "abacus"
    assert runtime_for("onnx", "abacus") == "abacus", "the one that was named"
    assert runtime_for("onnx") == "onnx"
    with pytest.raises(UsageError, match=r"abacus runtime opens beads, onnx components, not torch"):
        runtime_for("torch", "abacus")


def test_a_broken_entry_point_hides_no_other(install: Install) -> None:
    install("a-broken", "broken_adapter:RUNTIME", "import no_such_library", package="broken-package")
    install("sound", "sound_adapter:RUNTIME", "class RUNTIME: name, formats = 'sound', ('beads',)")
    assert runtime_for("beads") == "sound"


def test_an_entry_point_never_replaces_a_runtime(install: Install) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    before = runtime_names()
    install("onnx", "taken_adapter:RUNTIME", "raise SystemExit('this must not even be imported')")
    assert runtime_names() == before
    assert type(load_runtime("onnx")).__module__ == RUNTIMES["onnx"].module
    assert runtime_for("onnx") == "onnx"


@pytest.mark.parametrize(
    ("code", "what", "fix"),
    [
        (None, r"needs gone_adapter, which is not installed", "pip install other-package"),
        ("import no_such_library", r"needs no_such_library, which is not installed", "pip install other-package"),
        ("", r"gone_adapter is installed but does not import: AttributeError", "--force-reinstall other-package"),
    ],
    ids=["no module", "its library is missing", "no such object"],
)
def test_an_entry_point_that_fails_names_its_package(install: Install, code: str | None, what: str, fix: str) -> None:
    install("gone", "gone_adapter:RUNTIME", code)
    with pytest.raises(MissingDependency, match=what) as caught:
        load_runtime("gone")
    assert fix in caught.value.fix
    assert caught.value.__cause__ is not None
