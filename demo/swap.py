"""The second fine-tune: other weights for the same architecture, exported without tracing anything again.

Run as a module, it is the process that exports them: `python -m vitrify.demo.swap MODEL ARTIFACT GIVEN`. A process of
its own can show that torch was not imported; the demo's has long done so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, VitrifyError
from ..core.publish import link_or_copy

CHANGES = "night.safetensors"
UNET = Path("unet/diffusion_pytorch_model.safetensors")


@dataclass(frozen=True)
class Merged:
    """What a merge changed. bytes: of the file of changes."""

    changed: int
    tensors: int
    bytes: int


def merge_model(model: Path, target: Path) -> Merged:
    """Write the pipeline in `model` to the new folder `target`, its UNet with the tensors of `night.safetensors`.

    Weights that stay are hard links where the disk can; torch is not needed.

    Raises:
        BadInput: a changed tensor is not one of the UNet's, or of another shape or dtype.
    """
    for path in sorted(model.rglob("*")):
        inner = path.relative_to(model)
        if not path.is_file() or inner in (UNET, Path(CHANGES)):
            continue
        if path.suffix == ".safetensors":
            link_or_copy(path, target / inner)
        else:  # small, and a reader may want to edit it
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / inner)
    return merge_tensors(model / UNET, model / CHANGES, target / UNET)


def merge_tensors(base: Path, changes: Path, target: Path) -> Merged:
    """Write the safetensors file `base` to `target` with the tensors of `changes` in the place of those of that name.

    Raises:
        BadInput: as `merge_model`.
    """
    from safetensors.numpy import load_file, save_file

    tensors, new = load_file(base), load_file(changes)
    for name, value in new.items():
        old = tensors.get(name)
        if old is None or old.shape != value.shape or old.dtype != value.dtype:
            have = "no such tensor" if old is None else f"{old.dtype} {list(old.shape)}"
            raise BadInput(
                f"{changes.name} changes {name}, {value.dtype} {list(value.shape)}; {base.name} has {have}.",
                "Use the changes that were trained from this model.",
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    # the libraries refuse a file that does not say whose layout its tensors have
    save_file({n: new.get(n, t) for n, t in tensors.items()}, target, metadata={"format": "pt"})
    return Merged(len(new), len(tensors), changes.stat().st_size)


def export_apart(model: Path, artifact: Path, given: str) -> dict[str, Any]:
    """Export `model` in a new process, without the numeric proof.

    Args:
        given: the source's name in the manifest.

    Returns:
        seconds: of the whole process, its start included. torch_imported. notes: where each graph came from.

    Raises:
        VitrifyError: the export failed.
    """
    # this process may have found the package by a path that a new one would not know
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-m", __name__, str(model), str(artifact), given]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    seconds = time.perf_counter() - start
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise VitrifyError(f"The export of {given} failed: {last}.", "Run it again.") from None
    if "error" in found:
        raise VitrifyError(found["error"]["what"], found["error"]["fix"])
    return {"seconds": seconds, **found}


def _export(model: Path, artifact: Path, given: str) -> Mapping[str, Any]:
    from ..export.job import ExportJob
    from ..export.source import open_source

    try:
        done = ExportJob(open_source(model, given=given), artifact, verify=False).run()
    except VitrifyError as exc:
        return {"error": {"what": exc.what, "fix": exc.fix}}
    return {"torch_imported": "torch" in sys.modules, "notes": done.notes}


if __name__ == "__main__":
    print(json.dumps(_export(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])))
