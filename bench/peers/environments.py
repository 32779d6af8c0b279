"""The environments of the tools: `python -m vitrify.bench.peers.environments --work DIR [--only NAME]`.

Each is a virtual environment with what its pinned file names. One that cannot be built is told, and again by the cases
that need it; the others are built.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import BadInput
from ..preparing import forget, is_made, keep, untimed
from .table import ENVIRONMENTS, Environment


def build(environment: Environment, work: Path) -> None:
    """Build it, unless it is there; the reason of a failure is kept for `Environment.required`.

    Raises:
        BadInput: venv or pip failed, or what it installed does not import.
    """
    folder, wanted = environment.folder(work), environment.made_from()
    if is_made(folder, wanted):
        return
    forget(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    python, name = str(environment.python(work)), environment.name
    install = [python, "-m", "pip", "install", "-r", str(environment.requirements)]
    imports = "; ".join(f"import {module}" for module in environment.imports)
    try:
        untimed(f"making the environment {name}", [sys.executable, "-m", "venv", str(folder)])
        untimed(f"installing what {name} needs", install, environment.variables)
        if environment.without:
            untimed(f"removing {environment.without}", [python, "-m", "pip", "uninstall", "-y", *environment.without])
        untimed(f"importing it in {name}", [python, "-c", imports])
    except BadInput as exc:
        keep(folder, {"failed": exc.what, "fix": exc.fix})  # as `preparing.required` reads it
        raise
    keep(folder, wanted)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vitrify.bench.peers.environments", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="the folder of the benches; 5 GB below peers/")
    parser.add_argument("--only", choices=ENVIRONMENTS, help="build one")
    given = parser.parse_args(arguments)
    for environment in [ENVIRONMENTS[given.only]] if given.only else ENVIRONMENTS.values():
        try:
            build(environment, given.work.absolute())
        except BadInput as exc:
            print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
