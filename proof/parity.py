"""Two sessions, the same inputs: how far apart are the outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..core.artifact import Component
from ..core.errors import BadInput, ProofFailed, RuntimeFailure
from ..core.tensors import Array, DType
from ..pipelines.step_cache import DEEP
from ..runtimes.base import Session

TOLERANCE = 1e-4  # largest absolute error, as a share of the reference output's range
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Parity:
    """One output compared.

    max_abs: largest absolute difference. range: the reference's maximum minus its minimum; of a constant, its size.
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
        if not math.isfinite(self.max_abs):
            return math.inf
        return self.max_abs / self.range if self.range else (math.inf if self.max_abs else 0.0)

    @property
    def passed(self) -> bool:
        return math.isfinite(self.max_abs) and self.relative <= TOLERANCE

    def to_json(self) -> dict[str, Any]:
        values = asdict(self) | {"relative": self.relative, "passed": self.passed}
        # JSON knows neither infinity nor NaN
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


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
    if not reference.size:
        raise ProofFailed(f"{name} is empty at {dict(sizes)}: nothing would be compared.", "Compare at larger sizes.")
    a, b = reference.astype(np.float64).ravel(), given.astype(np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        # also where both are: NaN beside NaN proves nothing
        return Parity(name, dict(sizes), max_abs=math.inf, range=math.nan, cosine=math.nan, snr_db=-math.inf)
    difference = np.abs(a - b)
    max_abs = float(difference.max())
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    noise, power = float((difference**2).mean()), float((a**2).mean())
    return Parity(
        output=name,
        sizes=dict(sizes),
        max_abs=max_abs,
        range=float(a.max() - a.min()) or float(np.abs(a).max()),
        cosine=float(a @ b / norm) if norm else float(max_abs == 0),
        snr_db=math.inf if not noise else 10 * math.log10(power / noise) if power else -math.inf,
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
    """Run both sessions at each of `checks` and compare every output but deep features, which no library gives.

    Raises:
        ProofFailed: an output has another shape than the reference's, or only the reference runs at a size.
    """
    found = []
    for number, sizes in enumerate(checks):
        tensors = sample_inputs(component, sizes, seed=number)
        expected = reference.run(tensors)
        try:
            got = given.run(tensors)
        except (BadInput, RuntimeFailure) as exc:
            raise ProofFailed(
                f"{component.name} does not run at {dict(sizes)}, where the reference does: {exc.what}",
                "A size may be baked into the graph. Report the model's config.json.",
            ) from exc
        found += [compare(name, expected[name], got[name], sizes) for name in component.outputs if name != DEEP]
    return found


def require(what: str, parities: Sequence[Parity]) -> None:
    """Raise ProofFailed for the worst of `parities` that is out of tolerance."""
    require_finite(what, parities)
    failed = [p for p in parities if not p.passed]
    if failed:
        worst = max(failed, key=lambda p: p.relative)
        raise ProofFailed(
            f"{what}: {worst.output} at {worst.sizes} is off by {worst.max_abs:.3g}, "
            f"{worst.relative:.2g} of its range; {TOLERANCE:g} is allowed.",
            "Report the model's config.json and `vitrify doctor`.",
        )


def require_finite(what: str, parities: Sequence[Parity]) -> None:
    """Raise ProofFailed where an output holds NaN or infinity."""
    for one in parities:
        if not math.isfinite(one.max_abs):
            raise ProofFailed(
                f"{what}: {one.output} at {one.sizes} holds NaN or infinity.",
                "Keep more layers, or use another recipe.",
            )
