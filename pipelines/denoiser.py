"""One generation's calls of its denoiser: whole or in rows, computed whole or around kept features."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..core.errors import BadInput
from ..core.tensors import Array
from ..runtimes.base import Session
from .budget import Budget
from .families.base import Family, FloatArray, Rows
from .staying import Staying
from .step_cache import DEEP, SHALLOW, Policy, StepCache

_EACH = "each"  # of all rows at once; else a row's number


class Denoiser:
    """Calls the denoiser of a family.

    Args:
        sessions: component -> session. budget: within a bound, one row is computed after the other, for activations
            grow with the rows.
        cache: takes deep features of earlier calls; None: each call is computed whole.

    Raises:
        BadInput: features shall be kept, and the artifact has no shallow graph.
    """

    def __init__(
        self, sessions: Mapping[str, Session], family: Family, budget: Budget | None, cache: StepCache | None = None
    ) -> None:
        self._family = family
        here = budget is not None and budget.bounded and family.denoiser in budget.sizes
        self._budget = budget if here else None
        self._whole = Staying(sessions[family.denoiser])
        self._shallow: Staying | None = None
        self._policy: Policy | None = None
        if cache is None:
            return
        name = family.denoiser + SHALLOW
        if name not in sessions:
            raise BadInput(
                "This artifact has no graph that takes deep features.", "Export or compile it again, with --step-cache."
            )
        self._shallow, self._policy = Staying(sessions[name]), cache.policy()
        self._deep: dict[str | int, Array] = {}

    def predicted(self, sample: FloatArray, timestep: float, rows: Rows) -> FloatArray:
        """The denoiser's answer, float32 in the shape of the latents of `sample`; see `Family.denoiser_inputs`."""
        whole = self._policy is None or self._policy.whole()
        if self._budget is None or len(sample) == 1:
            found = self._called(_EACH, sample, timestep, rows, whole)
        else:
            self._budget.say(f"{self._family.denoiser} called once a row")
            parts = []
            for row in range(len(sample)):
                given = {n: v[row : row + 1] if len(v) == len(sample) else v for n, v in rows.items()}
                parts.append(self._called(row, sample[row : row + 1], timestep, given, whole))
            found = np.concatenate(parts)
        if whole and self._policy is not None:
            self._policy.saw(np.concatenate([self._deep[key] for key in sorted(self._deep, key=str)]))
        return found

    def _called(self, key: str | int, sample: FloatArray, timestep: float, rows: Rows, whole: bool) -> FloatArray:
        inputs = self._family.denoiser_inputs(sample, timestep, rows)
        if whole or self._shallow is None:
            outputs = self._whole.run(inputs)
            if self._policy is not None:
                self._deep[key] = outputs[DEEP]
        else:
            takes = self._shallow.inputs
            outputs = self._shallow.run({n: v for n, v in inputs.items() if n in takes} | {DEEP: self._deep[key]})
        return self._family.prediction(outputs, sample)
