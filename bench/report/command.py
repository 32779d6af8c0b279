"""The command that measures the same again, from the cells that a results file holds."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...quant.recipes import recipe
from ..results import Results
from ..spec import CLASSIFY, Spec

_WORKER = "vitrify.bench.worker"


def commands(results: Results) -> list[str]:
    """One command a set of axes: models that were measured alike share it.

    What a results file does not tell stands in capitals. Options of runtimes have no flag: they want a suite.
    """
    kept = results.plan.get("command")
    if kept:
        return [kept if isinstance(kept, str) else shlex.join(map(str, kept))]
    specs = [c.spec for c in results.cells] + [
        Spec.from_json(line["spec"]) for line in results.skipped if "spec" in line
    ]
    sources: dict[tuple[str, ...], list[str]] = {}
    for model in dict.fromkeys(s.model for s in specs):
        own = [s for s in specs if s.model == model and s.runtime != "any"]
        if own:
            sources.setdefault(tuple(_axes(own)), []).append(own[0].source)
    run = _run(results)
    return [shlex.join(["vitrify", "bench", *given, *axes, *run]) for axes, given in sources.items()]


def timing(results: Results) -> tuple[str, str] | None:
    """Seconds that a process timed calls for, and calls at least; None where the file does not say."""
    cases: Any = results.plan.get("cases")
    for case in cases if isinstance(cases, list) else []:
        command = case.get("command") if isinstance(case, Mapping) else None
        if isinstance(command, list) and _WORKER in command:
            return str(command[-2]), str(command[-1])
    return None


def _axes(specs: Sequence[Spec]) -> list[str]:
    sizes = [f"{s.width}x{s.height}" for s in specs if s.width is not None]
    found = _option("--runtime", (s.runtime for s in specs))
    found += _option("--quant", (s.recipe for s in specs))
    found += _option("--size", sizes)
    found += _option("--batch", (s.batch for s in specs))
    found += _option("--threads", (s.threads for s in specs))
    found += _option("--steps", (s.steps for s in specs if s.steps is not None))
    found += _option("--guidance", (f"{s.guidance:g}" for s in specs if s.guidance is not None))
    found += [] if specs[0].device == "cpu" else ["--device", specs[0].device]
    if specs[0].task == CLASSIFY and any(recipe(s.recipe).calibrated for s in specs):
        found += ["--calibration", "FOLDER"]
    return found


def _option(name: str, values: Iterable[object]) -> list[str]:
    """An option with each value once; nothing where there is none."""
    words = list(dict.fromkeys(str(v) for v in values))
    return [name, ",".join(words)] if words else []


def _run(results: Results) -> list[str]:
    found = ["--rounds", str(results.plan["rounds"])] if "rounds" in results.plan else []
    if held := timing(results):
        found += ["--seconds", held[0], "--calls", held[1]]
    return found
