"""Two sessions, the same inputs: how far apart are the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.errors import ProofFailed
from ..core.tensors import Array, DType
from ..runtimes.base import Session

TOLERANCE = 1e-4  # largest absolute error, as a share of the reference output's range
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Parity:
    """One output compared.

    max_abs: largest absolute difference. range: the reference's maximum minus its minimum.
    cosine: of the two flattened. snr_db: power of the reference over power of the difference; inf where equal.
    """

    output: str
    sizes: dict[str, int]
    max_abs: float
    range: float
    cosine: float
    snr_db: float

    @property
    def relative(self) -> float:
        return self.max_abs / self.range if self.range else (math.inf if self.max_abs else 0.0)

    @property
    def passed(self) -> bool:
        return math.isfinite(self.max_abs) and self.relative <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        snr = self.snr_db if math.isfinite(self.snr_db) else None
        return asdict(self) | {"relative": self.relative, "snr_db": snr, "passed": self.passed}


def compare(name: str, reference: Array, given: Array, sizes: Sizes) -> Parity:
    """Hold one output against its reference.

    Raises:
        ProofFailed: the shapes differ.
    """
    if reference.shape != given.shape:
        raise ProofFailed(
            f"{name} has shape {list(given.shape)} at {dict(sizes)}, the reference {list(reference.shape)}: "
            "a size was baked into the graph.",
            "Report the model's config.json.",
        )
    a, b = reference.astype(np.float64).ravel(), given.astype(np.float64).ravel()
    difference = np.abs(a - b)
    max_abs = float(difference.max(initial=0.0)) if np.isfinite(difference).all() else math.inf
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    noise = float((difference**2).mean()) if difference.size else 0.0
    power = float((a**2).mean()) if a.size else 0.0
    return Parity(
        output=name,
        sizes=dict(sizes),
        max_abs=max_abs,
        range=float(a.max(initial=-math.inf) - a.min(initial=math.inf)) if a.size else 0.0,
        cosine=float(a @ b / norm) if norm else float(max_abs == 0),
        snr_db=10 * math.log10(power / noise) if noise and power else math.inf,
    )


def sample_inputs(component: Component, sizes: Sizes, seed: int = 0) -> dict[str, Array]:
    """Inputs for `component` at these sizes: normal floats, and whole numbers within the manifest's ranges."""
    rng = np.random.default_rng(seed)
    ranges = component.details.get("samples", {})
    tensors: dict[str, Array] = {}
    for name, spec in component.inputs.items():
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape)
        if name in ranges:
            low, high = ranges[name]
            tensors[name] = np.asarray(rng.integers(low, high + 1, shape), dtype=spec.dtype.value)
        elif spec.dtype in (DType.INT64, DType.INT32):
            tensors[name] = np.zeros(shape, dtype=spec.dtype.value)
        else:
            tensors[name] = np.asarray(rng.standard_normal(shape), dtype=spec.dtype.value)
    return tensors


def parity(component: Component, reference: Session, given: Session, checks: Sequence[Sizes]) -> list[Parity]:
    """Run both sessions at each of `checks` and compare every output.

    Raises:
        ProofFailed: an output has another shape than the reference's.
    """
    found = []
    for number, sizes in enumerate(checks):
        tensors = sample_inputs(component, sizes, seed=number)
        expected, got = reference.run(tensors), given.run(tensors)
        found += [compare(name, expected[name], got[name], sizes) for name in component.outputs]
    return found


def require(what: str, parities: Sequence[Parity]) -> None:
    """Raise ProofFailed for the worst of `parities` that is out of tolerance."""
    failed = [p for p in parities if not p.passed]
    if failed:
        worst = max(failed, key=lambda p: p.relative)
        raise ProofFailed(
            f"{what}: {worst.output} at {worst.sizes} is off by {worst.max_abs:.3g}, "
            f"{worst.relative:.2g} of its range; {TOLERANCE:g} is allowed.",
            "Nothing was published. Report the model's config.json and `vitrify doctor`.",
        )
