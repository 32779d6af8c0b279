"""A planted slowdown: every whole call takes a share more of its thread's time, which is burnt in a loop.

It shows whether a comparison finds what is there. A folder with a sitecustomize.py of `SITECUSTOMIZE` on PYTHONPATH
plants it in any Python process that has VITRIFY_PLANTED_SLOWDOWN in its environment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

SHARE = "VITRIFY_PLANTED_SLOWDOWN"
SITECUSTOMIZE = "from vitrify.bench.slower import plant\n\nplant()\n"


def environment(folder: Path, share: float) -> dict[str, str]:
    """Variables that plant it; the folder gets the sitecustomize.py."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join(filter(None, (str(folder.resolve()), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, SHARE: repr(share)}


def plant() -> None:
    """Slow the pipelines of this process down, where the environment asks for it."""
    share = float(os.environ.get(SHARE) or 0)
    if share:
        from ..pipelines.classification import ClassificationPipeline
        from ..pipelines.diffusion import DiffusionPipeline

        DiffusionPipeline.generate = slowed(DiffusionPipeline.generate, share)  # type: ignore[method-assign]
        ClassificationPipeline.run = slowed(ClassificationPipeline.run, share)  # type: ignore[method-assign]


def slowed(call: Callable[..., Any], share: float) -> Callable[..., Any]:
    """The call, and then a loop that spins for `share` of the CPU time that the call took of this thread."""

    @wraps(call)
    def run(*args: Any, **options: Any) -> Any:
        start = time.thread_time()
        result = call(*args, **options)
        now = time.thread_time()
        end = now + share * (now - start)
        while time.thread_time() < end:
            pass
        return result

    return run
