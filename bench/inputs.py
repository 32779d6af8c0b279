"""What every case of a bench computes on: inputs of one component, drawn once, and what the model makes of them.

Run as `python -m vitrify.bench.inputs ARTIFACT COMPONENT HOW MODEL FILE SIZE=NUMBER ...`, where HOW opens MODEL, the
model in eager mode (see `openers`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.numpy import load_file, save_file

from ..core.artifact import Artifact
from ..core.errors import BadInput
from ..core.publish import disk_errors
from ..core.tensors import Array
from ..proof.parity import sample_inputs
from .openers import OPENERS, Model

EXPECTED = "expected"  # the name of the output in the file
_USAGE = "usage: python -m vitrify.bench.inputs ARTIFACT COMPONENT HOW MODEL FILE SIZE=NUMBER ..."


def make_inputs(artifact: Path, component: str, how: str, model: Path, file: Path, sizes: Mapping[str, int]) -> None:
    """Write seeded inputs of these sizes and the model's output to `file`."""
    tensors = sample_inputs(Artifact.load(artifact).components[component], sizes)
    expected = OPENERS[how](Model(model))(tensors)()
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({**tensors, EXPECTED: expected}, file)


def read_inputs(file: Path) -> tuple[dict[str, Array], Array]:
    """The tensors in a file that `make_inputs` wrote, and the output that belongs to them.

    Raises:
        BadInput: no such file.
    """
    if not file.is_file():
        raise BadInput(f"{file} is missing.", _USAGE.capitalize())
    tensors = load_file(file)
    expected = tensors.pop(EXPECTED)
    return tensors, expected


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 6 or arguments[2] not in OPENERS or not all("=" in size for size in arguments[5:]):
        print(_USAGE, file=sys.stderr)
        return 2
    artifact, component, how, model, file = arguments[:5]
    sizes = {name: int(number) for name, _, number in (size.partition("=") for size in arguments[5:])}
    make_inputs(Path(artifact), component, how, Path(model), Path(file), sizes)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
