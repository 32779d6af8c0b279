"""What the Makefile hands to pytest is what pytest takes; most of its targets need environments that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = "not slow and not optimum and not openvino_peers and not ray"


def selections() -> list[tuple[str, str]]:
    """Every -m and -k of a command that runs pytest."""
    makefile = re.sub(r"\\\n\s*", " ", (ROOT / "Makefile").read_text("utf-8"))
    commands = [part for line in makefile.splitlines() for part in line.split(";") if " pytest" in part]
    options = [re.findall(r'(-[mk]) (?:"([^"]+)"|(\S+))', one.partition(" pytest ")[2]) for one in commands]
    found = {(flag, quoted or plain) for each in options for flag, quoted, plain in each}
    return sorted((flag, QUICK if text == "$(QUICK)" else text) for flag, text in found)


@pytest.mark.parametrize(("flag", "expression"), selections(), ids=str)
def test_pytest_takes_what_a_target_selects_by(flag: str, expression: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "--collect-only", flag, expression, __file__]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take most of the time
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 5), done.stderr + done.stdout  # 5: nothing of that file is selected


def test_the_quick_ones_are_as_the_makefile_says() -> None:
    assert f'QUICK = "{QUICK}"' in (ROOT / "Makefile").read_text("utf-8")
    assert {flag for flag, _ in selections()} == {"-m", "-k"}
    assert ("-k", "provider and tensorrt") in selections()
