"""The built-in models, exported once a session into a folder of its own, and the command line as users run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it: no test reaches the hub

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache for this session. $VITRIFY_TEST_CACHE names one to keep, so that graphs are traced once a day."""
    kept = os.environ.get("VITRIFY_TEST_CACHE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRIFY_CACHE", str(folder))
        patch.delenv("VITRIFY_CACHE_MAX", raising=False)
        yield folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the built-in models: exports link to their weights, and no test shall reach those of the repository."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("emoji-diffusion", "emoji-emotions"):
        shutil.copytree(ROOT / "demo/models" / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def diffusion_source(models: Path) -> Path:
    return models / "emoji-diffusion"


@pytest.fixture(scope="session")
def emotions_source(models: Path) -> Path:
    return models / "emoji-emotions"


@pytest.fixture(scope="session")
def diffusion_artifact(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusion model, exported and proved. Shared: copy it before changing anything."""
    return _exported(diffusion_source, tmp_path_factory.mktemp("diffusion") / "emoji")


@pytest.fixture(scope="session")
def emotions_artifact(emotions_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier, exported and proved. Shared: copy it before changing anything."""
    return _exported(emotions_source, tmp_path_factory.mktemp("emotions") / "emotions")


def _exported(source: Path, target: Path) -> Path:
    pytest.importorskip("torch", reason="needs the extra export")
    from vitrify.export.job import export_model

    export_model(source, target, verify=True)
    return target


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The one JSON document that a command that failed prints."""
        error: dict[str, str] = self.json["error"]
        return error


@pytest.fixture(scope="session")
def environment(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a child process needs to import this checkout's vitrify, whether or not it is installed."""
    link = tmp_path_factory.mktemp("link")
    (link / "vitrify").symlink_to(ROOT)
    path = os.pathsep.join(p for p in (str(link), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "VITRIFY_CACHE": str(cache), "PYTHONPATH": path, "COLUMNS": "200"}


@pytest.fixture(scope="session")
def vitrify(environment: dict[str, str]) -> Callable[..., Ran]:
    """Runs `vitrify ARGUMENTS` in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, **changed: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "vitrify", *map(str, arguments)],
            env=environment | changed,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def python(environment: dict[str, str]) -> Callable[..., Ran]:
    """Runs Python code in a fresh interpreter."""

    def run(code: str, *arguments: object, **changed: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment | changed,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
