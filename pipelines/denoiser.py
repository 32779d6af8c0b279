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


class Denoiser:
    """Calls the denoiser of a family.

    Args:
        sessions: component -> session. budget: within a bound, and where components work in turn on the
            CPU, one row is computed after the other, for activations grow with the rows.
        cache: takes deep features of earlier calls; None: each call is computed whole.
        pictures: how many are drawn; the rows of their prompts come last in a call.

    Raises:
        BadInput: features shall be kept, and the artifact has no shallow graph.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        family: Family,
        budget: Budget | None,
        cache: StepCache | None = None,
        pictures: int = 1,
    ) -> None:
        self._family, self._pictures = family, pictures
        alone = budget is not None and (budget.bounded or (budget.in_turn and budget.device == "cpu"))
        here = budget is not None and alone and family.denoiser in budget.sizes
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
        self._deep: Array | None = None  # of the last whole call, a row for each of its rows

    def whole(self) -> bool:
        """Whether the next call is computed whole; asked once before each."""
        return self._policy is None or self._policy.whole()

    def predicted(self, sample: FloatArray, timestep: float, rows: Rows, *, whole: bool = True) -> FloatArray:
        """The denoiser's answer, float32 in the shape of the latents of `sample`; see `Family.denoiser_inputs`.

        Args:
            whole: False takes the deep features of the last whole call, which had these rows, and maybe others before.
        """
        deep = None if whole or self._shallow is None or self._deep is None else self._deep[-len(sample) :]
        if self._budget is None or len(sample) == 1:
            found, kept = self._called(sample, timestep, rows, deep)
        else:
            self._budget.say(f"{self._family.denoiser} called once a row")
            parts = []
            for row in range(len(sample)):
                part = slice(row, row + 1)
                given = {n: v[part] if len(v) == len(sample) else v for n, v in rows.items()}
                parts.append(self._called(sample[part], timestep, given, None if deep is None else deep[part]))
            found = np.concatenate([one for one, _ in parts])
            features = [one for _, one in parts if one is not None]
            kept = np.concatenate(features) if features else None
        if kept is not None and self._policy is not None:
            self._deep = kept
            self._policy.saw(kept[-self._pictures :])  # a call may have had the negative rows too, or not
        return found

    def _called(
        self, sample: FloatArray, timestep: float, rows: Rows, deep: Array | None
    ) -> tuple[FloatArray, Array | None]:
        """The answer, and the deep features of a whole call."""
        inputs = self._family.denoiser_inputs(sample, timestep, rows)
        if deep is None or self._shallow is None:
            outputs = self._whole.run(inputs)
            return self._family.prediction(outputs, sample), outputs.get(DEEP)
        takes = self._shallow.inputs
        outputs = self._shallow.run({n: v for n, v in inputs.items() if n in takes} | {DEEP: deep})
        return self._family.prediction(outputs, sample), None
