"""What the tests of benches share."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def interrupted(environment: dict[str, str]) -> Callable[..., str]:
    """Runs `vitrify ARGUMENTS -o OUT` and gives it Ctrl-C once two samples are in OUT; returns its stderr."""

    def run(out: Path, *arguments: object) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "vitrify", *map(str, arguments), "-o", str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        file = out / "results.jsonl"
        for _ in range(1200):
            time.sleep(0.1)
            if file.exists() and file.read_text().count('"kind": "sample"') >= 2:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        return err

    return run
