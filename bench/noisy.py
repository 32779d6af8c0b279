"""A planted loss of quality: a copy of an artifact whose denoiser's weights got noise, proven by the real proof."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.artifact import Artifact, WeightFile, hash_file
from ..core.errors import BadInput
from ..core.progress import silent
from ..pipelines.load import load
from ..proof.quality import Tolerance, compare_images

COMPONENT = "unet"
PROOF = Tolerance(psnr=0.0, exact=False, prompts=8, steps=20)  # what a rounded artifact draws; passes whatever comes
_FLOATS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
_NEAR = 0.25  # dB
_TRIALS = 8


def noisy_copy(source: Path, target: Path, share: float, seed: int) -> Artifact:
    """Copy an exported artifact and add Gaussian noise to each tensor of its denoiser.

    Args:
        share: the noise's standard deviation, as a share of the tensor's.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    artifact = Artifact.load(target)
    component = artifact.components[COMPONENT]
    files = []
    for weights in component.weights:
        file = target / weights.path
        _add_noise(file, share, np.random.default_rng(seed))
        files.append(WeightFile(weights.path, file.stat().st_size, hash_file(file)))
    changed = replace(component, weights=tuple(files))
    artifact = replace(artifact, components={**artifact.components, COMPONENT: changed})
    artifact.save()
    return artifact


def prove(artifact: Artifact, reference: Path, tolerance: Tolerance = PROOF) -> float:
    """Draw the proof's pictures with both, and write what came out into the manifest. Mean PSNR, dB."""
    found = compare_images(
        lambda: closing(load(reference, "cpu")), lambda: closing(load(artifact.root, "cpu")), tolerance, silent
    )
    replace(artifact, proof={**artifact.proof, **found}).save()
    return float(found["images"]["mean_psnr_db"])


def proven_copy(source: Path, target: Path, psnr: float, seed: int, share: float) -> tuple[float, float]:
    """A noisy copy that lies `psnr` dB from its source on average, give or take 0.25.

    Args:
        share: of noise, to begin with.

    Returns:
        The share of noise that it has, and its mean PSNR in dB.

    Raises:
        BadInput: no share was found.
    """
    below, above = 0.0, math.inf  # shares that gave more, and less, than the PSNR
    for _ in range(_TRIALS):
        got = prove(noisy_copy(source, target, share, seed), source)
        if abs(got - psnr) <= _NEAR:
            return share, got
        below, above = (max(below, share), above) if got > psnr else (below, min(above, share))
        share *= 10 ** ((got - psnr) / 20)  # where noise is small, its power is the error's
        if not below < share < above:
            share = math.sqrt(below * above) if below else above / 2
    raise BadInput(f"No noise of seed {seed} brings {source} to {psnr:g} dB.", "Give another PSNR.")


def _add_noise(file: Path, share: float, rng: np.random.Generator) -> None:
    """In place: the graph refers to offsets of a safetensors file, so that its layout must stay."""
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    data = np.memmap(file, mode="r+", offset=8 + size)
    for name, entry in sorted(header.items()):
        dtype = _FLOATS.get(entry.get("dtype", ""))
        if name == "__metadata__" or dtype is None:
            continue
        start, end = entry["data_offsets"]
        values = data[start:end].view(dtype)
        exact = values.astype(np.float64)
        values[:] = exact + share * exact.std() * rng.standard_normal(exact.shape)
    data.flush()
