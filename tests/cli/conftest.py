"""What the tests of the command line share: `vitrify` in this process, in a tenth of a new one's time, and refusals.

A process of its own (the fixture `vitrify`) is for what cannot be shared: signals, the environment, what is imported.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitrify.cli import main


@dataclass(frozen=True)
class Place:
    """Where a test may write, and the models and artifacts that it may copy."""

    tmp: Path
    diffusion: Path
    emotions: Path
    drawing: Path
    labelling: Path

    @property
    def out(self) -> Path:
        return self.tmp / "out" / "target"

    @property
    def picture(self) -> Path:
        path = self.tmp / "picture.png"
        Image.new("RGB", (32, 32), (250, 200, 0)).save(path)
        return path

    def copy(self, folder: Path) -> Path:
        return shutil.copytree(folder, self.tmp / "copy")

    def edit(self, path: Path, change: Callable[[Any], None]) -> None:
        """Change a JSON file."""
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))


@pytest.fixture
def at(
    tmp_path: Path, diffusion_source: Path, emotions_source: Path, diffusion_artifact: Path, emotions_artifact: Path
) -> Place:
    (tmp_path / "out").mkdir()
    return Place(tmp_path, diffusion_source, emotions_source, diffusion_artifact, emotions_artifact)


@dataclass(frozen=True)
class Ended:
    """A command that ended: as a process tells it, though it ran in this one."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return self.json["error"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """here(ARGUMENTS, cwd=FOLDER) runs `vitrify ARGUMENTS` in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, cwd: Path | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vitrify", *map(str, arguments)])
        capfd.readouterr()
        with chdir(cwd or "."), pytest.raises(SystemExit) as end:
            main()
        return Ended(int(end.value.code or 0), *capfd.readouterr())

    return run


def _refused(done: Any, code: int = 2, kind: str = "", what: str = "", fix: str = "") -> dict[str, str]:
    assert "Traceback" not in done.err, done.err
    assert done.code == code, done.err
    error: dict[str, str] = done.error
    assert sorted(error) == ["code", "fix", "what"]
    assert error["code"] == (kind or error["code"])
    assert what in error["what"]
    assert fix in error["fix"]
    assert error["what"].strip(" .")
    assert error["fix"].strip(" ."), "an error says what to do"
    assert f"error: {error['what']}" in done.err, "a reader of the terminal sees it too"
    assert done.err.count("error: ") == 1
    assert "\n" not in error["what"]
    return error


@pytest.fixture
def refused() -> Callable[..., dict[str, str]]:
    """refused(what a command with --json ended with, its exit code, the error's code, parts of its text and fix)."""
    return _refused


@pytest.fixture
def refuses(here: Callable[..., Ended], tmp_path: Path) -> Callable[..., Ended]:
    """refuses([ARGUMENTS], as for `refused`) runs them in the test's folder, which stays as it is."""

    def listing() -> dict[str, int]:
        found = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*")}
        return {name: p.lstat().st_size if p.is_file() else -1 for name, p in found.items()}

    def run(arguments: list[object], *expected: Any) -> Ended:
        before = listing()
        done = here(*arguments, "--json", cwd=tmp_path)
        _refused(done, *expected)
        assert listing() == before, "nothing is left behind, nothing is changed"
        return done

    return run
