"""What a bench needs and does not measure: made in processes of their own, so that the harness stays small.

What takes long is kept for the next call. Beside it lies a record of what it was made from and by: of another command,
model, library or state of vitrify's own sources it is made anew, else a result of an older version would be measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.machine import LIBRARIES, versions_of

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
# PyTorch's threads spin while they wait for each other: beside another process that takes ten times as long. What is
# timed runs as the library has it; what is only made does not.
UNTIMED = {**OFFLINE, "OMP_WAIT_POLICY": "PASSIVE"}
PACKAGE = Path(__file__).parents[1]
ROOMS = ("core", "quant", "runtimes", "pipelines", "proof", "export")  # those that an artifact is made by
MB = 1e6
_FAILED = "failed"


def untimed(what: str, command: Sequence[str], env: Mapping[str, str] = OFFLINE) -> None:
    """Run a command.

    Raises:
        BadInput: it failed; with its last words.
    """
    print(f"{what} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, env={**os.environ, **OFFLINE, **env}, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join(f"  {line}" for line in done.stderr.splitlines()[-12:])
        raise BadInput(f"{what} failed (exit {done.returncode}):\n{said}", f"Run it alone: {shlex.join(command)}")


def answer_of(module: str, *arguments: str) -> str:
    """What `python -m MODULE ARGUMENTS` prints on stdout, in a process that nobody times.

    Raises:
        BadInput: it failed; with its last words.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **UNTIMED}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.strip().splitlines()[-2:]) or "It said nothing."
        raise BadInput(said, f"Run it alone: {shlex.join(command)}")
    return done.stdout


def made(
    what: str, target: Path, command: Sequence[str], given: Iterable[Path], env: Mapping[str, str] = OFFLINE
) -> None:
    """Run a command that makes `target`, unless it was made by the same command of the same things.

    Args:
        given: the files and folders that it reads.

    Raises:
        BadInput: it failed, which `required` tells again.
    """
    wanted = record(command, given)
    if is_made(target, wanted):
        return
    forget(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        untimed(what, command, env)
    except BadInput as exc:
        _note(target).write_text(json.dumps({_FAILED: exc.what, "fix": exc.fix}))
        raise
    keep(target, wanted)


def required(target: Path) -> None:
    """Raises BadInput where `target` was not made, with the reason."""
    noted = _noted(target)
    if _FAILED in noted:
        raise BadInput(noted[_FAILED], noted["fix"])
    if not noted or not target.exists():
        raise BadInput(f"{target} was not made.", "Run the bench that makes it.")


def is_made(target: Path, wanted: Mapping[str, Any]) -> bool:
    return target.exists() and _noted(target) == wanted


def keep(target: Path, wanted: Mapping[str, Any]) -> None:
    """Note what `target` was made from."""
    _note(target).write_text(json.dumps(wanted))


def forget(target: Path) -> None:
    """Remove `target` and its note."""
    _note(target).unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def record(command: Sequence[str], given: Iterable[Path]) -> dict[str, Any]:
    """What decides what a command makes: its words, the sizes and times of what it reads, libraries, our sources."""
    files = sorted(file for path in given for file in ([path] if path.is_file() else path.rglob("*")))
    return {
        "command": list(command),
        "given": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()],
        "libraries": versions_of(LIBRARIES),
        "sources": sources(),
    }


def sources() -> str:
    """A digest of the code that artifacts are made by."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (PACKAGE / room).rglob("*.py")):
        digest.update(f"{file.relative_to(PACKAGE)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.made.json")


def _noted(target: Path) -> dict[str, Any]:
    """The note beside `target`; empty where there is none, or half of one."""
    try:
        noted = json.loads(_note(target).read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def inodes(folders: Iterable[Path]) -> set[tuple[int, int]]:
    """(device, inode) of every file below these folders."""
    return set(_sizes(folders))


def disk(folders: Iterable[Path], known: set[tuple[int, int]]) -> dict[str, float]:
    """New disk in MB: the sizes of the files below `folders`, each inode once, without those that were there before."""
    return {"disk_mb": sum(size for key, size in _sizes(folders).items() if key not in known) / MB}


def _sizes(folders: Iterable[Path]) -> dict[tuple[int, int], int]:
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found[(status.st_dev, status.st_ino)] = status.st_size
    return found
