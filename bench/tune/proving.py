"""The numeric proof of one compiled artifact, in a process of its own.

Run as `python -m vitrify.bench.tune.proving ARTIFACT SOURCE RUNTIME RECIPE`; the proof is written into ARTIFACT's
manifest, also where it failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...core.artifact import Artifact
from ...core.errors import VitrifyError
from ...quant.recipes import recipe


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 4:
        print("usage: python -m vitrify.bench.tune.proving ARTIFACT SOURCE RUNTIME RECIPE", file=sys.stderr)
        return 2
    from ...export.compile import CompileJob

    made, source, to, wanted = arguments
    try:
        artifact = Artifact.load(Path(source))
        CompileJob(artifact, Path(made), to, recipe(wanted), verify=True, keep_failed=True).prove()
    except VitrifyError as exc:
        print(f"error: {exc.what}\n  fix: {exc.fix}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
