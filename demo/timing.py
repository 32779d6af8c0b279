"""PyTorch and ONNX Runtime in turns: the same pipeline code over the sessions of one and of the other.

Warm, in one process, medians of a few rounds: enough for a demo. The bench room measures
a process a case.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.artifact import Artifact
from ..core.progress import Event, Report
from ..pipelines.load import load
from ..proof.quality import psnr
from ..runtimes.base import Options

DRAWN = 5  # rounds, after one that is not counted
READ = 9


def time_drawing(
    reference: Artifact,
    artifact: Artifact,
    prompts: Sequence[str],
    options: dict[str, Any],
    threads: int,
    report: Report,
) -> dict[str, Any]:
    """Seconds for one picture in both, and how near the two pictures of each round are.

    Args:
        reference: components in the format `torch`.
        options: of `generate`, but for prompt and seed.
    """

    def draw(pipeline: Any, number: int) -> Image.Image:
        picture: Image.Image = pipeline.generate(prompts[number % len(prompts)], seed=number, **options).images[0]
        return picture

    before = _clocks()
    seconds, results = _in_turns(reference, artifact, draw, DRAWN, threads, report, "draw with PyTorch and the runtime")
    values = [psnr(np.asarray(a), np.asarray(b)) for a, b in zip(results["torch"], results["runtime"], strict=True)]
    worst = min(values)
    # equal pictures have no finite PSNR, and JSON no infinity
    return {**_figures(seconds, 1), "min_psnr_db": worst if math.isfinite(worst) else None, **_others(before, threads)}


def time_reading(
    reference: Artifact, artifact: Artifact, pictures: Sequence[Image.Image], threads: int, report: Report
) -> dict[str, Any]:
    """Seconds a picture in both, all of them in one run, and the largest difference of a label's score."""

    def read(pipeline: Any, number: int) -> list[dict[str, float]]:
        answers = pipeline.classify(pictures, top_k=None, batch=len(pictures))
        return [{one["label"]: one["score"] for one in answer} for answer in answers]

    before = _clocks()
    seconds, results = _in_turns(reference, artifact, read, READ, threads, report, "read with PyTorch and the runtime")
    off = max(abs(a[k] - b[k]) for a, b in zip(results["torch"][0], results["runtime"][0], strict=True) for k in a)
    return {
        **_figures(seconds, len(pictures)),
        "batch": len(pictures),
        "max_score_difference": off,
        **_others(before, threads),
    }


def _in_turns(
    reference: Artifact,
    artifact: Artifact,
    work: Callable[[Any, int], Any],
    rounds: int,
    threads: int,
    report: Report,
    stage: str,
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Seconds and results of each round. Who begins changes from round to round; round 0 warms up."""
    seconds: dict[str, list[float]] = {"torch": [], "runtime": []}
    results: dict[str, list[Any]] = {"torch": [], "runtime": []}
    pipelines: dict[str, Any] = {}
    try:
        for name, one in (("torch", reference), ("runtime", artifact)):
            pipelines[name] = load(one, "cpu", options=Options(threads=threads))
        for number in range(rounds + 1):
            report(Event(stage, number, rounds + 1, "rounds"))
            for name in sorted(pipelines, reverse=number % 2 == 0):
                start = time.perf_counter()
                result = work(pipelines[name], number)
                if number:
                    seconds[name].append(time.perf_counter() - start)
                    results[name].append(result)
    finally:
        for pipeline in pipelines.values():
            pipeline.close()
    return seconds, results


def _figures(seconds: dict[str, list[float]], pictures: int) -> dict[str, Any]:
    """Medians and ranges in seconds a picture. ratio: torch's median over the runtime's."""
    table: dict[str, Any] = {}
    for name, values in seconds.items():
        each = [v / pictures for v in values]
        table[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    return table | {"rounds": len(seconds["torch"]), "ratio": table["torch"]["median"] / table["runtime"]["median"]}


def _clocks() -> tuple[float, float, float] | None:
    """Seconds so far: of the wall, of all processors' work, of this process's; None where Linux does not tell them."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq = map(int, first[1:8])
    busy = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy, time.process_time()


def _others(before: tuple[float, float, float] | None, threads: int) -> dict[str, Any]:
    """Cores that other programs used since `before`, and whether they left fewer than `threads` of them.

    Where they did, the figures say more about them: threads that wait for each other lose more than their share.
    """
    after = _clocks()
    if before is None or after is None:
        return {"threads": threads, "others": None, "busy": False}
    wall, busy, own = (b - a for a, b in zip(before, after, strict=True))
    others = max(0.0, (busy - own) / wall)
    return {"threads": threads, "others": others, "busy": others > (os.cpu_count() or 1) - threads + 0.2}
