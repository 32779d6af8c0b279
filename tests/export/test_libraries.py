"""A library that is missing or broken is named as such, however its import fails; a config of a model is not blamed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import BadInput, MissingDependency
from vitrify.export.libraries import export_libraries, library_that_failed

BROKEN = {
    "OSError": ("raise OSError('libfoo.so.1: cannot open shared object file')", "libfoo.so.1: cannot open"),
    "AttributeError": ("import os\nos.no_such_thing", "no attribute 'no_such_thing'"),
    "ImportError": ("from os import no_such_thing", "cannot import name"),
    "ModuleNotFoundError": ("import broken_library.parts", "No module named 'broken_library.parts'"),
}
# as transformers and diffusers import their parts
LATE = """
import importlib
def __getattr__(name):
    try:
        return importlib.import_module(__name__ + "." + name)
    except Exception as e:
        raise RuntimeError(f"Failed to import {name} because of the following error:") from e
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to import from."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.startswith("broken_library")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def package(site: Path, name: str, code: str) -> None:
    (site / name).mkdir(exist_ok=True, parents=True)
    (site / name / "__init__.py").write_text(code)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("late", [False, True])
def test_a_broken_library_is_installed_but_does_not_import(site: Path, kind: str, late: bool) -> None:
    code, says = BROKEN[kind]
    package(site, "broken_library", LATE if late else code)
    package(site, "broken_library/late", code)
    with pytest.raises(MissingDependency) as caught, export_libraries():
        getattr(importlib.import_module("broken_library"), "late")  # noqa: B009
    assert caught.value.what.startswith(f"broken_library is installed but does not import: {kind}: ")
    assert says in caught.value.what
    assert caught.value.fix == 'pip install --force-reinstall "vitrify[export]"'


def test_a_missing_library_is_not_installed(site: Path) -> None:
    package(site, "broken_library", "import no_such_library.parts")
    says = r"^Export needs no_such_library\S*, which is not installed.*vitrify\[export"
    with pytest.raises(MissingDependency, match=says), export_libraries():
        importlib.import_module("broken_library")


def test_an_error_of_our_own_is_not_translated() -> None:
    with pytest.raises(AttributeError), export_libraries():
        getattr(Path(), "no_such_thing")  # noqa: B009
    with pytest.raises(BadInput), export_libraries():
        raise BadInput("what", "fix")
    assert library_that_failed(OSError("the disk")) is None


def test_a_broken_library_is_no_bad_config(python: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra export")
    package(tmp_path, "diffusers", "import os\nos.no_such_thing")
    done = python(
        "import json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from vitrify.core.errors import VitrifyError\n"
        "from vitrify.export.families.sd import SD\n"
        "from vitrify.export.graph import meta_module\n"
        "from vitrify.export.libraries import export_libraries\n"
        "try:\n"
        "    with export_libraries():\n"
        "        meta_module(next(s for s in SD if s.name == 'unet'), {})\n"
        "except VitrifyError as exc:\n"
        "    print(json.dumps([exc.code, exc.what]))\n",
        tmp_path,
    )
    assert done.code == 0, done.err
    code, what = done.json
    assert code == "missing_dependency"
    assert what.startswith("diffusers is installed but does not import: AttributeError")
