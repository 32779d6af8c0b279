"""How much of a drawing's work is left to do once some of it is left out: what a job costs beside a plain one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..pipelines.guiding import Guide, Guiding
from ..pipelines.step_cache import StepCache

_SHALLOW = 0.1  # of a whole call, about what one with kept features takes; see docs/step-cache.md


@lru_cache(1024)
def share_of_work(cache: StepCache | None, guiding: Guiding, steps: int, guided: bool) -> float:
    """Of what `steps` plain calls of the denoiser take: above 0 to 1.

    A cache that goes by how much features change counts as none: how often it works is known afterwards.

    Args:
        guided: whether the negative prompt is computed at all.
    """
    policy = cache.policy() if cache is not None and cache.interval is not None else None
    guide = Guide(1.0, guiding, steps, guided=guided)
    done = 0.0
    for step in range(steps):  # as DiffusionPipeline.denoise asks for them
        whole = policy is None or policy.whole() or guide.wants_whole(step)
        both = guide.both(step, whole=whole)
        rows = 2 if both else 1
        guide.combined(np.zeros((rows, 1), np.float32), step, both=both)
        done += rows * (1.0 if whole else _SHALLOW)
    return done / (steps * (2 if guided else 1))
