"""export: a whole Stable Diffusion 1.5 without its weights, a second one whose graphs the cache holds, and torch's own
export of the UNet alone."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from ..core.errors import BadInput
from .measure import Case
from .models import SD15
from .preparing import OFFLINE, disk, inodes, untimed
from .suite import Bench, Comparison

TORCH = "torch.onnx.export, UNet only"


def cases(work: Path) -> list[Case]:
    """The exports; each starts without its own result, and the first one without a cache."""
    models, made, scratch = work / "models", work / "exports", work / "scratch"
    cache = scratch / "cache"
    first, second, dynamo = made / SD15[0], made / SD15[1], made / "dynamo"

    def environment(name: str) -> dict[str, str]:
        # What a run leaves anywhere else than in its result counts as its disk, so that it is all put here.
        home = scratch / name
        return {
            **OFFLINE,
            "VITRIFY_CACHE": str(cache),
            "XDG_CACHE_HOME": str(home / "xdg"),
            "HF_HOME": str(home / "hf"),
            "TMPDIR": str(home / "tmp"),
        }

    def clear(name: str, *folders: Path) -> None:
        for folder in (*folders, scratch / name):
            shutil.rmtree(folder, ignore_errors=True)
        (scratch / name / "tmp").mkdir(parents=True)

    known: dict[str, set[tuple[int, int]]] = {}

    def start_second() -> None:
        if not cache.is_dir():
            raise BadInput("The graph cache is empty: the first export left nothing in it.", "See why it failed.")
        clear("second", second)
        known["cache"] = inodes([cache])

    return [
        Case(
            "vitrify, whole pipeline",
            [sys.executable, "-m", "vitrify", "export", str(models / SD15[0]), "-o", str(first)],
            environment("first"),
            group="export",
            before=lambda: clear("first", first, cache),
            after=lambda _: disk([first, cache, scratch / "first"], inodes([models])),
        ),
        Case(
            "vitrify, second model",
            [sys.executable, "-m", "vitrify", "export", str(models / SD15[1]), "-o", str(second)],
            environment("second"),
            group="export",
            before=start_second,
            after=lambda _: disk([second, cache, scratch / "second"], inodes([models]) | known["cache"]),
        ),
        Case(
            TORCH,
            [sys.executable, "-m", "vitrify.bench.dynamo_export", str(models / SD15[0] / "unet"), str(dynamo)],
            environment("dynamo"),
            group="export",
            before=lambda: clear("dynamo", dynamo),
            after=lambda _: disk([dynamo, scratch / "dynamo"], inodes([models])),
        ),
    ]


def prepare(work: Path) -> None:
    untimed("making the random sd15", [sys.executable, "-m", "vitrify.bench.models", str(work / "models"), "sd15"])


# An export in practice is always a first run, and a warm-up would cost minutes.
EXPORT = Bench("export", cases, prepare, (Comparison("export", TORCH),))
